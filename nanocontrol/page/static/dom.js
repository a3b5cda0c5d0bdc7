// Small helpers for elements, pictures and numbers.

const SVG = 'http://www.w3.org/2000/svg';

export const $ = (id) => document.getElementById(id);
export const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
export const pngUrl = (png) => `data:image/png;base64,${png}`;
export const plural = (n, word) => `${n.toLocaleString('en')} ${word}${n === 1 ? '' : 's'}`;

/** A new element. Attributes whose value is a function are listeners; false leaves one out. */
export function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === 'function') element.addEventListener(key, value);
    else if (value !== false && value != null) element.setAttribute(key, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

export const blobOf = (png) => new Blob([Uint8Array.from(atob(png), (c) => c.charCodeAt(0))], { type: 'image/png' });

/** A share in percent, with two digits where it is small. */
export function percent(share) {
  const value = 100 * share;
  return `${value >= 10 ? Math.round(value) : value >= 0.1 ? value.toFixed(1) : value.toPrecision(1)} %`;
}

/** Draw a PNG (base64) into a canvas of the picture's own size. */
export async function paint(canvas, png) {
  const bitmap = await createImageBitmap(blobOf(png));
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  canvas.getContext('2d').drawImage(bitmap, 0, 0);
}

/** Run `action` once, `wait` milliseconds after the last call. */
export function debounced(action, wait) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), wait);
  };
}

/** A button that calls `next(i)` again and again until that is false, or until a second click. Returns `stop`. */
export function player(button, wait, next) {
  const label = button.textContent;
  let timer = 0;
  const stop = () => {
    clearInterval(timer);
    [timer, button.textContent] = [0, label];
  };
  button.addEventListener('click', () => {
    if (timer) return stop();
    let i = 0;
    button.textContent = '■ Stop';
    timer = setInterval(() => next(i++) || stop(), wait);
  });
  return stop;
}

/** Copy a text, and say so in `place` for two seconds. */
export async function copyText(text, place) {
  const before = place.textContent;
  try {
    await navigator.clipboard.writeText(text);
    place.textContent = 'Copied';
  } catch {
    place.textContent = 'Copying is not allowed here';
  }
  setTimeout(() => (place.textContent = before), 2000);
}

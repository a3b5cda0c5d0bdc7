// The request: all settings and the drawing. It lives in the URL's fragment, so a link or a reload
// brings everything back. Views subscribe to changes.

const LONGEST = 8000; // characters of a fragment
const listeners = new Set();
const past = []; // drawings, for undo

// live: whether the server's models are loaded; leftOut: whether the address lacks the photo's edges.
export const state = { request: null, live: false, leftOut: false };

export function subscribe(listener) {
  listeners.add(listener);
}

/** Change some of the request's fields and tell everybody. */
export function change(fields, { undoable = true } = {}) {
  if (fields.drawing && undoable) past.push(state.request.drawing);
  state.request = { ...state.request, ...fields };
  keepInUrl();
  for (const listener of listeners) listener(Object.keys(fields));
}

export const changeDrawing = (fields, options) =>
  change({ drawing: { ...state.request.drawing, ...fields } }, options);

export const canUndo = () => past.length > 0;

export function undo() {
  if (!past.length) return;
  const drawing = past.pop();
  const columns = ['none', drawing.condition];
  change({ drawing, columns }, { undoable: false });
}

/** The strengths of all connections as a list, also where the request has one number. */
export function strengths(n) {
  const { strength } = state.request;
  return Array.isArray(strength) ? strength : Array(n).fill(strength);
}

// -------------------------------------------------------------------------------- fragment

async function keepInUrl() {
  const request = state.request;
  let text = await pack(request);
  state.leftOut = text.length > LONGEST && Boolean(request.drawing.under);
  if (state.leftOut) text = await pack({ ...request, drawing: { ...request.drawing, under: null } });
  if (request === state.request) history.replaceState(null, '', `#1${text}`);
}

async function pack(request) {
  const bytes = await through(new CompressionStream('deflate-raw'), JSON.stringify(request));
  const binary = Array.from(new Uint8Array(bytes), (b) => String.fromCharCode(b)).join('');
  return btoa(binary).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
}

/** The request in the URL, or null where there is none or it cannot be read. */
export async function fromUrl() {
  if (!location.hash.startsWith('#1')) return null;
  try {
    const binary = atob(location.hash.slice(2).replaceAll('-', '+').replaceAll('_', '/'));
    const bytes = Uint8Array.from(binary, (c) => c.charCodeAt(0));
    const text = await through(new DecompressionStream('deflate-raw'), bytes);
    const request = JSON.parse(new TextDecoder().decode(text));
    return request?.drawing ? request : null;
  } catch {
    return null;
  }
}

function through(transform, input) {
  return new Response(new Blob([input]).stream().pipeThrough(transform)).arrayBuffer();
}

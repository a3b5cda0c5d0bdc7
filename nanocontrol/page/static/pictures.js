// The pictures with and without control, forming step by step, and what they say.

import { $, el, player, pngUrl } from './dom.js';
import { nameOf } from './panel.js';
import { look, mainColumn, onResult, reached, result, shownStep, stepsOf, view } from './result.js';

let scored = false;

export function initPictures(info) {
  scored = info.nano;
}

export function listenToPictures() {
  onResult((what) => {
    if (what === 'start') build();
    render();
  });
  const stop = player($('replay'), 220, (step) => {
    look(step < stepsOf() ? Math.min(step, reached() - 1) : null);
    return view.step !== null;
  });
  $('step').addEventListener('input', (event) => { stop(); look(Number(event.target.value)); });
  $('overlay').addEventListener('change', render);
}

function title(column) {
  const other = column !== result.request.drawing.condition;
  const [kind, title, text] = column === 'none' ? ['', 'Without the drawing', 'the locked network alone']
    : ['control', other ? nameOf(column) : 'With the drawing', other ? '' : 'with the ControlNet'];
  return el('figcaption', { class: kind }, el('b', {}, title), el('span', {}, text));
}

function build() {
  const shown = [...$('pictures').children].map((figure) => [figure.dataset.column, figure.querySelector('.made').src]);
  const before = Object.fromEntries(shown);
  const figures = result.start.columns.map((column) => {
    const own = lead(column);
    const hint = isEmpty(own) ? null : result.start.hints[own];
    return el('figure', { 'data-column': column, class: column === 'none' ? 'without' : 'with' },
      title(column),
      el('div', { class: 'picture' },
        el('img', { class: 'made', src: before[column] || false, alt: `Picture, control: ${column}` }),
        hint ? el('img', { class: `hint ${OVERLAYS[own] ?? ''}`, alt: '', src: pngUrl(hint) }) : null,
        el('span', { class: 'badge' })),
      el('p', { class: 'score' }));
  });
  $('pictures').classList.toggle('many', figures.length > 2);
  $('pictures').replaceChildren(...figures);
}

const OVERLAYS = { canny: 'lines', hough: 'lines', soft: 'lines', scribble: 'lines', pose: 'glow', depth: 'glow' };
/** The condition that a column is compared with. */
const lead = (column) => (column === 'none' ? result.request.drawing.condition : column);
const isEmpty = (condition) => result.start.empty.includes(condition);

function render() {
  if (!result.start) return;
  const [all, step] = [stepsOf(), shownStep()];
  $('pictures').classList.toggle('overlaid', $('overlay').checked);
  for (const figure of $('pictures').children) renderFigure(figure, step, all);
  $('step').max = all;
  $('step').value = Math.max(0, step);
  const text = step < 0 ? 'starting' : step === all ? 'finished' : `step ${step + 1} of ${all}`;
  $('step-text').value = text;
  $('step').setAttribute('aria-valuetext', text);
  $('says').ariaBusy = String(step < all); // read out when the pictures are finished
  $('says').textContent = sentence(step, all);
}

function renderFigure(figure, step, all) {
  const { column } = figure.dataset;
  const steps = result.steps[column];
  const picture = result.pictures[column];
  const event = steps[Math.min(step, steps.length - 1)];
  const done = step === all && picture;
  const png = done ? picture.png : event?.preview;
  const image = figure.querySelector('.made');
  if (png && image.dataset.png !== png) Object.assign(image, { src: pngUrl(png) }).dataset.png = png;
  image.classList.toggle('empty', !image.src);
  image.classList.toggle('stale', !png);
  figure.querySelector('.badge').textContent = done || !event ? '' : `guess at step ${event.step + 1}`;
  renderScore(figure.querySelector('.score'), picture);
}

function renderScore(place, picture) {
  if (!picture || !scored) return place.replaceChildren('\u00a0');
  if (isEmpty(lead(picture.column))) return place.replaceChildren('nothing to follow');
  if (picture.score == null) return place.replaceChildren('no score: drawn by hand');
  const meter = el('meter', { min: 0, max: 1, value: picture.score });
  place.title = 'how well the picture fits the drawing: 1 is perfect';
  place.replaceChildren('score ', el('b', {}, picture.score.toFixed(2)), meter);
}

/** One sentence that says what one sees. */
function sentence(step, all) {
  const { start, request } = result;
  const many = start.columns.length > 2;
  const same = `${many ? 'All' : 'Both'} pictures began as the same noise, with the same prompt.`;
  const silent = !Object.values(start.weights).flat().some(Boolean) || !start.controlled.some(Boolean);
  if (step < 0) return same;
  if (step < all) {
    return `${same} At step ${step + 1} the noise level is ${start.ts[step]} of 999: these are the guesses so far.`;
  }
  if (silent) return `${same} Nothing of the ControlNet is added now, so they are the same picture.`;
  if (many) return `${same} Only the first was told nothing. Each of the others was told one kind of drawing.`;
  const blank = request.drawing.scene ? 'This kind of drawing shows nothing of the scene' : 'The drawing is empty';
  if (isEmpty(mainColumn())) return `${same} ${blank}: there is nothing to follow yet.`;
  const [without, controlled] = [result.pictures.none?.score, result.pictures[request.drawing.condition]?.score];
  const told = `${same} Only the right one was told about the drawing`;
  if (without == null || controlled == null) return `${told}.`;
  const gain = controlled - without;
  const follows = gain <= 0.1 ? 'hardly follows it' : controlled < 0.5 ? 'follows a part of it' : 'follows it';
  return `${told}, and it ${follows}: ${controlled.toFixed(2)} of 1. ` +
    `The left one meets its lines by chance: ${without.toFixed(2)}.`;
}

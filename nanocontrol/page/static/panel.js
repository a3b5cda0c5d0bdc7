// The left panel around the canvas: draw, arrange objects or use a photo; the kinds of drawings; and
// whether a drawing looks like those of the training.

import { $, blobOf, debounced, el, pngUrl } from './dom.js';
import { setCondition, showHint } from './draw.js';
import { EXAMPLE, followScene, initScene, promptIsOwn, roll } from './scene.js';
import { newest, post, sendPhoto } from './server.js';
import { change, changeDrawing, state, subscribe } from './state.js';

const NAMES = {
  canny: 'Edges', hough: 'Straight lines', soft: 'Soft edges', scribble: 'Scribble', pose: 'Pose',
  segmentation: 'Areas', depth: 'Depth', normals: 'Surfaces', cartoon: 'Ink',
};
const SAMPLE = 1000082; // seed of a scene with a figure and a cube
const askDraw = newest((body) => post('/api/draw', body));
const askPhoto = newest(sendPhoto);
const now = { info: null, mode: 'draw', hints: {}, samples: {}, picture: null, lastScene: null, photo: null };
let asked = null; // the kind without weights that was clicked, until the drawing changes
let complain = () => {};

export const nameOf = (condition) => NAMES[condition] ?? condition;

export function initPanel(info, problem) {
  now.info = info;
  complain = problem;
  for (const id of ['mode-scene', 'photo-note']) $(id).hidden = !info.nano;
  $('compare-label').hidden = info.conditions.filter((c) => c.available).length < 2;
  if (info.nano) initScene(info, complain);
  if (info.nano && state.live) takeSamples();
}

export function listenToPanel() {
  const modes = document.querySelectorAll('[name=mode]');
  for (const radio of modes) radio.addEventListener('change', () => setMode(radio.value));
  $('photo').addEventListener('change', (event) => takePhoto(event.target.files[0]));
  for (const name of ['low', 'high']) $(name).addEventListener('input', thresholds);
  $('sheet').addEventListener('dragover', () => $('sheet').classList.add('over'));
  $('sheet').addEventListener('drop', ({ dataTransfer }) => takePhoto(dataTransfer.files[0]));
  const leave = () => $('sheet').classList.remove('over');
  for (const name of ['dragleave', 'drop']) $('sheet').addEventListener(name, leave);
  $('compare').addEventListener('change', compare);
  subscribe((fields) => { if (fields.includes('drawing')) drawingChanged(); });
  thresholdTexts();
}

// -------------------------------------------------------------------------------------- modes

async function setMode(mode) {
  const { drawing } = state.request;
  if (mode === 'scene' && !drawing.scene) {
    showMode(now.mode);
    if (!now.lastScene) return roll(EXAMPLE);
    promptIsOwn(state.request.prompt);
    changeDrawing({ scene: now.lastScene, under: null, strokes: [] });
  } else if (mode !== 'scene' && drawing.scene) {
    // The scene's lines stay as a drawing, to be changed with the pen.
    changeDrawing({ scene: null, under: now.hints[drawing.condition] ?? null });
  }
  showMode(mode);
}

function showMode(mode) {
  now.mode = mode;
  document.querySelector(`[name=mode][value=${mode}]`).checked = true;
  $('scene-bar').hidden = mode !== 'scene';
  for (const id of ['pen-bar', 'clear']) $(id).hidden = mode === 'scene';
  $('photo-bar').hidden = mode !== 'photo';
}

/** Show the drawing in the state, wherever it came from. */
async function drawingChanged() {
  asked = null;
  const { scene } = state.request.drawing;
  if (scene) now.lastScene = scene;
  $('compare').checked = state.request.columns.length > 2;
  if (scene && now.mode !== 'scene') showMode('scene');
  if (!scene && now.mode === 'scene') showMode('draw');
  tiles();
  if (!state.live) return;
  if (!scene) aboutScene({ hints: {}, picture: null, notes: [] });
  await askAboutDrawing();
}

// -------------------------------------------------------------------- what the server says of it

async function askAboutDrawing() {
  try {
    const answer = await askDraw({ drawing: state.request.drawing });
    if (!answer) return;
    showHint(answer.hint);
    showCheck(answer);
    if (!answer.scene) return;
    aboutScene(answer);
    followScene(answer.prompt);
  } catch (error) {
    complain(error.message);
  }
}

function showCheck({ check, empty }) {
  const place = $('check');
  place.className = `check ${empty || !check ? '' : check.fits ? 'fits' : 'differs'}`;
  const { scene, condition } = state.request.drawing;
  const add = condition === 'pose' ? 'Add a figure.' : 'Add another object.';
  if (empty && scene) return place.replaceChildren(`This kind of drawing shows nothing of the scene. ${add}`);
  if (empty) return place.replaceChildren('The canvas is empty. Draw an outline, for example of a pyramid.');
  if (!check) return place.replaceChildren();
  if (check.fits) return place.replaceChildren(el('b', {}, '✓ Its lines and colours are like those of the training.'));
  place.replaceChildren(el('b', {}, 'It is unlike the drawings of the training:'),
    el('ul', {}, ...check.differences.map((text) => el('li', {}, text))));
  if (!check.fixed) return;
  const fix = () => changeDrawing({ under: check.fixed, scene: null, strokes: [] });
  place.append(el('button', { click: fix }, `Fix: ${check.fixes.join(', ')}`),
    check.after.length ? ` Then this remains: ${check.after.join('; ')}.` : '');
}

function note(notes) {
  $('notes').hidden = !notes.length;
  $('notes').textContent = notes.map((text) => `${text}.`).join(' ');
}

function aboutScene({ hints, picture, notes }) {
  Object.assign(now, { hints, picture });
  tiles();
  note(notes);
}

// ------------------------------------------------------------------------------------- kinds

function tiles() {
  const chosen = state.request.drawing.condition;
  const focused = $('conditions').contains(document.activeElement) && document.activeElement.value;
  const shown = now.info.conditions.map((condition) => tile(condition, condition.name === chosen));
  const scene = now.picture && el('img', { src: pngUrl(now.picture), alt: 'The scene as drawn' });
  if (scene) shown.unshift(el('div', { class: 'tile' }, scene, el('span', {}, 'Scene')));
  $('conditions').replaceChildren(...shown);
  if (focused) $('conditions').querySelector(`[value=${focused}]`)?.focus();
  describe(now.info.conditions.find((c) => c.name === (asked ?? chosen)));
}

/** Say what the kind shows, or which command trains it. */
function describe({ name, title, available }) {
  if (available) return ($('train').textContent = `${nameOf(name)} (“${name}”): ${title}.`);
  $('train').replaceChildren(`There is no ControlNet for “${name}” yet. This trains one in minutes: `,
    el('code', {}, `python train.py --condition ${name}`), '. Then start this page with --control and its file.');
}

/** Small pictures of what each kind looks like: those of an example. */
async function takeSamples() {
  const answer = await post('/api/draw', { drawing: { condition: 'canny', scene: SAMPLE } }).catch(() => null);
  if (!answer) return;
  now.samples = answer.hints;
  if (state.request) tiles();
}

function tile({ name, title, available }, chosen) {
  const hint = now.hints[name] ?? now.samples[name];
  const picture = hint ? el('img', { src: pngUrl(hint), alt: '' }) : el('span', { class: 'sample' });
  if (available) {
    const radio = { type: 'radio', name: 'condition', value: name, checked: chosen, change: () => pick(name) };
    return el('label', { class: 'tile', title }, el('input', radio), picture, el('span', {}, nameOf(name)));
  }
  return el('button', { class: 'tile off', value: name, title, click: () => askFor(name) },
    el('span', { class: 'sample' }, 'not trained: how?'), el('span', {}, nameOf(name)));
}

function askFor(name) {
  asked = name;
  tiles();
}

async function pick(name) {
  setCondition(name);
  const { widths } = now.info.conditions.find((c) => c.name === name);
  if (!widths.length && !state.request.drawing.scene && now.info.nano) await setMode('scene');
  if ($('compare').checked) compare();
}

/** A column for each kind of drawing. That needs a scene, of which all of them are made. */
async function compare() {
  const all = $('compare').checked;
  if (all && !state.request.drawing.scene) await setMode('scene');
  $('compare').checked = all;
  const { condition } = state.request.drawing;
  const others = now.info.conditions.filter((c) => c.available && c.name !== condition).map((c) => c.name);
  change({ columns: ['none', condition, ...(all ? others : [])] });
}

// ------------------------------------------------------------------------------------- photos

/** Show the edges of a photo. The sliders send its middle again, which is small. */
async function takePhoto(file) {
  if (!file) return;
  try {
    const answer = await askPhoto(file, $('low').value, $('high').value);
    if (!answer) return;
    changeDrawing({ under: answer.hint, scene: null, ...file === now.photo ? {} : { strokes: [] } });
    now.photo = blobOf(answer.picture);
    showMode('photo');
  } catch (error) {
    complain(error.message);
  }
}

function thresholdTexts() {
  for (const name of ['low', 'high']) $(`${name}-value`).value = $(name).value;
}

function thresholds(event) {
  const [low, high] = [Number($('low').value), Number($('high').value)];
  if (low > high) $(event.target.id === 'low' ? 'high' : 'low').value = event.target.value;
  thresholdTexts();
  findEdges();
}

const findEdges = debounced(() => takePhoto(now.photo), 120);

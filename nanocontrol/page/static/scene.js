// The scene editor: place, drag, turn and resize solids, and drag a figure's joints. Every grip is
// also a keyboard control.

import { $, clamp, el, svg } from './dom.js';
import { bendTo, edgesOf, jointsOf, MOVABLE } from './geometry.js';
import { newest, post } from './server.js';
import { change, changeDrawing, state, subscribe } from './state.js';

const grips = $('grips');
// The seed of the scene that one begins with: a pyramid.
export const EXAMPLE = 1000003;
const askRandom = newest((drawing) => post('/api/draw', { drawing }));
const now = { info: null, selected: 0, drag: null, started: null, prompt: '' };
let complain = () => {};

export function initScene(info, problem) {
  Object.assign(now, { info });
  complain = problem;
  const buttons = info.kinds.map((kind) => el('button', { click: () => add(kind) }, kind));
  $('add').replaceChildren('Add:', ...buttons);
}

export function listenToGrips() {
  grips.addEventListener('pointerdown', down);
  grips.addEventListener('pointermove', move);
  for (const name of ['pointerup', 'pointercancel']) grips.addEventListener(name, up);
  grips.addEventListener('keydown', key);
  grips.addEventListener('focusin', (event) => {
    const number = event.target.closest('[data-thing]')?.dataset.thing;
    if (number !== undefined && Number(number) !== now.selected) select(Number(number));
  });
  $('dice').addEventListener('click', () => roll());
  subscribe((fields) => fields.includes('drawing') && draw());
}

const scene = () => state.request.drawing.scene;

/** A random scene, which replaces the drawing. */
export async function roll(seed = Math.floor(Math.random() * 2 ** 31)) {
  try {
    const answer = await askRandom({ condition: state.request.drawing.condition, scene: seed });
    if (!answer) return;
    now.selected = 0;
    now.prompt = answer.prompt;
    const drawing = { ...state.request.drawing, scene: answer.scene, under: null, strokes: [] };
    change({ prompt: answer.prompt, drawing });
  } catch (error) {
    complain(error.message);
  }
}

/** A scene in the making has this prompt. */
export function followScene(prompt) {
  const follows = state.request.prompt === now.prompt || !state.request.prompt;
  now.prompt = prompt;
  if (follows && state.request.prompt !== prompt) change({ prompt });
}

/** The scene's own prompt is kept up to date while nobody has typed another one. */
export function promptIsOwn(prompt) {
  now.prompt = prompt;
}

function put(things, undoable = true) {
  changeDrawing({ scene: { ...scene(), things } }, { undoable });
}

function edit(number, fields, undoable) {
  put(scene().things.map((thing, i) => (i === number ? { ...thing, ...fields } : thing)), undoable);
}

function add(kind) {
  const { things } = scene();
  const most = now.info.limits.things;
  if (things.length >= most) return complain(`A scene holds at most ${most} objects.`);
  const used = [scene().background, ...things.map((thing) => thing.colour)];
  const colour = now.info.colours.find((name) => !used.includes(name));
  const bends = [0.6, 1.1, 0.2, 0.1, 0.6, 1.1, 0.2, 0.1];
  const small = things.length > 0;
  const x = small ? (things[0].x > 0.5 ? 0.28 : 0.72) : 0.5;
  const size = kind === 'figure' ? (small ? 0.35 : 0.4) : small ? 0.23 : 0.3;
  now.selected = things.length;
  put([...things, { kind, colour, x, y: 0.5, z: small ? 0.6 : 0.25, size, turn: 0.7, tilt: -0.5, bends }]);
}

function remove(number) {
  now.selected = 0;
  put(scene().things.filter((_, i) => i !== number));
}

// ------------------------------------------------------------------------------------ drawing

function draw() {
  const things = scene()?.things ?? [];
  grips.toggleAttribute('hidden', !scene());
  $('object').hidden = !scene();
  if (!scene()) return;
  const focused = grips.contains(document.activeElement) ? document.activeElement.dataset.grip : null;
  now.selected = Math.min(now.selected, Math.max(0, things.length - 1));
  const order = things.map((_, i) => i).sort((a, b) => (a === now.selected) - (b === now.selected));
  grips.replaceChildren(...order.map((i) => drawThing(things[i], i)));
  if (focused) grips.querySelector(`[data-grip="${focused}"]`)?.focus({ preventScroll: true });
  if (!$('object').contains(document.activeElement)) drawPanel(things[now.selected]);
}

function drawThing(thing, i) {
  const { x, y, size } = thing;
  const chosen = i === now.selected;
  const name = `${thing.colour} ${thing.kind}`;
  const keys = 'Arrow keys move it, plus and minus resize it, brackets turn it, delete removes it.';
  const turns = thing.kind === 'cube' || thing.kind === 'pyramid';
  const parts = [];
  if (thing.kind === 'figure') {
    const joints = jointsOf(thing);
    parts.push(...now.info.limbs.map(([a, b]) => line(joints[a], joints[b])));
    if (chosen) parts.push(...MOVABLE.map((m) => grip(`joint-${m.bend}`, joints[m.joint], m.name, i)));
  } else if (turns) {
    parts.push(...edgesOf(thing).map(([a, b]) => line(a, b)));
  } else {
    parts.push(svg('circle', { cx: x, cy: y, r: size, class: 'line' }));
    if (thing.kind === 'ring') parts.push(svg('circle', { cx: x, cy: y, r: 0.36 * size, class: 'line' }));
  }
  if (chosen && turns) parts.push(grip('turn', [x, clamp(y - 1.15 * size, 0.03, 1)], 'turn and tilt', i));
  if (chosen) parts.push(grip('size', sizeGrip(thing), 'size', i));
  const body = svg('circle', { cx: x, cy: y, r: 0.8 * size, class: 'body' });
  return svg('g', {
    class: chosen ? 'thing chosen' : 'thing', tabindex: 0, role: 'group', 'data-thing': i, 'data-grip': `thing-${i}`,
    'aria-label': `${name}. ${keys}`,
  }, body, ...parts);
}

const line = ([x1, y1], [x2, y2]) => svg('line', { x1, y1, x2, y2, class: 'line' });

function sizeGrip({ x, y, size }) {
  const reach = Math.min(0.8 * size, 0.96 - x, 0.96 - y);
  return [x + reach, y + reach];
}

const MARKS = { size: '↔', turn: '↻' };

function grip(kind, [cx, cy], name, i) {
  const data = { 'aria-label': `${name}: arrow keys`, 'data-grip': kind, 'data-thing': i };
  return svg('g', { class: 'grip', tabindex: 0, role: 'button', ...data },
    svg('circle', { cx, cy, r: 0.034, class: 'reach' }), svg('circle', { cx, cy, r: kind in MARKS ? 0.028 : 0.019 }),
    kind in MARKS ? svg('text', { x: cx, y: cy + 0.014, 'text-anchor': 'middle' }, MARKS[kind]) : null);
}

function drawPanel(thing) {
  const select = (label, options, value, use) => {
    const shown = options.map((option) => el('option', { selected: option === value }, option));
    return el('label', {}, `${label} `, el('select', { change: (event) => use(event.target.value) }, ...shown));
  };
  const paper = (background) => changeDrawing({ scene: { ...scene(), background } });
  const colours = now.info.colours;
  const own = !thing ? [] : [
    select('Object', now.info.kinds, thing.kind, (kind) => edit(now.selected, { kind })),
    select('Colour', colours, thing.colour, (colour) => edit(now.selected, { colour })),
    el('label', {}, 'Nearer ', el('input', { type: 'range', min: 0, max: 1, step: 0.05, value: thing.z, class: 'short',
      input: (event) => edit(now.selected, { z: Number(event.target.value) }, false) })),
    el('button', { click: () => remove(now.selected) }, 'Remove'),
  ];
  $('object').replaceChildren(...own, select('Background', colours, scene().background, paper));
}

function select(number) {
  now.selected = number;
  draw();
}

// ----------------------------------------------------------------------------------- pointing

function at(event) {
  const box = grips.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

function down(event) {
  const target = event.target.closest('[data-grip]');
  if (!target || event.button !== 0) return;
  event.preventDefault();
  const number = Number(target.dataset.thing);
  now.drag = { number, kind: target.dataset.grip, from: at(event), thing: scene().things[number], moved: false };
  grips.setPointerCapture(event.pointerId);
  select(number);
  grips.querySelector(`[data-grip="${now.drag.kind}"]`)?.focus({ preventScroll: true });
}

function move(event) {
  if (!now.drag) return;
  const { number, kind, from, thing, moved } = now.drag;
  const place = at(event);
  const [dx, dy] = [place[0] - from[0], place[1] - from[1]];
  if (!moved && Math.hypot(dx, dy) < 0.004) return;
  edit(number, dragged(kind, thing, place, dx, dy), !moved);
  now.drag.moved = true;
}

function dragged(kind, thing, place, dx, dy) {
  if (kind === 'size') {
    const far = Math.max(Math.abs(place[0] - thing.x), Math.abs(place[1] - thing.y));
    return { size: clamp(far / 0.8, 0.08, 0.6) };
  }
  if (kind === 'turn') return { turn: wrapped(thing.turn + 5 * dx), tilt: clamp(thing.tilt + 3 * dy, -1.5, 1.5) };
  if (kind.startsWith('joint')) {
    const { from, side, bend } = MOVABLE.find((m) => `joint-${m.bend}` === kind);
    return { bends: thing.bends.with(bend, bendTo(side, jointsOf(thing)[from], place)) };
  }
  return { x: clamp(thing.x + dx, 0, 1), y: clamp(thing.y + dy, 0, 1) };
}

const wrapped = (angle) => ((angle % (2 * Math.PI)) + 2 * Math.PI) % (2 * Math.PI);

function up() {
  now.drag = null;
}

// ----------------------------------------------------------------------------------- keyboard

function key(event) {
  const { grip: kind, thing: number } = event.target.closest('[data-grip]')?.dataset ?? {};
  if (kind === undefined) return;
  const thing = scene().things[number];
  const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  const fields = kind.startsWith('thing') ? byKey(event, thing, way) : way && gripByKey(kind, thing, way);
  if (event.key === 'Delete') remove(Number(number));
  else if (fields) edit(Number(number), fields);
  else return;
  event.preventDefault();
}

function byKey(event, thing, way) {
  const far = event.shiftKey ? 0.05 : 0.01;
  if (way) return { x: clamp(thing.x + far * way[0], 0, 1), y: clamp(thing.y + far * way[1], 0, 1) };
  const size = { '+': 0.01, '=': 0.01, '-': -0.01 }[event.key];
  if (size) return { size: clamp(thing.size + size, 0.08, 0.6) };
  const turn = { '[': -0.1, ']': 0.1 }[event.key];
  return turn && { turn: wrapped(thing.turn + turn) };
}

function gripByKey(kind, thing, [dx, dy]) {
  if (kind === 'size') return { size: clamp(thing.size + 0.01 * (dx - dy), 0.08, 0.6) };
  if (kind === 'turn') return { turn: wrapped(thing.turn + 0.1 * dx), tilt: clamp(thing.tilt + 0.05 * dy, -1.5, 1.5) };
  const { bend } = MOVABLE.find((m) => `joint-${m.bend}` === kind);
  return { bends: thing.bends.with(bend, clamp(thing.bends[bend] + 0.1 * (dx - dy), -3.2, 3.2)) };
}

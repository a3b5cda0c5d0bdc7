// The canvas: pen, eraser and line, by pointer or keyboard. While the pen is down the lines are
// drawn here; then the server's rasterisation, which the network reads, replaces them.

import { $, clamp, el, paint } from './dom.js';
import { canUndo, change, changeDrawing, state, subscribe, undo } from './state.js';

const TOOLS = { pen: 'Pen', line: 'Line', eraser: 'Eraser' };
const canvas = $('canvas');
const context = canvas.getContext('2d', { willReadFrequently: true });
const now = { tool: 'pen', width: 1, colour: null, stroke: null, before: null, cursor: null };
let size = 128;
let conditions = {};

export function initDrawing(info) {
  size = info.size;
  conditions = Object.fromEntries(info.conditions.map((c) => [c.name, c]));
  offerTools();
}

export function listenToPen() {
  subscribe((fields) => fields.includes('drawing') && offerTools());
  canvas.addEventListener('pointerdown', down);
  canvas.addEventListener('pointermove', move);
  for (const name of ['pointerup', 'pointercancel']) canvas.addEventListener(name, up);
  canvas.addEventListener('keydown', key);
  canvas.addEventListener('blur', () => { if (now.stroke) up(); showCursor(null); });
  $('undo').addEventListener('click', undo);
  $('clear').addEventListener('click', () => changeDrawing({ strokes: [], under: null, scene: null }));
  addEventListener('keydown', (event) => {
    const typing = event.target.matches('input:not([type=range], [type=radio], [type=checkbox])');
    if ((event.ctrlKey || event.metaKey) && event.key === 'z' && !typing) undo();
  });
}

const condition = () => conditions[state.request.drawing.condition];

/** Show the hint that the server drew. A stroke that has begun since is drawn above it. */
export async function showHint(png) {
  if (now.stroke) return;
  await paint(canvas, png);
}

// ------------------------------------------------------------------------------------ tools

function offerTools() {
  const { colours, ink } = condition();
  const widths = condition().widths.map((w) => clamp(w, 1, 12));
  const usual = widths[0] ?? 2;
  if (now.condition !== condition()) Object.assign(now, { condition: condition(), width: usual, colour: ink });
  choose('tools', Object.entries(TOOLS), 'tool', (tool) => TOOLS[tool]);
  const all = [...new Set([1, 2, 3, ...widths])].sort((a, b) => a - b);
  choose('widths', all.map((w) => [w, `${w} px`]), 'width',
    (w) => `${w} pixels wide${widths.includes(w) ? ', as in its training' : ''}`);
  for (const button of $('widths').children) {
    button.classList.toggle('trained', widths.includes(Number(button.value)));
  }
  choose('palette', colours.length > 2 ? colours.map((c) => [c, '']) : [], 'colour', (c) => `colour ${c}`);
  for (const button of $('palette').children) button.style.backgroundColor = button.value;
  $('undo').disabled = !canUndo();
}

function choose(place, options, field, describe) {
  const focused = document.activeElement?.closest(`#${place}`) && document.activeElement.value;
  $(place).replaceChildren(...options.map(([value, label]) =>
    el('button', {
      value, title: describe(value), 'aria-label': describe(value), 'aria-pressed': String(now[field] === value),
      click: () => { now[field] = value; offerTools(); },
    }, label)));
  if (focused) $(place).querySelector(`[value="${focused}"]`)?.focus();
}

// ---------------------------------------------------------------------------------- strokes

function at(event) {
  const box = canvas.getBoundingClientRect();
  const scale = size / box.width;
  const round = (v) => Math.round(4 * clamp(v * scale, -size, 2 * size)) / 4;
  return [round(event.clientX - box.left), round(event.clientY - box.top)];
}

function down(event) {
  if (event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  showCursor(null);
  begin(at(event));
}

function begin(point) {
  now.before = context.getImageData(0, 0, size, size);
  const width = now.tool === 'eraser' ? Math.max(4, 2 * now.width) : now.width;
  now.stroke = { tool: now.tool, width, points: [point] };
  if (now.tool !== 'eraser' && now.colour) now.stroke.colour = now.colour;
  render();
}

function move(event) {
  if (!now.stroke) return;
  for (const part of event.getCoalescedEvents?.() ?? [event]) extend(at(part));
  render();
}

function extend(point) {
  const { points, tool } = now.stroke;
  const [x, y] = points.at(-1);
  if (tool === 'line') points[1] = point;
  else if (Math.hypot(point[0] - x, point[1] - y) >= 0.75) points.push(point);
}

function up() {
  if (!now.stroke) return;
  const stroke = now.stroke;
  now.stroke = null;
  if (stroke.tool === 'line' && stroke.points.length < 2) stroke.points.push(stroke.points[0]);
  changeDrawing({ strokes: [...state.request.drawing.strokes, stroke] });
}

/** The stroke so far, without antialiasing. */
function render() {
  const { tool, width, colour, points } = now.stroke;
  context.putImageData(now.before, 0, 0);
  context.fillStyle = tool === 'eraser' ? condition().background : (colour ?? condition().ink);
  const dot = (x, y) => context.fillRect(Math.round(x - width / 2), Math.round(y - width / 2), width, width);
  dot(...points[0]);
  for (let i = 1; i < points.length; i++) {
    const [[ax, ay], [bx, by]] = [points[i - 1], points[i]];
    const n = Math.max(1, Math.ceil(Math.max(Math.abs(bx - ax), Math.abs(by - ay))));
    for (let k = 1; k <= n; k++) dot(ax + ((bx - ax) * k) / n, ay + ((by - ay) * k) / n);
  }
}

// --------------------------------------------------------------------------------- keyboard

function key(event) {
  const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!way && event.key !== ' ' && event.key !== 'Escape') return;
  event.preventDefault();
  const [x, y] = now.cursor ?? [size / 2, size / 2];
  if (event.key === 'Escape') { if (now.stroke) up(); return showCursor(null); }
  if (way) {
    const far = ((event.shiftKey ? 8 : 2) * size) / 128;
    showCursor([clamp(x + way[0] * far, 0, size), clamp(y + way[1] * far, 0, size)]);
    if (now.stroke) { extend(now.cursor); render(); }
  } else if (now.stroke) up();
  else { showCursor([x, y]); begin([x, y]); }
}

function showCursor(point) {
  now.cursor = point;
  $('cursor').hidden = !point;
  if (!point) return;
  $('cursor').style.left = `${(100 * point[0]) / size}%`;
  $('cursor').style.top = `${(100 * point[1]) / size}%`;
}

/** Change what the canvas is drawn for. Strokes stay only if both have the same colours. */
export function setCondition(name) {
  const { drawing } = state.request;
  const { ink, background, widths } = conditions[name];
  const same = condition().ink === ink && condition().background === background;
  const kept = drawing.scene || same ? {} : { strokes: [], under: null };
  const strokes = (kept.strokes ?? drawing.strokes).map((stroke) =>
    stroke.tool === 'eraser' ? stroke : { ...stroke, width: Math.max(1, widths[0] ?? stroke.width) });
  change({ drawing: { ...drawing, ...kept, strokes, condition: name }, columns: ['none', name] });
}

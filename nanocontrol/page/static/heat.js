// The map of connection x step: how large each residual is next to the skip it is added to. A click
// on a row or its button mutes a connection, its slider sets the strength.

import { $, clamp, el, percent } from './dom.js';
import { pitch, TOP } from './diagram.js';
import { loudness, mainColumn, onResult, result, shownStep, stepsOf } from './result.js';
import { change, state, strengths, subscribe } from './state.js';

const MOST = 2; // strength at the right end of a row
const now = { n: 0, before: {} };

export function initHeat(info) {
  now.n = info.connections;
  $('heat').style.setProperty('--pitch', `${pitch(info)}px`);
  $('heat').style.setProperty('--top', `${TOP - pitch(info) / 2}px`);
  $('rows').replaceChildren(...info.residuals.map(makeRow));
  render();
}

export function listenToHeat() {
  onResult(render);
  subscribe((fields) => fields.includes('strength') && render());
  $('reset').addEventListener('click', () => change({ strength: 1 }));
}

function makeRow({ channels, size }, i) {
  const name = i === now.n - 1 ? 'middle' : `block ${i + 1}`;
  const cells = el('canvas', {
    class: 'cells', height: 1, width: 20, title: 'Click to mute, or to bring it back',
    click: () => mute(i), pointermove: (event) => point(event, i), pointerleave: () => read(-1),
  });
  return el('div', { class: 'row', 'data-row': i },
    el('button', { class: 'mute', 'aria-label': `Mute ${name}`, title: `${channels} maps of ${size} × ${size}`,
      click: () => mute(i) }, name),
    el('input', { type: 'range', min: 0, max: MOST, step: 0.05, 'aria-label': `Strength of ${name}`,
      input: (event) => set(i, Number(event.target.value)) }),
    el('output', {}),
    el('div', { class: 'strip' }, cells, el('i', { class: 'now' })));
}

function set(i, value) {
  const list = strengths(now.n).with(i, Math.round(20 * value) / 20);
  change({ strength: list.every((s) => s === list[0]) ? list[0] : list });
}

/** Mute a connection, or give it back the strength that it had. */
export function mute(i) {
  const value = strengths(now.n)[i];
  if (value) now.before[i] = value;
  set(i, value ? 0 : (now.before[i] ?? 1));
}

/** Read out the cell below the pointer. */
function point(event, i) {
  const box = event.target.getBoundingClientRect();
  read(i, Math.floor(((event.clientX - box.left) / box.width) * stepsOf()));
}

// ------------------------------------------------------------------------------------ drawing

function shade(ratio) {
  const share = loudness(ratio);
  const mix = (a, b) => Math.round(a + (b - a) * share);
  return `rgb(${mix(252, 122)} ${mix(243, 40)} ${mix(236, 4)})`;
}

function render() {
  if (!result.start || !state.request) return;
  const own = strengths(now.n);
  const steps = result.steps[mainColumn()] ?? [];
  for (const row of $('rows').children) {
    const i = Number(row.dataset.row);
    const muted = own[i] === 0;
    row.classList.toggle('muted', muted);
    row.querySelector('.mute').setAttribute('aria-pressed', String(muted));
    row.querySelector('input').value = own[i];
    row.querySelector('output').value = muted ? 'muted' : `× ${own[i].toFixed(2)}`;
    const canvas = row.querySelector('canvas');
    if (canvas.width !== stepsOf()) canvas.width = stepsOf();
    const context = canvas.getContext('2d');
    for (let k = 0; k < stepsOf(); k++) {
      const connections = steps[k]?.connections;
      context.fillStyle = !steps[k] ? '#f2f0ec' : connections ? shade(connections[i]) : '#e3e6ea';
      context.fillRect(k, 0, 1, 1);
    }
    const shown = Math.min(shownStep(), stepsOf() - 1);
    row.querySelector('.now').style.left = `${(100 * (shown + 0.5)) / stepsOf()}%`;
  }
  read(-1);
}

/** One cell in words; without one, the connection that pushes most at the step shown. */
function read(i, step) {
  const steps = result.steps[mainColumn()] ?? [];
  const k = clamp(step ?? shownStep(), 0, Math.max(0, steps.length - 1));
  const connections = steps[k]?.connections;
  if (!steps.length) return ($('heat-text').textContent = '');
  if (!connections) return ($('heat-text').textContent = `Step ${k + 1} runs without control.`);
  const most = connections.reduce((best, c, j) => (c > connections[best] ? j : best), 0);
  const j = i < 0 ? most : i;
  const row = $('rows').children[j].querySelector('.mute').textContent;
  const where = `${i < 0 ? 'Strongest at step' : 'Step'} ${k + 1}: at ${row}`;
  const share = percent(connections[j]);
  $('heat-text').textContent = `${where} the drawing's part is ${share} as large as the picture's.`;
}

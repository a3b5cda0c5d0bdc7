// Training: a slider over a run's saved weights redraws one's own drawing at each of them. Loss and
// score are next to it. While the run trains, the page follows.

import { $, el, pngUrl, svg } from './dom.js';
import { mainColumn, onResult, result } from './result.js';
import { get } from './server.js';
import { change, state, subscribe } from './state.js';

const now = { run: null, made: {}, key: '', playing: false };

export async function initRun(info) {
  $('run-how').hidden = Boolean(info.run);
  if (info.run) await read();
}

export function listenToRun() {
  onResult((what) => (what === 'picture' || what === 'done') && remember(what));
  subscribe(render);
  new ResizeObserver(render).observe($('training'));
  $('run-step').addEventListener('input', () => choose(now.run.steps[$('run-step').value]));
  $('run-bundled').addEventListener('click', () => choose(null));
  $('run-play').addEventListener('click', play);
}

async function read() {
  try {
    const before = now.run?.steps.at(-1);
    const run = (now.run = await get('/api/run'));
    $('run').hidden = false;
    $('run-follow').parentElement.hidden = !run.running;
    if (run.running) setTimeout(read, 2000);
    const newest = run.steps.at(-1);
    if (run.running && newest !== before && $('run-follow').checked) goTo(newest);
    render();
  } catch (error) {
    $('run-says').textContent = error.message;
  }
}

/** Draw with the weights of a step of the run; null: with the bundled ones. */
function goTo(step) {
  const { condition } = now.run;
  const other = step != null && condition !== state.request.drawing.condition;
  const drawing = { ...state.request.drawing, condition };
  change({ run_step: step, ...other && { drawing, columns: ['none', condition] } });
}

function choose(step) {
  now.playing = $('run-follow').checked = false;
  goTo(step);
}

function play() {
  const starts = !now.playing;
  if (starts) choose(now.run.steps[0]);
  now.playing = starts;
  render();
}

/** Keep the picture of each saved step, as long as nothing else has changed. */
function remember(what) {
  const { request } = result;
  if (!now.run || result.recorded) return;
  const key = JSON.stringify({ ...request, run_step: 0 });
  if (key !== now.key) Object.assign(now, { key, made: {} });
  const picture = result.pictures[mainColumn()];
  if (request.run_step != null && picture) now.made[request.run_step] = picture;
  if (what === 'done' && now.playing) {
    const next = now.run.steps.find((step) => step > request.run_step);
    now.playing = next !== undefined;
    if (now.playing) goTo(next);
  }
  render();
}

// ------------------------------------------------------------------------------------ drawing

function render() {
  if (!now.run || !state.request) return;
  const { steps, running, folder, done, total, note, jump } = now.run;
  const at = state.request.run_step;
  const index = steps.indexOf(at);
  $('run-says').textContent = running
    ? `${folder} is training: step ${done} of ${total}. Watch for the moment when it begins to follow.`
    : `${folder} was trained for ${done} steps.${jump ? ` It began to follow around step ${jump}.` : ''}`;
  $('run-note').textContent = note;
  $('run-step').max = steps.length - 1;
  $('run-step').value = index < 0 ? steps.length - 1 : index;
  $('run-at').value = at == null ? 'bundled weights' : `step ${at}`;
  $('run-step').setAttribute('aria-valuetext', $('run-at').value);
  $('run-bundled').disabled = at == null;
  for (const id of ['run-step', 'run-play']) $(id).disabled = !steps.length;
  $('run-play').textContent = now.playing ? '■ Stop' : '▶ Play the training';
  $('film').replaceChildren(...steps.filter((step) => now.made[step]).map((step) => frame(step, step === at)));
  plot(at);
}

function frame(step, chosen) {
  const image = el('img', { src: pngUrl(now.made[step].png), alt: `Your drawing at step ${step}` });
  return el('figure', { class: chosen ? 'chosen' : '' }, image, el('figcaption', {}, `step ${step}`));
}

/** Score and loss over the steps, one below the other, with one's own drawing as dots. */
function plot(at) {
  const { log, steps, total, jump, running } = now.run;
  const [W, left, right, high] = [$('run').clientWidth, 52, 16, 120];
  const last = Math.max(total, ...steps, 1);
  const x = (step) => left + ((W - left - right) * step) / last;
  const values = (name) => log.filter((entry) => entry[name] != null).map((entry) => [entry.step, entry[name]]);
  const losses = values('held_out_loss');
  const own = Object.entries(now.made).filter(([, { score }]) => score != null).map(([k, { score }]) => [k, score]);
  const extent = losses.map(([, loss]) => loss);
  const marks = [[running ? null : jump, 'jump'], [at, 'at']].filter(([step]) => step != null);
  const graph = (base, title, points, [low, top], dots) => {
    const y = (value) => base + high - (high * (value - low)) / (top - low || 1);
    const line = points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(' ');
    return [
      svg('text', { x: left, y: base - 9, class: 'title' }, title),
      svg('line', { x1: left, x2: W - right, y1: base + high, y2: base + high, class: 'axis' }),
      ...[low, top].map((v) => label(left - 6, y(v) + 4, String(Number(v.toPrecision(3))), 'end')),
      ...marks.map(([k, kind]) => svg('line', { x1: x(k), x2: x(k), y1: base, y2: base + high, class: kind })),
      svg('polyline', { points: line }),
      ...dots.map(([step, score]) => svg('circle', { cx: x(step), cy: y(score), r: 4.5 })),
    ];
  };
  const label = (x, y, text, anchor) => svg('text', { x, y, 'text-anchor': anchor, class: 'dim' }, text);
  $('plot').setAttribute('viewBox', `0 0 ${W} 350`);
  $('plot').replaceChildren(
    ...graph(26, 'score, with dots for your drawing', values('score'), [0, 1], own),
    ...losses.length ? graph(190, 'loss, on pictures not trained on', losses,
      [Math.min(...extent), Math.max(...extent)], []) : [],
    label(x(0), 332, '0', 'start'), label(x(last), 332, `step ${last}`, 'end'));
}

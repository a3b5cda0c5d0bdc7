// Training: a slider over a run's saved weights redraws one's own drawing at each of them. Loss and
// score are next to it. While the run trains, the page follows. Without a run, a recorded one is shown.

import { $, el, player, pngUrl, svg } from './dom.js';
import { mainColumn, onResult, result } from './result.js';
import { get } from './server.js';
import { change, state, subscribe } from './state.js';

// live: whether the server has a run; at: the chosen step of the recorded one; made: pictures by step.
const now = { live: false, run: null, at: null, hint: null, made: {}, key: '' };
let stop = () => {};

export async function initRun(info) {
  now.live = Boolean(info.run);
  $('run-bundled').hidden = !now.live;
  $('run-how').hidden = now.live;
  if (now.live) return read();
  Object.assign(now, await get('/static/training.json'));
  goTo(now.run.steps.at(-1));
}

export function listenToRun() {
  onResult((what) => what === 'picture' && remember());
  subscribe(() => now.live && render());
  new ResizeObserver(render).observe($('training'));
  $('run-step').addEventListener('input', () => choose(now.run.steps[$('run-step').value]));
  $('run-bundled').addEventListener('click', () => choose(null));
  stop = player($('run-play'), 350, playOn);
}

async function read() {
  try {
    const before = now.run?.steps.at(-1);
    const run = (now.run = await get('/api/run'));
    if (run.running) setTimeout(read, 2000);
    const newest = run.steps.at(-1);
    if (run.running && newest !== before && (before === undefined || chosen() === before)) goTo(newest);
    render();
  } catch (error) {
    $('run-says').textContent = error.message;
  }
}

const chosen = () => (now.live ? state.request.run_step : now.at);

/** Draw with the weights of a step of the run; null: with the bundled ones. */
function goTo(step) {
  now.at = step;
  if (!now.live) return render();
  const { condition } = now.run;
  const other = step != null && condition !== state.request.drawing.condition;
  const drawing = { ...state.request.drawing, condition };
  change({ run_step: step, ...other && { drawing, columns: ['none', condition] } });
}

function choose(step) {
  stop();
  goTo(step);
}

/** Go to the first step, and on to the next one when there is a picture of this one. */
function playOn(i) {
  if (i && !now.made[chosen()]) return true;
  const next = now.run.steps.find((step) => !i || step > chosen());
  if (next !== undefined) goTo(next);
  return next !== undefined;
}

/** Keep the picture of each saved step, as long as nothing else has changed. */
function remember() {
  const { request } = result;
  if (!now.live || !now.run || result.recorded) return;
  const key = JSON.stringify({ ...request, run_step: 0 });
  if (key !== now.key) Object.assign(now, { key, made: {} });
  const picture = result.pictures[mainColumn()];
  if (picture) now.made[request.run_step] = { score: picture.score, url: pngUrl(picture.png) };
  now.hint = pngUrl(result.start.hints[mainColumn()]);
  render();
}

// ------------------------------------------------------------------------------------ drawing

function render() {
  if (!now.run || !state.request) return;
  const { steps } = now.run;
  const at = chosen();
  const index = steps.indexOf(at);
  $('run-says').textContent = story(now.run);
  $('run-step').max = steps.length - 1;
  $('run-step').value = index < 0 ? steps.length - 1 : index;
  $('run-at').value = at == null ? 'bundled weights' : `step ${at}`;
  $('run-step').setAttribute('aria-valuetext', $('run-at').value);
  $('run-bundled').disabled = at == null;
  for (const id of ['run-step', 'run-play']) $(id).disabled = !steps.length;
  const shown = now.made[at];
  const large = shown ? [frame('the drawing', now.hint), frame(`training, ${$('run-at').value}`, shown.url)] : [];
  $('run-pictures').replaceChildren(...large);
  const film = steps.filter((step) => now.made[step]);
  $('film').replaceChildren(...film.map((step) => frame(`step ${step}`, now.made[step].url, step, step === at)));
  plot(at);
}

function story({ folder, running, done, total, jump, note }) {
  const watch = 'Watch for the moment when the picture begins to follow.';
  if (running) return `${folder} is training: step ${done} of ${total}. ${note || watch}`;
  const began = jump ? ` On average they begin around training step ${jump}, the dashed line.` : '';
  return now.live ? `${folder} was trained for ${done} steps.${began} ${note}`
    : `A recorded training: of eight drawings the one with the clearest jump. Each training step corrects the copy once.
      ${watch} The others begin at other steps, so the mean score, the line, rises more slowly.${began}`;
}

function frame(title, src, step = null, chosen = false) {
  const click = step != null && (() => choose(step));
  const image = el('img', { src, alt: '' });
  return el('figure', { class: chosen ? 'chosen' : '', click }, image, el('figcaption', {}, title));
}

/** Score and loss over the steps, one below the other, with one's own drawing as dots. */
function plot(at) {
  const { log, steps, total, jump, running } = now.run;
  const [W, left, right, high] = [$('plot').clientWidth, 52, 16, 120];
  const last = Math.max(total, ...steps, 1);
  const x = (step) => left + ((W - left - right) * step) / last;
  const values = (name) => log.filter((entry) => entry[name] != null).map((entry) => [entry.step, entry[name]]);
  const losses = values('held_out_loss');
  const own = steps.filter((step) => now.made[step]?.score != null).map((step) => [step, now.made[step].score]);
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
    ...graph(26, 'score, with dots for this drawing', values('score'), [0, 1], own),
    ...losses.length ? graph(190, 'loss, on pictures not trained on', losses,
      [Math.min(...extent), Math.max(...extent)], []) : [],
    label(x(0), 332, '0', 'start'), label(x(last), 332, `training step ${last}`, 'end'));
}

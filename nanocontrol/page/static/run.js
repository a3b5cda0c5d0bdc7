// Training: a slider over a run's saved weights redraws one's own drawing at each of them. Loss and
// score are next to it. While the run trains, the page follows.

import { $, el, pngUrl, svg } from './dom.js';
import { mainColumn, onResult, result } from './result.js';
import { get } from './server.js';
import { change, state, subscribe } from './state.js';

const now = { run: null, made: {}, key: '', playing: false, follow: true, width: 0 };
const COMMANDS = 'python train.py --keep all --out runs/mine\npython -m nanocontrol.page --run runs/mine';

export async function initRun(info) {
  if (!info.run) return showNothing();
  await read();
}

export function listenToRun() {
  onResult((what) => (what === 'picture' || what === 'done') && remember(what));
  subscribe(() => now.run && render());
  new ResizeObserver(() => now.run && render()).observe($('run'));
}

function showNothing() {
  $('run').replaceChildren(
    el('p', { class: 'intro' }, 'A ControlNet does not learn to follow drawings bit by bit. For a while nothing seems to happen; then, within few steps, it follows. ',
      'To see that moment on your own drawing, train one and keep its weights. That takes minutes, and this page follows while it runs:'),
    el('pre', { tabindex: 0 }, COMMANDS));
}

async function read() {
  try {
    const { folder, done } = now.run ?? {};
    const run = await get('/api/run');
    const news = run.steps.at(-1) !== now.run?.steps.at(-1);
    now.run = run;
    if (news && folder && now.follow && state.request?.run_step != null) goTo(run.steps.at(-1));
    if (run.running) setTimeout(read, 2000);
    if (news || done !== run.done) render();
  } catch (error) {
    $('run').replaceChildren(el('p', { class: 'problem' }, error.message));
  }
}

function goTo(step) {
  const { condition } = now.run;
  const drawing = { ...state.request.drawing, condition };
  const fields = condition === state.request.drawing.condition ? {} : { drawing, columns: ['none', condition] };
  change({ ...fields, run_step: step });
}

/** Keep the picture of each saved step, as long as nothing else has changed. */
function remember(what) {
  const { request } = result;
  if (!now.run || !request || result.recorded) return;
  const key = JSON.stringify({ ...request, run_step: 0 });
  if (key !== now.key) Object.assign(now, { key, made: {} });
  const picture = result.pictures[mainColumn()];
  if (request.run_step != null && picture) now.made[request.run_step] = picture;
  if (what === 'done' && now.playing) advance();
  render();
}

function advance() {
  const next = now.run.steps.find((step) => step > (state.request.run_step ?? -1));
  if (next === undefined) now.playing = false;
  else goTo(next);
}

function play() {
  now.playing = !now.playing;
  if (now.playing) goTo(now.run.steps[0]);
  render();
}

// ------------------------------------------------------------------------------------ drawing

function render() {
  const { run } = now;
  const { steps, running, folder, done, total, note } = run;
  const index = steps.indexOf(state.request?.run_step);
  const focused = $('run').contains(document.activeElement) && document.activeElement.id;
  const at = index < 0 ? null : steps[index];
  const says = running ? `${folder} is training: step ${done} of ${total}.` : `${folder} was trained for ${done} steps.`;
  const slider = el('input', { type: 'range', id: 'run-step', min: 0, max: steps.length - 1, value: index < 0 ? steps.length - 1 : index,
    'aria-label': 'Training step', 'aria-valuetext': at == null ? 'the bundled weights' : `step ${at}`, disabled: !steps.length,
    input: (event) => { now.playing = false; goTo(steps[event.target.value]); } });
  $('run').replaceChildren(
    el('p', { class: 'intro' }, `${says} The slider redraws your drawing with the weights that it had at each saved step. `,
      run.jump ? `It began to follow its hints around step ${run.jump}.` : 'Watch for the moment when it begins to follow.'),
    note ? el('p', { class: 'note problem' }, note) : '',
    el('div', { class: 'scrub' },
      el('button', { id: 'run-play', disabled: !steps.length, click: play }, now.playing ? '■ Stop' : '▶ Play the training'), slider,
      el('output', {}, at == null ? 'bundled weights' : `step ${at}`),
      el('button', { id: 'run-bundled', disabled: at == null, click: () => { now.playing = false; change({ run_step: null }); } }, 'Bundled weights')),
    running ? el('label', {}, el('input', { type: 'checkbox', id: 'run-follow', checked: now.follow, change: (event) => (now.follow = event.target.checked) }), ' Follow the training') : '',
    film(steps, at), plot(run, at));
  if (focused) $(focused)?.focus({ preventScroll: true });
}

function film(steps, at) {
  const made = steps.filter((step) => now.made[step]);
  const figures = made.map((step) => el('figure', { class: step === at ? 'chosen' : '' },
    el('img', { src: pngUrl(now.made[step].png), alt: `Your drawing at step ${step}` }), el('figcaption', {}, `step ${step}`)));
  return el('div', { class: 'film' }, ...figures);
}

/** Loss and score over the steps, one below the other, with one's own drawing as dots. */
function plot({ log, steps, total, jump }, at) {
  const W = $('run').clientWidth;
  const [left, right, high] = [52, 16, 120];
  const last = Math.max(total || 0, ...steps, ...log.map((entry) => entry.step), 1);
  const x = (step) => left + ((W - left - right) * step) / last;
  const own = Object.entries(now.made).map(([step, { score }]) => [Number(step), score]).filter(([, score]) => score != null);
  const rows = [
    ['score: how well pictures follow', log.filter((e) => e.score != null).map((e) => [e.step, e.score]), [0, 1], own],
    ['loss: error of the predicted noise', log.filter((e) => (e.held_out_loss ?? e.loss) != null).map((e) => [e.step, e.held_out_loss ?? e.loss]), null, []],
  ].filter(([, points]) => points.length);
  const parts = rows.flatMap(([title, points, range, dots], i) => {
    const [low, top] = range ?? [Math.min(...points.map((p) => p[1])), Math.max(...points.map((p) => p[1]))];
    const base = 26 + i * (high + 46);
    const y = (value) => base + high - (high * (value - low)) / (top - low || 1);
    const line = points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(' ');
    return [
      svg('text', { x: left, y: base - 9, class: 'title' }, title),
      svg('line', { x1: left, x2: W - right, y1: base + high, y2: base + high, class: 'axis' }),
      ...[low, top].map((v) => svg('text', { x: left - 6, y: y(v) + 4, 'text-anchor': 'end', class: 'dim' }, range ? v : v.toPrecision(2))),
      jump ? svg('line', { x1: x(jump), x2: x(jump), y1: base, y2: base + high, class: 'jump' }) : null,
      at != null ? svg('line', { x1: x(at), x2: x(at), y1: base, y2: base + high, class: 'at' }) : null,
      svg('polyline', { points: line }),
      ...dots.map(([step, score]) => svg('circle', { cx: x(step), cy: y(score), r: 4.5 }, svg('title', {}, `your drawing at step ${step}: ${score.toFixed(2)}`))),
    ].filter(Boolean);
  });
  const H = 26 + rows.length * (high + 46);
  const ends = [0, last].map((step) => svg('text', { x: x(step), y: H - 6, 'text-anchor': step ? 'end' : 'start', class: 'dim' }, step ? `step ${step}` : '0'));
  const label = 'Score and loss over the training steps. Dots: your drawing.';
  return el('div', { class: 'plot' }, svg('svg', { viewBox: `0 0 ${W} ${H}`, height: H, role: 'img', 'aria-label': label }, ...parts, ...ends),
    own.length ? el('p', { class: 'note' }, 'Dots: how well the picture of your own drawing follows it.') : '');
}

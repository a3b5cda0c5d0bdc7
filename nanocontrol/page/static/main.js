// The page: loads, replays the recorded run, goes live, and makes a picture after every change.

import { $, copyText, debounced, el } from './dom.js';
import { initDiagram, listenToDiagram } from './diagram.js';
import { initDrawing, listenToPen, showHint } from './draw.js';
import { initHeat, listenToHeat, mute } from './heat.js';
import { listenToInside } from './inside.js';
import { initPanel, listenToPanel } from './panel.js';
import { initPictures, listenToPictures } from './pictures.js';
import { begin, collect, result } from './result.js';
import { initRun, listenToRun } from './run.js';
import { EXAMPLE, listenToGrips, roll } from './scene.js';
import { cancel, command, generate, get } from './server.js';
import { initSettings, listenToSettings } from './settings.js';
import { change, fromUrl, state, subscribe } from './state.js';
import { listenToTour } from './tour.js';

let making = false; // whether a change makes pictures: not while the recorded run is shown
const wait = (ms) => new Promise((done) => setTimeout(done, ms));

function say(text, kind = '') {
  $('status-text').textContent = text;
  $('status').className = kind;
  $('status').role = kind === 'problem' ? 'alert' : 'none';
  $('cancel').hidden = kind !== 'busy';
}

const problem = (text) => say(text, 'problem');

// ---------------------------------------------------------------------------------- pictures

const make = debounced(() => {
  begin(state.request);
  say('Starting …', 'busy');
  generate(state.request, heard);
}, 40);

function heard(event) {
  if (event.event === 'error') {
    if (event.status === 429) setTimeout(make, 700);
    return problem(event.error);
  }
  if (event.event === 'cancelled') return say('Stopped: a newer request came in.', 'stopped');
  if (event.event === 'start' && !state.request.drawing.scene) showHint(event.hints[state.request.drawing.condition]);
  collect(event);
  if (event.event === 'step') say(`Live: step ${event.step + 1} of ${event.of}`, 'busy');
  if (event.event === 'done') {
    const next = state.leftOut ? 'The edges are too large for a link, which leaves them out.' : 'Change anything.';
    say(`Live: made in ${event.seconds.toFixed(1)} seconds. ${next}`, 'live');
  }
}

function stop() {
  cancel();
  say('Stopped. Change anything to make a new picture.', 'stopped');
}

// -------------------------------------------------------------------------------- the start

function build(info) {
  initPictures(info);
  initSettings(info);
  initDiagram(info, mute);
  initHeat(info);
  initPanel(info, problem);
}

/** Show the recorded run, step by step, until it ends or something is changed. */
async function replay({ request, events }) {
  begin(request, true);
  for (const event of events) {
    if (!result.recorded) return;
    collect(event);
    if (event.event === 'start') showHint(event.hints[request.drawing.condition]);
    if (event.event === 'step' && event.column !== 'none') await wait(70);
  }
}

async function untilReady() {
  for (;;) {
    const info = await get('/api/info').catch((error) => ({ ready: false, error: error.message }));
    if (info.ready) return info;
    if (info.error) problem(info.error);
    await wait(info.error ? 2000 : 300);
  }
}

/** A request with every field and no other, also from an older link or for another base. */
function complete(request, { defaults, conditions, run }) {
  const isText = (x) => typeof x === 'string';
  const known = Object.entries(request).filter(([k, x]) => k in defaults && isText(x) === isText(defaults[k]));
  const drawing = { ...defaults.drawing, ...request.drawing };
  const fits = conditions.some((c) => c.name === drawing.condition && c.available) && Array.isArray(drawing.strokes);
  const rest = run ? {} : { run_step: null };
  return fits ? { ...defaults, ...Object.fromEntries(known), drawing, ...rest } : defaults;
}

function take(request, info) {
  const rest = complete(request, info);
  state.request = rest;
  initDrawing(info);
  change({ drawing: rest.drawing }, { undoable: false });
}

async function start() {
  let shown = null; // the recorded request
  const [linked, first] = await Promise.all([fromUrl(), get('/static/first.json').catch(() => null)]);
  if (first) {
    build(first.info);
    if (!linked) {
      take(first.request, first.info);
      shown = state.request;
      say('A recorded run of the small model nano, while the models load …', 'recorded');
      replay(first);
    }
  }
  const info = await untilReady();
  const touched = shown && state.request !== shown;
  state.live = true;
  build(info);
  const fits = first && info.name === first.info.name && info.size === first.info.size;
  if (linked || !fits) {
    making = true;
    take(linked ?? info.defaults, info);
    if (!linked && info.nano) roll(EXAMPLE);
  } else {
    initDrawing(info);
    change({ drawing: state.request.drawing }, { undoable: false });
    making = true;
    if (touched) make();
    else say('The model is loaded. Draw something, or change anything: the picture follows.', 'live');
  }
  initRun(info);
}

function listen() {
  for (const start of [listenToPen, listenToGrips, listenToPanel, listenToPictures, listenToSettings]) start();
  for (const start of [listenToDiagram, listenToHeat, listenToInside, listenToRun, listenToTour]) start();
  subscribe(() => making && make());
  addEventListener('hashchange', () => location.reload());
  for (const name of ['dragover', 'drop']) addEventListener(name, (event) => event.preventDefault());
  $('cancel').addEventListener('click', stop);
  $('copy-link').addEventListener('click', () => copyText(location.href, $('copy-link')));
  $('copy-command').addEventListener('click', showCommand);
  $('dialog-copy').addEventListener('click', () => copyText($('dialog-text').textContent, $('dialog-copy')));
}

async function showCommand() {
  try {
    const answer = await command(state.request, state.request.columns.at(1) ?? 'none');
    const flags = answer.command.split(/(?<= )(?='?--)/); // a flag stays in one piece where lines are broken
    $('dialog-text').replaceChildren(...flags.map((flag) => el('span', {}, flag)));
    $('dialog').showModal();
  } catch (error) {
    problem(error.message);
  }
}

listen();
start().catch((error) => problem(`The page could not start: ${error.message}`));

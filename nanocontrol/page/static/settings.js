// The settings of sampling, each with a sentence of explanation, and the prompt with its words.

import { $, debounced, el } from './dom.js';
import { change, state, subscribe } from './state.js';

const SLIDERS = [
  ['strength', 'Strength of control', 0, 2, 0.05, 'How loud the drawing is. 1: as trained.'],
  ['scale', 'Guidance', 1, 10, 0.5, 'How much the prompt counts. 1 is plain.'],
  ['steps', 'Sampling steps', 2, 50, 1, 'So many steps from noise to picture.'],
  ['control_from', 'Control begins', 0, 1, 0.05, 'Share of the steps before control acts.'],
  ['control_to', 'Control ends', 0, 1, 0.05, 'Share of the steps after which it is off.'],
];
// Each rule with its name and a sentence.
const RULES = {
  '': ['As trained', 'Every connection counts in full.'],
  guess: ['Guess mode', 'For an empty prompt: guidance exaggerates the drawing; coarse connections count more.'],
  resolution_weighting: ['Resolution weighting', 'As guess mode, but half the resolution counts twice as much.'],
};
let info = null;
let typing = false; // text that is not in the request yet

export function initSettings(given) {
  info = given;
  const controls = SLIDERS.map(([name, title, low, high, step, help]) => field(name, title, help,
    el('output', { id: `${name}-value`, for: name }),
    el('input', { type: 'range', id: name, min: low, max: high, step, 'aria-describedby': `${name}-help`,
      input: slide })));
  const again = () => change({ seed: Math.floor(Math.random() * 10000) });
  const number = { type: 'number', id: 'seed', min: 0, max: 1e9, 'aria-describedby': 'seed-help', change: slide };
  const seed = field('seed', 'Seed', 'The same seed gives the same noise.', null,
    el('span', { class: 'pair' }, el('input', number), el('button', { id: 'new-seed', click: again }, 'New noise')));
  const rules = Object.entries(RULES).map(([value, [text, help]]) => el('option', { value, title: help }, text));
  const rule = field('rule', 'Where control acts', '', null,
    el('select', { id: 'rule', 'aria-describedby': 'rule-help', change: setRule }, ...rules));
  const negative = field('negative', 'Not this, please', 'Negative prompt: what it should not show.', null,
    el('input', { id: 'negative', maxlength: 400, 'aria-describedby': 'negative-help', input: typed }));
  $('settings').replaceChildren(...[...controls, seed, rule, negative]);
  offerWords();
}

export function listenToSettings() {
  $('prompt').addEventListener('input', typed);
  subscribe(render);
}

function field(id, title, help, output, control) {
  return el('div', { class: 'field' }, el('label', { for: id }, title), output, control,
    el('p', { class: 'note', id: `${id}-help` }, help));
}

function slide(event) {
  const { id, min, max } = event.target;
  const value = Math.min(max, Math.max(min, Number(event.target.value)));
  const fields = { [id]: id === 'seed' || id === 'steps' ? Math.round(value) : value };
  const { control_from: from, control_to: to } = { ...state.request, ...fields };
  if (from > to) fields[id === 'control_from' ? 'control_to' : 'control_from'] = value;
  change(fields);
}

function setRule(event) {
  const { value } = event.target;
  change({ guess: value === 'guess', resolution_weighting: value === 'resolution_weighting' });
}

function typed() {
  typing = true;
  takeText();
}

const takeText = debounced(() => {
  typing = false;
  change({ prompt: $('prompt').value, negative: $('negative').value });
}, 350);

function render() {
  const request = state.request;
  const values = { ...request, strength: meanStrength(request.strength) };
  for (const [name] of SLIDERS) {
    $(name).value = values[name];
    const hundredths = Math.round(100 * values[name]);
    const text = name.startsWith('control_') ? `${hundredths} %` : String(hundredths / 100);
    $(`${name}-value`).value = name === 'strength' && Array.isArray(request.strength) ? 'row by row' : text;
  }
  $('seed').value = request.seed;
  $('rule').value = request.guess ? 'guess' : request.resolution_weighting ? 'resolution_weighting' : '';
  $('rule-help').textContent = RULES[$('rule').value][1];
  for (const name of ['prompt', 'negative']) {
    if (!typing && $(name).value !== request[name]) $(name).value = request[name];
  }
  offerWords();
}

const meanStrength = (s) => (Array.isArray(s) ? s.reduce((a, b) => a + b, 0) / s.length : s);

// -------------------------------------------------------------------------------------- words

/** The words of the prompt that can be exchanged, and those that the model does not know. */
function offerWords() {
  const place = $('words');
  if (!info?.words || !state.request) return place.replaceChildren();
  if (place.contains(document.activeElement) && document.activeElement.matches('select')) return;
  const known = new Set(info.words);
  const colours = info.colours;
  const parts = state.request.prompt.split(/(\s+)/);
  const shown = parts.map((word, i) => {
    const plain = word.toLowerCase().replace(/[^a-z0-9]/g, '');
    const options = [colours, info.kinds].find((list) => list.includes(plain));
    if (options) return chooser(options, plain, (value) => change({ prompt: rewritten(parts, i, value) }));
    if (!plain || known.has(plain)) return word;
    return el('mark', { title: 'The model never saw this word: it has no effect.' }, word);
  });
  const unknown = shown.some((part) => part.nodeName === 'MARK');
  const help = 'The marked words were never in its training, so they have no effect. It knows ';
  place.replaceChildren(el('span', {}, ...shown), unknown ? el('p', { class: 'note problem' }, help,
    el('b', {}, [...colours, ...info.kinds].join(', ')), '.') : '');
}

function chooser(options, value, use) {
  const chosen = ({ target }) => { target.blur(); use(target.value); };
  return el('select', { 'aria-label': `Instead of ${value}`, change: chosen },
    ...options.map((option) => el('option', { selected: option === value }, option)));
}

/** The prompt with one word exchanged, and "a" or "an" before it as needed. */
function rewritten(parts, i, value) {
  const words = parts.with(i, value);
  if (/^an?$/i.test(words[i - 2] ?? '')) words[i - 2] = /^[aeiou]/.test(value) ? 'an' : 'a';
  return words.join('');
}

// The guided tour: ten stops in the order of the paper. Each one shows a part of the page, says what
// it is, and can change something to try; the next click puts that back.

import { $, el } from './dom.js';
import { change, state, strengths } from './state.js';

const STOPS = [
  ['The locked copy', '[data-column=none]',
    `Long before, a network learnt to turn noise into pictures. All of its weights are locked: it can forget nothing.`,
    `This picture is its own, from the prompt and the noise alone. It does not know that you have drawn anything.`,
    ['Turn control off in both', () => change({ strength: 0 })]],
  ['The trainable copy', '#diagram',
    `The first half of the locked network, its encoder, is copied. Only the copy is trained. It reads the same noisy
    picture and prompt, and in addition your drawing.`,
    `The paper starts the copy with the locked weights, so that it need not learn to see from nothing.`,
    ['Walk through one step', () => $('walk').click()]],
  ['The zero convolution', '#diagram',
    `Each output of the copy passes a small layer whose weights all begin at zero. So before training exactly nothing
    is added, and the pictures are as good as the locked network’s own.`,
    `It learns all the same: how a weight should change depends on what enters the layer, and that is not zero. After
    one training step the weights are not zero any more.`,
    ['As before training: add zeros', () => change({ strength: 0 })]],
  ['The condition encoder', '#encoder',
    `Your drawing has many more points than the small map on which the networks work. Eight small layers shrink it to
    that size and find out what matters in it.`,
    `The bars show how much of its signal gets through. If too little does, the copy cannot see the drawing.`],
  ['The connections', '#heat',
    `At every ⊕ the copy’s output is added to what the locked encoder passes on to the decoder. Each row here is one of
    them: the first are fine detail, the last are coarse layout.`,
    `Dark does not mean important. Mute the darkest: the others still bring the drawing. Leave only one: is it enough?`,
    ['Mute all but the middle', () => change({ strength: strengths(count()).map((_, i) => +(i === count() - 1)) })]],
  ['Guidance', '#scale',
    `Every step predicts the noise twice: once without the prompt and once with it. Guidance takes the difference and
    exaggerates it, so the prompt counts more.`,
    `At 1 nothing is exaggerated. Very high values make pictures harsh.`,
    ['Set guidance to 8', () => change({ scale: 8 })]],
  ['Strength', '#strength',
    `All outputs of the copy are multiplied by this number before they are added. 1 is what it was trained with; lower
    values are a suggestion, 0 is silence.`,
    `Somewhere in between the picture changes its mind. Where?`,
    ['Set strength to 0.4', () => change({ strength: 0.4 })]],
  ['Start and end step', '#control_to',
    `Control need not act at every step. The first steps decide where things are; the last ones only add detail.`,
    `So control that ends early often has the same effect, and control that begins late comes too late.`,
    ['Only in the second half', () => change({ control_from: 0.5, control_to: 1 })]],
  ['Prompt dropout', '#prompt',
    `In training, half of the prompts were emptied. So the ControlNet has to read in the drawing what it shows.`,
    `Without any prompt the locked network makes anything. Does the other one still see what you have drawn?`,
    ['Empty the prompt', () => change({ prompt: '' })]],
  ['Sudden convergence', '#run',
    `At first nothing seems to happen. Then, within a few steps of the training, a picture follows its drawing. The
    paper calls it sudden convergence.`,
    `While the drawing’s signal is faint, zero convolutions have little to pass on. Once it is loud enough, all
    connections learn together.`,
    ['Play the training', () => $('run-play').click()]],
];
const now = { at: -1, before: null, spot: null };
const count = () => document.querySelectorAll('#rows .row').length;

export function listenToTour() {
  $('tour-start').addEventListener('click', () => show(0));
  $('tour-back').addEventListener('click', () => show(now.at - 1));
  $('tour-next').addEventListener('click', () => (now.at + 1 < STOPS.length ? show(now.at + 1) : end()));
  $('tour-end').addEventListener('click', end);
  $('tour-try').addEventListener('click', tryOut);
  $('tour').addEventListener('keydown', (event) => event.key === 'Escape' && end());
}

function putBack() {
  if (now.before) change(now.before, { undoable: false });
  now.before = null;
}

function show(at) {
  putBack();
  now.spot?.classList.remove('spot');
  now.at = at;
  const [title, target, first, second, attempt] = STOPS[at];
  $('tour').hidden = false;
  document.body.classList.add('touring');
  $('tour-number').textContent = `Stop ${at + 1} of ${STOPS.length}`;
  $('tour-title').textContent = title;
  $('tour-text').replaceChildren(el('p', {}, first), el('p', {}, second));
  $('tour-back').disabled = at === 0;
  $('tour-next').textContent = at + 1 < STOPS.length ? 'Next' : 'Finish';
  $('tour-try').hidden = !attempt;
  $('tour-try').textContent = attempt?.[0] ?? '';
  const found = document.querySelector(target);
  now.spot = found?.closest('.field') ?? found;
  now.spot?.classList.add('spot');
  bringUp(now.spot);
  $('tour-title').focus({ preventScroll: true });
}

/** Scroll to an element, and put the tour's box where it is not. */
function bringUp(element) {
  element?.scrollIntoView({ block: innerWidth < 700 || innerHeight < 560 ? 'start' : 'center' });
  const box = element?.getBoundingClientRect();
  $('tour').classList.toggle('left', Boolean(box) && box.left + box.width / 2 > innerWidth / 2);
}

/** Change something, or put it back. */
function tryOut() {
  const [label, act] = STOPS[now.at][4];
  if (now.before) {
    putBack();
    $('tour-try').textContent = label;
    return;
  }
  const before = state.request;
  act();
  if (state.request === before) return;
  now.before = before;
  $('tour-try').textContent = 'Put it back';
  if (now.spot?.id !== 'run') bringUp($('pictures'));
}

function end() {
  putBack();
  now.spot?.classList.remove('spot');
  $('tour').hidden = true;
  document.body.classList.remove('touring');
  $('tour-start').focus();
}

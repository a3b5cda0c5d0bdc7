// How much of the drawing is left after each layer of the condition encoder, and where words look.

import { $, clamp, el, percent, pngUrl } from './dom.js';
import { mainColumn, onResult, result, shownEvent, shownStep, stepsOf } from './result.js';
import { change, state } from './state.js';

const SMALL = new Set(['a', 'an', 'and', 'on']);

export function listenToInside() {
  onResult((what) => {
    if (what === 'encoder') showLayers(result.encoder[mainColumn()] ?? []);
    showMaps();
  });
  $('attend').addEventListener('change', () => change({ attention: $('attend').checked }));
}

/** Bars on a logarithmic scale, from a thousandth of the drawing's signal to ten times of it. */
function showLayers(layers) {
  const bars = layers.map(({ shape, share }, i) => {
    const bar = el('i');
    bar.style.width = `${100 * clamp((3 + Math.log10(Math.max(share, 1e-9))) / 4, 0.004, 1)}%`;
    return el('div', { class: 'layer', title: i ? `input_hint_block.${2 * (i - 1)}` : 'hint' },
      el('span', {}, i ? `layer ${i}` : 'drawing'), el('span', { class: 'dim' }, shape.join(' × ')),
      el('div', { class: 'track' }, bar), el('b', {}, percent(share)));
  });
  $('layers').replaceChildren(...bars);
  const last = layers.at(-1)?.share;
  const does = last > 1 ? `amplifies the drawing: the difference that it makes ends ${last.toFixed(1)} times as large`
    : `keeps ${percent(last)} of the drawing`;
  $('layers-text').textContent = result.start.empty.includes(mainColumn())
    ? 'This hint is empty, so there is no signal to measure.'
    : `The mark is the drawing’s own 100 %; a quarter of the width is a factor of ten. This trained encoder ${does}. A
      new one of the released kind passes on almost nothing, and training has to amplify that first.`;
}

function showMaps() {
  if (!result.start) return;
  $('attend').checked = Boolean(state.request?.attention);
  const event = shownEvent();
  const maps = event?.attention;
  if (!maps) {
    $('maps').replaceChildren();
    $('maps-text').textContent = 'Not computed for this picture.';
    return;
  }
  const picture = shownStep() === stepsOf() ? result.pictures[mainColumn()]?.png : event.preview;
  const shown = result.start.words.map((word, i) => [word, maps[i]]).filter(([{ text }]) => !SMALL.has(text));
  $('maps').replaceChildren(...shown.map(([{ text, known }, map]) => el('figure', {},
    el('div', { class: 'picture' }, picture ? el('img', { src: pngUrl(picture), alt: '' }) : null,
      el('img', { class: 'map', src: pngUrl(map), alt: `Where “${text}” looks` })),
    el('figcaption', { class: known ? '' : 'problem' }, text))));
  $('maps-text').textContent = shown.length
    ? `With control, at step ${event.step + 1} of ${event.of}. The picture is dark where a word gets little attention.`
    : 'The prompt has no words of its own.';
}

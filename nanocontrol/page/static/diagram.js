// The two networks, after the drawing in the README: encoders run downwards, the decoder upwards.
// Rows are connections, so the map next to it has the same rows.

import { $, el, player, plural, pngUrl, svg } from './dom.js';
import { loudness, mainColumn, onResult, result, shownEvent } from './result.js';
import { state, strengths, subscribe } from './state.js';

export const TOP = 190; // above the first connection
export const pitch = (info) => (info.connections > 9 ? 46 : 58); // from one connection to the next

const host = $('diagram');
const now = { info: null, blocks: [], chosen: -1, mute: null };
const TYPES = {
  Conv: 'a convolution', Res: 'a residual block', Attn: 'attention to the prompt',
  Down: 'a convolution that halves the size', Up: 'a convolution that doubles the size',
  Norm: 'a normalisation and the function SiLU',
};

/** `mute(i)` is called for a click on connection i. */
export function initDiagram(info, mute) {
  Object.assign(now, { info, mute, blocks: info.blocks });
  $('block').max = info.blocks.length - 1;
  $('connections').textContent = String(info.connections);
  build();
  choose(Math.min(Math.max(now.chosen, -1), info.blocks.length - 1));
}

export function listenToDiagram() {
  new ResizeObserver(() => now.info && build()).observe(host.parentElement);
  const stop = player($('walk'), 450, (i) => i < now.blocks.length && (choose(i), true));
  $('block').addEventListener('input', () => { stop(); choose(Number($('block').value)); });
  onResult((what) => (what === 'start' ? build() : weigh()));
  subscribe((fields) => fields.includes('strength') && (weigh(), mark()));
}

// ------------------------------------------------------------------------------------ layout

function build() {
  const W = host.parentElement.clientWidth;
  if (!W) return;
  const n = now.info.connections - 1;
  const step = pitch(now.info);
  const H = TOP + n * step + 40;
  const x = { size: 0.055 * W, enc: 0.19 * W, sum: 0.40 * W, zero: 0.565 * W, copy: 0.73 * W, hint: 0.91 * W };
  const small = W < 520;
  Object.assign(now, { x, n, step, small, width: Math.min(108, 0.165 * W) });
  host.setAttribute('viewBox', `0 0 ${W} ${H}`);
  host.setAttribute('height', H);
  host.classList.toggle('small', small);
  host.replaceChildren(arrowHead(), ...grounds(W, H), ...top(), ...now.info.residuals.flatMap((_, i) => row(i)));
  weigh();
  mark();
}

const y = (i) => TOP + i * now.step;

function arrowHead() {
  const size = { viewBox: '0 0 8 8', refX: 7, refY: 4, markerWidth: 7, markerHeight: 7 };
  return svg('defs', {}, svg('marker', { id: 'tip', orient: 'auto', ...size }, svg('path', { d: 'M0 0 8 4 0 8Z' })));
}

function grounds(W, H) {
  const { x, width, small } = now;
  const left = x.copy - width / 2 - 10;
  const right = x.sum + width / 2 + 12;
  return [
    svg('rect', { x: 0.5, y: 0.5, width: right, height: H - 1, rx: 10, class: 'ground locked' }),
    svg('rect', { x: left, y: 0.5, width: W - left - 0.5, height: H - 1, rx: 10, class: 'ground control' }),
    words(12, 22, small ? 'LOCKED' : 'LOCKED: the picture network', 'title locked', 'start'),
    words(left + 10, 22, small ? 'TRAINABLE COPY' : 'TRAINABLE: its copy', 'title control', 'start'),
    words(x.enc, 40, 'encoder', 'dim'), words(x.sum, 40, 'decoder', 'dim'), words(x.copy, 40, 'encoder', 'dim'),
  ];
}

/** Inputs, the output, the copy's first block, and the way of the hint. */
function top() {
  const { x, width, small } = now;
  const hint = result.start?.hints[mainColumn()];
  const parts = [
    words(x.enc, 62, small ? 'noise' : 'noisy picture,', 'flow'), words(x.enc, 77, small ? '' : 'prompt', 'flow'),
    words(x.sum, 62, small ? 'noise?' : 'predicted', 'flow'), words(x.sum, 77, small ? '' : 'noise', 'flow'),
    words(x.copy, 62, small ? 'noise' : 'noisy picture,', 'flow'), words(x.copy, 77, small ? '' : 'prompt', 'flow'),
    arrow(x.enc, 84, x.enc, y(0) - 16), arrow(x.sum, y(0) - 82, x.sum, 84), arrow(x.sum, y(0) - 10, x.sum, y(0) - 58),
    arrow(x.copy, 84, x.copy, y(0) - 64), arrow(x.copy, y(0) - 38, x.copy, y(0) - 10),
    box('unet:out', x.sum, y(0) - 70, small ? 'out' : 'output', 'locked', 24),
    box('control:input_blocks.0', x.copy, y(0) - 51, 'block 1', 'control'),
    box('control:encoder', x.hint, y(0) - 51, ['condition', 'encoder'], 'control', 34),
    words(x.hint, 40, small ? 'hint' : 'your drawing', 'dim'),
    arrow(x.hint, 92, x.hint, y(0) - 70),
    svg('path', { d: `M${x.hint} ${y(0) - 33}V${y(0)}H${x.copy + 12}`, class: 'arrow' }),
    plus(x.copy, y(0), 'control'),
  ];
  const side = Math.min(44, width);
  const place = { x: x.hint - side / 2, y: 47, width: side, height: side };
  if (hint) parts.push(svg('image', { href: pngUrl(hint), ...place, class: 'thumb' }));
  return parts;
}

function row(i) {
  const { x, n, width, small, info } = now;
  const middle = i === n;
  const { size } = info.residuals[i];
  const zero = middle ? 'control:middle_block_out' : `control:zero_convs.${i}`;
  const unet = middle ? 'unet:middle_block' : `unet:input_blocks.${i}`;
  const name = middle ? 'middle' : `block ${i + 1}`;
  const half = width / 2;
  const parts = [
    words(small ? 12 : x.size, y(i) + 4, small ? size : `${size} × ${size}`, 'size'),
    box(unet, x.enc, y(i), name, 'locked'),
    arrow(x.enc + half, y(i), x.sum - 11, y(i)),
    svg('path', { d: `M${x.copy - (i ? half : 11)} ${y(i)}H${x.sum + 11}`, class: 'arrow push', 'data-push': i }),
    zeroBox(zero, i),
    plus(x.sum, y(i), 'locked'),
  ];
  if (i) parts.push(box(middle ? 'control:middle_block' : `control:input_blocks.${i}`, x.copy, y(i), name, 'control'));
  if (i === 0 && !small) parts.push(words((x.enc + half + x.sum - 11) / 2, y(i) - 7, 'skip', 'dim'));
  if (!middle) {
    const lift = i ? now.step / 2 : 32;
    parts.push(
      arrow(x.enc, y(i) + 13, x.enc, y(i + 1) - 13), arrow(x.sum, y(i + 1) - 10, x.sum, y(i) + 10),
      arrow(x.copy, y(i) + (i ? 13 : 10), x.copy, y(i + 1) - 13),
      box(`unet:output_blocks.${n - 1 - i}`, x.sum, y(i) - lift, small ? i + 1 : name, 'locked', 20, 0.8));
  }
  return parts;
}

function box(key, cx, cy, label, kind, height = 26, share = 1) {
  const width = now.width * share;
  const lines = [label].flat();
  return svg('g', { class: `block ${kind}`, 'data-block': key, click: () => choose(indexOf(key)) },
    svg('rect', { x: cx - width / 2, y: cy - height / 2, width, height, rx: 5 }),
    ...lines.map((text, i) => words(cx, cy + 4 + 14 * (i - (lines.length - 1) / 2), text)));
}

function zeroBox(key, i) {
  const width = now.small ? 40 : 78;
  const click = () => { now.mute(i); choose(indexOf(key)); };
  return svg('g', { class: 'block zero', 'data-block': key, 'data-zero': i, click },
    svg('title', {}, `Connection ${i + 1}: a click mutes it, another one brings it back`),
    svg('rect', { x: now.x.zero - width / 2, y: y(i) - 11, width, height: 22, rx: 11 }),
    words(now.x.zero, y(i) + 4, now.small ? 'zero' : 'zero conv'));
}

const words = (x, y, text, kind = '', anchor = 'middle') =>
  svg('text', { x, y, class: kind, 'text-anchor': anchor }, String(text));
const arrow = (x1, y1, x2, y2) => svg('line', { x1, y1, x2, y2, class: 'arrow', 'marker-end': 'url(#tip)' });
const plus = (x, y, kind) => svg('g', { class: `plus ${kind}` }, svg('circle', { cx: x, cy: y, r: 9 }),
  svg('path', { d: `M${x - 5} ${y}H${x + 5}M${x} ${y - 5}V${y + 5}` }));

// ------------------------------------------------------------------------- what is shown in it

/** The width of each connection's line shows how much it adds at the step that one looks at. */
function weigh() {
  if (!now.info || !state.request) return;
  const own = strengths(now.info.connections);
  const connections = shownEvent()?.connections;
  for (const line of host.querySelectorAll('[data-push]')) {
    const i = Number(line.dataset.push);
    const ratio = connections?.[i] ?? 0;
    line.style.strokeWidth = `${1 + 10 * loudness(ratio)}px`;
    const [muted, zero] = [own[i] === 0, host.querySelector(`[data-zero="${i}"]`)];
    line.classList.toggle('muted', muted);
    zero.classList.toggle('muted', muted);
    zero.querySelector('text').textContent = muted ? 'muted' : now.small ? 'zero' : 'zero conv';
  }
}

const partOf = ({ network }) => (network === 'the trainable copy' ? 'control' : 'unet');
const keyOf = (block) => `${partOf(block)}:${block.key.startsWith('input_hint') ? 'encoder' : block.key}`;
const indexOf = (key) => now.blocks.findIndex((block) => keyOf(block) === key);

export function choose(index) {
  now.chosen = index;
  if (index >= 0) $('block').value = index;
  mark();
}

function mark() {
  const block = now.blocks[now.chosen];
  for (const group of host.querySelectorAll('.lit')) group.classList.remove('lit');
  const help = 'Click a block, or walk through all of them in the order in which they are computed.';
  if (!block) return ($('block-text').textContent = help);
  const key = keyOf(block);
  host.querySelector(`[data-block="${key}"]`)?.classList.add('lit');
  const text = describe(block);
  $('block').setAttribute('aria-valuetext', text);
  const muted = host.querySelector('.lit')?.matches('.muted');
  $('block-text').replaceChildren(el('b', {}, `${now.chosen + 1} of ${now.blocks.length}: ${title(block)}. `), text,
    muted ? el('b', {}, ' It is muted: nothing of it is added. Another click brings it back.') : '');
}

function title(block) {
  const name = block.key;
  const number = Number(name.split('.')[1]);
  if (name.startsWith('input_hint')) return `Condition encoder, layer ${1 + number / 2}`;
  if (name === 'middle_block_out') return `Zero convolution ${now.info.connections}`;
  if (name.startsWith('zero')) return `Zero convolution ${number + 1}`;
  const whose = partOf(block) === 'control' ? 'Trainable copy' : 'Locked network';
  if (name === 'out') return 'Locked network, output';
  if (name.startsWith('middle')) return `${whose}, middle block`;
  if (name.startsWith('output')) return `Locked network, decoder block ${now.info.connections - 1 - number}`;
  return `${whose}, encoder block ${number + 1}`;
}

function describe({ module, shape_out: [channels, height, width], parameters }) {
  const does = module.split(' ').map((name) => TYPES[name] ?? name).join(' and ');
  const out = `${plural(channels, 'map')} of ${height} × ${width} numbers come out`;
  return `It is ${does} with ${plural(parameters, 'trained number')}; ${out}.`;
}

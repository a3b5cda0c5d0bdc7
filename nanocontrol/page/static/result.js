// What the last run has produced so far, and the step that one looks at. Views subscribe.

const listeners = new Set();

export const result = { recorded: false, request: null, start: null, steps: {}, encoder: {}, pictures: {} };
export const view = { step: null }; // null: the newest; `of`: the finished picture

export const onResult = (listener) => listeners.add(listener);

const tellAll = (what) => listeners.forEach((listener) => listener(what));

// Steps can come faster than they can be drawn: all that came since the last frame are drawn at once.
let waiting = false;
function tellSoon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    tellAll('step');
  });
}

export function begin(request, recorded = false) {
  Object.assign(result, { recorded, request });
}

/** Take in one event of the stream. */
export function collect(event) {
  if (event.event === 'start') {
    const steps = Object.fromEntries(event.columns.map((column) => [column, []]));
    Object.assign(result, { start: event, steps, encoder: {}, pictures: {} });
    view.step = null;
  } else if (event.event === 'step') result.steps[event.column][event.step] = event;
  else if (event.event === 'encoder') result.encoder[event.column] = event.layers;
  else if (event.event === 'picture') result.pictures[event.column] = event;
  if (event.event === 'step') tellSoon();
  else tellAll(event.event);
}

export function look(step) {
  view.step = step;
  tellAll('look');
}

/** The number of steps of the run, and of those that all columns have. */
export const stepsOf = () => result.start?.ts.length ?? 0;
export const reached = () => Math.min(...Object.values(result.steps).map((steps) => steps.length));

/** The step to show: 0, 1, ..., or `stepsOf()` for the finished pictures. */
export function shownStep() {
  const all = stepsOf();
  const newest = Object.keys(result.pictures).length ? all : reached() - 1;
  return Math.min(view.step ?? newest, newest);
}

/** The condition whose column the insides show. */
export const mainColumn = () => result.start?.columns.find((column) => column !== 'none');

/** An event of the main column at the step that one looks at. */
export function shownEvent() {
  const steps = result.steps[mainColumn()] ?? [];
  return steps[Math.max(0, Math.min(shownStep(), steps.length - 1))];
}

/** A residual's ratio to its skip on a logarithmic scale: 0 for a tenth and less, 1 for five and more. */
export const loudness = (ratio) => Math.min(1, Math.max(0, (1 + Math.log10(Math.max(ratio, 1e-6))) / 1.7));

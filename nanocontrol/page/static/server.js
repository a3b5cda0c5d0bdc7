// Everything that is asked of the server. Errors carry one sentence to show.

const client = crypto.randomUUID?.() ?? `tab-${Math.random().toString(36).slice(2)}`;
let running = null; // AbortController of the picture being made

export const unreachable = 'The server does not answer. Is `python -m nanocontrol.page` running?';

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Error(unreachable);
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  const error = new Error(answer.error ?? `The server answered with status ${response.status}.`);
  throw Object.assign(error, { status: response.status });
}

export const get = async (path) => (await ask(path)).json();

export const post = async (path, body) => (await ask(path, json(body))).json();

export const sendPhoto = async (file, low, high) => {
  const headers = { 'Content-Type': 'application/octet-stream' };
  const path = `/api/photo?low=${low}&high=${high}`;
  return (await ask(path, { method: 'POST', headers, body: file })).json();
};

const json = (body) => ({
  method: 'POST',
  headers: { 'Content-Type': 'application/json' },
  body: JSON.stringify(body),
});

export const command = (request, column) => post('/api/command', { ...request, client, columns: [column] });

/** The answer of the newest call only: overtaken ones are dropped (null). */
export function newest(send) {
  let number = 0;
  return async (...given) => {
    const own = ++number;
    const answer = await send(...given);
    return own === number ? answer : null;
  };
}

export function cancel() {
  running?.abort();
  running = null;
}

/** Make pictures: `tell` gets every event of the stream. A newer call cancels an older one. */
export async function generate(request, tell) {
  cancel();
  const mine = (running = new AbortController());
  const say = (event) => running === mine && tell(event);
  try {
    const options = { ...json({ ...request, client }), signal: mine.signal };
    const response = await ask('/api/generate', options);
    await eachLine(response.body, (line) => say(JSON.parse(line)));
  } catch (error) {
    if (error.name === 'AbortError') return;
    say({ event: 'error', error: error.message, status: error.status });
  }
}

async function eachLine(body, use) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (rest + value).split('\n');
    rest = lines.pop();
    for (const line of lines) if (line) use(line);
  }
}

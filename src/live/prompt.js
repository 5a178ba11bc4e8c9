// The box that sends a prompt through the gateway, as any client would, and shows its answer as it comes.
import { call, Refusal } from './call.js';
import { byId, formatCount, formatRate, formatTime, write } from './draw.js';

const [form, model, key, prompt, send, stop] = ['try', 'try-model', 'try-key', 'try-prompt', 'try-send', 'try-stop'].map(byId);
const [state, figures, answer] = ['try-state', 'try-figures', 'try-answer'].map(byId);
let controller;
let listedFor;

/** Before the first look nobody knows whether keys are asked for. */
export function setKeyNeeded(isNeeded) {
  byId('try-key-field').hidden = !isNeeded;
  key.required = isNeeded;
  if (!isNeeded && listedFor === undefined) void listModels();
}

const withKey = () => (key.value === '' ? {} : { 'x-sluicegate-key': key.value });

/** A list that cannot be had is no trouble: a model's name can be typed. */
async function listModels() {
  if (listedFor === key.value) return;
  listedFor = key.value;
  try {
    const { data } = await (await call('api/models', { headers: withKey() })).json();
    const names = data.map(({ id }) => id).filter((id) => typeof id === 'string');
    byId('try-models').replaceChildren(...names.map((name) => Object.assign(document.createElement('option'), { value: name })));
    // Not under the fingers of somebody who types one.
    if (model.value === '' && document.activeElement !== model)
      model.value = names.find((name) => !/embed|tts|whisper|image|moderation/i.test(name)) ?? '';
  } catch {
    listedFor = undefined;
  }
}

/** The events of a stream, as far as they are JSON (WHATWG HTML 9.2.6; nobody who speaks this API splits data over lines). */
async function* readEvents(body) {
  let rest = '';
  for await (const text of body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split(/\r\n|\n|\r/);
    rest = lines.pop();
    for (const line of lines) if (line.startsWith('data:')) yield line.slice(5).trim();
  }
}

async function ask() {
  const startedAt = performance.now();
  const told = { ttft: undefined, tokens: 0, isDone: false };
  const tick = setInterval(() => show(told, startedAt), 100);
  controller = new AbortController();
  answer.replaceChildren();
  answer.hidden = figures.hidden = false;
  send.disabled = true;
  stop.disabled = false;
  write(state, 'Waiting for the first token');
  try {
    const body = JSON.stringify({ model: model.value, stream: true, messages: [{ role: 'user', content: prompt.value }] });
    const headers = { 'content-type': 'application/json', ...withKey() };
    const response = await call('api/chat/completions', { method: 'POST', headers, body, signal: controller.signal });
    for await (const data of readEvents(response.body)) take(data, told, startedAt);
    write(state, told.isDone ? 'Complete' : 'The stream ended before it was complete');
  } catch (failure) {
    write(state, words(failure));
  }
  clearInterval(tick);
  show(told, startedAt);
  send.disabled = false;
  stop.disabled = true;
}

function words(failure) {
  if (controller.signal.aborted) return 'Stopped';
  if (failure instanceof Refusal) return `${failure.message} (${failure.code})`;
  return failure instanceof TypeError ? 'The stream broke off' : failure.message;
}

function take(data, told, startedAt) {
  if (data === '[DONE]') {
    told.isDone = true;
    return;
  }
  const event = JSON.parse(data);
  if (event.error) throw new Refusal(200, event.error);
  const delta = event.choices?.[0]?.delta ?? {};
  const thought = delta.reasoning_content ?? delta.reasoning;
  if (typeof thought === 'string' && thought !== '') append(thought, 'thought', told, startedAt);
  if (typeof delta.content === 'string' && delta.content !== '') append(delta.content, 'said', told, startedAt);
}

function append(text, kind, told, startedAt) {
  if (told.ttft === undefined) {
    told.ttft = performance.now() - startedAt;
    write(state, 'Streaming');
  }
  told.tokens += 1;
  // Who has scrolled up to read is left there.
  const isAtEnd = answer.scrollHeight - answer.scrollTop - answer.clientHeight < 30;
  if (answer.lastElementChild?.className !== kind) {
    answer.append(Object.assign(document.createElement('span'), { className: kind }));
  }
  answer.lastElementChild.append(text);
  if (isAtEnd) answer.scrollTop = answer.scrollHeight;
}

function show({ ttft, tokens }, startedAt) {
  const ms = performance.now() - startedAt;
  write(byId('try-ttft'), formatTime(ttft));
  write(byId('try-tokens'), formatCount(tokens));
  write(byId('try-time'), formatTime(ms));
  write(byId('try-rate'), tokens > 1 ? formatRate(((tokens - 1) * 1000) / Math.max(1, ms - ttft)) : '–');
}

form.addEventListener('submit', (event) => {
  event.preventDefault();
  if (!send.disabled) void ask();
});
prompt.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
stop.addEventListener('click', () => controller?.abort());
key.addEventListener('change', () => void listModels());

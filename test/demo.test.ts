// The demo upstream, as an SDK, a browser and a raw client see it.
import { EventEmitter, once } from 'node:events';
import { createServer, request } from 'node:http';
import type { AddressInfo } from 'node:net';
import { EventSource } from 'eventsource';
import OpenAI, { toFile } from 'openai';
import t from 'tap';
import { writePiece } from '../src/demo/call.ts';
import { createFormReader } from '../src/demo/multipart.ts';
import { startDemo } from '../src/demo/server.ts';

const FAST = { ttftMs: 0, tokensPerSecond: 0 };
const demo = await startDemo({ host: '127.0.0.1', port: 0 }, FAST);
const openai = new OpenAI({ baseURL: demo.url, apiKey: 'none', maxRetries: 0 });
t.teardown(() => demo.close());

const user = (content: string) => [{ role: 'user' as const, content }];
const chat = (content: string, more: object = {}) => ({ model: 'demo', messages: user(content), ...more });

/** POSTs JSON, or a string as it is, and returns the response with its body unread. */
function post(path: string, body: unknown, init: RequestInit = {}): Promise<Response> {
  return fetch(demo.url + path, { method: 'POST', body: typeof body === 'string' ? body : JSON.stringify(body), ...init });
}

/** Splits a whole event stream into the payloads of its `data:` lines. */
function payloads(text: string): string[] {
  return text
    .split('\n\n')
    .filter(Boolean)
    .map((event) => event.slice(event.indexOf('data: ') + 6));
}

async function readEvents(path: string, body: unknown) {
  return payloads(await (await post(path, body)).text());
}

/** Asks the demo itself until its counters say so. */
async function waitForStats(url: string, isReached: (stats: { opened: number; finished: number; cut: number }) => boolean) {
  for (;;) {
    const stats = (await (await fetch(new URL('/demo/stats', url))).json()) as { opened: number; finished: number; cut: number };
    if (isReached(stats)) return stats;
  }
}

t.test('chat: what it says, how much it says, and what that counts', async (t) => {
  const said = await openai.chat.completions.create(chat('Repeat after me: one two  three'));
  t.equal(said.choices[0]?.message.content, 'one two  three');
  t.equal(said.choices[0]?.finish_reason, 'stop');
  t.match(said.usage, { prompt_tokens: 6, completion_tokens: 3, total_tokens: 9 });

  const counted = await openai.chat.completions.create({
    model: 'anything',
    messages: [{ role: 'system', content: 'Please say 700 tokens.' }, ...user('hello')],
  });
  t.equal(counted.usage?.completion_tokens, 700);
  t.equal(counted.model, 'anything');

  const cut = await openai.chat.completions.create(chat('say 50 tokens', { max_completion_tokens: 7 }));
  t.match(cut, { choices: [{ finish_reason: 'length' }], usage: { completion_tokens: 7 } });
  t.match(await openai.chat.completions.create(chat('say 50 tokens', { max_tokens: 8 })), { usage: { completion_tokens: 8 } });

  const much = await openai.chat.completions.create(chat(`repeat after me: ${'x '.repeat(200_000)}`));
  t.match(much.usage, { prompt_tokens: 200_003, completion_tokens: 100_000 }, 'it bounds what it says, not what it reads');

  const stopped = await openai.chat.completions.create(chat('repeat after me: alpha beta gamma', { stop: ['gam', 'et'] }));
  t.equal(stopped.choices[0]?.message.content, 'alpha b');
  t.match(stopped, { choices: [{ finish_reason: 'stop' }], usage: { completion_tokens: 2 } });

  const [first, again, other] = await Promise.all(['hi', 'hi', 'hello there'].map((text) => openai.chat.completions.create(chat(text))));
  t.equal(first?.choices[0]?.message.content, again?.choices[0]?.message.content, 'the same to the same prompt');
  t.not(first?.choices[0]?.message.content, other?.choices[0]?.message.content, 'something else to another');
});

t.test('chat streams: one delta a token, a usage chunk only when asked for', async (t) => {
  const plain = await readEvents('/chat/completions', chat('repeat after me: a b c', { stream: true }));
  t.equal(plain.at(-1), '[DONE]');
  t.notMatch(plain.join(), 'usage');
  const chunks = plain.slice(0, -1).map((text) => JSON.parse(text));
  t.strictSame(
    chunks.map(({ choices }) => [choices[0].delta.role, choices[0].delta.content, choices[0].finish_reason]),
    [
      ['assistant', '', null],
      [undefined, 'a', null],
      [undefined, ' b', null],
      [undefined, ' c', null],
      [undefined, undefined, 'stop'],
    ],
  );
  t.equal(new Set(chunks.map(({ id, created, object }) => `${id} ${created} ${object}`)).size, 1);

  const counted = await readEvents('/chat/completions', chat('say 5 tokens', { stream: true, stream_options: { include_usage: true } }));
  const all = counted.slice(0, -1).map((text) => JSON.parse(text));
  t.ok(all.slice(0, -1).every((chunk) => chunk.usage === null && chunk.choices.length === 1));
  t.match(all.at(-1), { choices: [], usage: { prompt_tokens: 3, completion_tokens: 5, total_tokens: 8 } });
  t.equal(all.filter(({ choices }) => choices[0]?.delta.content).length, 5);

  t.test('with n, choices come in turn and are counted together', async (t) => {
    const events = await readEvents('/chat/completions', chat('hi', { stream: true, n: 3, stream_options: { include_usage: true } }));
    const some = events.slice(0, -1).map((text) => JSON.parse(text));
    t.strictSame(
      some.slice(0, 7).map(({ choices }) => choices[0].index),
      [0, 0, 1, 1, 2, 2, 0],
    );
    t.equal(some.filter(({ choices }) => choices[0]?.finish_reason === 'stop').length, 3);
    const deltas = some.filter(({ choices }) => choices[0]?.delta.content);
    t.equal(some.at(-1).usage.completion_tokens, deltas.length);
    const texts = [0, 1, 2].map((i) => deltas.filter((c) => c.choices[0].index === i).map((c) => c.choices[0].delta.content));
    t.equal(new Set(texts.map((one) => one.join(''))).size, 3);
  });

  t.test('demo-reasoning thinks first, and its thoughts are counted', async (t) => {
    const events = await readEvents('/chat/completions', {
      ...chat('say 3 tokens', { stream: true, stream_options: { include_usage: true } }),
      model: 'demo-reasoning',
    });
    const all = events.slice(0, -1).map((text) => JSON.parse(text));
    const kinds = all.slice(1, -2).map(({ choices }) => Object.keys(choices[0].delta)[0]);
    const thoughts = kinds.indexOf('content');
    t.ok(thoughts > 10);
    t.strictSame(kinds, [...Array(thoughts).fill('reasoning_content'), 'content', 'content', 'content']);
    t.match(all.at(-1).usage, { completion_tokens: thoughts + 3, completion_tokens_details: { reasoning_tokens: thoughts } });
  });
});

t.test('tools: the first is called with arguments of its schema, and its result is answered', async (t) => {
  const parameters = {
    type: 'object',
    properties: { city: { type: 'string' }, unit: { enum: ['celsius', 'kelvin'] }, days: { type: 'integer', minimum: 2 } },
  };
  const tools = [{ type: 'function' as const, function: { name: 'get_weather', parameters } }];
  const wanted = { city: 'demo', unit: 'celsius', days: 2 };
  const stream = openai.chat.completions.stream(chat('Weather?', { tools, stream_options: { include_usage: true } }));
  let fragments = 0;
  stream.on('tool_calls.function.arguments.delta', ({ arguments_delta: delta }) => {
    fragments += delta === '' ? 0 : 1;
  });
  const { choices, usage } = await stream.finalChatCompletion();
  t.equal(choices[0]?.finish_reason, 'tool_calls');
  const call = choices[0]?.message.tool_calls?.[0];
  t.match(call, { type: 'function', function: { name: 'get_weather' } });
  t.strictSame(JSON.parse(call?.type === 'function' ? call.function.arguments : ''), wanted);
  t.ok(fragments > 5);
  t.equal(usage?.completion_tokens, fragments);

  const whole = await openai.chat.completions.create(chat('Weather?', { tools }));
  t.match(whole.choices[0], {
    finish_reason: 'tool_calls',
    message: { content: null, tool_calls: [{ function: { name: 'get_weather' } }] },
  });
  const answered = await openai.chat.completions.create({
    model: 'demo',
    tools,
    messages: [...user('Weather?'), whole.choices[0]!.message, { role: 'tool', tool_call_id: 'x', content: 'Rain, 9 degrees.' }],
  });
  t.match(answered.choices[0]?.message.content, /^Rain, 9 degrees\./);
  const unwilling = await openai.chat.completions.create(chat('Weather?', { tools, tool_choice: 'none' }));
  t.equal(unwilling.choices[0]?.finish_reason, 'stop');
});

t.test('legacy completions have their own shape and the same ends', async (t) => {
  const whole = await openai.completions.create({ model: 'demo', prompt: ['say 4 tokens', 'say 2 tokens'], max_tokens: 3 });
  t.strictSame(
    whole.choices.map(({ index, finish_reason: finish }) => [index, finish]),
    [
      [0, 'length'],
      [1, 'stop'],
    ],
  );
  t.match(whole, { object: 'text_completion', usage: { prompt_tokens: 6, completion_tokens: 5, total_tokens: 11 } });

  const events = await readEvents('/completions', {
    model: 'demo',
    prompt: 'repeat after me: x y',
    stream: true,
    stream_options: { include_usage: true },
  });
  const all = events.slice(0, -1).map((text) => JSON.parse(text));
  t.strictSame(
    all.map(({ object, choices, usage }) => [object, choices[0]?.text, choices[0]?.finish_reason, usage?.completion_tokens]),
    [
      ['text_completion', 'x', null, undefined],
      ['text_completion', ' y', 'stop', undefined],
      ['text_completion', undefined, undefined, 2],
    ],
  );
  t.equal(all[0].usage, null);
  t.equal(events.at(-1), '[DONE]');
});

t.test('responses: the whole order of events, numbered, and the same object without a stream', async (t) => {
  const response = await post('/responses', { model: 'demo', input: 'repeat after me: a b', stream: true });
  const text = await response.text();
  const events = payloads(text).map((one) => JSON.parse(one));
  t.strictSame(
    events.map(({ type }) => type.replace('response.', '')),
    [
      ...['created', 'in_progress', 'output_item.added', 'content_part.added', 'output_text.delta', 'output_text.delta'],
      ...['output_text.done', 'content_part.done', 'output_item.done', 'completed'],
    ],
  );
  t.strictSame(
    events.map((event) => event.sequence_number),
    events.map((_, i) => i),
  );
  t.strictSame(
    [...text.matchAll(/^event: (.*)$/gm)].map(([, name]) => name),
    events.map(({ type }) => type),
  );
  t.notMatch(text, '[DONE]');
  t.equal(events[1].response.usage, null);
  const final = events.at(-1).response;
  t.match(final, { status: 'completed', usage: { input_tokens: 5, output_tokens: 2, total_tokens: 7 } });
  t.strictSame(await (await fetch(`${demo.url}/responses/${final.id}`)).json(), final, 'stored as streamed');

  const whole = await openai.responses.create({ model: 'demo-reasoning', input: [{ role: 'user', content: 'say 9 tokens' }] });
  t.strictSame(
    whole.output.map(({ type }) => type),
    ['reasoning', 'message'],
  );
  t.equal(whole.usage?.output_tokens, 9 + whole.usage!.output_tokens_details.reasoning_tokens);

  const cut = await openai.responses.stream({ model: 'demo', input: 'say 9 tokens', max_output_tokens: 4 }).finalResponse();
  t.match(cut, { status: 'incomplete', incomplete_details: { reason: 'max_output_tokens' }, usage: { output_tokens: 4 } });

  const tools = [{ type: 'function' as const, name: 'look', strict: true, parameters: { properties: { deep: { type: 'boolean' } } } }];
  const called = await openai.responses.stream({ model: 'demo', input: 'look', tools }).finalResponse();
  t.match(called.output, [{ type: 'function_call', name: 'look', arguments: '{"deep":true}', status: 'completed' }]);
});

t.test('a stored response can be heard again from any event on, by the SDK and by an EventSource', async (t) => {
  const { id } = await openai.responses.create({ model: 'demo', input: 'repeat after me: a b c' });
  const seen: string[] = [];
  for await (const event of await openai.responses.retrieve(id, { stream: true, starting_after: 4 })) {
    seen.push(event.type === 'response.output_text.delta' ? event.delta : `${event.type} ${event.sequence_number}`);
  }
  t.strictSame(seen.slice(0, 3), [' b', ' c', 'response.output_text.done 7']);
  t.equal(seen.at(-1), 'response.completed 10');

  const source = new EventSource(`${demo.url}/responses/${id}?stream=true`);
  const deltas: string[] = [];
  source.addEventListener('response.output_text.delta', ({ data }) => deltas.push(JSON.parse(data).delta));
  await new Promise<void>((resolve) => source.addEventListener('response.completed', () => resolve()));
  source.close();
  t.strictSame(deltas, ['a', ' b', ' c']);

  const first = await openai.responses.create({ model: 'demo', input: 'say 1 token', store: false });
  await t.rejects(openai.responses.retrieve(first.id), { message: /^404/ }, 'not stored when not wanted');
  for (let i = 0; i < 100; i += 1) await openai.responses.create({ model: 'demo', input: 'say 1 token' });
  await t.rejects(openai.responses.retrieve(id), { message: /^404/ }, 'a hundred later ones push it out');
});

t.test('embeddings are unit vectors, the same for the same text', async (t) => {
  const { data, usage, model } = await openai.embeddings.create({ model: 'any', input: ['a b', 'c', 'a b'] });
  t.equal(model, 'any');
  t.match(usage, { prompt_tokens: 5, total_tokens: 5 });
  t.strictSame(
    data.map(({ index, embedding }) => [index, embedding.length]),
    [0, 1, 2].map((i) => [i, 1536]),
  );
  t.ok(Math.abs(Math.hypot(...data[0]!.embedding) - 1) < 1e-5);
  t.strictSame(data[0]!.embedding, data[2]!.embedding);
  t.notSame(data[0]!.embedding, data[1]!.embedding);

  const floats = await openai.embeddings.create({ model: 'any', input: 'a b', dimensions: 8, encoding_format: 'float' });
  const bytes = await (await post('/embeddings', { model: 'any', input: 'a b', dimensions: 8, encoding_format: 'base64' })).json();
  const decoded = new Float32Array(Uint8Array.from(Buffer.from((bytes as typeof floats).data[0]!.embedding as never, 'base64')).buffer);
  t.strictSame(Array.from(decoded), floats.data[0]!.embedding);
});

t.test('files are counted as they pass, wherever the pieces are cut', async (t) => {
  const content = Buffer.alloc(3_000_000, 'line\r\n--almost a boundary\r\n');
  const file = await openai.files.create({ purpose: 'user_data', file: await toFile(content, 'häuser "1".txt') });
  t.match(file, { object: 'file', bytes: 3_000_000, filename: 'häuser "1".txt', purpose: 'user_data' });

  const form = 'preamble\r\n--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\n'
    .concat('content-disposition: form-data; name="file"; filename="x"\r\n\r\n\r\n--abc\r\n--b \r\n')
    .concat('Content-Disposition: form-data; name="empty"\r\n\r\n\r\n--b--\r\nepilogue');
  const expected = [
    { name: 'purpose', filename: undefined, value: 'batch', bytes: 5 },
    { name: 'file', filename: 'x', value: '', bytes: 7 },
    { name: 'empty', filename: undefined, value: '', bytes: 0 },
  ];
  for (let at = 0; at <= form.length; at += 1) {
    const reader = createFormReader('b');
    reader.push(Buffer.from(form.slice(0, at)));
    reader.push(Buffer.from(form.slice(at)));
    t.strictSame(reader.end(), expected, `cut at ${at}`);
  }
  const reader = createFormReader('b');
  for (const byte of Buffer.from(form)) reader.push(Buffer.of(byte));
  t.strictSame(reader.end(), expected, 'byte by byte');

  const body = new FormData();
  body.append('purpose', 'batch');
  t.match(await (await fetch(`${demo.url}/files`, { method: 'POST', body })).json(), { error: { param: 'file' } });
});

t.test('speech is a WAV of the length that its head says', async (t) => {
  const response = await openai.audio.speech.create({ model: 'any', voice: 'alloy', input: 'three short words' });
  const wav = Buffer.from(await response.arrayBuffer());
  t.equal(response.headers.get('content-type'), 'audio/wav');
  t.equal(response.headers.get('transfer-encoding'), 'chunked');
  t.equal(wav.toString('latin1', 0, 4) + wav.toString('latin1', 8, 16), 'RIFFWAVEfmt ');
  t.equal(wav.readUInt32LE(4), wav.length - 8);
  t.equal(wav.readUInt32LE(40), wav.length - 44);
  t.ok(wav.subarray(44).some((byte) => byte !== 0));
  await t.rejects(openai.audio.speech.create({ model: 'any', voice: 'alloy', input: 'x', response_format: 'mp3' }), { message: /^400/ });
});

t.test('errors come in the form of OpenAI, and name the parameter at fault', async (t) => {
  await t.rejects(openai.chat.completions.create({ ...chat('hi'), model: 'no-such-model' }), { status: 404, code: 'model_not_found' });
  await t.rejects(openai.models.retrieve('no-such-model'), { status: 404, code: 'model_not_found' });
  const cases: [path: string, body: unknown, status: number, param: string | null][] = [
    ['/chat/completions', '{"model":', 400, null],
    ['/chat/completions', '[]', 400, null],
    ['/chat/completions', { messages: user('hi') }, 400, 'model'],
    ['/chat/completions', { model: 'demo' }, 400, 'messages'],
    ['/chat/completions', { model: 'demo', messages: [{ content: 'hi' }] }, 400, 'messages[0].role'],
    ['/chat/completions', chat('hi', { n: 0 }), 400, 'n'],
    ['/chat/completions', chat('hi', { stream: 'yes' }), 400, 'stream'],
    ['/chat/completions', chat('hi', { stream_options: { include_usage: true } }), 400, 'stream_options'],
    ['/completions', { model: 'demo' }, 400, 'prompt'],
    ['/responses', { model: 'demo' }, 400, 'input'],
    ['/embeddings', { model: 'demo' }, 400, 'input'],
    ['/embeddings', { model: 'demo', input: 'x', dimensions: 1e9 }, 400, 'dimensions'],
    ['/audio/speech', { model: 'demo', voice: 'alloy' }, 400, 'input'],
    ['/files', 'x', 400, null],
    ['/nothing', {}, 404, null],
    ['/models', {}, 405, null],
  ];
  for (const [path, body, status, param] of cases) {
    const response = await post(path, body);
    const { error } = (await response.json()) as { error: { param: string | null } };
    t.strictSame([response.status, error.param], [status, param], `${path} ${JSON.stringify(body)}`);
    t.match(error, { message: /\S/, type: 'invalid_request_error' });
  }
  t.equal((await post('/models', {})).headers.get('allow'), 'GET');
  const slow = await post('/chat/completions', chat('hi'), { headers: { 'x-demo-ttft-ms': 'soon' } });
  t.match(await slow.json(), { error: { param: 'x-demo-ttft-ms' } });
  t.equal(slow.headers.get('server'), 'sluicegate-demo');

  const models = await openai.models.list();
  t.strictSame(
    models.data.map(({ id }) => id),
    ['demo', 'demo-reasoning'],
  );
  t.equal((await openai.models.retrieve('org/any model')).id, 'org/any model');
});

t.test('an answer breaks off where a request asks for that: a stream after so many tokens, a whole one with a 500', async (t) => {
  const headers = { 'x-demo-cut-after': '3' };
  const stream = await post('/chat/completions', chat('say 10 tokens', { stream: true }), { headers });
  const reader = stream.body!.pipeThrough(new TextDecoderStream()).getReader();
  let heard = '';
  await t.rejects(async () => {
    for (let next = await reader.read(); !next.done; next = await reader.read()) heard += next.value;
  }, 'it does not end like a whole one');
  // A connection that is destroyed may take the last of what was written along.
  t.ok((heard.match(/"content":"[^"]/g) ?? []).length <= 3);
  t.equal((await post('/chat/completions', chat('say 10 tokens'), { headers })).status, 500);
  t.equal((await post('/chat/completions', chat('say 3 tokens'), { headers })).status, 200);
});

t.test('a body over 64 MiB is refused, announced or not', async (t) => {
  const announced = request(`${demo.url}/chat/completions`, { method: 'POST', headers: { 'content-length': 64 * 1024 * 1024 + 1 } });
  announced.flushHeaders();
  const [response] = await once(announced, 'response');
  t.equal(response.statusCode, 413);
  announced.once('error', () => {}).destroy();

  const megabyte = new Uint8Array(1024 * 1024);
  const body = ReadableStream.from(
    (function* () {
      for (let i = 0; i < 65; i += 1) yield megabyte;
    })(),
  );
  const headers = { 'content-type': 'multipart/form-data; boundary=b' };
  const grown = await post('/files', '', { body, headers, duplex: 'half' });
  t.match([grown.status, await grown.json()], [413, { error: { code: 'request_too_large' } }]);
});

t.test('with a key it asks for that key', async (t) => {
  const locked = await startDemo({ host: '::1', port: 0 }, { ...FAST, key: 'sesame' });
  t.teardown(() => locked.close());
  t.match(locked.url, /^http:\/\/\[::1\]:\d+\/v1$/);
  const refused = new OpenAI({ baseURL: locked.url, apiKey: 'wrong', maxRetries: 0 }).models.list();
  await t.rejects(refused, { status: 401, code: 'invalid_api_key' });
  t.equal((await new OpenAI({ baseURL: locked.url, apiKey: 'sesame' }).models.list()).data.length, 2);
});

t.test('pace: headers come before the first token, tokens wait their turn, and leaving ends it at once', async (t) => {
  const own = await startDemo({ host: '127.0.0.1', port: 0 }, FAST);
  t.teardown(() => own.close());
  const body = JSON.stringify(chat('say 2000 tokens', { stream: true }));
  const open = (headers: Record<string, string>, signal: AbortSignal) =>
    fetch(`${own.url}/chat/completions`, { method: 'POST', body, headers, signal });

  const leave = new AbortController();
  const thinking = await open({ 'x-demo-ttft-ms': '3600000' }, leave.signal);
  const talking = await open({ 'x-demo-tokens-per-second': '0.001' }, leave.signal);
  const slowest = talking.body!.pipeThrough(new TextDecoderStream()).getReader();
  let heard = '';
  while (!heard.includes('"content":"Hello"')) heard += (await slowest.read()).value;
  t.equal((heard.match(/"content":"[^"]/g) ?? []).length, 1);
  let hasMore = false;
  void Promise.race([slowest.read(), thinking.body!.getReader().read()]).then(
    () => {
      hasMore = true;
    },
    () => {},
  );
  t.equal(payloads(await (await open({}, leave.signal)).text()).length, 2_003, 'a fast one is through meanwhile');
  t.notOk(hasMore, 'and the slow ones have said no more');
  t.strictSame(own.stats, { opened: 3, finished: 1, cut: 0 });

  leave.abort();
  t.strictSame(await waitForStats(own.url, ({ cut }) => cut === 2), { opened: 3, finished: 1, cut: 2 });
});

t.test('a reader that stops holds the writer back, and frees it by going on or by going', async (t) => {
  const PIECE = Buffer.alloc(64 * 1024);
  const held = new EventEmitter();
  let peakBytes = 0;
  const server = createServer(async (req, res) => {
    const gone = new AbortController();
    res.once('close', () => gone.abort());
    const call = { req, res, gone: gone.signal, query: new URLSearchParams(), pace: FAST };
    try {
      for (let i = 0; i < 256; i += 1) {
        const written = writePiece(call, PIECE);
        peakBytes = Math.max(peakBytes, res.writableLength);
        if (res.writableNeedDrain) held.emit('full');
        await written;
      }
      res.end();
    } catch (error) {
      held.emit('left', error);
    }
  });
  t.teardown(() => server.close());
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const { port } = server.address() as AddressInfo;

  const patient = request({ port, host: '127.0.0.1' }).end();
  const full = once(held, 'full');
  const [res] = await once(patient, 'response');
  await full;
  let bytes = 0;
  for await (const chunk of res) bytes += chunk.length;
  t.equal(bytes, 256 * PIECE.length);
  t.ok(peakBytes < 4 * PIECE.length, `${peakBytes} bytes waited at most`);

  const hasty = request({ port, host: '127.0.0.1' }).end();
  await once(hasty, 'response');
  const left = once(held, 'left');
  hasty.once('error', () => {}).destroy();
  t.match(await left, [{ name: 'AbortError' }]);
});

t.test('close ends live streams at once', async (t) => {
  const own = await startDemo({ host: '127.0.0.1', port: 0 }, { ttftMs: 0, tokensPerSecond: 0.001 });
  const response = await fetch(`${own.url}/chat/completions`, { method: 'POST', body: JSON.stringify(chat('hi', { stream: true })) });
  const text = response.text();
  await Promise.all([t.rejects(text), own.close()]);
  t.strictSame(own.stats, { opened: 1, finished: 0, cut: 1 });
  await t.rejects(fetch(own.url));
  await own.close();
});

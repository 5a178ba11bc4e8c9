// Promise: a silent stream is kept alive by comments that no reader takes for an event, and by headers before the upstream has any.
import { gzipSync } from 'node:zlib';
import t, { type Test } from 'tap';
import { startTestGateway, type TestGateway } from '../support/gateway.ts';
import { type ScriptedUpstream, startUpstream, type UpstreamRequest } from '../support/upstream.ts';
import { connect, type WireClient } from '../support/wire.ts';

t.jobs = 4;

const delta = (content: string) => ({ choices: [{ index: 0, delta: { content }, finish_reason: null }] });
const framed = (data: object) => `data: ${JSON.stringify(data)}\n\n`;
const json = { 'content-type': 'application/json' };
const streamed = { method: 'POST', target: '/v1/chat/completions', headers: json, body: '{"model":"m","stream":true}' };
const HEARTBEAT = ':\n\n';

interface Stage {
  readonly upstream: ScriptedUpstream;
  readonly gateway: TestGateway;
}

async function stage(t: Test, sse: object, settings: Record<string, object> = {}): Promise<Stage> {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  return { upstream, gateway: await startTestGateway(t, upstream.url, { sse, ...settings }) };
}

interface Call {
  readonly client: WireClient;
  readonly request: UpstreamRequest;
}

async function call({ upstream, gateway }: Stage, sent: object = streamed): Promise<Call> {
  const client = await connect(gateway.port);
  client.request({ ...streamed, ...sent });
  return { client, request: await upstream.request() };
}

/** A stream whose first bytes its client has. */
async function begin(on: Stage, bytes: string, headers: Record<string, string> = {}): Promise<Call> {
  const stream = await call(on);
  stream.request.startSse(headers);
  stream.request.chunk(bytes);
  await stream.client.read(Buffer.byteLength(bytes));
  return stream;
}

/** Waits until a stream beside those under test, begun after them, has had its heart beat four times. */
async function fourBeats(t: Test, on: Stage): Promise<void> {
  const { client, request } = await begin(on, framed(delta('beside')));
  for (let n = 0; n < 4; n += 1) t.equal(await client.until(HEARTBEAT), HEARTBEAT);
  client.destroy();
  await request.connection.closed;
  t.equal((await on.gateway.ended()).outcome, 'client_closed');
}

async function finish({ client, request }: Call): Promise<string> {
  request.event('[DONE]');
  request.endChunks();
  return (await client.body()).toString('latin1');
}

t.test('a comment and a blank line after so much silence, and again; all else is the upstream’s', { buffered: true }, async (t) => {
  const on = await stage(t, { heartbeat: '60ms' });
  const stream = await call(on);
  // Taken before anything that the beat is counted from: a busy machine can only make it later.
  const beforeAt = performance.now();
  stream.request.startSse();
  await stream.client.head();
  t.equal(await stream.client.until(HEARTBEAT), HEARTBEAT, 'before the first event too');
  t.ok(performance.now() - beforeAt > 50, 'not at once');
  stream.request.event(delta('one'));
  t.equal(await stream.client.until('\n\n').then((text) => text.replaceAll(HEARTBEAT, '')), framed(delta('one')));
  const silentSince = performance.now();
  for (let n = 1; n <= 3; n += 1) {
    t.equal(await stream.client.until(HEARTBEAT), HEARTBEAT);
    t.ok(performance.now() - silentSince > 60 * n - 30, `beat ${n} after ${Math.round(performance.now() - silentSince)} ms`);
  }
  stream.request.chunk('data: 1\r\n\r\n');
  await stream.client.until('data: 1\r\n\r\n');
  t.equal(await stream.client.until(HEARTBEAT), HEARTBEAT, 'behind CRLF');
  const body = await finish(stream);
  t.equal(body.replaceAll(HEARTBEAT, ''), `${framed(delta('one'))}data: 1\r\n\r\ndata: [DONE]\n\n`);
  t.match(await on.gateway.ended(), { outcome: 'completed', tokens: { output: 1 } });
});

t.test('never into an event that is open, wherever it was torn', { buffered: true }, async (t) => {
  const on = await stage(t, { heartbeat: '40ms' });
  const torn = ['d', 'data: {"half', 'data: 1\n', 'event: x\n', 'data: 1\r\n\r', `${framed(delta('one'))}: c`, 'data: 1\r\n'];
  const streams = await Promise.all(torn.map((bytes) => begin(on, bytes).then((stream) => ({ ...stream, bytes }))));
  await fourBeats(t, on);
  for (const { client, bytes } of streams) t.ok(client.raw().toString().endsWith(`${bytes}\r\n`), JSON.stringify(bytes));
  for (const { client, request, bytes } of streams) {
    request.chunk('\n\n');
    request.chunk('data: [DONE]\n\n');
    request.endChunks();
    t.equal((await client.body()).toString().replaceAll(`\n\n${HEARTBEAT}`, '\n\n'), `${bytes}\n\ndata: [DONE]\n\n`, JSON.stringify(bytes));
  }
});

t.test('without the blank line once the stream has carried id: or retry:', { buffered: true }, async (t) => {
  const on = await stage(t, { heartbeat: '40ms' });
  await Promise.all(
    ['id: 7\n', 'retry: 3000\n', 'id\n'].map(async (field) => {
      const bytes = `${field}${framed(delta('one'))}`;
      const stream = await begin(on, bytes);
      t.equal(await stream.client.until('\n'), ':\n');
      t.equal(await stream.client.until('\n'), ':\n', 'and again');
      const rest = (await finish(stream)).slice(bytes.length);
      t.match(rest, /^(:\n)+data: \[DONE\]\n\n$/, 'the next event begins a line of its own');
    }),
  );
});

t.test('not into compressed streams, and not into what is no event stream', { buffered: true }, async (t) => {
  const on = await stage(t, { heartbeat: '40ms' });
  const packed = gzipSync(framed(delta('one')));
  const compressed = await call(on);
  compressed.request.startSse({ 'content-encoding': 'gzip' });
  compressed.request.chunk(packed);
  t.same(await compressed.client.read(packed.length), packed);
  const plain = await call(on, { body: '{"model":"m"}' });
  plain.request.startSse(json);
  plain.request.chunk('{"a":');
  t.equal(await plain.client.until('{"a":'), '{"a":');
  await fourBeats(t, on);
  compressed.request.endChunks();
  plain.request.chunk('1}');
  plain.request.endChunks();
  t.same(await compressed.client.body(), packed);
  t.equal((await plain.client.body()).toString(), '{"a":1}');
});

t.test('they count as nothing: not as events, not as meaning, not as a first byte or token', { buffered: true }, async (t) => {
  const on = await stage(t, { heartbeat: '30ms' }, { upstream: { timeouts: { idle: '600ms', firstByte: '600ms' } } });
  const stream = await begin(on, framed(delta('one')));
  const told = await stream.client.until('}}\n\n');
  t.match(told, /^(:\n\n){3,}data: \{"error":.*"code":"upstream_idle_timeout".*\n\n$/, 'idle fires for all of them');
  t.match(await stream.client.closed, { isComplete: false });
  await stream.request.connection.closed;
  t.match(await on.gateway.ended(), { outcome: 'timeout_idle', tokens: { output: 1, outputSource: 'counted' } });

  const mute = await call(on);
  mute.request.startSse();
  t.match(await mute.client.until('}}\n\n'), /^(:\n\n){3,}data: \{"error":.*"code":"upstream_timeout".*\n\n$/, 'and so does firstByte');
  t.match(await mute.client.closed, { isComplete: false });
  const line = await on.gateway.ended();
  t.match(line, { outcome: 'timeout_first_byte', tokens: undefined });
  t.equal(line.ttftMs, undefined);
  const metrics = await on.gateway.metrics();
  t.equal(metrics.value('sluicegate_relayed_events_total'), 1);
  t.equal(metrics.value('sluicegate_time_to_first_token_seconds_count'), 1);
  t.equal(metrics.value('sluicegate_streams_active') ?? 0, 0);
});

t.test('a client that leaves between two beats frees its upstream', { buffered: true }, async (t) => {
  const on = await stage(t, { heartbeat: '40ms' });
  const { client, request } = await begin(on, framed(delta('one')));
  await client.until(HEARTBEAT);
  client.reset();
  await request.connection.closed;
  t.match(await on.gateway.ended(), { outcome: 'client_closed', phase: 'stream' });
});

const early = { heartbeat: '40ms', earlyHeaders: '80ms' };

t.test('early headers: 200 and heartbeats before the upstream has answered, then the stream', { buffered: true }, async (t) => {
  const on = await stage(t, early);
  const beforeAt = performance.now();
  const stream = await call(on);
  const head = await stream.client.head();
  t.ok(performance.now() - beforeAt > 70, 'not at once');
  t.match(head, {
    status: 200,
    headers: {
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache, no-transform',
      'x-accel-buffering': 'no',
      'transfer-encoding': 'chunked',
      'x-request-id': String,
    },
  });
  t.equal(head.headers['content-length'], undefined);
  t.equal(await stream.client.until(HEARTBEAT), HEARTBEAT);
  t.equal(await stream.client.until(HEARTBEAT), HEARTBEAT);
  stream.request.startSse();
  stream.request.event(delta('one'));
  await stream.client.until(framed(delta('one')));
  const body = await finish(stream);
  t.equal(body.replaceAll(HEARTBEAT, ''), `${framed(delta('one'))}data: [DONE]\n\n`);
  t.match(await on.gateway.ended(), { outcome: 'completed', requestId: head.headers['x-request-id'], tokens: { output: 1 } });

  const prompt = await call(on);
  prompt.request.startSse({ 'x-of-upstream': 'kept' });
  t.equal((await prompt.client.head()).headers['x-of-upstream'], 'kept', 'an upstream that answers in time has its own headers');
  await finish(prompt);
  t.equal(await on.gateway.ended().then(({ outcome }) => outcome), 'completed');
});

/** What an upstream may still do after a 200 has gone out in its name. */
const troubles: Record<string, { act(request: UpstreamRequest): void; code: RegExp; outcome: string }> = {
  'an error status': {
    act: (request) => request.respond(429, json, '{"error":{"message":"slow down","code":"x"}}'),
    code: /"message":"slow down",.*"code":"x"|"code":"x","message":"slow down"/,
    outcome: 'upstream_error',
  },
  'a 401 to our key': {
    act: (request) => request.respond(401, json, '{"error":{"message":"bad sk-upstream-canary"}}'),
    code: /"code":"upstream_auth"/,
    outcome: 'upstream_error',
  },
  'a reset': { act: (request) => request.connection.reset(), code: /"code":"upstream_reset"/, outcome: 'upstream_reset' },
  'an answer that is no event stream': {
    act: (request) => request.respond(200, json, '{"object":"chat.completion"}'),
    code: /"code":"upstream_error"/,
    outcome: 'upstream_truncated',
  },
  silence: { act() {}, code: /"code":"upstream_timeout"/, outcome: 'timeout_first_byte' },
};

for (const [what, { act, code, outcome }] of Object.entries(troubles)) {
  t.test(`early headers, then ${what}: an error event in the dialect, and no proper end`, { buffered: true }, async (t) => {
    const on = await stage(t, early, { upstream: { timeouts: { firstByte: '1s' } } });
    const forms = {
      '/v1/chat/completions': /^data: \{"error":\{/m,
      '/v1/responses': /^event: error\ndata: \{"type":"error","sequence_number":\d+,/m,
      '/v1/messages': /^event: error\ndata: \{"type":"error","error":\{/m,
    };
    async function play({ client, request }: Call, form: RegExp): Promise<void> {
      t.equal((await client.head()).status, 200);
      await client.until(HEARTBEAT);
      act(request);
      t.match(await client.closed, { isComplete: false }, 'the body stays incomplete');
      const body = client.raw().toString('latin1');
      t.match(body, form);
      t.match(body, code);
      t.notMatch(body, /DONE|canary|^0\r\n/m);
      t.equal((await on.gateway.ended()).outcome, outcome);
      await request.connection.closed;
    }
    const playing: Promise<void>[] = [];
    for (const [target, form] of Object.entries(forms)) playing.push(play(await call(on, { target }), form));
    await Promise.all(playing);
    const metrics = await on.gateway.metrics();
    t.equal(metrics.value('sluicegate_streams_active') ?? 0, 0);
    t.equal(metrics.value('sluicegate_requests_total'), 3, 'one outcome each');
    t.notMatch(on.gateway.output, 'canary');
  });
}

t.test('early headers: only for stream: true at the top of the body, and never without being asked for', { buffered: true }, async (t) => {
  const on = await stage(t, early);
  const byDefault = await stage(t, { heartbeat: '40ms' });
  const bodies = [
    '{"model":"m"}',
    '{"stream":false}',
    '{"messages":[{"stream":true}]}',
    '{"metadata":{"stream":true},"stream":false}',
    '[]',
    '',
  ];
  const untouched = await Promise.all([
    ...bodies.map((body) => call(on, { body })),
    call(on, { headers: {} }),
    call(on, { headers: { ...json, 'content-encoding': 'gzip' } }),
    call(byDefault),
  ]);
  const control = await call(on);
  t.equal((await control.client.head()).status, 200);
  for (let n = 0; n < 4; n += 1) await control.client.until(HEARTBEAT);
  for (const { client } of untouched) t.equal(client.raw().length, 0, 'not a byte before the upstream’s');
  for (const { client, request } of untouched) {
    request.respond(429, { 'content-type': 'application/json', 'retry-after': '7' }, '{"error":{}}');
    t.match(await client.head(), { status: 429, headers: { 'retry-after': '7' } });
    t.equal((await client.body()).toString(), '{"error":{}}');
  }
  control.client.reset();
  await control.request.connection.closed;
});

t.test('early headers: a client that leaves before the upstream has answered frees it', { buffered: true }, async (t) => {
  const on = await stage(t, early);
  const { client, request } = await call(on);
  await client.until(HEARTBEAT);
  client.reset();
  await request.connection.closed;
  t.match(await on.gateway.ended(), { outcome: 'client_closed' });
});

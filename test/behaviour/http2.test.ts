// Promise: over TLS a client may speak HTTP/2 or HTTP/1.1, and is served as without: event by event, freed in milliseconds, told the truth.
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { constants } from 'node:http2';
import { request as requestHttps } from 'node:https';
import { type AddressInfo, createServer } from 'node:net';
import { join } from 'node:path';
import { connect as connectTls } from 'node:tls';
import { promisify } from 'node:util';
import t, { type Test } from 'tap';
import {
  connectFrames,
  connectH2,
  END_HEADERS,
  END_STREAM,
  FRAME,
  fields,
  frame,
  type H2Client,
  head,
  type SecureGateway,
  startSecureGateway,
} from '../support/h2.ts';
import { runSluicegate } from '../support/process.ts';
import { openSession, startSessions } from '../support/sessions.ts';
import { createCertificate } from '../support/tls.ts';
import { type ScriptedUpstream, startUpstream } from '../support/upstream.ts';
import { connect } from '../support/wire.ts';

const run = promisify(execFile);
const BOUND_MS = 100;
const chat = { ':method': 'POST', ':path': '/v1/chat/completions', 'content-type': 'application/json' };
const content = (text: string) => ({ choices: [{ index: 0, delta: { content: text } }] });

interface Scene {
  readonly upstream: ScriptedUpstream;
  readonly gateway: SecureGateway;
  readonly client: H2Client;
}

async function play(t: Test, settings: Record<string, object> = {}, clientOptions: object = {}): Promise<Scene> {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startSecureGateway(t, upstream.url, settings);
  return { upstream, gateway, client: await connectH2(t, gateway.port, gateway.cert, clientOptions) };
}

/** Begins a stream and brings it to its first event. */
async function openStream({ client, upstream }: Scene, text: string) {
  const call = client.call();
  const request = await upstream.request();
  request.startSse();
  request.event(content(text));
  await call.until(text);
  return { call, request };
}

async function hasStopped(gateway: SecureGateway, direction: 'in' | 'out'): Promise<number> {
  for (let last = -1; ; ) {
    const relayed = (await gateway.metrics()).value('sluicegate_relayed_bytes_total', { direction }) ?? 0;
    if (relayed === last && relayed > 0) return relayed;
    last = relayed;
  }
}

t.test('A1 a stream comes event by event: none is sent before the one before has arrived', async (t) => {
  const { upstream, gateway, client } = await play(t);
  const call = client.call();
  const request = await upstream.request();
  request.startSse();
  const { status, headers } = await call.head();
  t.equal(status, 200);
  t.match(headers, {
    'content-type': 'text/event-stream; charset=utf-8',
    'x-accel-buffering': 'no',
    'cache-control': 'no-cache, no-transform',
  });
  for (const name of ['connection', 'keep-alive', 'transfer-encoding', 'content-length']) t.notOk(name in headers, name);
  for (let n = 0; n < 20; n++) {
    request.event(content(`event ${n};`));
    await call.until(`event ${n};`);
  }
  request.chunk('data: [DONE]\n\n');
  request.endChunks();
  t.match(await call.body(), /\[DONE\]\n\n$/);
  t.match(await gateway.ended(), { outcome: 'completed', status: 200, remoteAddress: '127.0.0.1' });
});

t.test('what goes up is as from HTTP/1.1: no pseudo-headers, no cookies, a body of its length, or in chunks', async (t) => {
  const { upstream, gateway, client } = await play(t);
  const call = client.call(
    {
      ...chat,
      ':path': '/v1/files?x=%2F',
      'content-length': 5,
      te: 'trailers',
      cookie: ['a=1', 'b=2'],
      'x-own': 'kept',
      authorization: 'Bearer mine',
    },
    'hello',
  );
  const request = await upstream.request();
  t.equal(request.target, '/v1/files?x=%2F');
  t.equal((await request.body()).toString(), 'hello');
  t.notMatch(request.head, /^(?::|cookie|te:|transfer-encoding)/im);
  t.match(request.headers, { host: `127.0.0.1:${upstream.port}`, 'content-length': '5', 'x-own': 'kept' });
  t.notMatch(request.head, /mine/);
  request.respond(200, { 'Set-Cookie': 'x=1', 'X-Two': 'a', 'Content-Type': 'text/plain' }, 'fine');
  t.match((await call.head()).headers, { 'x-two': 'a', 'content-length': '4', 'x-sluicegate-upstream': 'main' });
  t.equal(await call.body(), 'fine');
  await gateway.ended();

  const unmeasured = client.call({ ...chat, ':path': '/v1/files' });
  unmeasured.stream.write('one,');
  const second = await upstream.request();
  await second.bodyBytes(4);
  unmeasured.stream.end('two');
  t.equal((await second.body()).toString(), 'one,two');
  t.equal(second.headers['transfer-encoding'], 'chunked');
  second.respond(
    200,
    [
      ['X-Twice', 'a'],
      ['X-Twice', 'b'],
      ['Content-Type', 'text/plain'],
      ['ETag', '"1"'],
      ['ETag', '"2"'],
    ],
    'fine',
  );
  t.equal((await unmeasured.head()).headers['x-twice'], 'a, b');
  t.equal(await unmeasured.body(), 'fine');
});

t.test('answers without a body: HEAD, 204 and 304', async (t) => {
  const { upstream, gateway, client } = await play(t);
  for (const [method, status] of [
    ['HEAD', 200],
    ['GET', 204],
    ['GET', 304],
  ] as const) {
    const call = client.call({ ':method': method, ':path': '/v1/models' });
    const request = await upstream.request();
    t.equal(request.method, method);
    request.connection.write(`HTTP/1.1 ${status} X\r\n${status === 200 ? 'content-length: 1000\r\n' : ''}\r\n`);
    t.equal((await call.head()).status, status);
    t.equal(await call.body(), '');
    t.match(await gateway.ended(), { outcome: 'completed', status });
  }
  t.match((await client.call({ ':path': '/healthz' }).head()).status, 200);
  t.equal(await client.call({ ':path': '/readyz' }).body(), 'ready\n');
});

t.test('a client that waits with its body is told to go on, and one whose key is wrong is not', async (t) => {
  const { upstream, client } = await play(t);
  const call = client.call({ ...chat, ':path': '/v1/files', expect: '100-continue' });
  await once(call.stream, 'continue');
  call.stream.end('the body');
  const request = await upstream.request();
  t.equal((await request.body()).toString(), 'the body');
  t.equal(request.headers.expect, undefined);
  request.respond(200, {}, 'ok');
  t.equal(await call.body(), 'ok');
  t.equal((await client.call({ ...chat, expect: 'wonders' }, '').head()).status, 400);
});

interface Leaving {
  /** Without a code the connection ends. */
  leave(code: number | undefined): void;
  readonly closed: Promise<{ at: number }>;
}

const leaveBy = (client: H2Client, call: ReturnType<H2Client['call']>) => (code: number | undefined) =>
  code === undefined ? client.session.destroy() : call.cancel(code);

/** Brings a call to a phase. */
const phases: Record<string, { expected: string; arrange(scene: Scene): Promise<Leaving> }> = {
  'while it uploads': {
    expected: 'upload',
    async arrange({ upstream, gateway }) {
      // Node's client ends a body before it resets its stream.
      const client = await connectFrames(t, gateway.port);
      client.send(frame(FRAME.headers, END_HEADERS, 1, head('POST', '/v1/files')), frame(FRAME.data, 0, 1, Buffer.from('some bytes')));
      const request = await upstream.request();
      await request.bodyBytes(10);
      return {
        closed: request.connection.closed,
        leave(code) {
          if (code === undefined) client.socket.destroy();
          else client.send(frame(FRAME.rst, 0, 1, Buffer.from([0, 0, 0, code])));
        },
      };
    },
  },
  'in an upload that the upstream does not read': {
    expected: 'upload',
    async arrange({ client, upstream, gateway }) {
      const call = client.call({ ...chat, ':path': '/v1/files' });
      call.stream.write('begin');
      const request = await upstream.request();
      await request.bodyBytes(5);
      request.connection.pauseReading();
      for (let n = 0; n < 200; n++) call.stream.write(Buffer.alloc(100_000, 'x'));
      await hasStopped(gateway, 'in');
      const closed = gateway.ended().then(() => ({ at: performance.now() }));
      return { leave: leaveBy(client, call), closed };
    },
  },
  'while it waits for headers': {
    expected: 'headers',
    async arrange({ client, upstream }) {
      const call = client.call();
      const request = await upstream.request();
      await request.body();
      return { leave: leaveBy(client, call), closed: request.connection.closed };
    },
  },
  'between two events': {
    expected: 'stream',
    async arrange(scene) {
      const { call, request } = await openStream(scene, 'Hello there');
      return { leave: leaveBy(scene.client, call), closed: request.connection.closed };
    },
  },
  'when it has stopped reading': {
    expected: 'backpressure',
    async arrange(scene) {
      const { call, request } = await openStream(scene, 'Hello there');
      call.stream.pause();
      for (let n = 0; n < 300; n++) request.event(content('x'.repeat(60_000)));
      await hasStopped(scene.gateway, 'out');
      return { leave: leaveBy(scene.client, call), closed: request.connection.closed };
    },
  },
};

for (const [name, { expected, arrange }] of Object.entries(phases)) {
  for (const [how, code] of Object.entries({
    CANCEL: constants.NGHTTP2_CANCEL,
    NO_ERROR: constants.NGHTTP2_NO_ERROR,
    'its end': undefined,
  })) {
    t.test(`A1 A2 A3 who leaves ${name}, by ${how}, frees the upstream and disturbs nobody`, async (t) => {
      const scene = await play(t);
      const { gateway, client } = scene;
      const other = { ...scene, client: code === undefined ? await connectH2(t, gateway.port, gateway.cert) : client };
      const sibling = await openStream(other, 'sibling');
      const { leave, closed } = await arrange(scene);
      const leftAtMs = performance.now();
      leave(code);
      const { at } = await closed;
      t.ok(at - leftAtMs < BOUND_MS, `after ${(at - leftAtMs).toFixed(1)} ms`);
      if (name !== 'in an upload that the upstream does not read')
        t.match(await gateway.ended(), { outcome: 'client_closed', phase: expected });
      sibling.request.event(content('undisturbed'));
      await sibling.call.until('undisturbed');
      sibling.request.chunk('data: [DONE]\n\n');
      sibling.request.endChunks();
      await sibling.call.body();
      t.match(await gateway.ended(), { outcome: 'completed' });
      const metrics = await gateway.metrics();
      t.equal(metrics.value('sluicegate_streams_active') ?? 0, 0);
      t.equal(metrics.value('sluicegate_upstream_connections', { state: 'active' }), 0);
      t.equal(metrics.value('sluicegate_requests_total', { outcome: 'client_closed' }), 1, 'counted once');
    });
  }
}

for (const code of [constants.NGHTTP2_NO_ERROR, constants.NGHTTP2_CANCEL]) {
  t.test(`A2 an upload that is reset with ${code} never goes up as a whole one`, async (t) => {
    const { upstream, gateway } = await play(t);
    const client = await connectFrames(t, gateway.port);
    const reset = frame(FRAME.rst, 0, 1, Buffer.from([0, 0, 0, code]));
    client.send(frame(FRAME.headers, END_HEADERS, 1, head('POST', '/v1/files')), frame(FRAME.data, 0, 1, Buffer.from('half of it')));
    const request = await upstream.request();
    await request.bodyBytes(10);
    client.send(frame(FRAME.data, 0, 1, Buffer.from('and the rest')), reset);
    await request.connection.closed;
    t.notMatch(request.connection.bytes.toString(), /\r\n0\r\n\r\n$/);
  });
}

t.test('the end of a connection frees all of its streams', async (t) => {
  const { upstream, gateway, client } = await play(t);
  for (let n = 0; n < 100; n++) client.call();
  const requests = [];
  for (let n = 0; n < 100; n++) requests.push(await upstream.request());
  const closed = Promise.all(requests.map(({ connection }) => connection.closed));
  const leftAtMs = performance.now();
  client.session.destroy();
  const at = Math.max(...(await closed).map((ending) => ending.at));
  t.ok(at - leftAtMs < 500, `after ${(at - leftAtMs).toFixed(1)} ms`);
  for (let n = 0; n < 100; n++) t.match(await gateway.ended(), { outcome: 'client_closed' });
});

t.test('a stream that nobody reads holds its upstream back, is reset in time, and its siblings go on', async (t) => {
  const scene = await play(t, { server: { clientStall: '300ms' } });
  const stalled = await openStream(scene, 'stalled');
  const sibling = await openStream(scene, 'sibling');
  stalled.call.stream.pause();
  for (let n = 0; n < 300; n++) stalled.request.event(content('x'.repeat(60_000)));
  const relayed = await hasStopped(scene.gateway, 'out');
  t.ok(relayed < 1024 * 1024, `${relayed} bytes were taken`);
  sibling.request.event(content('while it is held back'));
  await sibling.call.until('while it is held back');
  t.match(await scene.gateway.ended(), { outcome: 'client_stalled' });
  await stalled.request.connection.closed;
  stalled.call.stream.resume();
  t.match(await stalled.call.ended(), { isComplete: false, code: constants.NGHTTP2_INTERNAL_ERROR });
  sibling.request.event(content('and after'));
  await sibling.call.until('and after');
});

t.test('a connection that nobody reads is reset in the end, over HTTP/1.1 too', async (t) => {
  const { upstream, gateway } = await play(t, { server: { clientStall: '300ms' } });
  const socket = connectTls({ port: gateway.port, host: '127.0.0.1', ca: gateway.cert, ALPNProtocols: ['http/1.1'] });
  t.teardown(() => socket.destroy());
  const closed = new Promise<NodeJS.ErrnoException | undefined>((resolve) =>
    socket.once('error', resolve).once('close', () => resolve(undefined)),
  );
  await once(socket, 'secureConnect');
  socket.write('POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 27\r\n\r\n{"model":"m","stream":true}');
  const request = await upstream.request();
  request.startSse();
  for (let n = 0; n < 300; n++) request.event(content('x'.repeat(60_000)));
  t.match(await gateway.ended(), { outcome: 'client_stalled' });
  await request.connection.closed;
  socket.resume();
  t.equal((await closed)?.code, 'ECONNRESET');
});

t.test('heartbeats beat', async (t) => {
  const scene = await play(t, { sse: { heartbeat: '50ms' } });
  const { call } = await openStream(scene, 'and then silence');
  await call.until('\n\n:\n\n:\n\n');
});

t.test('what breaks between events is told as one, and then the stream is reset; inside one it is reset at once', async (t) => {
  const scene = await play(t);
  const between = await openStream(scene, 'first');
  const brokeAtMs = performance.now();
  between.request.connection.reset();
  await between.call.until('"code":"upstream_reset"');
  const told = await between.call.ended();
  t.match(told, { isComplete: false, code: constants.NGHTTP2_INTERNAL_ERROR });
  t.ok(told.at - brokeAtMs > 900, 'with a second to read it');
  const inside = await openStream(scene, 'first');
  inside.request.chunk('data: {"choi');
  await inside.call.until('choi');
  const cutAtMs = performance.now();
  inside.request.connection.reset();
  const cut = await inside.call.ended();
  t.match(cut, { isComplete: false, code: constants.NGHTTP2_INTERNAL_ERROR });
  t.ok(cut.at - cutAtMs < 500, 'at once');
  t.notMatch(inside.call.text, /upstream_reset/);
  for (let n = 0; n < 2; n++) t.match(await scene.gateway.ended(), { outcome: 'upstream_reset' });
  t.equal((await scene.client.call({ ':path': '/healthz' }).head()).status, 200, 'the connection stays');
});

t.test('refusals have the form of errors, and the connection stays', async (t) => {
  const { upstream, gateway, client } = await play(t, { server: { maxRequestBody: '100KiB' } });
  async function assertRefused(call: ReturnType<H2Client['call']>, expected: number, code: string): Promise<void> {
    const { status, headers } = await call.head();
    t.equal(status, expected, code);
    t.equal(headers['content-type'], 'application/json');
    t.match(JSON.parse(await call.body()), { error: { code } });
  }
  await assertRefused(client.call({ ':path': '/nope' }), 404, 'not_found');
  await assertRefused(client.call({ ':path': '/v1/../../x' }), 400, 'invalid_request');
  await assertRefused(client.call({ ':path': '/v1/x', ':authority': 'evil.example' }), 403, 'forbidden_origin');
  await assertRefused(client.call({ ':path': '/v1/x', ':authority': 'localhost', host: 'evil.example' }), 400, 'invalid_request');
  await assertRefused(client.call({ ':path': '/v1/x', ':method': 'TRACE' }, ''), 405, 'method_not_allowed');
  await assertRefused(client.call({ ':path': '/v1/x', 'x-long': 'x'.repeat(17_000) }), 431, 'headers_too_large');
  await assertRefused(client.call({ ...chat, 'content-length': 200_000 }, Buffer.alloc(200_000)), 413, 'request_too_large');
  const growing = client.call({ ...chat, ':path': '/v1/files' });
  growing.stream.write(Buffer.alloc(150_000));
  await assertRefused(growing, 413, 'request_too_large');
  t.equal(upstream.requestCount, 1, 'only what was not announced had begun to go up');
  const tunnel = client.session.request({ ':method': 'CONNECT', ':authority': 'x:1' });
  t.equal(Number((await once(tunnel, 'response'))[0][':status']), 405);
  t.equal((await client.call({ ':path': '/healthz' }).head()).status, 200);
  t.notMatch(gateway.output, /failed inside/);
});

t.test('what is malformed on HTTP/2 is reset, and goes nowhere', async (t) => {
  const { upstream, gateway } = await play(t);
  const malformed: Record<string, Buffer> = {
    'a connection header': head('GET', '/v1/x', ['connection', 'close']),
    'a transfer-encoding': head('POST', '/v1/x', ['transfer-encoding', 'chunked']),
    'te other than trailers': head('GET', '/v1/x', ['te', 'gzip']),
    'upper case': head('GET', '/v1/x', ['X-Upper', '1']),
    'an unknown pseudo-header': head('GET', '/v1/x', [':status', '200']),
    'a pseudo-header behind others': fields([':method', 'GET'], [':scheme', 'https'], ['x', 'y'], [':path', '/v1/x']),
    'no path': fields([':method', 'GET'], [':scheme', 'https'], [':authority', 'localhost']),
    'neither authority nor host': fields([':method', 'GET'], [':scheme', 'https'], [':path', '/v1/x']),
    'two paths': fields([':method', 'GET'], [':scheme', 'https'], [':path', '/v1/x'], [':path', '/v1/y']),
    'an absolute path': fields([':method', 'GET'], [':scheme', 'https'], [':path', 'https://x/v1/x'], [':authority', 'localhost']),
    'an extended CONNECT': fields(
      [':method', 'CONNECT'],
      [':protocol', 'websocket'],
      [':scheme', 'https'],
      [':path', '/v1/realtime'],
      [':authority', 'localhost'],
    ),
  };
  for (const [name, block] of Object.entries(malformed)) {
    const client = await connectFrames(t, gateway.port);
    client.send(frame(FRAME.headers, END_STREAM | END_HEADERS, 1, block));
    const end = await client.frame(({ type }) => type === FRAME.rst || type === FRAME.goaway, `the reset of ${name}`);
    t.ok(
      [FRAME.rst, FRAME.goaway].some((type) => type === end.type),
      name,
    );
    client.socket.destroy();
  }
  const post = frame(FRAME.headers, END_HEADERS, 1, head('POST', '/v1/files', ['content-length', '10']));
  for (const [flags, body] of [
    [END_STREAM, 'short'],
    [0, 'longer than it said'],
  ] as const) {
    const client = await connectFrames(t, gateway.port);
    client.send(post, frame(FRAME.data, flags, 1, Buffer.from(body)));
    await client.frame(({ type }) => type === FRAME.rst || type === FRAME.goaway, `the reset of a body that is ${body}`);
  }
  const client = await connectFrames(t, gateway.port);
  // nghttp2 drops such a field, and the rest is a request like others.
  client.send(frame(FRAME.headers, END_STREAM | END_HEADERS, 1, head('GET', '/v1/dropped', ['x', 'a\r\nb: c'])));
  for (let request = await upstream.request(); ; request = await upstream.request()) {
    t.notMatch(request.head, /b: c/);
    if (request.target === '/v1/dropped') break;
  }
  for (const { bytes } of upstream.connections) t.notMatch(bytes.toString('latin1'), /GET \/v1\/x|\r\n0\r\n|longer/);
});

t.test('trailers of a request are read and forgotten', async (t) => {
  const { upstream, gateway } = await play(t);
  const client = await connectFrames(t, gateway.port);
  client.send(
    frame(FRAME.headers, END_HEADERS, 1, head('POST', '/v1/files')),
    frame(FRAME.data, 0, 1, Buffer.from('the body')),
    frame(FRAME.headers, END_STREAM | END_HEADERS, 1, fields(['x-trailer', 'secret'])),
  );
  const request = await upstream.request();
  t.equal((await request.body()).toString(), 'the body');
  t.notMatch(request.connection.bytes.toString(), /secret/);
  request.respond(200, {}, 'ok');
  await client.frame(({ type, flags }) => type === FRAME.data && (flags & END_STREAM) !== 0, 'the answer');
  t.notOk(client.frames.some(({ type, payload }) => type === FRAME.rst && payload.readUInt32BE(0) !== 0));
});

t.test('a drain says GOAWAY, lets live streams end, and then closes', async (t) => {
  const scene = await play(t, { server: { drain: '10s' } });
  const { call, request } = await openStream(scene, 'before');
  const goaway = once(scene.client.session, 'goaway');
  const drained = scene.gateway.drain();
  t.equal((await goaway)[0], constants.NGHTTP2_NO_ERROR);
  request.event(content('during'));
  await call.until('during');
  request.chunk('data: [DONE]\n\n');
  request.endChunks();
  t.match(await call.body(), /\[DONE\]/);
  await scene.client.closed();
  await drained;
  t.match(await scene.gateway.ended(), { outcome: 'completed' });
});

t.test('what does not end in a drain is told so', async (t) => {
  const scene = await play(t, { server: { drain: '50ms' } });
  const { call } = await openStream(scene, 'before');
  const drained = scene.gateway.drain();
  await call.until('"code":"draining"');
  t.match(await call.ended(), { isComplete: false, code: constants.NGHTTP2_INTERNAL_ERROR });
  await drained;
});

t.test('HTTP/1.1 over TLS: streams, keep-alive, the same cuts', async (t) => {
  const { upstream, gateway } = await play(t);
  const sent = requestHttps({ port: gateway.port, host: '127.0.0.1', ca: gateway.cert, method: 'POST', path: '/v1/chat/completions' });
  sent.end('{"model":"m","stream":true}');
  const request = await upstream.request();
  request.startSse();
  request.event(content('first'));
  const [answer] = await once(sent, 'response');
  t.match(answer.headers, { 'transfer-encoding': 'chunked', connection: 'keep-alive' });
  t.match((await once(answer, 'data')).toString(), /first/);
  request.chunk('data: {"choi');
  await once(answer, 'data');
  request.connection.reset();
  const [error] = await once(answer, 'error');
  t.equal(error.code, 'ECONNRESET');
  t.match(await gateway.ended(), { outcome: 'upstream_reset' });
});

t.test('a WebSocket over TLS goes through, and is closed on both sides', async (t) => {
  const upstream = await startSessions(t);
  const gateway = await startSecureGateway(t, upstream.url);
  for (const how of ['close', 'terminate'] as const) {
    const [client, session] = await Promise.all([openSession(t, gateway, { ca: gateway.cert }), upstream.session()]);
    client.socket.send('up');
    t.equal(String(await session.next()), 'up');
    session.socket.send('down');
    t.equal(String(await client.next()), 'down');
    client.socket[how]();
    await session.closed;
    t.match(await gateway.ended(), { status: 101 });
  }
});

t.test('C7 plain HTTP on the TLS port is closed, and TLS on it goes on', async (t) => {
  const { gateway, client } = await play(t);
  const plain = await connect(gateway.port);
  plain.send('GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n');
  await plain.closed;
  const junk = await connect(gateway.port);
  junk.send(Buffer.from([22, 3, 1, 255, 255, 1, 2, 3]));
  junk.reset();
  t.equal((await client.call({ ':path': '/healthz' }).head()).status, 200);
  t.equal((await gateway.metrics()).value('sluicegate_rejections_total', { reason: 'invalid_request' }), 1);
});

t.test('F6 SIGHUP reads the certificate again: new connections get it, live ones stay; bad files are refused, and off waits', async (t) => {
  const [first, second] = [createCertificate(), createCertificate()];
  const fileFor = (tls: string) =>
    `server: { listen: "127.0.0.1:0", tls: ${tls} }\nops: { listen: "127.0.0.1:0" }\nupstreams: { u: { baseUrl: "http://127.0.0.1:1", auth: none } }\n`;
  const secure = fileFor('{ cert: cert.pem, key: key.pem }');
  const folder = t.testdir({ 'g.yaml': secure, 'cert.pem': first.cert, 'key.pem': first.key });
  const running = runSluicegate(t, ['-c', 'g.yaml'], {}, folder);
  const port = Number((await running.said(/API +https:\/\/127\.0\.0\.1:(\d+)\/v1/))[1]);
  const live = await connectH2(t, port, first.cert);
  t.equal(await live.call({ ':path': '/healthz' }).body(), 'ok\n');
  const saysOk = async (cert: string) => t.equal(await (await connectH2(t, port, cert)).call({ ':path': '/healthz' }).body(), 'ok\n');

  writeFileSync(join(folder, 'cert.pem'), second.cert);
  running.child.kill('SIGHUP');
  await running.said(/the old one stays/);
  await saysOk(first.cert);
  writeFileSync(join(folder, 'key.pem'), second.key);
  writeFileSync(join(folder, 'cert.pem'), `${second.cert}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n`);
  running.child.kill('SIGHUP');
  await running.said(/cannot be used for TLS/);
  await saysOk(first.cert);
  writeFileSync(join(folder, 'cert.pem'), second.cert);
  running.child.kill('SIGHUP');
  await running.said(/configuration reloaded/);
  await saysOk(second.cert);
  t.equal(await live.call({ ':path': '/healthz' }).body(), 'ok\n', 'the connection that was there stays');

  writeFileSync(join(folder, 'g.yaml'), fileFor('off'));
  running.child.kill('SIGHUP');
  await running.said(/server\.tls changes only with a restart/);
  await saysOk(second.cert);
  t.notMatch(running.stdout + running.stderr, /PRIVATE KEY/);
});

t.test('ops on the same address are under TLS too', async (t) => {
  const probe = createServer().listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port } = probe.address() as AddressInfo;
  await new Promise((resolve) => probe.close(resolve));
  const address = `127.0.0.1:${port}`;
  const gateway = await startSecureGateway(t, 'http://127.0.0.1:1', {
    server: { listen: address },
    ops: { listen: address, token: 'ops-token' },
  });
  t.equal(gateway.opsUrl, `https://${address}`);
  const client = await connectH2(t, port, gateway.cert);
  t.equal((await client.call({ ':path': '/metrics' }).head()).status, 401);
  t.match(await client.call({ ':path': '/metrics', authorization: 'Bearer ops-token' }).body(), /sluicegate_build_info/);
});

t.test('server.maxConnections counts connections, whatever they speak', async (t) => {
  const { gateway } = await play(t, { server: { maxConnections: 2 } });
  const second = connectTls({ port: gateway.port, host: '127.0.0.1', ca: gateway.cert });
  await once(second, 'secureConnect');
  const third = await connect(gateway.port);
  await third.closed;
  second.destroy();
});

t.test(
  'h2load',
  {
    skip: await run('h2load', ['--version']).then(
      () => false,
      () => 'h2load is not installed',
    ),
  },
  async (t) => {
    const { upstream, gateway } = await play(t);
    // Node's client keeps the scripted upstream's answers apart; here they are all the same.
    const answers = (async () => {
      for (;;) (await upstream.request()).respond(200, { 'content-type': 'application/json' }, '{"object":"list"}');
    })().catch(() => undefined);
    const { stdout } = await run('h2load', ['-n', '2000', '-c', '4', '-m', '20', `https://127.0.0.1:${gateway.port}/v1/models`]);
    t.match(stdout, /Application protocol: h2/);
    t.match(stdout, /requests: 2000 total, 2000 started, 2000 done, 2000 succeeded, 0 failed, 0 errored, 0 timeout/);
    await upstream.close();
    await answers;
  },
);

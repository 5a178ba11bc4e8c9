// Promise: towards an HTTP/2 upstream many calls share a connection, each ends as truly as on one of its own, and none disturbs another.
import { createSecureServer, type IncomingHttpHeaders } from 'node:http2';
import type { AddressInfo } from 'node:net';
import t, { type Test } from 'tap';
import {
  CODE,
  FRAME,
  type FrameStream,
  type FrameUpstream,
  type FrameUpstreamOptions,
  startFrameUpstream,
} from '../support/frame-upstream.ts';
import { startTestGateway, type TestGateway, UPSTREAM_KEY } from '../support/gateway.ts';
import { createCertificate } from '../support/tls.ts';
import { startUpstream } from '../support/upstream.ts';
import { connect, type WireClient } from '../support/wire.ts';

const BOUND_MS = 100;
const certificate = createCertificate();
const sse = { 'content-type': 'text/event-stream' };
const done = 'data: [DONE]\n\n';

interface Scene {
  readonly upstream: FrameUpstream;
  readonly gateway: TestGateway;
}

async function newGateway(t: Test, url: string, settings: object = {}): Promise<TestGateway> {
  const caFile = `${t.testdir({ 'ca.pem': certificate.cert })}/ca.pem`;
  // On a busy machine 1,000 calls take longer than a heart's beat.
  return startTestGateway(t, url, { upstream: { http2: 'on', caFile, ...settings }, sse: { heartbeat: 'off' } });
}

async function newScene(t: Test, settings: object = {}, options: Partial<FrameUpstreamOptions> = {}): Promise<Scene> {
  const upstream = await startFrameUpstream({ tls: certificate, ...options });
  t.teardown(() => upstream.close());
  return { upstream, gateway: await newGateway(t, upstream.url, settings) };
}

function event(content: string): string {
  return `data: ${JSON.stringify({ choices: [{ index: 0, delta: { content } }] })}\n\n`;
}

async function call(gateway: TestGateway, model = 'm'): Promise<WireClient> {
  const client = await connect(gateway.port);
  const headers = { 'content-type': 'application/json' };
  client.request({ method: 'POST', target: '/v1/chat/completions', headers, body: JSON.stringify({ model, stream: true }) });
  return client;
}

/** A call whose stream has begun, with its first event at the client. */
async function streaming({ gateway, upstream }: Scene): Promise<{ client: WireClient; stream: FrameStream }> {
  const client = await call(gateway);
  const stream = await upstream.stream();
  await stream.whole();
  stream.head(200, sse);
  stream.data(event('Hello'));
  await client.until('Hello');
  return { client, stream };
}

async function connectionsOf(gateway: TestGateway): Promise<Record<string, number | undefined>> {
  const metrics = await gateway.metrics();
  const states = ['active', 'idle', 'queued'].map((state) => [state, metrics.value('sluicegate_upstream_connections', { state })]);
  return Object.fromEntries(states);
}

t.test(
  'A1 1,000 streams over at most ten connections, half of them given up: exactly those are reset, and no other loses a byte',
  async (t) => {
    const scene = await newScene(t);
    const { gateway, upstream } = scene;
    const streams = new Map<number, FrameStream>();
    const clients = await Promise.all(Array.from({ length: 1000 }, (_, n) => call(gateway, `m${n}`)));
    while (streams.size < 1000) {
      const stream = await upstream.stream();
      await stream.whole();
      streams.set(Number(JSON.parse(stream.body.toString()).model.slice(1)), stream);
      stream.head(200, sse);
      stream.data(event('first'));
    }
    await Promise.all(clients.map((client) => client.until('first')));
    t.ok(upstream.connections.length <= 10, `${upstream.connections.length} connections`);

    const tookMs: number[] = [];
    for (let from = 1; from < 1000; from += 20) {
      const leaving = Array.from({ length: 10 }, (_, at) => from + 2 * at);
      const leftAtMs = performance.now();
      for (const n of leaving) clients[n]?.reset();
      const codes = await Promise.all(leaving.map((n) => streams.get(n)?.wasReset()));
      tookMs.push(performance.now() - leftAtMs);
      if (codes.some((code) => code !== CODE.cancel)) t.fail(`reset with ${codes}`);
    }
    const median = tookMs.sort((a, b) => a - b)[25] ?? 0;
    t.ok(median < BOUND_MS, `ten were reset within ${median.toFixed(1)} ms, at most ${tookMs.at(-1)?.toFixed(1)} ms`);

    for (let piece = 0; piece < 10; piece++) {
      for (const [n, stream] of streams) if (n % 2 === 0) stream.data(event(`${n}:${piece};`));
    }
    for (const [n, stream] of streams) if (n % 2 === 0) stream.data(done, true);
    for (const [n, client] of clients.entries()) {
      if (n % 2 === 1) continue;
      const expected = event('first') + Array.from({ length: 10 }, (_, piece) => event(`${n}:${piece};`)).join('') + done;
      const body = (await client.body()).toString();
      if (body !== expected) t.equal(body, expected, `stream ${n}`);
      client.destroy();
    }
    const outcomes: Record<string, number> = {};
    for (let n = 0; n < 1000; n++) {
      const outcome = String((await gateway.ended()).outcome);
      outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
    }
    t.strictSame(outcomes, { client_closed: 500, completed: 500 });
    const wrong = [...streams].filter(([n, stream]) => n % 2 === 0 && stream.resetCode !== undefined);
    t.equal(wrong.length, 0, 'no other stream was reset');
    t.equal((await connectionsOf(gateway)).active, 0);
    t.notOk(
      upstream.connections.some(({ isClosed }) => isClosed),
      'and no connection was closed',
    );
  },
);

t.test('A2 a client that leaves resets its stream within 100 ms, in every phase', async (t) => {
  const scene = await newScene(t);
  const { gateway, upstream } = scene;
  const steady = await streaming(scene);
  const left = async (client: WireClient, stream: FrameStream, phase: string) => {
    const leftAtMs = performance.now();
    client.reset();
    t.equal(await stream.wasReset(), CODE.cancel, phase);
    t.ok(performance.now() - leftAtMs < BOUND_MS, `${phase}: ${(performance.now() - leftAtMs).toFixed(1)} ms`);
    t.match(await gateway.ended(), { outcome: 'client_closed', phase });
  };

  const uploading = await connect(gateway.port);
  uploading.send('POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\nsome bytes');
  await left(uploading, await upstream.stream(), 'upload');
  const silent = await call(gateway);
  const unanswered = await upstream.stream();
  await unanswered.whole();
  await left(silent, unanswered, 'headers');
  const second = await streaming(scene);
  await left(second.client, second.stream, 'stream');
  const stalled = await streaming(scene);
  stalled.client.pause();
  const big = event('x'.repeat(60_000));
  for (let n = 0; n < 300; n++) stalled.stream.data(big);
  for (let last = -1, relayed = 0; relayed !== last || relayed < 1000; ) {
    last = relayed;
    relayed = (await gateway.metrics()).value('sluicegate_relayed_bytes_total', { direction: 'out' }) ?? 0;
  }
  await left(stalled.client, stalled.stream, 'backpressure');

  steady.stream.data(event('still here') + done, true);
  await steady.client.until('still here');
  t.match(await gateway.ended(), { outcome: 'completed' });
  t.equal(upstream.connections.length, 1);
  t.equal(
    (await gateway.metrics()).value('sluicegate_upstream_close_seconds_count', { phase: 'backpressure' }),
    1,
    'the close was measured',
  );
  t.strictSame(await connectionsOf(gateway), { active: 0, idle: 1, queued: 0 });
});

const breaks: Record<string, { outcome: string; cause?: string; play: (stream: FrameStream) => void }> = {
  'RST_STREAM(NO_ERROR)': { outcome: 'upstream_reset', cause: 'HTTP2_NO_ERROR', play: (stream) => stream.reset(CODE.noError) },
  'RST_STREAM(CANCEL)': { outcome: 'upstream_reset', cause: 'HTTP2_CANCEL', play: (stream) => stream.reset(CODE.cancel) },
  'RST_STREAM(INTERNAL_ERROR)': { outcome: 'upstream_reset', cause: 'HTTP2_INTERNAL_ERROR', play: (stream) => stream.reset(CODE.internal) },
  FIN: { outcome: 'upstream_reset', cause: 'ECONNRESET', play: (stream) => stream.connection.end() },
  'a broken connection': { outcome: 'upstream_reset', cause: 'ECONNRESET', play: (stream) => stream.connection.destroy() },
  'GOAWAY and FIN': {
    outcome: 'upstream_reset',
    cause: 'ECONNRESET',
    play({ connection, id }) {
      connection.goaway(id);
      connection.end();
    },
  },
  'GOAWAY(ENHANCE_YOUR_CALM)': {
    outcome: 'upstream_reset',
    cause: 'HTTP2_ENHANCE_YOUR_CALM',
    play: ({ connection, id }) => connection.goaway(id, CODE.calm),
  },
  'END_STREAM before the terminal event': { outcome: 'upstream_truncated', play: (stream) => stream.data('', true) },
};

// After an error event a client has a second to read it, so all at once.
t.test('B16 B17 B18 B21 what breaks in the middle of a stream is no end', { jobs: Object.keys(breaks).length }, async (t) => {
  for (const [name, { outcome, cause, play }] of Object.entries(breaks)) {
    t.test(name, { buffered: true }, async (t) => {
      const scene = await newScene(t);
      const { client, stream } = await streaming(scene);
      play(stream);
      await t.rejects(client.body(), { code: 'incomplete' });
      t.match(client.raw().toString(), new RegExp(`"code":"${outcome}"`));
      t.match(await scene.gateway.ended(), { outcome, ...(cause && { cause }) });
      t.equal((await connectionsOf(scene.gateway)).active, 0);
    });
  }
});

t.test('B20 a content-length that the body does not keep is no end', async (t) => {
  const scene = await newScene(t);
  for (const [length, body] of [
    ['10', 'short'],
    ['3', 'long'],
  ] as const) {
    const client = await connect(scene.gateway.port);
    client.request({ target: '/v1/models' });
    const stream = await scene.upstream.stream();
    stream.head(200, { 'content-length': length });
    stream.data(body, true);
    await t.rejects(client.body(), { code: 'incomplete' });
    t.match(await scene.gateway.ended(), { outcome: 'upstream_reset' });
  }
});

t.test('RST_STREAM(NO_ERROR) after a whole answer to half a request is its proper end, and the upload is let go', async (t) => {
  const { gateway, upstream } = await newScene(t);
  const client = await connect(gateway.port);
  client.send('POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\nsome bytes');
  const stream = await upstream.stream();
  stream.head(413, { 'content-type': 'application/json' });
  stream.data('{"error":{}}', true);
  stream.reset(CODE.noError);
  t.equal((await client.body()).toString(), '{"error":{}}');
  t.match(await gateway.ended(), { outcome: 'upstream_error', status: 413 });
});

t.test('B7 B8 B9 1xx are passed over, 101 is refused, headers are bounded', async (t) => {
  const { gateway, upstream } = await newScene(t);
  const ask = async (play: (stream: FrameStream) => void) => {
    const client = await connect(gateway.port);
    client.request({ target: '/v1/models' });
    play(await upstream.stream());
    const { status } = await client.head();
    client.destroy();
    return status;
  };
  const end = (stream: FrameStream) => stream.data('{}', true);
  const interim = (stream: FrameStream) => {
    stream.head(102);
    stream.head(103, { link: '</x>' });
    stream.head(200, { 'content-type': 'application/json', 'x-byte': '\xe4' });
    end(stream);
  };
  t.equal(await ask(interim), 200);
  t.equal(await ask((stream) => stream.head(101)), 502);
  const withHeaders = (headers: Record<string, string>) => (stream: FrameStream) => {
    stream.head(200, headers);
    end(stream);
  };
  t.equal(await ask(withHeaders({ 'x-big': 'x'.repeat(16 * 1024 - 100) })), 200, '16 KiB are fine');
  t.equal(await ask(withHeaders(Object.fromEntries(Array.from({ length: 1500 }, (_, n) => [`x-${n}`, 'y'])))), 502, '1,500 headers');
  t.equal(await ask((stream) => stream.head(200, {}, true)), 200, 'and the next call is served');
});

t.test('headers are bytes both ways, a repeated one is a list, and trailers are dropped', async (t) => {
  let seen: IncomingHttpHeaders = {};
  const server = createSecureServer(certificate, (request, response) => {
    seen = request.headers;
    response.writeHead(200, { 'content-type': 'application/json', 'x-many': ['a', 'b'] });
    response.addTrailers({ 'x-trailer': 'z' });
    response.end('{}');
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => server.close());
  const gateway = await newGateway(t, `https://127.0.0.1:${(server.address() as AddressInfo).port}/v1`);
  const client = await connect(gateway.port);
  client.request({
    method: 'POST',
    target: '/v1/chat/completions',
    body: '{"model":"m"}',
    headers: [
      ['Content-Type', 'application/json'],
      ['X-Byte', '\xfc'],
      ['X-Twice', '1'],
      ['X-Twice', '2'],
      ['Keep-Alive', 'timeout=5'],
      ['TE', 'trailers'],
    ],
  });
  const { rawHeaders } = await client.head();
  await client.body();
  t.match(seen, { ':authority': /^127\.0\.0\.1:\d+$/, ':path': '/v1/chat/completions', authorization: `Bearer ${UPSTREAM_KEY}` });
  t.match(seen, { 'x-byte': '\xfc', 'x-twice': '1, 2', 'content-length': '13' });
  t.notOk('keep-alive' in seen || 'te' in seen || 'host' in seen);
  t.strictSame(
    rawHeaders.filter(([name]) => name === 'x-many').map(([, value]) => value),
    ['a', 'b'],
  );
  t.notMatch(client.raw().toString('latin1'), 'x-trailer');
  client.destroy();
});

t.test('an upload is whole, and waits where the upstream does not read it', async (t) => {
  const { gateway, upstream } = await newScene(t);
  const client = await connect(gateway.port);
  const body = Buffer.alloc(3_000_000, 'abcdefg');
  client.request({ method: 'POST', target: '/v1/files', body });
  const stream = await upstream.stream();
  for (let last = -1, taken = 0; taken !== last || taken < 65_535; ) {
    last = taken;
    taken = (await gateway.metrics()).value('sluicegate_relayed_bytes_total', { direction: 'in' }) ?? 0;
  }
  t.ok(stream.body.length <= 65_535, 'no more than its window');
  t.ok(
    ((await gateway.metrics()).value('sluicegate_relayed_bytes_total', { direction: 'in' }) ?? 0) < 2_000_000,
    'and little is read ahead',
  );
  stream.allow(4_000_000);
  await stream.whole();
  t.ok(stream.body.equals(body));
  stream.head(200, { 'content-type': 'application/json' });
  stream.data('{}', true);
  t.equal((await client.body()).toString(), '{}');
  t.match(await gateway.ended(), { outcome: 'completed', bytesIn: 3_000_000 });
});

t.test('a call that the upstream refused unseen is sent once more, and not a third time', async (t) => {
  const { gateway, upstream } = await newScene(t, { usage: 'ask' });
  const client = await call(gateway);
  const once = await upstream.stream();
  await once.whole();
  once.reset(CODE.refused);
  const again = await upstream.stream();
  await again.whole();
  t.equal(again.body.toString(), once.body.toString());
  again.head(200, sse);
  again.data(done, true);
  t.equal((await client.body()).toString(), done);
  t.match(await gateway.ended(), { outcome: 'completed' });

  const refused = await call(gateway);
  (await upstream.stream()).reset(CODE.refused);
  (await upstream.stream()).reset(CODE.refused);
  t.equal((await refused.head()).status, 502);
  t.match(await gateway.ended(), { outcome: 'upstream_reset', cause: 'HTTP2_REFUSED_STREAM' });

  const uploading = await connect(gateway.port);
  uploading.send('POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\nsome bytes');
  (await upstream.stream()).reset(CODE.refused);
  t.equal((await uploading.head()).status, 502, 'nor one whose body is gone');
});

t.test('B37 a call that the upstream may have seen is never sent twice', async (t) => {
  const { gateway, upstream } = await newScene(t);
  for (const play of [
    (stream: FrameStream) => stream.reset(CODE.cancel),
    (stream: FrameStream) => stream.connection.destroy(),
    ({ connection, id }: FrameStream) => {
      connection.goaway(id);
      connection.end();
    },
  ]) {
    const client = await call(gateway);
    const stream = await upstream.stream();
    await stream.whole();
    play(stream);
    t.equal((await client.head()).status, 502);
    t.match(await gateway.ended(), { outcome: 'upstream_reset' });
  }
  t.equal(upstream.connections.flatMap(({ streams }) => streams).length, 3);
});

t.test('an upstream that says goodbye finishes what it has begun, and what it did not look at goes to a new connection', async (t) => {
  const scene = await newScene(t, { usage: 'ask' });
  const { gateway, upstream } = scene;
  const first = await streaming(scene);
  const second = await call(gateway);
  const unseen = await upstream.stream();
  await unseen.whole();
  first.stream.connection.goaway(first.stream.id);
  const again = await upstream.stream();
  t.not(again.connection, unseen.connection, 'on another connection');
  await again.whole();
  again.head(200, sse);
  again.data(done, true);
  t.equal((await second.body()).toString(), done);
  first.stream.data(event('and goodbye') + done, true);
  await first.client.until('[DONE]');
  await first.stream.connection.closed();
  t.match(await gateway.ended(), { outcome: 'completed' });
  t.match(await gateway.ended(), { outcome: 'completed' });
});

t.test('one that says goodbye with an error loses what it has begun, and no more', async (t) => {
  const scene = await newScene(t, { usage: 'ask' });
  const { gateway, upstream } = scene;
  const first = await streaming(scene);
  const second = await call(gateway);
  const unseen = await upstream.stream();
  await unseen.whole();
  first.stream.connection.goaway(first.stream.id, CODE.calm);
  const again = await upstream.stream();
  t.not(again.connection, unseen.connection);
  again.head(200, sse);
  again.data(done, true);
  t.equal((await second.body()).toString(), done);
  await t.rejects(first.client.body(), { code: 'incomplete' });
});

t.test('the upstream says how many calls a connection takes, and may change its mind', async (t) => {
  const scene = await newScene(t, { maxConnections: 2 }, { maxStreams: 2 });
  const { gateway, upstream } = scene;
  const calls = [await streaming(scene), await streaming(scene), await streaming(scene), await streaming(scene)];
  t.strictSame(
    upstream.connections.map(({ streams }) => streams.length),
    [2, 2],
  );
  const queued = await call(gateway);
  const leaving = await call(gateway);
  for (let waits = 0; waits < 2; ) waits = (await connectionsOf(gateway)).queued ?? 0;
  leaving.reset();
  t.match(await gateway.ended(), { outcome: 'client_closed', phase: 'connect' });
  calls[0]!.stream.data(done, true);
  const served = await upstream.stream();
  served.head(200, sse);
  served.data(done, true);
  await queued.body();

  const { connection } = calls[3]!.stream;
  connection.settings([[3, 1]]);
  connection.send(FRAME.ping, 0, 0, Buffer.alloc(8)); // its answer comes after the settings were taken
  await connection.ponged();
  for (const { stream } of calls.slice(1)) if (stream.connection !== connection) stream.data(done, true);
  const last = calls.filter(({ stream }) => stream.connection === connection);
  t.equal(last.length, 2);
  const next = await streaming(scene);
  t.not(next.stream.connection, connection, 'one that has more than it now takes gets no more');
  for (const { stream } of [...last, next]) stream.data(done, true);
});

t.test('a burst of calls before the upstream has said how many it takes goes to as many connections as it needs', async (t) => {
  const scene = await newScene(t, {}, { maxStreams: 3 });
  const clients = await Promise.all(Array.from({ length: 12 }, () => call(scene.gateway)));
  for (let n = 0; n < 12; n++) {
    const stream = await scene.upstream.stream();
    stream.head(200, sse);
    stream.data(done, n % 2 === 0);
    if (n % 2 === 1) stream.data('', true);
  }
  for (const client of clients) t.equal((await client.body()).toString(), done);
  const most = Math.max(...scene.upstream.connections.map(({ mostAtOnce }) => mostAtOnce));
  t.ok(most <= 3, `${most} at once on a connection`);
});

t.test('one that stops reading holds back its own stream only, at most 1 MiB', async (t) => {
  const scene = await newScene(t);
  const steady = await streaming(scene);
  const stalled = await streaming(scene);
  stalled.client.pause();
  const big = event('x'.repeat(60_000));
  for (let n = 0; n < 400; n++) stalled.stream.data(big);
  for (let last = -1, relayed = 0; relayed !== last || relayed < 1000; ) {
    last = relayed;
    relayed = (await scene.gateway.metrics()).value('sluicegate_relayed_bytes_total', { direction: 'out' }) ?? 0;
  }
  const relayed = (await scene.gateway.metrics()).value('sluicegate_relayed_bytes_total', { direction: 'out' }) ?? 0;
  const held = stalled.stream.sentBytes - relayed;
  t.ok(held < 1024 * 1024, `${held} bytes held`);
  t.ok(stalled.stream.unread > 10_000_000, `${stalled.stream.unread} wait upstream`);
  for (let n = 0; n < 50; n++) {
    steady.stream.data(event(`no ${n};`));
    await steady.client.until(`no ${n};`);
  }
  stalled.client.destroy();
  await stalled.stream.wasReset();
  steady.stream.data(done, true);
});

t.test('an upstream that takes no HTTP/2 is served on HTTP/1.1', async (t) => {
  const upstream = await startUpstream({ tls: certificate });
  t.teardown(() => upstream.close());
  const gateway = await newGateway(t, upstream.url);
  const clients = [await call(gateway), await call(gateway), await call(gateway)];
  for (let n = 0; n < 3; n++) {
    const request = await upstream.request();
    request.startSse();
    request.chunk(done);
    request.endChunks();
  }
  for (const client of clients) t.equal((await client.body()).toString(), done);
  const leaving = await call(gateway);
  const request = await upstream.request();
  leaving.reset();
  await request.connection.closed;
  t.equal((await connectionsOf(gateway)).active, 0);
});

t.test('A5 a client that leaves while the connection is being made: it is given up when nobody else waits for it', async (t) => {
  const mute = await startUpstream({ accept: false });
  t.teardown(() => mute.close());
  const gateway = await newGateway(t, mute.url.replace('http:', 'https:'));
  const [first, second] = [await call(gateway), await call(gateway)];
  const connection = await mute.connection();
  await connection.received(1);
  first.reset();
  t.match(await gateway.ended(), { outcome: 'client_closed', phase: 'connect' });
  t.notOk(connection.isClosed);
  second.reset();
  await connection.closed;
  t.match(await gateway.ended(), { outcome: 'client_closed', phase: 'connect' });
  t.equal(mute.connections.length, 1);
  t.strictSame(await connectionsOf(gateway), { active: 0, idle: 0, queued: 0 });
});

t.test('B2 an upstream that never says its settings, or refuses TLS, is a failed connection', async (t) => {
  const { gateway, upstream } = await newScene(t, { timeouts: { connect: '200ms' } }, { greets: false });
  const [first, second] = [await call(gateway), await call(gateway)];
  const connection = await upstream.connection();
  t.strictSame([(await first.head()).status, (await second.head()).status], [504, 504]);
  await connection.closed();
  t.equal(connection.streams.length, 0);
  t.match(await gateway.ended(), { outcome: 'timeout_connect' });

  const untrusted = await startTestGateway(t, upstream.url, { upstream: { http2: 'on' } });
  t.equal((await (await call(untrusted)).head()).status, 502);
  t.match(await untrusted.ended(), { outcome: 'upstream_unreachable', cause: 'DEPTH_ZERO_SELF_SIGNED_CERT' });
});

t.test('a connection that is slow to be made is not what later calls wait for', async (t) => {
  const mute = await startUpstream({ accept: false });
  t.teardown(() => mute.close());
  const gateway = await newGateway(t, mute.url.replace('http:', 'https:'));
  const first = await call(gateway);
  await (await mute.connection()).received(1);
  while (mute.connections.length < 2) {
    const next = await call(gateway);
    while ((await connectionsOf(gateway)).active === 0);
    next.reset();
    t.match(await gateway.ended(), { outcome: 'client_closed', phase: 'connect' });
  }
  first.reset();
  await Promise.all(mute.connections.map(({ closed }) => closed));
});

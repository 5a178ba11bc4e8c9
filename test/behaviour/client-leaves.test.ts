// Promise: when the client goes, its upstream socket is closed, in every phase, within milliseconds, and nothing stays behind.
import t, { type Test } from 'tap';
import { startTestGateway, type TestGateway } from '../support/gateway.ts';
import { type ScriptedUpstream, startUpstream, type UpstreamConnection } from '../support/upstream.ts';
import { connect, type WireClient } from '../support/wire.ts';

/** INTERFACE: within 100 ms. The upstream's own record is the judge. */
const BOUND_MS = 100;
const streaming = { method: 'POST', target: '/v1/chat/completions', body: '{"model":"m","stream":true}' };

interface Departure {
  readonly upstream: ScriptedUpstream;
  readonly gateway: TestGateway;
  readonly client: WireClient;
}

/** Brings a request to a phase and returns its upstream connection. */
type Arrange = (at: Departure) => Promise<UpstreamConnection>;

const phases: Record<string, { expected: string; outcome?: string; options?: object; arrange: Arrange }> = {
  'while it uploads': {
    expected: 'upload',
    async arrange({ upstream, client }) {
      client.send('POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\nsome bytes');
      const request = await upstream.request();
      await request.bodyBytes(10);
      return request.connection;
    },
  },
  'while the upstream shakes hands': {
    expected: 'connect',
    options: { accept: false },
    async arrange({ upstream, client }) {
      client.request(streaming);
      const connection = await upstream.connection();
      await connection.received(1);
      return connection;
    },
  },
  'while it waits for headers': {
    expected: 'headers',
    async arrange({ upstream, client }) {
      client.request(streaming);
      const request = await upstream.request();
      await request.body();
      return request.connection;
    },
  },
  'between two events': {
    expected: 'stream',
    async arrange({ upstream, client }) {
      client.request(streaming);
      const request = await upstream.request();
      request.startSse();
      request.event({ choices: [{ index: 0, delta: { content: 'Hello there' } }] });
      await client.until('Hello');
      return request.connection;
    },
  },
  'inside an event': {
    expected: 'stream',
    async arrange({ upstream, client }) {
      client.request(streaming);
      const request = await upstream.request();
      request.startSse();
      request.chunk('data: {"choi');
      await client.until('choi');
      return request.connection;
    },
  },
  'when it has stopped reading': {
    expected: 'backpressure',
    async arrange({ upstream, gateway, client }) {
      client.request(streaming);
      const request = await upstream.request();
      request.startSse();
      await client.head();
      client.pause();
      const event = `data: {"choices":[{"index":0,"delta":{"content":"${'x'.repeat(60_000)}"}}]}\n\n`;
      for (let n = 0; n < 300; n++) request.chunk(event);
      await flowHasStopped(gateway);
      return request.connection;
    },
  },
  'in a call that does not stream': {
    expected: 'stream',
    async arrange({ upstream, client }) {
      client.request({ method: 'POST', target: '/v1/embeddings', body: '{"model":"m","input":"x"}' });
      const request = await upstream.request();
      request.connection.write('HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{"object":');
      await client.head();
      await client.read(10);
      return request.connection;
    },
  },
};

/** Until two looks at the counter of relayed bytes see the same: the client's buffers are full and the upstream is held. */
async function flowHasStopped(gateway: TestGateway): Promise<void> {
  for (let last = -1; ; ) {
    const relayed = (await gateway.metrics()).value('sluicegate_relayed_bytes_total', { direction: 'out' }) ?? 0;
    if (relayed === last && relayed > 0) return;
    last = relayed;
  }
}

async function assertNothingStays(t: Test, { gateway, upstream }: Departure, expected: string): Promise<void> {
  const line = await gateway.ended();
  t.match(line, { outcome: 'client_closed', phase: expected, upstream: 'main', attempts: 1 });
  const metrics = await gateway.metrics();
  t.equal(metrics.value('sluicegate_requests_total', { outcome: 'client_closed' }), 1, 'counted once');
  t.equal(metrics.value('sluicegate_streams_active') ?? 0, 0, 'no stream is active');
  t.equal(metrics.value('sluicegate_upstream_close_seconds_count', { phase: expected }), 1, 'the close was measured');
  t.equal(metrics.value('sluicegate_upstream_connections', { state: 'active' }), 0, 'no connection is in use');
  t.equal(upstream.connections.length, 1, 'the upstream saw one connection');
}

for (const [name, { expected, options, arrange }] of Object.entries(phases)) {
  for (const how of ['reset', 'end'] as const) {
    // An unread upload hides FIN and RST both until the body is read; what the gateway reads, it hears.
    t.test(`${name}, by ${how === 'reset' ? 'RST' : 'FIN'}`, async (t) => {
      const upstream = await startUpstream(options);
      t.teardown(() => upstream.close());
      const url = options === undefined ? upstream.url : upstream.url.replace('http:', 'https:');
      const gateway = await startTestGateway(t, url);
      const client = await connect(gateway.port);
      const departure = { upstream, gateway, client };
      const connection = await arrange(departure);
      const leftAtMs = performance.now();
      if (how === 'reset') client.reset();
      else client.destroy();
      const { at } = await connection.closed;
      t.ok(at - leftAtMs < BOUND_MS, `upstream socket closed after ${(at - leftAtMs).toFixed(1)} ms`);
      await assertNothingStays(t, departure, expected);
    });
  }
}

t.test('A4 while it waits for a free connection: the upstream never hears of it', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url, { upstream: { maxConnections: 1 } });
  const first = await connect(gateway.port);
  first.request(streaming);
  const request = await upstream.request();
  const second = await connect(gateway.port);
  second.request(streaming);
  for (let queued = 0; queued !== 1; )
    queued = (await gateway.metrics()).value('sluicegate_upstream_connections', { state: 'queued' }) ?? 0;
  second.reset();
  t.match(await gateway.ended(), { outcome: 'client_closed', phase: 'connect' });
  request.startSse();
  request.chunk('data: [DONE]\n\n');
  request.endChunks();
  await first.body();
  await gateway.ended();
  t.equal(upstream.requestCount, 1);
  t.equal((await gateway.metrics()).value('sluicegate_upstream_connections', { state: 'queued' }), 0);
});

t.test('A11 three pipelined calls, then gone: the first is freed, and no other ran', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const client = await connect(gateway.port);
  const call = 'POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n\r\n{}';
  client.send(call.repeat(3));
  const request = await upstream.request();
  // The refusal closes the connection after it, and so the third is not even looked at.
  t.match(await gateway.ended(), { outcome: 'rejected', rejection: 'invalid_request' });
  client.reset();
  await request.connection.closed;
  t.equal((await gateway.ended()).outcome, 'client_closed');
  t.equal(upstream.requestCount, 1);
  const metrics = await gateway.metrics();
  t.equal(metrics.value('sluicegate_streams_active') ?? 0, 0);
  t.equal(metrics.value('sluicegate_upstream_connections', { state: 'active' }), 0);
});

t.test('A11 a pipelined call whose client stays gets its refusal after the first answer', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const client = await connect(gateway.port);
  client.send('GET /v1/a HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /v1/b HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n');
  const request = await upstream.request();
  await gateway.ended();
  request.respond(200, {}, 'first');
  t.equal((await client.body()).toString(), 'first');
  t.equal((await client.head()).status, 400);
  t.match(await client.closed, { isComplete: true });
});

for (const how of ['end', 'reset'] as const) {
  t.test(
    `A16 in an upload that the upstream does not read, by ${how === 'end' ? 'FIN' : 'RST'}: what is unread hides neither`,
    async (t) => {
      const upstream = await startUpstream();
      t.teardown(() => upstream.close());
      const gateway = await startTestGateway(t, upstream.url);
      const client = await connect(gateway.port);
      client.send('POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10000000\r\n\r\nbegin');
      const request = await upstream.request();
      await request.bodyBytes(5);
      request.connection.pauseReading();
      client.send(Buffer.alloc(900_000, 'x'));
      for (let seen = 0; seen < 900_005; )
        seen = (await gateway.metrics()).value('sluicegate_relayed_bytes_total', { direction: 'in' }) ?? 0;
      client[how]();
      t.match(await gateway.ended(), { outcome: 'client_closed', phase: 'upload', bytesIn: 900_005 });
      request.connection.resumeReading();
      await request.connection.closed;
    },
  );
}

t.test('right after the terminal event: that is a completed stream', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const client = await connect(gateway.port);
  client.request(streaming);
  const request = await upstream.request();
  request.startSse();
  request.event({ choices: [{ index: 0, delta: { content: 'Hi' } }], usage: { prompt_tokens: 3, completion_tokens: 1, total_tokens: 4 } });
  request.chunk('data: [DONE]\n\n');
  await client.until('[DONE]');
  client.destroy();
  await request.connection.closed;
  t.match(await gateway.ended(), { outcome: 'completed', tokens: { input: 3, output: 1, outputSource: 'reported' } });
});

t.test('every other one of 100 calls on a connection is given up, and no other is disturbed', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const steady = await connect(gateway.port);
  steady.request(streaming);
  const kept = await upstream.request();
  kept.startSse();
  for (let n = 0; n < 50; n++) {
    const leaving = await connect(gateway.port);
    leaving.request(streaming);
    const request = await upstream.request();
    leaving.reset();
    await request.connection.closed;
    t.equal((await gateway.ended()).outcome, 'client_closed');
    kept.event({ choices: [{ index: 0, delta: { content: `still here ${n};` } }] });
    await steady.until(`still here ${n};`);
  }
  kept.chunk('data: [DONE]\n\n');
  kept.endChunks();
  await steady.body();
  t.equal((await gateway.ended()).outcome, 'completed');
});

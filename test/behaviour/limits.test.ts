// Promise: a client uses what its limits allow, to the request, the token, the stream and the cent, and is told what is left.
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as delayFor } from 'node:timers/promises';
import OpenAI from 'openai';
import t, { type Test } from 'tap';
import { stringify } from 'yaml';
import { type Config, loadConfig } from '../../src/config.ts';
import { startTestGateway, type TestGateway } from '../support/gateway.ts';
import { isRedisMissing, startRedis } from '../support/redis.ts';
import { type ScriptedUpstream, startUpstream, type UpstreamRequest } from '../support/upstream.ts';
import { connect, type WireClient, type WireHead } from '../support/wire.ts';

const KEY = 'sk-client-of-the-team';
const headers = { 'content-type': 'application/json', authorization: `Bearer ${KEY}` };
const price = [{ match: '*', upstreams: ['main'], price: { input: 1_000_000, output: 1_000_000 } }]; // a dollar a token
const chunk = (content: string) => ({ id: 'c', choices: [{ index: 0, delta: { content }, finish_reason: null }] });
const usageOf = (input: number, output: number) => ({ prompt_tokens: input, completion_tokens: output, total_tokens: input + output });

function clientWith(limits: object): object[] {
  return [{ name: 'team', keySha256: createHash('sha256').update(KEY).digest('hex'), limits }];
}

interface Scene {
  readonly upstream: ScriptedUpstream;
  readonly gateway: TestGateway;
}

async function start(t: Test, limits: object, settings: Record<string, object> = {}): Promise<Scene> {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  return { upstream, gateway: await startTestGateway(t, upstream.url, { clients: clientWith(limits), ...settings }) };
}

interface Call {
  readonly client: WireClient;
  readonly request: UpstreamRequest;
}

async function call({ gateway, upstream }: Scene, body = '{"model":"m"}'): Promise<Call> {
  const client = await connect(gateway.port);
  client.request({ method: 'POST', target: '/v1/chat/completions', headers, body });
  return { client, request: await upstream.request() };
}

/** A call that is answered at once, with its usage. */
async function use(scene: Scene, input: number, output: number, body?: string): Promise<WireHead> {
  const { client, request } = await call(scene, body);
  request.respond(200, { 'content-type': 'application/json' }, JSON.stringify({ usage: usageOf(input, output) }));
  const head = await client.head();
  await client.body();
  await scene.gateway.ended();
  return head;
}

async function refused(scene: Scene, body = '{"model":"m"}'): Promise<{ head: WireHead; error: Record<string, unknown> }> {
  const client = await connect(scene.gateway.port);
  client.request({ method: 'POST', target: '/v1/chat/completions', headers, body });
  const head = await client.head();
  const { error } = JSON.parse((await client.body()).toString());
  t.equal(head.status, 429, JSON.stringify(error));
  await scene.gateway.ended();
  return { head, error };
}

async function remaining({ gateway }: Scene, limit: string): Promise<number | undefined> {
  return (await gateway.metrics()).value('sluicegate_limit_remaining', { client: 'team', limit });
}

t.test('requests a minute: so many and not one more, with the headers that OpenAI sends', async (t) => {
  const scene = await start(t, { requestsPerMinute: 2 });
  t.match((await use(scene, 1, 1)).headers, {
    'x-ratelimit-limit-requests': '2',
    'x-ratelimit-remaining-requests': '1',
    'x-ratelimit-reset-requests': /^(1m0s|60s|5\ds)$/,
  });
  t.match((await use(scene, 1, 1)).headers, { 'x-ratelimit-remaining-requests': '0' });
  const { head, error } = await refused(scene);
  t.match(error, { type: 'requests', code: 'rate_limit_exceeded', message: /requests per minute: limit 2\. Try again in/ });
  t.match(head.headers, { 'retry-after': /^(5\d|60)$/, 'retry-after-ms': /^(5\d{4}|60000)$/, 'x-ratelimit-remaining-requests': '0' });
  t.equal(await remaining(scene, 'requests'), 0);
  const metrics = await scene.gateway.metrics();
  t.equal(metrics.value('sluicegate_rejections_total', { client: 'team', reason: 'rate_limit_exceeded_requests' }), 1);
  t.equal(scene.upstream.requestCount, 2);
});

t.test('tokens a minute: what a call may use is reserved, what it used is counted, and the rest given back on every way out', async (t) => {
  const scene = await start(t, { tokensPerMinute: 1000 });
  const body = `{"model":"m","max_tokens":600,"messages":["${'x'.repeat(400 - 50)}"]}`;
  const reserved = 600 + Math.ceil(body.length / 4);
  const first = await call(scene, body);
  t.equal(await remaining(scene, 'tokens'), 1000 - reserved);
  first.request.respond(200, { 'content-type': 'application/json' }, JSON.stringify({ usage: usageOf(90, 10) }));
  t.match((await first.client.head()).headers, {
    'x-ratelimit-limit-tokens': '1000',
    'x-ratelimit-remaining-tokens': String(1000 - reserved),
    'x-ratelimit-reset-tokens': /^(1m0s|60s|5\ds)$/,
  });
  await scene.gateway.ended();
  t.equal(await remaining(scene, 'tokens'), 900);

  const gone = await call(scene, body);
  gone.client.reset();
  await scene.gateway.ended();
  t.equal(await remaining(scene, 'tokens'), 900, 'left before the answer');
  const broken = await call(scene, body);
  broken.request.connection.reset();
  await scene.gateway.ended();
  t.equal(await remaining(scene, 'tokens'), 900, 'upstream broken');
  const failed = await call(scene, body);
  failed.request.respond(500, { 'content-type': 'application/json' }, '{}');
  await failed.client.body();
  await scene.gateway.ended();
  t.equal(await remaining(scene, 'tokens'), 900, 'upstream error');

  await use(scene, 500, 400, body);
  const { head, error } = await refused(scene, body);
  t.match(error, { type: 'tokens', code: 'rate_limit_exceeded', message: /tokens per minute: limit 1000/ });
  t.match(head.headers, { 'x-ratelimit-remaining-tokens': '0', 'retry-after': /^(5\d|6[01])$/ });
});

t.test('whatever a call says it may write, not a token of the others is lost', async (t) => {
  const scene = await start(t, { tokensPerMinute: 1000 });
  await use(scene, 5, 5);
  const first = await call(scene, '{"model":"m","max_tokens":20}');
  const absurd = await call(scene, '{"model":"m","max_tokens":999999999,"n":999999999}');
  t.equal(await remaining(scene, 'tokens'), 0);
  absurd.client.reset();
  await scene.gateway.ended();
  first.client.reset();
  await scene.gateway.ended();
  t.equal(await remaining(scene, 'tokens'), 990);
  await use(scene, 980, 10);
  await refused(scene);
});

t.test('tokens are counted while they flow', async (t) => {
  const scene = await start(t, { tokensPerMinute: 1000 });
  const { client, request } = await call(scene, '{"model":"m","stream":true}');
  request.startSse();
  for (let n = 0; n < 50; n++) request.event(chunk('word '));
  await client.until('word ');
  for (let left = 1000; left > 950; ) left = (await remaining(scene, 'tokens')) ?? 0;
  client.reset();
  t.match(await scene.gateway.ended(), { outcome: 'client_closed' });
});

t.test('E3 concurrent streams: a slot is free again however its stream ended', async (t) => {
  const scene = await start(t, { concurrentStreams: 1 }, { upstream: { timeouts: { firstByte: '200ms' } } });
  const ways: [name: string, end: (it: Call) => unknown][] = [
    ['completed', ({ request }) => request.respond(200, {}, 'x')],
    ['client gone', ({ client }) => client.reset()],
    ['upstream gone', ({ request }) => request.connection.reset()],
    ['timed out', () => undefined],
    [
      'cut in mid-stream',
      ({ request }) => {
        request.startSse();
        request.event(chunk('x'));
        request.connection.end();
      },
    ],
  ];
  for (const [name, end] of ways) {
    const it = await call(scene);
    t.equal(await remaining(scene, 'streams'), 0, name);
    const { error, head } = await refused(scene);
    t.match(error, { type: 'streams', code: 'rate_limit_exceeded' });
    t.match(head.headers, { 'retry-after': '1' });
    end(it);
    await scene.gateway.ended();
    t.equal(await remaining(scene, 'streams'), 1, name);
    it.client.destroy();
  }
});

t.test('a budget: spent by prices, and then the next call is refused, which SDKs do not try again', async (t) => {
  const scene = await start(t, { budget: { usd: 100, per: 'month' } }, { models: price });
  await use(scene, 30, 20);
  t.equal(await remaining(scene, 'budget'), 50);
  await use(scene, 30, 30);
  t.equal(await remaining(scene, 'budget'), 0);
  const { head, error } = await refused(scene);
  t.match(error, { type: 'insufficient_quota', code: 'insufficient_quota' });
  t.match(head.headers, { 'x-should-retry': 'false', 'retry-after': /^\d+$/ });
  t.equal((await scene.gateway.metrics()).value('sluicegate_cost_usd_total', { client: 'team' }), 110);
});

t.test('a budget that is only reserved is not spent: SDKs are told to try again', async (t) => {
  const scene = await start(t, { budget: { usd: 100, per: 'month' } }, { models: price });
  const live = await call(scene, '{"model":"m","max_tokens":150}');
  const { head, error } = await refused(scene);
  t.match(error, { code: 'insufficient_quota', message: /reserved by calls that are under way/ });
  t.match(head.headers, { 'x-should-retry': 'true', 'retry-after': '1' });
  live.client.reset();
  await scene.gateway.ended();
  t.equal((await use(scene, 1, 1)).status, 200);
});

t.test('onExhausted: an answer under way finishes, or is cut with an error event', async (t) => {
  for (const onExhausted of ['finish', 'cut']) {
    const scene = await start(t, { budget: { usd: 100, per: 'day' }, onExhausted }, { models: price });
    const { client, request } = await call(scene, '{"model":"m","stream":true}');
    request.startSse();
    for (let n = 0; n < 200; n++) request.event(chunk('word '));
    for (let left = 100; left > 0; ) left = (await remaining(scene, 'budget')) ?? 0;
    if (onExhausted === 'cut') {
      await client.until('"code":"insufficient_quota"');
      t.match(await scene.gateway.ended(), { outcome: 'rejected', rejection: 'insufficient_quota', tokens: { output: 201 } });
      await request.connection.closed;
      continue;
    }
    await refused(scene);
    request.event({ id: 'c', choices: [{ index: 0, delta: {}, finish_reason: 'stop' }], usage: usageOf(1, 200) });
    request.chunk('data: [DONE]\n\n');
    request.endChunks();
    t.match((await client.body()).toString(), '[DONE]');
    t.match(await scene.gateway.ended(), { outcome: 'completed' });
  }
});

t.test('an answer that is read on is cut as well, and nobody is told to have been refused', async (t) => {
  const settings = { models: price, upstream: { onClientGone: { drain: '30s', tokens: 'off' } } };
  const scene = await start(t, { budget: { usd: 100, per: 'day' }, onExhausted: 'cut' }, settings);
  const { client, request } = await call(scene, '{"model":"m","stream":true}');
  request.startSse();
  request.event(chunk('word '));
  await client.until('word ');
  client.reset();
  await scene.gateway.metrics(); // its going is known
  for (let n = 0; n < 200; n++) request.event(chunk('word '));
  const line = await scene.gateway.ended();
  t.match(line, { outcome: 'client_closed' });
  t.notOk(line.rejection);
  await request.connection.closed;
});

t.test('anonymous callers have limits by address', async (t) => {
  const scene = await start(t, {}, { clients: [], anonymous: { limits: { concurrentStreams: 1 } } });
  const { request, client } = await call(scene);
  await refused(scene);
  request.respond(200, {}, 'x');
  await client.body();
  t.equal((await use(scene, 1, 1)).status, 200);
  t.same((await scene.gateway.metrics()).series('sluicegate_limit_remaining'), [], 'addresses are no labels');
});

t.test('who goes on asking while it is refused is slowed down, and gives its turn to others', async (t) => {
  const scene = await start(t, { requestsPerMinute: 1 });
  await use(scene, 1, 1);
  const clients = await Promise.all(Array.from({ length: 60 }, () => connect(scene.gateway.port)));
  const startedAtMs = performance.now();
  const refusedMs = await Promise.all(
    clients.map(async (client) => {
      client.request({ method: 'POST', target: '/v1/chat/completions', headers, body: '{"model":"m"}' });
      t.equal((await client.head()).status, 429);
      return performance.now() - startedAtMs;
    }),
  );
  t.ok(refusedMs.filter((ms) => ms >= 100).length >= 10, 'fifty are told at once');
  for (const _ of clients) await scene.gateway.ended();
  const left = await connect(scene.gateway.port);
  left.request({ method: 'POST', target: '/v1/chat/completions', headers, body: '{"model":"m"}' });
  left.reset();
  t.match(await scene.gateway.ended(), { attempts: 0 });
});

t.test('the openai SDK waits exactly as long as it is told, and then gets through', async (t) => {
  const upstream = createServer((_, response) => {
    response.writeHead(200, { 'content-type': 'application/json' });
    response.end(
      '{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}]}',
    );
  }).listen(0, '127.0.0.1');
  await once(upstream, 'listening');
  t.teardown(() => upstream.close());
  const { port } = upstream.address() as AddressInfo;
  const gateway = await startTestGateway(t, `http://127.0.0.1:${port}/v1`, { clients: clientWith({ concurrentStreams: 1 }) });
  const holder = await connect(gateway.port);
  // A body that does not come holds the one slot.
  holder.send(`POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer ${KEY}\r\nContent-Length: 5\r\n\r\n`);
  for (let free = 1; free > 0; ) free = (await gateway.metrics()).value('sluicegate_limit_remaining', { limit: 'streams' }) ?? 1;

  const tries: { at: number; retryAfterMs: number }[] = [];
  const openai = new OpenAI({
    baseURL: gateway.baseUrl,
    apiKey: KEY,
    maxRetries: 5,
    async fetch(url, init) {
      const at = performance.now();
      const answer = await fetch(url, init);
      tries.push({ at, retryAfterMs: Number(answer.headers.get('retry-after-ms')) });
      if (tries.length === 1) holder.reset();
      return answer;
    },
  });
  const completion = await openai.chat.completions.create({ model: 'm', messages: [{ role: 'user', content: 'Hello' }] });
  t.equal(completion.choices[0]?.message.content, 'Hi');
  t.equal(tries.length, 2);
  t.equal(tries[0]?.retryAfterMs, 1000);
  const waitedMs = tries[1]!.at - tries[0]!.at;
  t.ok(waitedMs >= 1000 && waitedMs < 1900, `${waitedMs} ms; its own first back-off would be 375 to 500 ms`);
});

t.test('G6 G7 two replicas on one Redis count as one, and go on without it', { skip: isRedisMissing }, async (t) => {
  const redis = await startRedis(t);
  const limits = { requestsPerMinute: 5, tokensPerMinute: 1000, concurrentStreams: 1 };
  const one = await start(t, limits, { limits: { store: redis.url } });
  const two: Scene = {
    ...one,
    gateway: await startTestGateway(t, one.upstream.url, { clients: clientWith(limits), limits: { store: redis.url } }),
  };
  const live = await call(one);
  t.match((await refused(two)).error, { type: 'streams' });
  live.request.respond(200, { 'content-type': 'application/json' }, JSON.stringify({ usage: usageOf(200, 100) }));
  await live.client.body();
  await one.gateway.ended();
  t.match((await use(two, 100, 100)).headers, { 'x-ratelimit-remaining-requests': '3' });
  t.equal(await remaining(one, 'tokens'), 500, 'what both used');
  t.equal((await one.gateway.metrics()).value('sluicegate_limit_store_up'), 1);

  const streaming = await call(two, '{"model":"m","stream":true}');
  streaming.request.startSse();
  streaming.request.event(chunk('before'));
  await streaming.client.until('before');
  await redis.kill();
  t.equal((await use(one, 1, 1)).status, 200, 'counted here');
  t.equal((await one.gateway.metrics()).value('sluicegate_limit_store_up'), 0);
  streaming.request.event(chunk('after'));
  await streaming.client.until('after');
  streaming.client.reset();
  await two.gateway.ended();
  await redis.start();
  for (let isUp = 0; isUp === 0; ) isUp = (await one.gateway.metrics()).value('sluicegate_limit_store_up') ?? 0;
  t.equal((await use(one, 1, 1)).status, 200);
});

t.test('a stream that ends while its renewal finds the store away holds no slot any more', { skip: isRedisMissing }, async (t) => {
  const redis = await startRedis(t);
  t.teardown(() => redis.thaw());
  const scene = await start(t, { concurrentStreams: 1 }, { limits: { store: redis.url } });
  const live = await call(scene);
  redis.freeze();
  await delayFor(50); // two renewals have been sent, and none is given up yet
  live.client.reset();
  await scene.gateway.ended();
  for (let isUp = 1; isUp > 0; ) isUp = (await scene.gateway.metrics()).value('sluicegate_limit_store_up') ?? 0;
  t.equal((await use(scene, 1, 1)).status, 200);
});

t.test('onStoreFailure: deny lets nobody pass uncounted, and those without limits pass', { skip: isRedisMissing }, async (t) => {
  const scene = await start(
    t,
    { requestsPerMinute: 5 },
    { limits: { store: 'redis://user:canary-password@127.0.0.1:9', onStoreFailure: 'deny' } },
  );
  const client = await connect(scene.gateway.port);
  client.request({ method: 'POST', target: '/v1/chat/completions', headers, body: '{}' });
  t.match(await client.head(), { status: 503, headers: { 'retry-after': '1' } });
  t.match(JSON.parse((await client.body()).toString()), { error: { code: 'overloaded', type: 'server_error' } });
  t.match(await scene.gateway.ended(), { outcome: 'rejected', rejection: 'overloaded' });
  t.notMatch(scene.gateway.output, 'canary');
  t.equal(scene.upstream.requestCount, 0);
});

t.test('early headers wait for the limits: a refusal keeps its status, and a body is whole', { skip: isRedisMissing }, async (t) => {
  const redis = await startRedis(t);
  t.teardown(() => redis.thaw());
  const body = `{"model":"m","stream":true,"input":"${'x'.repeat(5 * 1024 * 1024)}"}`;
  for (const onStoreFailure of ['deny', 'allow']) {
    const limits = { store: redis.url, onStoreFailure };
    const { gateway, upstream } = await start(t, { tokensPerMinute: 100_000 }, { limits, sse: { earlyHeaders: '10ms' } });
    redis.freeze(); // the first to ask waits for it
    const client = await connect(gateway.port);
    client.request({ method: 'POST', target: '/v1/chat/completions', headers, body });
    if (onStoreFailure === 'deny') {
      t.equal((await client.head()).status, 503);
      t.match((await client.body()).toString(), 'overloaded');
    } else {
      t.equal((await (await upstream.request()).body()).length, body.length);
      client.destroy();
    }
    await gateway.ended();
    redis.thaw();
  }
});

t.test('two reloads in a row: the store of the last one counts, however long the other takes to open', async (t) => {
  const mute = await startUpstream({ accept: false });
  t.teardown(() => mute.close());
  const { gateway, upstream } = await start(t, { requestsPerMinute: 5 });
  const configOf = (limits: object): Config => {
    const main = { baseUrl: upstream.url, auth: 'none' };
    const file = { upstreams: { main }, clients: clientWith({ requestsPerMinute: 5 }), limits };
    const loaded = loadConfig({ file: 'test.yaml', text: stringify(file) }, {});
    if (!loaded.ok) throw new Error(JSON.stringify(loaded.problems));
    return loaded.config;
  };
  gateway.reload(configOf({ store: `redis://127.0.0.1:${mute.port}/0`, onStoreFailure: 'deny' }));
  gateway.reload(configOf({ store: 'memory' }));
  const connection = await mute.connection();
  await connection.closed;
  const client = await connect(gateway.port);
  client.request({ method: 'POST', target: '/v1/chat/completions', headers, body: '{"model":"m"}' });
  (await upstream.request()).respond(200, {}, 'x');
  t.match(await client.head(), { status: 200, headers: { 'x-ratelimit-remaining-requests': '4' } });
});

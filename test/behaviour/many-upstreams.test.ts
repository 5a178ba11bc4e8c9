// Promise: many upstreams are one: the first to write serves, work goes where there is room, keys and upstreams that refuse rest, and their models are one list.
import { createHash } from 'node:crypto';
import { mkdtempSync, renameSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import OpenAI from 'openai';
import t, { type Test } from 'tap';
import { loadConfig } from '../../src/config.ts';
import { startTestGateway, type TestGateway, UPSTREAM_KEY } from '../support/gateway.ts';
import { callWhileKilling } from '../support/killed-upstream.ts';
import { runSluicegate } from '../support/process.ts';
import { type ScriptedUpstream, startUpstream, type UpstreamRequest } from '../support/upstream.ts';
import { connect, type WireClient } from '../support/wire.ts';

const json = { 'content-type': 'application/json' };
const chat = {
  method: 'POST',
  target: '/v1/chat/completions',
  headers: json,
  body: '{"model":"m","stream":true,"messages":[{"role":"user","content":"Hello"}]}',
};
const content = (text: string) => ({ choices: [{ index: 0, delta: { content: text } }] });
const role = { choices: [{ index: 0, delta: { role: 'assistant', content: '' } }] };
const usage = { choices: [], usage: { prompt_tokens: 5, completion_tokens: 2, total_tokens: 7 } };
const finish = { choices: [{ index: 0, delta: {}, finish_reason: 'stop' }] };

interface Scene {
  readonly main: ScriptedUpstream;
  readonly other: ScriptedUpstream;
  readonly gateway: TestGateway;
  readonly client: WireClient;
}

async function start(t: Test, { row = {}, upstream = {}, ...settings }: Record<string, object> = {}): Promise<Scene> {
  const [main, other] = [await startUpstream(), await startUpstream()];
  t.teardown(() => Promise.all([main.close(), other.close()]));
  const gateway = await startTestGateway(t, main.url, {
    models: [{ match: 'm', upstreams: ['main', 'other'], ...row }],
    ...settings,
    upstream,
    upstreams: { other: { baseUrl: other.url, apiKey: 'sk-other', usage: 'asSent' } },
  });
  return { main, other, gateway, client: await connect(gateway.port) };
}

function finishStream(request: UpstreamRequest): void {
  for (const event of [finish, usage, '[DONE]']) request.event(event);
  request.endChunks();
}

/** Answers whatever comes, until the test is over. */
function serve(upstream: ScriptedUpstream, statusOf: () => number = () => 200): void {
  const next = (): Promise<void> =>
    upstream.request().then((request) => {
      request.respond(statusOf(), json, '{}');
      return next();
    });
  next().catch(() => undefined);
}

/** One call; which upstream served it. */
async function callOnce({ client, gateway }: Scene): Promise<string | undefined> {
  client.request(chat);
  const { headers } = await client.head();
  await client.body();
  await gateway.ended();
  return headers['x-sluicegate-upstream'];
}

/** Plays these in turn. */
const all =
  (...steps: ((request: UpstreamRequest) => void)[]) =>
  (request: UpstreamRequest) => {
    for (const step of steps) step(request);
  };
const head = (request: UpstreamRequest) => request.startSse();
const says = (data: object) => (request: UpstreamRequest) => request.event(data);

t.test(
  'hedge: the first to write serves: not the first with a comment, a role or an error; the other one is closed, and its tokens counted apart',
  async (t) => {
    const { main, other, gateway, client } = await start(t, { row: { hedge: '30ms' } });
    client.request(chat);
    const slow = await main.request();
    slow.startSse();
    slow.chunk(': OPENROUTER PROCESSING\n\n');
    slow.event(role);
    const quick = await other.request();
    t.equal((await quick.body()).toString(), chat.body);
    quick.startSse();
    quick.event(role);
    t.equal(client.raw().length, 0, 'nothing has gone down');
    const { closed } = slow.connection;
    quick.event(content('quick'));
    const head = await client.head();
    t.equal(head.headers['x-sluicegate-upstream'], 'other');
    t.match(await client.until('quick'), /^data: .*assistant/, 'all that it had said goes down, and nothing of the other');
    await closed;
    finishStream(quick);
    t.match(await client.body().then(String), '[DONE]');
    t.match(await gateway.ended(), {
      upstream: 'other',
      outcome: 'completed',
      attempts: 2,
      tried: ['main lost', 'other ok'],
      tokens: { input: 5, output: 2 },
    });
    const metrics = await gateway.metrics();
    t.equal(metrics.value('sluicegate_tokens_total', { upstream: 'main' }), undefined);
    t.ok((metrics.value('sluicegate_hedge_lost_tokens_total', { upstream: 'main', kind: 'input' }) ?? 0) > 0, 'it has read the prompt');
    t.equal(metrics.value('sluicegate_tokens_total', { upstream: 'other', kind: 'output' }), 2);
    t.equal(metrics.value('sluicegate_upstream_attempts_total', { upstream: 'main', result: 'lost' }), 1);
  },
);

t.test('hedge: an error or an empty frame never wins, whenever and from whichever it comes', async (t) => {
  const bad: [name: string, play: (request: UpstreamRequest) => void][] = [
    ['an error event', all(head, says({ error: { message: 'no', code: 'x' } }))],
    ['a role, then an error event', all(head, says(role), says({ error: { message: 'no' } }))],
    ['an empty frame', all(head, says({ choices: [], prompt_filter_results: [] }))],
    ['a ping', all(head, (request) => request.chunk(': ping\n\n'))],
    ['status 400', (request) => request.respond(400, json, '{}')],
    ['status 429', (request) => request.respond(429, json, '{}')],
    ['status 500', (request) => request.respond(500, json, '{}')],
    ['RST', (request) => request.connection.reset()],
    ['RST in a stream', all(head, says(role), ({ connection }) => connection.reset())],
  ];
  for (const [name, play] of bad) {
    for (const isFirstBad of [true, false]) {
      const { main, other, gateway, client } = await start(t, { row: { hedge: '10ms' } });
      client.request(chat);
      const [first, second] = [await main.request(), await other.request()];
      const [worse, better] = isFirstBad ? [first, second] : [second, first];
      play(worse);
      better.startSse();
      better.event(role);
      better.event(content('served'));
      finishStream(better);
      t.match(await client.body().then(String), /served.*\[DONE\]/s, name);
      t.match(await gateway.ended(), { outcome: 'completed', upstream: isFirstBad ? 'other' : 'main', attempts: 2 }, name);
    }
  }
});

t.test('hedge: where both fail, one failure is told; whoever is alone is not held any longer; JSON is not hedged', async (t) => {
  const both = await start(t, { row: { hedge: '10ms' } });
  both.client.request(chat);
  const [first, second] = [await both.main.request(), await both.other.request()];
  first.connection.reset();
  second.respond(503, json, '{"error":{"message":"full"}}');
  t.match((await both.client.head()).status, /^50[23]$/, 'of the one that was heard last');
  t.match(await both.gateway.ended(), { outcome: /^upstream_(?:error|reset)$/, attempts: 2 });

  const alone = await start(t, { row: { hedge: '10ms' } });
  alone.client.request(chat);
  const [left, lost] = [await alone.main.request(), await alone.other.request()];
  left.startSse();
  left.event(role);
  lost.respond(500, json, '{}');
  t.match(await alone.client.until('assistant'), 'data: ', 'before it has written a word');
  left.event(content('x'));
  finishStream(left);
  await alone.client.body();

  const plain = await start(t, { row: { hedge: '10ms' } });
  plain.client.request({ ...chat, body: '{"model":"m"}' });
  const request = await plain.main.request();
  await new Promise((resolve) => setTimeout(resolve, 60)); // several beats, in which a stream would have been hedged
  request.respond(200, json, '{}');
  t.equal((await plain.client.head()).status, 200);
  t.equal(plain.other.requestCount, 0);
});

t.test('hedge: a client that leaves in between closes both', async (t) => {
  const { main, other, gateway, client } = await start(t, { row: { hedge: '10ms' } });
  client.request(chat);
  const requests = [await main.request(), await other.request()];
  requests[0]?.startSse();
  requests[0]?.event(role);
  const closings = requests.map(({ connection }) => connection.closed);
  client.reset();
  await Promise.all(closings);
  t.match(await gateway.ended(), { outcome: 'client_closed', attempts: 2, tried: ['other aborted', 'main aborted'] });
  t.equal((await gateway.metrics()).value('sluicegate_upstream_attempts_total'), 2, 'each try is told once');
});

t.test('hedge: what is told is of the upstream that failed last, or that early headers speak for', async (t) => {
  const upstream = { timeouts: { firstByte: '800ms' } };
  const late = await start(t, { row: { hedge: '10ms' }, upstream });
  late.client.request(chat);
  await late.main.request();
  (await late.other.request()).connection.reset();
  t.match(await late.client.head(), { status: 504, headers: { 'x-sluicegate-upstream': 'main' } });
  t.match(await late.gateway.ended(), {
    upstream: 'main',
    outcome: 'timeout_first_byte',
    tried: ['other upstream_reset', 'main upstream_timeout'],
  });

  const early = await start(t, { row: { hedge: '10ms' }, sse: { earlyHeaders: '600ms' } });
  early.client.request(chat);
  const kept = await early.main.request();
  const { closed } = (await early.other.request()).connection;
  t.match(await early.client.head(), { status: 200, headers: { 'x-sluicegate-upstream': 'main' } });
  await closed;
  t.equal((await early.gateway.metrics()).value('sluicegate_streams_active', { upstream: 'main' }), 1);
  kept.connection.reset();
  t.match(await early.gateway.ended(), { upstream: 'main', outcome: 'upstream_reset' });
});

t.test('hedge: an upstream that only refuses to be asked for usage is asked without, whoever else is under way', async (t) => {
  const { main, other, gateway, client } = await start(t, { row: { hedge: '10ms' }, upstream: { usage: 'ask' } });
  client.request(chat);
  const refusing = await main.request();
  const rival = await other.request();
  refusing.respond(400, json, '{"error":{"message":"unknown: stream_options"}}');
  const again = await main.request();
  t.equal((await again.body()).toString(), chat.body);
  again.startSse();
  again.event(content('served'));
  finishStream(again);
  await rival.connection.closed;
  t.match(await client.body().then(String), 'served');
  t.match(await gateway.ended(), { upstream: 'main', attempts: 3, tried: ['main refused', 'other lost', 'main ok'] });
});

t.test('apiKeys: in turn; one that is refused rests, and the call goes on with another', async (t) => {
  const upstream = { apiKey: undefined, apiKeys: ['sk-a', 'sk-b', 'sk-c'] };
  const { main, gateway, client } = await start(t, { upstream, row: { upstreams: ['main'] } });
  const keyOf = ({ headers }: UpstreamRequest) => headers.authorization?.replace('Bearer ', '');
  const seen: unknown[] = [];
  for (const [status, headers] of [
    [200, {}],
    [429, { 'retry-after': '60' }],
    [200, {}],
    [200, {}],
    [401, {}],
    [200, {}],
    [200, {}],
  ] as const) {
    client.request(chat);
    const request = await main.request();
    seen.push(keyOf(request));
    request.respond(status, { ...json, ...headers }, '{}');
    if (status !== 200) {
      const again = await main.request();
      seen.push(keyOf(again));
      again.respond(200, json, '{}');
    }
    t.equal((await client.head()).status, 200);
    await client.body();
  }
  t.strictSame(seen, ['sk-a', 'sk-b', 'sk-c', 'sk-a', 'sk-c', 'sk-a', 'sk-c', 'sk-c', 'sk-c']);
  t.notMatch(gateway.output, /sk-[abc]\b/);
  t.equal((await gateway.metrics()).value('sluicegate_upstream_attempts_total', { result: 'refused' }), 2);

  // All rest: the last resort is the one that has rested longest, and what it is told is the client's to hear.
  client.request(chat);
  (await main.request()).respond(429, { ...json, 'retry-after': '60' }, '{}');
  t.equal((await client.head()).status, 429);
});

t.test('apiKeys: each is tried once for a call, however soon it may be used again', async (t) => {
  const upstream = { apiKey: undefined, apiKeys: ['sk-a', 'sk-b'] };
  const { main, gateway, client } = await start(t, { upstream, row: { upstreams: ['main'] } });
  client.request(chat);
  (await main.request()).respond(429, { ...json, 'retry-after-ms': '1' }, '{}');
  const second = await main.request();
  await new Promise((resolve) => setTimeout(resolve, 1_050)); // the shortest rest: the first one is fresh again
  second.respond(429, { ...json, 'retry-after-ms': '1' }, '{}');
  t.equal((await client.head()).status, 429);
  t.match(await gateway.ended(), { attempts: 2, outcome: 'upstream_error' });
});

t.test('apiKeys: a body that is too long to be sent again goes once, with one key', async (t) => {
  const upstream = { apiKey: undefined, apiKeys: ['sk-a', 'sk-b'] };
  const { main, gateway, client } = await start(t, { upstream, row: { upstreams: ['main'], replay: '1KiB' } });
  client.request({ ...chat, body: JSON.stringify({ model: 'm', messages: ['x'.repeat(2000)] }) });
  (await main.request()).respond(429, json, '{}');
  t.equal((await client.head()).status, 429);
  t.match(await gateway.ended(), { attempts: 1 });
});

t.test('usage is taken out of the answer of whoever was asked for it, and of no other', async (t) => {
  const { main, other, client } = await start(t, { upstream: { usage: 'ask' } });
  client.request(chat);
  const asked = await main.request();
  asked.startSse();
  asked.event(content('x'));
  finishStream(asked);
  t.notMatch(await client.body().then(String), 'usage');
  client.request(chat);
  (await main.request()).respond(500, json, '{}');
  const unasked = await other.request();
  t.equal((await unasked.body()).toString(), chat.body);
  unasked.startSse();
  unasked.event(content('x'));
  finishStream(unasked);
  t.match(await client.body().then(String), /"usage":\{/);
});

t.test('apiKeyFile: read again when it changes, also where it is replaced', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'sluicegate-key-'));
  const file = join(folder, 'key');
  writeFileSync(file, 'sk-first\n');
  const { main, client } = await start(t, { upstream: { apiKey: undefined, apiKeyFile: file }, row: { upstreams: ['main'] } });
  const call = async () => {
    client.request(chat);
    const request = await main.request();
    request.respond(200, json, '{}');
    await client.body();
    return request.headers.authorization;
  };
  t.equal(await call(), 'Bearer sk-first');
  writeFileSync(`${file}.new`, 'sk-second-one');
  renameSync(`${file}.new`, file);
  let key = await call();
  for (let tries = 0; key !== 'Bearer sk-second-one' && tries < 100; tries++) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    key = await call();
  }
  t.equal(key, 'Bearer sk-second-one');
});

t.test('weights share out first tries; leastBusy goes where the fewest calls are under way', async (t) => {
  const weighted = await start(t, { row: { upstreams: [{ name: 'main', weight: 3 }, 'other'] } });
  for (const upstream of [weighted.main, weighted.other]) serve(upstream);
  const names: unknown[] = [];
  for (let n = 0; n < 8; n++) names.push(await callOnce(weighted));
  t.equal(names.join(' '), 'main main other main main main other main');

  const level = await start(t, { row: { balance: 'leastBusy' } });
  const clients = await Promise.all([1, 2, 3, 4].map(() => connect(level.gateway.port)));
  for (const [at, client] of clients.entries()) {
    client.request(chat);
    while (level.main.requestCount + level.other.requestCount < at + 1) await new Promise((resolve) => setImmediate(resolve));
  }
  t.strictSame([level.main.requestCount, level.other.requestCount], [2, 2]);
  for (const request of [await level.main.request(), await level.main.request()]) request.respond(200, json, '{}');
  await Promise.all(clients.map((client) => client.destroy()));
});

t.test('eject: one that fails is put aside while another can serve, one call probes it, and it comes back', async (t) => {
  const upstream = { eject: { failures: 2, for: '500ms' } };
  const scene = await start(t, { upstream });
  const { main, other, gateway } = scene;
  const up = async () => (await gateway.metrics()).value('sluicegate_upstream_up', { upstream: 'main' });
  let status = 500;
  serve(main, () => status);
  serve(other);
  t.equal(await up(), 1);
  t.equal(await callOnce(scene), 'other', 'nobody notices');
  t.equal(await up(), 1);
  t.equal(await callOnce(scene), 'other');
  t.equal(await up(), 0);
  t.equal(await callOnce(scene), 'other');
  t.equal(main.requestCount, 2, 'it is left alone');

  status = 200;
  let name: unknown = 'other';
  for (let tries = 0; name === 'other' && tries < 200; tries++) {
    await new Promise((resolve) => setTimeout(resolve, 5));
    name = await callOnce(scene);
  }
  t.equal(name, 'main', 'a call probed it');
  t.equal(await up(), 1);
});

t.test('eject: a probe that tells nothing lets the next call probe; a queue that is full says nothing of the upstream', async (t) => {
  const upstream = { eject: { failures: 1, for: '40ms' }, maxConnections: 1, timeouts: { connect: '60ms' } };
  const { main, gateway } = await start(t, { upstream, row: { upstreams: ['main'] } });
  const up = async () => (await gateway.metrics()).value('sluicegate_upstream_up', { upstream: 'main' });
  const call = async (play: (request: UpstreamRequest, client: WireClient) => void) => {
    const client = await connect(gateway.port);
    client.request(chat);
    play(await main.request(), client);
    return await gateway.ended();
  };
  const respond = (status: number) => (request: UpstreamRequest) => request.respond(status, json, '{}');
  const leave = (_: UpstreamRequest, client: WireClient) => client.reset();
  for (const tellNothing of [leave, respond(429)]) {
    await call(respond(500));
    t.equal(await up(), 0);
    await new Promise((resolve) => setTimeout(resolve, 60)); // its time aside
    await call(tellNothing);
    t.equal(await up(), 0);
    await call(respond(200));
    t.equal(await up(), 1);
  }
  const waiting = await connect(gateway.port);
  t.match(await call(() => waiting.request(chat)), { outcome: 'rejected', rejection: 'overloaded' });
  t.equal(await up(), 1);
});

t.test('eject: silence behind early headers is a failure as any other', async (t) => {
  const upstream = { eject: { failures: 1, for: '10m' }, timeouts: { firstByte: '80ms' } };
  const { main, gateway, client } = await start(t, { upstream, sse: { earlyHeaders: '10ms' } });
  client.request(chat);
  await main.request();
  t.match(await client.until('}}\n\n'), 'upstream_timeout');
  t.match(await gateway.ended(), { outcome: 'timeout_first_byte', upstream: 'main' });
  t.equal((await gateway.metrics()).value('sluicegate_upstream_up', { upstream: 'main' }), 0);
});

t.test('a reload keeps connections and health of an upstream whose settings stay; a call goes on as it began', async (t) => {
  const scene = await start(t, { upstream: { eject: { failures: 1, for: '10m' } } });
  const { main, other, gateway, client } = scene;
  const reload = (more: string) => {
    const text = `
upstreams:
  main: { baseUrl: "${main.url}", apiKey: ${UPSTREAM_KEY}, usage: asSent, eject: { failures: 1, for: 10m } }
  other: { baseUrl: "${other.url}", apiKey: sk-other, usage: asSent${more} }
models: [{ match: m, upstreams: [main, other], price: { input: 1 } }]`;
    const loaded = loadConfig({ file: 'test.yaml', text }, {});
    if (!loaded.ok) throw new Error(JSON.stringify(loaded.problems));
    gateway.reload(loaded.config);
  };
  client.request(chat);
  const first = await main.request();
  reload(', maxConnections: 7');
  first.respond(500, json, '{}');
  (await other.request()).respond(200, json, '{}');
  t.equal((await client.head()).headers['x-sluicegate-upstream'], 'other', 'where it could go when it came');
  await client.body();
  t.equal((await gateway.metrics()).value('sluicegate_upstream_up', { upstream: 'main' }), 0, 'it is still aside');
  const connectionsAfterCall = async () => {
    client.request(chat);
    (await other.request()).respond(200, json, '{}');
    await client.body();
    return other.connections.length;
  };
  t.equal(await connectionsAfterCall(), 2, 'its settings have changed');
  reload(', maxConnections: 7');
  t.equal(await connectionsAfterCall(), 2, 'they have not');
  reload('');
  t.equal(await connectionsAfterCall(), 3);
  t.equal(main.requestCount, 1);
});

t.test('eject: where all are aside, all are tried', async (t) => {
  const { main, gateway, client } = await start(t, { upstream: { eject: { failures: 1, for: '10m' } }, row: { upstreams: ['main'] } });
  for (let n = 0; n < 3; n++) {
    client.request(chat);
    (await main.request()).respond(503, json, '{}');
    t.equal((await client.head()).status, 503);
    await client.body();
  }
  t.equal((await gateway.metrics()).value('sluicegate_upstream_up', { upstream: 'main' }), 0);
});

t.test('one of two upstreams is killed under load: no call is lost that had not begun to stream', async (t) => {
  const demos = [1, 2].map(() => runSluicegate(t, ['demo', '--listen', '127.0.0.1:0']));
  const [first = '', second = ''] = await Promise.all(demos.map(async (demo) => (await demo.said(/http:\S+/))[0]));
  const gateway = await startTestGateway(t, first, {
    upstream: { apiKey: undefined, auth: 'none' },
    upstreams: { other: { baseUrl: second, auth: 'none' } },
    models: [{ match: '*', upstreams: ['main', 'other'], balance: 'leastBusy' }] as object,
  });
  const run = { seconds: 2, ratePerSecond: 200 };
  const { calls, killedAtMs } = await callWhileKilling(gateway.baseUrl, run, () => demos[0]?.child.kill('SIGKILL'));
  t.equal(calls.length, 400);
  const lost = calls.filter(({ hasBegun, isComplete }) => !hasBegun && !isComplete);
  t.strictSame(lost, []);
  t.ok(calls.some(({ upstream, sentAtMs }) => upstream === 'main' && sentAtMs < killedAtMs));
  t.ok(calls.every(({ upstream, isComplete, sentAtMs }) => sentAtMs < killedAtMs || (upstream === 'other' && isComplete)));
  for (const _ of calls) await gateway.ended();
  const metrics = await gateway.metrics();
  t.equal(metrics.value('sluicegate_requests_total'), 400);
  t.equal(metrics.value('sluicegate_upstream_up', { upstream: 'main' }), 0);
});

t.test(
  'GET /v1/models is one list: what would reach an upstream, what the configuration names, and of that what the client may',
  async (t) => {
    const models = [
      { match: 'fast', upstreams: ['other'], rewrite: 'small-1' },
      { match: 'small-*', upstreams: ['other', 'main'] },
      { match: 'big-*', upstreams: ['main'] },
    ];
    const { main, other, gateway, client } = await start(t, { models: models as object });
    const list = (...ids: string[]) =>
      JSON.stringify({ object: 'list', data: ids.map((id) => ({ id, object: 'model', created: 7, owned_by: 'x' })) });
    client.request({ method: 'GET', target: '/v1/models', headers: { authorization: 'Bearer own' } });
    const [first, second] = [await main.request(), await other.request()];
    t.strictSame([first.target, second.target], ['/v1/models', '/v1/models']);
    t.equal(first.headers.authorization, `Bearer ${UPSTREAM_KEY}`);
    second.respond(200, { ...json, etag: '"x"' }, list('small-1', 'big-2'));
    first.respond(200, json, list('big-1', 'small-1', 'unrouted'));
    const head = await client.head();
    t.equal(head.status, 200);
    t.notOk(head.headers.etag);
    const answer = JSON.parse(await client.body().then(String));
    t.strictSame(
      answer.data.map(({ id }: { id: string }) => id),
      ['big-1', 'small-1', 'unrouted', 'fast'],
    );
    t.match(await gateway.ended(), { outcome: 'completed', endpoint: '/v1/models', attempts: 2 });

    const openai = new OpenAI({ baseURL: gateway.baseUrl, apiKey: 'sk-of-the-app', maxRetries: 0 });
    const listed = openai.models.list();
    const [again, dead] = [await main.request(), await other.request()];
    dead.connection.reset();
    again.respond(200, json, list('big-1'));
    const ids: string[] = [];
    for await (const { id } of await listed) ids.push(id);
    t.strictSame(ids, ['big-1', 'fast'], 'an upstream that is down takes only its own models with it');

    client.request({ method: 'GET', target: '/v1/models' });
    (await main.request()).respond(500, json, '{"error":{"message":"down"}}');
    (await other.request()).connection.reset();
    t.equal((await client.head()).status, 500, 'nothing is made up');
    await client.body();
    for (let line = await gateway.ended(); line.status !== 500; ) line = await gateway.ended();

    const overhead = (await gateway.metrics()).value('sluicegate_overhead_seconds_count', { part: 'request' });
    t.equal(overhead, 3, 'one a request');
    client.request({ method: 'GET', target: '/v1/models' });
    (await main.request()).connection.reset();
    (await other.request()).connection.reset();
    t.equal((await client.head()).status, 502);
    const { tried, ...failed } = await gateway.ended();
    t.match(failed, { outcome: 'upstream_reset', cause: /\w/ });
    t.equal((tried as string[])[0], `${failed.upstream} upstream_reset`, 'the first one’s failure is the answer');
  },
);

t.test('GET /v1/models: a client that leaves closes all of it', async (t) => {
  const { main, other, gateway, client } = await start(t);
  client.request({ target: '/v1/models' });
  const closings = [await main.request(), await other.request()].map(({ connection }) => connection.closed);
  client.reset();
  await Promise.all(closings);
  t.match(await gateway.ended(), { outcome: 'client_closed', attempts: 2 });
});

t.test('a list for a client with models names no other one, not even as the first or the last of it', async (t) => {
  const clients = [{ name: 'team', keySha256: createHash('sha256').update('sk-team').digest('hex'), models: ['b*'] }];
  const { main, other, client } = await start(t, { clients: clients as object });
  const list = (...ids: string[]) =>
    JSON.stringify({ data: ids.map((id) => ({ id })), has_more: false, first_id: ids[0], last_id: ids.at(-1) });
  client.request({ target: '/v1/models', headers: { authorization: 'Bearer sk-team' } });
  (await main.request()).respond(200, json, list('a', 'b1', 'b2', 'c'));
  (await other.request()).respond(200, json, list());
  const text = await client.body().then(String);
  t.match(JSON.parse(text), { data: [{ id: 'b1' }, { id: 'b2' }], first_id: 'b1', last_id: 'b2' });
  t.notMatch(text, /"[acm]"/);
});

t.test('calls that name no model go to the first upstream that claims their path', async (t) => {
  const [main, other] = [await startUpstream(), await startUpstream()];
  t.teardown(() => Promise.all([main.close(), other.close()]));
  const gateway = await startTestGateway(t, main.url, {
    upstreams: { other: { baseUrl: other.url, apiKey: 'sk-other', endpoints: ['/v1/files*', '/v1/audio/*'] } },
  });
  const client = await connect(gateway.port);
  for (const [target, upstream] of [
    ['/v1/files', other],
    ['/v1/files/f/content', other],
    ['/v1/audio/transcriptions', other],
    ['/v1/batches', main],
  ] as const) {
    client.request({ method: 'GET', target });
    (await upstream.request()).respond(200, json, '{}');
    await client.body();
    t.match(await gateway.ended(), { upstream: upstream === main ? 'main' : 'other' }, target);
  }
});

// Promise: a provider that is down, slow or full is not noticed: another one serves, as long as nothing has gone down, and none is asked twice that may have done the work.
import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import t, { type Test } from 'tap';
import { startTestGateway, type TestGateway, UPSTREAM_KEY } from '../support/gateway.ts';
import { type ScriptedUpstream, startUpstream, type UpstreamRequest } from '../support/upstream.ts';
import { connect, type WireClient } from '../support/wire.ts';

const OTHER_KEY = 'sk-other-canary-fedcba9876543210';
const json = { 'content-type': 'application/json' };
const chat = { method: 'POST', target: '/v1/chat/completions', headers: json, body: '{"model":"m","stream":true}' };
const content = (text: string) => ({ choices: [{ index: 0, delta: { content: text } }] });
const role = { choices: [{ index: 0, delta: { role: 'assistant', content: '' } }] };
const finish = { choices: [{ index: 0, delta: {}, finish_reason: 'stop' }] };
const errorEvent = { error: { message: 'overloaded', type: 'server_error', code: 'overloaded' } };

interface Scene {
  readonly main: ScriptedUpstream;
  readonly other: ScriptedUpstream;
  readonly gateway: TestGateway;
  readonly client: WireClient;
}

/** Two upstreams, the second after the first. `row` is laid over the row of models, `upstream` over both. */
async function start(t: Test, { row = {}, upstream = {}, mainUrl, ...settings }: Record<string, object | string> = {}): Promise<Scene> {
  const [main, other] = [await startUpstream(), await startUpstream()];
  t.teardown(() => Promise.all([main.close(), other.close()]));
  const gateway = await startTestGateway(t, typeof mainUrl === 'string' ? mainUrl : main.url, {
    ...(settings as Record<string, object>),
    upstream: upstream as object,
    upstreams: { other: { baseUrl: other.url, apiKey: OTHER_KEY, usage: 'asSent', ...(upstream as object) } },
    models: [{ match: 'm', upstreams: ['main', 'other'], ...(row as object) }],
  });
  return { main, other, gateway, client: await connect(gateway.port) };
}

function serveStream(request: UpstreamRequest): void {
  request.startSse();
  for (const event of [role, content('Hello'), finish, '[DONE]']) request.event(event);
  request.endChunks();
}

async function closedPort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** What the first upstream does wrong, before a byte has gone down; and how the call ends if the second does the same. */
interface Failure {
  readonly name: string;
  readonly phase: 'connect' | 'upload' | 'headers' | 'status' | 'first event';
  readonly settings?: Record<string, object>;
  /** Absent: it is not reached. */
  readonly play?: (request: UpstreamRequest) => void;
  /** What metrics say of the try. */
  readonly result: string;
  /** Where no other is left. */
  readonly alone: { readonly status: number; readonly code?: string; readonly outcome: string };
}

const short = { timeouts: { connect: '60ms', firstByte: '60ms' } };
const alone = (status: number, code: string, outcome: string = code) => ({ status, code, outcome });

const failures: Failure[] = [
  { name: 'nobody listens', phase: 'connect', result: 'upstream_unreachable', alone: alone(502, 'upstream_unreachable') },
  {
    name: 'it takes the connection and says nothing at all',
    phase: 'headers',
    settings: { upstream: short },
    play: () => undefined,
    result: 'upstream_timeout',
    alone: alone(504, 'upstream_timeout', 'timeout_first_byte'),
  },
  {
    name: 'RST on the request',
    phase: 'upload',
    play: ({ connection }) => connection.reset(),
    result: 'upstream_reset',
    alone: alone(502, 'upstream_reset'),
  },
  {
    name: 'FIN on the request',
    phase: 'headers',
    play: ({ connection }) => connection.end(),
    result: 'upstream_reset',
    alone: alone(502, 'upstream_reset'),
  },
  {
    name: 'RST inside its headers',
    phase: 'headers',
    play({ connection }) {
      connection.write('HTTP/1.1 200 OK\r\ncontent-ty');
      connection.reset();
    },
    result: 'upstream_reset',
    alone: alone(502, 'upstream_reset'),
  },
  {
    name: 'no HTTP',
    phase: 'headers',
    play: ({ connection }) => connection.write('garbage\r\n\r\n'),
    result: 'upstream_reset',
    alone: alone(502, 'upstream_reset'),
  },
  ...[429, 500, 502, 503, 529].map(
    (status): Failure => ({
      name: `status ${status}`,
      phase: 'status',
      play: (request) => request.respond(status, json, '{"error":{"message":"not now"}}'),
      result: 'refused',
      alone: { status, outcome: 'upstream_error' },
    }),
  ),
  {
    name: 'it refuses our key',
    phase: 'status',
    play: (request) => request.respond(401, json, `{"error":{"message":"Incorrect API key provided: ${UPSTREAM_KEY}"}}`),
    result: 'refused',
    alone: alone(502, 'upstream_auth', 'upstream_error'),
  },
  {
    name: 'a 503 that does not end',
    phase: 'status',
    play: ({ connection }) => connection.write('HTTP/1.1 503 No\r\ncontent-length: 9999\r\n\r\nwait'),
    result: 'refused',
    alone: { status: 503, outcome: 'upstream_reset' },
  },
  {
    name: 'an error as the first event',
    phase: 'first event',
    play(request) {
      request.startSse();
      request.event(errorEvent);
    },
    result: 'error_event',
    alone: { status: 200, outcome: 'upstream_error_event' },
  },
  {
    name: 'comments, then an error as the first event',
    phase: 'first event',
    play(request) {
      request.startSse();
      request.chunk(': OPENROUTER PROCESSING\n\n');
      request.event(errorEvent);
      request.event('[DONE]');
      request.endChunks();
    },
    result: 'error_event',
    alone: { status: 200, outcome: 'upstream_error_event' },
  },
  {
    name: 'a stream without an event',
    phase: 'first event',
    play(request) {
      request.startSse();
      request.endChunks();
    },
    result: 'upstream_truncated',
    alone: { status: 200, outcome: 'upstream_truncated' },
  },
  {
    name: 'RST before the first event',
    phase: 'first event',
    play(request) {
      request.startSse();
      request.chunk(': wait\n\n');
      request.connection.reset();
    },
    result: 'upstream_reset',
    alone: { status: 200, outcome: 'upstream_reset' },
  },
  {
    name: 'headers, and then no event in time',
    phase: 'first event',
    settings: { upstream: short },
    play: (request) => request.startSse(),
    result: 'upstream_timeout',
    alone: { status: 200, outcome: 'timeout_first_byte' },
  },
];

for (const { name, phase, settings = {}, play, result } of failures) {
  t.test(`${phase}: ${name}: the next one serves, and each was asked once`, async (t) => {
    const mainUrl = play === undefined ? `http://127.0.0.1:${await closedPort()}/v1` : '';
    const scene = await start(t, { ...settings, ...(mainUrl && { mainUrl }) });
    const { main, other, gateway, client } = scene;
    client.request(chat);
    if (play !== undefined) {
      const request = await main.request();
      t.equal((await request.body()).toString(), chat.body);
      play(request);
    }
    const second = await other.request();
    t.equal((await second.body()).toString(), chat.body, 'byte for byte the same');
    t.equal(second.headers.authorization, `Bearer ${OTHER_KEY}`);
    t.notMatch(second.head, UPSTREAM_KEY);
    serveStream(second);
    const head = await client.head();
    t.equal(head.status, 200);
    t.equal(head.headers['x-sluicegate-upstream'], 'other');
    t.match((await client.body()).toString(), /^data: .*assistant.*Hello.*data: \[DONE\]\n\n$/s);
    t.match(await gateway.ended(), {
      outcome: 'completed',
      upstream: 'other',
      attempts: 2,
      tried: [`main ${result}`, 'other ok'],
      status: 200,
    });
    t.equal(main.requestCount, play === undefined ? 0 : 1);
    t.equal(other.requestCount, 1);
    const metrics = await gateway.metrics();
    t.equal(metrics.value('sluicegate_upstream_attempts_total', { upstream: 'main', result }), 1);
    t.equal(metrics.value('sluicegate_upstream_attempts_total', { upstream: 'other', result: 'ok' }), 1);
    t.equal(metrics.value('sluicegate_requests_total'), 1);
    t.equal(metrics.value('sluicegate_tokens_total', { upstream: 'main' }), undefined, 'what nobody heard is billed to nobody');
    t.ok((metrics.value('sluicegate_tokens_total', { upstream: 'other', kind: 'output' }) ?? 0) > 0);
  });
}

t.test('where the last one fails as well, its own failure is told; and nobody was asked twice', async (t) => {
  for (const { name, settings = {}, play, alone } of failures.filter((failure) => failure.play !== undefined)) {
    const { main, other, gateway, client } = await start(t, settings);
    client.request(chat);
    play?.(await main.request());
    const second = await other.request();
    play?.(second);
    const { status } = await client.head();
    t.equal(status, alone.status, name);
    if (alone.code !== undefined) t.match(JSON.parse((await client.body()).toString()), { error: { code: alone.code } }, name);
    if (status === 503 && alone.outcome === 'upstream_reset') second.connection.reset();
    if (alone.outcome === 'upstream_error_event') client.reset();
    t.match(await gateway.ended(), { outcome: alone.outcome, upstream: 'other', attempts: 2 }, name);
    t.equal(main.requestCount + other.requestCount, 2, name);
  }
});

t.test('what is the call’s own fault, and whatever has begun to go down, is never tried elsewhere', async (t) => {
  const began: [name: string, play: (request: UpstreamRequest) => void, status: number, outcome: string][] = [
    ...[400, 403, 404, 413, 422].map((status): [string, (request: UpstreamRequest) => void, number, string] => [
      `status ${status}`,
      (request) => request.respond(status, json, '{"error":{"message":"yours"}}'),
      status,
      'upstream_error',
    ]),
    [
      'RST behind the first event',
      (request) => {
        request.startSse();
        request.event(role);
        request.connection.reset();
      },
      200,
      'upstream_reset',
    ],
    [
      'an error behind the first event',
      (request) => {
        request.startSse();
        request.event(content('Hel'));
        request.event(errorEvent);
        request.endChunks();
      },
      200,
      'upstream_error_event',
    ],
    [
      'RST inside a JSON answer',
      ({ connection }) => {
        connection.write('HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"choices"');
        connection.reset();
      },
      200,
      'upstream_reset',
    ],
  ];
  for (const [name, play, status, outcome] of began) {
    const { main, other, gateway, client } = await start(t);
    client.request(chat);
    play(await main.request());
    t.equal((await client.head()).status, status, name);
    t.match(await gateway.ended(), { outcome, upstream: 'main', attempts: 1 }, name);
    t.equal(other.requestCount, 0, name);
  }
});

t.test('a call that leaves something behind, or is longer than may be replayed, goes to one upstream only', async (t) => {
  const long = JSON.stringify({ model: 'm', stream: true, messages: [{ role: 'user', content: 'x'.repeat(2000) }] });
  const pinned: [name: string, call: object, row?: object][] = [
    ['a stored answer, which is the default of Responses', { ...chat, target: '/v1/responses', body: '{"model":"m"}' }],
    ['an answer to a stored one', { ...chat, target: '/v1/responses', body: '{"model":"m","store":false,"previous_response_id":"r"}' }],
    ['store said twice', { ...chat, target: '/v1/responses', body: '{"model":"m","store":true,"store":false}' }],
    ['a stored completion', { ...chat, body: '{"model":"m","store":true}' }],
    ['a batch', { ...chat, target: '/v1/batches', body: '{"model":"m","input_file_id":"f"}' }],
    ['a fine-tuning job', { ...chat, target: '/v1/fine_tuning/jobs', body: '{"model":"m"}' }],
    ['a path that nobody knows', { ...chat, target: '/v1/brand/new', body: '{"model":"m"}' }],
    ['a long body', { ...chat, body: long }, { replay: '1KiB' }],
  ];
  for (const [name, call, row = {}] of pinned) {
    const { main, other, gateway, client } = await start(t, { row });
    client.request(call);
    (await main.request()).respond(503, json, '{"error":{"message":"full"}}');
    t.equal((await client.head()).status, 503, name);
    t.match(await gateway.ended(), { attempts: 1, upstream: 'main' }, name);
    t.equal(other.requestCount, 0, name);
  }
  const moving: [name: string, call: object, row?: object][] = [
    ['an answer that is not stored', { ...chat, target: '/v1/responses', body: '{"model":"m","store":false}' }],
    ['embeddings', { ...chat, target: '/v1/embeddings', body: '{"model":"m","input":"x"}' }],
    ['Anthropic messages', { ...chat, target: '/v1/messages', body: '{"model":"m"}' }],
    ['a model that stands in the path', { ...chat, target: '/openai/deployments/m/chat/completions', body: '{"messages":[]}' }],
    ['what is known of a model', { method: 'GET', target: '/v1/models/m' }],
    ['a body that is just short enough', { ...chat, body: long }, { replay: `${long.length}` }],
  ];
  for (const [name, call, row = {}] of moving) {
    const { main, other, gateway, client } = await start(t, { row });
    client.request(call);
    (await main.request()).respond(503, json, '{"error":{"message":"full"}}');
    const second = await other.request();
    t.equal((await second.body()).toString(), 'body' in call ? String(call.body) : '', name);
    second.respond(200, json, '{}');
    t.equal((await client.head()).status, 200, name);
    t.match(await gateway.ended(), { attempts: 2, upstream: 'other' }, name);
  }
});

t.test('the same upstream is asked again only where the configuration names it twice', async (t) => {
  const { main, gateway, client } = await start(t, { row: { upstreams: ['main', 'main'] } });
  client.request(chat);
  (await main.request()).connection.reset();
  serveStream(await main.request());
  t.equal((await client.head()).status, 200);
  t.match(await gateway.ended(), { attempts: 2, upstream: 'main', outcome: 'completed' });
});

t.test('a client that leaves while tries go on ends them all, and no further one begins', async (t) => {
  const { main, other, gateway, client } = await start(t);
  client.request(chat);
  (await main.request()).respond(503, json, '{}');
  const second = await other.request();
  const { closed } = second.connection;
  client.reset();
  await closed;
  t.match(await gateway.ended(), { outcome: 'client_closed', attempts: 2 });
  const metrics = await gateway.metrics();
  t.equal(metrics.value('sluicegate_streams_active') ?? 0, 0);
  t.equal(metrics.value('sluicegate_upstream_connections', { state: 'active' }), 0);
});

t.test('a client that leaves while the next one is waited for leaves in that phase, and not in one of the last try', async (t) => {
  const { main, other, gateway, client } = await start(t, { upstream: { maxConnections: 1 } });
  client.request(chat);
  (await main.request()).connection.reset();
  await other.request();
  const second = await connect(gateway.port);
  second.request(chat);
  (await main.request()).connection.reset();
  for (let queued = 0; queued !== 1; )
    queued = (await gateway.metrics()).value('sluicegate_upstream_connections', { upstream: 'other', state: 'queued' }) ?? 0;
  second.reset();
  const line = await gateway.ended();
  t.match(line, { outcome: 'client_closed', phase: 'connect', attempts: 2, tried: ['main upstream_reset', 'other aborted'] });
  t.equal(line.cause, undefined);
});

t.test('early headers are something that has gone down: what fails behind them is told as an event, and not tried elsewhere', async (t) => {
  const { main, other, gateway, client } = await start(t, { sse: { earlyHeaders: '30ms' } });
  client.request(chat);
  const request = await main.request();
  t.equal((await client.head()).status, 200);
  request.respond(503, json, '{"error":{"message":"full","type":"server_error","code":"busy"}}');
  t.match(await client.until('}}\n\n'), /"code":"busy"/);
  t.match(await gateway.ended(), { outcome: 'upstream_error', attempts: 1 });
  t.equal(other.requestCount, 0);
});

t.test('an answer that is passed over is read on for the sake of its connection: a little of it, and for a moment', async (t) => {
  const plays: [name: string, play: (request: UpstreamRequest) => void, isKept: boolean][] = [
    ['short', (request) => request.respond(503, json, '{}'), true],
    ['long', ({ connection }) => connection.write(`HTTP/1.1 503 No\r\ncontent-length: 999999\r\n\r\n${'x'.repeat(200_000)}`), false],
    ['endless', ({ connection }) => connection.write('HTTP/1.1 503 No\r\ncontent-length: 9999\r\n\r\nwait'), false],
  ];
  for (const [name, play, isKept] of plays) {
    const { main, other, client } = await start(t);
    client.request(chat);
    const request = await main.request();
    play(request);
    const second = await other.request();
    const passedAtMs = performance.now();
    if (!isKept) {
      const { at } = await request.connection.closed;
      t.ok(name === 'long' ? at - passedAtMs < 700 : at - passedAtMs > 700, `${name}: after ${at - passedAtMs} ms`);
    }
    second.respond(200, json, '{}');
    t.equal((await client.head()).status, 200);
    await client.body();
    client.request(chat);
    (await main.request()).respond(200, json, '{}');
    await client.body();
    t.equal(main.connections.length, isKept ? 1 : 2, name);
  }
  const { main, other, client } = await start(t);
  client.request(chat);
  const endless = await main.request();
  endless.connection.write('HTTP/1.1 503 No\r\ncontent-length: 9999\r\n\r\nwait');
  (await other.request()).respond(200, json, '{}');
  await client.body();
  const endedAtMs = performance.now();
  t.ok((await endless.connection.closed).at - endedAtMs < 700, 'and not for longer than the request lasts');
});

t.test('what is held of a stream is bounded: an event that is longer is no error, and goes down as it comes', async (t) => {
  const { main, other, client } = await start(t);
  client.request(chat);
  const request = await main.request();
  request.startSse();
  request.chunk(`data: {"choices":[{"index":0,"delta":{"content":"${'x'.repeat(300 * 1024)}`);
  t.equal((await client.head()).headers['x-sluicegate-upstream'], 'main', 'before the event has ended');
  t.equal(other.requestCount, 0);
});

t.test('early headers: a body that is not kept any longer is not sent again without its bytes', async (t) => {
  const body = JSON.stringify({ model: 'm', stream: true, messages: ['x'.repeat(5 * 1024 * 1024)] });
  const { main, gateway, client } = await start(t, { sse: { earlyHeaders: '150ms' }, upstream: { usage: 'ask' } });
  client.request({ ...chat, body });
  const request = await main.request();
  await request.body();
  request.connection.write(`HTTP/1.1 400 No\r\ncontent-type: application/json\r\ncontent-length: 47\r\n\r\n{"error":{"message":`);
  t.equal((await client.head()).status, 200);
  request.connection.write('"unknown: stream_options"}}');
  t.match(await client.until('}}\n\n'), 'unknown: stream_options');
  t.match(await gateway.ended(), { outcome: 'upstream_error', attempts: 1 });
  t.equal(main.requestCount, 1);
});

t.test('early headers: an upstream that refuses to be asked for usage after them is remembered as well', async (t) => {
  const { main, gateway, client } = await start(t, { sse: { earlyHeaders: '30ms' }, upstream: { usage: 'ask' } });
  client.request(chat);
  const request = await main.request();
  t.match((await request.body()).toString(), 'stream_options');
  t.equal((await client.head()).status, 200);
  request.respond(400, json, '{"error":{"message":"unknown: stream_options"}}');
  t.match(await gateway.ended(), { outcome: 'upstream_error', attempts: 1 });
  const again = await connect(gateway.port);
  again.request(chat);
  t.equal((await (await main.request()).body()).toString(), chat.body);
});

t.test('the model is called by its own name at each upstream, by a splice: every other byte stays', async (t) => {
  const body = '{ "messages" : [{"model":"m"}],\t"mod\\u0065l" : "m" , "stream":true}';
  const row = { rewrite: 'big-1', upstreams: ['main', { name: 'other', rewrite: 'größer/2"' }] };
  const { main, other, client, gateway } = await start(t, { row, upstream: { usage: 'ask' } });
  client.request({ ...chat, body });
  const first = await main.request();
  t.equal(
    (await first.body()).toString(),
    body.replace(': "m" ,', ': "big-1" ,').replace('{ "me', '{"stream_options":{"include_usage":true}, "me'),
  );
  first.respond(500, json, '{}');
  const second = await other.request();
  t.match((await second.body()).toString(), ': "gr\\u00f6\\u00dfer/2\\"" ,');
  t.equal(JSON.parse((await second.body()).toString()).model, 'größer/2"');
  t.equal(second.headers['content-length'], String((await second.body()).length));
  second.respond(200, json, '{}');
  await client.body();
  t.match(await gateway.ended(), { upstream: 'other' });
  t.equal((await gateway.metrics()).value('sluicegate_requests_total', { model: 'm' }), 1, 'metrics call it by the row');

  const again = await connect(gateway.port);
  again.request({ ...chat, target: '/openai/deployments/m/chat/completions?api-version=1', body: '{"model":"m"}' });
  const azure = await main.request();
  t.equal(azure.target, '/openai/deployments/big-1/chat/completions?api-version=1');
  t.equal((await azure.body()).toString(), '{"model":"m"}', 'it stands in the path');
  azure.respond(200, json, '{}');
});

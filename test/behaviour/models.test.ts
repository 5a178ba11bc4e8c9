// Promise: the model that a call names decides where it goes, what it costs and whether its client may make it; and nobody gets around that.
import { createHash } from 'node:crypto';
import { gzipSync } from 'node:zlib';
import t, { type Test } from 'tap';
import { createPattern } from '../../src/upstream/router.ts';
import { startTestGateway, type TestGateway } from '../support/gateway.ts';
import { type ScriptedUpstream, startUpstream } from '../support/upstream.ts';
import { connect, type WireClient, type WireRequest } from '../support/wire.ts';

const KEY = 'sk-client-of-the-team';
const json = { 'content-type': 'application/json' };
const withKey = { ...json, authorization: `Bearer ${KEY}` };
const hash = createHash('sha256').update(KEY).digest('hex');

interface Scene {
  readonly main: ScriptedUpstream;
  readonly other: ScriptedUpstream;
  readonly gateway: TestGateway;
  readonly client: WireClient;
}

async function start(t: Test, settings: Record<string, object> = {}): Promise<Scene> {
  const [main, other] = [await startUpstream(), await startUpstream()];
  t.teardown(() => Promise.all([main.close(), other.close()]));
  const gateway = await startTestGateway(t, main.url, {
    ...settings,
    upstreams: { other: { baseUrl: other.url, apiKey: 'sk-other', usage: 'asSent' } },
  });
  return { main, other, gateway, client: await connect(gateway.port) };
}

/** Sends a call and answers it from the upstream that gets it; returns that one's name. */
async function serve({ main, other, client, gateway }: Scene, request: WireRequest, answer = '{}'): Promise<string> {
  client.request({ method: 'POST', target: '/v1/chat/completions', headers: json, ...request });
  const [name, got] = await Promise.race([
    main.request().then((it) => ['main', it] as const),
    other.request().then((it) => ['other', it] as const),
  ]);
  t.equal((await got.body()).toString(), request.body?.toString() ?? '', 'the body goes up as it was sent');
  got.respond(200, json, answer);
  await client.body();
  await gateway.ended();
  return name;
}

t.test(
  'the first row whose pattern fits decides, by the model in the body or in the path; without one the first upstream serves',
  async (t) => {
    const rows = [
      { match: 'local/*-instruct', upstreams: ['other'] },
      { match: 'gpt-4o', upstreams: ['main'] },
      { match: 'gpt-4*', upstreams: ['other'] },
    ];
    const table: [request: WireRequest, name: string][] = [
      [{ body: '{"model":"gpt-4o"}' }, 'main'],
      [{ body: '{"messages":[{"model":"gpt-4o"}],"mod\\u0065l" : "gpt-4-turbo"}' }, 'other'],
      [{ body: '\ufeff{"model":"gpt-4-turbo"}', chunked: true }, 'other'],
      [{ body: '{"model":"local/llama-instruct"}' }, 'other'],
      [{ body: '{"model":"local/llama"}' }, 'main'],
      [{ body: '{"model":"GPT-4-turbo"}' }, 'main'],
      [{ body: '{}' }, 'main'],
      [{ body: '{"model":"x"}', target: '/openai/deployments/gpt-4-turbo/chat/completions?api-version=1' }, 'other'],
      [{ method: 'GET', headers: {}, target: '/v1/models/gpt%2D4-turbo' }, 'other'],
      [{ body: 'no JSON', headers: { 'content-type': 'multipart/form-data; boundary=x' }, target: '/v1/audio/transcriptions' }, 'main'],
    ];
    for (const [request, name] of table) t.equal(await serve(await start(t, { models: rows }), request), name, JSON.stringify(request));
  },
);

t.test('C16 C17 what could be read as two models, or as none, is refused, and goes nowhere', async (t) => {
  const scene = await start(t, { models: [{ match: 'a', upstreams: ['main'] }] });
  for (const [status, headers, body] of [
    [400, json, '{"model":"a","model":"b"}'],
    [400, json, '{"model":"a","MODEL":"b"}'],
    [400, json, '{"model":["a"]}'],
    [400, json, '{"model":"a"} {"model":"b"}'],
    [400, json, '{"model":"a"'],
    [400, json, '["a"]'],
    [400, json, '['.repeat(1_048_576)],
    [400, json, `{"model":"a","x":${'['.repeat(100_000)}`],
    [415, { ...json, 'content-encoding': 'gzip' }, gzipSync('{"model":"a"}')],
    [415, { 'content-type': 'text/plain' }, '{"model":"a"}'],
    [415, { 'content-type': 'multipart/form-data; boundary=x' }, '{"model":"a"}'],
    [415, {}, '{"model":"a"}'],
  ] as const) {
    const client = await connect(scene.gateway.port);
    client.request({ method: 'POST', target: '/v1/chat/completions', headers, body });
    t.equal((await client.head()).status, status, body.toString().slice(0, 60));
    t.match(JSON.parse((await client.body()).toString()), { error: { type: 'invalid_request_error' } });
    t.match(await scene.gateway.ended(), { outcome: 'rejected', attempts: 0 });
  }
  t.equal(scene.main.requestCount, 0);
});

t.test('D8 D22 a client with a list of models may call those, by whatever way it names them, and nothing else', async (t) => {
  const clients = [{ name: 'team', keySha256: hash, models: ['gpt-4o*'], endpoints: ['/v1/files*'] }];
  const scene = await start(t, { clients });
  const allowed: WireRequest[] = [
    { body: '{"model":"gpt-4o-mini"}' },
    { body: '{"model":"gpt-4o"}', target: '/openai/deployments/gpt-4o/chat/completions' },
    { body: '{"model":"gpt-4o"}', headers: { ...withKey, 'content-type': 'application/json; charset="UTF-8"' } },
    { method: 'GET', target: '/v1/models/gpt-4o' },
    { method: 'GET', target: '/v1/files' },
    { body: 'file', headers: { authorization: `Bearer ${KEY}`, 'content-type': 'multipart/form-data; boundary=x' }, target: '/v1/files' },
  ];
  for (const request of allowed) t.equal(await serve(scene, { headers: withKey, ...request }), 'main', JSON.stringify(request));

  const { requestCount } = scene.main;
  const refused: [status: number, request: WireRequest][] = [
    [403, { body: '{"model":"gpt-5"}' }],
    [403, { body: '{"model":"GPT-4o"}' }],
    [403, { body: '{"model":" gpt-4o"}' }],
    [403, { body: '{"model":"gpt-4\u043e"}' }],
    [403, { body: '{"model":"gpt-4o","models":["gpt-5"]}' }],
    [403, { body: '{"model":"gpt-4o","Fallbacks":["gpt-5"]}' }],
    [403, { body: '{"model":"gpt-4o"}', target: '/v1/chat/completions?x=1&mod%65l=gpt-5' }],
    [403, { body: '{}' }],
    [403, { body: '{"messages":[{"model":"gpt-4o"}]}' }],
    [400, { body: '{"model":"gpt-4o","model":"gpt-5"}' }],
    [400, { body: '{"model":"gpt-4o","Model":"gpt-5"}' }],
    [403, { body: '{"model":"gpt-4o"}', target: '/openai/deployments/gpt-5/chat/completions' }],
    [403, { body: '{"model":"gpt-5"}', target: '/openai/deployments/gpt-4o/chat/completions' }],
    [403, { body: '{"model":"gpt-4o"}', headers: { authorization: `Bearer ${KEY}`, 'content-type': 'text/plain' } }],
    [
      415,
      {
        body: '{"model":"gpt-5"}',
        headers: { authorization: `Bearer ${KEY}`, 'content-type': 'text/plain' },
        target: '/openai/deployments/gpt-4o/chat/completions',
      },
    ],
    [415, { body: gzipSync('{"model":"gpt-4o"}'), headers: { ...withKey, 'content-encoding': 'gzip' } }],
    [403, { body: '', headers: withKey }],
    [
      403,
      {
        body: 'x',
        headers: { authorization: `Bearer ${KEY}`, 'content-type': 'multipart/form-data; boundary=x' },
        target: '/v1/audio/transcriptions',
      },
    ],
    [403, { body: '{"input_file_id":"f"}', target: '/v1/batches' }],
    [403, { body: '{"model":"gpt-4o","input_file_id":"f"}', target: '/v1/batches' }],
    [403, { body: '{"model":"gpt-4o","input_file_id":"f"}', target: '/v1/%62atches/' }],
    [403, { body: '{"model":"gpt-4o","requests":[{"params":{"model":"gpt-5"}}]}', target: '/v1/messages/batches' }],
    [403, { body: '{"model":"gpt-4o"}', target: '/openai/Deployments/gpt-5/chat/completions' }],
    [403, { body: '{"model":"gpt-4o"}', target: '/openai/%64eployments/gpt-5/chat/completions' }],
    [403, { body: '{"model":"gpt-4o"}', target: '/openai/deployments%2Fgpt-5/chat/completions' }],
    [403, { body: '{"model":"gpt-4o"}', target: '/openai/deployments;x=1/gpt-5/chat/completions' }],
    [403, { body: '{"model":"gpt-4o"}', target: '/v1/deployments/gpt-5/chat/completions' }],
    [403, { body: '{"model":"gpt-4o"}', target: '/v1/engines/gpt-5/completions' }],
    [403, { body: '{"model":"gpt-4o"}', target: '/v1/model/gpt-5/invoke' }],
    [403, { body: '{"model":"gpt-4o"}', target: '/v1/projects/p/models/gpt-5:generateContent' }],
    [415, { body: '{"model":"gpt-4o","+AG0-odel":"gpt-5"}', headers: { ...withKey, 'content-type': 'application/json; charset=utf-7' } }],
    [415, { body: '{"model":"gpt-4o"}', headers: [...Object.entries(withKey), ['Content-Type', 'multipart/form-data; boundary=x']] }],
    [403, { method: 'GET', target: '/v1/responses/resp_1' }],
    [403, { method: 'DELETE', target: '/v1/models/gpt-5' }],
  ];
  for (const [status, request] of refused) {
    const client = await connect(scene.gateway.port);
    client.request({ method: 'POST', target: '/v1/chat/completions', headers: withKey, ...request });
    const { error } = JSON.parse((await client.body()).toString());
    const line = await scene.gateway.ended();
    t.equal(line.status, status, JSON.stringify(request));
    t.equal(line.rejection, error.code);
    if (status === 403) t.equal(error.code, 'model_not_allowed');
  }
  t.equal(scene.main.requestCount, requestCount, 'the upstream heard of none of them');
  t.equal((await scene.gateway.metrics()).value('sluicegate_rejections_total', { client: 'team', reason: 'model_not_allowed' }), 28);
});

t.test('such a client sees the models that it may call', async (t) => {
  const scene = await start(t, { clients: [{ name: 'team', keySha256: hash, models: ['gpt-4o*'] }] });
  const list = {
    object: 'list',
    data: [{ id: 'gpt-4o', owned_by: 'x' }, { id: 'gpt-5' }, null, {}, { id: 'gpt-4o-mini' }],
    has_more: false,
  };
  const shown = { ...list, data: [{ id: 'gpt-4o', owned_by: 'x' }, { id: 'gpt-4o-mini' }] };
  for (const [answer, expected] of [
    [JSON.stringify(list), shown],
    ['<html>', { object: 'list', data: [] }],
    ['{"data":7}', { object: 'list', data: [] }],
  ] as const) {
    scene.client.request({ target: '/v1/models', headers: withKey });
    const request = await scene.main.request();
    request.respond(200, { ...json, etag: '"1"' }, answer);
    const head = await scene.client.head();
    const body = await scene.client.body();
    t.same(JSON.parse(body.toString()), expected);
    t.match(head.headers, { 'content-type': 'application/json', 'content-length': String(body.length) });
    t.notOk(head.headers.etag);
  }
  scene.client.request({ target: '/v1/models', headers: { ...withKey, range: 'bytes=0-' } });
  (await scene.main.request()).respond(206, { ...json, 'content-range': 'bytes 0-1/2' }, JSON.stringify(list));
  t.same(JSON.parse((await scene.client.body()).toString()), shown, 'whatever its status');
  scene.client.request({ target: '/v1/models', headers: withKey });
  (await scene.main.request()).respond(500, json, '{"error":{"message":"own"}}');
  t.match((await scene.client.body()).toString(), 'own', 'an error is the upstream’s own');
});

t.test('tokens have their price: each part its own, or that of the whole; metrics call the model by its row', async (t) => {
  const price = { input: 2.5, cachedInput: 1.25, output: 10, audioOutput: 80 };
  const scene = await start(t, { models: [{ match: 'gpt-4o*', upstreams: ['main'], price }] });
  const usage = {
    prompt_tokens: 1000,
    completion_tokens: 100,
    prompt_tokens_details: { cached_tokens: 400, audio_tokens: 100 },
    completion_tokens_details: { reasoning_tokens: 50, audio_tokens: 20 },
  };
  scene.client.request({ method: 'POST', target: '/v1/chat/completions', headers: json, body: '{"model":"gpt-4o-mini"}' });
  (await scene.main.request()).respond(200, json, JSON.stringify({ model: 'gpt-4o-mini-2026', usage }));
  await scene.client.body();
  // 500 plain and 100 audio at 2.50, 400 cached at 1.25, 80 at 10, 20 audio at 80 dollars a million
  const costUsd = (600 * 2.5 + 400 * 1.25 + 80 * 10 + 20 * 80) / 1e6;
  t.match(await scene.gateway.ended(), { model: 'gpt-4o-mini-2026', costUsd });
  const metrics = await scene.gateway.metrics();
  const labels = { client: 'anonymous', upstream: 'main', model: 'gpt-4o*' };
  t.equal(metrics.value('sluicegate_cost_usd_total', labels), costUsd);
  t.equal(metrics.value('sluicegate_tokens_total', { ...labels, kind: 'output', source: 'reported' }), 100);
  t.equal(metrics.value('sluicegate_requests_total', { ...labels, outcome: 'completed' }), 1);
});

t.test('a pattern is linear in the name, and * is its only wildcard', async (t) => {
  const table: [pattern: string, fits: string[], not: string[]][] = [
    ['*', ['', 'a'], []],
    ['gpt', ['gpt'], ['gpt-4', 'xgpt', '']],
    ['gpt-*', ['gpt-', 'gpt-4'], ['gpt', 'xgpt-4']],
    ['*-mini', ['-mini', 'x-mini'], ['x-mini-2']],
    ['a*b*c', ['abc', 'axbyc', 'abbcc'], ['ab', 'acb', 'abcx']],
    ['ab*ba', ['abba', 'abxba'], ['aba']],
    ['a.c', ['a.c'], ['abc']],
  ];
  for (const [pattern, fits, not] of table) {
    const isFit = createPattern(pattern);
    for (const name of fits) t.ok(isFit(name), `${pattern} fits ${name}`);
    for (const name of not) t.notOk(isFit(name), `${pattern} does not fit ${name}`);
  }
  t.notOk(createPattern(`${'a*'.repeat(30)}b`)('a'.repeat(60_000)), 'a pattern that would take for ever as a regular expression');
});

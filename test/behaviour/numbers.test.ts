// Promise: the numbers on /metrics and in the log are what really travelled.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import type { Tokenizer } from '../../src/stream/tokens.ts';
import { startTestGateway, UPSTREAM_KEY } from '../support/gateway.ts';
import { parseMetrics } from '../support/metrics.ts';
import { createRandom } from '../support/random.ts';
import { expectedUsage, recordedStreams } from '../support/streams.ts';
import { startUpstream } from '../support/upstream.ts';
import { connect, type WireClient, type WireRequest } from '../support/wire.ts';

const chat = {
  method: 'POST',
  target: '/v1/chat/completions',
  headers: { authorization: 'Bearer sk-client-canary' },
  body: '{"model":"gpt-x","stream":true,"messages":["prompt-canary"]}',
};
const chunk = (content: string) => ({ id: 'c', model: 'gpt-x-2026', choices: [{ index: 0, delta: { content }, finish_reason: null }] });

t.test('a stream that reports its usage', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const client = await connect(gateway.port);
  client.request(chat);
  const request = await upstream.request();
  request.startSse();
  request.event({ id: 'c', model: 'gpt-x-2026', choices: [{ index: 0, delta: { role: 'assistant', content: '' } }] });
  for (const word of ['One', ' two', ' three']) request.event(chunk(word));
  await client.until('three');

  const during = await gateway.metrics();
  t.equal(during.value('sluicegate_streams_active', { client: 'anonymous', upstream: 'main', model: 'gpt-x-2026' }), 1);
  t.equal(during.value('sluicegate_relayed_tokens_total', { model: 'gpt-x-2026' }), 3, 'tokens show while they flow');
  t.equal(during.value('sluicegate_relayed_events_total', { upstream: 'main' }), 4);
  t.equal(during.value('sluicegate_tokens_total') ?? 0, 0, 'the bill is written at the end');

  const usage = {
    prompt_tokens: 10,
    completion_tokens: 7,
    total_tokens: 17,
    prompt_tokens_details: { cached_tokens: 4 },
    completion_tokens_details: { reasoning_tokens: 2 },
  };
  request.event({ id: 'c', model: 'gpt-x-2026', choices: [], usage });
  request.chunk('data: [DONE]\n\n');
  request.endChunks();
  const body = await client.body();

  const line = await gateway.ended();
  t.match(line, {
    level: Number,
    time: String,
    requestId: /.+/,
    client: 'anonymous',
    upstream: 'main',
    model: 'gpt-x-2026',
    endpoint: '/v1/chat/completions',
    status: 200,
    outcome: 'completed',
    phase: 'stream',
    ttfbMs: Number,
    ttftMs: Number,
    durationMs: Number,
    tokens: { input: 10, output: 7, cachedInput: 4, reasoning: 2, inputSource: 'reported', outputSource: 'reported' },
    bytesIn: chat.body.length,
    bytesOut: body.length,
    attempts: 1,
    remoteAddress: '127.0.0.1',
  });
  const metrics = await gateway.metrics();
  const labels = { client: 'anonymous', upstream: 'main', model: 'gpt-x-2026' };
  t.equal(metrics.value('sluicegate_requests_total', { ...labels, endpoint: '/v1/chat/completions', outcome: 'completed' }), 1);
  t.equal(metrics.value('sluicegate_tokens_total', { ...labels, kind: 'input', source: 'reported' }), 10);
  t.equal(metrics.value('sluicegate_tokens_total', { ...labels, kind: 'output', source: 'reported' }), 7);
  t.equal(metrics.value('sluicegate_token_details_total', { ...labels, kind: 'cached_input' }), 4);
  t.equal(metrics.value('sluicegate_token_details_total', { ...labels, kind: 'reasoning' }), 2);
  t.equal(metrics.value('sluicegate_responses_total', { upstream: 'main', status: '200' }), 1);
  t.equal(metrics.value('sluicegate_relayed_bytes_total', { direction: 'out' }), body.length);
  t.equal(metrics.value('sluicegate_relayed_bytes_total', { direction: 'in' }), chat.body.length);
  t.equal(metrics.value('sluicegate_relayed_events_total'), 6);
  t.equal(metrics.value('sluicegate_time_to_first_token_seconds_count', { upstream: 'main', model: 'gpt-x-2026' }), 1);
  t.equal(metrics.value('sluicegate_time_to_first_byte_seconds_count'), 1);
  t.equal(metrics.value('sluicegate_time_per_output_token_seconds_count'), 1);
  t.equal(metrics.value('sluicegate_request_duration_seconds_count', { outcome: 'completed' }), 1);
  t.equal(metrics.value('sluicegate_overhead_seconds_count', { part: 'request' }), 1);
  t.ok((metrics.value('sluicegate_overhead_seconds_count', { part: 'chunk' }) ?? 0) >= 1);
  t.equal(metrics.value('gen_ai_client_operation_duration_seconds_count', { gen_ai_operation_name: 'chat' }), 1);
  t.equal(metrics.value('gen_ai_client_token_usage_sum', { gen_ai_token_type: 'output' }), 7);
  t.equal(metrics.value('sluicegate_streams_active') ?? 0, 0);
  for (const secret of [UPSTREAM_KEY, 'canary', 'prompt', 'three']) t.notMatch(gateway.output, secret, `no "${secret}" in the log`);
});

t.test('a stream that is aborted: the tokens of what was relayed, counted here', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const client = await connect(gateway.port);
  client.request(chat);
  const request = await upstream.request();
  request.startSse();
  for (const word of ['The', ' quick', ' brown', ' fox']) request.event(chunk(word));
  await client.until('fox');
  client.reset();
  t.match(await gateway.ended(), { outcome: 'client_closed', tokens: { output: 4, outputSource: 'counted' } });
  const metrics = await gateway.metrics();
  t.equal(metrics.value('sluicegate_tokens_total', { kind: 'output', source: 'counted' }), 4);
  t.equal(metrics.value('sluicegate_tokens_total', { kind: 'input' }), undefined, 'what is not known (no JSON) is not recorded');

  const json = await connect(gateway.port);
  const body = JSON.stringify({ model: 'gpt-4o', stream: true, messages: [{ role: 'user', content: 'How are you?' }] });
  for (const target of ['/v1/chat/completions', '/v1/responses', '/v1/messages']) {
    json.request({ method: 'POST', target, headers: { 'content-type': 'application/json' }, body });
    const asked = await upstream.request();
    asked.respond(200, { 'content-type': 'application/json' }, '{"id":"no usage"}');
    await json.body();
    // 3 for the message, 1 for its role, 4 for its text, 3 for the reply to come
    t.match(await gateway.ended(), { tokens: { input: 11, inputSource: 'counted' } }, target);
  }
  t.ok((await gateway.metrics()).value('sluicegate_tokens_total', { kind: 'input', source: 'counted' }));
});

t.test('onClientGone: drain reads on, unsent, so that the tokens of an aborted stream are those that will be billed', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const drain = { drain: '30s', tokens: 100 };
  const models = [{ match: '*', upstreams: ['main'], price: { output: 10 } }];
  const gateway = await startTestGateway(t, upstream.url, { upstream: { onClientGone: drain }, models });
  const labels = { upstream: 'main', model: '*' };
  const begin = async () => {
    const client = await connect(gateway.port);
    client.request({ ...chat, headers: { 'content-type': 'application/json' } });
    return { client, request: await upstream.request() };
  };
  const left = async () => {
    for (let active = 1; active > 0; )
      active = (await gateway.metrics()).value('sluicegate_upstream_connections', { state: 'active' }) ?? 0;
  };
  /** What was reset before the metrics were asked for is known when they come. */
  const leave = async (client: WireClient) => {
    client.reset();
    await gateway.metrics();
  };
  const usage = { prompt_tokens: 10, completion_tokens: 7, total_tokens: 17 };

  const streamed = await begin();
  streamed.request.startSse();
  streamed.request.event(chunk('One'));
  await streamed.client.until('One');
  await leave(streamed.client);
  for (const word of [' two', ' three']) streamed.request.event(chunk(word));
  streamed.request.event({ id: 'c', choices: [{ index: 0, delta: {}, finish_reason: 'stop' }], usage });
  streamed.request.chunk('data: [DONE]\n\n');
  streamed.request.endChunks();
  t.match(await gateway.ended(), {
    outcome: 'client_closed',
    tokens: { input: 10, output: 7, outputSource: 'reported' },
    costUsd: 7e-5,
    bytesOut: `data: ${JSON.stringify(chunk('One'))}\n\n`.length,
  });
  t.equal((await gateway.metrics()).value('sluicegate_unheard_tokens_total', labels), 2, 'the metric shows what nobody heard');
  t.equal((await gateway.metrics()).value('sluicegate_tokens_total', { ...labels, kind: 'output', source: 'reported' }), 7);

  const early = await begin();
  await early.request.body();
  await leave(early.client);
  early.request.respond(200, { 'content-type': 'application/json' }, JSON.stringify({ model: 'gpt-x', usage }));
  t.match(
    await gateway.ended(),
    { outcome: 'client_closed', tokens: { input: 10, output: 7, outputSource: 'reported' } },
    'before the head',
  );

  const endless = await begin();
  endless.request.startSse();
  endless.request.event(chunk('One'));
  await endless.client.until('One');
  await leave(endless.client);
  for (let n = 0; n < 200; n++) endless.request.event(chunk(' more'));
  t.match(await endless.request.connection.closed, {}, 'no more than so many tokens');
  t.match(await gateway.ended(), { outcome: 'client_closed', tokens: { outputSource: 'counted' } });

  const broken = await begin();
  broken.request.startSse();
  broken.request.event(chunk('One'));
  await broken.client.until('One');
  await leave(broken.client);
  broken.request.event(chunk(' two'));
  broken.request.connection.reset();
  t.match(await gateway.ended(), { outcome: 'client_closed', tokens: { output: 2, outputSource: 'counted' } });
  await left();
});

t.test('drain ends in time', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url, { upstream: { onClientGone: { drain: '50ms' } } });
  const client = await connect(gateway.port);
  client.request(chat);
  const request = await upstream.request();
  request.startSse();
  request.event(chunk('One'));
  await client.until('One');
  client.reset();
  await request.connection.closed;
  t.match(await gateway.ended(), { outcome: 'client_closed', tokens: { output: 1, outputSource: 'counted' } });
});

t.test('nothing is read on that costs nothing: neither a refusal to be asked, nor a list of models', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const clients = [{ name: 'team', keySha256: createHash('sha256').update('sk-team').digest('hex'), models: ['gpt-x'] }];
  const gateway = await startTestGateway(t, upstream.url, { clients, upstream: { usage: 'ask', onClientGone: { drain: '30s' } } });
  const withKey = { authorization: 'Bearer sk-team', 'content-type': 'application/json' };
  const list: WireRequest = { target: '/v1/models', headers: withKey };
  for (const [status, sent] of [
    [400, { ...chat, headers: withKey }],
    [200, list],
  ] as const) {
    const client = await connect(gateway.port);
    client.request(sent);
    const request = await upstream.request();
    await request.body();
    request.connection.write(`HTTP/1.1 ${status} x\r\ncontent-type: application/json\r\ncontent-length: 40\r\n\r\n{"stream_options"`);
    for (let heads = 0; heads < 1; ) heads = (await gateway.metrics()).value('sluicegate_responses_total', { status: `${status}` }) ?? 0;
    client.reset();
    await request.connection.closed;
    t.match(await gateway.ended(), { outcome: 'client_closed', attempts: 1 });
  }
  t.equal(upstream.requestCount, 2);
});

t.test('nor a file that only comes after its client has left', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url, { upstream: { onClientGone: { drain: '30s' } } });
  const client = await connect(gateway.port);
  client.request({ target: '/v1/files/f/content' });
  const request = await upstream.request();
  client.reset();
  await gateway.metrics(); // its going is known
  request.respond(200, { 'content-type': 'application/octet-stream', 'content-length': '1000000' }, 'a beginning');
  await request.connection.closed;
  t.match(await gateway.ended(), { outcome: 'client_closed', status: 200 });
});

t.test('a gateway that shuts down reads on, within its own drain', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const settings = { upstream: { onClientGone: { drain: '30s' } }, server: { drain: '30s' } };
  const gateway = await startTestGateway(t, upstream.url, settings);
  const client = await connect(gateway.port);
  client.request(chat);
  const request = await upstream.request();
  request.startSse();
  request.event(chunk('One'));
  await client.until('One');
  client.reset();
  await gateway.metrics();
  const closed = gateway.close();
  await new Promise((resolve) => setImmediate(resolve));
  const usage = { prompt_tokens: 10, completion_tokens: 7, total_tokens: 17 };
  request.event({ id: 'c', choices: [{ index: 0, delta: {}, finish_reason: 'stop' }], usage });
  request.chunk('data: [DONE]\n\n');
  request.endChunks();
  await closed;
  t.match(await gateway.ended(), { outcome: 'client_closed', tokens: { input: 10, output: 7, outputSource: 'reported' } });
});

t.test('an answer that is not streamed', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const client = await connect(gateway.port);
  client.request({ ...chat, target: '/v1/embeddings' });
  const request = await upstream.request();
  request.respond(
    200,
    { 'content-type': 'application/json' },
    JSON.stringify({ data: [{ embedding: [1, 2] }], model: 'text-embedding-3', usage: { prompt_tokens: 8, total_tokens: 8 } }),
  );
  await client.body();
  t.match(await gateway.ended(), { model: 'text-embedding-3', tokens: { input: 8, inputSource: 'reported' } });
  t.equal((await gateway.metrics()).value('sluicegate_tokens_total', { model: 'text-embedding-3', kind: 'input' }), 8);
});

t.test('whoever reads right behind an answer reads of it, and closing loses no line', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const client = await connect(gateway.port);
  for (let call = 1; call <= 12; call++) {
    client.request({ ...chat, target: '/v1/embeddings' });
    (await upstream.request()).respond(200, { 'content-type': 'application/json' }, '{"usage":{"prompt_tokens":8}}');
    await client.body();
    if (call % 2 === 0) t.equal((await gateway.metrics()).value('sluicegate_tokens_total', { kind: 'input' }), 8 * call);
    else t.match(gateway.look(), { streamCount: 0, totals: { requests: call } });
  }
  client.request({ ...chat, target: '/v1/embeddings' });
  (await upstream.request()).respond(200, {}, '{}');
  await client.body();
  await gateway.close();
  t.equal(gateway.output.match(/"msg":"request"/g)?.length, 13);
});

t.test('D16 model names from outside cannot grow the registry without bound', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const client = await connect(gateway.port);
  for (let n = 0; n < 130; n++) {
    client.request({ method: 'POST', target: '/v1/embeddings', body: '{}' });
    (await upstream.request()).respond(
      200,
      { 'content-type': 'application/json' },
      JSON.stringify({ model: n < 5 ? 'no good\nname' : `m-${n}`, usage: { prompt_tokens: 1 } }),
    );
    await client.body();
    await gateway.ended();
  }
  const series = (await gateway.metrics()).series('sluicegate_requests_total');
  t.equal(series.length, 101);
  t.equal((await gateway.metrics()).value('sluicegate_requests_total', { model: 'other' }), 30);
});

const streams = recordedStreams();
const endpoints = { chat: '/v1/chat/completions', completions: '/v1/completions', responses: '/v1/responses', anthropic: '/v1/messages' };
t.test(
  'every recorded stream passes byte for byte, however it is cut, and is counted as its provider reported it',
  { skip: streams ? false : 'the recorded streams are not here' },
  async (t) => {
    const upstream = await startUpstream();
    t.teardown(() => upstream.close());
    const gateway = await startTestGateway(t, upstream.url);
    const random = createRandom(5);
    for (const { file, dialect, usage, bytes } of streams ?? []) {
      for (const longest of [70_000, 500]) {
        const client = await connect(gateway.port);
        client.request({ method: 'POST', target: endpoints[dialect], body: '{}' });
        const request = await upstream.request();
        request.startSse();
        for (let at = 0, end = 0; at < bytes.length; at = end) {
          end = Math.min(bytes.length, at + 1 + random(longest));
          request.chunk(bytes.subarray(at, end));
        }
        request.endChunks();
        t.ok((await client.body()).equals(bytes), file);
        const { input, output, cachedInput, reasoning } = expectedUsage(usage, dialect);
        const details = { ...(cachedInput > 0 && { cachedInput }), ...(reasoning > 0 && { reasoning }) };
        t.match(await gateway.ended(), { outcome: 'completed', tokens: { input, output, ...details, outputSource: 'reported' } }, file);
      }
    }
  },
);

t.test('a fault of the meter: counted, and the stream is whole all the same', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const tokenizer: Tokenizer = {
    count: () => Promise.reject(new Error('injected')),
    countPrompt: () => Promise.reject(new Error('injected')),
    countAnswer: () => Promise.reject(new Error('injected')),
    close: async () => undefined,
  };
  const gateway = await startTestGateway(t, upstream.url, {}, tokenizer);
  const client = await connect(gateway.port);
  client.request(chat);
  const request = await upstream.request();
  request.startSse();
  const events = Array.from({ length: 50 }, (_, n) => `data: ${JSON.stringify(chunk(`${n} ${'x'.repeat(500)}`))}\n\n`);
  for (const event of [...events, 'data: [DONE]\n\n']) request.chunk(event);
  request.endChunks();
  t.equal((await client.body()).toString(), `${events.join('')}data: [DONE]\n\n`);
  t.match(await gateway.ended(), { outcome: 'completed', tokens: undefined });
  t.equal((await gateway.metrics()).value('sluicegate_meter_faults_total', { upstream: 'main' }), 1);
});

const skip = spawnSync('promtool', ['--version']).error ? 'promtool (Debian: prometheus) is not installed' : false;
t.test('the example alerts fire when they should, and not otherwise', { skip }, async (t) => {
  const file = fileURLToPath(new URL('../../config/prometheus/rules.test.yaml', import.meta.url));
  const { status, stdout, stderr } = spawnSync('promtool', ['test', 'rules', file], { encoding: 'utf8' });
  t.equal(status, 0, stdout + stderr);
});

t.test('promtool finds nothing to object to', { skip }, async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const client = await connect(gateway.port);
  client.request(chat);
  const request = await upstream.request();
  request.startSse();
  request.event(chunk('x'));
  await client.until('x');
  client.reset();
  await gateway.ended();
  const text = await (await fetch(`${gateway.opsUrl}/metrics`)).text();
  const { status, stdout, stderr } = spawnSync('promtool', ['check', 'metrics'], { input: text, encoding: 'utf8' });
  t.equal(`${stdout}${stderr}`, '');
  t.equal(status, 0);
  const openMetrics = await fetch(`${gateway.opsUrl}/metrics`, { headers: { accept: 'application/openmetrics-text; version=1.0.0' } });
  t.match(openMetrics.headers.get('content-type'), /^application\/openmetrics-text/);
  t.match(await openMetrics.text(), /# EOF\n$/);
  const again = parseMetrics(await (await fetch(`${gateway.opsUrl}/metrics`)).text());
  t.ok(again.names.has('sluicegate_requests_total'), 'and who asks for the older format afterwards gets its names');
});

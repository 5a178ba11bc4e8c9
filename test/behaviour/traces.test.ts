// Promise: each request is a span, each try at an upstream another, sent by OTLP; a collector that is down hurts nobody, and without one nothing is loaded.
import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { stringify } from 'yaml';
import { loadConfig } from '../../src/config.ts';
import { createExchange, type Exchange } from '../../src/exchange.ts';
import { openOutbox } from '../../src/telemetry/otlp.ts';
import type { Span } from '../../src/telemetry/spans.ts';
import { createTracer } from '../../src/telemetry/traces.ts';
import { type CollectedSpan, type Collector, startCollector } from '../support/collector.ts';
import { startTestGateway, type TestGateway, UPSTREAM_KEY } from '../support/gateway.ts';
import { command, runCommand, runSluicegate } from '../support/process.ts';
import { openSession, startSessions } from '../support/sessions.ts';
import { type ScriptedUpstream, startUpstream, type UpstreamRequest } from '../support/upstream.ts';
import { connect, type WireClient } from '../support/wire.ts';

t.jobs = 3;
// The exporter asks again for 10 s otherwise, and holds this process for as long.
process.env.OTEL_EXPORTER_OTLP_TIMEOUT = '300';

const SERVER = 2;
const CLIENT = 3;
const ERROR = 2;
const TRACE_ID = '0af7651916cd43dd8448eb211c80319c';
const PARENT_ID = 'b7ad6b7169203331';
const json = { 'content-type': 'application/json' };
const chat = { method: 'POST', target: '/v1/chat/completions', headers: json, body: '{"model":"gpt-x","stream":true}' };
const content = (text: string) => ({ model: 'gpt-x-2026', choices: [{ index: 0, delta: { content: text } }] });
const usage = {
  choices: [],
  usage: {
    ...{ prompt_tokens: 11, completion_tokens: 7, total_tokens: 18 },
    ...{ prompt_tokens_details: { cached_tokens: 5 }, completion_tokens_details: { reasoning_tokens: 3 } },
  },
};
const finish = { choices: [{ index: 0, delta: {}, finish_reason: 'stop' }] };

interface Scene {
  readonly upstream: ScriptedUpstream;
  readonly collector: Collector;
  readonly gateway: TestGateway;
  readonly client: WireClient;
}

async function start(t: Test, settings: Record<string, object> = {}, given?: Collector): Promise<Scene> {
  const upstream = await startUpstream();
  t.teardown(upstream.close);
  const collector = given ?? (await startCollector(t));
  const { traces = {}, ...rest } = settings;
  const gateway = await startTestGateway(t, upstream.url, { traces: { endpoint: collector.url, ...traces }, ...rest });
  return { upstream, collector, gateway, client: await connect(gateway.port) };
}

function serveStream(request: UpstreamRequest): void {
  request.startSse();
  for (const event of [content('Hello'), content(' you'), finish, usage, '[DONE]']) request.event(event);
  request.endChunks();
}

function traceparent(flags: string): Record<string, string> {
  return { traceparent: `00-${TRACE_ID}-${PARENT_ID}-${flags}` };
}

/** The spans of one request: its own, and those of its tries in their order. */
function ordered(spans: readonly CollectedSpan[]): [request: CollectedSpan, ...tries: CollectedSpan[]] {
  const [server, ...more] = spans.filter(({ kind }) => kind === SERVER);
  if (server === undefined || more.length > 0) throw new Error(`${more.length + 1} spans of requests`);
  return [server, ...spans.filter(({ kind }) => kind === CLIENT).toSorted((a, b) => a.startMs - b.startMs)];
}

function parentTold(request: UpstreamRequest): string | undefined {
  return /^00-[0-9a-f]{32}-([0-9a-f]{16})-[0-9a-f]{2}$/.exec(request.headers.traceparent ?? '')?.[1];
}

t.test("a streamed call is a span in its client's trace, with one of its try, which the upstream is told of", async (t) => {
  const { upstream, collector, gateway, client } = await start(t, { traces: { headers: { 'x-collector-key': 'k' } } });
  const beganMs = Date.now();
  client.request({ ...chat, headers: { ...json, ...traceparent('03'), tracestate: 'vendor=a,other=b' } });
  const request = await upstream.request();
  t.match(request.headers.traceparent, new RegExp(`^00-${TRACE_ID}-[0-9a-f]{16}-03$`), 'the same trace, sampled, its id still random');
  t.equal(request.headers.tracestate, 'vendor=a,other=b');
  t.equal(request.rawHeaders.filter(([name]) => name.toLowerCase() === 'traceparent').length, 1);
  serveStream(request);
  await client.body();
  const line = await gateway.ended();
  t.equal(line.traceId, TRACE_ID);
  await gateway.close();
  const endedMs = Date.now();

  t.equal(collector.spans.length, 2, 'a process that ends sends what it has');
  const [server, attempt] = ordered(collector.spans);
  t.match(server, { traceId: TRACE_ID, parentSpanId: PARENT_ID, name: 'POST /v1/chat/completions', status: 0 });
  t.match(attempt, { traceId: TRACE_ID, parentSpanId: server.spanId, name: 'chat gpt-x', status: 0 });
  t.equal(attempt?.spanId, parentTold(request));
  t.strictSame(
    { ...server.attributes, 'sluicegate.request_id': '' },
    {
      'http.request.method': 'POST',
      'http.route': '/v1/chat/completions',
      'http.response.status_code': 200,
      'client.address': '127.0.0.1',
      'sluicegate.request_id': '',
      'sluicegate.client': 'anonymous',
      'sluicegate.upstream': 'main',
      'sluicegate.outcome': 'completed',
      'sluicegate.attempts': 1,
    },
  );
  const { 'gen_ai.response.time_to_first_chunk': ttft, 'sluicegate.time_to_first_byte': ttfb, ...attributes } = attempt?.attributes ?? {};
  t.strictSame(attributes, {
    'gen_ai.operation.name': 'chat',
    'gen_ai.provider.name': 'main',
    'gen_ai.request.model': 'gpt-x',
    'gen_ai.request.stream': true,
    'server.address': 'main',
    'http.request.method': 'POST',
    'http.response.status_code': 200,
    'sluicegate.result': 'ok',
    'gen_ai.response.model': 'gpt-x-2026',
    'gen_ai.usage.input_tokens': 11,
    'gen_ai.usage.output_tokens': 7,
    'gen_ai.usage.cache_read.input_tokens': 5,
    'gen_ai.usage.reasoning.output_tokens': 3,
    'sluicegate.usage.source': 'reported',
  });
  const times = [beganMs - 1, server.startMs, attempt?.startMs ?? 0, attempt?.endMs ?? 0, server.endMs, endedMs + 1];
  t.strictSame(
    times,
    times.toSorted((a, b) => a - b),
    'within each other, and within the wall clock',
  );
  t.ok(Number(ttfb) >= 0 && Number(ttft) >= Number(ttfb) && Number(ttft) * 1000 <= server.endMs - server.startMs, `${ttfb} ${ttft}`);

  t.match(server.resource, { 'service.name': 'sluicegate', 'service.version': '0.0.0', 'service.instance.id': /^[0-9a-f-]{36}$/ });
  t.equal(collector.deliveries[0]?.path, '/v1/traces');
  t.equal(collector.deliveries[0]?.headers['x-collector-key'], 'k');
  const told = Buffer.concat(collector.deliveries.map(({ body }) => body)).toString('latin1');
  for (const secret of [UPSTREAM_KEY, new URL(upstream.url).host]) t.notOk(told.includes(secret), 'no key, and no address of an upstream');
});

t.test('without a traceparent that is valid a trace begins here, and a tracestate of nothing goes no further', async (t) => {
  const { upstream, collector, gateway, client } = await start(t);
  const malformed = [`ff-${TRACE_ID}-${PARENT_ID}-01`, `00-${'0'.repeat(32)}-${PARENT_ID}-01`, `00-${TRACE_ID}-${PARENT_ID}-01-more`];
  for (const given of [undefined, ...malformed]) {
    client.request({ ...chat, headers: { ...json, ...(given && { traceparent: given }), tracestate: 'vendor=a' } });
    const request = await upstream.request();
    t.match(request.headers.traceparent, /^00-[0-9a-f]{32}-[0-9a-f]{16}-03$/, String(given));
    t.notMatch(request.headers.traceparent, TRACE_ID);
    t.equal(request.headers.tracestate, undefined);
    serveStream(request);
    await client.body();
    t.equal((await gateway.ended()).traceId, request.headers.traceparent?.split('-')[1], 'the log line names it');
  }
  await gateway.close();
  t.equal(new Set(collector.spans.map(({ traceId }) => traceId)).size, 1 + malformed.length);
  for (const { parentSpanId } of collector.spans.filter(({ kind }) => kind === SERVER)) t.equal(parentSpanId, '');
});

t.test('a client that does not sample is heeded: no span, and its traceparent goes up as it came', async (t) => {
  const { upstream, collector, gateway, client } = await start(t);
  for (const flags of ['00', '01']) {
    client.request({ ...chat, headers: { ...json, ...traceparent(flags) } });
    const request = await upstream.request();
    t.equal(request.headers.traceparent === traceparent('00').traceparent, flags === '00');
    serveStream(request);
    await client.body();
  }
  await gateway.close();
  t.equal(collector.spans.length, 2, 'of the sampled one');
});

t.test('a client that leaves ends both spans there, with what its tokens came to', async (t) => {
  const { upstream, collector, gateway, client } = await start(t);
  client.request(chat);
  const request = await upstream.request();
  request.startSse();
  request.event(content('Hello there, who is'));
  await client.until('who is');
  client.destroy();
  await request.connection.closed;
  t.equal((await gateway.ended()).outcome, 'client_closed');
  await gateway.close();
  const [server, attempt] = ordered(collector.spans);
  t.match(server, { status: 0, attributes: { 'error.type': 'client_closed', 'sluicegate.outcome': 'client_closed' } });
  t.match(attempt, {
    status: 0,
    attributes: { 'error.type': 'client_closed', 'gen_ai.usage.output_tokens': 5, 'sluicegate.usage.source': 'counted' },
  });
});

t.test('a stream that breaks off is an error of both', async (t) => {
  const { upstream, collector, gateway, client } = await start(t);
  client.request(chat);
  const request = await upstream.request();
  request.startSse();
  request.event(content('Hello'));
  await client.until('Hello');
  request.connection.reset();
  await client.closed;
  await gateway.close();
  for (const span of ordered(collector.spans)) t.match(span, { status: ERROR, attributes: { 'error.type': 'upstream_reset' } });
});

t.test('a fallback is two tries, each with a span that its own upstream was told of, and the model that it was asked for', async (t) => {
  const other = await startUpstream();
  t.teardown(other.close);
  const { upstream, collector, gateway, client } = await start(t, {
    upstreams: { other: { baseUrl: other.url, auth: 'none', usage: 'asSent' } },
    models: [{ match: 'gpt-*', upstreams: ['main', { name: 'other', rewrite: 'gpt-y' }] }],
  });
  client.request({ ...chat, headers: { ...json, ...traceparent('01') } });
  const refused = await upstream.request();
  refused.respond(503, json, '{"error":{"message":"not now"}}');
  const request = await other.request();
  serveStream(request);
  await client.body();
  await gateway.close();

  t.equal(collector.spans.length, 3);
  const [server, first, second] = ordered(collector.spans);
  t.match(server, { status: 0, attributes: { 'sluicegate.attempts': 2, 'sluicegate.upstream': 'other', 'sluicegate.model': 'gpt-*' } });
  t.match(first, {
    ...{ spanId: parentTold(refused), parentSpanId: server.spanId, status: ERROR, name: 'chat gpt-x' },
    attributes: { 'server.address': 'main', 'error.type': '503', 'http.response.status_code': 503, 'sluicegate.result': 'refused' },
  });
  t.match(second, {
    ...{ spanId: parentTold(request), parentSpanId: server.spanId, status: 0, name: 'chat gpt-y' },
    attributes: { 'server.address': 'other', 'gen_ai.usage.output_tokens': 7, 'http.request.resend_count': 1 },
  });
  t.notOk(first?.attributes['gen_ai.usage.output_tokens'], 'tokens are counted once');
  t.ok((first?.endMs ?? 0) <= (second?.endMs ?? 0));
});

t.test('a session’s try names the model that its query or its path asks for, and what its responses came to', async (t) => {
  const upstream = await startSessions(t);
  for (const [target, asked] of [
    ['/v1/realtime?model=gpt-realtime', 'gpt-realtime'],
    ['/v1/realtime?model=fast', 'gpt-realtime-mini'],
    ['/openai/deployments/voice/realtime?api-version=1', 'voice'],
    ['/v1/realtime?intent=transcription', undefined],
  ] as const) {
    const collector = await startCollector(t);
    const models = [{ match: 'fast', upstreams: [{ name: 'main', rewrite: 'gpt-realtime-mini' }] }];
    const gateway = await startTestGateway(t, upstream.url, { traces: { endpoint: collector.url }, models });
    const [client, session] = await Promise.all([openSession(t, gateway, { target, headers: traceparent('01') }), upstream.session()]);
    session.socket.send(JSON.stringify({ type: 'session.created', session: { model: 'gpt-realtime-2026' } }));
    session.socket.send(JSON.stringify({ type: 'response.done', response: { usage: { input_tokens: 5, output_tokens: 3 } } }));
    await client.next();
    await client.next();
    client.socket.close(1000);
    await client.closed;
    await gateway.close();
    const [server, attempt] = ordered(collector.spans);
    t.match(server, { traceId: TRACE_ID, parentSpanId: PARENT_ID, attributes: { 'http.response.status_code': 101 } });
    t.equal(attempt?.attributes['gen_ai.request.model'], asked, target);
    t.match(attempt?.attributes, {
      ...{ 'gen_ai.provider.name': 'main', 'gen_ai.response.model': 'gpt-realtime-2026' },
      ...{ 'gen_ai.usage.input_tokens': 5, 'gen_ai.usage.output_tokens': 3, 'sluicegate.usage.source': 'reported' },
    });
    t.match(upstream.requests.at(-1)?.headers.traceparent, `00-${TRACE_ID}-${attempt?.spanId}-`);
  }
});

t.test('a call that only looks at a model asks none for anything', async (t) => {
  const { upstream, collector, gateway, client } = await start(t);
  client.request({ method: 'GET', target: '/v1/models/gpt-x' });
  (await upstream.request()).respond(200, json, '{}');
  await client.body();
  await gateway.close();
  const [, attempt] = ordered(collector.spans);
  t.equal(attempt?.name, 'GET /v1/models/{model}');
  t.strictSame(
    Object.keys(attempt?.attributes ?? {}).filter((name) => name.startsWith('gen_ai.')),
    [],
  );
});

t.test('a reload turns traces on, moves them to another collector, and turns them off again', async (t) => {
  const upstream = await startUpstream();
  t.teardown(upstream.close);
  const gateway = await startTestGateway(t, upstream.url);
  const client = await connect(gateway.port);
  const collectors = [await startCollector(t), await startCollector(t)];
  for (const endpoint of [...collectors.map(({ url }) => url), 'off']) {
    const upstreams = { main: { baseUrl: upstream.url, auth: 'none', usage: 'asSent' } };
    const loaded = loadConfig({ file: 'g.yaml', text: stringify({ upstreams, traces: { endpoint } }) }, {});
    if (!loaded.ok) throw new Error('not valid');
    await gateway.reload(loaded.config);
    client.request(chat);
    const request = await upstream.request();
    t.equal(request.headers.traceparent === undefined, endpoint === 'off');
    serveStream(request);
    await client.body();
    await gateway.ended();
  }
  for (const collector of collectors) t.equal((await collector.arrived(2)).length, 2, 'each has what was its');
});

t.test('who is refused here has a span without tries; it is no error of the server', async (t) => {
  const { collector, gateway, client } = await start(t, { clients: [{ name: 'a', keySha256: 'a'.repeat(64) }] as unknown as object });
  client.request({ ...chat, headers: { ...json, authorization: 'Bearer sk-wrong' } });
  t.equal((await client.head()).status, 401);
  await gateway.ended();
  await gateway.close();
  t.equal(collector.spans.length, 1);
  t.match(collector.spans[0], { status: 0, attributes: { 'error.type': 'rejected', 'sluicegate.rejection': 'invalid_api_key' } });
});

t.test('a collector that is down is told of once, its spans are counted as dropped, and nobody else notices', async (t) => {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));

  const { upstream, gateway, client } = await start(t, { traces: { endpoint: `http://127.0.0.1:${port}` } });
  const call = async () => {
    client.request(chat);
    serveStream(await upstream.request());
    t.match((await client.body()).toString(), /data: \[DONE\]/);
    t.equal((await gateway.ended()).outcome, 'completed');
  };
  const dropped = async (count: number) => {
    for (let looks = 0; looks < 400; looks++) {
      if ((await gateway.metrics()).value('sluicegate_spans_total', { result: 'dropped' }) === count) return;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    t.fail(`${count} spans were not dropped`);
  };
  const lines = (text: string) => gateway.output.split(text).length - 1;
  for (const count of [2, 4]) {
    await call();
    await dropped(count);
  }
  t.equal(lines('the collector of traces is away'), 1);
  t.match(gateway.output, /"code":"ECONNREFUSED"/);

  const collector = await startCollector(t, undefined, port);
  await call();
  await collector.arrived(2);
  await gateway.close();
  t.equal(lines('the collector of traces is back'), 1);
});

t.test('a collector that never answers holds so many spans, and the end of the process for no more than a moment', async (t) => {
  const collector = await startCollector(t, () => undefined);
  process.env.OTEL_EXPORTER_OTLP_TIMEOUT = '4000';
  const counts = { exported: 0, dropped: 0 };
  const onSpans = (result: 'exported' | 'dropped', count: number) => {
    counts[result] += count;
  };
  const settings = { ...TRACES, endpoint: `${collector.url}/v1/traces` };
  const outbox = openOutbox(settings, '0', { onSpans, onCollector: () => undefined });
  process.env.OTEL_EXPORTER_OTLP_TIMEOUT = '300';
  const span: Span = {
    spanId: PARENT_ID,
    parentId: undefined,
    name: 'n',
    kind: 'server',
    startMs: 1,
    endMs: 2,
    isError: false,
    attributes: {},
  };
  for (let i = 0; i < 5000; i++) outbox.send(TRACE_ID, [span]);
  t.strictSame(counts, { exported: 0, dropped: 904 });
  const beganMs = performance.now();
  await outbox.close();
  const tookMs = performance.now() - beganMs;
  t.ok(tookMs < 3000, `${Math.round(tookMs)} ms`);
  t.strictSame(counts, { exported: 0, dropped: 5000 }, 'what was given up is counted');
});

const TRACES = { endpoint: '', headers: {}, service: 's', resource: {}, sampler: 'parentbased_always_on', sample: 1 } as const;

t.test('samplers decide by their names, and by the trace id alone, so that no trace has holes', async (t) => {
  const sampled = (sampler: (typeof TRACES)['sampler'] | string, sample: number, given?: string): Exchange => {
    const tracer = createTracer(
      { ...TRACES, sampler: sampler as (typeof TRACES)['sampler'], sample },
      { send: () => undefined, close: async () => undefined },
    );
    const exchange = createExchange({ requestId: 'r', startedAtMs: 0, method: 'POST', remoteAddress: '', traceId: undefined });
    tracer.begin(exchange, given === undefined ? {} : { traceparent: given });
    return exchange;
  };
  const [low, high] = [`00-${'1'.repeat(18)}${'0'.repeat(14)}`, `00-${'1'.repeat(18)}${'f'.repeat(14)}`];
  const rows: [sampler: string, sample: number, given: string | undefined, isSampled: boolean | undefined][] = [
    ['always_on', 1, `${low}-${PARENT_ID}-00`, true],
    ['always_off', 1, `${low}-${PARENT_ID}-01`, undefined],
    ['always_off', 1, undefined, false],
    ['parentbased_always_on', 1, `${low}-${PARENT_ID}-00`, undefined],
    ['parentbased_always_off', 1, `${low}-${PARENT_ID}-01`, true],
    ['parentbased_always_off', 1, undefined, false],
    ['parentbased_traceidratio', 0.5, `${low}-${PARENT_ID}-01`, true],
    ['traceidratio', 0.5, `${low}-${PARENT_ID}-01`, undefined],
    ['traceidratio', 0.5, `${high}-${PARENT_ID}-01`, true],
    ['traceidratio', 0, `${high}-${PARENT_ID}-01`, undefined],
    ['traceidratio', 1, `${low}-${PARENT_ID}-01`, true],
  ];
  for (const [sampler, sample, given, isSampled] of rows)
    t.equal(sampled(sampler, sample, given).trace?.isSampled, isSampled, `${sampler} ${sample} ${given}`);
  const share = Array.from({ length: 2000 }, () => sampled('traceidratio', 0.25).trace?.isSampled).filter(Boolean).length / 2000;
  t.ok(share > 0.2 && share < 0.3, `${share} of a quarter`);
  const unsampled = sampled('traceidratio', 0).trace?.begin('u', undefined, 0);
  t.match(unsampled?.carry(['a', 'b']), ['a', 'b', 'traceparent', /-02$/], 'an upstream is told of the decision');
});

t.test("workers send theirs each, by OpenTelemetry's own variables, and none is lost in a drain", async (t) => {
  const collector = await startCollector(t);
  const upstream = await startUpstream();
  t.teardown(upstream.close);
  const text = stringify({
    server: { listen: '127.0.0.1:0', workers: 2, drain: '5s' },
    ops: { listen: '127.0.0.1:0' },
    upstreams: { main: { baseUrl: upstream.url, auth: 'none', usage: 'asSent' } },
  });
  const running = runSluicegate(
    t,
    ['-c', 'g.yaml'],
    {
      OTEL_EXPORTER_OTLP_ENDPOINT: `${collector.url}/`,
      OTEL_EXPORTER_OTLP_HEADERS: 'x-collector-key=a%20b',
      OTEL_SERVICE_NAME: 'gate',
      OTEL_RESOURCE_ATTRIBUTES: 'deployment.environment.name=test,service.name=other',
    },
    t.testdir({ 'g.yaml': text }),
  );
  const port = Number((await running.said(/API +http:\/\/127\.0\.0\.1:(\d+)\/v1/))[1]);
  await running.said(/"listening"/);
  const calls = [await connect(port), await connect(port)];
  for (const client of calls) client.request(chat);
  const requests = [await upstream.request(), await upstream.request()];
  for (const request of requests) request.startSse();
  running.child.kill('SIGTERM');
  for (const request of requests) {
    for (const event of [content('Hello'), finish, usage, '[DONE]']) request.event(event);
    request.endChunks();
  }
  for (const client of calls) await client.body();
  t.equal(await running.exited(), 0);
  t.equal(collector.spans.length, 4);
  t.equal(new Set(collector.spans.map(({ resource }) => resource['service.instance.id'])).size, 2);
  for (const { resource } of collector.spans) t.match(resource, { 'service.name': 'gate', 'deployment.environment.name': 'test' });
  t.match(collector.deliveries, [{ path: '/v1/traces', headers: { 'x-collector-key': 'a b' } }]);
});

t.test('without a collector nothing of OpenTelemetry is loaded, but for the API that prom-client brings; with one, it is', async (t) => {
  const folder = t.testdir({
    'tell.mjs': `import { registerHooks } from 'node:module';
registerHooks({ resolve(specifier, context, next) {
  const found = next(specifier, context);
  const [name] = /@opentelemetry\\/[^/]+/.exec(found.url) ?? [];
  if (name !== undefined) process.stderr.write('loads ' + name + '\\n');
  return found;
} });\n`,
  });
  const env = { SLUICEGATE_LISTEN: '127.0.0.1:0', SLUICEGATE_OPS_LISTEN: '127.0.0.1:0' };
  const collector = await startCollector(t);
  for (const more of [{}, { OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: `${collector.url}/custom` }]) {
    const isOn = Object.keys(more).length > 0;
    const [node = '', main = ''] = command;
    const running = runCommand(t, [node, '--import', join(folder, 'tell.mjs'), main], { ...env, ...more }, folder);
    const port = Number((await running.said(/API +http:\/\/127\.0\.0\.1:(\d+)\/v1/))[1]);
    const client = await connect(port);
    client.request({ ...chat, body: '{"model":"demo","messages":[{"role":"user","content":"Hi"}]}' });
    await client.body();
    running.child.kill('SIGTERM');
    t.equal(await running.exited(), 0);
    const loaded = new Set([...running.stderr.matchAll(/^loads (.*)$/gm)].map(([, name]) => name));
    if (isOn) t.ok(loaded.has('@opentelemetry/exporter-trace-otlp-proto'), 'the test would see it');
    else t.strictSame([...loaded], ['@opentelemetry/api']);
  }
  t.equal(collector.deliveries[0]?.path, '/custom', 'the endpoint of traces is taken as it is');
});

// Promise: the official SDKs for Azure OpenAI and for Anthropic work through Sluicegate unchanged, against what these providers were recorded to send.
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import Anthropic, { APIError as AnthropicError } from '@anthropic-ai/sdk';
import OpenAI, { APIError, AzureOpenAI } from 'openai';
import t, { type Test } from 'tap';
import { startTestGateway, type TestGateway, UPSTREAM_KEY } from '../support/gateway.ts';
import { expectedUsage, recordedStreams } from '../support/streams.ts';
import { startUpstream, type UpstreamRequest } from '../support/upstream.ts';

const KEY = 'sk-client-of-the-app';
const NARROW_KEY = 'sk-client-with-a-list';
const hash = (key: string) => createHash('sha256').update(key).digest('hex');
const clients = [
  { name: 'app', keySha256: hash(KEY) },
  { name: 'narrow', keySha256: hash(NARROW_KEY), models: ['my-gpt', 'claude-*'] },
];
const json = { 'content-type': 'application/json' };
const messages = [{ role: 'user' as const, content: 'hello' }];

const upstream = await startUpstream();
t.teardown(() => upstream.close());
const azure = await startTestGateway(t, upstream.url, {
  upstream: { auth: 'api-key', query: { 'api-version': '2024-10-21' }, usage: 'ask' },
  clients,
});
const anthropic = await startTestGateway(t, upstream.url, { upstream: { auth: 'x-api-key' }, clients, server: { maxRequestBody: '4KiB' } });

/** The events of a stream, each with what ends it. */
function eventsOf(stream: string | Buffer): string[] {
  return stream.toString().match(/.+?\n{2,}/gs) ?? [];
}

function fixture(name: string): string[] {
  return eventsOf(readFileSync(join(import.meta.dirname, `../fixtures/${name}.sse`)));
}

/** Answers the next request with a stream, a chunk for each event, and ends it. */
async function stream(events: readonly string[], headers: Record<string, string> = {}): Promise<UpstreamRequest> {
  const request = await upstream.request();
  await request.body();
  request.startSse(headers);
  for (const event of events) request.chunk(event);
  request.endChunks();
  return request;
}

async function respond(status: number, body: object, headers: Record<string, string> = {}): Promise<UpstreamRequest> {
  const request = await upstream.request();
  await request.body();
  request.respond(status, { ...json, ...headers }, JSON.stringify(body));
  return request;
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

/** What a promise is rejected with. */
async function thrown(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => 'nothing was thrown',
    (error: unknown) => error,
  );
}

/** The class as the app would name it in its `instanceof`. */
const classOf = (error: unknown) => (error instanceof Error ? error.constructor.name : String(error));

/** The upstream got its own credential in this header, and no other; and the client's nowhere. */
function assertInjected(t: Test, { head, headers }: UpstreamRequest, name: 'api-key' | 'x-api-key'): void {
  t.equal(headers[name], UPSTREAM_KEY);
  for (const other of ['authorization', 'api-key', 'x-api-key'].filter((one) => one !== name)) t.equal(headers[other], undefined);
  t.notMatch(head, KEY);
}

function azureClient(options: object = {}): AzureOpenAI {
  return new AzureOpenAI({ endpoint: azure.url, apiKey: KEY, apiVersion: '2023-05-15', maxRetries: 0, timeout: 10_000, ...options });
}

t.test('Azure: a deployment’s stream, event by event; key and api-version are the gateway’s', async (t) => {
  const events = fixture('azure-filter-in-blocks');
  const creating = azureClient().chat.completions.create({
    model: 'my-gpt',
    messages,
    stream: true,
    stream_options: { include_usage: true },
  });
  const request = await upstream.request();
  t.equal(request.target, '/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21', 'the configured query wins');
  assertInjected(t, request, 'api-key');
  t.same(JSON.parse((await request.body()).toString()), {
    model: 'my-gpt',
    messages,
    stream: true,
    stream_options: { include_usage: true },
  });
  request.startSse({ 'apim-request-id': 'a-1', 'x-ratelimit-remaining-tokens': '9' });
  const { data, response } = await creating.withResponse();
  t.equal(response.headers.get('apim-request-id'), 'a-1');
  const heard = data[Symbol.asyncIterator]();
  for (const event of events.slice(0, -1)) {
    request.chunk(event);
    t.same((await heard.next()).value, JSON.parse(event.replace('data: ', '')), 'before the next is sent');
  }
  request.chunk(events.at(-1)!);
  t.equal((await heard.next()).done, true);
  request.endChunks();
  t.match(await azure.ended(), {
    outcome: 'completed',
    client: 'app',
    model: 'gpt-4o-2024-11-20',
    endpoint: '/v1/chat/completions',
    tokens: { input: 12, output: 15, outputSource: 'reported' },
  });
  const metrics = await azure.metrics();
  t.equal(metrics.value('sluicegate_tokens_total', { client: 'app', model: 'gpt-4o-2024-11-20', kind: 'output', source: 'reported' }), 15);
});

t.test('Azure: usage that was not asked for is counted all the same, and not shown', async (t) => {
  const calling = azureClient({ deployment: 'my gpt' }).chat.completions.create({ model: 'ignored', messages, stream: true });
  const request = await stream(fixture('azure-filter-in-blocks'));
  t.equal(request.target, '/openai/deployments/my%20gpt/chat/completions?api-version=2024-10-21');
  t.match(JSON.parse((await request.body()).toString()), { stream_options: { include_usage: true } });
  const chunks = await collect(await calling);
  t.equal(
    chunks.map(({ choices }) => choices[0]?.delta?.content ?? '').join(''),
    'The sluice opens, and every word goes through, “one block” at a time.',
  );
  t.notOk(chunks.some((chunk) => 'usage' in chunk));
  t.match((await azure.ended()).tokens, { input: 12, output: 15, outputSource: 'reported' });
});

t.test('Azure: tools, whole answers, embeddings and the Responses API, each under its own path', async (t) => {
  const tools = [{ type: 'function' as const, function: { name: 'get_weather', parameters: { type: 'object' } } }];
  const runner = azureClient().chat.completions.stream({ model: 'my-gpt', messages, tools });
  await stream(fixture('openai-tool-call'));
  t.match(await runner.finalChatCompletion(), {
    choices: [{ finish_reason: 'tool_calls', message: { tool_calls: [{ id: 'call_A1', function: { arguments: '{"city":"Malmö"}' } }] } }],
  });
  t.match(await azure.ended(), { outcome: 'completed', tokens: { input: 51, output: 16 } });

  const asking = azureClient().chat.completions.create({ model: 'my-gpt', messages });
  const usage = { prompt_tokens: 3, completion_tokens: 4, total_tokens: 7 };
  await respond(200, { object: 'chat.completion', model: 'gpt-4o', choices: [], prompt_filter_results: [], usage });
  t.match(await asking, { usage });
  t.match(await azure.ended(), { outcome: 'completed', tokens: { input: 3, output: 4 } });

  const embedding = azureClient({ deployment: 'my-ada' }).embeddings.create({ model: 'x', input: 'hello', encoding_format: 'float' });
  const request = await respond(200, { object: 'list', data: [{ embedding: [1] }], usage: { prompt_tokens: 2, total_tokens: 2 } });
  t.equal(request.target, '/openai/deployments/my-ada/embeddings?api-version=2024-10-21');
  t.match(await embedding, { data: [{ embedding: [1] }] });
  t.match(await azure.ended(), { endpoint: '/v1/embeddings', tokens: { input: 2 } });

  const responding = azureClient().responses.create({ model: 'my-gpt', input: 'hello', stream: true });
  const other = await stream(fixture('openai-response-incomplete'));
  t.equal(other.target, '/openai/responses?api-version=2024-10-21');
  t.match((await collect(await responding)).at(-1), { type: 'response.incomplete' });
  t.match(await azure.ended(), { outcome: 'completed', endpoint: '/v1/responses', tokens: { input: 21, output: 8 } });
});

t.test('Azure: an app that leaves closes the connection there', async (t) => {
  const creating = azureClient().chat.completions.create({ model: 'my-gpt', messages, stream: true });
  const request = await upstream.request();
  request.startSse();
  for (const event of fixture('azure-filter-in-blocks').slice(0, 3)) request.chunk(event);
  for await (const { choices } of await creating) if (choices[0]?.delta.content) break;
  await request.connection.closed;
  t.match(await azure.ended(), { outcome: 'client_closed', phase: 'stream', tokens: { outputSource: 'counted' } });
});

t.test('Azure: whatever goes wrong is the SDK’s own exception', async (t) => {
  const call = (options: object = {}, model = 'my-gpt') =>
    azureClient(options).chat.completions.create({ model, messages, stream: true }).then(collect);
  const unknown = await thrown(call({ apiKey: 'sk-nobody' }));
  t.match(unknown, { status: 401, code: 'invalid_api_key' });
  t.equal(classOf(unknown), 'AuthenticationError');
  await azure.ended();

  const callsOfHers = [() => call({ apiKey: NARROW_KEY }, 'her-gpt'), () => call({ apiKey: NARROW_KEY, deployment: 'her-gpt' })];
  for (const callHers of callsOfHers) {
    const forbidden = await thrown(callHers());
    t.match(forbidden, { status: 403, code: 'model_not_allowed' }, 'a deployment is a model, in the body and in the path');
    t.equal(classOf(forbidden), 'PermissionDeniedError');
    await azure.ended();
  }

  const limiting = thrown(call({ apiKey: NARROW_KEY }));
  await respond(
    429,
    { error: { code: '429', message: 'Requests have exceeded the limit. Please retry after 7 seconds.' } },
    { 'retry-after': '7' },
  );
  const limited = await limiting;
  t.equal(classOf(limited), 'RateLimitError');
  t.match(limited, { code: '429', message: /retry after 7 seconds/ });
  t.equal(limited instanceof APIError && limited.headers?.get('retry-after'), '7');
  t.match(await azure.ended(), { outcome: 'upstream_error', client: 'narrow' });

  const retrying = call({ maxRetries: 1 });
  await respond(429, { error: { code: '429', message: 'Later.' } }, { 'retry-after-ms': '1' });
  await stream(fixture('azure-filter-ends-it'));
  const filtered = await retrying;
  t.equal(filtered.flatMap(({ choices }) => choices).at(-1)?.finish_reason, 'content_filter', 'an end like any other');
  t.equal((await azure.ended()).outcome, 'upstream_error');
  t.equal((await azure.ended()).outcome, 'completed');

  const refusing = thrown(call());
  await respond(400, {
    error: { code: 'content_filter', status: 400, message: 'The prompt was filtered', param: 'prompt', innererror: {} },
  });
  t.match(await refusing, { status: 400, code: 'content_filter', param: 'prompt' });
  await azure.ended();

  const failing = thrown(call());
  await stream(fixture('azure-error-after-start'));
  const failed = await failing;
  t.ok(failed instanceof APIError);
  t.match(failed, { code: '429', message: /rate limit/ });
  t.equal((await azure.ended()).outcome, 'upstream_error_event');

  const locked = thrown(call());
  await respond(401, { error: { code: '401', message: 'Access denied due to invalid subscription key' } });
  t.match(await locked, { status: 502, code: 'upstream_auth' });
  await azure.ended();
});

const recordings = recordedStreams();
const skip = recordings ? false : 'the recorded streams are not here';

t.test('Azure: its recorded streams, under the newer path and with the plain client', { skip }, async (t) => {
  const client = new OpenAI({ baseURL: `${azure.url}/openai/v1/`, apiKey: KEY, maxRetries: 0 });
  for (const { file, bytes, usage } of recordings?.filter(({ provider }) => provider === 'azure') ?? []) {
    const creating = client.responses.create({ model: 'my-gpt', input: 'hello', stream: true });
    const request = await stream(eventsOf(bytes));
    t.equal(request.target, '/openai/v1/responses?api-version=2024-10-21');
    assertInjected(t, request, 'api-key');
    const sent = eventsOf(bytes).map((event) => JSON.parse(event.slice(event.indexOf('data: ') + 6)));
    t.same(await collect(await creating), sent, file);
    const { input, output } = expectedUsage(usage, 'responses');
    t.match(await azure.ended(), { outcome: 'completed', tokens: { input, output, outputSource: 'reported' } }, file);
  }
});

function anthropicClient(options: object = {}): Anthropic {
  return new Anthropic({ baseURL: anthropic.url, apiKey: KEY, maxRetries: 0, timeout: 10_000, ...options });
}

const ask = { model: 'claude-sonnet-4-5', max_tokens: 100, messages };

t.test('Anthropic: a stream, event by event; version and betas are the app’s, the key is the gateway’s', async (t) => {
  const events = fixture('anthropic-new-events');
  const creating = anthropicClient().beta.messages.create({ ...ask, stream: true, betas: ['files-api-2025-04-14'] });
  const request = await upstream.request();
  t.equal(request.target, '/v1/messages');
  assertInjected(t, request, 'x-api-key');
  t.match(request.headers, { 'anthropic-version': /^20\d\d-\d\d-\d\d$/, 'anthropic-beta': 'files-api-2025-04-14' });
  request.startSse({ 'request-id': 'req_1' });
  const { data, response } = await creating.withResponse();
  t.equal(response.headers.get('request-id'), 'req_1');
  const heard = data[Symbol.asyncIterator]();
  for (const event of events) {
    request.chunk(event);
    if (!event.startsWith('event: ping')) t.same((await heard.next()).value, JSON.parse(event.split('data: ')[1] ?? ''));
  }
  request.endChunks();
  t.equal((await heard.next()).done, true);
  t.match(await anthropic.ended(), {
    outcome: 'completed',
    client: 'app',
    endpoint: '/v1/messages',
    tokens: { input: 329, output: 7, cachedInput: 300, cacheWrite: 20, outputSource: 'reported' },
  });
});

t.test('Anthropic: each recorded stream is to the helper what it is without a gateway', { skip }, async (t) => {
  const direct = anthropicClient({ baseURL: upstream.url.replace('/v1', '') });
  const play = async (client: Anthropic, events: readonly string[]) => {
    const runner = client.messages.stream(ask);
    const heard: string[] = [];
    for (const name of ['text', 'inputJson', 'thinking', 'signature', 'citation'] as const) {
      runner.on(name, (...args: unknown[]) => heard.push(`${name} ${JSON.stringify(args)}`));
    }
    const final = runner.finalMessage().catch((error: unknown) => `${classOf(error)}: ${error}`);
    await stream(events);
    return { final: await final, heard };
  };
  const names = new Set<string>();
  for (const { file, bytes, usage } of recordings?.filter(({ dialect }) => dialect === 'anthropic') ?? []) {
    const through = await play(anthropicClient(), eventsOf(bytes));
    t.same(JSON.parse(JSON.stringify(through)), JSON.parse(JSON.stringify(await play(direct, eventsOf(bytes)))), file);
    for (const one of through.heard) names.add(one.split(' ', 1)[0] ?? '');
    const { input, output } = expectedUsage(usage, 'anthropic');
    const line = await anthropic.ended();
    t.match(line.tokens, { input, output, outputSource: 'reported' }, file);
    t.equal(line.outcome, 'completed', file);
    if (typeof through.final !== 'string') t.equal(through.final.usage.output_tokens, output, file);
  }
  t.ok(names.has('text') && names.has('inputJson'), [...names].join(' '));
});

t.test('Anthropic: thinking, tools, whole answers, tokens counted beforehand, and the models that a client may see', async (t) => {
  const runner = anthropicClient().messages.stream(ask);
  const thoughts: string[] = [];
  runner.on('thinking', (piece) => thoughts.push(piece));
  await stream(fixture('anthropic-new-events').filter((event) => !event.includes('_tasted')));
  t.match(await runner.finalMessage(), {
    content: [
      { type: 'thinking', thinking: 'Hm', signature: 'EqQBCg==' },
      { type: 'text', text: 'One', citations: [{ cited_text: 'x' }] },
    ],
    stop_reason: 'end_turn',
    usage: { output_tokens: 7 },
  });
  t.same(thoughts, ['Hm']);
  t.equal((await anthropic.ended()).outcome, 'completed');

  const asking = anthropicClient().messages.create(ask);
  const usage = { input_tokens: 5, cache_read_input_tokens: 30, cache_creation_input_tokens: 0, output_tokens: 6 };
  await respond(200, { type: 'message', model: 'claude-sonnet-4-5', content: [{ type: 'text', text: 'Hi' }], usage });
  t.match(await asking, { content: [{ text: 'Hi' }], usage });
  t.match(await anthropic.ended(), { outcome: 'completed', tokens: { input: 35, cachedInput: 30, output: 6 } });

  const narrow = anthropicClient({ apiKey: NARROW_KEY });
  const counting = narrow.messages.countTokens({ model: ask.model, messages });
  t.equal((await respond(200, { input_tokens: 14 })).target, '/v1/messages/count_tokens');
  t.same(await counting, { input_tokens: 14 });
  t.match(await anthropic.ended(), { outcome: 'completed', client: 'narrow', endpoint: '/v1/messages/count_tokens' });

  const listing = narrow.models.list();
  const model = (id: string) => ({ type: 'model', id, display_name: id, created_at: '2025-09-29T00:00:00Z' });
  await respond(200, { data: [model('claude-opus-4-5'), model('other')], has_more: false, first_id: 'claude-opus-4-5', last_id: 'other' });
  t.match((await listing).data, [{ id: 'claude-opus-4-5', display_name: 'claude-opus-4-5' }]);
  t.equal((await listing).data.length, 1);
  await anthropic.ended();
});

t.test('Anthropic: an app that leaves closes the connection there, and what message_start said of output is not recorded', async (t) => {
  const runner = anthropicClient().messages.stream(ask);
  const ending = thrown(runner.done());
  const request = await upstream.request();
  runner.on('text', () => runner.abort());
  request.startSse();
  for (const event of fixture('anthropic-breaks-off')) request.chunk(event);
  await request.connection.closed;
  t.equal(classOf(await ending), 'APIUserAbortError');
  t.match(await anthropic.ended(), {
    outcome: 'client_closed',
    phase: 'stream',
    tokens: { input: 329, inputSource: 'running', output: 1, outputSource: 'counted' },
  });
});

t.test('Anthropic: trouble in a stream is raised, the upstream’s and what the gateway found', async (t) => {
  const call = () =>
    thrown(
      anthropicClient()
        .messages.create({ ...ask, stream: true })
        .then(collect),
    );
  const overloading = call();
  await stream(fixture('anthropic-overloaded'));
  const overloaded = await overloading;
  t.ok(overloaded instanceof AnthropicError);
  t.match(overloaded, { type: 'overloaded_error', apiMessage: 'Overloaded' });
  t.equal((await anthropic.ended()).outcome, 'upstream_error_event');

  for (const [end, code] of [
    [(request: UpstreamRequest) => request.endChunks(), 'upstream_truncated'],
    [(request: UpstreamRequest) => request.connection.reset(), 'upstream_reset'],
  ] as const) {
    const calling = anthropicClient().messages.create({ ...ask, stream: true });
    const request = await upstream.request();
    request.startSse();
    const heard = (await calling)[Symbol.asyncIterator]();
    for (const event of fixture('anthropic-breaks-off')) {
      request.chunk(event);
      if (!event.startsWith('event: ping')) await heard.next();
    }
    end(request);
    const broken = await thrown(heard.next());
    t.ok(broken instanceof AnthropicError, code);
    t.match(broken, { status: undefined, type: 'upstream_error', error: { type: 'error', error: { code } } });
    t.equal((await anthropic.ended()).outcome, code);
  }
});

/** An error that Sluicegate itself makes, as an app of Anthropic's SDK sees it. */
async function refusal(t: Test, gateway: TestGateway, call: Promise<unknown>, name: string, code: string): Promise<AnthropicError> {
  const error = await thrown(call);
  t.equal(classOf(error), name, code);
  if (!(error instanceof AnthropicError)) throw new Error(`not the SDK’s: ${error}`);
  t.match(error.error, { error: { code } });
  t.match(error.apiMessage, /^[A-Z][^{}]+\.$/, 'a sentence');
  t.match(error.message, `${error.status} `);
  t.match((await gateway.ended()).outcome, code.startsWith('upstream') ? /^upstream/ : 'rejected');
  return error;
}

t.test('Anthropic: errors made here are the SDK’s own exceptions, by their status', async (t) => {
  const call = (options: object = {}, more: object = {}) => anthropicClient(options).messages.create({ ...ask, ...more });
  const { requestCount } = upstream;
  await refusal(t, anthropic, call({ apiKey: 'sk-nobody' }), 'AuthenticationError', 'invalid_api_key');
  await refusal(t, anthropic, call({ apiKey: NARROW_KEY }, { model: 'gpt-4o' }), 'PermissionDeniedError', 'model_not_allowed');
  const batch = anthropicClient({ apiKey: NARROW_KEY }).messages.batches.create({ requests: [{ custom_id: 'a', params: ask }] });
  await refusal(t, anthropic, batch, 'PermissionDeniedError', 'model_not_allowed');
  const long = [{ role: 'user' as const, content: 'x'.repeat(5000) }];
  t.equal((await refusal(t, anthropic, call({}, { messages: long }), 'ContentTooLargeError', 'request_too_large')).status, 413);
  t.equal(upstream.requestCount, requestCount, 'none of them went up');

  const locked = refusal(t, anthropic, call(), 'InternalServerError', 'upstream_auth');
  await respond(401, { type: 'error', error: { type: 'authentication_error', message: `invalid x-api-key ${UPSTREAM_KEY}` } });
  t.equal((await locked).headers?.get('x-should-retry'), 'false');
  const reset = refusal(t, anthropic, call(), 'InternalServerError', 'upstream_reset');
  (await upstream.request()).connection.reset();
  t.equal((await reset).status, 502);
});

t.test('Anthropic: limits, and retries as whoever refuses asks for them', async (t) => {
  const limited = await startTestGateway(t, upstream.url, {
    upstream: { auth: 'x-api-key' },
    clients: [{ ...clients[0], limits: { requestsPerMinute: 1 } }],
  });
  const client = anthropicClient({ baseURL: limited.url });
  const first = client.messages.create(ask);
  await respond(200, { type: 'message', content: [] });
  await first;
  await limited.ended();
  const error = await refusal(t, limited, client.messages.create(ask), 'RateLimitError', 'rate_limit_exceeded');
  t.match(error.headers?.get('retry-after'), /^[1-9]\d?$/);
  t.equal(error.headers?.get('x-ratelimit-remaining-requests'), '0');

  const retrying = anthropicClient({ maxRetries: 1 }).messages.create(ask);
  await respond(529, { type: 'error', error: { type: 'overloaded_error', message: 'Overloaded' } }, { 'retry-after-ms': '1' });
  await respond(200, { type: 'message', content: [] });
  t.match(await retrying, { type: 'message' });
  t.match(await anthropic.ended(), { outcome: 'upstream_error', status: 529 });
  t.equal((await anthropic.ended()).outcome, 'completed');

  const busy = thrown(anthropicClient().messages.create(ask));
  await respond(
    429,
    { type: 'error', error: { type: 'rate_limit_error', message: 'Number of requests exceeded' } },
    { 'retry-after': '12' },
  );
  const refused = await busy;
  t.equal(classOf(refused), 'RateLimitError');
  t.match(refused, { type: 'rate_limit_error', apiMessage: /exceeded/ }, 'the upstream’s own errors pass as they are');
  t.equal(refused instanceof AnthropicError && refused.headers?.get('retry-after'), '12');
  await anthropic.ended();
});

/** A `fetch` that tells when so many heartbeats have come in the bodies that it hands to the SDK. */
function createListener() {
  const four = Promise.withResolvers<void>();
  let heard = '';
  const fetchAndListen = async (url: string | URL | Request, init?: RequestInit): Promise<Response> => {
    const { body, status, headers } = await fetch(url, init);
    const transform = (bytes: Uint8Array, controller: TransformStreamDefaultController<Uint8Array>) => {
      heard += Buffer.from(bytes).toString('latin1');
      if (heard.split('\n:\n').length > 4) four.resolve();
      controller.enqueue(bytes);
    };
    return new Response(body?.pipeThrough(new TransformStream({ transform })), { status, headers });
  };
  return { fetch: fetchAndListen, fourBeats: four.promise };
}

t.test('heartbeats are nothing to either SDK, and an error that comes behind early headers is raised', async (t) => {
  const beating = await startTestGateway(t, upstream.url, { sse: { heartbeat: '10ms', earlyHeaders: '10ms' } });
  const listeners = [createListener(), createListener()] as const;
  const openai = azureClient({ endpoint: beating.url, fetch: listeners[0].fetch });
  const client = anthropicClient({ baseURL: beating.url, fetch: listeners[1].fetch });
  const calls = [
    { create: async () => openai.chat.completions.create({ model: 'my-gpt', messages, stream: true }), name: 'openai-tool-call' },
    { create: async () => client.messages.create({ ...ask, stream: true }), name: 'anthropic-new-events' },
  ];
  for (const [at, { create, name }] of calls.entries()) {
    const collecting = create().then((stream) => collect<unknown>(stream));
    const request = await upstream.request();
    request.startSse();
    const [first = '', ...rest] = fixture(name);
    request.chunk(first);
    await listeners[at]?.fourBeats;
    for (const event of rest) request.chunk(event);
    request.endChunks();
    const sent = [first, ...rest].filter((event) => !/^event: ping|\[DONE\]/.test(event));
    t.same(
      await collecting,
      sent.map((event) => JSON.parse(event.split('data: ')[1] ?? '')),
      name,
    );
    t.equal((await beating.ended()).outcome, 'completed');
  }

  const creating = client.messages.create({ ...ask, stream: true });
  const request = await upstream.request();
  const stream = await creating;
  request.respond(529, json, '{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}');
  const late = await thrown(collect(stream));
  t.ok(late instanceof AnthropicError);
  t.match(late, { type: 'overloaded_error', apiMessage: 'Overloaded' });
  t.match(await beating.ended(), { outcome: 'upstream_error' });
});

t.test('keys in other ways: a bearer, and the app’s own credential', async (t) => {
  const bearing = anthropicClient({ apiKey: null, authToken: KEY }).messages.create(ask);
  assertInjected(t, await respond(200, { type: 'message', content: [] }), 'x-api-key');
  await bearing;
  t.match(await anthropic.ended(), { client: 'app', outcome: 'completed' });

  const passing = await startTestGateway(t, upstream.url, { upstream: { auth: 'passthrough', apiKey: undefined }, clients });
  const options = { endpoint: passing.url, apiKey: undefined, azureADTokenProvider: async () => 'a-token-of-entra' };
  const call = (defaultHeaders: Record<string, string>) =>
    azureClient({ ...options, defaultHeaders }).chat.completions.create({ model: 'my-gpt', messages });
  const calling = call({ 'x-sluicegate-key': KEY });
  const { headers, head } = await respond(200, { choices: [] });
  await calling;
  t.equal(headers.authorization, 'Bearer a-token-of-entra');
  t.notMatch(head, KEY);
  t.match(await passing.ended(), { client: 'app', outcome: 'completed' });
  t.equal(classOf(await thrown(call({}))), 'AuthenticationError', 'Entra’s token is no key of ours');
  await passing.ended();
});

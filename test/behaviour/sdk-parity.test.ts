// Promise: pointed at Sluicegate, the openai SDK does what it does pointed at the upstream itself: answers, events, errors, aborts.
import { createHash } from 'node:crypto';
import { toFile } from 'openai';
import t from 'tap';
import { startDemo } from '../../src/demo/server.ts';
import { startTestGateway, UPSTREAM_KEY } from '../support/gateway.ts';
import { type Act, type Case, createAct, play } from '../support/parity.ts';
import { startUpstream, type UpstreamRequest } from '../support/upstream.ts';

const ask = (content: string) => ({ model: 'demo', messages: [{ role: 'user' as const, content }] });
const tools = [
  {
    type: 'function' as const,
    function: { name: 'get_weather', parameters: { type: 'object', properties: { city: { type: 'string' } } } },
  },
];

/** Hears a stream to its end; returns how many events it had. */
async function hearAll<T>(act: Act, stream: AsyncIterable<T>): Promise<number> {
  let count = 0;
  for await (const event of stream) {
    act.hear(event);
    count += 1;
  }
  return count;
}

const streamChat = async (act: Act) => hearAll(act, await act.openai.chat.completions.create({ ...ask('hello'), stream: true }));
const streamResponse = async (act: Act) => hearAll(act, await act.openai.responses.create({ model: 'demo', input: 'hello', stream: true }));
const delta = (content: string) => ({
  id: 'c',
  object: 'chat.completion.chunk',
  created: 1,
  model: 'm',
  choices: [{ index: 0, delta: { content }, finish_reason: null }],
});

/** The demo's answers: every shape that the API has. */
const answers: Record<string, Case> = {
  'a chat stream': {
    app: streamChat,
    expected: { events: [{ choices: [{ delta: { role: 'assistant' } }] }, { choices: [{ delta: { content: String } }] }] },
  },
  'a chat stream with usage': {
    app: async (act) => {
      const stream = await act.openai.chat.completions.create({
        ...ask('say 5 tokens'),
        stream: true,
        stream_options: { include_usage: true },
      });
      return hearAll(act, stream);
    },
    expected: { events: { 7: { choices: [], usage: { completion_tokens: 5 } } }, returned: 8 },
  },
  'a chat answer': {
    app: ({ openai }) => openai.chat.completions.create(ask('say 5 tokens')),
    expected: { returned: { object: 'chat.completion', usage: { completion_tokens: 5 } } },
  },
  'tool calls in a stream': {
    app: async (act) =>
      hearAll(act, await act.openai.chat.completions.create({ ...ask('weather in Oslo?'), tools, tool_choice: 'required', stream: true })),
    expected: { events: [{ choices: [{ delta: { tool_calls: [{ index: 0, function: { name: 'get_weather' } }] } }] }] },
  },
  'the stream() helper and its final completion': {
    app: async (act) => {
      const runner = act.openai.chat.completions.stream({ ...ask('weather in Oslo?'), tools, tool_choice: 'required' });
      await hearAll(act, runner);
      return runner.finalChatCompletion();
    },
    expected: {
      returned: { choices: [{ finish_reason: 'tool_calls', message: { tool_calls: [{ function: { name: 'get_weather' } }] } }] },
    },
  },
  'two choices in one stream': {
    app: async (act) => hearAll(act, await act.openai.chat.completions.create({ ...ask('hello'), n: 2, stream: true })),
    expected: { events: [{ choices: [{ index: 0 }] }, { choices: [{ index: 0 }] }, { choices: [{ index: 1 }] }] },
  },
  'a stream of legacy completions': {
    app: async (act) => hearAll(act, await act.openai.completions.create({ model: 'demo', prompt: 'say 4 tokens', stream: true })),
    expected: { events: [{ object: 'text_completion', choices: [{ text: String }] }], returned: 4 },
  },
  'a stream of the Responses API': {
    app: streamResponse,
    expected: { events: [{ type: 'response.created', sequence_number: 0 }, { type: 'response.in_progress' }] },
  },
  'an answer of the Responses API': {
    app: ({ openai }) => openai.responses.create({ model: 'demo', input: 'say 6 tokens' }),
    expected: { returned: { status: 'completed', output_text: String, usage: { output_tokens: 6 } } },
  },
  'a stored response, heard again from an event on': {
    app: async (act) => {
      const { id } = await act.openai.responses.create({ model: 'demo', input: 'say 6 tokens' });
      return hearAll(act, await act.openai.responses.retrieve(id, { stream: true, starting_after: 3 }));
    },
    expected: { events: [{ sequence_number: 4 }, { sequence_number: 5 }] },
    calls: 2,
  },
  'embeddings as numbers, decoded, and as base64': {
    app: async ({ openai }) => {
      const body = { model: 'demo', input: ['one', 'two words'], dimensions: 4 };
      const create = async (format: object) => openai.embeddings.create({ ...body, ...format });
      return Promise.all([create({}), create({ encoding_format: 'float' }), create({ encoding_format: 'base64' })]);
    },
    expected: { returned: [{ data: [{ embedding: { 3: Number } }] }, { usage: { prompt_tokens: 3 } }, { data: [{ embedding: String }] }] },
    calls: 3,
  },
  'the list of models, and one of them': {
    app: async ({ openai }) => [(await openai.models.list()).data, await openai.models.retrieve('demo')],
    expected: { returned: [[{ id: 'demo' }], { id: 'demo', object: 'model' }] },
    calls: 2,
  },
  'a file of 5 MB': {
    app: async ({ openai }) =>
      openai.files.create({ file: await toFile(Buffer.alloc(5_000_000, 'sluice'), 'gate.jsonl'), purpose: 'batch' }),
    expected: { returned: { bytes: 5_000_000, filename: 'gate.jsonl', purpose: 'batch' } },
  },
  'speech, byte for byte': {
    app: async ({ openai }) => {
      const speech = await openai.audio.speech.create({ model: 'demo', voice: 'alloy', input: 'hello', response_format: 'wav' });
      const bytes = Buffer.from(await speech.arrayBuffer());
      return { type: speech.headers.get('content-type'), size: bytes.length, hash: createHash('sha256').update(bytes).digest('hex') };
    },
    expected: { returned: { type: /^audio\// } },
  },
};

/** Error answers as OpenAI's API words them: the SDK's class for each status, and what an app reads from it. */
const refusals: readonly [status: number, className: string, headers?: Record<string, string>][] = [
  [400, 'BadRequestError'],
  [403, 'PermissionDeniedError'],
  [404, 'NotFoundError'],
  [409, 'ConflictError', { 'x-should-retry': 'false' }],
  [422, 'UnprocessableEntityError'],
  [
    429,
    'RateLimitError',
    { 'retry-after': '7', 'retry-after-ms': '7000', 'x-ratelimit-remaining-requests': '0', 'x-ratelimit-reset-tokens': '6m0s' },
  ],
  [500, 'InternalServerError'],
  [503, 'InternalServerError', { 'retry-after': '1' }],
];

const refused: Record<string, Case> = Object.fromEntries(
  refusals.map(([status, className, headers = {}]) => {
    const error = { message: `no: ${status} é`, type: 'some_type', param: 'messages[0]', code: `code_${status}` };
    const script = (request: UpstreamRequest) =>
      request.respond(
        status,
        { 'content-type': 'application/json', 'x-request-id': `req_${status}`, ...headers },
        JSON.stringify({ error }),
      );
    const thrown = { class: className, status, code: error.code, param: error.param, requestId: `req_${status}`, headers, error };
    return [`an error answer: ${status}`, { app: streamChat, script, expected: { thrown }, outcome: 'upstream_error' }];
  }),
);

/** What Sluicegate would add where an upstream leaves it out. */
const sseHeaders = { 'content-type': 'text/event-stream; charset=utf-8', 'x-request-id': 'req_sse' };
const firstEvent = async (request: UpstreamRequest, act: Act) => {
  request.startSse(sseHeaders);
  request.event(delta('Hel'));
  await act.firstHeard;
};
const heardFirst = { events: [{ choices: [{ delta: { content: 'Hel' } }] }] };
const isClosed = async ({ connection }: UpstreamRequest) => ((await connection.closed) ? 'closed' : 'open');

/** Trouble, on the upstream's side and on the app's. */
const troubles: Record<string, Case> = {
  'an answer with headers of the upstream’s own': {
    app: async ({ openai }) => {
      const { data, response, request_id } = await openai.chat.completions.create(ask('hello')).withResponse();
      return {
        data,
        request_id,
        status: response.status,
        type: response.headers.get('content-type'),
        version: response.headers.get('openai-version'),
      };
    },
    script: (request) =>
      request.respond(
        201,
        { 'content-type': 'application/json; x=y', 'x-request-id': 'req_up', 'openai-version': '2020-10-01' },
        '{"choices":[]}',
      ),
    expected: {
      returned: { data: { choices: [] }, request_id: 'req_up', status: 201, type: 'application/json; x=y', version: '2020-10-01' },
    },
  },
  'an error that is an HTML page': {
    app: streamChat,
    script: (request) => request.respond(500, { 'content-type': 'text/html', 'x-request-id': 'req_html' }, '<html>broken</html>'),
    expected: { thrown: { class: 'InternalServerError', status: 500, message: /<html>broken/ } },
    outcome: 'upstream_error',
  },
  'an error event in a chat stream': {
    app: streamChat,
    async script(request, act) {
      await firstEvent(request, act);
      request.event({ error: { message: 'overloaded', type: 'server_error', param: null, code: 'engine_overloaded' } });
      request.endChunks();
    },
    expected: { ...heardFirst, thrown: { class: 'APIError', code: 'engine_overloaded', message: 'overloaded' } },
    outcome: 'upstream_error_event',
  },
  'an error event in a stream of the Responses API': {
    app: streamResponse,
    script(request) {
      request.startSse(sseHeaders);
      request.chunk(
        'event: error\ndata: {"type":"error","sequence_number":0,"error":{"code":"server_error","message":"broke","param":null}}\n\n',
      );
      request.endChunks();
    },
    expected: { thrown: { class: 'APIError', code: 'server_error' } },
    outcome: 'upstream_error_event',
  },
  'a connection that breaks between two events': {
    app: streamChat,
    async script(request, act) {
      await firstEvent(request, act);
      request.connection.reset();
    },
    expected: { ...heardFirst, thrown: { class: String } },
    through: { thrown: { class: 'APIError', code: 'upstream_reset' } },
    outcome: 'upstream_reset',
  },
  'a connection that breaks inside an event': {
    app: streamChat,
    async script(request, act) {
      await firstEvent(request, act);
      request.chunk('data: {"choi');
      request.connection.reset();
    },
    expected: { ...heardFirst, thrown: { class: 'TypeError', message: 'terminated' } },
    outcome: 'upstream_reset',
  },
  'a stream that ends politely in the middle': {
    app: streamChat,
    async script(request, act) {
      await firstEvent(request, act);
      request.endChunks();
    },
    expected: heardFirst,
    through: { thrown: { class: 'APIError', code: 'upstream_truncated' } },
    outcome: 'upstream_truncated',
  },
  'a key that the upstream refuses': {
    app: streamChat,
    script: (request) =>
      request.respond(401, { 'content-type': 'application/json' }, '{"error":{"message":"Incorrect API key","code":"invalid_api_key"}}'),
    expected: { thrown: { class: String } },
    through: { thrown: { class: 'InternalServerError', status: 502, code: 'upstream_auth', headers: { 'x-should-retry': 'false' } } },
    outcome: 'upstream_error',
  },
  'an app that gives up before the headers': {
    app: ({ openai, controller }) => openai.chat.completions.create(ask('hello'), { signal: controller.signal }),
    async script(request, { controller }) {
      await request.body();
      controller.abort();
      return isClosed(request);
    },
    expected: { thrown: { class: 'APIUserAbortError' }, upstream: { said: 'closed' } },
    outcome: 'client_closed',
  },
  'an app whose time is up before the headers': {
    app: ({ openai }) => openai.chat.completions.create(ask('hello'), { timeout: 400 }),
    script: isClosed,
    expected: { thrown: { class: 'APIConnectionTimeoutError' }, upstream: { said: 'closed' } },
    outcome: 'client_closed',
  },
  'an app that aborts in mid-stream': {
    async app(act) {
      const stream = await act.openai.chat.completions.create({ ...ask('hello'), stream: true });
      void act.firstHeard.then(() => stream.controller.abort());
      return hearAll(act, stream);
    },
    async script(request, act) {
      await firstEvent(request, act);
      return isClosed(request);
    },
    expected: { ...heardFirst, returned: 1, upstream: { said: 'closed' } },
    outcome: 'client_closed',
  },
  'an app that leaves its loop': {
    async app(act) {
      for await (const event of await act.openai.chat.completions.create({ ...ask('hello'), stream: true })) {
        act.hear(event);
        break;
      }
    },
    async script(request, act) {
      await firstEvent(request, act);
      return isClosed(request);
    },
    expected: { ...heardFirst, upstream: { said: 'closed' } },
    outcome: 'client_closed',
  },
};

const demo = await startDemo({ host: '127.0.0.1', port: 0 }, { ttftMs: 0, tokensPerSecond: 0, key: UPSTREAM_KEY });
const near = await startUpstream();
const far = await startUpstream();
t.teardown(() => Promise.all([demo.close(), near.close(), far.close()]));
const beforeDemo = await startTestGateway(t, demo.url);
const beforeScript = await startTestGateway(t, far.url);

for (const [name, one] of Object.entries({ ...answers, ...refused, ...troubles })) {
  t.test(name, async (t) => {
    const gateway = one.script ? beforeScript : beforeDemo;
    const [direct, through] = await Promise.all([
      play(one, createAct(one.script ? near.url : demo.url, UPSTREAM_KEY), near),
      play(one, createAct(gateway.baseUrl, 'sk-of-the-app'), far),
    ]);
    t.match(direct, one.expected, 'at the upstream itself');
    t.match(through, { ...one.expected, ...one.through }, 'through Sluicegate');
    if (one.through === undefined) t.same(through, direct, 'the same both ways');
    for (let n = 0; n < (one.calls ?? 1); n += 1) t.equal((await gateway.ended()).outcome, one.outcome ?? 'completed');
  });
}

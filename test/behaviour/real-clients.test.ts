// Promise: clients and an upstream that nobody here wrote work with Sluicegate as they work with each other.
import { execFile, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import { promisify } from 'node:util';
import { createOpenAI } from '@ai-sdk/openai';
import { createServer, type Fixture } from '@copilotkit/aimock';
import { jsonSchema, stepCountIs, streamText, tool } from 'ai';
import { EventSource } from 'eventsource';
import OpenAI from 'openai';
import t, { type Test } from 'tap';
import { startDemo } from '../../src/demo/server.ts';
import { startTestGateway, UPSTREAM_KEY } from '../support/gateway.ts';
import { startUpstream } from '../support/upstream.ts';

const demo = await startDemo({ host: '127.0.0.1', port: 0 }, { ttftMs: 0, tokensPerSecond: 0, key: UPSTREAM_KEY });
t.teardown(() => demo.close());
const SENTENCE = 'The sluice opens, and é every word goes through.';
const REPEAT = `Repeat after me: ${SENTENCE}`;

/** Reads a stream to its end. */
async function collect<T>(stream: AsyncIterable<T>): Promise<T[]> {
  const items: T[] = [];
  for await (const item of stream) items.push(item);
  return items;
}

t.test('Vercel’s ai SDK: text by chat and by responses, with usage', async (t) => {
  const gateway = await startTestGateway(t, demo.url);
  const openai = createOpenAI({ baseURL: gateway.baseUrl, apiKey: 'sk-of-the-app' });
  for (const model of [openai.chat('demo'), openai.responses('demo')]) {
    const result = streamText({ model, prompt: REPEAT, maxRetries: 0 });
    const pieces = await collect(result.textStream);
    t.equal(pieces.join(''), SENTENCE);
    t.ok(pieces.length > 5, `${pieces.length} pieces`);
    const { inputTokens = 0, outputTokens = 0 } = await result.usage;
    t.ok(outputTokens > 0, 'the SDK saw the usage');
    const line = await gateway.ended();
    t.match(line, { outcome: 'completed', tokens: { input: inputTokens, output: outputTokens, outputSource: 'reported' } });
  }
});

t.test('Vercel’s ai SDK: a tool is called and its result answered', async (t) => {
  const gateway = await startTestGateway(t, demo.url);
  const openai = createOpenAI({ baseURL: gateway.baseUrl, apiKey: 'sk-of-the-app' });
  for (const model of [openai.chat('demo'), openai.responses('demo')]) {
    const asked: unknown[] = [];
    const result = streamText({
      model,
      prompt: 'What is the weather in Oslo?',
      maxRetries: 0,
      stopWhen: stepCountIs(2),
      tools: {
        get_weather: tool({
          inputSchema: jsonSchema<{ city: string }>({ type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }),
          execute: async (input) => {
            asked.push(input);
            return 'Eleven degrees and rain';
          },
        }),
      },
    });
    const text = (await collect(result.textStream)).join('');
    t.match(asked, [{ city: String }], 'called once, with arguments that parse');
    t.match(text, /Eleven degrees and rain/);
    t.equal((await gateway.ended()).outcome, 'completed');
    t.equal((await gateway.ended()).outcome, 'completed', 'and the second step too');
  }
});

t.test('the eventsource package reads a stored response, event by event', async (t) => {
  const gateway = await startTestGateway(t, demo.url);
  const openai = new OpenAI({ baseURL: gateway.baseUrl, apiKey: 'sk-of-the-app', maxRetries: 0 });
  const created = await collect(await openai.responses.create({ model: 'demo', input: REPEAT, stream: true }));
  const [first] = created;
  const id = first?.type === 'response.created' ? first.response.id : '';
  const source = new EventSource(`${gateway.baseUrl}/responses/${id}?stream=true`);
  t.teardown(() => source.close());
  const heard: unknown[] = [];
  for (const type of new Set(created.map((event) => event.type))) {
    source.addEventListener(type as string, ({ data }: MessageEvent) => heard.push(JSON.parse(data)));
  }
  await once(source, 'response.completed', { signal: AbortSignal.timeout(10_000) });
  source.close();
  t.same(heard, created);
  t.equal((await gateway.ended()).outcome, 'completed');
  t.match(await gateway.ended(), { outcome: 'completed', endpoint: /responses/ }, 'closing after the terminal event is a completed stream');
});

/** aimock, an upstream from elsewhere, that takes the injected key only. */
async function startAimock(t: Test) {
  const usage = { prompt_tokens: 31, completion_tokens: 17, total_tokens: 48, input_tokens: 19, output_tokens: 23 };
  const fixtures: Fixture[] = [
    { match: { userMessage: 'slowly' }, response: { content: 'word '.repeat(500) }, latency: 5 },
    { match: { userMessage: 'hello' }, response: { content: SENTENCE, usage } },
  ];
  const mock = await createServer(fixtures, { host: '127.0.0.1', port: 0, chunkSize: 5, auth: { apiKeys: [UPSTREAM_KEY] } });
  t.teardown(async () => {
    mock.server.close();
    mock.server.closeAllConnections();
    await once(mock.server, 'close');
  });
  return mock;
}

t.test('aimock as the upstream: what it reported is what /metrics say', async (t) => {
  const { url } = await startAimock(t);
  const gateway = await startTestGateway(t, `${url}/v1`);
  const openai = new OpenAI({ baseURL: gateway.baseUrl, apiKey: 'sk-of-the-app', maxRetries: 0 });
  const messages = [{ role: 'user' as const, content: 'hello' }];

  const chat = await collect(
    await openai.chat.completions.create({ model: 'gpt-4o', messages, stream: true, stream_options: { include_usage: true } }),
  );
  t.equal(chat.map(({ choices }) => choices[0]?.delta.content ?? '').join(''), SENTENCE);
  t.match(chat.at(-1)?.usage, { prompt_tokens: 31, completion_tokens: 17 });
  const whole = await openai.chat.completions.create({ model: 'gpt-4o', messages });
  t.match(whole, { choices: [{ message: { content: SENTENCE } }], usage: { prompt_tokens: 31, completion_tokens: 17 } });
  const responses = await collect(await openai.responses.create({ model: 'gpt-4o', input: 'hello', stream: true }));
  t.match(responses.at(-1), { type: 'response.completed', response: { usage: { input_tokens: 19, output_tokens: 23 } } });
  const embeddings = await openai.embeddings.create({ model: 'text-embedding-3-small', input: 'hello', dimensions: 8 });
  t.match(embeddings, { data: [{ embedding: { length: 8 } }] });

  for (let n = 0; n < 4; n += 1) t.equal((await gateway.ended()).outcome, 'completed');
  const metrics = await gateway.metrics();
  t.equal(metrics.value('sluicegate_tokens_total', { kind: 'input' }), 31 + 31 + 19 + embeddings.usage.prompt_tokens);
  t.equal(metrics.value('sluicegate_tokens_total', { kind: 'output', source: 'reported' }), 17 + 17 + 23);
  t.equal(metrics.value('sluicegate_tokens_total', { source: 'counted' }) ?? 0, 0, 'nothing had to be counted here');
});

t.test('aimock as the upstream: an app that leaves closes its connection there', async (t) => {
  const { server, url } = await startAimock(t);
  const left = once(server, 'request').then(async ([, response]: ServerResponse[]) => {
    await once(response!, 'close');
    return response!.writableFinished ? 'answered whole' : 'closed before its end';
  });
  const gateway = await startTestGateway(t, `${url}/v1`);
  const openai = new OpenAI({ baseURL: gateway.baseUrl, apiKey: 'sk-of-the-app', maxRetries: 0 });
  const messages = [{ role: 'user' as const, content: 'slowly' }];
  let heard = 0;
  for await (const _ of await openai.chat.completions.create({ model: 'gpt-4o', messages, stream: true })) {
    heard += 1;
    if (heard === 3) break;
  }
  t.equal(await left, 'closed before its end', 'as aimock saw it');
  t.match(await gateway.ended(), { outcome: 'client_closed', phase: 'stream', tokens: { outputSource: 'counted' } });
  t.equal((await gateway.metrics()).value('sluicegate_upstream_close_seconds_count', { phase: 'stream' }), 1);
});

/** Prints one JSON object: what openai-python made of each call. */
const pythonApp = `
import json, sys, openai
client = openai.OpenAI(base_url=sys.argv[1], api_key="sk-of-the-app", max_retries=0)
broken = openai.OpenAI(base_url=sys.argv[2], api_key="sk-of-the-app", max_retries=0)
ask = [{"role": "user", "content": sys.argv[3]}]
seen = {"text": "", "types": []}
for chunk in client.chat.completions.create(model="demo", messages=ask, stream=True, stream_options={"include_usage": True}):
    seen["text"] += "".join(choice.delta.content or "" for choice in chunk.choices)
    seen["usage"] = chunk.usage and chunk.usage.completion_tokens
for event in client.responses.create(model="demo", input=sys.argv[3], stream=True):
    seen["types"].append(event.type)
try:
    client.chat.completions.create(model="no-such-model", messages=ask)
except openai.NotFoundError as error:
    seen["refused"] = error.code
heard = 0
try:
    for chunk in broken.chat.completions.create(model="demo", messages=ask, stream=True):
        heard += 1
        print("heard", flush=True, file=sys.stderr)
except openai.APIError as error:
    seen["broken"] = [heard, error.code]
print(json.dumps(seen))
`;
const python = process.env.SLUICEGATE_PYTHON ?? 'python3';
const hasPython = spawnSync(python, ['-c', 'import openai']).status === 0;

t.test(
  'openai-python: streams, an error, and a stream that breaks',
  { skip: !hasPython && 'openai-python is not installed' },
  async (t) => {
    const gateway = await startTestGateway(t, demo.url);
    const upstream = await startUpstream({ waitMs: 20_000 });
    t.teardown(() => upstream.close());
    const breaking = await startTestGateway(t, upstream.url);
    const running = promisify(execFile)(python, ['-c', pythonApp, gateway.baseUrl, breaking.baseUrl, REPEAT]);
    running.catch(() => upstream.close());
    const request = await upstream.request();
    request.startSse();
    request.event({ id: 'c', object: 'chat.completion.chunk', created: 1, model: 'm', choices: [{ index: 0, delta: { content: 'Hel' } }] });
    await once(running.child.stderr ?? t, 'data');
    request.connection.reset();

    const seen = JSON.parse((await running).stdout) as { usage: number; types: string[] };
    t.match(seen, { text: SENTENCE, usage: Number, refused: 'model_not_found', broken: [1, 'upstream_reset'] });
    t.match(seen.types, ['response.created', 'response.in_progress']);
    t.equal(seen.types.at(-1), 'response.completed');
    t.match(await gateway.ended(), { outcome: 'completed', tokens: { output: seen.usage } });
    t.equal((await gateway.ended()).outcome, 'completed');
    t.equal((await gateway.ended()).outcome, 'upstream_error');
    t.equal((await breaking.ended()).outcome, 'upstream_reset');
  },
);

// Promise: what providers are known to send passes as it is, event by event, ends as it truly ended and is counted as it was reported; and docs/providers.md works.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { parse } from 'yaml';
import { formatProblem, loadConfig } from '../../src/config.ts';
import { startTestGateway, type TestGateway, UPSTREAM_KEY } from '../support/gateway.ts';
import { startUpstream } from '../support/upstream.ts';
import { connect } from '../support/wire.ts';

const fixtures = join(import.meta.dirname, '../fixtures');
const json = { 'content-type': 'application/json' };
const CHAT = '/v1/chat/completions';
const AZURE = '/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21';
const MESSAGES = '/v1/messages';
const reported = (input: number, output: number, more: object = {}) => ({ input, output, outputSource: 'reported', ...more });
const counted = (output: number) => ({ output, outputSource: 'counted' });

interface Expected {
  readonly target: string;
  /** What the upstream called its model; undefined where it does not say. */
  readonly model: string | undefined;
  readonly tokens: object | undefined;
  /** `completed` if not given. */
  readonly outcome?: string;
}

/** For each file of test/fixtures what must come of it. */
const rows: Record<string, Expected> = {
  'openai-two-choices': { target: CHAT, model: 'gpt-4o-2024-08-06', tokens: reported(17, 9) },
  'openai-tool-call': { target: CHAT, model: 'gpt-4o-2024-08-06', tokens: reported(51, 16) },
  'openai-response-incomplete': { target: '/v1/responses', model: 'gpt-5.1', tokens: reported(21, 8, { cachedInput: 4, reasoning: 5 }) },
  'openai-response-failed': {
    target: '/v1/responses',
    model: 'gpt-5.1',
    tokens: reported(21, 8, { cachedInput: 4, reasoning: 5 }),
    outcome: 'upstream_error_event',
  },
  'openai-response-error': { target: '/v1/responses', model: 'gpt-5.1', tokens: counted(1), outcome: 'upstream_error_event' },
  'openai-speech': { target: '/v1/audio/speech', model: undefined, tokens: reported(14, 101) },
  'openai-transcription': { target: '/v1/audio/transcriptions', model: undefined, tokens: reported(30, 15, { audioInput: 20 }) },
  'openai-image': { target: '/v1/images/generations', model: undefined, tokens: reported(12, 1056) },
  'azure-filter-in-blocks': { target: AZURE, model: 'gpt-4o-2024-11-20', tokens: reported(12, 15) },
  'azure-filter-comes-late': { target: AZURE, model: 'gpt-4o-2024-11-20', tokens: counted(2) },
  'azure-filter-ends-it': { target: AZURE, model: 'gpt-4o-2024-11-20', tokens: counted(1) },
  'azure-error-after-start': { target: AZURE, model: 'gpt-4o-2024-11-20', tokens: undefined, outcome: 'upstream_error_event' },
  'openrouter-processing': { target: CHAT, model: 'meta-llama/llama-3.3-70b-instruct', tokens: reported(14, 2, { cachedInput: 8 }) },
  'openrouter-error': {
    target: CHAT,
    model: 'meta-llama/llama-3.3-70b-instruct',
    tokens: counted(1),
    outcome: 'upstream_error_event',
  },
  'vllm-running-usage': { target: CHAT, model: 'Qwen/Qwen3-8B', tokens: reported(13, 4) },
  'vllm-error': { target: CHAT, model: 'Qwen/Qwen3-8B', tokens: reported(13, 1), outcome: 'upstream_error_event' },
  'llamacpp-progress': { target: CHAT, model: 'gemma-3-4b-it', tokens: reported(20, 2) },
  'llamacpp-usage-at-finish': { target: CHAT, model: 'gemma-3-4b-it', tokens: reported(20, 1) },
  'llamacpp-error-field': { target: CHAT, model: 'gemma-3-4b-it', tokens: counted(1), outcome: 'upstream_error_event' },
  'ollama-zeros': { target: '/v1/completions', model: 'llama3.2', tokens: reported(26, 3) },
  'ollama-breaks-off': { target: CHAT, model: 'llama3.2', tokens: counted(2), outcome: 'upstream_truncated' },
  'deepinfra-pings': { target: CHAT, model: 'deepseek-ai/DeepSeek-V3', tokens: reported(11, 1) },
  'gemini-crlf': { target: CHAT, model: 'gemini-2.5-flash', tokens: reported(9, 3) },
  'no-space-after-colon': { target: CHAT, model: 'sonar', tokens: reported(5, 1) },
  'no-blank-lines': { target: CHAT, model: 'Meta-Llama-3.3-70B-Instruct', tokens: reported(6, 2) },
  'anthropic-overloaded': {
    target: MESSAGES,
    model: 'claude-sonnet-4-5-20250929',
    tokens: { input: 329, inputSource: 'running', ...counted(1) },
    outcome: 'upstream_error_event',
  },
  'anthropic-breaks-off': {
    target: MESSAGES,
    model: 'claude-sonnet-4-5-20250929',
    tokens: { input: 329, inputSource: 'running', ...counted(1) },
    outcome: 'upstream_truncated',
  },
  'anthropic-new-events': {
    target: MESSAGES,
    model: 'claude-sonnet-4-5-20250929',
    tokens: reported(329, 7, { cachedInput: 300, cacheWrite: 20 }),
  },
};

const upstream = await startUpstream();
t.teardown(() => upstream.close());

/** Sends the pieces one after the other, each when the one before has been received, then ends the body; returns what came down. */
async function play(t: Test, gateway: TestGateway, target: string, pieces: readonly string[], isAsked: boolean) {
  const client = await connect(gateway.port);
  client.request({ method: 'POST', target, headers: json, body: '{"stream":true}' });
  const request = await upstream.request();
  t.equal(request.target, target);
  t.equal((await request.body()).toString().includes('include_usage'), isAsked);
  request.startSse();
  for (const piece of pieces) {
    request.chunk(piece);
    // Where usage was asked for, what may have to be taken out is held.
    if (!isAsked) t.equal((await client.read(Buffer.byteLength(piece))).toString(), piece);
  }
  request.endChunks();
  const body = await client.body().then(
    (whole) => ({ text: whole.toString(), isComplete: true }),
    ({ received }: { received: Buffer }) => ({ text: received.toString(), isComplete: false }),
  );
  client.destroy();
  return { ...body, line: await gateway.ended() };
}

const gateways = {
  asSent: await startTestGateway(t, upstream.url, { upstream: { usage: 'asSent' } }),
  ask: await startTestGateway(t, upstream.url, { upstream: { usage: 'ask' } }),
};

t.test('the fixtures, their list and these rows are the same', async (t) => {
  const files = readdirSync(fixtures).filter((file) => file.endsWith('.sse'));
  t.same(files.map((file) => file.replace('.sse', '')).sort(), Object.keys(rows).sort());
  const listed = [...readFileSync(join(fixtures, 'README.md'), 'utf8').matchAll(/^\| (`.*?) \|/gm)].flatMap(([, cell = '']) =>
    cell.split(', '),
  );
  t.same(listed.map((name) => name.replaceAll('`', '')).sort(), Object.keys(rows).sort());
});

for (const [name, { target, model, tokens, outcome = 'completed' }] of Object.entries(rows)) {
  t.test(`${name}: nothing is held, every byte is the provider’s, its end and its tokens are told as they are`, async (t) => {
    const text = readFileSync(join(fixtures, `${name}.sse`), 'utf8');
    const pieces = text.match(name === 'no-blank-lines' ? /.+\n/g : /.+?(?:\r?\n){2,}/gs) ?? [];
    t.equal(pieces.join(''), text);
    const asked = /completions/.test(target) ? [false, true] : [false];
    for (const isAsked of asked) {
      const { text: body, isComplete, line } = await play(t, gateways[isAsked ? 'ask' : 'asSent'], target, pieces, isAsked);
      t.match(line, { outcome, ...(model !== undefined && { model }) });
      if (tokens === undefined) t.equal(line.tokens, undefined);
      else t.match(line.tokens, tokens);
      const isBroken = outcome === 'upstream_truncated';
      t.equal(isComplete, !isBroken);
      const last = isBroken ? (/(?:event: error\n)?data: [^\n]*"upstream_truncated"[^\n]*\n\n$/.exec(body)?.[0] ?? 'none') : '';
      if (!isAsked) t.equal(body, text + last);
    }
  });
}

const page = readFileSync(join(import.meta.dirname, '../../docs/providers.md'), 'utf8');
/** Each `## NAME` with the YAML under it. */
const blocks = new Map(
  page.split(/^## /m).flatMap((section) => {
    const yaml = /^```yaml\n(.*?)^```/ms.exec(section)?.[1];
    return yaml === undefined ? [] : [[section.slice(0, section.indexOf('\n')), yaml]];
  }),
);

/** Lines of a table whose cells are code, but for the first. */
function tableRows(header: string): string[][] {
  const lines = page.slice(page.indexOf(header)).split('\n\n', 1)[0]!.split('\n').slice(2);
  return lines.map((line) =>
    line
      .split('|')
      .slice(1, -1)
      .map((cell) => cell.trim().replace(/^`(.*)`$/, '$1')),
  );
}

t.test('docs/providers.md: each block is a configuration without a flaw, and each base URL is one', async (t) => {
  for (const [name, text] of blocks) {
    const env = Object.fromEntries(Array.from(text.matchAll(/\$\{(\w+)\}/g), ([, variable = '']) => [variable, 'sk-of-the-operator']));
    const loaded = loadConfig({ file: `${name}.yaml`, text }, env);
    t.same([...(loaded.ok ? [] : loaded.problems), ...loaded.warnings].map(formatProblem), [], name);
  }
  const others = tableRows('| provider | `baseUrl` |');
  t.ok(others.length > 5);
  for (const [name, baseUrl] of others) {
    const loaded = loadConfig({ file: 'x.yaml', text: `upstreams: { x: { baseUrl: "${baseUrl}", apiKey: sk } }` }, {});
    t.same([loaded.ok, loaded.warnings], [true, []], name ?? '');
  }
});

t.test('docs/providers.md: each block sends what the page says, where it says, with the key in the header that it says', async (t) => {
  const table = tableRows('| provider | a call to Sluicegate |');
  t.same(
    table.map(([name]) => name),
    [...blocks.keys()],
    'a row for each block',
  );
  for (const [name = '', target = '', url = '', header = ''] of table) {
    const block = (blocks.get(name) ?? '').replaceAll(/\$\{\w+\}/g, UPSTREAM_KEY);
    const origin = new URL(url).origin;
    t.ok(block.includes(origin), `${name} goes there`);
    const text = block.replaceAll(/(?<=baseUrl: )https?:\/\/[^/\s]+/g, new URL(upstream.url).origin);
    const { upstreams = {}, ...rest } = parse(text) as Record<string, Record<string, object>>;
    const [[, first] = [], ...others] = Object.entries(upstreams);
    const gateway = await startTestGateway(t, '', { ...rest, upstream: { usage: 'ask', ...first }, upstreams: Object.fromEntries(others) });
    const client = await connect(gateway.port);
    const model = target.includes('messages') ? 'claude-opus-4-5' : 'my-gpt';
    client.request({ method: 'POST', target, headers: { ...json, authorization: 'Bearer of-the-app' }, body: JSON.stringify({ model }) });
    const request = await upstream.request();
    t.equal(origin + request.target, url, name);
    const { authorization, 'api-key': apiKey, 'x-api-key': xApiKey } = request.headers;
    const key = header === 'authorization' ? `Bearer ${UPSTREAM_KEY}` : UPSTREAM_KEY;
    const none = { authorization: undefined, 'api-key': undefined, 'x-api-key': undefined };
    t.same({ authorization, 'api-key': apiKey, 'x-api-key': xApiKey }, { ...none, ...(header !== 'none' && { [header]: key }) }, name);
    request.respond(200, json, '{}');
    await client.body();
    client.destroy();
  }
});

// What each provider sends where it is asked for usage, and what it sends where it is not: clients get the latter, the numbers are the former's.
import assert from 'node:assert/strict';
import { globSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import t from 'tap';
import { createStreamMeter } from '../../src/stream/meter.ts';
import { createUsageStrip } from '../../src/stream/strip.ts';
import { createTokenizer } from '../../src/stream/tokens.ts';
import type { Strip } from '../../src/upstream/ask.ts';
import { anthropic } from '../../src/upstream/dialects/anthropic.ts';
import { chat } from '../../src/upstream/dialects/chat.ts';
import { createChoiceBook } from '../../src/upstream/dialects/choice-book.ts';
import { completions } from '../../src/upstream/dialects/completions.ts';
import type { Dialect } from '../../src/upstream/dialects/dialect.ts';
import { responses } from '../../src/upstream/dialects/responses.ts';

interface Provider {
  readonly dialect: Dialect;
  readonly strip: Strip | undefined;
  /** Each event as it comes where usage is asked for, and as it comes otherwise; undefined where it comes only in one case. */
  readonly events: readonly (readonly [asked: string | undefined, direct: string | undefined])[];
  readonly expected: object;
}

const final = { final: true, running: false };
const both = { final: true, running: true };
const same = (event: string) => [event, event] as const;
const data = (body: string, eol = '\n') => `data: ${body}${eol}${eol}`;
const done = same('data: [DONE]\n\n');
const head = '"id":"chatcmpl-1","object":"chat.completion.chunk","created":1750000000,"model":"m-1"';
const choice = (delta: string, reason = 'null') => `"choices":[{"index":0,"delta":${delta},"logprobs":null,"finish_reason":${reason}}]`;
const usage = '{"prompt_tokens":19,"completion_tokens":5,"total_tokens":24,"completion_tokens_details":{"reasoning_tokens":2}}';
const reported = { input: 19, output: 5, reasoning: 2, inputSource: 'reported', outputSource: 'reported' };

const providers: Record<string, Provider> = {
  OpenAI: {
    dialect: chat,
    strip: final,
    events: [
      ...['{"role":"assistant","content":"","refusal":null}', '{"content":"Good "}', '{"content":"\\"usage\\":null \\ud83d\\ude00"}'].map(
        (delta) => {
          const chunk = (more: string) =>
            data(`{${head},"service_tier":"default","system_fingerprint":"fp",${choice(delta)}${more},"obfuscation":"aB3"}`);
          return [chunk(',"usage":null'), chunk('')] as const;
        },
      ),
      [
        data(`{${head},${choice('{}', '"stop"')},"usage":null,"obfuscation":"x"}`),
        data(`{${head},${choice('{}', '"stop"')},"obfuscation":"x"}`),
      ],
      [data(`{${head},"choices":[],"usage":${usage},"obfuscation":""}`), undefined],
      done,
    ],
    expected: reported,
  },
  Azure: {
    dialect: chat,
    strip: final,
    events: [
      same(
        'data: {"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{"prompt_index":0,"content_filter_results":{}}]}\n\n\n',
      ),
      [data(`{${choice('{"content":"Good morning"}')},${head},"usage":null}`), data(`{${choice('{"content":"Good morning"}')},${head}}`)],
      [data(`{${choice('{}', '"stop"')},${head},"usage":null}`), data(`{${choice('{}', '"stop"')},${head}}`)],
      same(data('{"choices":[{"index":0,"finish_reason":null,"content_filter_offsets":{"check_offset":44}}],"id":"","model":""}')),
      [data(`{"choices":[],${head},"usage":${usage}}`), undefined],
      done,
    ],
    expected: reported,
  },
  OpenRouter: {
    dialect: chat,
    strip: final,
    // Usage comes whether it is asked for or not; what is ours cannot be told from what is not, and nobody loses anything.
    events: [
      same(': OPENROUTER PROCESSING\n\n'),
      same(data(`{${head},"provider":"X",${choice('{"role":"assistant","content":"Good"}')}}`)),
      same(': OPENROUTER PROCESSING\n\n'),
      same(
        data(
          `{${head},"provider":"X",${choice('{"content":""}', '"stop"')},"usage":${usage.replace('}}', '},"cost":0.00014,"cost_details":{"upstream_inference_cost":null}}')}}`,
        ),
      ),
      done,
    ],
    expected: reported,
  },
  vLLM: {
    dialect: chat,
    strip: both,
    events: [
      ...[0, 1, 2].map((n) => {
        const running = `,"usage":{"prompt_tokens":19,"total_tokens":${19 + n},"completion_tokens":${n}}`;
        const chunk = (more: string) =>
          data(`{${head},${choice(n === 0 ? '{"role":"assistant","content":""}' : '{"content":" word"}')}${more}}`);
        return [chunk(running), chunk('')] as const;
      }),
      same(data('{"error":{"object":"error","message":"the engine died","type":"InternalServerError","param":null,"code":500}}')),
      done,
    ],
    // Nothing follows the last totals: they are those of what was sent.
    expected: { input: 19, output: 2, inputSource: 'reported', outputSource: 'reported' },
  },
  'llama.cpp': {
    dialect: chat,
    strip: final,
    events: [
      same(data(`{"choices":[{"finish_reason":null,"index":0,"delta":{"content":"Good"}}],"created":1,"id":"c","model":"m-1"}`)),
      same(
        data(
          `{"choices":[{"finish_reason":"stop","index":0,"delta":{}}],"created":1,"id":"c","model":"m-1","timings":{"prompt_n":19,"predicted_n":5}}`,
        ),
      ),
      [data(`{"choices":[],"created":1,"id":"c","model":"m-1","usage":${usage},"timings":{"prompt_n":19}}`), undefined],
      same('error: {"code":500,"message":"late","type":"server_error"}\n\n'),
      done,
    ],
    expected: reported,
  },
  Ollama: {
    dialect: completions,
    strip: final,
    events: [
      ...['Good', ' morning'].map((text) => {
        const chunk = (more: string) =>
          data(
            `{"id":"cmpl-1","object":"text_completion","created":1,"choices":[{"text":"${text}","index":0,"finish_reason":null}],"model":"m-1"${more}}`,
          );
        return [chunk(',"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}'), chunk('')] as const;
      }),
      [
        data(
          '{"id":"cmpl-1","choices":[{"text":"","index":0,"finish_reason":"stop"}],"model":"m-1","usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}',
        ),
        data('{"id":"cmpl-1","choices":[{"text":"","index":0,"finish_reason":"stop"}],"model":"m-1"}'),
      ],
      [data(`{"id":"cmpl-1","choices":[],"model":"m-1","usage":${usage}}`), undefined],
      done,
    ],
    expected: reported,
  },
  DeepSeek: {
    dialect: chat,
    strip: final,
    events: [
      [data(`{${head},${choice('{"reasoning_content":"Hm"}')},"usage":null}`), data(`{${head},${choice('{"reasoning_content":"Hm"}')}}`)],
      same(data(`{${head},${choice('{"content":""}', '"stop"')},"usage":${usage}}`)),
      done,
    ],
    expected: reported,
  },
  Anthropic: {
    dialect: anthropic,
    strip: undefined,
    events: [
      same(
        'event: message_start\ndata: {"type":"message_start","message":{"id":"msg","model":"m-1","usage":{"input_tokens":9,"cache_read_input_tokens":10,"output_tokens":1}}}\n\n',
      ),
      same('event: ping\ndata: {"type": "ping"}\n\n'),
      same('event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Good"}}\n\n'),
      same('event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":5}}\n\n'),
      same('event: message_stop\ndata: {"type":"message_stop"}\n\n'),
    ],
    expected: { input: 19, output: 5, cachedInput: 10, inputSource: 'reported', outputSource: 'reported' },
  },
};

const tokenizer = createTokenizer();
t.teardown(() => tokenizer.close());

for (const [name, { dialect, strip, events, expected }] of Object.entries(providers)) {
  t.test(`${name}: the client's bytes are those of a call that did not ask, and the totals the same, cut at every byte`, async (t) => {
    const asked = Buffer.from(events.map(([event]) => event ?? '').join('')).toString('latin1');
    const direct = Buffer.from(events.map(([, event]) => event ?? '').join('')).toString('latin1');
    const pass = async (pieces: readonly string[]) => {
      const stripper = strip && createUsageStrip(strip, createChoiceBook());
      const meter = createStreamMeter(dialect, tokenizer);
      let down = '';
      for (const piece of pieces) {
        down += stripper ? stripper.next(piece) : piece;
        meter.observe(piece);
      }
      return { down: down + (stripper?.rest() ?? ''), usage: await meter.usage(), isComplete: meter.isComplete };
    };
    const whole = await pass([asked]);
    t.equal(whole.down, direct);
    t.match(whole.usage, expected);
    t.ok(whole.isComplete);
    for (let at = 1; at < asked.length; at++) assert.deepEqual(await pass([asked.slice(0, at), asked.slice(at)]), whole, `cut at ${at}`);
    assert.deepEqual(await pass([...asked]), whole, 'byte by byte');
  });
}

t.test('each fixture is read the same, in single bytes and in two pieces at every third offset', async (t) => {
  const files = globSync(join(import.meta.dirname, '../fixtures/*.sse'));
  t.ok(files.length > 20);
  for (const file of files) {
    const text = readFileSync(file, 'latin1');
    const isResponse = file.includes('openai-response');
    const dialect = file.includes('anthropic') ? anthropic : isResponse ? responses : file.includes('ollama-zeros') ? completions : chat;
    const read = (pieces: readonly string[]) => {
      const meter = createStreamMeter(dialect, tokenizer);
      for (const piece of pieces) meter.observe(piece);
      const { eventCount, contentCount, meaningCount, textLength, model, isComplete, isTerminated, hasError, isOff } = meter;
      return { eventCount, contentCount, meaningCount, textLength, model, isComplete, isTerminated, hasError, isOff };
    };
    const whole = read([text]);
    t.equal(whole.isOff, false, basename(file));
    assert.deepEqual(read([...text]), whole, file);
    for (let at = 1; at < text.length; at += 3) assert.deepEqual(read([text.slice(0, at), text.slice(at)]), whole, `${file} cut at ${at}`);
  }
});

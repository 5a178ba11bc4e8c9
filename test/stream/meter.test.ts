// Recorded streams give the usage that their providers reported, however they are cut; and what nobody reported is counted.
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { gzipSync } from 'node:zlib';
import { countTokens as countCl100k } from 'gpt-tokenizer/encoding/cl100k_base';
import { countTokens as countO200k } from 'gpt-tokenizer/encoding/o200k_base';
import t from 'tap';
import { createBatchedMeter } from '../../src/stream/batch.ts';
import { createInflatingMeter } from '../../src/stream/inflate.ts';
import { createBodyMeter, createNullMeter, createStreamMeter, type Meter } from '../../src/stream/meter.ts';
import { createEventScanner } from '../../src/stream/sse.ts';
import { createTokenizer, encodingOf, estimateTokens, type Tokenizer } from '../../src/stream/tokens.ts';
import { anthropic } from '../../src/upstream/dialects/anthropic.ts';
import { chat } from '../../src/upstream/dialects/chat.ts';
import { completions } from '../../src/upstream/dialects/completions.ts';
import type { Dialect, JsonObject } from '../../src/upstream/dialects/dialect.ts';
import { images } from '../../src/upstream/dialects/images.ts';
import { plain } from '../../src/upstream/dialects/plain.ts';
import { responses } from '../../src/upstream/dialects/responses.ts';
import { createRandom } from '../support/random.ts';
import { expectedUsage, recordedStreams } from '../support/streams.ts';

const dialects: Record<string, Dialect> = { chat, completions, responses, anthropic };
const tokenizer = createTokenizer();
t.teardown(() => tokenizer.close());
const raw = { disallowedSpecial: new Set<string>() };

/** The output texts, each apart and in the order in which they begin, by parsing every event. */
function expectedTexts(stream: string, dialect: string): string[] {
  const texts = new Map<string, string>();
  const inDeltas = new Set<unknown>();
  const add = (key: string, text: unknown) => {
    if (typeof text === 'string' && text !== '') texts.set(key, (texts.get(key) ?? '') + text);
  };
  for (const line of stream.split('\n')) {
    if (!line.startsWith('data: {')) continue;
    const event = JSON.parse(line.slice(6));
    if (dialect === 'responses') {
      const { type, output_index: at, content_index, summary_index, delta, item } = event;
      if (type.endsWith('.delta')) inDeltas.add(at);
      if (type.endsWith('.delta')) add(`${at} ${content_index ?? summary_index} ${type}`, delta);
      const isNamed = type.endsWith('output_item.added') && /^(function|mcp|custom_tool)_call$/.test(item.type);
      if (isNamed) add(`${at} name`, item.name);
      const isWhole = type.endsWith('output_item.done') && /shell_call$|^apply_patch_call$/.test(item.type) && !inDeltas.has(at);
      if (isWhole) add(`${at}`, JSON.stringify(item.action ?? item.operation));
    } else if (dialect === 'anthropic') {
      add(`${event.index}`, event.delta?.text ?? event.delta?.thinking ?? event.delta?.partial_json);
      if (event.content_block?.type.endsWith('tool_use')) add(`${event.index} name`, event.content_block.name);
    } else for (const choice of event.choices) addDelta(choice.text === undefined ? choice.delta : { content: choice.text }, add);
  }
  return [...texts.values()];
}

// biome-ignore lint/suspicious/noExplicitAny: a recorded delta, of any provider's shape
function addDelta(delta: any, add: (key: string, text: unknown) => void): void {
  for (const part of Array.isArray(delta.content) ? delta.content : [{ text: delta.content }]) {
    add('text', part.text);
    add('reasoning', part.thinking?.[0].text);
  }
  add('reasoning', delta.reasoning_content ?? delta.reasoning);
  for (const call of delta.tool_calls ?? []) {
    add(`${call.index} name`, call.function.name);
    add(`${call.index}`, call.function.arguments);
  }
}

function readAll(dialect: Dialect, pieces: string[]) {
  const reader = dialect.createReader();
  const scanner = createEventScanner({ onEvent: (name, data) => reader.read(name, data) });
  const texts: string[] = [];
  const take = () => {
    for (const [i, lane] of reader.lanes.entries()) texts[i] = (texts[i] ?? '') + lane.takeText();
  };
  for (const piece of pieces) {
    scanner.scan(piece);
    if (piece.length % 3 === 0) take();
  }
  take();
  const { usage, isUsageFinal, isComplete, isTerminated, hasError, model, contentCount, meaningCount, textLength, sequenceNumber } = reader;
  const counts = { contentCount, meaningCount, textLength, sequenceNumber, eventCount: scanner.eventCount };
  return { texts, usage, isUsageFinal, isComplete, isTerminated, hasError, model, ...counts };
}

function sumOf(texts: string[], count: typeof countO200k): number {
  return texts.reduce((sum, text) => sum + count(text, raw), 0);
}

const random = createRandom(11);

/** At every byte, and in six ways into many; a small stream also into two pieces at each of its offsets. */
function* cuts(bytes: string): Generator<string[]> {
  if (bytes.length < 5000) for (let at = 1; at < bytes.length; at++) yield [bytes.slice(0, at), bytes.slice(at)];
  for (const longest of [1, 3, 40, 400, 1000, 5000, 70_000]) {
    const pieces: string[] = [];
    for (let at = 0; at < bytes.length; ) {
      const end = at + 1 + random(longest);
      pieces.push(bytes.slice(at, end));
      at = end;
    }
    yield pieces;
  }
}

const streams = recordedStreams();

t.test(
  'B28 recorded streams give what their providers reported, cut anywhere',
  { skip: streams ? false : 'the recorded streams are not here' },
  async (t) => {
    for (const { file, dialect: name, usage, bytes, events } of streams ?? []) {
      const dialect = dialects[name]!;
      const stream = bytes.toString('latin1');
      const whole = readAll(dialect, [stream]);
      t.match(whole, { isUsageFinal: true, isComplete: true, isTerminated: true, hasError: false }, file);
      t.same(whole.usage, expectedUsage(usage, name), `${file}: usage`);
      t.same(whole.texts, expectedTexts(bytes.toString(), name), `${file}: texts`);
      t.equal(whole.eventCount, events + (stream.includes('\ndata: [DONE]\n') ? 1 : 0), `${file}: events`);
      t.type(whole.model, 'string', `${file}: model`);
      if (whole.contentCount > whole.meaningCount || whole.meaningCount > whole.eventCount) t.fail(`${file}: ${JSON.stringify(whole)}`);
      const seen = JSON.stringify(whole);
      for (const pieces of cuts(stream)) {
        const cut = JSON.stringify(readAll(dialect, pieces));
        if (cut !== seen) t.same(JSON.parse(cut), JSON.parse(seen), `${file}: ${pieces[0]?.length}`);
      }
      const crlf = stream.replaceAll('\n', '\r\n');
      t.equal(JSON.stringify(readAll(dialect, [crlf])), seen, `${file}: with CRLF`);
    }
  },
);

t.test(
  'a recorded stream that breaks off is counted, and not called complete',
  { skip: streams ? false : 'the recorded streams are not here' },
  async (t) => {
    for (const [file, inputSource] of [
      ['groq-reasoning.sse', undefined],
      ['anthropic-json-output-format.1.sse', 'running'],
    ] as const) {
      const found = streams?.find((one) => one.file === file);
      const stream = found!.bytes.toString('latin1');
      const half = stream.slice(0, stream.indexOf('\n\n', stream.length / 2) + 2);
      const meter = createStreamMeter(dialects[found!.dialect]!, tokenizer);
      meter.observe(half);
      const metered = await meter.usage();
      const counted = sumOf(expectedTexts(Buffer.from(half, 'latin1').toString(), found!.dialect), countO200k);
      t.match(meter, { isComplete: false, isTerminated: false, isOff: false, isEventOpen: false }, file);
      t.match(metered, { inputSource, outputSource: 'counted' }, file);
      t.equal(metered!.output, counted, file);
    }
  },
);

function chunk(delta: JsonObject, rest: JsonObject = {}): string {
  return `data: ${JSON.stringify({ model: 'gpt-4', choices: [{ index: 0, delta, finish_reason: null }], ...rest })}\n\n`;
}

t.test('text is counted as the tokenizer would count it whole, and memory stays bounded', async (t) => {
  const lengths: number[] = [];
  const count: Tokenizer['count'] = (model, text) => {
    lengths.push(text.length);
    return tokenizer.count(model, text);
  };
  const meter = createStreamMeter(chat, { ...tokenizer, count });
  const words = ['The', ' quick', ' brown', ' fox', ' — “naïve”', ' 你好', ' jumps\n\n', ' over <|endoftext|>', ' {"a":\t1}', ' 😀'];
  let text = '';
  for (let i = 0; i < 24_000; i++) {
    const word = words[random(words.length)]!;
    text += word;
    meter.observe(Buffer.from(chunk({ content: word })).toString('latin1'));
  }
  const exact = countCl100k(text, raw);
  const metered = await meter.usage();
  t.ok(Math.abs(metered!.output - exact) <= 0.02 * exact, `${metered!.output} for ${exact}`);
  t.ok(lengths.length > 2 && Math.max(...lengths) < 70_000, `held at most: ${Math.max(...lengths)}`);
  t.ok(meter.textLength >= Buffer.byteLength(text));
  t.equal(meter.model, 'gpt-4');
});

t.test('among many streams, compiled too, none keeps the chunks that its text came in', async (t) => {
  setFlagsFromString('--expose-gc');
  const collect: () => void = runInNewContext('gc');
  const meters = Array.from({ length: 1000 }, () => createBatchedMeter(createStreamMeter(chat, tokenizer)));
  const chunkBytes = 1300;
  const event = (padding: string) => `{"obfuscation":"${padding}","choices":[{"index":0,"delta":{"content":"what is said."}}]}`;
  const [first, other] = ['', 'x'.repeat(chunkBytes)].map((padding) => Buffer.from(`data: ${event(padding)}\n\n`));
  collect();
  const before = process.memoryUsage().heapUsed;
  for (let events = 0; events < 35; events++) {
    // Each chunk is a string of its own, as what is read from a socket.
    for (const meter of meters) meter.observe((events === 0 ? first : other)!.toString('latin1'));
  }
  collect();
  const perStream = (process.memoryUsage().heapUsed - before) / meters.length;
  t.ok(perStream < 1.5 * chunkBytes, `${Math.round(perStream)} bytes a stream`);
  t.equal(meters[0]?.eventCount, 35);
  const usage = await meters[0]?.usage();
  t.equal(usage?.output, countO200k('what is said.'.repeat(35)));
});

t.test('of an event over 1 MiB the usage is found, and its images are not kept', async (t) => {
  const image = 'QUJD'.repeat(500_000);
  const usage = { input_tokens: 5, output_tokens: 6, total_tokens: 11 };
  const response = { id: 'r', model: 'gpt-5', output: [{ type: 'image_generation_call', result: image, usage: 1 }], usage };
  const done = { input: 5, output: 6, outputSource: 'reported' };
  const cases: [what: string, Dialect, events: JsonObject[], meter: object, usage: object | undefined][] = [
    [
      'images',
      images,
      [
        { type: 'image_generation.partial_image', b64_json: image, partial_image_index: 0 },
        { type: 'image_generation.completed', b64_json: image, usage },
      ],
      { isTerminated: true, isComplete: true, contentCount: 2, meaningCount: 2 },
      done,
    ],
    [
      'images, broken off',
      images,
      [{ type: 'image_generation.partial_image', b64_json: image }],
      { isTerminated: false, isComplete: false, contentCount: 1, meaningCount: 1 },
      undefined,
    ],
    [
      'Responses',
      responses,
      [{ type: 'response.completed', sequence_number: 9, response }],
      { isTerminated: true, isComplete: true, model: 'gpt-5' },
      done,
    ],
    [
      'chat, where the choices are what is long',
      chat,
      [{ model: 'm', choices: [{ index: 0, delta: { images: [{ image_url: { url: image } }] } }] }],
      { isTerminated: false, isComplete: true, meaningCount: 1, model: 'm' },
      undefined,
    ],
  ];
  for (const [what, dialect, events, expected, reported] of cases) {
    const isNamed = dialect !== chat;
    const stream = events.map((event) => `${isNamed ? `event: ${event.type}\n` : ''}data: ${JSON.stringify(event)}\n\n`).join('');
    for (const size of [97, 60_000, 10_000_000]) {
      const meter = createStreamMeter(dialect, tokenizer);
      for (let at = 0; at < stream.length; at += size) meter.observe(stream.slice(at, at + size));
      t.match(meter, { isOff: false, eventCount: events.length, ...expected }, `${what}, ${size}`);
      t.match(await meter.usage(), reported, `${what}, ${size}`);
    }
  }
  const odd = createStreamMeter(chat, tokenizer);
  odd.observe(`data: [${'1,'.repeat(600_000)}\n\ndata: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":6}}\n\n`);
  t.match(odd, { isOff: false, meaningCount: 2, isComplete: true });
  t.match(await odd.usage(), { input: 5, output: 6 });
});

t.test('a fault switches off the meter of this stream, says where it was, and nothing else', async (t) => {
  const bug = () => {
    throw new Error('a bug');
  };
  const failing = (more: Partial<ReturnType<Dialect['createReader']>>): Dialect => ({
    ...chat,
    createReader: () => Object.defineProperties(chat.createReader(), Object.getOwnPropertyDescriptors(more)),
  });
  const meter = createStreamMeter(failing({ read: bug }), tokenizer);
  meter.observe(chunk({ content: 'a' }));
  meter.observe('id: 1\ndata: half');
  t.match(meter, { isOff: true, fault: 'event', isComplete: true, isEventOpen: true, hasIdOrRetry: true, eventCount: 1 });
  t.equal(await meter.usage(), undefined);

  const cases: [what: string, fault: string, Meter][] = [
    [
      'usage of a stream',
      'usage',
      createStreamMeter(
        failing({
          get usage() {
            return bug();
          },
        }),
        tokenizer,
      ),
    ],
    ['counting', 'usage', createStreamMeter(chat, { ...tokenizer, count: () => Promise.reject(new Error('a bug')) })],
    ['counting, at once', 'usage', createStreamMeter(chat, { ...tokenizer, count: bug })],
    ['the prompt', 'usage', createStreamMeter(chat, { ...tokenizer, countPrompt: bug })],
    ['usage of a body', 'usage', createBodyMeter({ ...chat, usageOf: bug }, tokenizer)],
    ['the prompt of a body', 'usage', createBodyMeter(chat, { ...tokenizer, countPrompt: bug })],
  ];
  for (const [what, fault, faulty] of cases) {
    faulty.observe(chunk({ content: 'a' }));
    t.match(faulty, { isOff: false, fault: undefined }, what);
    t.equal(await faulty.usage(() => Buffer.from('{"prompt":"a"}')), undefined, what);
    t.match(faulty, { isOff: true, fault }, what);
  }
  const early = createStreamMeter(chat, { ...tokenizer, count: () => Promise.reject(new Error('a bug')) });
  early.observe(chunk({ content: 'a '.repeat(20_000) }));
  await new Promise(setImmediate);
  t.equal(await early.usage(), undefined, 'a count that fails before anybody waits for it ends no process');
  t.equal(early.fault, 'usage');
  const speechless = createStreamMeter({ ...chat, errorEvent: bug }, tokenizer);
  t.equal(speechless.errorEvent({ code: 'a', type: 'b', message: 'c' }), '');
  t.equal(speechless.fault, 'error_event');
});

t.test('what does not inflate switches its meter off, and says why', async (t) => {
  const feed = async (coding: string, body: Buffer) => {
    const meter = createInflatingMeter(coding, createStreamMeter(chat, tokenizer))!;
    for (let at = 0; at < body.length && !meter.isOff; at += 50_000) {
      meter.observe(body.toString('latin1', at, at + 50_000));
      await new Promise(setImmediate);
    }
    return { meter, usage: await meter.usage() };
  };
  const text = Buffer.from(chunk({ content: 'Hello' }));
  t.match(await feed('gzip', gzipSync(text)), { meter: { isOff: false, fault: undefined, contentCount: 1 }, usage: { output: 1 } });
  t.match(await feed('br', gzipSync(text)), { meter: { isOff: true, fault: 'coding' }, usage: undefined });
  t.match(await feed('gzip', gzipSync(Buffer.alloc(20_000_000))), { meter: { isOff: true, fault: 'bomb' }, usage: undefined });
  const hasty = createInflatingMeter('gzip', createStreamMeter(chat, tokenizer))!;
  hasty.observe('\x1f\x8b\x08'.padEnd(2_000_000, '\0'));
  t.match(hasty, { isOff: true, fault: 'behind' }, 'memory is bounded where the machine is too busy to keep up');
  t.equal(await hasty.usage(), undefined);
  t.equal(createInflatingMeter('compress', createNullMeter()), undefined);
  t.equal(createInflatingMeter('constructor', createNullMeter()), undefined);
  const nothing = createInflatingMeter('gzip', createNullMeter())!;
  t.equal(await nothing.usage(), undefined, 'an empty body');
});

t.test('nothing is said where there is nothing to say', async (t) => {
  const silent = createStreamMeter(chat, tokenizer);
  silent.observe(': hello\n\n');
  t.equal(await silent.usage(), undefined);
  t.match(silent, { meaningCount: 0, contentCount: 0, eventCount: 0 });
  const binary = createNullMeter();
  binary.observe('RIFF');
  t.match(binary, { isEventOpen: true, isComplete: true, meaningCount: 1 });
  t.equal(binary.errorEvent({ code: 'a', type: 'b', message: 'c' }), '');
  t.equal(await binary.usage(), undefined);
});

t.test('a JSON answer of any size gives its usage and model', async (t) => {
  const meter = createBodyMeter(plain, tokenizer);
  meter.observe(' \n');
  t.equal(meter.meaningCount, 0, 'blanks that keep a connection alive mean nothing');
  meter.observe('{"object":"list","model":"text-\\u0065mbedding-3","data":[{"embedding":[');
  for (let i = 0; i < 160; i++) meter.observe('0.0123456789,'.repeat(5000));
  meter.observe('1]}],"usage":{"prompt_tokens":8,');
  t.equal(await meter.usage(), undefined, 'half an answer reports nothing');
  meter.observe('"total_tokens":8}}');
  t.match(await meter.usage(), { input: 8, output: 0, inputSource: 'reported', outputSource: 'reported' });
  t.equal(meter.model, 'text-embedding-3');
  for (const body of ['{"error":{"message":"no"}}', '<html>', '[]', '{"usage":null}', '{"usage":{"type":"duration","seconds":3}}']) {
    const other: Meter = createBodyMeter(chat, tokenizer);
    other.observe(body);
    t.same([await other.usage(), other.model, other.isOff], [undefined, undefined, false], body);
  }
});

t.test('the tokenizer counts as gpt-tokenizer does, in the encoding of the model', async (t) => {
  for (const text of ['', 'hello world', '<|endoftext|>', '你好，世界', 'const a = "b";\n\n\tc()', '😀😀']) {
    t.equal(await tokenizer.count('gpt-4o', text), countO200k(text, raw), JSON.stringify(text));
    t.equal(await tokenizer.count('gpt-4-turbo', text), countCl100k(text, raw), JSON.stringify(text));
  }
  const long = `${'ab1_'.repeat(300)} ${' '.repeat(600)}${'x'.repeat(1500)}`;
  const exact = countO200k(long, raw);
  const sliced = await tokenizer.count(undefined, long);
  t.ok(Math.abs(sliced - exact) <= 0.02 * exact, `${sliced} for ${exact}`);
  for (const model of ['gpt-4', 'gpt-4-0613', 'openai/gpt-4-turbo', 'gpt-35-turbo', 'ft:gpt-3.5-turbo:x', 'text-embedding-3-small']) {
    t.equal(encodingOf(model), 'cl100k_base', model);
  }
  for (const model of [undefined, 'gpt-4o', 'gpt-4.1', 'gpt-4.5-preview', 'gpt-5', 'o3', 'claude-sonnet-4-5', 'chatgpt-4o-latest']) {
    t.equal(encodingOf(model), 'o200k_base', String(model));
  }
});

t.test('a run of 100,000 characters neither blocks nor fails', async (t) => {
  const started = performance.now();
  const [letters, blanks] = await Promise.all([tokenizer.count('x', 'a'.repeat(100_000)), tokenizer.count('x', ' '.repeat(100_000))]);
  t.ok(letters > 1000 && blanks > 100, `${letters}, ${blanks}`);
  t.ok(performance.now() - started < 5000, 'uncut, it takes a minute');
});

t.test('a worker that fails gives estimates, and the next count tries again', async (t) => {
  const broken = createTokenizer(new URL('data:text/javascript,throw new Error("no")'));
  t.equal(await broken.count('gpt-4o', 'x'.repeat(41)), 11);
  t.equal(await broken.count('gpt-4o', 'x'.repeat(41)), 11);
  await broken.close();
  const closing = createTokenizer();
  const waiting = closing.count('gpt-4o', 'hello hello hello');
  await closing.close();
  t.equal(await waiting, estimateTokens('hello hello hello'), 'close leaves nobody waiting');
  t.equal(await closing.count('gpt-4o', 'hello'), 1, 'and a later count starts another');
  await closing.close();
  t.equal(await tokenizer.count('gpt-4o', 'y'.repeat(2_000_000)), 500_000, 'too much at once is estimated');
});

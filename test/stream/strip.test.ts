// An answer that was asked for usage reads, once stripped, as one that was not: generated and recorded pairs, however they are cut.
import assert from 'node:assert/strict';
import t from 'tap';
import { createUsageStrip } from '../../src/stream/strip.ts';
import { createChoiceBook } from '../../src/upstream/dialects/choice-book.ts';
import { createRandom } from '../support/random.ts';
import { recordedStreams } from '../support/streams.ts';

type Random = (n: number) => number;
type Members = readonly (readonly [key: string, raw: string])[];
/** `asked` is what a provider sends when it was asked, `direct` what it would have sent otherwise. */
interface Pair {
  readonly asked: string;
  readonly direct: string;
}
interface Habits {
  readonly eol: string;
  readonly blankLines: number;
  readonly prefix: string;
  readonly comma: string;
  readonly colon: string;
  /** Where `usage` stands among the members. */
  readonly usageAt: number;
  readonly hasNulls: boolean;
  readonly hasRunning: boolean;
  readonly name: string;
}

const final = { final: true, running: false };
const both = { final: true, running: true };
const running = { final: false, running: true };
const pick = <T>(list: readonly T[], random: Random): T => list[random(list.length)]!;
const usage = '{"prompt_tokens":9,"completion_tokens":{"x":"}\\""},"total_tokens":12}';

function strip(pieces: readonly string[], what = final): string {
  const stripper = createUsageStrip(what, createChoiceBook());
  return pieces.map((piece) => stripper.next(piece)).join('') + stripper.rest();
}

function cutAtRandom(text: string, random: Random, maxBytes: number): string[] {
  const pieces: string[] = [];
  for (let at = 0; at < text.length; ) {
    const end = at + random(maxBytes + 1);
    pieces.push(text.slice(at, end));
    at = end;
  }
  return pieces;
}

/** As most come, where models are slower than networks: whole events, one or some in a piece. */
function cutBetweenEvents(text: string, random: Random): string[] {
  const pieces: string[] = [''];
  for (const event of text.match(/[\s\S]+?(?:\n\n|\r\n\r\n|\r\r|$)/g) ?? []) {
    if (random(3) > 0) pieces.push('');
    pieces[pieces.length - 1] += event;
  }
  return pieces;
}

const quoting = [
  ' world',
  'say "usage":null, "choices":[] and "finish_reason":"stop"',
  '{"usage":null}',
  '\\',
  '\\"',
  'ünï€😀',
  ',"usage":null',
  '',
  'data: {"usage":null}\n\n',
  'index',
  'usage',
  '"finish_reason":"stop","index":9',
];
const text = (random: Random) => JSON.stringify(Buffer.from(pick(quoting, random)).toString('latin1'));
const delta = [
  (random: Random) => `{"content":${text(random)}}`,
  (random: Random) => `{"tool_calls":[{"index":3,"usage":null,"finish_reason":"no","function":{"arguments":${text(random)}}}]}`,
  (random: Random) => `{"content":null,"usage":{"a":[{"index":7}]},"reasoning":${text(random)}}`,
];

function choice(index: number, reason: string, random: Random): string {
  const members = [`"index":${index}`, `"delta":${pick(delta, random)(random)}`, `"finish_reason":${reason}`, '"logprobs":null'];
  for (let i = members.length - 1; i > 0; i--) {
    const j = random(i + 1);
    [members[i], members[j]] = [members[j]!, members[i]!];
  }
  return `{${members.join(pick([',', ', '], random))}}`;
}

function frame(members: Members, habits: Habits): string {
  const body = members.map(([key, raw]) => `"${key}"${habits.colon}${raw}`).join(habits.comma);
  return `${habits.name}${habits.prefix}{${body}}${habits.eol}${habits.eol.repeat(habits.blankLines)}`;
}

function chunk(choices: string, random: Random): Members {
  const members: (readonly [string, string])[] = [
    ['id', '"c-1"'],
    ['object', '"chat.completion.chunk"'],
  ];
  if (random(3) === 0) members.push(['usag', 'null'], ['usage2', '{"usage":null}'], ['x_groq', '{"usage":{"total_tokens":1}}']);
  members.splice(random(members.length + 1), 0, ['choices', choices]);
  return members;
}

function withUsage(members: Members, raw: string, at: number): Members {
  const place = at % (members.length + 1);
  return [...members.slice(0, place), ['usage', raw], ...members.slice(place)];
}

/** A stream as a provider of random habits sends it, asked and not. */
function generate(random: Random, mode: 'final' | 'running'): Pair {
  const eol = pick(['\n', '\r\n', '\r'], random);
  const habits: Habits = {
    eol,
    blankLines: pick([1, 1, 2], random),
    prefix: pick(['data: ', 'data:', 'data:  '], random),
    comma: pick([',', ', ', ' ,\t'], random),
    colon: pick([':', ': '], random),
    usageAt: random(7),
    hasNulls: random(3) > 0,
    hasRunning: mode === 'running',
    name: pick(['', '', `event: chunk${eol}`, `id: 7${eol}`], random),
  };
  let asked = random(4) === 0 ? '\xef\xbb\xbf' : '';
  let direct = asked;
  const add = (both: string) => {
    asked += both;
    direct += both;
  };
  const say = (members: Members) => {
    direct += frame(members, habits);
    const raw = habits.hasRunning && random(2) ? usage : habits.hasNulls ? 'null' : undefined;
    asked += frame(raw === undefined ? members : withUsage(members, raw, habits.usageAt), habits);
  };
  const oddities = [
    `: OPENROUTER PROCESSING${eol}${eol}`,
    `: "usage":null${eol}`,
    `retry: 5${eol}`,
    `data: {broken "usage":null,${eol}${eol}`,
    `data: "usage":null${eol}${eol}`,
    `event: error${eol}data: {"error":{"usage":null}}${eol}${eol}`,
    `data: {"error":"x", "usage": 5}${eol}${eol}`,
    `${eol}`,
  ];
  add(random(2) ? `data: {"choices":[],"prompt_filter_results":[{"usage":null}],"id":""}${eol}${eol}${eol}` : '');
  const n = pick([1, 1, 2, 3], random);
  for (let left = random(6); left >= 0; left--) {
    if (random(3) === 0) add(pick(oddities, random));
    say(chunk(`[${choice(random(n), 'null', random)}]`, random));
  }
  for (let index = 0; index < n; index++) {
    const whole = [choice(index, pick(['"stop"', '"length"', '"tool_calls"'], random), random)];
    if (index === 0) for (let other = 1; other < n; other++) whole.push(choice(other, pick(['null', '""'], random), random));
    const members = chunk(`[${whole.join()}]`, random);
    if (mode === 'final' && random(3) === 0)
      add(frame(withUsage(members, usage, habits.usageAt), habits)); // DeepSeek: it comes anyway
    else say(members);
  }
  if (random(3) === 0) say(chunk(`[${choice(0, 'null', random)}]`, random)); // Azure: annotations come late
  if (random(3) === 0) add(`: ping${eol}${eol}`);
  if (random(8) > 0) asked += frame(withUsage(chunk('[]', random), usage, habits.usageAt), habits);
  if (random(3) === 0) add(`: ping${eol}${eol}`);
  if (random(4) > 0) add(`data: [DONE]${eol}${eol}`);
  return { asked, direct };
}

t.test('of any provider’s stream, exactly what was asked for is taken out, however it is cut', async (t) => {
  const random = createRandom(7);
  for (let round = 0; round < 200; round++) {
    const isRunning = round % 3 === 0;
    const { asked, direct } = generate(random, isRunning ? 'running' : 'final');
    const what = isRunning ? both : final;
    const whole = strip([asked], what);
    assert.equal(whole, direct, `round ${round}, whole`);
    const once = strip([direct], what);
    if (!isRunning) assert.equal(once, direct, `round ${round}: nothing to take out`);
    for (const max of [1, 3, 40, 400, 1500]) {
      const got = strip(cutAtRandom(asked, random, max), what);
      assert.equal(got, direct, `round ${round}, pieces up to ${max}`);
      assert.equal(strip(cutBetweenEvents(asked, random), what), direct, `round ${round}, whole events`);
    }
    if (round >= 20) continue;
    for (let at = 1; at < asked.length; at++) {
      const got = strip([asked.slice(0, at), asked.slice(at)], what);
      assert.equal(got, direct, `round ${round}, cut at ${at}`);
    }
  }
  t.pass('200 streams');
});

const line = (body: string) => `data: {${body}}\n\n`;
const content = line('"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]');
const stop = line('"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]');
const usageChunk = line(`"choices":[],"usage":${usage}`);

t.test('what a provider sends unasked stays where it can be told apart', async (t) => {
  const kept: Record<string, string> = {
    'usage in the finish chunk': line(`"choices":[{"index":0,"finish_reason":"stop"}],"usage":${usage}`),
    'usage behind the finish chunk, with a choice': stop + line(`"choices":[{"delta":{}}],"usage":${usage}`),
    'what is not all zeros':
      line('"usage":{"prompt_tokens":0,"total_tokens":10},"choices":[]') + line('"id":1,"usage":{}') + line('"usage":{"a":"0"}'),
    'no choices, and no usage': content + stop + line('"choices":[],"prompt_filter_results":[]'),
    'usage without choices': stop + line(`"usage":${usage}`),
    'usage before any finish': content + line(`"choices":[],"usage":${usage}`),
    'a nested object': line('"choices":[{"index":0,"usage":null}],"meta":{"usage":null,"a":[{"usage":null}]}'),
    'data that is no object': 'data: [{"usage":null}]\n\ndata: "usage":null\n\ndata: {"usage":null;}\n\ndata: {"usage":null\n\n',
    'a comment, a name and an unknown field': ': {"usage":null}\nevent: {"usage":null}\nfoo: {"usage":null}\n\n',
    'an empty finish_reason': line('"choices":[{"index":0,"finish_reason":""}]') + usageChunk,
    'an unfinished choice': line('"choices":[{"index":0,"finish_reason":"stop"},{"index":1,"finish_reason":null}]') + usageChunk,
    'a choice that began alone':
      content + content.replace('"index":0', '"index":1') + content + stop + content.replace('"index":0', '"index":1') + usageChunk,
    'a choice without an index that began behind another':
      content.replace('"index":0', '"index":1') + content.replace('"index":0,', '') + stop.replace('"index":0', '"index":1') + usageChunk,
    'a scalar usage': line('"usage":5,"id":1') + line('"usage":nul,"id":1') + line('"usage":nullx,"id":1') + line('"id":1,"usage":"null"'),
    'a comment and an unknown field that end as an event does': ': {"a":1,"usage":null}\n\nfoo: {"a":1,"usage":null}\n\n',
    'an unknown field behind a line that ends in CR': 'data: {"a":1}\rfoo: {"a":1,"usage":null}\n\n',
    'an event over a mebibyte': line(`"a":"${'x'.repeat(1_048_576)}","usage":null`),
    'a value over lines that is broken': 'data: {"id":1,"usage":nu\ndata: ll}\n\ndata: {"a":"\ndata: b","usage":null}\n\n',
  };
  for (const [name, stream] of Object.entries(kept)) {
    t.equal(strip([stream]), stream, name);
    t.equal(strip([content, stream]), content + stream, `${name}, behind content`);
    if (stream.length < 10_000) t.equal(strip([...stream]), stream, `${name}, byte by byte`);
    t.equal(strip(stream.split(/(?<=\n\n)/)), stream, `${name}, event by event`);
  }
  const withNull = content.replace('}\n\n', ',"usage":null}\n\n');
  const scalar = line('"id":1,"usage":5');
  t.equal(strip([content, withNull + scalar + withNull]), content + content + scalar + content, 'a scalar usage between what goes');
});

t.test('what was asked for comes out with its comma, its space and its lines', async (t) => {
  const tail = 'data: [DONE]\n\n';
  const table: Record<string, [asked: string, direct: string]> = {
    first: ['data: { "usage": null , "id": 1 }\n\n', 'data: { "id": 1 }\n\n'],
    middle: ['data: {"id": 1, "usage": null, "x": 2}\n\n', 'data: {"id": 1, "x": 2}\n\n'],
    last: ['data: {"id": 1, "usage": null}\n\n', 'data: {"id": 1}\n\n'],
    only: ['data: {"usage":null}\n\n', 'data: {}\n\n'],
    'over several data lines': ['data: {\ndata:   "usage": null,\ndata:   "id": 1\ndata: }\n\n', 'data: {\ndata:   "id": 1\ndata: }\n\n'],
    'last of several data lines': [
      'data: {\ndata:   "id": 1,\ndata:   "usage": null\ndata: }\n\n',
      'data: {\ndata:   "id": 1\ndata: }\n\n',
    ],
    'usage before choices': [stop + line(`"usage":${usage},"choices":[]`) + tail, stop + tail],
    'a usage chunk over several lines': [`${stop}data: {"choices":[],\ndata: "usage":${usage}}\n\n${tail}`, stop + tail],
    'its name and id with it': [`${stop}event: x\n${usageChunk}id: 1\n\n`, `${stop}id: 1\n\n`],
    'fields behind its data': [`${stop}${usageChunk.trimEnd()}\nid: 9\n\n${tail}`, stop + tail],
    'but not the comments around it': [
      `${stop}: a\nevent: x\n: b\n${usageChunk.trimEnd()}\n: c\n\n${tail}`,
      `${stop}: a\n: b\n: c\n${tail}`,
    ],
    'all its blank lines': [`${stop}\n${usageChunk}\n\n${tail}`, `${stop}\n${tail}`],
    'lines with nothing between': [
      `${content}${stop}${usageChunk}${tail}`.replaceAll('\n\n', '\n'),
      `${content}${stop}${tail}`.replaceAll('\n\n', '\n'),
    ],
    'an end without a line break': [stop + usageChunk.trimEnd(), stop + usageChunk.trimEnd()],
  };
  for (const [name, [asked, direct]] of Object.entries(table)) {
    for (const eol of ['\n', '\r\n', '\r']) {
      const [from, to] = [asked.replaceAll('\n', eol), direct.replaceAll('\n', eol)];
      t.equal(strip([from]), to, `${name}, ${JSON.stringify(eol)}`);
      for (let at = 1; at < from.length; at++) {
        const got = strip([from.slice(0, at), from.slice(at)]);
        assert.equal(got, to, `${name}, ${JSON.stringify(eol)}, cut at ${at}`);
      }
    }
  }
});

t.test('a client that asked for usage keeps its chunk, and loses only the running totals', async (t) => {
  const chunkOf = (of: string, u: string) => line(`"choices":[${of}]${u}`);
  const said = '{"index":0,"finish_reason":null}';
  const over = '{"index":0,"finish_reason":"stop"}';
  const asked = chunkOf(said, `,"usage":${usage}`) + chunkOf(said, ',"usage":null') + chunkOf(over, `,"usage":${usage}`);
  const direct = chunkOf(said, '') + chunkOf(said, ',"usage":null') + chunkOf(over, '');
  t.equal(strip([asked + usageChunk], running), direct + usageChunk);
  t.equal(strip([...(asked + usageChunk)], running), direct + usageChunk);
  t.equal(strip([stop + chunkOf(said, `,"usage":${usage}`)], running), stop + chunkOf(said, ''), 'behind the finish too');
});

t.test('nothing is held but what may have to come out', async (t) => {
  const random = createRandom(3);
  for (let round = 0; round < 15; round++) {
    const { asked } = generate(random, 'final');
    const firstFinish = Math.max(0, asked.search(/"finish_reason":"(?!no|")/));
    for (let at = 1; at < asked.length; at++) {
      const stripper = createUsageStrip(final, createChoiceBook());
      const down = stripper.next(asked.slice(0, at));
      const rest = stripper.rest();
      const held = asked.slice(at - rest.length, at);
      assert.ok(asked.slice(0, at).endsWith(rest), `round ${round}: held ${JSON.stringify(rest)} at ${at}`);
      const isMember = /^[ \t]*(?:,[ \t]*)?(?:"(?:u(?:s(?:a(?:g(?:e(?:"[\s\S]*)?)?)?)?)?)?)?$/.test(held);
      assert.ok(isMember || at > firstFinish, `round ${round}: held ${JSON.stringify(held)} behind ${JSON.stringify(down.slice(-40))}`);
      assert.ok(!/[\r\n]{2}data:?[^\r\n]*[\r\n]+data/.test(held), `round ${round}: more than one event held: ${JSON.stringify(held)}`);
    }
  }
  for (const [stream, held] of [
    ['data: {"id":1,', 1],
    ['data: {"id":1,"us', 4],
    ['data: {"id":1,"ug', 0],
    ['data: {"', 1],
    ['data: {"id":1,"usage":', 9],
    ['data: {"id":1,"usage":nul', 12],
    ['data: {"id":1,"usage":{', 10],
    ['data: {"id":1,"usage":{"prompt_tokens":0', 27],
    ['data: {"id":1,"usage":{"prompt_tokens":10', 0],
    ['data: {"id":1,"usage":nux', 0],
    ['data: {"id":1,"usage":null}', 0],
    ['data: {"id":{"usage', 0],
    ['data: {"id":"x,', 0],
    ['data: [', 0],
    [`${stop}: pi`, 0],
    [`${stop}data: {"id`, 10],
    [`${stop}data: {"id":1}\n`, 0],
    [`${stop}data: [DONE]\n`, 0],
  ] as const) {
    for (const pieces of [[stream], [...stream]]) {
      const stripper = createUsageStrip(final, createChoiceBook());
      for (const piece of pieces) stripper.next(piece);
      t.equal(stripper.heldBytes, held, `${held} of ${JSON.stringify(stream.slice(-24))}`);
    }
  }
});

t.test('an event over a mebibyte goes by, and the next one is stripped again', async (t) => {
  const big = 'x'.repeat(1_100_000);
  const after = `${content}${stop}`;
  const nullAfter = line('"id":1,"usage":null');
  const streams: Record<string, [asked: string, direct: string]> = {
    'a long text before it': [line(`"a":"${big}","usage":null`) + nullAfter, line(`"a":"${big}","usage":null`) + line('"id":1')],
    'a long event behind the finish': [
      after + line(`"usage":null,"a":"${big}"`) + usageChunk + nullAfter,
      after + line(`"usage":null,"a":"${big}"`) + line('"id":1'),
    ],
    'a long line that is no JSON': [`${after}data: {${big}\n\n${usageChunk}`, `${after}data: {${big}\n\n`],
    'a long text that begins as the event before': [
      content + line(`"choices":[{"index":0,"text":"${big}"}],"usage":null`) + nullAfter,
      content + line(`"choices":[{"index":0,"text":"${big}"}],"usage":null`) + line('"id":1'),
    ],
    'many events, together longer': [content.replace('}]}', '}],"usage":null}').repeat(16_000), content.repeat(16_000)],
    'a long usage': [line(`"a":1,"usage":{"x":"${big}"}`) + nullAfter, line(`"a":1,"usage":{"x":"${big}"}`) + line('"id":1')],
    'many lines': [`${after}data: {\n${'data: 1\n'.repeat(140_000)}\n${usageChunk}`, `${after}data: {\n${'data: 1\n'.repeat(140_000)}\n`],
  };
  for (const [name, [asked, direct]] of Object.entries(streams)) {
    for (const size of [asked.length, 65536, 1000]) {
      const stripper = createUsageStrip(both, createChoiceBook());
      let [got, most] = ['', 0];
      for (let at = 0; at < asked.length; at += size) {
        got += stripper.next(asked.slice(at, at + size));
        most = Math.max(most, stripper.heldBytes);
      }
      t.ok(got + stripper.rest() === direct, `${name}, in pieces of ${size}`);
      t.ok(most <= 1_048_576 + size, `${most} bytes held at most`);
    }
  }
});

const streams = recordedStreams()?.filter(({ dialect }) => dialect === 'chat' || dialect === 'completions');
const skip = streams === undefined && 'the recordings are not here';
t.test('recorded streams: with the members of include_usage put in, they come out as they were', { skip }, async (t) => {
  const random = createRandom(5);
  for (const { file, bytes } of streams ?? []) {
    const recorded = bytes.toString('latin1');
    const frames = recorded.split(/(?<=\n\n)/);
    const isAdded = (event: string) => /"choices":\s*\[\]/.test(event) && /"usage":\s*\{/.test(event);
    const direct = frames.filter((event) => !isAdded(event)).map((event) => event.replace(/,"usage":null(?=[,}])/, ''));
    const asked = frames.map((event) =>
      event.startsWith('data: {') && !/"usage":/.test(event) ? event.replace(/\}\s*$/, (end) => `,"usage":null${end}`) : event,
    );
    const text = direct.join('');
    t.equal(strip([recorded]), text, file);
    t.equal(strip([asked.join('')]), text, `${file}, with more nulls`);
    t.equal(strip(cutAtRandom(asked.join(''), random, 100)), text, `${file}, cut at random`);
  }
});

// Events out of bytes, and members out of a JSON document, however the bytes are cut.
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import t from 'tap';
import { createTopLevelScanner, decodeValue } from '../../src/stream/json.ts';
import { createEventScanner, type EventScanner } from '../../src/stream/sse.ts';
import { createRandom } from '../support/random.ts';

type Event = [name: string, data: string];

function scanAll(pieces: string[], maxEventBytes?: number): { events: Event[]; scanner: EventScanner } {
  const events: Event[] = [];
  const scanner = createEventScanner({ onEvent: (name, data) => events.push([name, data]) }, maxEventBytes);
  for (const piece of pieces) scanner.scan(piece);
  return { events, scanner };
}

/** The text whole, in single bytes, and in two pieces at every offset. */
function cuts(text: string): string[][] {
  return [[text], [...text], ...Array.from({ length: text.length + 1 }, (_, at) => [text.slice(0, at), text.slice(at)])];
}

const framings: [what: string, text: string, events: Event[]][] = [
  [
    'LF',
    'data: a\n\ndata: b\n\n',
    [
      ['', 'a'],
      ['', 'b'],
    ],
  ],
  [
    'CRLF',
    'data: a\r\n\r\ndata: b\r\n\r\n',
    [
      ['', 'a'],
      ['', 'b'],
    ],
  ],
  [
    'CR',
    'data: a\r\rdata: b\r\r',
    [
      ['', 'a'],
      ['', 'b'],
    ],
  ],
  [
    'all line ends mixed',
    'event: x\r\ndata: a\rdata: b\n\r\ndata: c\n\r',
    [
      ['x', 'a\nb'],
      ['', 'c'],
    ],
  ],
  ['a BOM', '\xef\xbb\xbfdata: a\n\n', [['', 'a']]],
  ['a BOM before a comment', '\xef\xbb\xbf: hi\n\ndata: a\n\n', [['', 'a']]],
  ['a BOM later is part of an unknown field', 'data: a\n\n\xef\xbb\xbfdata: b\n\n', [['', 'a']]],
  ['no space', 'data:a\n\n', [['', 'a']]],
  ['one space of two', 'data:  a\n\n', [['', ' a']]],
  ['comments', ': OPENROUTER PROCESSING\n\n:\n\ndata: a\n: in between\ndata: b\n\n', [['', 'a\nb']]],
  ['an event without data', 'event: x\n\ndata: a\n\n', [['', 'a']]],
  ['the last name', 'event: x\nevent: y\ndata: a\n\n', [['y', 'a']]],
  [
    'empty data',
    'data\n\ndata:\n\ndata: \n\n',
    [
      ['', ''],
      ['', ''],
      ['', ''],
    ],
  ],
  ['two empty lines of data', 'data\ndata\n\n', [['', '\n']]],
  ['fields that only begin alike', 'database: a\nevents: b\nidx: c\nretrying: d\nerrors: e\n\n', []],
  [
    'an error field, as llama.cpp had',
    'error: {"code":500}\n\ndata: [DONE]\n\n',
    [
      ['error', '{"code":500}'],
      ['', '[DONE]'],
    ],
  ],
  [
    'no blank lines, as SambaNova has it',
    'data: {"a":1}\ndata: {"b":{}}\nerror: {}\ndata: [DONE]\n',
    [
      ['', '{"a":1}'],
      ['', '{"b":{}}'],
      ['error', '{}'],
      ['', '[DONE]'],
    ],
  ],
  ['JSON in lines', 'data: {"a":\ndata: {"b":[{}\ndata: ,{}]}\ndata: }\n\n', [['', '{"a":\n{"b":[{}\n,{}]}\n}']]],
  [
    'blank lines in a row',
    'data: a\n\n\n\n\ndata: b\n\n',
    [
      ['', 'a'],
      ['', 'b'],
    ],
  ],
  ['no blank line at the end', 'data: a\n\ndata: b\n', [['', 'a']]],
  ['UTF-8', 'data: \xe4\xbd\xa0\n\n', [['', '\xe4\xbd\xa0']]],
];

t.test('events are framed as WHATWG says, wherever the bytes are cut', async (t) => {
  for (const [what, text, expected] of framings) {
    for (const pieces of cuts(text)) {
      const { events, scanner } = scanAll(pieces);
      if (JSON.stringify(events) !== JSON.stringify(expected)) t.same(events, expected, `${what}: ${JSON.stringify(pieces)}`);
      if (scanner.eventCount !== expected.length) t.equal(scanner.eventCount, expected.length, what);
    }
    t.pass(what);
  }
});

t.test('an event is open from its first byte to its blank line', async (t) => {
  const cases: [text: string, isOpen: boolean][] = [
    ['', false],
    ['d', true],
    ['data: a\n', true],
    ['data: a\n\n', false],
    ['data: {}\ndata: {}\n', true],
    ['data: [DONE]\n', true],
    ['data: [DONE]\n\n', false],
    ['event: x\n', true],
    ['unknown: x\n', true],
    [': comment', true],
    [': comment\n', false],
    ['data: a\r\n\r', true],
    ['data: a\r\n\r\n', false],
    ['data: a\r\r', false],
  ];
  for (const [text, isOpen] of cases) {
    t.equal(scanAll([text]).scanner.isEventOpen, isOpen, JSON.stringify(text));
    t.equal(scanAll([...text]).scanner.isEventOpen, isOpen, `${JSON.stringify(text)} byte by byte`);
  }
});

t.test('id and retry are remembered', async (t) => {
  t.equal(scanAll(['data: id: 1\n\n']).scanner.hasIdOrRetry, false);
  t.equal(scanAll(['id', ': 1\ndata: a\n\n']).scanner.hasIdOrRetry, true);
  t.equal(scanAll(['retry: 10\n\n']).scanner.hasIdOrRetry, true);
  t.equal(scanAll(['id\n']).scanner.hasIdOrRetry, true);
});

t.test('an event over the bound goes by unread, with its name, and the next one is read', async (t) => {
  for (const big of [`data: ${'x'.repeat(100)}\n`, 'data: 1234567890\n'.repeat(9)]) {
    const text = `event: big\n${big}id: 7\n\nevent: next\ndata: a\n\n`;
    for (const pieces of cuts(text)) {
      const { events, scanner } = scanAll(pieces, 64);
      if (JSON.stringify(events) !== '[["big",""],["next","a"]]')
        t.same(
          events,
          [
            ['big', ''],
            ['next', 'a'],
          ],
          JSON.stringify(pieces),
        );
      if (!scanner.hasOverflowed || !scanner.hasIdOrRetry || scanner.eventCount !== 2) t.fail(JSON.stringify(pieces));
    }
  }
  const comment = scanAll([`: ${'x'.repeat(100)}`, `${'x'.repeat(100)}\ndata: a\n\n`], 64);
  t.same([comment.events, comment.scanner.hasOverflowed], [[['', 'a']], false], 'a comment is no event, whatever its length');
});

t.test('the data of an event over the bound come in pieces, wherever the bytes are cut', async (t) => {
  const bigs = [
    `data: {"a":"${'x'.repeat(100)}","data: b":1}\n`,
    `data:{"a":"${'x'.repeat(100)}",\ndata: "data: b":\nid: 3\n: comment\nother: 4\ndata:1}\n`,
    `data: {"a":"${'y'.repeat(28)}",\ndata: "b":"${'x'.repeat(40)}"}\n`,
  ];
  for (const big of bigs) {
    const expected = big.replace(/^(?!data:).*\n/gm, '').replaceAll(/^data:\s?|\n/gm, '');
    for (const pieces of cuts(`data: a\n\n${big}\ndata: ${'z'.repeat(30)}\n\n`)) {
      let long = '';
      const events: string[] = [];
      const scanner = createEventScanner(
        {
          onEvent: (_, data) => events.push(data.slice(0, 1) || long),
          onLongData: (piece) => {
            long += piece;
          },
        },
        64,
      );
      for (const piece of pieces) scanner.scan(piece);
      const seen = events.map((data) => data.replaceAll(/\n\s*/g, ''));
      if (JSON.stringify(seen.map((data) => data.trim())) !== JSON.stringify(['a', expected, 'z']))
        t.same(seen, ['a', expected, 'z'], JSON.stringify(pieces));
    }
    t.pass(expected);
  }
});

t.test('64 MB without a newline are not kept', async (t) => {
  const { scanner } = scanAll([]);
  setFlagsFromString('--expose-gc');
  const collect: () => void = runInNewContext('gc');
  collect();
  const before = process.memoryUsage().heapUsed;
  for (let i = 0; i < 1024; i++) scanner.scan(Buffer.alloc(65_536, 120 + (i % 3)).toString('latin1'));
  collect();
  t.ok(scanner.hasOverflowed && scanner.isEventOpen);
  t.ok(process.memoryUsage().heapUsed - before < 4 * 1024 * 1024);
});

const random = createRandom(7);

function randomString(): string {
  const parts = ['a', 'usage', '"', '\\', '\\"', 'é', '你', '😀', '\n', '{', '}', '[', ']', ':', ',', ' ', '\u0000', '"usage":1'];
  return Array.from({ length: random(6) }, () => parts[random(parts.length)]!).join('');
}

function randomValue(depth: number): unknown {
  const kind = random(depth > 3 ? 5 : 7);
  if (kind < 2) return randomString();
  if (kind === 2) return (random(2_000_001) - 1_000_000) / [1, 10, 1e7][random(3)]!;
  if (kind === 3) return [true, false, null][random(3)];
  if (kind === 4) return random(2) ? [] : {};
  if (kind === 5) return Array.from({ length: random(5) }, () => randomValue(depth + 1));
  return Object.fromEntries(Array.from({ length: random(5) }, () => [randomKey(), randomValue(depth + 1)]));
}

function randomKey(): string {
  return ['usage', 'model', 'schlüssel', 'other', randomString()][random(5)]!;
}

/** A key as any JSON writer might write it. */
function writeKey(key: string): string {
  if (random(3)) return JSON.stringify(key);
  return `"${[...key].map((char) => (char.length === 1 ? `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}` : char)).join('')}"`;
}

function randomDocument(): string {
  const blank = () => ['', '', ' ', '\n\t', '\r\n '][random(5)]!;
  const members = Array.from({ length: random(7) }, () => {
    const value = JSON.stringify(randomValue(0), null, random(3));
    return `${blank()}${writeKey(randomKey())}${blank()}:${blank()}${value}${blank()}`;
  });
  return `${blank()}{${members.join(',') || blank()}}${blank()}`;
}

function cutAtRandom(text: string): string[] {
  const pieces: string[] = [];
  for (let at = 0; at < text.length; ) {
    const end = at + (random(4) ? 1 + random(5) : 1 + random(60));
    pieces.push(text.slice(at, end));
    at = end;
  }
  return pieces;
}

t.test('top-level members are those that JSON.parse finds, at the offsets where they stand', async (t) => {
  const wanted = ['usage', 'model', 'schlüssel'];
  for (let round = 0; round < 1500; round++) {
    const document = Buffer.from(randomDocument()).toString('latin1');
    const scanner = createTopLevelScanner(wanted, 10_000);
    for (const piece of cutAtRandom(document)) scanner.scan(piece);
    const parsed = decodeValue(document) as Record<string, unknown>;
    const found: Record<string, unknown> = {};
    for (const key of wanted) {
      const member = scanner.member(key);
      if (member === undefined) continue;
      found[key] = decodeValue(scanner.value(key)!);
      const written = decodeValue(`{${document.slice(member.keyStart, member.valueEnd)}}`);
      if (document.slice(member.valueStart, member.valueEnd) !== member.raw) t.fail(`value's offsets: ${document}`);
      if (JSON.stringify(written) !== JSON.stringify({ [key]: parsed[key] })) t.fail(`key's offset: ${document}`);
    }
    const expected = Object.fromEntries(wanted.filter((key) => Object.hasOwn(parsed, key)).map((key) => [key, parsed[key]]));
    if (JSON.stringify(found) !== JSON.stringify(expected)) t.same(found, expected, document);
    if (!scanner.isComplete || scanner.isMalformed || scanner.isEmpty !== (Object.keys(parsed).length === 0)) t.fail(document);
    if (document[scanner.bodyStart - 1] !== '{' || document[scanner.bodyEnd] !== '}') t.fail(`braces: ${document}`);
  }
  t.pass('1500 documents');
});

t.test('what is no object, or broken at its top level, is malformed and never an exception', async (t) => {
  for (const text of ['[1]', '"a"', '1', 'nope', '{"a" 1}', '{a:1}', '{"a":1 "b":2}', '{"a":1,}', '{"a":}', '{,}', '{} x', '\x00']) {
    const scanner = createTopLevelScanner(['a'], 10);
    for (const piece of text) scanner.scan(piece);
    t.equal(scanner.isMalformed, true, JSON.stringify(text));
  }
  const half = createTopLevelScanner(['a'], 10);
  half.scan('{"a":12');
  t.same([half.isMalformed, half.isComplete, half.value('a')], [false, false, undefined], 'an unfinished value is none');
});

t.test('neither depth nor size is a danger', async (t) => {
  const deep = createTopLevelScanner(['usage'], 100);
  deep.scan(`{"a":${'[{"usage":'.repeat(100_000)}1${'}]'.repeat(100_000)},"usage":{"n":1}}`);
  t.equal(deep.value('usage'), '{"n":1}');
  const wide = createTopLevelScanner(['usage', 'data'], 100);
  wide.scan('{"data":["');
  for (let i = 0; i < 160; i++) wide.scan('QUJD'.repeat(16_384));
  wide.scan('"],"usage":{"n":1},"usage":{"n":2}}');
  t.equal(wide.value('usage'), '{"n":2}');
  t.equal(wide.member('usage')?.occurrences, 2);
  t.equal(wide.value('data'), undefined, 'longer than the bound');
  t.equal(wide.member('data')?.valueEnd, 12 + 160 * 65_536, 'but its place is known');
});

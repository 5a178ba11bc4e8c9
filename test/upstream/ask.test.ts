// Asking for usage changes a request by one insertion, and only where nobody could read it in another way.
import assert from 'node:assert/strict';
import t from 'tap';
import { createTopLevelScanner } from '../../src/stream/json.ts';
import { createJsonBody } from '../../src/stream/json-body.ts';
import { type AskedRequest, type Asking, askedMembers, askForUsage, MAX_OPTIONS_BYTES } from '../../src/upstream/ask.ts';
import { applySplices, type Splice } from '../../src/upstream/splice.ts';
import { createRandom } from '../support/random.ts';

type Random = (n: number) => number;

function ask(pieces: readonly Buffer[], asking: Asking): AskedRequest | undefined {
  const body = createJsonBody(askedMembers, MAX_OPTIONS_BYTES);
  for (const piece of pieces) body.observe(piece);
  return askForUsage(body, asking, createTopLevelScanner);
}

function addedBytes({ start, end, text }: Splice): number {
  return text.length - (end - start);
}

function cutUp(bytes: Buffer, size: number): Buffer[] {
  return Array.from({ length: Math.ceil(bytes.length / size) }, (_, i) => bytes.subarray(i * size, (i + 1) * size));
}

/** What goes up, and what must be stripped of it: `final`, `running`, both, or nothing; undefined where it goes as it is. */
function spliced(body: string, asking: Asking, size = 7): [body: string, strip: string] | undefined {
  const pieces = cutUp(Buffer.from(body), size);
  const asked = ask(pieces, asking);
  if (asked === undefined) return undefined;
  const bytes = Buffer.concat(applySplices(pieces, [asked.splice]));
  assert.equal(bytes.length, Buffer.byteLength(body) + addedBytes(asked.splice), 'addedBytes');
  return [bytes.toString(), [asked.strip.final && 'final', asked.strip.running && 'running'].filter(Boolean).join()];
}

const include = '"include_usage":true';
const continuous = '"continuous_usage_stats":true';

t.test('usage is asked for in streamed calls whose client has not decided about it', async (t) => {
  const table: [body: string, asked: string, askedContinuously: string][] = [
    ['{"stream":true}', `{"stream_options":{${include}},"stream":true}`, `{"stream_options":{${include},${continuous}},"stream":true}`],
    [
      ' \n{ "x":1, "stream" : true }\n',
      ` \n{"stream_options":{${include}}, "x":1, "stream" : true }\n`,
      ` \n{"stream_options":{${include},${continuous}}, "x":1, "stream" : true }\n`,
    ],
    [
      '\ufeff{"stream":true}',
      `\ufeff{"stream_options":{${include}},"stream":true}`,
      `\ufeff{"stream_options":{${include},${continuous}},"stream":true}`,
    ],
    [
      '{"stream":true,"stream_options" : null ,"n":1}',
      `{"stream":true,"stream_options" : {${include}} ,"n":1}`,
      `{"stream":true,"stream_options" : {${include},${continuous}} ,"n":1}`,
    ],
    [
      '\ufeff{"stream_options":{ },"stream":true}',
      `\ufeff{"stream_options":{${include} },"stream":true}`,
      `\ufeff{"stream_options":{${include},${continuous} },"stream":true}`,
    ],
    [
      '{"stream_options":{ "include_obfuscation":false},"stream":true}',
      `{"stream_options":{${include}, "include_obfuscation":false},"stream":true}`,
      `{"stream_options":{${include},${continuous}, "include_obfuscation":false},"stream":true}`,
    ],
    [
      '{"str\\u0065am":true,"\\u0073tream_options":{"x":"\\"include_usage\\":false","y":{"include_usage":false}}}',
      `{"str\\u0065am":true,"\\u0073tream_options":{${include},"x":"\\"include_usage\\":false","y":{"include_usage":false}}}`,
      `{"str\\u0065am":true,"\\u0073tream_options":{${include},${continuous},"x":"\\"include_usage\\":false","y":{"include_usage":false}}}`,
    ],
    [
      '{"messages":[{"stream":false,"stream_options":{"include_usage":false}}],"user":"\\"stream\\":false","stream":true}',
      `{"stream_options":{${include}},"messages":[{"stream":false,"stream_options":{"include_usage":false}}],"user":"\\"stream\\":false","stream":true}`,
      `{"stream_options":{${include},${continuous}},"messages":[{"stream":false,"stream_options":{"include_usage":false}}],"user":"\\"stream\\":false","stream":true}`,
    ],
  ];
  for (const [body, asked, askedContinuously] of table) {
    for (const size of [1, 7, 4096]) {
      t.same(spliced(body, 'ask', size), [asked, 'final'], `${body} in pieces of ${size}`);
      t.same(spliced(body, 'continuous', size), [askedContinuously, 'final,running'], `${body} in pieces of ${size}, continuously`);
    }
  }
});

t.test('what the client set stands', async (t) => {
  const of = (options: string) => `{"stream":true,"stream_options":{${options}}}`;
  const table: [options: string, asked: [string, string] | undefined, continuously: [string, string] | undefined][] = [
    [include, undefined, [`${continuous},${include}`, 'running']],
    ['"include_usage":false', undefined, undefined],
    ['"include_usage":null', undefined, undefined],
    ['"include_usage":1', undefined, undefined],
    [`${include},"continuous_usage_stats":false`, undefined, undefined],
    [`${include},${continuous}`, undefined, undefined],
    [
      `"continuous_usage_stats":false`,
      [`${include},"continuous_usage_stats":false`, 'final'],
      [`${include},"continuous_usage_stats":false`, 'final'],
    ],
    [continuous, undefined, undefined],
    ['"include_us\\u0061ge":false', undefined, undefined],
  ];
  for (const [options, asked, continuously] of table) {
    t.same(spliced(of(options), 'ask'), asked && [of(asked[0]), asked[1]], options);
    t.same(spliced(of(options), 'continuous'), continuously && [of(continuously[0]), continuously[1]], `${options}, continuously`);
  }
});

t.test('whatever is no streamed call, or can be read in two ways, goes as it is', async (t) => {
  const bodies = [
    '',
    '\ufeff',
    '{}',
    '[]',
    '[{"stream":true}]',
    'true',
    '"{\\"stream\\":true}"',
    '{"stream":false}',
    '{"stream":"true"}',
    '{"stream":1}',
    '{"stream":true',
    '{"stream":true}}',
    '{"stream":true}{}',
    '{"stream":true,}',
    '{"stream" true}',
    '{stream:true}',
    '{"a":{"stream":true}}',
    '\ufeff\ufeff{"stream":true}',
    '{"stream":true,"stream":true}',
    '{"stream":true,"str\\u0065am":false}',
    '{"stream":true,"stream_options":null,"stream_options":null}',
    '{"stream":true,"stream_options":[]}',
    '{"stream":true,"stream_options":"x"}',
    '{"stream":true,"stream_options":true}',
    '{"stream":true,"stream_options":{"x"}}',
    '{"stream":true,"stream_options":{"continuous_usage_stats":1,"continuous_usage_stats":2}}',
    `{"stream":true,"stream_options":{"x":"${'y'.repeat(65_536)}"}}`,
  ];
  for (const body of bodies) {
    for (const asking of ['ask', 'continuous'] as const) {
      t.equal(spliced(body, asking), undefined, `${body.slice(0, 80)}, ${asking}`);
      t.equal(spliced(body, asking, 1e6), undefined, `${body.slice(0, 80)}, ${asking}, whole`);
    }
  }
  t.ok(spliced(`{"stream":true,"stream_options":{"x":"${'y'.repeat(65_000)}"}}`, 'ask'), 'long options are asked');
});

const space = (random: Random) => ['', '', ' ', '\n\t', ' \r\n '][random(5)]!;

function randomString(random: Random): string {
  const parts = ['a', '"', '\\', '{', '}', ',', ':', 'stream', '"stream":false', '€', '😀', '\n', '\u0000', '\ud800'];
  return Array.from({ length: random(6) }, () => parts[random(parts.length)]).join('');
}

function escaped(text: string, random: Random): string {
  const unit = (code: string) => `\\u${code.charCodeAt(0).toString(16).padStart(4, '0')}`;
  return random(4) ? JSON.stringify(text) : `"${text.split('').map(unit).join('')}"`;
}

function randomJson(random: Random, depth: number): string {
  const kind = random(depth > 0 ? 7 : 5);
  if (kind === 5)
    return `[${space(random)}${Array.from({ length: random(4) }, () => randomJson(random, depth - 1)).join(`${space(random)},`)}]`;
  if (kind === 6)
    return randomObject(
      Array.from({ length: random(4) }, () => [randomString(random), randomJson(random, depth - 1)]),
      random,
    );
  return ['null', 'true', '-1.5e+3', escaped(randomString(random), random), '0'][kind]!;
}

function randomObject(members: readonly (readonly string[])[], random: Random): string {
  const member = ([key = '', raw = '']: readonly string[]) =>
    `${space(random)}${escaped(key, random)}${space(random)}:${space(random)}${raw}${space(random)}`;
  return `{${members.map(member).join() || space(random)}}`;
}

t.test('random documents say what they said, and ask; without the insertion they are the bytes that came', async (t) => {
  const random = createRandom(29);
  for (let round = 0; round < 2000; round++) {
    const kind = random(3);
    const members = Array.from({ length: random(5) }, () => [randomString(random), randomJson(random, 3)]);
    const mine = [['stream', 'true']];
    if (kind > 0)
      mine.push(['stream_options', kind === 1 ? 'null' : randomObject([['z', randomJson(random, 2)]].slice(random(2)), random)]);
    const all = members.filter(([key]) => key !== 'stream');
    for (const member of mine) all.splice(random(all.length + 1), 0, member);
    const body = Buffer.from(space(random) + randomObject(all, random) + space(random));
    const pieces = cutUp(body, 1 + random(body.length + 9));
    const asked = ask(pieces, 'ask');
    assert.ok(asked, `round ${round}: ${body}`);
    const after = Buffer.concat(applySplices(pieces, [asked.splice]));
    const before = JSON.parse(body.toString());
    const expected = { ...before, stream_options: { ...before.stream_options, include_usage: true } };
    assert.deepEqual(JSON.parse(after.toString()), expected, `round ${round}: ${body}`);
    if (kind === 1) continue;
    const same = body.findIndex((byte, i) => byte !== after[i]);
    let found = false; // the insertion may begin with the bytes that would have come there
    for (let at = 0; at <= same && !found; at++)
      found = Buffer.concat([after.subarray(0, at), after.subarray(at + addedBytes(asked.splice))]).equals(body);
    assert.ok(found, `round ${round}: one insertion into ${body}`);
  }
  t.pass('2000 documents');
});

t.test('splicing copies nothing of a large body', async (t) => {
  const body = Buffer.from(JSON.stringify({ messages: 'x'.repeat(200_000), stream: true, stream_options: {} }));
  const pieces = cutUp(body, 65_536);
  const views = applySplices(pieces, [ask(pieces, 'ask')!.splice]);
  const copied = views.filter((view) => view.buffer !== body.buffer).reduce((sum, view) => sum + view.length, 0);
  t.equal(copied, include.length);
});

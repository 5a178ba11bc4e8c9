// The frames of a WebSocket, however their bytes are cut, and what is read of a session in passing.
import t from 'tap';
import { costOf } from '../../src/spending.ts';
import { createSessionMeter } from '../../src/stream/session.ts';
import { createTokenizer } from '../../src/stream/tokens.ts';
import { closeFrame, createFrameReader, textFrame } from '../../src/stream/websocket.ts';
import { createSessionReader } from '../../src/upstream/dialects/realtime.ts';
import { createRandom } from '../support/random.ts';

const tokenizer = createTokenizer();
t.teardown(() => tokenizer.close());

interface Frame {
  readonly opcode: number;
  readonly payload: Buffer | string;
  readonly isFinal?: boolean;
  readonly isMasked?: boolean;
}

/** RFC 6455 5.2, in the plainest way. */
function encode({ opcode, payload, isFinal = true, isMasked = false }: Frame): Buffer {
  const bytes = Buffer.from(payload);
  const { length } = bytes;
  const head = [(isFinal ? 0x80 : 0) | opcode];
  const mark = isMasked ? 0x80 : 0;
  if (length < 126) head.push(mark | length);
  else if (length < 65_536) head.push(mark | 126, length >> 8, length & 0xff);
  else head.push(mark | 127, 0, 0, 0, 0, ...[24, 16, 8, 0].map((shift) => (length >>> shift) & 0xff));
  const mask = isMasked ? [1, 2, 3, 4] : [];
  return Buffer.concat([Buffer.from([...head, ...mask]), isMasked ? bytes.map((byte, at) => byte ^ mask[at % 4]!) : bytes]);
}

const text = (payload: string): Frame => ({ opcode: 1, payload });
const conversation: Frame[] = [
  text('one'),
  text(''),
  { opcode: 9, payload: 'ping' },
  { opcode: 1, payload: 'two ', isFinal: false },
  { opcode: 10, payload: '' },
  { opcode: 0, payload: 'halves, é', isFinal: false },
  { opcode: 9, payload: 'x'.repeat(125) },
  { opcode: 0, payload: '', isFinal: true },
  { opcode: 2, payload: Buffer.from([0x81, 0x05, 0x88]) },
  text('x'.repeat(126)),
  { opcode: 8, payload: Buffer.from([0x03, 0xf3, 0x62]) },
];
const texts = ['one', '', 'two halves, é', 'x'.repeat(126)];

function read(pieces: Buffer[], maxTextBytes = 1000) {
  const seen: string[] = [];
  const reader = createFrameReader((found) => seen.push(Buffer.from(found, 'latin1').toString()), maxTextBytes);
  for (const piece of pieces) reader.read(piece);
  return { seen, reader };
}

t.test('B28 the frames of a session are the same, wherever its bytes are cut', async (t) => {
  const frames = conversation.map(encode);
  const bytes = Buffer.concat(frames);
  const ends = new Set(frames.map((_, at) => Buffer.concat(frames.slice(0, at + 1)).length).concat(0));
  const cuts = Array.from(bytes, (_, at) => [bytes.subarray(0, at), bytes.subarray(at)]);
  for (const pieces of [[bytes], Array.from(bytes, (_, at) => bytes.subarray(at, at + 1)), ...cuts]) {
    const { seen, reader } = read(pieces);
    t.same(seen, texts);
    t.match(reader, { isClosed: true, closeCode: 1011, isLost: false, isBetweenFrames: true, messageCount: 5 });
  }
  const reader = createFrameReader();
  for (let at = 0; at < bytes.length; at++) {
    t.equal(reader.isBetweenFrames, ends.has(at), `at ${at}`);
    reader.read(bytes.subarray(at, at + 1));
  }
});

t.test('B28 random frames, randomly cut, of all three forms of length', async (t) => {
  const random = createRandom(7);
  for (let round = 0; round < 200; round++) {
    const sizes = Array.from({ length: 1 + random(6) }, () => [0, 1, 125, 126, 127, 65_535, 65_536, 70_000][random(8)]!);
    const isMasked = random(2) === 0;
    const bytes = Buffer.concat(sizes.map((size) => encode({ opcode: 1, payload: Buffer.alloc(size, 'a'), isMasked })));
    const pieces: Buffer[] = [];
    for (let at = 0; at < bytes.length; ) {
      const end = at + 1 + random(random(2) === 0 ? 8 : 40_000);
      pieces.push(bytes.subarray(at, end));
      at = end;
    }
    const { seen, reader } = read(pieces, 1_000_000);
    t.same(
      seen.map(({ length }) => length),
      isMasked ? [] : sizes,
      `round ${round}`,
    );
    t.match(reader, { messageCount: sizes.length, isBetweenFrames: true, isLost: false });
  }
});

t.test('B29 what is no frame ends the reading, and throws nothing', async (t) => {
  const broken: Record<string, Buffer> = {
    'a bit of an extension': Buffer.from([0xc1, 0x00]),
    'an unknown opcode': encode({ opcode: 3, payload: '' }),
    'an unknown control frame': encode({ opcode: 11, payload: '' }),
    'a control frame in pieces': encode({ opcode: 9, payload: '', isFinal: false }),
    'a long control frame': encode({ opcode: 9, payload: 'x'.repeat(126) }),
    'a continuation of nothing': encode({ opcode: 0, payload: 'x' }),
    'a text inside a text': Buffer.concat([encode({ opcode: 1, payload: 'x', isFinal: false }), encode(text('y'))]),
    'a length of 2^63': Buffer.from([0x81, 127, 0x80, 0, 0, 0, 0, 0, 0, 0]),
  };
  for (const [what, bytes] of Object.entries(broken)) {
    const { seen, reader } = read([bytes, encode(text('later'))]);
    t.same([seen, reader.isLost, reader.isBetweenFrames, reader.isBetweenMessages], [[], true, false, false], what);
  }
});

t.test('B27 a text over the bound is passed over, and the next one is read', async (t) => {
  const long = [
    { opcode: 1, payload: 'x'.repeat(700), isFinal: false },
    { opcode: 0, payload: 'x'.repeat(700) },
  ].map(encode);
  t.same(read([...long, encode(text('next'))]).seen, ['next']);
});

t.test('frames that are written here are read as what they are', async (t) => {
  for (const words of ['', 'a'.repeat(125), 'é'.repeat(200)]) t.same(read([textFrame(words)]).seen, [words]);
  t.match(read([closeFrame(1012, 'draining')]).reader, { isClosed: true, closeCode: 1012, isBetweenFrames: true });
});

const event = (type: string, more: object = {}) => encode(text(JSON.stringify({ type, event_id: 'e', ...more })));
const delta = (words: string) => event('response.output_text.delta', { response_id: 'r', output_index: 0, content_index: 0, delta: words });
const done = (usage: object | null) => event('response.done', { response: { id: 'r', status: 'completed', usage } });
const USAGE = {
  total_tokens: 150,
  input_tokens: 100,
  output_tokens: 50,
  input_token_details: {
    text_tokens: 30,
    audio_tokens: 70,
    cached_tokens: 20,
    cached_tokens_details: { text_tokens: 5, audio_tokens: 15 },
  },
  output_token_details: { text_tokens: 10, audio_tokens: 40 },
};

function watch(...frames: Buffer[]) {
  const meter = createSessionMeter(createSessionReader(), tokenizer);
  for (const frame of frames) meter.look(frame);
  return meter;
}

t.test('B33 each response of a session has its own usage: they are added up', async (t) => {
  const session = event('session.created', { session: { model: 'gpt-realtime' } });
  const heard = event('conversation.item.input_audio_transcription.completed', {
    transcript: 'hi',
    usage: { type: 'tokens', input_tokens: 3, output_tokens: 2, total_tokens: 5, input_token_details: { audio_tokens: 3 } },
  });
  const billedByTime = event('conversation.item.input_audio_transcription.completed', { usage: { type: 'duration', seconds: 2 } });
  const meter = watch(session, delta('Hello'), done(USAGE), heard, billedByTime, delta('again'), done(USAGE), done(null));
  t.equal(meter.model, 'gpt-realtime');
  t.match(meter, { eventCount: 8, contentCount: 2, textLength: 10, isOff: false });
  t.same(await meter.usage(), {
    input: 203,
    output: 102,
    cachedInput: 40,
    cacheWrite: 0,
    reasoning: 0,
    audioInput: 143,
    audioOutput: 80,
    cachedAudioInput: 30,
    inputSource: 'reported',
    outputSource: 'reported',
  });
});

t.test('audio that was cached costs what is cached, and not a second time what audio does', async (t) => {
  const used = await watch(done(USAGE)).usage();
  const price = { input: 1, cachedInput: 0.5, audioInput: 10, output: 2, audioOutput: 20, cacheWrite: undefined };
  t.equal(used && costOf(used, price), 1000 * (25 * 1 + 20 * 0.5 + 55 * 10 + 10 * 2 + 40 * 20));
});

t.test('a response that was under way is counted, on top of what was reported', async (t) => {
  const meter = watch(done(USAGE), delta('one two'), delta(' three four'));
  t.match(meter.session, { finished: { input: 100, output: 50 }, underWay: { contentCount: 2, textLength: 18 } });
  t.match(await meter.usage(), { input: 100, output: 54, inputSource: 'running', outputSource: 'counted' });
  t.match(await watch(delta('one two')).usage(), { input: 0, output: 2, inputSource: undefined, outputSource: 'counted' });
  t.match(await watch(delta('one two'), done(null)).usage(), { output: 2, outputSource: 'counted' }, 'nor was its usage told');
  t.equal(await watch(event('session.created'), encode(text('no JSON')), encode(text('[]'))).usage(), undefined);
});

t.test('audio is content without text; the Responses API over a WebSocket is read as well', async (t) => {
  const audio = event('response.output_audio.delta', { response_id: 'r', delta: 'A'.repeat(10_000) });
  const meter = watch(
    audio,
    audio,
    event('response.completed', { response: { model: 'gpt-5', usage: { input_tokens: 7, output_tokens: 5 } } }),
  );
  t.match(meter, { contentCount: 2, textLength: 0, model: 'gpt-5' });
  t.match(await meter.usage(), { input: 7, output: 5, outputSource: 'reported' });
});

t.test('F9 a session whose frames are lost keeps what was reported, and takes no word of ours', async (t) => {
  const meter = watch(done(USAGE));
  const error = { code: 'draining', type: 'server_error', message: 'é' };
  const { seen } = read([Buffer.from(meter.errorEvent(error), 'latin1')]);
  t.match(JSON.parse(seen[0]!), { type: 'error', event_id: 'event_draining', error: { ...error, param: null } });
  meter.look(encode({ opcode: 1, payload: 'half a mess', isFinal: false }));
  t.equal(meter.errorEvent(error), '', 'not inside a message');
  meter.look(Buffer.alloc(14, 0xff));
  t.match(meter, { isOff: true, fault: 'framing', frames: { isBetweenFrames: false } });
  t.match(await meter.usage(), { input: 100, output: 50, inputSource: 'running', outputSource: 'running' });
});

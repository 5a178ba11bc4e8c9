// Promise: whatever frames a client sends, what it costs is bounded, its connection is closed, and nobody else feels it.
import { constants } from 'node:http2';
import t, { type Test } from 'tap';
import {
  connectFrames,
  connectH2,
  END_HEADERS,
  END_STREAM,
  FRAME,
  type FrameClient,
  fields,
  frame,
  type H2Call,
  head,
  type SecureGateway,
  startSecureGateway,
} from '../support/h2.ts';
import { type ScriptedUpstream, startUpstream, type UpstreamRequest } from '../support/upstream.ts';

const { NGHTTP2_CANCEL, NGHTTP2_ENHANCE_YOUR_CALM, NGHTTP2_INTERNAL_ERROR, NGHTTP2_PROTOCOL_ERROR } = constants;
const uint32 = (...values: number[]) =>
  Buffer.concat(values.map((value) => Buffer.from([value >>> 24, (value >> 16) & 255, (value >> 8) & 255, value & 255])));
const repeat = (count: number, make: (n: number) => Buffer) => Buffer.concat(Array.from({ length: count }, (_, n) => make(n)));
const open = (stream: number, flags = 0) => frame(FRAME.headers, END_HEADERS | flags, stream, head('POST', '/v1/files'));

interface Scene {
  readonly upstream: ScriptedUpstream;
  readonly gateway: SecureGateway;
  readonly attacker: FrameClient;
  readonly victim: H2Call;
  readonly victimRequest: UpstreamRequest;
}

async function play(t: Test): Promise<Scene> {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close().catch(() => undefined));
  const gateway = await startSecureGateway(t, upstream.url);
  const victim = (await connectH2(t, gateway.port, gateway.cert)).call();
  const victimRequest = await upstream.request();
  victimRequest.startSse();
  return { upstream, gateway, victim, victimRequest, attacker: await connectFrames(t, gateway.port) };
}

/** Sends events to the other client until the attack is over; returns the longest that one took. */
async function serveVictim({ victim, victimRequest }: Scene, attack: Promise<unknown>): Promise<number> {
  let isOver = false;
  let worstMs = 0;
  void attack.catch(() => undefined).then(() => (isOver = true));
  for (let n = 0; !isOver || n < 5; n++) {
    const sentAtMs = performance.now();
    victimRequest.event({ choices: [{ index: 0, delta: { content: `event ${n};` } }] });
    await victim.until(`event ${n};`);
    worstMs = Math.max(worstMs, performance.now() - sentAtMs);
  }
  return worstMs;
}

interface Attack {
  readonly bytes: Buffer;
  /** What the connection may be closed with; undefined where what it still sends may have it reset before that is read. */
  readonly codes: readonly (number | undefined)[];
}

const attacks: Record<string, Attack> = {
  'a rapid reset': {
    bytes: repeat(1_000, (n) => Buffer.concat([open(2 * n + 1, END_STREAM), frame(FRAME.rst, 0, 2 * n + 1, uint32(NGHTTP2_CANCEL))])),
    codes: [NGHTTP2_INTERNAL_ERROR, NGHTTP2_ENHANCE_YOUR_CALM],
  },
  'a flood of settings': {
    bytes: repeat(20_000, () => frame(FRAME.settings, 0, 0, Buffer.from([0, 4, 0, 1, 0, 0]))),
    codes: [NGHTTP2_ENHANCE_YOUR_CALM, undefined],
  },
  'a flood of pings': {
    bytes: repeat(20_000, () => frame(FRAME.ping, 0, 0, Buffer.alloc(8))),
    codes: [NGHTTP2_ENHANCE_YOUR_CALM, undefined],
  },
  'a flood of continuations': {
    bytes: Buffer.concat([
      frame(FRAME.headers, 0, 1, head('GET', '/v1/x')),
      repeat(10_000, (n) => frame(FRAME.continuation, 0, 1, fields([`x-${n}`, 'y']))),
    ]),
    codes: [NGHTTP2_ENHANCE_YOUR_CALM, NGHTTP2_INTERNAL_ERROR, undefined],
  },
  'a flood of empty data': {
    bytes: Buffer.concat([open(1), repeat(20_000, () => frame(FRAME.data, 0, 1))]),
    codes: [NGHTTP2_ENHANCE_YOUR_CALM, NGHTTP2_INTERNAL_ERROR, NGHTTP2_PROTOCOL_ERROR, undefined],
  },
  'a window update of nothing': {
    bytes: frame(FRAME.window, 0, 0, uint32(0)),
    codes: [NGHTTP2_PROTOCOL_ERROR],
  },
  'a window beyond all bounds': {
    bytes: repeat(2, () => frame(FRAME.window, 0, 0, uint32(0x7fffffff))),
    codes: [constants.NGHTTP2_FLOW_CONTROL_ERROR],
  },
  'a frame longer than was agreed': {
    bytes: Buffer.concat([open(1), frame(FRAME.data, 0, 1, Buffer.alloc(100_000))]),
    codes: [constants.NGHTTP2_FRAME_SIZE_ERROR],
  },
  'a push from a client': {
    bytes: frame(FRAME.push, END_HEADERS, 1, Buffer.concat([uint32(2), head('GET', '/v1/x')])),
    codes: [NGHTTP2_PROTOCOL_ERROR],
  },
  'a field section that cannot be read': {
    bytes: frame(FRAME.headers, END_HEADERS | END_STREAM, 1, Buffer.from([0xff, 0xff, 0xff, 0xff, 0x7f])),
    codes: [constants.NGHTTP2_COMPRESSION_ERROR],
  },
  'no preface': {
    bytes: Buffer.from('GET / HTTP/1.1\r\nHost: x\r\n\r\n'.repeat(10)),
    codes: [constants.NGHTTP2_FRAME_SIZE_ERROR, NGHTTP2_PROTOCOL_ERROR],
  },
};

for (const [name, { bytes, codes }] of Object.entries(attacks)) {
  t.test(`C23 ${name}`, async (t) => {
    const scene = await play(t);
    const heapBefore = process.memoryUsage().heapUsed;
    const closed = scene.attacker.closed();
    scene.attacker.send(bytes);
    const worstMs = await serveVictim(scene, closed);
    const code = await closed;
    t.ok(codes.includes(code), `closed with ${code}`);
    t.ok(worstMs < 500, `another client's events took ${worstMs.toFixed(1)} ms at most`);
    t.ok(scene.upstream.requestCount <= 501, `${scene.upstream.requestCount} requests went up`);
    t.ok(process.memoryUsage().heapUsed - heapBefore < 64 * 1024 * 1024, 'memory is bounded');
    t.notMatch(scene.gateway.output, /failed inside/);
    scene.victimRequest.chunk('data: [DONE]\n\n');
    scene.victimRequest.endChunks();
    t.match(await scene.victim.body(), /\[DONE\]/);
  });
}

for (const [name, control] of Object.entries({ pings: frame(FRAME.ping, 0, 0, Buffer.alloc(8)), settings: frame(FRAME.settings, 0, 0) })) {
  t.test(`C23 ${name} that go on, a few at a time, with every answer read`, async (t) => {
    const scene = await play(t);
    const closed = scene.attacker.closed();
    let isClosed = false;
    void closed.then(() => (isClosed = true));
    for (let n = 0; n < 200 && !isClosed; n++) {
      scene.attacker.send(repeat(20, () => control));
      await scene.attacker.frame(({ type }) => type === FRAME.goaway || scene.attacker.frames.length > 20 * n, 'the answers');
    }
    t.equal(await closed, NGHTTP2_ENHANCE_YOUR_CALM);
  });
}

t.test('C23 resets that go on, a few at a time', async (t) => {
  const scene = await play(t);
  const closed = scene.attacker.closed();
  let isClosed = false;
  void closed.then(() => (isClosed = true));
  for (let n = 0; n < 4_000 && !isClosed; n++) {
    scene.attacker.send(open(2 * n + 1), frame(FRAME.rst, 0, 2 * n + 1, uint32(NGHTTP2_CANCEL)));
    await new Promise((resolve) => setImmediate(resolve));
  }
  t.ok([NGHTTP2_INTERNAL_ERROR, NGHTTP2_ENHANCE_YOUR_CALM].includes((await closed) ?? 0));
  await serveVictim(scene, Promise.resolve());
  for (let active = 2; active !== 1; )
    active = (await scene.gateway.metrics()).value('sluicegate_upstream_connections', { state: 'active' }) ?? 0;
});

t.test('C23 more streams at one time than are offered: the rest is refused, and goes nowhere', async (t) => {
  const scene = await play(t);
  scene.attacker.send(repeat(400, (n) => open(2 * n + 1, END_STREAM)));
  await scene.attacker.frame(({ type, stream }) => type === FRAME.goaway || (type === FRAME.rst && stream === 799), 'a refusal');
  const refused = scene.attacker.frames.filter(({ type }) => type === FRAME.rst).map(({ payload }) => payload.readUInt32BE(0));
  t.ok(refused.length >= 100, `${refused.length} were refused`);
  t.same(
    [...new Set(refused)].filter((code) => ![constants.NGHTTP2_REFUSED_STREAM, NGHTTP2_ENHANCE_YOUR_CALM].includes(code)),
    [],
  );
  await serveVictim(scene, Promise.resolve());
  t.ok(scene.upstream.requestCount <= 251, `${scene.upstream.requestCount} requests went up`);
});

t.test('C23 a small field section that is huge once it is read', async (t) => {
  const scene = await play(t);
  const long = Buffer.concat([Buffer.from([0x40]), fields(['x-long', 'x'.repeat(4000)]).subarray(1)]);
  scene.attacker.send(
    frame(FRAME.headers, END_HEADERS | END_STREAM, 1, Buffer.concat([head('GET', '/v1/x'), long, Buffer.alloc(10_000, 0xbe)])),
  );
  await scene.attacker.frame(({ type }) => type === FRAME.goaway || type === FRAME.rst, 'a reset');
  await serveVictim(scene, Promise.resolve());
  t.equal(scene.upstream.requestCount, 1);
});

t.test('C23 whoever floods and reads nothing is let go', async (t) => {
  const scene = await play(t);
  scene.attacker.socket.pause();
  const gone = new Promise((resolve) => scene.attacker.socket.on('error', resolve).on('close', resolve));
  scene.attacker.send(repeat(20_000, () => frame(FRAME.ping, 0, 0, Buffer.alloc(8))));
  await serveVictim(scene, Promise.resolve());
  scene.attacker.socket.resume();
  await gone;
});

// Promise: however many come, go, flood or stall at once, memory and time stay bounded, and who has nothing to do with it notices nothing.
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { type AddressInfo, connect as connectSocket, type Socket } from 'node:net';
import { join } from 'node:path';
import { setImmediate, setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { getHeapSpaceStatistics, setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import t, { type Test } from 'tap';
import { stringify } from 'yaml';
import { createExchange } from '../../src/exchange.ts';
import { Roster, type Seat } from '../../src/roster.ts';
import { createClock } from '../../src/stream/clock.ts';
import { createNullMeter, type Meter } from '../../src/stream/meter.ts';
import { createTokenizer } from '../../src/stream/tokens.ts';
import { createMetrics } from '../../src/telemetry/metrics.ts';
import { startTestGateway } from '../support/gateway.ts';
import { type Metrics, NO_METRICS_PARTS, parseMetrics } from '../support/metrics.ts';
import { type Running, runSluicegate } from '../support/process.ts';
import { createRandom } from '../support/random.ts';
import { startUpstream } from '../support/upstream.ts';
import { connect, type WireClient } from '../support/wire.ts';

const MIB = 1_048_576;
const chat = { method: 'POST', target: '/v1/chat/completions', body: '{"model":"m","stream":true}' };
const contentEvent = (content: string) => `data: ${JSON.stringify({ choices: [{ index: 0, delta: { content } }] })}\n\n`;
const DONE = 'data: [DONE]\n\n';

type Play = (response: ServerResponse, request: IncomingMessage) => void;

/** What the upstream does, by the header `x-play` of a call. */
const plays: Record<string, Play> = {
  hold: (response) => void response.write(contentEvent('held')),
  flood(response) {
    const event = contentEvent('x'.repeat(60_000));
    const pour = () => {
      while (!response.destroyed && response.write(event));
    };
    response.on('drain', pour);
    pour();
  },
  answer: (response) => void response.end(contentEvent('an answer') + DONE),
};

interface Mob {
  readonly url: string;
  /** Answers whose connection is open. */
  readonly open: Set<ServerResponse>;
  /** Resolves when no answer is open any more. */
  left(): Promise<void>;
}

/** An upstream for crowds: each call is played by its header. */
async function startMob(t: Test): Promise<Mob> {
  const open = new Set<ServerResponse>();
  let onLeft: () => void = () => undefined;
  const server = createServer((request, response) => {
    open.add(response);
    response.once('close', () => {
      open.delete(response);
      if (open.size === 0) onLeft();
    });
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    request.resume();
    plays[String(request.headers['x-play'])]?.(response, request);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => void server.close().closeAllConnections());
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`,
    open,
    left: async () => {
      if (open.size > 0) await new Promise<void>((resolve) => (onLeft = resolve));
    },
  };
}

interface GatewayProcess {
  readonly port: number;
  readonly running: Running;
  metrics(): Promise<Metrics>;
  /** The longest turn of its loop since this was last asked, and what of it was its own running; bytes held, garbage apart. */
  watch(): Promise<{ wallMs: number; ranMs: number; heap: number; outside: number }>;
}

const loopWatch = fileURLToPath(new URL('../soak/loop-watch.ts', import.meta.url));

async function startProcess(t: Test, baseUrl: string, settings: { server?: object; upstream?: object } = {}): Promise<GatewayProcess> {
  const configuration = {
    server: { listen: '127.0.0.1:0', drain: '100ms', ...settings.server },
    ops: { listen: '127.0.0.1:0' },
    log: { format: 'json' },
    upstreams: { main: { baseUrl, apiKey: 'sk-upstream', maxConnections: 5000, ...settings.upstream } },
  };
  const folder = t.testdir({ 'c.yaml': stringify(configuration) });
  const running = runSluicegate(t, ['-c', join(folder, 'c.yaml')], { NODE_OPTIONS: `--import=${loopWatch}` });
  const port = Number((await running.said(/API +http:\/\/127\.0\.0\.1:(\d+)\/v1/))[1]);
  const opsUrl = (await running.said(/Metrics +(http:\S+)\/metrics/))[1];
  let told = 0;
  return {
    port,
    running,
    metrics: async () => parseMetrics(await (await fetch(`${opsUrl}/metrics`)).text()),
    async watch() {
      running.child.kill('SIGWINCH');
      const [, facts] = await running.said(new RegExp(`(?:loop-watch (\\{.*)\\n[^]*){${++told}}`));
      return JSON.parse(facts ?? '');
    },
  };
}

function callText(play: string): string {
  const length = chat.body.length;
  return `POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Play: ${play}\r\nContent-Length: ${length}\r\n\r\n${chat.body}`;
}

/** A bare socket with a call sent: thousands of them cost little. */
function call(port: number, play: string): Socket {
  const socket = connectSocket(port, '127.0.0.1', () => socket.write(callText(play)));
  return socket.on('error', () => undefined);
}

/** Opens calls, so many at a time that none is dropped before it is accepted; each has its first bytes, and reads no more. */
async function callAll(port: number, count: number, play: string): Promise<Socket[]> {
  const sockets: Socket[] = [];
  while (sockets.length < count) {
    const some = Array.from({ length: Math.min(100, count - sockets.length) }, () => call(port, play));
    await Promise.all(some.map((socket) => once(socket, 'data').then(() => socket.pause())));
    sockets.push(...some);
  }
  return sockets;
}

/** Until ten looks see the same number of relayed bytes. */
async function flowHasStopped(gateway: Pick<GatewayProcess, 'metrics'>): Promise<void> {
  for (let last = -1, same = 0; same < 10; await setTimeout(30)) {
    const relayed = (await gateway.metrics()).value('sluicegate_relayed_bytes_total', { direction: 'out' }) ?? 0;
    same = relayed === last ? same + 1 : 0;
    last = relayed;
  }
}

async function heldBytes(gateway: GatewayProcess): Promise<number> {
  const { heap, outside } = await gateway.watch();
  return heap + outside;
}

/** Until so many requests have ended because their clients left. */
async function haveLeft(gateway: GatewayProcess, count: number): Promise<void> {
  const left = async () => (await gateway.metrics()).value('sluicegate_requests_total', { outcome: 'client_closed' }) ?? 0;
  while ((await left()) < count) await setTimeout(10);
}

/** A stalled connection fills some 20 MB of the kernel's buffers; test/soak/departures.ts does it with 300. */
const STALLED = 30;
const CROWD = 2000;
/** What the loop itself may run at a time, without what other processes take from it. */
const LONG_TURN_MS = 50;

const mob = await startMob(t);
const gateway = await startProcess(t, mob.url, { upstream: { timeouts: { connect: '30s' } } });

/** E2: they come first, and are looked at last, since their end takes ten seconds. */
const mute = Array.from({ length: 1000 }, () => connectSocket(gateway.port, '127.0.0.1').on('error', () => undefined));
await Promise.all(mute.map((socket) => once(socket, 'connect')));
const muteSinceMs = performance.now();
const muteEndedMs = Promise.all(mute.map((socket) => once(socket.resume(), 'close'))).then(() => performance.now());

t.test('E5 readers that stall before a flood hold at most 1 MiB each', async (t) => {
  const before = await heldBytes(gateway);
  const sockets = await callAll(gateway.port, STALLED, 'flood');
  await flowHasStopped(gateway);
  let perReader = Number.POSITIVE_INFINITY;
  // On a busy machine some of it is still on its way to the kernel when the flow has just stopped.
  for (let looks = 0; looks < 20 && perReader >= MIB; looks++) {
    await setTimeout(looks * 20);
    perReader = ((await heldBytes(gateway)) - before) / STALLED;
  }
  t.ok(perReader < MIB, `${Math.round(perReader / 1024)} KiB each`);
  for (const socket of sockets) socket.destroy();
  await mob.left();
  await haveLeft(gateway, STALLED);
  const metrics = await gateway.metrics();
  t.equal(metrics.value('sluicegate_streams_active') ?? 0, 0);
  t.equal(metrics.value('sluicegate_upstream_connections', { state: 'active' }), 0);
  t.equal(metrics.value('sluicegate_upstream_close_seconds_count', { phase: 'backpressure' }), STALLED, 'all were held by then');
});

t.test('B27 one event of 64 MB without a newline: every byte comes, and none of it stays', async (t) => {
  const piece = Buffer.alloc(64_000, 'y');
  const sent = createHash('sha256');
  plays.giant = async (response) => {
    response.write('data: ');
    sent.update('data: ');
    for (let n = 0; n < 1000; n++) {
      sent.update(piece);
      if (!response.write(piece)) await once(response, 'drain');
    }
    response.end(`\n\n${DONE}`);
    sent.update(`\n\n${DONE}`);
  };
  const before = await heldBytes(gateway);
  const response = await fetch(`http://127.0.0.1:${gateway.port}/v1/chat/completions`, { method: 'POST', headers: { 'x-play': 'giant' } });
  const received = createHash('sha256');
  let length = 0;
  let held: number | undefined;
  for await (const bytes of response.body!) {
    received.update(bytes);
    length += bytes.length;
    if (length > 32_000_000) held ??= (await heldBytes(gateway)) - before;
  }
  t.equal(length, 64_000_000 + 6 + 2 + DONE.length);
  t.equal(received.digest('hex'), sent.digest('hex'));
  t.ok(held! < 16 * MIB, `${Math.round(held! / MIB)} MiB are held when half of it has come`);
  await gateway.running.said(/"outcome":"completed"/);
});

t.test('B30 100,000 chunks of one byte come unchanged, and soon', async (t) => {
  const text = contentEvent('z'.repeat(99_000)) + DONE;
  plays.drops = async (response) => {
    for (let at = 0; at < text.length; at++) if (!response.write(text.charAt(at))) await once(response, 'drain');
    response.end();
  };
  const startedAtMs = performance.now();
  const response = await fetch(`http://127.0.0.1:${gateway.port}/v1/chat/completions`, { method: 'POST', headers: { 'x-play': 'drops' } });
  t.equal(await response.text(), text);
  t.ok(performance.now() - startedAtMs < 4000, `${(performance.now() - startedAtMs).toFixed(0)} ms`);
});

/** Round trips on one stream, through the gateway, while something else goes on: the 99th of a hundred, in milliseconds. */
async function slowestTrip(client: WireClient, say: (event: string) => void, isOver: () => boolean): Promise<number> {
  const trips: number[] = [];
  while (trips.length < 100 || !isOver()) {
    const event = contentEvent(`trip ${trips.length};`);
    const startedAtMs = performance.now();
    say(event);
    await client.until(`trip ${trips.length};`);
    trips.push(performance.now() - startedAtMs);
  }
  return trips.sort((a, b) => a - b)[Math.floor(trips.length * 0.99)] ?? 0;
}

async function startProbe(port: number): Promise<{ client: WireClient; say: (event: string) => void; end: () => Promise<void> }> {
  const talking = new Promise<ServerResponse>((resolve) => {
    plays.talk = (response) => {
      response.flushHeaders();
      resolve(response);
    };
  });
  const client = await connect(port);
  client.request({ ...chat, headers: { 'x-play': 'talk' } });
  const response = await talking;
  await client.head();
  return {
    client,
    say: (event) => void response.write(event),
    async end() {
      response.end(DONE);
      await client.body();
    },
  };
}

t.test('E4 E12 while one client floods and a scraper scrapes, another’s events are as soon as ever', async (t) => {
  const probe = await startProbe(gateway.port);
  const quiet = await slowestTrip(probe.client, probe.say, () => true);
  let isOver = false;
  let served = 0;
  const flood = Array.from({ length: 10 }, async () => {
    for (; !isOver; served++) {
      const socket = call(gateway.port, 'answer');
      await once(socket, 'data');
      socket.destroy();
    }
  });
  await gateway.watch();
  const loud = slowestTrip(probe.client, probe.say, () => isOver);
  for (let scrapes = 0; scrapes < 20 || served < 200; scrapes++) await gateway.metrics();
  isOver = true;
  const p99Ms = await loud;
  await Promise.all(flood);
  const { ranMs } = await gateway.watch();
  await probe.end();
  t.ok(p99Ms < quiet + 250, `p99 of a round trip: ${quiet.toFixed(1)} ms alone, ${p99Ms.toFixed(1)} ms beside the flood and the scrapes`);
  t.ok(ranMs < LONG_TURN_MS, `longest turn of the loop ${ranMs.toFixed(1)} ms`);
});

t.test('A18 2,000 clients that vanish at one instant are all freed, and hold up no one', async (t) => {
  const probe = await startProbe(gateway.port);
  const lines = () => gateway.running.stdout.match(/"outcome":"client_closed"/g)?.length ?? 0;
  let gone = lines();
  for (const how of ['resetAndDestroy', 'destroy'] as const) {
    const turns: number[] = [];
    // A second try where something else on the machine may have been in the way of the first.
    while (turns.length < 3 && (turns.at(-1) ?? LONG_TURN_MS) >= LONG_TURN_MS) {
      const sockets = await callAll(gateway.port, CROWD, 'hold');
      await gateway.watch();
      for (const socket of sockets) socket[how]();
      probe.say(contentEvent('still here;'));
      await probe.client.until('still here;');
      gone += CROWD;
      await haveLeft(gateway, gone);
      turns.push((await gateway.watch()).ranMs);
      while (lines() < gone) await setTimeout(10);
      t.equal(lines(), gone, 'one log line each');
    }
    t.ok(Math.min(...turns) < LONG_TURN_MS, `longest turns of the loop: ${turns.map((ms) => ms.toFixed(1)).join(', ')} ms`);
  }
  t.equal(mob.open.size, 1, 'upstream only the probe is left');
  await probe.end();
  const metrics = await gateway.metrics();
  t.equal(metrics.value('sluicegate_streams_active') ?? 0, 0);
  t.equal(metrics.value('sluicegate_upstream_connections', { state: 'active' }), 0);
});

/** By then the clock has seen what was said, and counts the silence after it. Time itself is what is tested. */
const TWO_BEATS_MS = 210;

t.test('E13 a process that was stopped, or whose loop was blocked, for longer than its time-outs reads before it judges', async (t) => {
  const upstream = await startMob(t);
  const timeouts = { idle: '400ms', firstByte: '400ms' };
  const gateway = await startProcess(t, upstream.url, { server: { clientStall: '400ms' }, upstream: { timeouts } });
  const probe = await startProbe(gateway.port);
  const hear = async (word: string) => {
    probe.say(contentEvent(word));
    await probe.client.until(word);
  };
  await hear('before the block');
  await setTimeout(TWO_BEATS_MS);
  gateway.running.child.kill('SIGPWR');
  await gateway.running.said(/loop-watch blocks/);
  await hear('said while it was blocked');
  await hear('before the stop');
  await setTimeout(TWO_BEATS_MS);
  gateway.running.child.kill('SIGSTOP');
  await setTimeout(600);
  probe.say(contentEvent('said while it was stopped'));
  // Node writes at the end of the turn.
  await setImmediate();
  gateway.running.child.kill('SIGCONT');
  await probe.client.until('said while it was stopped');
  await probe.end();
  await gateway.running.said(/"outcome":"completed"/);
});

t.test('A3 who has gone before its connection was taken is a request that ended, and no fault', async (t) => {
  const upstream = await startMob(t);
  const gateway = await startProcess(t, upstream.url, { server: { trustProxy: ['127.0.0.1'] } });
  const sockets: Socket[] = [];
  gateway.running.child.kill('SIGSTOP');
  for (const forwarded of ['', 'X-Forwarded-For: 192.0.2.1\r\n', 'X-Forwarded-For: 192.0.2.1, unknown\r\n']) {
    const socket = connectSocket(gateway.port, '127.0.0.1').on('error', () => undefined);
    await once(socket, 'connect');
    await new Promise((resolve) => socket.write(callText('hold').replace('X-Play', `${forwarded}X-Play`), resolve));
    socket.resetAndDestroy();
    sockets.push(socket);
  }
  await Promise.all(sockets.map((socket) => socket.closed || once(socket, 'close')));
  gateway.running.child.kill('SIGCONT');
  await gateway.running.said(/(?:"outcome":"client_closed"[\s\S]*){3}/);
  t.notMatch(gateway.running.stdout, /failed inside/);
});

t.test('E15 while nobody reads the log, streams go on, and what was dropped is counted', async (t) => {
  const upstream = await startMob(t);
  const unread = await startProcess(t, upstream.url);
  const probe = await startProbe(unread.port);
  unread.running.child.stdout?.pause();
  // More lines than are held, each as long as a client can make it.
  const refused = `GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: https://evil.example\r\nX-Request-Id: ${'r'.repeat(128)}\r\n\r\n`;
  const ask = async () => {
    const socket = connectSocket(unread.port, '127.0.0.1');
    for (let n = 0; n < 1200; n++) {
      socket.write(refused);
      await once(socket, 'data');
    }
    socket.destroy();
  };
  await Promise.all(Array.from({ length: 10 }, ask));
  probe.say(contentEvent('still here;'));
  await probe.client.until('still here;');
  unread.running.child.stdout?.resume();
  const [, dropped] = await unread.running.said(/"dropped":(\d+)/);
  await probe.end();
  await unread.running.said(/"outcome":"completed"/);
  const lines = unread.running.stdout.match(/"outcome":"rejected"/g)?.length ?? 0;
  t.equal(lines + Number(dropped), 12_000, 'every line was written or counted');
});

t.test('A9 a client that reads a little now and then is bounded: by clientStall, or by total', async (t) => {
  const trickle = async (readBytes: number, outcome: string) => {
    const upstream = await startUpstream();
    t.teardown(() => upstream.close());
    const settings = { server: { clientStall: '500ms' }, upstream: { timeouts: { total: '1500ms' } } };
    const gateway = await startTestGateway(t, upstream.url, settings);
    // One buffer at a time: no more is taken from the kernel.
    const onread = { buffer: Buffer.alloc(readBytes), callback: () => false };
    const socket = connectSocket({ port: gateway.port, host: '127.0.0.1', onread }).on('error', () => undefined);
    const timer = setInterval(() => socket.resume(), 20);
    socket.write(callText('trickle'));
    const request = await upstream.request();
    request.startSse();
    const event = contentEvent('x'.repeat(60_000));
    for (let n = 0; n < 1000; n++) request.chunk(event);
    await request.connection.closed;
    clearInterval(timer);
    socket.destroy();
    t.match(await gateway.ended(), { outcome });
  };
  await Promise.all([trickle(1, 'client_stalled'), trickle(400_000, 'timeout_total')]);
});

t.test('A9 a client that does not take the last bytes of a whole answer is closed after clientStall, beyond total too', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const settings = { server: { clientStall: '400ms' }, upstream: { timeouts: { total: '200ms' } } };
  const gateway = await startTestGateway(t, upstream.url, settings);
  // What the kernel takes differs from one connection to the next: found by trying.
  const seen = new Set<unknown>();
  for (let tries = 0, bytes = 16 * MIB; tries < 10 && !seen.has('client_stalled'); tries++) {
    const client = await connect(gateway.port);
    client.pause();
    client.request({ target: '/v1/files/f/content' });
    (await upstream.request()).respond(200, {}, Buffer.alloc(bytes));
    const { outcome, bytesOut } = await gateway.ended();
    seen.add(outcome);
    bytes = outcome === 'timeout_total' ? Number(bytesOut) - 40_000 : bytes + 20_000;
    client.destroy();
  }
  t.ok(seen.has('client_stalled'), [...seen].join());
});

t.test('A7 who takes nothing is reset, and the kernel keeps nothing for it', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url, { server: { clientStall: '200ms' } });
  const client = await connect(gateway.port);
  client.request(chat);
  const request = await upstream.request();
  request.startSse();
  await client.head();
  client.pause();
  const event = contentEvent('x'.repeat(60_000));
  for (let n = 0; n < 500; n++) request.chunk(event);
  t.match(await gateway.ended(), { outcome: 'client_stalled' });
  client.resume();
  t.match(await client.closed, { how: 'reset', isComplete: false });
});

t.test('A17 a thousand calls, every other one given up, leave no listener behind', async (t) => {
  const warnings: Error[] = [];
  const onWarning = (warning: Error) => void warnings.push(warning);
  process.on('warning', onWarning);
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const kept = await connect(gateway.port);
  for (let n = 0; n < 500; n++) {
    kept.request(chat);
    const staying = await upstream.request();
    const leaving = await connect(gateway.port);
    leaving.request(chat);
    const left = await upstream.request();
    leaving.reset();
    await left.connection.closed;
    staying.respond(200, { 'content-type': 'application/json' }, `{"n":${n}}`);
    const body = (await kept.body()).toString();
    if (body !== `{"n":${n}}`) t.fail(`call ${n} got ${body}`);
  }
  await setImmediate();
  process.off('warning', onWarning);
  t.same(warnings, []);
  const metrics = await gateway.metrics();
  t.equal(metrics.value('sluicegate_requests_total', { outcome: 'completed' }), 500);
  t.equal(metrics.value('sluicegate_requests_total', { outcome: 'client_closed' }), 500);
  t.equal(metrics.value('sluicegate_upstream_connections', { state: 'idle' }), 1, 'all that stayed were one connection upstream');
});

t.test('B13 an error page of 10 MB streams through', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const client = await connect(gateway.port);
  client.request(chat);
  const request = await upstream.request();
  const half = Buffer.alloc(5_000_000, '<p>sorry</p>');
  request.respond(500, { 'content-type': 'text/html', 'content-length': '10000000' }, half);
  // The mask looks for the key across chunks, and so keeps back less than a key's length.
  t.ok((await client.read(4_999_000)).equals(half.subarray(0, 4_999_000)), 'the first half is there before the second was sent');
  request.connection.write(half);
  t.ok((await client.body()).equals(Buffer.concat([half, half])));
  t.match(await gateway.ended(), { outcome: 'upstream_error', status: 500, bytesOut: 10_000_000 });
});

t.test('E3 one stream more than the limit is refused in time, with a time to come back, and the others go on', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url, { upstream: { maxConnections: 2, timeouts: { connect: '50ms' } } });
  const clients = await Promise.all([connect(gateway.port), connect(gateway.port), connect(gateway.port)]);
  const requests = [];
  for (const client of clients.slice(0, 2)) {
    client.request(chat);
    const request = await upstream.request();
    request.startSse();
    requests.push(request);
  }
  const [first, second, third] = clients as [WireClient, WireClient, WireClient];
  third.request(chat);
  t.match(await third.head(), { status: 503, headers: { 'retry-after': '1' } });
  t.match(JSON.parse((await third.body()).toString()), { error: { code: 'overloaded', type: 'server_error' } });
  for (const [n, client] of [first, second].entries()) {
    requests[n]?.event({ choices: [{ index: 0, delta: { content: 'untouched' } }] });
    await client.until('untouched');
    requests[n]?.chunk(DONE);
    requests[n]?.endChunks();
    await client.body();
  }
  t.equal(upstream.connections.length, 2);
});

t.test('E11 50,000 models and callers make no more series than are bounded', async (t) => {
  const metrics = createMetrics(NO_METRICS_PARTS);
  const arrival = { requestId: 'r', startedAtMs: 0, method: 'POST', remoteAddress: '127.0.0.1', traceId: undefined };
  for (let n = 0; n < 50_000; n++) {
    const meter: Meter = Object.create(createNullMeter(), { model: { value: `model-${n}` } });
    const made = { client: `client-${n}`, upstream: 'main', operation: 'chat', outcome: 'completed', rejection: 'not_found' } as const;
    metrics.record({ ...createExchange(arrival), ...made, durationMs: 5, ttfbMs: 1, ttftMs: 2, meter });
  }
  const startedAtMs = performance.now();
  const { body } = await metrics.scrape('');
  const ms = performance.now() - startedAtMs;
  const counts = new Map<string, number>();
  for (const [, name = ''] of body.matchAll(/^(\w+)\{/gm)) counts.set(name, (counts.get(name) ?? 0) + 1);
  for (const [name, count] of counts) if (count > 10_000) t.fail(`${name} has ${count} series`);
  t.ok((counts.get('sluicegate_requests_total') ?? 0) > 5000, 'what can be told apart is');
  t.ok(body.length < 8 * MIB, `${(body.length / MIB).toFixed(1)} MiB a scrape, made in ${ms.toFixed(0)} ms`);
});

t.test('E17 the tokenizer counts a megabyte of anything without holding up the loop', async (t) => {
  const tokenizer = createTokenizer();
  t.teardown(() => tokenizer.close());

  async function turnsWhileCounting(text: string): Promise<number> {
    let turns = 0;
    let isCounted = false;
    const counting = tokenizer.count('gpt-4o', text).then((tokens) => {
      isCounted = true;
      return tokens;
    });
    for (; !isCounted; turns++) await setImmediate();
    t.ok((await counting) > 1000);
    return turns;
  }

  for (const text of ['a'.repeat(MIB), 'The quick brown fox. '.repeat(49_000), ' '.repeat(MIB), 'é\n'.repeat(500_000)]) {
    // The best of three: on a starved machine the loop may not get its turn at all meanwhile.
    let turns = 0;
    for (let tries = 0; tries < 3 && turns <= 100; tries++) turns = await turnsWhileCounting(text);
    t.ok(turns > 100, `${turns} turns of the loop meanwhile`);
  }
});

t.test('spread tasks run in their order, a little in each turn of the loop, and none is lost to one that throws', async (t) => {
  const clock = createClock();
  const turns: number[] = [];
  let turn = 0;
  let isOver = false;
  const busy = () => {
    for (const untilMs = performance.now() + 1; performance.now() < untilMs; );
  };
  for (let n = 0; n < 20; n++) {
    clock.spread(() => {
      busy();
      turns.push(turn);
      isOver = n === 19;
    });
  }
  t.ok(turns.length >= 1 && turns.length <= 3, 'the first run at once');
  for (; !isOver; turn++) await setImmediate();
  t.ok(turn >= 5, `${turn} turns`);
  t.same(
    turns,
    turns.toSorted((a, b) => a - b),
  );
  for (let n = 0; n < 10; n++) clock.spread(busy);
  let isLast = false;
  clock.spread(() => {
    isLast = true;
  });
  clock.close();
  t.ok(isLast, 'what still waits runs when the clock closes');
});

t.test('a roster has whoever has entered and not left, however they come and go', async (t) => {
  const random = createRandom(7);
  const roster = new Roster<number>();
  const here = new Map<number, Seat<number>>();
  const faults: string[] = [];
  for (let n = 0; n < 10_000; n++) {
    const gone = [...here.keys()][random(20)];
    if (gone === undefined) here.set(n, roster.enter(n));
    else {
      const seat = here.get(gone);
      here.delete(gone);
      if (seat?.leave() !== true || seat.leave() || seat.isTaken) faults.push(`${gone} did not leave once`);
    }
    const seen = [...roster].toSorted((a, b) => a - b);
    if (String(seen) !== String([...here.keys()]) || roster.size !== here.size) faults.push(`${seen} and not ${[...here.keys()]}`);
  }
  t.same(faults, []);
  t.ok(here.size > 0, `${here.size} are left`);
});

t.test('who leaves or enters while a roster is gone through is not met, and all others are', async (t) => {
  const roster = new Roster<number>();
  const seats = Array.from({ length: 6 }, (_, n) => roster.enter(n));
  const met: number[] = [];
  for (const n of roster) {
    met.push(n);
    if (n === 1) for (const gone of [0, 1, 3]) seats[gone]?.leave();
    if (n === 2) roster.enter(6);
  }
  t.same(met, [0, 1, 2, 4, 5]);
  t.same(new Set(roster), new Set([2, 4, 5, 6]));
});

t.test('who has left a roster is gone for the young collector too', async (t) => {
  const roster = new Roster<object>();
  const oldBytes = () => getHeapSpaceStatistics().find((space) => space.space_name === 'old_space')?.space_used_size ?? Number.NaN;
  const before = oldBytes();
  let most = 0;
  for (let n = 0; n < 100_000; n++) {
    roster.enter({ payload: new Array(100).fill(n) }).leave();
    if (n % 1000 === 0) most = Math.max(most, oldBytes() - before);
  }
  // Of 80 MB. With a Set in its place it is some 40.
  t.ok(most < 2 * MIB, `${(most / MIB).toFixed(1)} MiB were promoted`);
});

t.test('a beat is judged a little in each turn of the loop, all by the time at which it began', async (t) => {
  const clock = createClock(1);
  t.teardown(() => clock.close());
  let turn = 0;
  const seen: { nowMs: number; turn: number }[] = [];
  for (let n = 0; n < 20; n++) {
    clock.onBeat({
      judge(nowMs) {
        seen.push({ nowMs, turn });
        for (const untilMs = performance.now() + 0.5; performance.now() < untilMs; );
      },
    });
  }
  for (; seen.length < 20; turn++) await setImmediate();
  const first = seen.slice(0, 20);
  t.equal(new Set(first.map((look) => look.nowMs)).size, 1, 'one time');
  t.equal(new Set(first.map((look) => look.turn)).size, 20, 'one judge in each turn, as long as they take');
});

t.test('of thousands of streams that flow a beat judges a thousand, in turn; who waits for an answer is judged on each', async (t) => {
  const clock = createClock(1);
  t.teardown(() => clock.close());
  const looks: { who: number; nowMs: number }[] = [];
  const waiting: number[] = [];
  const seats = Array.from({ length: 2500 }, (_, who) => clock.inTurn({ judge: (nowMs) => looks.push({ who, nowMs }) }));
  clock.onBeat({ judge: (nowMs) => waiting.push(nowMs) });
  seats[2400]?.leave();
  while (waiting.length < 4) await setImmediate();
  const beats = waiting.slice(0, 3).map((nowMs) => looks.filter((look) => look.nowMs === nowMs));
  t.same(
    beats.map((beat) => beat.length),
    [1000, 1000, 499],
  );
  t.equal(new Set(beats.flat().map(({ who }) => who)).size, 2499, 'each of them once');
  t.notOk(looks.some(({ who }) => who === 2400));
  // The round begins anew with whoever is there then.
  for (const seat of seats.slice(3)) seat.leave();
  const seen = looks.length;
  for (const from = waiting.length; waiting.length < from + 4; ) await setImmediate();
  t.ok(looks.slice(seen).every(({ who }) => who < 3));
  t.ok(looks.length >= seen + 6);
});

t.test('streams that all leave while a round goes through them are not held by it', async (t) => {
  setFlagsFromString('--expose-gc');
  const collect: () => void = runInNewContext('gc');
  const clock = createClock(1);
  t.teardown(() => clock.close());
  let judged = 0;
  const seats = Array.from({ length: 1500 }, () => clock.inTurn({ judge: () => judged++ }));
  // In functions of their own: what one that waits has had in its hands, it may hold on to.
  const one = (() => new WeakRef(seats.at(-1)!.member))();
  const leave = () => {
    while (seats.length > 0) seats.pop()?.leave();
  };
  while (judged < 1000) await setImmediate();
  leave();
  for (let looks = 0; looks < 100 && one.deref() !== undefined; looks++) {
    await setTimeout(2);
    collect();
  }
  t.equal(one.deref(), undefined);
});

t.test('E2 1,000 connections that send nothing are closed within ten seconds, and a probe is served meanwhile', async (t) => {
  const socket = call(gateway.port, 'answer');
  t.match(String(await once(socket, 'data')), /^HTTP\/1\.1 200/);
  socket.destroy();
  const ms = (await muteEndedMs) - muteSinceMs;
  t.ok(ms < 11_500, `${(ms / 1000).toFixed(1)} s`);
  t.equal(gateway.running.stderr.match(/warning/i), null, 'no listener warning');
});

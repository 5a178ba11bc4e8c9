// The fuzzer: mutated requests at the client's side, mutated answers at the upstream's, and what must hold whatever they are.
import { createHash } from 'node:crypto';
import type { Test } from 'tap';
import { errorTable } from '../../src/errors.ts';
import { startTestGateway, type TestGateway } from './gateway.ts';
import { type Ending, judgeAnswer } from './judge-answer.ts';
import { answers, CLIENT_KEY, mutate, type Random, requests } from './mutations.ts';
import { createRandom } from './random.ts';
import { type ScriptedUpstream, startUpstream, type UpstreamRequest } from './upstream.ts';
import { connect, type WireClient } from './wire.ts';

export interface FuzzReport {
  count: number;
  /** How often each status was answered; 0 where there was no answer. */
  readonly statuses: Map<number, number>;
  /** What went against the invariants, each with its seed, its case and the bytes. */
  readonly findings: string[];
}

/** A gateway, an upstream that answers everything, and a stream between them that nothing may disturb. */
interface World {
  readonly gateway: TestGateway;
  /** What the upstream saw of a case. */
  readonly seen: Map<string, UpstreamRequest>;
  /** What the upstream is to say to a case. */
  readonly scripts: Map<string, (request: UpstreamRequest) => void>;
  /** Sends an event through the bystander's stream and waits until it has come. */
  tick(): Promise<void>;
  /** Ends the bystander's stream, and looks at what is left. */
  close(): Promise<string[]>;
}

/** One case. */
interface Trial {
  readonly name: string;
  readonly bytes: Buffer;
  readonly random: Random;
}

const WORLD_CASES = 1000;
const REQUEST_LANES = 8;
/** Most of what an answer takes is waiting: for a clock of 400 ms, or for the second in which a cut stream may be read. */
const ANSWER_LANES = 400;
const BEAT_MS = 20;
/** Half of the clocks of 400 ms. */
const STALL_MS = 200;
/** Longer than any pause of a busy machine. */
const WAIT_MS = 20_000;
/** After so many rounds of the bystander's stream whatever was to be answered has been. */
const QUIET_TICKS = 6;
const ownStatuses = new Set<number>(Object.values(errorTable).map(({ status }) => status));
const timeouts = { connect: '2s', firstByte: '400ms', idle: '400ms' };
const client = { name: 'fuzz', keySha256: createHash('sha256').update(CLIENT_KEY).digest('hex') };
const endings: readonly Ending[] = ['fin', 'fin', 'reset', 'stay'];
const caseName = /case-\d{6}/;

/** Runs `count` cases, half of them at each side; the same seed gives the same bytes. */
export async function fuzz(seed: number, count: number, onProgress: (report: FuzzReport) => void = () => {}): Promise<FuzzReport> {
  const report: FuzzReport = { count: 0, statuses: new Map(), findings: [] };
  const onFault = (error: unknown) => report.findings.push(`seed ${seed}: the process: ${error instanceof Error ? error.stack : error}`);
  process.on('unhandledRejection', onFault).on('uncaughtException', onFault).on('warning', onFault);
  for (let first = 0; first < count; first += WORLD_CASES) {
    await fuzzWorld(seed, first, Math.min(WORLD_CASES, count - first), report);
    onProgress(report);
  }
  process.off('unhandledRejection', onFault).off('uncaughtException', onFault).off('warning', onFault);
  return report;
}

async function fuzzWorld(seed: number, first: number, count: number, report: FuzzReport): Promise<void> {
  const isKeyed = (first / WORLD_CASES) % 2 === 1;
  const world = await createWorld(isKeyed ? { clients: [client] } : {});
  const told = (trial: Trial, what: string) =>
    void report.findings.push(
      `seed ${seed}, ${trial.name}${isKeyed ? ', keyed' : ''}: ${what}\n${JSON.stringify(trial.bytes.toString('latin1'))}`,
    );

  async function run(n: number): Promise<void> {
    const name = `case-${String(n % 1_000_000).padStart(6, '0')}`;
    const random = createRandom(seed * 1_000_003 + n);
    const isAnswer = n % 2 === 1;
    const trial = { name, random, bytes: mutate(isAnswer ? answers : requests, random, name) };
    const status = await (isAnswer ? tryAnswer : tryRequest)(world, trial, (what) => told(trial, what)).catch((error: Error) => {
      told(trial, error.message);
      return 0;
    });
    report.count += 1;
    report.statuses.set(status, (report.statuses.get(status) ?? 0) + 1);
  }

  /** Answers end by clocks, so many of them at once; requests one by one. */
  async function runEach(from: number, lanes: number): Promise<void> {
    let next = from;
    const lane = async () => {
      for (let n = next; n < first + count; n = next) {
        next += 2;
        await run(n);
      }
    };
    await Promise.all(Array.from({ length: lanes }, lane));
  }
  const evens = first + (first % 2);
  await Promise.all([runEach(evens, REQUEST_LANES), runEach(first % 2 === 0 ? first + 1 : first, ANSWER_LANES)]);
  for (const what of await world.close()) report.findings.push(`seed ${seed}, after ${first + count} cases: ${what}`);
}

async function createWorld(settings: Record<string, object>): Promise<World> {
  const closers: (() => unknown)[] = [];
  const upstream = await startUpstream({ waitMs: 3_600_000 });
  // Of a test only its teardown is asked for.
  const scope = { teardown: (close: () => unknown) => void closers.push(close) } as unknown as Test;
  const gateway = await startTestGateway(scope, upstream.url, {
    upstream: { timeouts, maxConnections: 1000 },
    log: { level: 'info' },
    ...settings,
  });
  const faults: string[] = [];
  const seen = new Map<string, UpstreamRequest>();
  const scripts = new Map<string, (request: UpstreamRequest) => void>();
  const bystander = await connect(gateway.port, '127.0.0.1', WAIT_MS);
  bystander.request({ method: 'POST', target: '/v1/chat/completions', headers: { authorization: `Bearer ${CLIENT_KEY}` }, body: '{}' });
  const steady = await upstream.request();
  steady.startSse();
  // From here on its clock of 400 ms runs, for which a busy machine may be slow.
  steady.event('first');
  await bystander.head();
  let ticks = 0;
  let isDisturbed = false;
  let beatAtMs = performance.now();
  let stallMs = 0;
  async function tick(): Promise<void> {
    const mark = `tick ${ticks++};`;
    steady.event({ choices: [{ index: 0, delta: { content: mark } }] });
    await bystander.until(mark).catch((error: Error) => {
      // A process that others keep from running cannot talk, and its clock is right to say so.
      const isOwnSilence = stallMs > STALL_MS && /upstream_(?:idle_)?timeout/.test(error.message);
      if (!isDisturbed && !isOwnSilence) faults.push(`the bystander's stream: ${error.message}`);
      isDisturbed = true;
    });
  }
  // What nobody disturbs does not fall silent either.
  const beat = setInterval(() => {
    const nowMs = performance.now();
    stallMs = Math.max(stallMs, nowMs - beatAtMs);
    beatAtMs = nowMs;
    void tick();
  }, BEAT_MS);
  const serving = serveAll(upstream, seen, scripts, (what) => void faults.push(what)).catch((error: Error) => faults.push(error.message));

  async function close(): Promise<string[]> {
    clearInterval(beat);
    await tick();
    steady.chunk('data: [DONE]\n\n');
    steady.endChunks();
    await bystander.body().catch((error: Error) => isDisturbed || faults.push(`the bystander's end: ${error.message}`));
    bystander.destroy();
    faults.push(...(await remains(gateway)));
    await Promise.all(closers.map((closer) => closer()));
    await upstream.close().catch((error: Error) => faults.push(error.message));
    await serving;
    return faults.filter((what) => !what.startsWith('the upstream was closed'));
  }
  return { gateway, seen, scripts, tick, close };
}

/** Answers every request, by its script if it has one. */
async function serveAll(
  upstream: ScriptedUpstream,
  seen: World['seen'],
  scripts: World['scripts'],
  onFault: (what: string) => void,
): Promise<void> {
  for (;;) {
    const request = await upstream.request();
    if (!isUnderBase(request.target)) onFault(`the upstream was asked for ${request.target}`);
    const name = caseName.exec(request.head)?.[0] ?? '';
    seen.set(name, request);
    const script = scripts.get(name);
    if (script !== undefined) script(request);
    else if (request.method === 'HEAD') request.connection.write('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n');
    else request.respond(200, {}, 'ok');
  }
}

function isUnderBase(target: string): boolean {
  return /^\/(?:v1|openai)(?:\/|$)/.test(new URL(target, 'http://upstream').pathname);
}

/** What the gateway still thinks is going on; it is given two seconds to end what the last clients have left. */
async function remains(gateway: TestGateway): Promise<string[]> {
  const zero: [name: string, labels: Record<string, string>][] = [
    ['sluicegate_streams_active', {}],
    ['sluicegate_upstream_connections', { state: 'active' }],
    ['sluicegate_upstream_connections', { state: 'queued' }],
  ];
  for (const until = performance.now() + 2000; ; ) {
    const metrics = await gateway.metrics();
    const left = zero.filter(([name, labels]) => (metrics.value(name, labels) ?? 0) !== 0);
    const lines = gateway.output.split('"outcome":').length - 1;
    const ended = metrics.value('sluicegate_requests_total') ?? 0;
    if (left.length === 0 && lines === ended) return [];
    if (performance.now() > until) return [`left over: ${JSON.stringify(left)}; ${lines} log lines, ${ended} requests counted`];
  }
}

/** Sends a mutated request: in one piece, or in two with a while between. Returns the first final status. */
async function tryRequest(world: World, { name, bytes, random }: Trial, finding: (what: string) => void): Promise<number> {
  const wire = await connect(world.gateway.port, '127.0.0.1', WAIT_MS);
  const cut = random(4) === 0 ? 1 + random(bytes.length) : bytes.length;
  let status = 0;
  let isOver = false;
  const heard = firstStatus(wire)
    .then((first) => {
      status = first;
    })
    .catch((error: Error) => {
      isOver = true;
      // A request that was not whole has no answer; one of its own is well-formed and comes in time.
      if (!error.message.startsWith('the connection ended')) finding(error.message);
    });
  wire.send(bytes.subarray(0, cut));
  if (cut < bytes.length) {
    await world.tick();
    wire.send(bytes.subarray(cut));
  }
  for (let quiet = 0; quiet < QUIET_TICKS && status === 0 && !isOver; quiet++) await world.tick();
  wire.end();
  await heard;
  wire.destroy();
  const isOurs = status !== 0 && !/^x-sluicegate-upstream:/im.test(wire.raw().toString('latin1'));
  if (isOurs && !ownStatuses.has(status)) finding(`status ${status} is not documented`);
  const request = world.seen.get(name);
  // What follows a request that was refused may be another one.
  if (isOurs && status < 500 && request !== undefined && isFirst(bytes, request)) {
    if (cut === bytes.length) finding(`answered ${status}, and the upstream was called`);
    else if (await isWhole(world, request)) finding(`answered ${status}, and the upstream had a whole request`);
  }
  world.seen.delete(name);
  return status;
}

/** Whether the upstream's request is the one that a case's bytes begin with. */
function isFirst(bytes: Buffer, { method, target }: UpstreamRequest): boolean {
  const [line = ''] = bytes.toString('latin1').split('\r\n');
  const last = target.split('?')[0]?.split('/').at(-1) ?? '';
  return line.startsWith(`${method} `) && line.includes(last);
}

async function firstStatus(wire: WireClient): Promise<number> {
  for (;;) {
    const { status } = await wire.head();
    if (status >= 200) return status;
  }
}

async function isWhole(world: World, request: UpstreamRequest): Promise<boolean> {
  const hasBody = request.headers['transfer-encoding'] !== undefined || Number(request.headers['content-length'] ?? 0) > 0;
  return (
    !hasBody ||
    Promise.race([
      request.body().then(
        () => true,
        () => false,
      ),
      world.tick().then(() => false),
    ])
  );
}

/** Has a valid call answered with mutated bytes, ended one way or another. Returns the client's status. */
async function tryAnswer(world: World, { name, bytes, random }: Trial, finding: (what: string) => void): Promise<number> {
  const ending = endings[random(endings.length)]!;
  const piece = random(2) ? bytes.length : 1 + random(bytes.length);
  world.scripts.set(name, ({ connection }) => {
    connection.write(bytes.subarray(0, piece));
    const rest = () => {
      connection.write(bytes.subarray(piece));
      if (ending === 'fin') connection.end();
      if (ending === 'reset') connection.reset();
    };
    if (piece < bytes.length || ending === 'reset') void world.tick().then(rest);
    else rest();
  });
  const wire = await connect(world.gateway.port, '127.0.0.1', WAIT_MS);
  wire.request({
    method: 'POST',
    target: '/v1/chat/completions',
    headers: { 'x-case': name, authorization: `Bearer ${CLIENT_KEY}` },
    body: '{}',
  });
  const { status, headers } = await wire.head();
  const heard = await wire.body().then(
    (body) => ({ body, isWhole: true }),
    (error: { received?: Buffer; message: string }) => {
      if (error.received === undefined) finding(error.message);
      return { body: error.received ?? Buffer.alloc(0), isWhole: false };
    },
  );
  wire.destroy();
  world.scripts.delete(name);
  world.seen.delete(name);
  const isOurs =
    headers['content-type'] === 'application/json' &&
    /^\{"error":\{"message":"[^"]*","type":"(?:upstream|server)_error"/.test(heard.body.toString());
  if (isOurs && [502, 503, 504].includes(status)) return status;
  judgeAnswer(bytes, ending, { status, ...heard }, finding);
  return status;
}

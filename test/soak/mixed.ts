// The soak's main scenario: hours of mixed traffic in minutes, with everything going wrong, and then the books are balanced.
import { createHash } from 'node:crypto';
import { setTimeout } from 'node:timers/promises';
import { startFaultRelay, type Toxic } from '../support/fault-relay.ts';
import { createRandom } from '../support/random.ts';
import { type Call, faultOfStream, type Got, makeCall } from './clients.ts';
import { quantiles, toMib } from './figures.ts';
import { type RequestLine, startGatewayProcess, type Watched } from './gateway-process.ts';
import { atOnce, minutes, seed } from './options.ts';
import { makePlan, type Plan } from './plans.ts';
import { conclude, find, print, printMemory } from './report.ts';
import { type Performance, startSoakUpstream } from './upstream.ts';

const random = createRandom(seed);
const untilMs = performance.now() + minutes(10) * 60_000;

const CLIENT_KEY = 'sk-client-canary-0123456789';
const UPSTREAM_KEY = 'sk-upstream-canary-0123456789';
const PROMPTLY_MS = 10_000;
/** What a relay in between may make of any call that it carries. */
const RELAY_OUTCOMES = [
  'upstream_reset',
  'upstream_truncated',
  'upstream_unreachable',
  'timeout_first_byte',
  'timeout_idle',
  'timeout_connect',
];
const DISTURBANCES: readonly Toxic[] = [
  { type: 'latency', latencyMs: 30, jitterMs: 20 },
  { type: 'slicer', maxBytes: 7 },
  { type: 'bandwidth', bytesPerSecond: 2_000_000 },
  { type: 'reset_peer', timeoutMs: 100 },
  { type: 'limit_data', direction: 'down', bytes: 2000 },
  { type: 'timeout', timeoutMs: 500 },
  { type: 'slow_close', delayMs: 300 },
  { type: 'down' },
];

/** One request, from its plan to its entry in the books. */
interface Entry {
  plan: Plan;
  readonly startedAtMs: number;
  leftAtMs?: number;
  closedAtMs?: number;
  endedAtMs?: number;
  uploaded?: Buffer | undefined;
  arrive(): void;
  got?: Got | undefined;
  gotBytes?: number;
  line?: RequestLine;
}

const entries = new Map<string, Entry>();
/** When the relay disturbed whatever passed through it. */
const storms: { fromMs: number; toMs: number }[] = [];
const weights: (Watched & { atMs: number })[] = [];
let reloads = 0;
let lines = 0;

function performanceOf(id: string): Performance | undefined {
  const entry = entries.get(id);
  return (
    entry && {
      plan: entry.plan,
      onArrival: entry.arrive,
      onClose: (atMs) => {
        entry.closedAtMs = atMs;
      },
      onBody: (bytes) => {
        entry.uploaded = bytes;
      },
    }
  );
}

const upstream = await startSoakUpstream(performanceOf);
const relay = await startFaultRelay(upstream.port, seed);

const configurationFor = (port: number) => ({
  server: { listen: '127.0.0.1:0', clientStall: '3s', drain: '5s' },
  sse: { heartbeat: '500ms' },
  clients: [{ name: 'soak', keySha256: createHash('sha256').update(CLIENT_KEY).digest('hex') }],
  upstreams: {
    main: {
      baseUrl: `http://127.0.0.1:${port}/v1`,
      apiKey: UPSTREAM_KEY,
      maxConnections: 2000,
      timeouts: { connect: '2s', firstByte: '2s', idle: '2s', total: '60s' },
    },
  },
});

const gateway = await startGatewayProcess({
  configuration: configurationFor(upstream.port),
  onLine(line) {
    lines++;
    if (/canary/.test(line)) find(`a key in the log: ${line}`);
    if (/"level":(?:50|60)/.test(line) && !/was not taken/.test(line)) find(`a fault in the log: ${line}`);
  },
  onRequest(line) {
    const entry = entries.get(line.requestId);
    if (entry === undefined) find(`a line for a request that nobody made: ${line.requestId}`);
    else if (entry.line !== undefined) find(`two lines for ${line.requestId}`);
    else entry.line = line;
  },
});

async function playOne(id: string): Promise<void> {
  const plan = makePlan(id, random);
  let arrive: () => void = () => undefined;
  const arrived = new Promise<void>((resolve) => {
    arrive = resolve;
  });
  const entry: Entry = { plan, startedAtMs: performance.now(), arrive };
  entries.set(id, entry);
  const onLeave = (atMs: number) => {
    entry.leftAtMs = atMs;
  };
  // Lost in a storm, a request may never get there.
  const call: Call = {
    plan,
    port: gateway.port,
    key: CLIENT_KEY,
    arrived: Promise.race([arrived, setTimeout(5000)]).then(() => undefined),
    onLeave,
  };
  try {
    entry.got = await makeCall(call);
  } catch (error) {
    if (plan.departure === undefined || !isInStorm(entry)) find(`${id} (${describe(plan)}): ${(error as Error).message.slice(0, 300)}`);
  }
  entry.endedAtMs = performance.now();
  judge(entry);
  shrink(entry);
}

/** The books must not hold what went over the wire. */
function shrink(entry: Entry): void {
  if (entry.got?.status === 200) entry.gotBytes = entry.got.body.length;
  entry.got = entry.uploaded = undefined;
  entry.plan = { ...entry.plan, events: [], upload: Buffer.alloc(0) };
}

function describe({ kind, dialect, fault, departure }: Plan): string {
  return [kind, dialect, fault, departure ?? 'stays'].join(' ');
}

function isInStorm({ startedAtMs, endedAtMs = performance.now() }: Entry): boolean {
  return storms.some(({ fromMs, toMs }) => startedAtMs < toMs + PROMPTLY_MS && endedAtMs > fromMs);
}

/** What the client itself can say of its call. */
function judge({ plan, got, uploaded, startedAtMs }: Entry): void {
  if (got === undefined) return;
  const wrong = (what: string) => find(`${plan.id} (${describe(plan)}, ${(performance.now() - startedAtMs).toFixed(0)} ms): ${what}`);
  if (got.body.includes('canary')) wrong('a key in the body');
  if (got.status >= 400) {
    if (got.isComplete && JSON.parse(got.body.toString()).error === undefined) wrong(`an error without its form: ${got.body}`);
  } else if (plan.kind === 'stream') {
    const fault = faultOfStream(got, plan);
    if (fault !== undefined) wrong(fault);
  } else if (plan.kind === 'upload' && got.isComplete && !uploaded?.equals(plan.upload)) {
    wrong('the upload came up changed');
  }
}

/** Reloads and storms, one after the other, for as long as it lasts. */
async function disturb(): Promise<void> {
  for (let n = 0; performance.now() < untilMs - 15_000; n++) {
    await setTimeout(2000);
    await gateway.reload('upstreams: [');
    await gateway.reload(configurationFor(n % 2 === 0 ? relay.port : upstream.port));
    reloads += 2;
    if (n % 2 === 1) continue;
    const storm = { fromMs: performance.now(), toMs: Number.POSITIVE_INFINITY };
    storms.push(storm);
    const remove = relay.add(DISTURBANCES[random(DISTURBANCES.length)]!);
    await setTimeout(1500);
    remove();
    storm.toMs = performance.now();
  }
}

async function weigh(): Promise<void> {
  while (performance.now() < untilMs) {
    await setTimeout(5000);
    weights.push({ ...(await gateway.watch()), atMs: performance.now() });
  }
}

async function keepCalling(worker: number): Promise<void> {
  for (let n = 0; performance.now() < untilMs; n++) await playOne(`soak-${worker}-${n}`);
}

/** Until every request has its line, or can no longer be expected to get one. */
async function settle(): Promise<void> {
  const missing = () => [...entries.values()].filter(({ line }) => line === undefined);
  for (let n = 0; n < 100 && missing().length > 0; n++) await setTimeout(100);
  for (const { plan } of missing().slice(0, 5)) find(`no line for ${plan.id} (${describe(plan)})`);
}

function countBy<T>(items: Iterable<T>, keyOf: (item: T) => string): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const item of items) counts[keyOf(item)] = (counts[keyOf(item)] ?? 0) + 1;
  return counts;
}

/** Each request's one outcome, against what was planned. */
function balanceOutcomes(): void {
  for (const entry of entries.values()) {
    const { plan, line } = entry;
    if (line === undefined) continue;
    const isPlanned = plan.outcomes.includes(line.outcome);
    if (!isPlanned && !(isInStorm(entry) && RELAY_OUTCOMES.includes(line.outcome)))
      find(`${plan.id} (${describe(plan)}) ended as ${line.outcome}, ${JSON.stringify(line)}`);
    const isReported = plan.kind === 'stream' && line.outcome === 'completed';
    if (isReported && (line.tokens?.input !== plan.tokens.input || line.tokens?.output !== plan.tokens.output))
      find(`${plan.id} (${describe(plan)}) has other tokens: ${JSON.stringify(line.tokens)}`);
    if (isReported && (entry.gotBytes ?? 0) < line.bytesOut) find(`${plan.id} got ${entry.gotBytes} of ${line.bytesOut} bytes`);
  }
}

/** The metrics, against the lines. */
async function balanceMetrics(): Promise<void> {
  const text = await gateway.scrape();
  if (text.includes('canary')) find('a key in the metrics');
  const metrics = await gateway.metrics();
  const told = [...entries.values()].flatMap(({ line }) => line ?? []);
  const equal = (name: string, labels: Record<string, string>, expected: number) => {
    const value = metrics.value(name, labels) ?? 0;
    if (value !== expected) find(`${name} ${JSON.stringify(labels)} is ${value}, and should be ${expected}`);
  };
  for (const [outcome, count] of Object.entries(countBy(told, (line) => line.outcome)))
    equal('sluicegate_requests_total', { outcome }, count);
  equal('sluicegate_requests_total', {}, entries.size);
  equal('sluicegate_streams_active', {}, 0);
  for (const state of ['active', 'queued']) equal('sluicegate_upstream_connections', { state }, 0);
  const sum = (of: (line: RequestLine) => number) => told.reduce((total, line) => total + of(line), 0);
  const isSent = ({ upstream: name }: RequestLine) => name !== undefined;
  equal(
    'sluicegate_relayed_bytes_total',
    { direction: 'out' },
    sum((line) => (isSent(line) ? line.bytesOut : 0)),
  );
  equal(
    'sluicegate_relayed_bytes_total',
    { direction: 'in' },
    sum((line) => (isSent(line) ? line.bytesIn : 0)),
  );
  for (const kind of ['input', 'output'])
    equal(
      'sluicegate_tokens_total',
      { kind },
      sum(({ tokens }) => Number(tokens?.[kind] ?? 0)),
    );
}

function printFigures(before: number, after: number): void {
  const all = [...entries.values()];
  const count = (of: (entry: Entry) => boolean) => all.filter(of).length;
  print('seed', seed);
  print('requests', all.length);
  print(
    'streams',
    count(({ plan }) => plan.kind === 'stream'),
  );
  print(
    'by kind',
    countBy(all, ({ plan }) => plan.kind),
  );
  print(
    'upstream faults',
    countBy(
      all.filter(({ plan }) => plan.fault !== 'none'),
      ({ plan }) => plan.fault,
    ),
  );
  print(
    'departures',
    countBy(
      all.filter(({ plan }) => plan.departure !== undefined),
      ({ plan }) => plan.departure ?? '',
    ),
  );
  print(
    'outcomes',
    countBy(
      all.flatMap(({ line }) => line ?? []),
      ({ outcome }) => outcome,
    ),
  );
  print('reloads, storms', [reloads, storms.length]);
  print('log lines', lines);
  print('bytes sent by the upstream', `${toMib(upstream.bytesSent)} MiB`);
  printMemory(weights);
  print('descriptors before, after', [before, after]);
  print(
    'worst turn of the loop',
    `${Math.max(...weights.map(({ ranMs }) => ranMs)).toFixed(1)} ms run, ${Math.max(...weights.map(({ wallMs }) => wallMs)).toFixed(1)} ms in all`,
  );
  for (const phase of ['upload', 'headers', 'stream', 'backpressure']) {
    const times = all
      // What a relay in between held up is its own doing.
      .filter((entry) => entry.plan.departure === phase && entry.line?.outcome === 'client_closed' && !isInStorm(entry))
      .flatMap(({ leftAtMs, closedAtMs }) => (leftAtMs === undefined || closedAtMs === undefined ? [] : [closedAtMs - leftAtMs]));
    print(`departure to close, ${phase}`, quantiles(times));
  }
}

async function countDescriptors(): Promise<number> {
  const idle = (await gateway.metrics()).value('sluicegate_upstream_connections', { state: 'idle' }) ?? 0;
  return gateway.descriptors() - idle;
}

// After some calls, so that the tokenizer's thread is there; the first watch empties the maxima of the start.
await Promise.all(Array.from({ length: 50 }, (_, n) => playOne(`soak-warm-${n}`)));
await gateway.watch();
const before = await countDescriptors();
await Promise.all([disturb(), weigh(), ...Array.from({ length: atOnce(60) }, (_, worker) => keepCalling(worker))]);
await settle();
balanceOutcomes();
await balanceMetrics();
printFigures(before, await countDescriptors());
const code = await gateway.stop();
if (code !== 0) find(`exit code ${code} after SIGTERM`);
await relay.close();
for (let n = 0; n < 20 && upstream.openSockets > 0; n++) await setTimeout(50);
if (upstream.openSockets > 0) find(`${upstream.openSockets} sockets are open upstream after the end`);
upstream.close();
conclude();

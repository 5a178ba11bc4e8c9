// The parts that workers are made of: calls over a channel, the count elsewhere, the metrics of all, shares, pauses, ports.
import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import t from 'tap';
import { loadConfig } from '../../src/config.ts';
import { createMemoryStore } from '../../src/limits/memory.ts';
import { answerFrom, createRemoteStore, type Question } from '../../src/limits/remote.ts';
import type { LimitStore, Running } from '../../src/limits/store.ts';
import { createInstruments, type Extent, type Snapshot } from '../../src/telemetry/registry.ts';
import { type Counting, gatherMetrics } from '../../src/workers/gather.ts';
import { type Call, type Calls, type Channel, createLine } from '../../src/workers/line.ts';
import { createPauses } from '../../src/workers/pauses.ts';
import { choosePorts } from '../../src/workers/ports.ts';
import { shareOf } from '../../src/workers/share.ts';
import { play } from '../limits/play.ts';
import { type Metrics, parseMetrics } from '../support/metrics.ts';

/** Two ends of a channel as between processes: messages are cloned, and arrive in a later turn, in order. */
function createChannels() {
  const listeners: ((message: unknown) => void)[] = [];
  const closers: (() => void)[] = [];
  const state = { isClosed: false };
  const end = (own: number, other: number): Channel => ({
    send(message, onSent) {
      const copy: unknown = structuredClone(message);
      setImmediate(() => {
        onSent(state.isClosed);
        if (!state.isClosed) listeners[other]?.(copy);
      });
    },
    onMessage(listener) {
      listeners[own] = listener;
    },
    onClosed: (listener) => void closers.push(listener),
  });
  return {
    ends: [end(0, 1), end(1, 0)] as const,
    close() {
      state.isClosed = true;
      for (const close of closers) close();
    },
  };
}

type Served = { add(one: number, other: number): number; fail(): never; hang(): Promise<void>; echo(value: unknown): unknown };

t.test('calls are answered, errors keep their code, and nobody waits for a process that is gone', async (t) => {
  const { ends, close } = createChannels();
  const served: Served = {
    add: (one, other) => one + other,
    fail() {
      throw Object.assign(new Error('listen EADDRINUSE'), { code: 'EADDRINUSE', address: '127.0.0.1', port: 80, secret: 'x' });
    },
    hang: () => new Promise(() => undefined),
    echo: (value) => value,
  };
  createLine<Calls>(ends[1], served);
  const call: Call<Served> = createLine<Served>(ends[0], {});
  t.same(await Promise.all([call('add', 1, 2), call('add', 3, 4)]), [3, 7]);
  t.same(await call('echo', { drain: Infinity, none: undefined, all: new Map([['a', 1]]) }), {
    drain: Infinity,
    none: undefined,
    all: new Map([['a', 1]]),
  });
  const failure: unknown = await call('fail').catch((error: unknown) => error);
  t.match(failure, { message: 'listen EADDRINUSE', code: 'EADDRINUSE', address: '127.0.0.1', port: 80 });
  t.notOk(Reflect.has(failure as object, 'secret'));
  const waiting = call('hang');
  close();
  await t.rejects(waiting, /gone/);
  await t.rejects(call('add', 1, 2), /gone/);
});

t.test('the count elsewhere is the count here', async (t) => {
  let nowMs = 0;
  const setClock = (ms: number) => {
    nowMs = ms;
  };
  const batches: number[] = [];
  function createElsewhere(): LimitStore {
    const memory = createMemoryStore({ now: () => nowMs, wallNow: () => nowMs, keepMs: 30 * 86_400_000 });
    return createRemoteStore(async (questions: readonly Question[]) => {
      batches.push(questions.length);
      return structuredClone(await answerFrom(memory, structuredClone(questions)));
    });
  }
  for (let seed = 1; seed <= 5; seed += 1) {
    const store = createElsewhere();
    // What is told is counted in its turn; whoever plays would move the clock at once.
    const tell = (what: 'free' | 'settle') => (running: Running) => {
      store[what](running);
      return store.standings(new Map());
    };
    const player = { ...store, free: tell('free'), settle: tell('settle') };
    const { fault } = await play(player, { seed, steps: 300, startMs: 1e12 + seed * 977_777, setClock });
    t.same(fault?.found, fault?.wanted, `seed ${seed}:\n${fault?.what}`);
  }
  const store = createElsewhere();
  batches.length = 0;
  const limits = { requestsPerMinute: 3, tokensPerMinute: undefined, concurrentStreams: undefined, budget: undefined };
  const admit = (n: number) =>
    store.admit({ caller: 'x', limits, lease: `lease ${n}`, reserve: { tokens: 0, nanoUsd: 0 } }).then((verdict) => verdict.refusedBy);
  t.same(await Promise.all([1, 2, 3, 4].map(admit)), [undefined, undefined, undefined, 'requests']);
  t.same(batches, [4], 'a turn’s questions in one message');

  const lost = createRemoteStore(() => Promise.reject(new Error('gone')));
  await t.rejects(lost.admit({ caller: 'x', limits, lease: 'l', reserve: { tokens: 0, nanoUsd: 0 } }), /gone/);
  lost.settle({ caller: 'x', limits, lease: 'l', spent: { tokens: 0, nanoUsd: 0 } });
});

/** A process that counts, with a door before what it tells. */
function createCounting() {
  const instruments = createInstruments();
  const requests = instruments.counter('sluicegate_requests_total', 'x', 'client');
  const times = instruments.histogram('sluicegate_overhead_seconds', 'x', [0.1, 1], 'part');
  const gauges = ['sluicegate_streams_active', 'sluicegate_limit_store_up', 'sluicegate_limit_remaining', 'sluicegate_build_info'].map(
    (name) => instruments.gauge(name, 'x', 'client'),
  );
  const process = {
    door: Promise.resolve(),
    async read(extent: Extent): Promise<Snapshot> {
      const snapshot = await instruments.read(extent);
      await process.door;
      return structuredClone(snapshot);
    },
    count(client: string, value: number) {
      requests.add(value, client);
      times.observe(value / 10, client);
      for (const gauge of gauges) gauge.set(value, client);
    },
  };
  return process;
}

t.test('series are bounded: names beyond ten thousand are gathered, and nothing is left uncounted', async (t) => {
  const instruments = createInstruments();
  const requests = instruments.counter('sluicegate_requests_total', 'x', 'client', 'outcome');
  const times = instruments.histogram('sluicegate_overhead_seconds', 'x', [1, 2], 'model');
  for (let n = 0; n < 10_050; n++) requests.add(1, `c-${n}`, n % 2 ? 'completed' : 'rejected');
  for (let n = 0; n < 2; n++) requests.add(1, 'c-0', 'rejected');
  for (const seconds of [0.5, 1, 1.5, 9]) times.observe(seconds, 'm');
  const snapshot = await instruments.read('counts');
  const values = (name: string) => snapshot.find((metric) => metric.name === name)?.values ?? [];
  const counted = values('sluicegate_requests_total');
  t.equal(counted.length, 9_902);
  t.equal(
    counted.reduce((sum, { value }) => sum + value, 0),
    10_052,
  );
  t.same(
    counted.filter(({ labels }) => labels.client === 'other').map(({ value }) => value),
    [75, 75],
  );
  t.equal(counted.find(({ labels }) => labels.client === 'c-0')?.value, 3, 'a series that is there is written on');
  t.same(
    values('sluicegate_overhead_seconds').map(({ value }) => value),
    [2, 3, 4, 12, 4],
    'a bucket has its bound in it, and all that is smaller',
  );
  t.throws(() => requests.add(Number.NaN, 'c-0', 'completed'), TypeError);
  t.throws(() => times.observe(Number.POSITIVE_INFINITY, 'm'), TypeError);
  t.throws(() => requests.add(1, 'new'), TypeError, 'a label is missing');
});

t.test('the metrics of all: counts and histograms are sums, gauges what they mean, and the dead keep what they counted', async (t) => {
  const all = gatherMetrics(createInstruments());
  t.teardown(() => all.close());
  const [one, two] = [createCounting(), createCounting()];
  for (const process of [one, two]) all.add(process);
  one.count('a', 1);
  two.count('a', 2);
  two.count('b', 5);
  const scrape = async (): Promise<Metrics> => parseMetrics((await all.scrape('')).body);
  const first = await scrape();
  const requests = (metrics: Metrics, client: string) => metrics.value('sluicegate_requests_total', { client });
  t.same([requests(first, 'a'), requests(first, 'b')], [3, 5]);
  t.equal(first.value('sluicegate_overhead_seconds_count', { part: 'a' }), 2);
  t.equal(first.value('sluicegate_overhead_seconds_bucket', { part: 'a', le: '0.1' }), 1);
  t.equal(first.value('sluicegate_overhead_seconds_bucket', { part: 'a', le: '1' }), 2);
  t.equal(first.value('sluicegate_streams_active', { client: 'a' }), 3);
  for (const name of ['sluicegate_limit_store_up', 'sluicegate_limit_remaining', 'sluicegate_build_info'])
    t.equal(first.value(name, { client: 'a' }), 1, name);
  t.equal(first.series('process_resident_memory_bytes').length, 1);
  const startedAt = first.value('process_start_time_seconds') ?? 0;
  t.ok(startedAt < Date.now() / 1000 && startedAt > Date.now() / 1000 - 3600, 'when they started is no sum');
  t.match((await all.scrape('application/openmetrics-text')).body, /^sluicegate_requests_total\{client="a"\} 3$/m);

  // It has counted more than anybody saw, and dies while it is asked.
  one.count('a', 10);
  one.door = new Promise(() => undefined);
  const asked = scrape();
  all.bury(one);
  const late = one as Counting;
  all.farewell(late, []);
  const second = await asked;
  t.same([requests(second, 'a'), requests(second, 'b')], [3, 5], 'what was seen of it, once');
  t.equal(second.value('sluicegate_streams_active', { client: 'a' }), 2, 'it has no streams');

  two.count('a', 1);
  all.farewell(two, await two.read('counts'));
  all.bury(two);
  const third = await scrape();
  t.same([requests(third, 'a'), requests(third, 'b')], [4, 5], 'who says farewell loses nothing');
  t.equal(third.value('sluicegate_streams_active'), undefined);
});

t.test('what is allowed to all is divided, to the last one', async (t) => {
  const text = `
server: { listen: "127.0.0.1:0", maxConnections: 11, maxHeldBodies: off }
upstreams: { u: { baseUrl: "http://127.0.0.1:1/v1", auth: none, maxConnections: 2 } }`;
  const loaded = loadConfig({ file: 'g.yaml', text }, {});
  if (!loaded.ok) throw new Error('not loaded');
  const shares = [0, 1, 2].map((seat) => shareOf(loaded.config, 3, seat));
  t.same(
    shares.map(({ server }) => server.maxConnections),
    [4, 4, 3],
  );
  t.same(
    shares.map(({ server }) => server.maxHeldBodiesBytes),
    [Infinity, Infinity, Infinity],
  );
  t.same(
    shares.map(({ upstreams }) => upstreams[0]?.maxConnections),
    [1, 1, 1],
    'one each at least',
  );
  t.same(shareOf(loaded.config, 1, 0), loaded.config);

  const chosen = await choosePorts(loaded.config);
  t.not(chosen.server.listen.port, 0);
  t.same(chosen.ops.listen, loaded.config.ops.listen, 'a port that is given stays');
  const socket = connect(chosen.server.listen.port, '127.0.0.1');
  const [refused] = (await once(socket, 'error')) as [NodeJS.ErrnoException];
  t.equal(refused.code, 'ECONNREFUSED', 'and it is free');
  const server = createServer().listen(chosen.server.listen.port, '127.0.0.1');
  await once(server, 'listening');
  server.close();
});

t.test('a worker that died is replaced at once, one that dies again and again ever later', async (t) => {
  const died = createPauses();
  const pauses = Array.from({ length: 12 }, (_, n) => died(n));
  t.same(
    pauses.map(({ forMs }) => forMs),
    [0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000, 10_000],
  );
  t.same(
    pauses.flatMap(({ isLoop }, at) => (isLoop ? [at] : [])),
    [4],
    'told once',
  );
  t.same(died(70_000), { forMs: 0, isLoop: false }, 'a minute later all is forgiven');
});

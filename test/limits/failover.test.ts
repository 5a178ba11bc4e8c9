// The shared store fails in every way it can: nobody waits for it, limits hold here meanwhile, and nothing is lost when it is back.
import { randomUUID } from 'node:crypto';
import { createServer } from 'node:tls';
import { Redis } from 'ioredis';
import t, { type Test } from 'tap';
import { createFailoverStore, type FailoverOptions } from '../../src/limits/failover.ts';
import { createMemoryStore } from '../../src/limits/memory.ts';
import { createRedisStore } from '../../src/limits/redis.ts';
import { type CallerLimits, type Running, StoreFailure } from '../../src/limits/store.ts';
import { startFaultRelay, type Toxic } from '../support/fault-relay.ts';
import { createRandom } from '../support/random.ts';
import { isRedisMissing, startRedis } from '../support/redis.ts';
import { findFreePort } from '../support/servers.ts';
import { createCertificate } from '../support/tls.ts';
import { createWaiting } from '../support/waiting.ts';

const NOTHING = { tokens: 0, nanoUsd: 0 };
const BUDGET = 1_000_000;
const limits: CallerLimits = {
  requestsPerMinute: 100_000,
  tokensPerMinute: 1_000_000,
  concurrentStreams: 10,
  budget: { nanoUsd: BUDGET, per: 'month' },
};
/** Bounds on time are generous: a tenth of a second is the promise, and machines that run tests are busy. */
const SOON_MS = 1_000;

type Change = readonly [isUp: boolean, code: string | undefined];

async function open(t: Test, url: string, options: Partial<FailoverOptions> & { isDenying?: boolean } = {}) {
  const changes: Change[] = [];
  const waiting = createWaiting(10_000);
  const startedAtMs = performance.now();
  const store = await createFailoverStore({
    shared: createRedisStore({ url }),
    local: options.isDenying ? undefined : createMemoryStore(),
    onChange(isUp, code) {
      changes.push([isUp, code]);
      waiting.changed();
    },
    probeMs: 50,
    ...options,
  });
  const startMs = performance.now() - startedAtMs;
  t.teardown(() => store.close());
  return {
    store,
    changes,
    startMs,
    /** Resolves with the last of so many changes. */
    change: (count: number) =>
      waiting.wait({ awaited: `${count} changes`, seen: () => JSON.stringify(changes), attempt: () => changes[count - 1] }),
    async admit(caller = 'ann'): Promise<{ refusedBy: string | undefined; tookMs: number; running: Running }> {
      const lease = randomUUID();
      const askedAtMs = performance.now();
      const { refusedBy } = await store.admit({ caller, limits, lease, reserve: NOTHING });
      return { refusedBy, tookMs: performance.now() - askedAtMs, running: { caller, limits, lease, spent: NOTHING } };
    },
    /** Resolves once all that waited has been told. */
    async told() {
      const endMs = performance.now() + 10_000;
      while (store.untold > 0 && performance.now() < endMs) await new Promise((resolve) => setTimeout(resolve, 1));
      t.equal(store.untold, 0, 'everything has been told');
    },
  };
}

const spend = (running: Running, nanoUsd: number): Running => ({ ...running, spent: { tokens: nanoUsd, nanoUsd } });

/** What the server itself has. */
async function readServer(url: string, caller = 'ann') {
  const shared = createRedisStore({ url });
  await shared.connected();
  const standings = (await shared.standings(new Map([[caller, limits]]))).get(caller);
  await shared.close();
  return { spent: BUDGET - (standings?.budget?.remaining ?? 0), slots: 10 - (standings?.streams?.remaining ?? 0) };
}

t.test('away at the start, it is missed by nobody, and found when it comes', { skip: isRedisMissing }, async (t) => {
  const redis = await startRedis(t);
  await redis.kill();
  const { store, change, admit, told, startMs } = await open(t, redis.url);
  t.ok(startMs < SOON_MS, `started in ${Math.round(startMs)} ms`);
  t.same(await change(1), [false, 'ECONNREFUSED']);
  t.equal(store.isUp, false);
  const local = await admit();
  t.equal(local.refusedBy, undefined);
  await redis.start();
  t.same(await change(2), [true, undefined]);
  t.equal(store.isUp, true);
  const shared = await admit();
  const renewal = store.renew([spend(local.running, 1), spend(shared.running, 1)]);
  store.settle(spend(local.running, 5));
  store.settle(spend(shared.running, 7));
  await renewal;
  await told();
  t.same(await readServer(redis.url), { spent: 7, slots: 0 }, 'what was admitted here is settled here');
  await redis.kill();
  await change(3);
  const standings = (await store.standings(new Map([['ann', limits]]))).get('ann');
  t.match(standings, { streams: { remaining: 10 }, budget: { remaining: BUDGET - 5 } }, 'and no renewal on its way brings it back');
});

t.test('denied is denied at once, and admitted again when it is back', { skip: isRedisMissing }, async (t) => {
  const redis = await startRedis(t);
  const { store, change, admit } = await open(t, redis.url, { isDenying: true });
  const one = await admit();
  await redis.kill();
  await change(1);
  const askedAtMs = performance.now();
  const refusals = await Promise.all(Array.from({ length: 100 }, () => admit().catch((error: Error) => error)));
  t.ok(refusals.every((refusal) => refusal instanceof StoreFailure));
  t.ok(performance.now() - askedAtMs < SOON_MS, 'a hundred refusals wait for nothing');
  t.same(await store.renew([one.running]), new Set());
  t.same(await store.standings(new Map([['ann', limits]])), new Map());
  store.settle(spend(one.running, 3));
  await redis.start();
  await change(2);
  t.equal((await admit()).refusedBy, undefined);
});

t.test('killed and back with nothing in it: streams go on, what they spent is told', { skip: isRedisMissing }, async (t) => {
  const redis = await startRedis(t);
  const { store, change, admit, told } = await open(t, redis.url);
  t.equal(store.isUp, true);
  const [one, two, three] = [await admit(), await admit(), await admit()];
  await store.renew([spend(one.running, 10), spend(two.running, 20), three.running]);
  store.free(three.running);
  await told();
  await redis.kill();
  const first = await admit();
  t.ok(first.tookMs < SOON_MS, `decided in ${first.tookMs.toFixed(1)} ms`);
  t.equal((await change(1))[0], false);
  const local = [first, ...(await Promise.all(Array.from({ length: 8 }, () => admit())))];
  t.equal(local.filter(({ refusedBy }) => refusedBy === undefined).length, 8, 'two still run of those that Redis admitted: ten in all');
  store.settle(spend(one.running, 15));
  store.free(local[0]!.running);
  t.equal((await admit()).refusedBy, undefined);
  t.equal((await admit()).refusedBy, undefined);
  t.equal((await admit()).refusedBy, 'streams');
  t.same(await store.renew([spend(two.running, BUDGET + 25)]), new Set(['ann']), 'a budget holds here');
  t.same(await store.renew([spend(two.running, 25)]), new Set());
  t.ok(store.untold >= 1, `${store.untold} to tell`);
  await redis.start();
  t.same(await change(2), [true, undefined]);
  await told();
  await store.standings(new Map([['ann', limits]]));
  t.same(
    await readServer(redis.url),
    { spent: 40, slots: 1 },
    'its memory is gone: leases are known again, by what they have spent in all',
  );
  store.settle(spend(two.running, 30));
  store.settle(spend(three.running, 1));
  await told();
  t.same(await readServer(redis.url), { spent: 46, slots: 0 });
  t.equal(store.lost, 0);
});

t.test(
  'frozen: the first wait a tenth of a second, the others not at all; thawed, each settlement has counted once',
  { skip: isRedisMissing },
  async (t) => {
    const redis = await startRedis(t);
    const { store, change, admit, told, changes } = await open(t, redis.url);
    const leases = await Promise.all(Array.from({ length: 6 }, () => admit()));
    await store.renew(leases.map(({ running }) => spend(running, 10)));
    redis.freeze();
    t.teardown(() => redis.thaw());
    for (const { running } of leases.slice(0, 3)) store.settle(spend(running, 100));
    const first = await Promise.all([admit(), admit(), admit('bob')]);
    for (const { tookMs } of first) t.ok(tookMs > 50 && tookMs < SOON_MS, `the first waited ${tookMs.toFixed(1)} ms`);
    t.same(await change(1), [false, 'TIMEOUT']);
    const laterMs: number[] = [];
    for (let times = 0; times < 200; times += 1) laterMs.push((await admit(`caller ${times}`)).tookMs);
    const medianMs = laterMs.sort((one, other) => one - other)[100] ?? 0;
    t.ok(medianMs < 5, `later ones waited ${medianMs.toFixed(2)} ms`);
    for (const { running } of leases.slice(3, 5)) store.settle(spend(running, 200));
    redis.thaw();
    t.same(await change(2), [true, undefined]);
    await told();
    await store.renew([spend(leases[5]!.running, 11)]);
    const { spent } = await readServer(redis.url);
    t.equal(spent, 3 * 100 + 2 * 200 + 11);
    t.equal(changes.length, 2);
  },
);

t.test('slow, it stays away for as long as it is slow', { skip: isRedisMissing }, async (t) => {
  const redis = await startRedis(t);
  const relay = await startFaultRelay(redis.port);
  t.teardown(() => relay.close());
  const { store, change, admit, changes } = await open(t, `redis://127.0.0.1:${relay.port}`);
  const quicken = relay.add({ type: 'latency', latencyMs: 250 });
  t.ok((await admit()).tookMs < SOON_MS);
  t.same(await change(1), [false, 'TIMEOUT']);
  // Its answers to probes come, late: three of them take some 900 ms.
  await new Promise((resolve) => setTimeout(resolve, 900));
  t.equal(changes.length, 1, 'it is not up and down by turns');
  t.equal(store.isUp, false);
  quicken();
  t.same(await change(2), [true, undefined]);
});

t.test('a connection that leads nowhere is given up', { skip: isRedisMissing }, async (t) => {
  const redis = await startRedis(t);
  const relay = await startFaultRelay(redis.port);
  t.teardown(() => relay.close());
  const { store, change, admit, told } = await open(t, `redis://127.0.0.1:${relay.port}`);
  const { running } = await admit();
  const before = relay.liveCount;
  const mend = relay.add({ type: 'down' });
  t.ok((await admit()).tookMs < SOON_MS);
  await change(1);
  store.settle(spend(running, 9));
  while (relay.liveCount <= before) await new Promise((resolve) => setTimeout(resolve, 20));
  mend();
  t.same(await change(2), [true, undefined]);
  await told();
  t.equal((await readServer(redis.url)).spent, 9);
});

t.test('a server that may only be read, or is out of memory, is as good as away', { skip: isRedisMissing }, async (t) => {
  const redis = await startRedis(t);
  const server = new Redis(redis.url);
  t.teardown(() => server.disconnect());
  const { store, change, admit, told, changes } = await open(t, redis.url);
  const { running } = await admit();
  const countConnections = async () => Number(/total_connections_received:(\d+)/.exec(await server.info('stats'))?.[1]);
  const connections = await countConnections();
  await server.replicaof('127.0.0.1', await findFreePort());
  t.equal((await admit()).refusedBy, undefined);
  t.same(await change(1), [false, 'READONLY']);
  store.settle(spend(running, 4));
  await server.replicaof('NO', 'ONE');
  await change(2);
  t.ok((await countConnections()) > connections, 'it was looked for anew, where its name leads by now');
  await told();
  t.equal((await readServer(redis.url)).spent, 4);
  await server.config('SET', 'maxmemory', '1');
  t.equal((await admit()).refusedBy, undefined);
  t.same(await change(3), [false, 'OOM']);
  await server.config('SET', 'maxmemory', '0');
  t.same(await change(4), [true, undefined]);
  t.equal(changes.length, 4);
});

t.test('passwords are used, and told to nobody', { skip: isRedisMissing }, async (t) => {
  const redis = await startRedis(t, ['--requirepass', 'right-secret']);
  const said: unknown[] = [];
  for (const method of ['log', 'warn', 'error'] as const) t.capture(console, method, (...words: unknown[]) => void said.push(words));
  const good = await open(t, `redis://:right-secret@127.0.0.1:${redis.port}/3`);
  t.equal(good.store.isUp, true);
  t.equal((await good.admit()).refusedBy, undefined);
  const wrong = await open(t, `redis://default:wrong-secret@127.0.0.1:${redis.port}/3`);
  t.same(await wrong.change(1), [false, 'WRONGPASS']);
  t.equal((await wrong.admit()).refusedBy, undefined);
  const missing = await open(t, redis.url, { isDenying: true });
  t.same(await missing.change(1), [false, 'NOAUTH']);
  const failure = await missing.admit().catch((error: unknown) => error);
  t.notMatch(JSON.stringify([said, String(failure), (failure as Error).stack, Object.entries(failure as Error)]), 'secret');
});

t.test('rediss:// asks for a certificate that can be trusted', async (t) => {
  const server = createServer(createCertificate(), (socket) => socket.on('error', () => undefined));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => server.close());
  const address = server.address();
  const { change } = await open(t, `rediss://127.0.0.1:${typeof address === 'object' ? address?.port : 0}`);
  t.same(await change(1), [false, 'DEPTH_ZERO_SELF_SIGNED_CERT']);
});

t.test('what waits for its return is bounded, and the oldest goes first', { skip: isRedisMissing }, async (t) => {
  const redis = await startRedis(t);
  const { store, change, admit, told } = await open(t, redis.url, { maxUntold: 3 });
  const leases = await Promise.all(Array.from({ length: 5 }, () => admit()));
  await redis.kill();
  await change(1);
  for (const [at, { running }] of leases.entries()) store.settle(spend(running, 10 ** at));
  t.same([store.isUp, store.untold, store.lost], [false, 3, 2]);
  await redis.start();
  await change(2);
  await told();
  t.equal((await readServer(redis.url)).spent, 11_100);
});

t.test('thousands of streams that end at one instant keep nobody waiting', { skip: isRedisMissing }, async (t) => {
  const redis = await startRedis(t);
  const { store, admit, told, changes } = await open(t, redis.url, { timeoutMs: 5_000 });
  const many = { ...limits, concurrentStreams: 5_000 };
  const running = Array.from({ length: 5_000 }, (_, at) => ({ caller: 'ann', limits: many, lease: `${at}`, spent: NOTHING }));
  for (let from = 0; from < running.length; from += 100) {
    await Promise.all(running.slice(from, from + 100).map((one) => store.admit({ ...one, reserve: NOTHING })));
  }
  t.same(await store.renew(running.map((one) => spend(one, 1))), new Set());
  for (const one of running) store.settle(spend(one, 2));
  const endedAtMs = performance.now();
  const { tookMs } = await admit('bob');
  await told();
  const tellingMs = performance.now() - endedAtMs;
  t.ok(tookMs < tellingMs / 4, `admitted in ${tookMs.toFixed(1)} ms, while telling took ${tellingMs.toFixed(1)} ms`);
  t.equal((await readServer(redis.url)).spent, 10_000);
  await store.close();
  t.same(changes, [], 'closing is no outage');
});

t.test('through outages at random each settlement counts once, and every slot comes back', { skip: isRedisMissing }, async (t) => {
  const redis = await startRedis(t);
  const relay = await startFaultRelay(redis.port);
  t.teardown(() => relay.close());
  const { store, changes, told, change } = await open(t, `redis://127.0.0.1:${relay.port}`, {
    isDenying: true,
    timeoutMs: 30,
    probeMs: 10,
  });
  const random = createRandom(20);
  const wide = { ...limits, concurrentStreams: 1_000 };
  let running: Running[] = [];
  let total = 0;
  for (let outage = 0; outage < 12; outage += 1) {
    const faults: Toxic[] = [
      { type: 'down' },
      { type: 'down', direction: 'down' },
      { type: 'reset_peer', timeoutMs: random(5) },
      { type: 'latency', latencyMs: 40 },
      { type: 'limit_data', bytes: 2_000 + random(8_000) },
    ];
    let mend = () => {};
    for (let at = 0; at < 60; at += 1) {
      if (at === 40) mend = relay.add(faults[outage % faults.length] as Toxic);
      if (at === 55) mend();
      const one = { caller: 'ann', limits: wide, lease: `${outage} ${at}`, spent: NOTHING };
      const isAdmitted = store.admit({ ...one, reserve: { tokens: 5, nanoUsd: 5 } }).then(
        ({ refusedBy }) => refusedBy === undefined && running.push(one),
        () => undefined,
      );
      if (random(3) > 0) await isAdmitted;
      running = running.map((other) => (random(3) === 0 ? spend(other, other.spent.nanoUsd + random(20)) : other));
      if (random(8) === 0) void store.renew(running);
      const ended = running.filter(() => random(10) === 0);
      running = running.filter((other) => !ended.includes(other));
      for (const other of ended) {
        total += other.spent.nanoUsd;
        if (random(2) === 0) store.free(other);
        store.settle(other);
      }
      await isAdmitted;
    }
    await change(changes.length + (store.isUp ? 0 : 1));
  }
  for (const one of running) {
    total += one.spent.nanoUsd;
    store.settle(one);
  }
  await told();
  const wentDown = changes.filter(([isUp]) => !isUp).length;
  t.ok(wentDown > 5, `${wentDown} outages were noticed`);
  t.match(await readServer(redis.url), { spent: total, slots: 0 }, `${total} were spent`);
});

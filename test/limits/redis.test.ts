// Limits in Redis: the same reckoning as in memory, atomic between replicas, whatever becomes of one of them.
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { Redis } from 'ioredis';
import t, { type Test } from 'tap';
import { createRedisStore, type RedisOptions } from '../../src/limits/redis.ts';
import type { CallerLimits } from '../../src/limits/store.ts';
import { createRandom } from '../support/random.ts';
import { isRedisMissing, startRedis } from '../support/redis.ts';
import { endOf } from './model.ts';
import { play } from './play.ts';
import type { Asked, Order, Report } from './replica.ts';

const none: CallerLimits = { requestsPerMinute: undefined, tokensPerMinute: undefined, concurrentStreams: undefined, budget: undefined };
const all = (limit: number): CallerLimits => ({
  requestsPerMinute: limit,
  tokensPerMinute: limit,
  concurrentStreams: limit,
  budget: { nanoUsd: limit, per: 'day' },
});

/** A connected store, closed with the test. */
async function open(t: Test, options: RedisOptions) {
  const store = createRedisStore(options);
  t.teardown(() => store.close());
  await store.connected();
  return store;
}

t.test('one server', { skip: isRedisMissing }, async (t) => {
  const { url } = await startRedis(t);
  const redis = new Redis(url);
  t.teardown(() => redis.disconnect());
  t.beforeEach(() => redis.flushall());
  let nowMs = Date.UTC(2026, 1, 23, 12);
  const store = await open(t, { url, now: () => nowMs });
  const standings = async (caller: string, limits: CallerLimits) => (await store.standings(new Map([[caller, limits]]))).get(caller);

  t.test('lives at random come out as the plain reckoning has them, and so as in memory', async (t) => {
    for (let seed = 101; seed <= 106; seed += 1) {
      await redis.flushall();
      const setClock = (ms: number) => {
        nowMs = ms;
      };
      const { fault } = await play(store, { seed, steps: 300, startMs: Date.UTC(2026, 1, 23, 12) + seed * 977_777, setClock });
      if (fault) t.same(fault.found, fault.wanted, `seed ${seed}:\n${fault.what}`);
      if (fault) return;
    }
    t.pass('6 lives of 300 steps');
  });

  t.test('periods are those of the calendar in UTC', async (t) => {
    const random = createRandom(8);
    for (let at = 0; at < 100; at += 1) {
      nowMs = random(4_000_000_000) * 1_000 + random(1_000);
      for (const per of ['hour', 'day', 'week', 'month'] as const) {
        const limits = { ...none, budget: { nanoUsd: 10, per } };
        const { standings } = await store.admit({ caller: `${at}`, limits, lease: `${at} ${per}`, reserve: { tokens: 0, nanoUsd: 1 } });
        const endMs = nowMs + (standings.budget?.resetMs ?? 0);
        if (endMs !== endOf(per, nowMs)) t.fail(`${per} of ${new Date(nowMs).toISOString()} ends ${new Date(endMs).toISOString()}`);
      }
    }
    t.pass('400 periods');
  });

  t.test('a settlement told twice counts once, and one of a lease that is not known counts in full', async (t) => {
    const limits = all(9e15);
    const spent = { tokens: 40, nanoUsd: 9e15 - 1 };
    await store.admit({ caller: 'ann', limits, lease: 'a', reserve: { tokens: 10, nanoUsd: 10 } });
    for (let times = 0; times < 3; times += 1) await store.settle({ caller: 'ann', limits, lease: 'a', spent });
    await store.renew([{ caller: 'ann', limits, lease: 'a', spent: { tokens: 50, nanoUsd: 50 } }]);
    t.match(await standings('ann', limits), { tokens: { remaining: 9e15 - 40 }, streams: { remaining: 9e15 }, budget: { remaining: 1 } });
    for (let times = 0; times < 2; times += 1) await store.settle({ caller: 'bob', limits, lease: 'b', spent });
    t.match(await standings('bob', limits), { tokens: { remaining: 9e15 - 40 }, streams: { remaining: 9e15 }, budget: { remaining: 1 } });
    t.same(await store.renew([{ caller: 'cy', limits: all(5), lease: 'c', spent: { tokens: 1, nanoUsd: 5 } }]), new Set(['cy']));
    t.match(await standings('cy', all(5)), { tokens: { remaining: 4 }, streams: { remaining: 4 }, budget: { remaining: 0 } });
  });

  t.test('money is given back to the period that it was debited to', async (t) => {
    const limits = { ...none, budget: { nanoUsd: 1_000, per: 'hour' as const } };
    const told = (lease: string, nanoUsd: number) => ({ caller: 'ann', limits, lease, spent: { tokens: 0, nanoUsd } });
    for (const lease of ['a', 'b']) await store.admit({ caller: 'ann', limits, lease, reserve: { tokens: 0, nanoUsd: 0 } });
    await store.renew([told('a', 100)]);
    nowMs += 3_600_000;
    await store.renew([told('a', 150), told('b', 70)]);
    await store.settle(told('a', 80));
    t.equal((await standings('ann', limits))?.budget?.remaining, 930);
  });

  t.test('a clock that is set back stands still for a minute at the most', async (t) => {
    const limits = all(100);
    const admit = (lease: string) => store.admit({ caller: 'ann', limits, lease, reserve: { tokens: 1, nanoUsd: 1 } });
    await admit('a');
    nowMs -= 10_000;
    t.equal((await admit('b')).standings.requests?.resetMs, 60_000);
    t.match((await admit('c')).standings, { requests: { remaining: 97 }, tokens: { remaining: 97 }, streams: { remaining: 97 } });
    nowMs -= 3_600_000;
    t.match((await admit('d')).standings, { requests: { remaining: 99 }, tokens: { remaining: 99 }, streams: { remaining: 99 } });
    nowMs += 60_000;
    t.match(await standings('ann', limits), { requests: { remaining: 100 }, tokens: { remaining: 100 }, streams: { remaining: 100 } });
  });

  t.test('a server that evicts or forgets leaves no slot and no reservation taken', async (t) => {
    const limits = all(10);
    await store.admit({ caller: 'ann', limits, lease: 'a', reserve: { tokens: 5, nanoUsd: 5 } });
    await redis.del('sluicegate:{ann}:lease:a');
    nowMs += 6_000;
    t.match(await standings('ann', limits), { tokens: { remaining: 10 }, streams: { remaining: 10 }, budget: { remaining: 10 } });
    await redis.script('FLUSH');
    t.match(await standings('ann', limits), { requests: { remaining: 9 } }, 'scripts are sent again');
  });

  t.test('every key is its caller’s, and none stays for ever', async (t) => {
    const limits = { ...all(100), budget: { nanoUsd: 100, per: 'month' as const } };
    for (const caller of ['ann', 'network 10.0.0.1']) {
      for (const lease of ['a', 'b']) await store.admit({ caller, limits, lease, reserve: { tokens: 5, nanoUsd: 5 } });
      await store.renew([{ caller, limits, lease: 'b', spent: { tokens: 2, nanoUsd: 2 } }]);
      await store.free({ caller, limits, lease: 'b' });
      await store.settle({ caller, limits, lease: 'a', spent: { tokens: 3, nanoUsd: 3 } });
    }
    await store.probe();
    const keys = (await redis.keys('*')).sort();
    const names = ['lease:a', 'lease:b', 'live', 'log', 'steps', 'sums'];
    const wanted = ['ann', 'network 10.0.0.1'].flatMap((caller) => names.map((name) => `sluicegate:{${caller}}:${name}`));
    t.same(keys, ['sluicegate:probe', ...wanted]);
    for (const key of keys) {
      const ttlMs = await redis.pttl(key);
      t.ok(ttlMs > 0 && ttlMs <= 32 * 86_400_000, `${key} goes in ${ttlMs} ms`);
    }
  });

  t.test(
    'commands: one to admit, one to settle, one script for a hundred leases of a caller; none where there is nothing to tell',
    async (t) => {
      const count = async () => Number(/cmdstat_evalsha:calls=(\d+)/.exec(await redis.info('commandstats'))?.[1] ?? 0);
      const limits = all(1000);
      const told = async (what: () => Promise<unknown>) => {
        const before = await count();
        await what();
        return (await count()) - before;
      };
      const leases = Array.from({ length: 250 }, (_, at) => ({
        caller: 'ann',
        limits: { ...limits },
        lease: `${at}`,
        spent: { tokens: 0, nanoUsd: 0 },
      }));
      const [one] = leases as [(typeof leases)[number]];
      await store.admit({ ...one, reserve: { tokens: 0, nanoUsd: 0 } });
      await Promise.all([store.renew(leases), store.free(one), store.settle(one), standings('ann', limits)]);
      t.equal(await told(() => store.admit({ ...one, lease: 'x', reserve: { tokens: 0, nanoUsd: 0 } })), 1);
      t.equal(await told(() => store.renew(leases)), 3);
      t.equal(await told(() => store.settle(one)), 1);
      const requestsOnly = { ...one, limits: { ...none, requestsPerMinute: 5 } };
      t.equal(
        await told(async () => void [await store.renew([requestsOnly]), await store.free(requestsOnly), await store.settle(requestsOnly)]),
        0,
      );
    },
  );
});

/** Replicas in processes of their own. */
async function startReplica(t: Test, settings: readonly string[]) {
  const child = fork(fileURLToPath(new URL('./replica.ts', import.meta.url)), settings, { execArgv: [] });
  t.teardown(() => child.kill('SIGKILL'));
  const reports = new Map<number, (asked: readonly Asked[]) => void>();
  let id = 0;
  const answer = () => new Promise<readonly Asked[]>((resolve) => void reports.set(id, resolve));
  const isReady = answer();
  child.on('message', (report: Report) => reports.get(report.id)?.(report.asked));
  await isReady;
  return {
    obey(order: Omit<Order, 'id'>) {
      id += 1;
      child.send({ ...order, id });
      return answer();
    },
    async kill() {
      child.kill('SIGKILL');
      await once(child, 'exit');
    },
  };
}

t.test('three replicas', { skip: isRedisMissing }, async (t) => {
  const { url } = await startRedis(t);
  const windowMs = 1_000;
  const leaseMs = 1_500;
  const settings = [url, String(windowMs), String(leaseMs)];
  const replicas = await Promise.all([startReplica(t, settings), startReplica(t, settings), startReplica(t, settings)]);
  const [first, second, third] = replicas as [(typeof replicas)[number], (typeof replicas)[number], (typeof replicas)[number]];

  t.test('at full load a window never holds more than the limit, and nobody is refused while it holds less', async (t) => {
    const limit = 100;
    const order = { kind: 'load', caller: 'load', limits: { ...none, requestsPerMinute: limit }, forMs: 1_700 } as const;
    const asked = (await Promise.all(replicas.map(({ obey }) => obey(order)))).flat();
    const admitted = asked.filter(([, , isAdmitted]) => isAdmitted);
    // A request was decided between its sending and its answer; the processes' clocks and Redis's agree within this, also where
    // the machine's is being put right.
    const slackMs = 10;
    const sent = admitted.map(([sentMs]) => sentMs).sort((one, other) => one - other);
    const answered = admitted.map(([, answeredMs]) => answeredMs).sort((one, other) => one - other);
    const before = (times: readonly number[], ms: number) => times.filter((time) => time < ms).length;
    const most = Math.max(...sent.map((ms) => before(answered, ms + windowMs - slackMs) - before(sent, ms)));
    t.ok(most <= limit, `${most} of ${admitted.length} were surely admitted within one window`);
    const refused = asked.filter(([, , isAdmitted]) => !isAdmitted);
    const least = Math.min(
      ...refused
        .filter((_, at) => at % 7 === 0)
        .map(([sentMs, answeredMs]) => before(sent, answeredMs + slackMs) - before(answered, sentMs - windowMs - slackMs)),
    );
    t.ok(least >= limit, `${refused.length} were refused, none with less than ${least} in its window`);
    t.ok(admitted.length >= 2 * limit && refused.length > admitted.length, `${admitted.length} admitted`);
  });

  t.test('one is killed: its slots and reservations come back with its leases, what it had spent stays', async (t) => {
    const limits = { ...none, tokensPerMinute: 1e6, concurrentStreams: 50, budget: { nanoUsd: 1e9, per: 'month' as const } };
    const renewed = { tokens: 10, nanoUsd: 100 };
    const settled = { tokens: 25, nanoUsd: 250 };
    const watcher = await open(t, { url, windowMs: 60_000, leaseMs });
    const stand = async () => (await watcher.standings(new Map([['kill', limits]]))).get('kill');
    const hold = (count: number) => ({ kind: 'hold', caller: 'kill', limits, count, amount: renewed }) as const;
    // First the one that dies, or the others might take all.
    const asked = [await first.obey(hold(20)), ...(await Promise.all([second.obey(hold(40)), third.obey(hold(40))]))];
    const [a = 0, b = 0, c = 0] = asked.map((one) => one.filter(([, , isAdmitted]) => isAdmitted).length);
    t.equal(a + b + c, 50, `${a}, ${b} and ${c} of ${asked.flat().length} that asked`);
    await second.obey({ kind: 'settle', caller: 'kill', limits, amount: settled });
    t.match(await stand(), {
      streams: { remaining: 50 - a - c },
      budget: { remaining: 1e9 - (a + c) * (3 * renewed.nanoUsd) - b * settled.nanoUsd },
    });
    await first.kill();
    const killedAtMs = performance.now();
    let standings = await stand();
    while (standings?.streams?.remaining !== 50 - c && performance.now() - killedAtMs < 10 * leaseMs) standings = await stand();
    const tookMs = performance.now() - killedAtMs;
    t.ok(tookMs > leaseMs / 2, `came back after ${Math.round(tookMs)} ms, with leases of ${leaseMs} ms`);
    t.match(standings, {
      streams: { remaining: 50 - c },
      budget: { remaining: 1e9 - a * renewed.nanoUsd - b * settled.nanoUsd - c * (3 * renewed.nanoUsd) },
    });
    await third.obey({ kind: 'settle', caller: 'kill', limits, amount: settled });
    t.match(await stand(), { streams: { remaining: 50 }, budget: { remaining: 1e9 - a * renewed.nanoUsd - (b + c) * settled.nanoUsd } });
  });
});

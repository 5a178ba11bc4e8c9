// Limits in memory: what each promises, sentence by sentence, and then lives at random against a slow and plain reckoning.
import t from 'tap';
import { createMemoryStore, type MemoryOptions } from '../../src/limits/memory.ts';
import type { CallerLimits } from '../../src/limits/store.ts';
import { periodOf } from '../../src/limits/windows.ts';
import { createRandom } from '../support/random.ts';
import { endOf } from './model.ts';
import { callers, play } from './play.ts';

const none: CallerLimits = { requestsPerMinute: undefined, tokensPerMinute: undefined, concurrentStreams: undefined, budget: undefined };
const MONDAY_MS = Date.UTC(2026, 1, 23, 12);

/** A store whose clocks are the test's, and callers that are quickly written. */
function set(options: MemoryOptions = {}) {
  const clock = { nowMs: 0, wallMs: MONDAY_MS };
  const store = createMemoryStore({ now: () => clock.nowMs, wallNow: () => clock.wallMs, ...options });
  let leases = 0;
  return {
    store,
    clock,
    pass(ms: number) {
      clock.nowMs += ms;
      clock.wallMs += ms;
    },
    async admit(limits: Partial<CallerLimits>, reserve = { tokens: 0, nanoUsd: 0 }, caller = 'ann') {
      leases += 1;
      const admission = { caller, limits: { ...none, ...limits }, lease: `lease-${leases}`, reserve };
      const verdict = await store.admit(admission);
      const running = (tokens = 0, nanoUsd = 0) => ({ ...admission, spent: { tokens, nanoUsd } });
      return { ...verdict, running };
    },
  };
}

t.test('requests: never one more in any minute, never one refused below', async (t) => {
  const { admit, pass } = set();
  const limits = { requestsPerMinute: 3 };
  t.same((await admit(limits)).standings, { requests: { limit: 3, remaining: 2, resetMs: 60_000 } });
  pass(10_000);
  await admit(limits);
  pass(10_000);
  t.equal((await admit(limits)).standings.requests?.remaining, 0);
  const refused = await admit(limits);
  t.match(refused, { refusedBy: 'requests', retryAfterMs: 40_000, standings: { requests: { remaining: 0, resetMs: 60_000 } } });
  pass(39_999);
  t.match(await admit(limits), { refusedBy: 'requests', retryAfterMs: 1 });
  pass(1);
  t.match(await admit(limits), { refusedBy: undefined, retryAfterMs: 0 }, 'the refused ones counted nothing');
  t.match(await admit(limits), { refusedBy: 'requests', retryAfterMs: 10_000 }, 'the window slides, it does not jump');
});

t.test('a limit that was lowered holds for what is counted already', async (t) => {
  const { admit, pass } = set();
  for (let at = 0; at < 5; at += 1, pass(1_000)) await admit({ requestsPerMinute: 5 });
  t.match(await admit({ requestsPerMinute: 2 }), {
    refusedBy: 'requests',
    retryAfterMs: 58_000,
    standings: { requests: { remaining: 0 } },
  });
  t.match(await admit({ requestsPerMinute: 6 }), { refusedBy: undefined });
});

t.test('tokens: what flowed within a minute and what is reserved', async (t) => {
  const { admit, store, pass } = set();
  const limits = { tokensPerMinute: 100 };
  const one = await admit(limits, { tokens: 60, nanoUsd: 0 });
  t.same(one.standings.tokens, { limit: 100, remaining: 40, resetMs: 60_000 });
  const other = await admit(limits, { tokens: 60, nanoUsd: 0 });
  t.equal(other.refusedBy, undefined, 'below the limit nobody is refused, however much it reserves');
  t.match(await admit(limits), { refusedBy: 'tokens', retryAfterMs: 1_000 }, 'when a reservation ends cannot be foretold');
  pass(2_000);
  await store.renew([one.running(30), other.running(70)]);
  t.equal((await admit(limits)).standings.tokens?.remaining, 0, '30 and 30 reserved, and 70');
  store.settle(one.running(10));
  t.equal((await admit(limits)).standings.tokens?.remaining, 20, 'given back: 10 and 70');
  pass(500);
  store.settle(other.running(90));
  t.match(await admit(limits), { refusedBy: 'tokens', retryAfterMs: 59_500, standings: { tokens: { resetMs: 60_000 } } });
  pass(59_500);
  t.equal((await admit(limits)).standings.tokens?.remaining, 80, 'each goes a minute after it flowed');
  pass(500);
  t.same((await admit(limits)).standings.tokens, { limit: 100, remaining: 100, resetMs: 0 });
});

t.test('a settlement below what was debited takes the newest back, and never more than there was', async (t) => {
  const { admit, store, pass } = set();
  const limits = { tokensPerMinute: 1000 };
  const one = await admit(limits);
  for (const [at, tokens] of [100, 300, 600].entries()) {
    pass(at === 0 ? 0 : 5_000);
    await store.renew([one.running(tokens)]);
  }
  pass(50_000);
  store.settle(one.running(150));
  t.equal((await admit(limits)).standings.tokens?.remaining, 950, 'the oldest had gone already: 50 are left of the second');
  pass(5_000);
  t.equal((await admit(limits)).standings.tokens?.remaining, 1000);
  const late = await admit(limits);
  await store.renew([late.running(100)]);
  pass(5_500);
  await store.renew([late.running(100)]);
  pass(55_000);
  await store.renew([late.running(100)]);
  store.settle(late.running(0));
  t.equal((await admit(limits)).standings.tokens?.remaining, 1000);
});

t.test('tokens are counted for a minute, or up to half a second longer', async (t) => {
  const { admit, store, pass } = set();
  pass(1);
  const one = await admit({ tokensPerMinute: 10 });
  store.settle(one.running(10));
  t.match(await admit({ tokensPerMinute: 10 }), { refusedBy: 'tokens', retryAfterMs: 60_499 });
});

t.test('streams: a slot is freed, settled, or comes back when nobody renews it', async (t) => {
  const { admit, store, pass } = set();
  const limits = { concurrentStreams: 2 };
  const one = await admit(limits);
  const other = await admit(limits);
  t.same(other.standings, { streams: { limit: 2, remaining: 0, resetMs: 1_000 } });
  t.match(await admit(limits), { refusedBy: 'streams', retryAfterMs: 1_000 });
  store.free(one.running());
  store.free(one.running());
  const third = await admit(limits);
  t.equal(third.refusedBy, undefined);
  store.settle(one.running());
  t.equal((await admit(limits)).refusedBy, 'streams', 'one that was freed is not freed again by its settlement');
  pass(3_000);
  await store.renew([other.running()]);
  pass(2_999);
  t.equal((await admit(limits)).refusedBy, 'streams');
  pass(1);
  t.equal((await admit(limits)).refusedBy, undefined, 'the third has expired');
  t.equal((await admit(limits)).refusedBy, 'streams');
  await store.renew([third.running()]);
  t.equal((await store.standings(new Map([['ann', { ...none, ...limits }]]))).get('ann')?.streams?.remaining, 0, 'late, but alive');
  store.settle(other.running());
  t.equal((await admit(limits)).refusedBy, 'streams', 'two of three still run');
});

t.test('a budget is spent within a period of the calendar', async (t) => {
  const { admit, store, pass, clock } = set();
  const limits = { budget: { nanoUsd: 9e15, per: 'day' as const } };
  const one = await admit(limits, { tokens: 0, nanoUsd: 9e15 });
  t.match(await admit(limits), { refusedBy: 'budget', retryAfterMs: 1_000 }, 'reserved, not spent');
  t.same(await store.renew([one.running(0, 9e15 - 1)]), new Set());
  t.same((await admit(limits)).refusedBy, 'budget', 'one is still reserved');
  t.same(await store.renew([one.running(0, 9e15)]), new Set(['ann']));
  t.match(await admit(limits), { refusedBy: 'budget', retryAfterMs: 12 * 3_600_000 });
  store.settle(one.running(0, 9e15 - 5));
  t.match((await admit(limits)).standings.budget, { limit: 9e15, remaining: 5, resetMs: 12 * 3_600_000 });
  const over = await admit(limits);
  store.settle(over.running(0, 1_000));
  t.equal((await admit(limits)).refusedBy, 'budget');
  pass(12 * 3_600_000);
  const next = await admit(limits);
  t.same(next.standings.budget, { limit: 9e15, remaining: 9e15, resetMs: 0 }, 'a new day');
  await store.renew([next.running(0, 100)]);
  pass(24 * 3_600_000 - 1_000);
  await store.renew([next.running(0, 150)]);
  pass(1_000);
  await store.renew([next.running(0, 170)]);
  t.equal((await admit(limits)).standings.budget?.remaining, 9e15 - 20, 'money belongs to the day on which it is debited');
  const another = await admit(limits);
  store.settle(another.running(0, 70));
  store.settle(next.running(0, 120));
  t.equal((await admit(limits)).standings.budget?.remaining, 9e15 - 70, 'and is given back to that one');
  clock.wallMs -= 7 * 24 * 3_600_000;
  t.equal((await admit(limits)).refusedBy, undefined, 'a clock that is set back does no harm');
});

t.test('periods are those of the calendar in UTC', async (t) => {
  const random = createRandom(7);
  for (let at = 0; at < 300; at += 1) {
    const wallMs = random(4_000_000_000) * 1_000 + random(1_000);
    for (const per of ['hour', 'day', 'week', 'month'] as const) {
      const { startMs, endMs } = periodOf(per, wallMs);
      if (startMs > wallMs || endMs !== endOf(per, wallMs) || periodOf(per, startMs - 1).endMs !== startMs) {
        t.fail(`${per} of ${new Date(wallMs).toISOString()}: ${new Date(startMs).toISOString()} to ${new Date(endMs).toISOString()}`);
      }
    }
  }
  t.same(periodOf('week', Date.UTC(2026, 0, 1)), { startMs: Date.UTC(2025, 11, 29), endMs: Date.UTC(2026, 0, 5) }, 'ISO week 1 of 2026');
});

t.test('of several limits the weightiest refuses, and the longest wait is told', async (t) => {
  const { admit, store, pass } = set();
  const limits = { requestsPerMinute: 1, tokensPerMinute: 1, concurrentStreams: 1, budget: { nanoUsd: 1, per: 'month' as const } };
  const one = await admit(limits);
  store.settle(one.running(1, 1));
  pass(1_000);
  t.match(await admit(limits), { refusedBy: 'budget', retryAfterMs: Date.UTC(2026, 2, 1) - MONDAY_MS - 1_000 });
  t.match(await admit({ ...limits, budget: undefined }), { refusedBy: 'requests', retryAfterMs: 59_000 });
});

t.test('who has nothing left is forgotten', async (t) => {
  const { admit, store, pass } = set();
  for (let at = 0; at < 10; at += 1) await admit({ requestsPerMinute: 1 }, undefined, `caller ${at}`);
  const one = await admit({ concurrentStreams: 1 }, undefined, 'short');
  t.equal(store.size, 11);
  store.settle(one.running());
  t.equal(store.size, 10, 'at once, where its last lease ends');
  pass(60_000);
  for (let at = 0; at < 6; at += 1) await admit({ requestsPerMinute: 10 }, undefined, 'other');
  t.equal(store.size, 1, 'else soon');
});

t.test('where there is no room, those with nothing left go first, then the one idle longest', async (t) => {
  const { admit, store, pass } = set({ maxCallers: 3 });
  const daily = { budget: { nanoUsd: 1, per: 'day' as const } };
  const spend = async (caller: string) => store.settle((await admit(daily, undefined, caller)).running(0, 1));
  const isKnown = async (caller: string) =>
    (await store.standings(new Map([[caller, { ...none, ...daily }]]))).get(caller)?.budget?.remaining === 0;
  await spend('first');
  await admit({ requestsPerMinute: 1 }, undefined, 'brief');
  await spend('second');
  pass(60_000);
  await spend('third');
  t.same([store.size, await isKnown('first'), await isKnown('second'), await isKnown('third')], [3, true, true, true]);
  t.equal((await admit(daily, undefined, 'first')).refusedBy, 'budget', 'a refusal is a sign of life');
  await spend('fourth');
  t.same([store.size, await isKnown('first'), await isKnown('second'), await isKnown('fourth')], [3, true, false, true]);
});

t.test('a lease that is not known is debited in full', async (t) => {
  const { admit, store } = set();
  const limits = { ...none, tokensPerMinute: 100, concurrentStreams: 1 };
  await store.renew([{ caller: 'ann', limits, lease: 'unknown', spent: { tokens: 30, nanoUsd: 0 } }]);
  t.match(await admit(limits), { refusedBy: 'streams', standings: { tokens: { remaining: 70 } } });
});

t.test('lives at random come out as the plain reckoning has them', async (t) => {
  for (let seed = 1; seed <= 30; seed += 1) {
    let nowMs = 0;
    const store = createMemoryStore({ now: () => nowMs, wallNow: () => nowMs, keepMs: 30 * 86_400_000 });
    const setClock = (ms: number) => {
      nowMs = ms;
    };
    const { model, fault } = await play(store, { seed, steps: 400, startMs: MONDAY_MS + seed * 977_777, setClock });
    if (fault) t.same(fault.found, fault.wanted, `seed ${seed}:\n${fault.what}`);
    if (fault) return;
    for (const [caller, { requestsPerMinute }] of callers) {
      const times = model.admitted(caller);
      if (requestsPerMinute === undefined) continue;
      const tooMany = times.findIndex((time, at) => time - (times[at - requestsPerMinute] ?? Number.NEGATIVE_INFINITY) < 60_000);
      if (tooMany !== -1) t.fail(`seed ${seed}: ${caller} was admitted once too often`);
    }
  }
  t.pass('30 lives of 400 steps');
});

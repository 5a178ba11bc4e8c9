// Random lives of callers: admissions, renewals, settlements, crashes and jumps of time, the same for every store from the same seed.
import type { CallerLimits, LimitStore, Running, Standings, Verdict } from '../../src/limits/store.ts';
import { createRandom } from '../support/random.ts';
import { createModel, LEASE_MS, type Model, WINDOW_MS } from './model.ts';

/** What a store under test is: its clock is the play's. */
export interface Player {
  admit: LimitStore['admit'];
  renew: LimitStore['renew'];
  free(running: Running): unknown;
  settle(running: Running): unknown;
  standings: LimitStore['standings'];
}

export interface Step {
  readonly what: string;
  readonly wanted: unknown;
  readonly found: unknown;
}

export interface Play {
  readonly seed: number;
  readonly steps: number;
  readonly startMs: number;
  /** Sets the store's clock. */
  setClock(ms: number): void;
}

const none: CallerLimits = { requestsPerMinute: undefined, tokensPerMinute: undefined, concurrentStreams: undefined, budget: undefined };
export const callers: ReadonlyMap<string, CallerLimits> = new Map<string, CallerLimits>([
  ['requests', { ...none, requestsPerMinute: 7 }],
  ['tokens', { ...none, tokensPerMinute: 1000 }],
  ['streams', { ...none, concurrentStreams: 3 }],
  ['hour', { ...none, budget: { nanoUsd: 50_000_000_000_000, per: 'hour' } }],
  ['month', { ...none, budget: { nanoUsd: 100_000_000_000_000, per: 'month' } }],
  ['all', { requestsPerMinute: 20, tokensPerMinute: 3000, concurrentStreams: 5, budget: { nanoUsd: 2_000_000_000, per: 'day' } }],
  ['week', { requestsPerMinute: 9, tokensPerMinute: 500, concurrentStreams: 4, budget: { nanoUsd: 1_000, per: 'week' } }],
]);

/** Plays; returns the first step at which the store and the model disagree, with what came before; undefined where there is none. */
export async function play(player: Player, { seed, steps, startMs, setClock }: Play): Promise<{ model: Model; fault: Step | undefined }> {
  const random = createRandom(seed);
  let nowMs = startMs;
  const model = createModel(() => nowMs);
  let running: Running[] = [];
  const history: string[] = [];

  const pass = (ms: number) => {
    nowMs += ms;
    setClock(nowMs);
  };
  const pick = <T>(all: readonly T[]): T => all[random(all.length)] as T;
  /** Money of a caller comes in pieces of about a tenth of its budget. */
  const moneyOf = ({ budget }: CallerLimits) => random(Math.max(2, Math.floor((budget?.nanoUsd ?? 100) / 10)));
  const grow = (one: Running): Running => ({
    ...one,
    spent: { tokens: one.spent.tokens + random(150), nanoUsd: one.spent.nanoUsd + moneyOf(one.limits) },
  });

  setClock(nowMs);
  for (let at = 0; at < steps; at += 1) {
    const dice = random(100);
    let what = '';
    let wanted: unknown;
    let found: unknown;
    if (dice < 35) {
      const [caller, limits] = pick([...callers]);
      const lease = `${seed}-${at}`;
      const admission = { caller, limits, lease, reserve: { tokens: random(200), nanoUsd: moneyOf(limits) } };
      what = `admit ${caller} ${JSON.stringify(admission.reserve)}`;
      const verdict: Verdict = model.admit(admission);
      wanted = verdict;
      found = await player.admit(admission);
      if (verdict.refusedBy === undefined) running.push({ caller, limits, lease, spent: { tokens: 0, nanoUsd: 0 } });
    } else if (dice < 55 && running.length > 0) {
      running = running.map((one) => (random(2) === 0 ? grow(one) : one));
      const some = running.filter(() => random(4) > 0);
      what = `renew ${some.map(({ lease }) => lease)}`;
      wanted = model.renew(some);
      found = await player.renew(some);
    } else if (dice < 75 && running.length > 0) {
      const one = pick(running);
      running = running.filter((other) => other !== one);
      // Now and then the meter ends below what flowed.
      const isLess = random(3) === 0;
      const settled = isLess
        ? { ...one, spent: { tokens: random(one.spent.tokens + 1), nanoUsd: random(2) * one.spent.nanoUsd } }
        : grow(one);
      what = `settle ${one.lease} ${JSON.stringify(settled.spent)}`;
      model.settle(settled);
      await player.settle(settled);
    } else if (dice < 79 && running.length > 0) {
      const one = pick(running);
      what = `free ${one.lease}`;
      model.free(one);
      await player.free(one);
    } else if (dice < 80) {
      what = 'crash';
      running = running.filter(() => random(2) === 0);
    } else if (dice < 97) {
      pass(random(3) * random(1500));
    } else if (dice < 99) {
      pass(pick([LEASE_MS - 1, LEASE_MS, WINDOW_MS / 2, WINDOW_MS - 1, WINDOW_MS, 30 * WINDOW_MS]));
    } else {
      // A lease is not remembered for ever: what ran before so long a pause is never heard of again.
      running = [];
      pass(3_600_001 + random(40) * random(86_400_000));
    }
    if (what === '') what = `pass ${nowMs}`;
    if (wanted === undefined) {
      const [caller, limits] = pick([...callers]);
      wanted = model.standings(caller, limits);
      found = (await player.standings(new Map([[caller, limits]]))).get(caller) as Standings;
      what += `, then ${caller}`;
    }
    history.push(`${new Date(nowMs).toISOString()} ${what}`);
    if (!isSame(wanted, found)) return { model, fault: { what: history.slice(-12).join('\n'), wanted, found } };
  }
  // All that runs has crashed: what was spent is spent, and the rest comes back with the leases.
  pass(LEASE_MS);
  for (const [caller, limits] of callers) {
    const wanted = model.standings(caller, limits);
    const found = (await player.standings(new Map([[caller, limits]]))).get(caller);
    if (!isSame(wanted, found)) return { model, fault: { what: `${caller} after the end`, wanted, found } };
  }
  return { model, fault: undefined };
}

function isSame(one: unknown, other: unknown): boolean {
  const write = (value: unknown) => JSON.stringify(value, (_, inner) => (inner instanceof Set ? [...inner].sort() : inner));
  return write(one) === write(other);
}

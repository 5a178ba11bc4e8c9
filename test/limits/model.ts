// The reckoning of limits, slow and plain: everything that ever happened is kept, and each question is answered by going through it.
import type { Admission, BudgetPeriod, CallerLimits, LimitName, Running, Standings, Verdict } from '../../src/limits/store.ts';

export const WINDOW_MS = 60_000;
export const LEASE_MS = 6_000;
const STEP_MS = 500;

interface Debit {
  readonly atMs: number;
  tokens: number;
  nanoUsd: number;
}

interface Lease {
  readonly admission: Admission;
  aliveUntilMs: number;
  hasSlot: boolean;
  spent: { tokens: number; nanoUsd: number };
  isSettled: boolean;
  readonly debits: Debit[];
}

export interface Model {
  admit(admission: Admission): Verdict;
  renew(running: readonly Running[]): ReadonlySet<string>;
  free(running: Running): void;
  settle(running: Running): void;
  standings(caller: string, limits: CallerLimits): Standings;
  /** Times of admission of all callers' requests. */
  admitted(caller: string): number[];
  /** What all settled leases of a caller have spent in the period that holds now. */
  spentNow(caller: string, per: BudgetPeriod): number;
}

/** @param now calendar milliseconds, which here are the monotonic ones too */
export function createModel(now: () => number): Model {
  const admissions: { caller: string; atMs: number }[] = [];
  const leases = new Map<string, Lease>();

  const leasesOf = (caller: string) => [...leases.values()].filter(({ admission }) => admission.caller === caller);

  /** All that counts against a caller at a moment. */
  function used(caller: string, { budget }: CallerLimits, atMs: number) {
    const live = leasesOf(caller).filter((lease) => !lease.isSettled && lease.aliveUntilMs > atMs);
    const debits = leasesOf(caller).flatMap((lease) => lease.debits);
    const counted = debits.filter((debit) => debit.tokens > 0 && stampOf(debit.atMs) > atMs - WINDOW_MS);
    const times = admissions.filter((one) => one.caller === caller && one.atMs > atMs - WINDOW_MS).map((one) => one.atMs);
    const heldTokens = sum(live.map(({ admission, spent }) => Math.max(0, admission.reserve.tokens - spent.tokens)));
    const heldNanoUsd = sum(live.map(({ admission, spent }) => Math.max(0, admission.reserve.nanoUsd - spent.nanoUsd)));
    const inPeriod = debits.filter((debit) => budget && nameOf(budget.per, debit.atMs) === nameOf(budget.per, atMs));
    return {
      times,
      counted,
      heldTokens,
      tokens: sum(counted.map(({ tokens }) => tokens)) + heldTokens,
      slots: live.filter(({ hasSlot }) => hasSlot).length,
      spent: sum(inPeriod.map(({ nanoUsd }) => nanoUsd)),
      heldNanoUsd,
    };
  }

  function standings(caller: string, limits: CallerLimits): Standings {
    const { times, counted, heldTokens, tokens, slots, spent, heldNanoUsd } = used(caller, limits, now());
    const told: Standings = {};
    const tell = (name: LimitName, limit: number | undefined, count: number, resetMs: () => number) => {
      if (limit !== undefined) told[name] = { limit, remaining: Math.max(0, limit - count), resetMs: count > 0 ? resetMs() : 0 };
    };
    tell('requests', limits.requestsPerMinute, times.length, () => Math.max(...times) + WINDOW_MS - now());
    const lastMs = () => (heldTokens > 0 ? now() : Math.max(...counted.map(({ atMs }) => stampOf(atMs))));
    tell('tokens', limits.tokensPerMinute, tokens, () => lastMs() + WINDOW_MS - now());
    tell('streams', limits.concurrentStreams, slots, () => 1000);
    tell('budget', limits.budget?.nanoUsd, spent + heldNanoUsd, () => endOf(limits.budget?.per ?? 'hour', now()) - now());
    return told;
  }

  /** The limits that do not hold at a moment, were the leases that live now to live on. */
  function refuse(caller: string, limits: CallerLimits, atMs: number): Map<LimitName, number> {
    const { times, counted, heldTokens, tokens, slots, spent, heldNanoUsd } = used(caller, limits, atMs);
    const { requestsPerMinute, tokensPerMinute, concurrentStreams, budget } = limits;
    const refusals = new Map<LimitName, number>();
    if (budget && spent + heldNanoUsd >= budget.nanoUsd) {
      refusals.set('budget', spent >= budget.nanoUsd ? endOf(budget.per, atMs) - atMs : 1000);
    }
    if (requestsPerMinute !== undefined && times.length >= requestsPerMinute) {
      // One after the other goes, until it would be admitted.
      const waits = times.map((time) => time + WINDOW_MS - atMs);
      refusals.set('requests', Math.min(...waits.filter((wait) => waits.filter((other) => other > wait).length < requestsPerMinute)));
    }
    if (tokensPerMinute !== undefined && tokens >= tokensPerMinute) {
      const waits = counted.map((debit) => stampOf(debit.atMs) + WINDOW_MS - atMs);
      const leftAfter = (wait: number) => sum(counted.map((debit, at) => ((waits[at] ?? 0) > wait ? debit.tokens : 0))) + heldTokens;
      const enough = waits.filter((wait) => leftAfter(wait) < tokensPerMinute);
      refusals.set('tokens', enough.length > 0 ? Math.min(...enough) : 1000);
    }
    if (concurrentStreams !== undefined && slots >= concurrentStreams) refusals.set('streams', 1000);
    return refusals;
  }

  /** The growth is debited now; what was debited too much is given back where it was debited last. */
  function debit(lease: Lease, { tokens, nanoUsd }: { tokens: number; nanoUsd: number }): void {
    lease.debits.push({
      atMs: now(),
      tokens: Math.max(0, tokens - lease.spent.tokens),
      nanoUsd: Math.max(0, nanoUsd - lease.spent.nanoUsd),
    });
    for (const kind of ['tokens', 'nanoUsd'] as const) {
      let back = Math.max(0, lease.spent[kind] - { tokens, nanoUsd }[kind]);
      for (const one of lease.debits.toReversed()) {
        const taken = Math.min(back, one[kind]);
        one[kind] -= taken;
        back -= taken;
      }
    }
    lease.spent = { tokens, nanoUsd };
  }

  return {
    admit(admission) {
      const { caller, limits, lease } = admission;
      const refusals = refuse(caller, limits, now());
      const [refusedBy] = refusals.keys();
      if (refusedBy === undefined) {
        admissions.push({ caller, atMs: now() });
        const hasSlot = limits.concurrentStreams !== undefined;
        const aliveUntilMs = now() + LEASE_MS;
        leases.set(lease, { admission, aliveUntilMs, hasSlot, spent: { tokens: 0, nanoUsd: 0 }, isSettled: false, debits: [] });
      }
      return { refusedBy, retryAfterMs: Math.max(0, ...refusals.values()), standings: standings(caller, limits) };
    },
    renew(running) {
      const spent = new Set<string>();
      for (const one of running) {
        const lease = leases.get(one.lease)!;
        debit(lease, one.spent);
        lease.aliveUntilMs = now() + LEASE_MS;
      }
      for (const { caller, limits } of running) {
        if (limits.budget && used(caller, limits, now()).spent >= limits.budget.nanoUsd) spent.add(caller);
      }
      return spent;
    },
    free({ lease }) {
      leases.get(lease)!.hasSlot = false;
    },
    settle({ lease: id, spent }) {
      const lease = leases.get(id)!;
      debit(lease, spent);
      lease.isSettled = true;
    },
    standings,
    admitted: (caller) => admissions.filter((one) => one.caller === caller).map(({ atMs }) => atMs),
    spentNow: (caller, per) =>
      sum(
        leasesOf(caller)
          .flatMap(({ debits }) => debits)
          .filter(({ atMs }) => nameOf(per, atMs) === nameOf(per, now()))
          .map(({ nanoUsd }) => nanoUsd),
      ),
  };
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((all, one) => all + one, 0);
}

/** Tokens are stamped with the end of their half second. */
function stampOf(atMs: number): number {
  return Math.ceil(atMs / STEP_MS) * STEP_MS;
}

/** What a period is called: the same for all its moments, and for no other. */
function nameOf(per: BudgetPeriod, atMs: number): string {
  const iso = new Date(atMs).toISOString();
  if (per !== 'week') return iso.slice(0, { hour: 13, day: 10, month: 7 }[per]);
  const monday = new Date(atMs);
  while (monday.getUTCDay() !== 1) monday.setUTCDate(monday.getUTCDate() - 1);
  return `week of ${monday.toISOString().slice(0, 10)}`;
}

/** Hour by hour, until it is called something else. */
export function endOf(per: BudgetPeriod, atMs: number): number {
  let endMs = Math.floor(atMs / 3_600_000) * 3_600_000;
  while (nameOf(per, endMs) === nameOf(per, atMs)) endMs += 3_600_000;
  return endMs;
}

// What one caller has used, in memory: a log of admissions, debits of tokens by step, money by period, and the leases that are out.
import { Ordered } from './ordered.ts';
import { hasLease, standingsOf, toWhole } from './standings.ts';
import type { Admission, Amount, BudgetPeriod, CallerLimits, LimitName, Running, Standings, Verdict } from './store.ts';
import { type Period, periodOf, STEPS, type Timing, UNFORETOLD_MS } from './windows.ts';

/** One moment on both clocks: windows and leases are monotonic, the calendar is not. */
export interface Moment extends Timing {
  readonly nowMs: number;
  readonly wallMs: number;
}

interface Lease {
  untilMs: number;
  hasSlot: boolean;
  readonly reserve: Amount;
  spent: Amount;
  /** Which steps its tokens were debited to, oldest first: a lower settlement takes the newest back. */
  debits: { readonly step: number; tokens: number }[];
  /** Of its money, what was debited to the present period. */
  period: { startMs: number; nanoUsd: number };
}

export interface Tally {
  /** Times of admission, oldest first, from `logFrom` on. */
  log: number[];
  logFrom: number;
  /** Tokens by step, oldest first, and their sum. Made when there are some, as the next: most callers are many and idle. */
  steps: Map<number, number> | undefined;
  tokens: number;
  money: Map<BudgetPeriod, Period & { nanoUsd: number }> | undefined;
  /** In the order in which they expire. */
  readonly live: Ordered<Lease>;
  /** Expired, should their settlement still come. */
  readonly past: Ordered<Lease>;
  /** Sums over the live leases: what is reserved and not yet spent, and the slots. */
  held: { tokens: number; nanoUsd: number };
  slots: number;
}

const NOTHING: Amount = { tokens: 0, nanoUsd: 0 };

export function createTally(): Tally {
  return {
    log: [],
    logFrom: 0,
    steps: undefined,
    tokens: 0,
    money: undefined,
    live: new Ordered(),
    past: new Ordered(),
    held: { tokens: 0, nanoUsd: 0 },
    slots: 0,
  };
}

/** Whether it is as if the caller had never called. */
export function isEmpty({ log, logFrom, steps, money, live, past }: Tally): boolean {
  return log.length === logFrom && !steps && !money && live.size === 0 && past.size === 0;
}

/** Lets go of what this moment has outlived. Each piece is looked at once as it goes: constant time an operation, over all. */
export function expire(tally: Tally, moment: Moment): void {
  const { log, steps, money, live, past } = tally;
  const fromMs = moment.nowMs - moment.windowMs;
  while (tally.logFrom < log.length && (log[tally.logFrom] ?? 0) <= fromMs) tally.logFrom += 1;
  if (tally.logFrom * 2 > log.length) {
    tally.log = log.slice(tally.logFrom);
    tally.logFrom = 0;
  }
  if (steps) {
    for (const [step, tokens] of steps) {
      if (endOf(step, moment) > fromMs) break;
      steps.delete(step);
      tally.tokens -= tokens;
    }
    if (steps.size === 0) tally.steps = undefined;
  }
  if (money) {
    for (const [per, { startMs, endMs }] of money) if (moment.wallMs < startMs || moment.wallMs >= endMs) money.delete(per);
    if (money.size === 0) tally.money = undefined;
  }
  for (let oldest = live.first(); oldest && oldest.value.untilMs <= moment.nowMs; oldest = live.first()) {
    live.delete(oldest.key);
    count(tally, oldest.value, -1);
    past.append(oldest.key, oldest.value);
  }
  for (let oldest = past.first(); oldest && oldest.value.untilMs + moment.keepMs <= moment.nowMs; oldest = past.first())
    past.delete(oldest.key);
}

export function admit(tally: Tally, { limits, lease, reserve: asked }: Admission, moment: Moment): Verdict {
  const refusals = refuse(tally, limits, moment);
  const [refusedBy] = Object.keys(refusals) as LimitName[];
  if (refusedBy === undefined) {
    if (limits.requestsPerMinute !== undefined) tally.log.push(moment.nowMs);
    if (hasLease(limits)) {
      const reserve = toWhole(asked);
      const tokens = limits.tokensPerMinute === undefined ? 0 : reserve.tokens;
      const nanoUsd = limits.budget === undefined ? 0 : reserve.nanoUsd;
      enliven(tally, lease, newLease(limits.concurrentStreams !== undefined, { tokens, nanoUsd }), moment);
    }
  }
  return { refusedBy, retryAfterMs: Math.max(0, ...Object.values(refusals)), standings: stand(tally, limits, moment) };
}

/** A lease that is not known (its caller was forgotten meanwhile) is debited in full. */
export function renew(tally: Tally, { lease: id, limits, spent }: Running, moment: Moment): void {
  const lease = take(tally, id) ?? newLease(limits.concurrentStreams !== undefined, NOTHING);
  debit(tally, lease, { limits, spent }, moment);
  enliven(tally, id, lease, moment);
}

export function free(tally: Tally, id: string): void {
  const live = tally.live.get(id);
  const lease = live ?? tally.past.get(id);
  if (!lease?.hasSlot) return;
  if (live) tally.slots -= 1;
  lease.hasSlot = false;
}

export function settle(tally: Tally, { lease: id, limits, spent }: Running, moment: Moment): void {
  debit(tally, take(tally, id) ?? newLease(false, NOTHING), { limits, spent }, moment);
}

/** Whether what was spent, reservations apart, has reached the budget. */
export function isBudgetSpent(tally: Tally, { budget }: CallerLimits): boolean {
  return budget !== undefined && spentOf(tally, budget.per) >= budget.nanoUsd;
}

export function stand(tally: Tally, limits: CallerLimits, moment: Moment): Standings {
  const { nowMs, wallMs, windowMs } = moment;
  const { budget } = limits;
  // What is reserved could yet be debited now.
  const lastTokenMs = tally.held.tokens > 0 ? nowMs : endOf(lastStepOf(tally), moment);
  return standingsOf(limits, {
    requests: tally.log.length - tally.logFrom,
    requestsResetMs: (tally.log.at(-1) ?? 0) + windowMs - nowMs,
    tokens: tally.tokens + tally.held.tokens,
    tokensResetMs: lastTokenMs + windowMs - nowMs,
    slots: tally.slots,
    nanoUsd: budget === undefined ? 0 : spentOf(tally, budget.per) + tally.held.nanoUsd,
    budgetResetMs: budget === undefined ? 0 : periodOf(budget.per, wallMs).endMs - wallMs,
  });
}

/** The limits that do not hold, the weightiest first, each with how long it will take. */
function refuse(tally: Tally, limits: CallerLimits, moment: Moment): Partial<Record<LimitName, number>> {
  const { requestsPerMinute, tokensPerMinute, concurrentStreams, budget } = limits;
  const refusals: Partial<Record<LimitName, number>> = {};
  if (budget !== undefined && spentOf(tally, budget.per) + tally.held.nanoUsd >= budget.nanoUsd) {
    const isSpent = isBudgetSpent(tally, limits);
    refusals.budget = isSpent ? periodOf(budget.per, moment.wallMs).endMs - moment.wallMs : UNFORETOLD_MS;
  }
  if (requestsPerMinute !== undefined && tally.log.length - tally.logFrom >= requestsPerMinute) {
    const lastMs = requestsPerMinute > 0 ? tally.log.at(-requestsPerMinute) : undefined;
    refusals.requests = (lastMs ?? moment.nowMs) + moment.windowMs - moment.nowMs;
  }
  if (tokensPerMinute !== undefined && tally.tokens + tally.held.tokens >= tokensPerMinute) {
    refusals.tokens = waitForTokens(tally, tokensPerMinute, moment);
  }
  if (concurrentStreams !== undefined && tally.slots >= concurrentStreams) refusals.streams = UNFORETOLD_MS;
  return refusals;
}

/** Until enough steps have gone, the reservations staying as they are. */
function waitForTokens(tally: Tally, limit: number, moment: Moment): number {
  let used = tally.tokens + tally.held.tokens;
  for (const [step, tokens] of tally.steps ?? []) {
    used -= tokens;
    if (used < limit) return endOf(step, moment) + moment.windowMs - moment.nowMs;
  }
  return UNFORETOLD_MS;
}

function newLease(hasSlot: boolean, reserve: Amount): Lease {
  return { untilMs: 0, hasSlot, reserve, spent: NOTHING, debits: [], period: { startMs: 0, nanoUsd: 0 } };
}

/** Takes a lease out, and what it holds off the sums. */
function take(tally: Tally, id: string): Lease | undefined {
  const lease = tally.live.get(id);
  if (lease) count(tally, lease, -1);
  const found = lease ?? tally.past.get(id);
  tally.live.delete(id);
  tally.past.delete(id);
  return found;
}

/** Puts a lease in, at the end of the queue, and what it holds onto the sums. */
function enliven(tally: Tally, id: string, lease: Lease, moment: Moment): void {
  lease.untilMs = moment.nowMs + moment.leaseMs;
  tally.live.append(id, lease);
  count(tally, lease, 1);
}

/** Adds what a live lease holds to the sums, or takes it off them. */
function count(tally: Tally, lease: Lease, sign: 1 | -1): void {
  const { reserve, spent, hasSlot } = lease;
  tally.held.tokens += sign * Math.max(0, reserve.tokens - spent.tokens);
  tally.held.nanoUsd += sign * Math.max(0, reserve.nanoUsd - spent.nanoUsd);
  if (hasSlot) tally.slots += sign;
}

/** Brings a lease's debits to what it has spent in all. */
function debit(tally: Tally, lease: Lease, { limits, ...running }: Pick<Running, 'limits' | 'spent'>, moment: Moment): void {
  const spent = toWhole(running.spent);
  if (limits.tokensPerMinute !== undefined) debitTokens(tally, lease, spent.tokens - lease.spent.tokens, moment);
  if (limits.budget !== undefined)
    debitMoney(tally, lease, { per: limits.budget.per, growth: spent.nanoUsd - lease.spent.nanoUsd }, moment);
  lease.spent = spent;
}

function debitTokens(tally: Tally, { debits }: Lease, growth: number, moment: Moment): void {
  const add = (step: number, tokens: number) => {
    tally.steps ??= new Map();
    const { steps } = tally;
    steps.set(step, (steps.get(step) ?? 0) + tokens);
    tally.tokens += tokens;
  };
  while (debits[0] !== undefined && !isCounted(debits[0].step, moment)) debits.shift();
  if (growth > 0) {
    const step = Math.ceil(moment.nowMs / (moment.windowMs / STEPS));
    add(step, growth);
    const last = debits.at(-1);
    if (last?.step === step) last.tokens += growth;
    else debits.push({ step, tokens: growth });
  }
  for (let back = -growth; back > 0; ) {
    const last = debits.at(-1);
    if (last === undefined) return;
    const tokens = Math.min(back, last.tokens);
    add(last.step, -tokens);
    last.tokens -= tokens;
    back -= tokens;
    if (last.tokens === 0) debits.pop();
  }
}

function debitMoney(tally: Tally, lease: Lease, { per, growth }: { per: BudgetPeriod; growth: number }, moment: Moment): void {
  const { startMs, endMs } = periodOf(per, moment.wallMs);
  if (lease.period.startMs !== startMs) lease.period = { startMs, nanoUsd: 0 };
  // What an earlier period was debited is given back to that one, which nobody asks for any more.
  const change = Math.max(growth, -lease.period.nanoUsd);
  lease.period.nanoUsd += change;
  const nanoUsd = spentOf(tally, per) + change;
  tally.money ??= new Map();
  if (nanoUsd > 0) tally.money.set(per, { startMs, endMs, nanoUsd });
  else tally.money.delete(per);
  if (tally.money.size === 0) tally.money = undefined;
}

function spentOf({ money }: Tally, per: BudgetPeriod): number {
  return money?.get(per)?.nanoUsd ?? 0;
}

function lastStepOf({ steps }: Tally): number {
  let last = 0;
  for (const [step, tokens] of steps ?? []) if (tokens > 0) last = step;
  return last;
}

function endOf(step: number, { windowMs }: Timing): number {
  return step * (windowMs / STEPS);
}

function isCounted(step: number, moment: Moment): boolean {
  return endOf(step, moment) > moment.nowMs - moment.windowMs;
}

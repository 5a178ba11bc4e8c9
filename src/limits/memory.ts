// What callers use, counted in this process: as many callers as are worth knowing, each forgotten once it has nothing left.
import { performance } from 'node:perf_hooks';
import { Ordered } from './ordered.ts';
import { hasLease } from './standings.ts';
import type { LimitStore, Standings } from './store.ts';
import { admit, createTally, expire, free, isBudgetSpent, isEmpty, type Moment, renew, settle, stand, type Tally } from './tally.ts';
import { TIMING, type Timing } from './windows.ts';

export interface MemoryOptions extends Partial<Timing> {
  /** Monotonic milliseconds. */
  readonly now?: () => number;
  /** The calendar's. */
  readonly wallNow?: () => number;
  /** Beyond so many, those go first that have nothing left, then the one idle longest. */
  readonly maxCallers?: number;
}

export interface MemoryStore extends LimitStore {
  /** Callers known at present. */
  readonly size: number;
}

const MAX_CALLERS = 100_000;
/** How many callers each admission looks at, in turn, for such as have nothing left. More than one, and they go faster than they come. */
const SWEEP = 2;
/** And how many where there is no room. */
const SWEEP_FULL = 8;

export function createMemoryStore(options: MemoryOptions = {}): MemoryStore {
  const { now = () => performance.now(), wallNow = Date.now, maxCallers = MAX_CALLERS } = options;
  const { windowMs, leaseMs, keepMs }: Timing = { ...TIMING, ...options };
  /** Idle longest first. */
  const callers = new Ordered<Tally>();
  /** Looked at longest ago first. */
  const looks = new Ordered<Tally>();

  const momentOf = (): Moment => ({ nowMs: now(), wallMs: wallNow(), windowMs, leaseMs, keepMs });

  /** The caller's tally, now the one idle shortest. */
  function touch(caller: string, moment: Moment): Tally {
    let tally = callers.get(caller);
    if (tally === undefined) {
      tally = createTally();
      looks.append(caller, tally);
    }
    callers.append(caller, tally);
    expire(tally, moment);
    return tally;
  }

  function forget(caller: string): void {
    callers.delete(caller);
    looks.delete(caller);
  }

  function sweep(moment: Moment): void {
    const most = callers.size > maxCallers ? SWEEP_FULL : SWEEP;
    for (let looked = 0, next = looks.first(); looked < most && next; looked += 1, next = looks.first()) {
      expire(next.value, moment);
      if (isEmpty(next.value)) forget(next.key);
      else looks.append(next.key, next.value);
      if (most === SWEEP_FULL && callers.size <= maxCallers) return;
    }
    const idlest = callers.first();
    if (callers.size > maxCallers && idlest) forget(idlest.key);
  }

  return {
    get size() {
      return callers.size;
    },
    async admit(admission) {
      const moment = momentOf();
      const verdict = admit(touch(admission.caller, moment), admission, moment);
      sweep(moment);
      return verdict;
    },
    async renew(running) {
      const moment = momentOf();
      const spent = new Set<string>();
      let tally: Tally | undefined;
      let caller: string | undefined;
      for (const one of running) {
        if (!hasLease(one.limits)) continue;
        // The leases of one caller mostly stand together.
        if (tally === undefined || one.caller !== caller) tally = touch(one.caller, moment);
        caller = one.caller;
        renew(tally, one, moment);
        if (isBudgetSpent(tally, one.limits)) spent.add(one.caller);
      }
      return spent;
    },
    free({ caller, lease }) {
      const tally = callers.get(caller);
      if (tally) free(tally, lease);
    },
    settle(running) {
      if (!hasLease(running.limits)) return;
      const moment = momentOf();
      const tally = touch(running.caller, moment);
      settle(tally, running, moment);
      if (isEmpty(tally)) forget(running.caller);
    },
    async standings(wanted) {
      const moment = momentOf();
      const known = new Map<string, Standings>();
      for (const [caller, limits] of wanted) {
        const tally = callers.get(caller) ?? createTally();
        expire(tally, moment);
        known.set(caller, stand(tally, limits, moment));
      }
      return known;
    },
    async close() {},
  };
}

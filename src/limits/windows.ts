// The times that limits are reckoned by: the sliding minute, the life of a lease, and the calendar's periods.
import type { BudgetPeriod } from './store.ts';

export interface Timing {
  /** Requests and tokens are counted for so long. */
  readonly windowMs: number;
  /** A lease that is not renewed for so long gives its slot and its reservation back. */
  readonly leaseMs: number;
  /** What a lease has been debited is remembered for so long after its last renewal, should its replica settle it late. */
  readonly keepMs: number;
}

export const TIMING: Timing = { windowMs: 60_000, leaseMs: 6_000, keepMs: 3_600_000 };

/**
 * Debits of tokens are gathered in so many steps of the window (half a second of the minute), each stamped with its end: a
 * caller's minute is some 120 numbers whatever its traffic, and a token counts for a minute or up to half a second longer.
 */
export const STEPS = 120;

/** How long to wait for what nobody can foretell: a stream's end, or a reservation's. */
export const UNFORETOLD_MS = 1_000;

export interface Period {
  readonly startMs: number;
  readonly endMs: number;
}

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
/** 5 January 1970 was the first Monday. */
const FIRST_MONDAY_MS = 4 * DAY_MS;

/** The last answer of each kind: asked several times a request, and it holds for an hour at the least. */
const lately = new Map<BudgetPeriod, Period>();

/** The calendar's hour, day, ISO week or month in UTC that holds this moment. */
export function periodOf(per: BudgetPeriod, wallMs: number): Period {
  const last = lately.get(per);
  if (last && wallMs >= last.startMs && wallMs < last.endMs) return last;
  const period = reckon(per, wallMs);
  lately.set(per, period);
  return period;
}

function reckon(per: BudgetPeriod, wallMs: number): Period {
  if (per === 'month') {
    const date = new Date(wallMs);
    const monthAt = (offset: number) => Date.UTC(date.getUTCFullYear(), date.getUTCMonth() + offset);
    return { startMs: monthAt(0), endMs: monthAt(1) };
  }
  const lengthMs = { hour: HOUR_MS, day: DAY_MS, week: 7 * DAY_MS }[per];
  const offsetMs = per === 'week' ? FIRST_MONDAY_MS : 0;
  const startMs = Math.floor((wallMs - offsetMs) / lengthMs) * lengthMs + offsetMs;
  return { startMs, endMs: startMs + lengthMs };
}

// Requests under way that count against limits: their leases are kept alive, debited as tokens flow, and settled once each.
import type { Exchange, Lease } from '../exchange.ts';
import { hasLease } from '../limits/standings.ts';
import type { Amount, CallerLimits, LimitStore, Running } from '../limits/store.ts';
import { Roster } from '../roster.ts';
import { spentSoFar } from '../spending.ts';

/** A request that was admitted. */
export interface Grant {
  readonly store: LimitStore;
  readonly caller: string;
  readonly limits: CallerLimits;
  readonly lease: string;
  readonly exchange: Exchange;
  /** Called where the caller's budget is spent; undefined where its answers may finish. */
  readonly cut: (() => void) | undefined;
}

export interface Leases {
  /** Undefined where nothing is to be given back. */
  open(grant: Grant): Lease | undefined;
  /** Whether a store still has leases here. */
  has(store: LimitStore): boolean;
  close(): void;
}

/** Well within the life of a lease (6 s), and how late a spent budget may be noticed. */
const RENEW_MS = 1_000;

/** @param onFault told of a fault of ours while leases were renewed */
export function createLeases(onFault: (fault: unknown) => void, renewMs: number = RENEW_MS): Leases {
  const live = new Roster<Grant>();
  const timer = setInterval(renewAll, renewMs);
  timer.unref();

  function renewAll(): void {
    for (const store of new Set([...live].map((grant) => grant.store))) void renew(store).catch(onFault);
  }

  async function renew(store: LimitStore): Promise<void> {
    const seats = [...live.seats()].filter(({ member }) => member.store === store);
    const exhausted = await store.renew(seats.map(({ member }) => runningOf(member, spentSoFar(member.exchange))));
    for (const { isTaken, member } of seats) if (isTaken && exhausted.has(member.caller)) member.cut?.();
  }

  return {
    open(grant) {
      if (!hasLease(grant.limits)) return undefined;
      const seat = live.enter(grant);
      return {
        // Most are settled in this very turn; a slot must not wait for tokens to be counted.
        end: () => void setImmediate(() => seat.isTaken && grant.store.free(grant)),
        settle(spent) {
          if (seat.leave()) grant.store.settle(runningOf(grant, spent));
        },
      };
    },
    has: (store) => [...live].some((grant) => grant.store === store),
    close: () => clearInterval(timer),
  };
}

function runningOf({ caller, limits, lease }: Grant, spent: Amount): Running {
  return { caller, limits, lease, spent };
}

// What a caller's limits come to: what is used, told as what is left.
import type { Amount, CallerLimits, LimitName, Standings } from './store.ts';
import { UNFORETOLD_MS } from './windows.ts';

/** What is used of each limit, reservations included, and how long until it is as if nothing had been. */
export interface Used {
  readonly requests: number;
  readonly requestsResetMs: number;
  readonly tokens: number;
  readonly tokensResetMs: number;
  readonly slots: number;
  readonly nanoUsd: number;
  readonly budgetResetMs: number;
}

/** Whether anything is to be given back or debited once a request has been admitted. */
export function hasLease({ tokensPerMinute, concurrentStreams, budget }: CallerLimits): boolean {
  return tokensPerMinute !== undefined || concurrentStreams !== undefined || budget !== undefined;
}

/** Whole numbers that can be counted on: a meter's slip (NaN, say) shall not unhinge a caller's sums, nor a script. */
export function toWhole({ tokens, nanoUsd }: Amount): Amount {
  const whole = (count: number) => Math.min(Math.max(0, Math.round(count) || 0), Number.MAX_SAFE_INTEGER);
  return { tokens: whole(tokens), nanoUsd: whole(nanoUsd) };
}

export function standingsOf({ requestsPerMinute, tokensPerMinute, concurrentStreams, budget }: CallerLimits, used: Used): Standings {
  const standings: Standings = {};
  const stand = (name: LimitName, limit: number | undefined, count: number, resetMs: number) => {
    if (limit !== undefined) standings[name] = { limit, remaining: Math.max(0, limit - count), resetMs: count > 0 ? resetMs : 0 };
  };
  stand('requests', requestsPerMinute, used.requests, used.requestsResetMs);
  stand('tokens', tokensPerMinute, used.tokens, used.tokensResetMs);
  stand('streams', concurrentStreams, used.slots, UNFORETOLD_MS);
  stand('budget', budget?.nanoUsd, used.nanoUsd, used.budgetResetMs);
  return standings;
}

// What counts how much each caller has used: the one interface to memory and to Redis, and the words in which it is spoken.

export type LimitName = 'requests' | 'tokens' | 'streams' | 'budget';

/** Calendar windows in UTC; a week begins on Monday. */
export type BudgetPeriod = 'hour' | 'day' | 'week' | 'month';

/** What one caller may; undefined where there is no such limit. */
export interface CallerLimits {
  readonly requestsPerMinute: number | undefined;
  readonly tokensPerMinute: number | undefined;
  readonly concurrentStreams: number | undefined;
  readonly budget: { readonly nanoUsd: number; readonly per: BudgetPeriod } | undefined;
}

/** Tokens and money (10^-9 USD, whole numbers). */
export interface Amount {
  readonly tokens: number;
  readonly nanoUsd: number;
}

/** One request at the door. */
export interface Admission {
  readonly caller: string;
  readonly limits: CallerLimits;
  /** Unique for ever (a UUID). */
  readonly lease: string;
  readonly reserve: Amount;
}

export interface Standing {
  readonly limit: number;
  readonly remaining: number;
  /** Until it is as if nothing had been used. */
  readonly resetMs: number;
}

export type Standings = Partial<Record<LimitName, Standing>>;

export interface Verdict {
  /** undefined: admitted; else the limit that refused it, and nothing was counted. */
  readonly refusedBy: LimitName | undefined;
  /** How long until the same request would be admitted if nobody else called (0 where admitted; for streams, which nobody can foretell, 1 s). */
  readonly retryAfterMs: number;
  readonly standings: Standings;
}

/** An admitted request, as it stands. */
export interface Running {
  readonly caller: string;
  readonly limits: CallerLimits;
  readonly lease: string;
  /** In all, so far. */
  readonly spent: Amount;
}

export interface LimitStore {
  /**
   * Atomic: all limits hold, and the request, its slot and its reservation are counted; or nothing is.
   * @throws StoreFailure where the store cannot say
   */
  admit(admission: Admission): Promise<Verdict>;
  /**
   * Keeps leases alive and debits what they have spent so far.
   * @returns the callers whose budget is spent (spent alone, without reservations, is the budget or more)
   */
  renew(running: readonly Running[]): Promise<ReadonlySet<string>>;
  /** The stream is over, but its tokens are still being counted: its slot is free, its reservation stays. */
  free(running: Pick<Running, 'caller' | 'lease' | 'limits'>): void;
  /**
   * The final amount: the reservation is given back, the difference to what was debited is counted (it may be negative).
   * Never throws; what a store that is away for a moment could not be told is kept (within bounds) and told later.
   */
  settle(running: Running): void;
  /** What is left now, for a scrape; one round trip for all. */
  standings(callers: ReadonlyMap<string, CallerLimits>): Promise<ReadonlyMap<string, Standings>>;
  close(): Promise<void>;
}

/** The store cannot say whether a request may pass. `code` is of a short list, never a message: those may quote an address. */
export class StoreFailure extends Error {
  readonly code: string;

  constructor(code: string) {
    super(`the limit store failed (${code})`);
    this.name = 'StoreFailure';
    this.code = code;
  }
}

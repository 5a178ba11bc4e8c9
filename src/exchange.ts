// The record of one request, and the only one: every part writes into it what it saw, and its end is told once.
import type { Meter, Metered } from './stream/meter.ts';

/** How a request ended. Exactly one each. */
export type Outcome =
  | 'completed'
  | 'client_closed'
  | 'client_stalled'
  | 'upstream_error'
  | 'upstream_error_event'
  | 'upstream_truncated'
  | 'upstream_reset'
  | 'upstream_unreachable'
  | 'timeout_connect'
  | 'timeout_first_byte'
  | 'timeout_idle'
  | 'timeout_total'
  | 'rejected'
  | 'drained';

/** Where a request stands on its way; what a client's departure interrupts. */
export type Phase = 'upload' | 'connect' | 'headers' | 'stream' | 'backpressure';

/** Times are milliseconds of the monotonic clock, or durations in milliseconds since `startedAtMs`. */
export interface Exchange {
  /** Ours, or the client's; the upstream's once it has named one. */
  requestId: string;
  readonly startedAtMs: number;
  readonly method: string;
  readonly remoteAddress: string;
  readonly traceId: string | undefined;
  client: string;
  endpoint: string;
  operation: string | undefined;
  upstream: string | undefined;
  phase: Phase;
  status: number | undefined;
  outcome: Outcome | undefined;
  /** Why a request was refused: the code of the error answered here. */
  rejection: string | undefined;
  /** What broke underneath, as a code such as ECONNREFUSED, never as a message. */
  cause: string | undefined;
  attempts: number;
  bytesIn: number;
  bytesOut: number;
  ttfbMs: number | undefined;
  ttftMs: number | undefined;
  durationMs: number | undefined;
  meter: Meter | undefined;
  tokens: Metered | undefined;
}

/** The facts that are known when the parser hands a request over. */
export type Arrival = Pick<Exchange, 'requestId' | 'startedAtMs' | 'method' | 'remoteAddress' | 'traceId'>;

/** A new record; `client` is `anonymous` until a key says otherwise. */
export function createExchange(arrival: Arrival): Exchange {
  return {
    ...arrival,
    client: 'anonymous',
    endpoint: 'other',
    operation: undefined,
    upstream: undefined,
    phase: 'connect',
    status: undefined,
    outcome: undefined,
    rejection: undefined,
    cause: undefined,
    attempts: 0,
    bytesIn: 0,
    bytesOut: 0,
    ttfbMs: undefined,
    ttftMs: undefined,
    durationMs: undefined,
    meter: undefined,
    tokens: undefined,
  };
}

/** Keeps every live exchange, and ends each exactly once. */
export interface Ledger {
  readonly live: ReadonlySet<Exchange>;
  open(exchange: Exchange): void;
  /** Ends the exchange with this outcome; later calls change nothing. Its record is told once its tokens are counted. */
  end(exchange: Exchange, outcome: Outcome): void;
  /** Resolves when all ended exchanges have been recorded. */
  settled(): Promise<void>;
}

/**
 * The one place where requests end.
 * @param now monotonic milliseconds
 * @param record tells metrics and log, once for each exchange, after its tokens are known
 */
export function createLedger(now: () => number, record: (exchange: Exchange) => void): Ledger {
  const live = new Set<Exchange>();
  const settling = new Set<Promise<void>>();

  async function settle(exchange: Exchange): Promise<void> {
    exchange.tokens = await exchange.meter?.usage();
    record(exchange);
  }

  return {
    live,
    open: (exchange) => void live.add(exchange),
    end(exchange, outcome) {
      if (!live.delete(exchange)) return;
      exchange.outcome = outcome;
      exchange.durationMs = now() - exchange.startedAtMs;
      const settlement = settle(exchange).finally(() => settling.delete(settlement));
      settling.add(settlement);
    },
    async settled() {
      while (settling.size > 0) await Promise.all(settling);
    },
  };
}

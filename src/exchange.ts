// The record of one request, and the only one: every part writes into it what it saw, and its end is told once.
import type { Price } from './config.ts';
import type { Amount } from './limits/store.ts';
import { Roster, type Seat } from './roster.ts';
import { costOf, spentInAll } from './spending.ts';
import type { Meter, Metered } from './stream/meter.ts';
import type { Trace } from './telemetry/traces.ts';

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
  /** Of the client's traceparent, or of the trace that begins here. */
  traceId: string | undefined;
  /** Undefined where nothing is traced, or not this request. */
  trace: Trace | undefined;
  client: string;
  endpoint: string;
  operation: string | undefined;
  upstream: string | undefined;
  /** The pattern of `models` that matched the call's model: what metrics call it. */
  model: string | undefined;
  price: Price | undefined;
  phase: Phase;
  status: number | undefined;
  outcome: Outcome | undefined;
  /** Why a request was refused: the code of the error answered here. */
  rejection: string | undefined;
  /** What broke underneath, as a code such as ECONNREFUSED, never as a message. */
  cause: string | undefined;
  attempts: number;
  /** What became of each try, as `upstream result`. */
  tried: readonly string[];
  /** Tries that another one was faster than. */
  readonly rivals: Rival[];
  bytesIn: number;
  bytesOut: number;
  ttfbMs: number | undefined;
  ttftMs: number | undefined;
  durationMs: number | undefined;
  meter: Meter | undefined;
  /** Undefined where the caller has no limits that anything is given back to. */
  lease: Lease | undefined;
  /** The request's body, should its tokens have to be counted here. */
  prompt: KeptBody | undefined;
  tokens: Metered | undefined;
  /** What the tokens cost, in 10^-9 USD; undefined where no price is known. */
  costNanoUsd: number | undefined;
  /** About how many tokens of output had gone down when the client left; undefined unless the answer was read on without it. */
  outputHeard: number | undefined;
  /** Its place among the ledger's live ones, which it leaves as it ends. */
  seat: Seat<Exchange> | undefined;
}

/** An answer that was begun and not waited for; its tokens are paid for too. */
export interface Rival {
  readonly upstream: string;
  readonly meter: Meter;
  tokens?: Metered | undefined;
}

/** What a request holds of its caller's limits. */
export interface Lease {
  /** The request is over; what it used is still being counted. */
  end(): void;
  /** What it used: the rest is given back. Later calls change nothing. */
  settle(spent: Amount): void;
}

/** A request's body in memory. */
export interface KeptBody {
  /** In the pieces that it came in; empty where it was not kept. */
  readonly pieces: readonly Buffer[];
  letGo(): void;
}

/** The facts that are known when the parser hands a request over. */
export type Arrival = Pick<Exchange, 'requestId' | 'startedAtMs' | 'method' | 'remoteAddress' | 'traceId'>;

/** A new record; `client` is `anonymous` until a key says otherwise. */
export function createExchange(arrival: Arrival): Exchange {
  // Without a spread: behind one, V8 adds each further member by itself, beside the object.
  const { requestId, startedAtMs, method, remoteAddress, traceId } = arrival;
  return {
    requestId,
    startedAtMs,
    method,
    remoteAddress,
    traceId,
    trace: undefined,
    client: 'anonymous',
    endpoint: 'other',
    operation: undefined,
    upstream: undefined,
    model: undefined,
    price: undefined,
    phase: 'connect',
    status: undefined,
    outcome: undefined,
    rejection: undefined,
    cause: undefined,
    attempts: 0,
    tried: [],
    rivals: [],
    bytesIn: 0,
    bytesOut: 0,
    ttfbMs: undefined,
    ttftMs: undefined,
    durationMs: undefined,
    meter: undefined,
    lease: undefined,
    prompt: undefined,
    tokens: undefined,
    costNanoUsd: undefined,
    outputHeard: undefined,
    seat: undefined,
  };
}

/** Keeps every live exchange, and ends each exactly once. */
export interface Ledger {
  readonly live: Iterable<Exchange>;
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
  const live = new Roster<Exchange>();
  const settling = new Roster<Promise<void>>();

  async function settle(exchange: Exchange): Promise<void> {
    const { meter, prompt, operation, price, rivals } = exchange;
    const isPrompt = operation !== undefined && prompt !== undefined && prompt.pieces.length > 0;
    const promptBytes = () => (isPrompt ? Buffer.concat(prompt.pieces) : undefined);
    for (const rival of rivals) rival.tokens = await rival.meter.usage(promptBytes);
    exchange.tokens = await meter?.usage(promptBytes);
    prompt?.letGo();
    if (exchange.tokens !== undefined && price !== undefined) exchange.costNanoUsd = costOf(exchange.tokens, price);
    exchange.lease?.settle(spentInAll(exchange));
    record(exchange);
  }

  return {
    live,
    open(exchange) {
      exchange.seat = live.enter(exchange);
    },
    end(exchange, outcome) {
      if (!exchange.seat?.leave()) return;
      exchange.outcome = outcome;
      // Of a whole answer nothing was refused, even if that was wanted at its last moment.
      if (outcome !== 'rejected') exchange.rejection = undefined;
      exchange.durationMs = now() - exchange.startedAtMs;
      exchange.lease?.end();
      const settlement = settling.enter(settle(exchange).finally(() => settlement.leave()));
    },
    async settled() {
      while (settling.size > 0) await Promise.all(settling);
    },
  };
}

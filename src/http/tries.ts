// The tries that one request takes, before the first byte of an answer has gone down: the next target where one fails, the next one
// too where its first token is late, and no upstream asked twice that may have done the work already.

import type { Socket } from 'node:net';
import type { Upstream } from '../config.ts';
import type { Exchange, Phase } from '../exchange.ts';
import type { Clock } from '../stream/clock.ts';
import { createStreamMeter, type Meter } from '../stream/meter.ts';
import type { Tokenizer } from '../stream/tokens.ts';
import type { Metrics } from '../telemetry/metrics.ts';
import type { Balance } from '../upstream/balance.ts';
import { routeEndpoint } from '../upstream/endpoints.ts';
import type { HeaderList } from '../upstream/headers.ts';
import type { Outlet } from '../upstream/outlet.ts';
import type { Target } from '../upstream/router.ts';
import { type Asker, createRefusalReader, mayRefuseAsking, type Taker } from './asking.ts';
import { type Attempt, type AttemptFailure, createAttempt, isRefusal, requestFor } from './attempt.ts';
import { isPlainStream } from './early.ts';
import type { Entrance } from './entrance.ts';
import type { Entrant, Plan } from './plan.ts';

/** What tries need; one for all requests. */
export interface TriesParts {
  readonly clock: Clock;
  readonly metrics: Metrics;
  readonly tokenizer: Tokenizer;
  readonly asker: Asker;
  readonly balance: Balance;
  outletOf(upstream: Upstream): Outlet;
}

export interface TriesEvents {
  /** Whether it is too late for another try: something has gone down, or nobody waits any more. */
  hasBegun(): boolean;
  onStart(): void;
  onPhase(phase: Phase): void;
  /** This answer is the one. Returns who takes its body. */
  onAnswer(attempt: Attempt, status: number, headers: HeaderList): Taker | undefined;
  /** This upstream takes the WebSocket that was asked for. */
  onSwitch?(attempt: Attempt, headers: HeaderList, socket: Socket): void;
  /** The last try has come to nothing, or the answer that was taken has broken off. */
  onFail(failure: AttemptFailure): void;
}

export interface Tries {
  begin(): void;
  /** The one whose answer is taken; before that the one that was begun first of those under way. */
  readonly leading: Attempt | undefined;
  /** No further try, and of those under way only the leading one stays. */
  commit(): void;
  judge(nowMs: number): void;
  /** Ends all tries at once; `onClosed` runs when the leading one's socket is closed. */
  abort(onClosed?: () => void): void;
}

/** What is sent. */
export type Cargo = Pick<Entrance, 'canRepeat' | 'bodyBytes' | 'isStream' | 'body'>;

/** So much of an answer is held until it is worth taking: start-up frames are short, and a longer one is no error. */
const MAX_HELD_BYTES = 256 * 1024;
/** Of an answer that is passed over so much is read, for the sake of its connection, and for so long. */
const MAX_DROPPED_BYTES = 64 * 1024;
const DROP_MS = 1_000;

/** Where an attempt went, and how many of its keys are left. */
interface Sent {
  readonly target: Target;
  readonly furtherKeys: number;
}

/** An event stream that is held until it has shown what it is. */
interface Held {
  readonly status: number;
  readonly headers: HeaderList;
  readonly pieces: Buffer[];
  readonly meter: Meter;
  bytes: number;
  hasEnded: boolean;
}

/** @param journey the request and its record, which is told of every try */
export function createTries(
  journey: Entrant & { readonly exchange: Exchange },
  { plan, cargo }: { readonly plan: Plan; readonly cargo: Cargo },
  parts: TriesParts,
  events: TriesEvents,
): Tries {
  const { exchange, request, requestTarget } = journey;
  const { clock, metrics, asker } = parts;
  const { route } = plan;
  const canRepeat = cargo.canRepeat && cargo.bodyBytes <= route.replayBytes;
  const [first, ...others] = parts.balance.order(route);
  const queue = canRepeat && plan.mayMove ? others : [];
  const isHedged = Number.isFinite(route.hedgeMs) && queue.length > 0 && cargo.isStream();
  /** Under way, and without an answer that was taken or passed over; those that are held with what they have said. */
  const live = new Map<Attempt, Held | undefined>();
  const dropped = new Map<Attempt, number>();
  let winner: Attempt | undefined;
  let isFirst = true;

  /** @param furtherKeys so many keys may yet be tried, should this one be refused */
  function send(target: Target, furtherKeys: number = target.upstream.apiKeys.length - 1): void {
    const { upstream } = target;
    const outlet = parts.outletOf(upstream);
    const key = outlet.keys.take();
    const edit = plan.edit(target);
    const attempt: Attempt = createAttempt(
      { clock, metrics, exchange, outlet, key, edit },
      {
        onStart() {
          if (isFirst) events.onStart();
          isFirst = false;
        },
        onPhase(phase) {
          if (attempt === leading() && !events.hasBegun()) events.onPhase(phase);
        },
        onHead: (status, headers) => judgeHead(attempt, { target, furtherKeys }, status, headers),
        onSwitch(headers, socket) {
          choose(attempt);
          events.onSwitch?.(attempt, headers, socket);
        },
        onFail: (failure) => lose(attempt, failure),
      },
    );
    live.set(attempt, undefined);
    attempt.begin(requestFor(request, { upstream, key, edit, body: cargo.body(edit.splices) }));
  }

  function leading(): Attempt | undefined {
    return winner ?? live.keys().next().value;
  }

  function judgeHead(attempt: Attempt, { target, furtherKeys }: Sent, status: number, headers: HeaderList): Taker | undefined {
    const { upstream } = target;
    if (isRefusal(status, upstream)) {
      // It has not served the call, so that another key of the same upstream may be tried for it.
      const isOfKey = (status === 401 || status === 429) && furtherKeys > 0 && parts.outletOf(upstream).keys.hasFresh;
      if (isOfKey && canRepeat && !events.hasBegun()) return passOver(attempt, () => send(target, furtherKeys - 1));
      if (canGoOn()) return passOver(attempt, next);
    }
    const take = () => (status >= 400 && live.size > 1 ? passOver(attempt, reconsider) : win(attempt, status, headers));
    if (attempt.edit.strip !== undefined && mayRefuseAsking(status)) {
      const askLess = () => {
        asker.remember(upstream);
        if (events.hasBegun()) return false;
        live.delete(attempt);
        attempt.tell('refused');
        send(target, furtherKeys);
        return true;
      };
      return createRefusalReader(askLess, take);
    }
    const isHeld = isPlainStream(status, headers) && (canGoOn() || live.size > 1);
    return isHeld ? hold(attempt, status, headers) : take();
  }

  /** Whether there is another target, and it is not too late for it. */
  function canGoOn(): boolean {
    return queue.length > 0 && !events.hasBegun();
  }

  function next(): void {
    const target = queue.shift();
    if (target !== undefined) send(target);
  }

  function win(attempt: Attempt, status: number, headers: HeaderList): Taker | undefined {
    choose(attempt);
    return events.onAnswer(attempt, status, headers);
  }

  function choose(attempt: Attempt): void {
    winner = attempt;
    live.delete(attempt);
    for (const [rival, held] of live) giveUp(rival, held);
    attempt.tell('ok');
    exchange.upstream = attempt.upstream.name;
    exchange.cause = undefined;
  }

  /** It may have written already, and will be paid for. */
  function giveUp(rival: Attempt, held: Held | undefined): void {
    live.delete(rival);
    rival.tell('lost');
    rival.abort();
    if (rival.sentAtMs !== undefined) exchange.rivals.push({ upstream: rival.upstream.name, meter: held?.meter ?? createMeter() });
  }

  /** Reads a little of an answer that nobody will see, so that its connection can be used again, and goes on without it. */
  function passOver(attempt: Attempt, goOn: () => void): Taker {
    live.delete(attempt);
    attempt.tell('refused');
    dropped.set(attempt, clock.now());
    let bytes = 0;
    goOn();
    return {
      chunk(chunk) {
        bytes += chunk.length;
        if (bytes > MAX_DROPPED_BYTES) abandon(attempt);
      },
      end: () => void dropped.delete(attempt),
    };
  }

  function abandon(attempt: Attempt): void {
    dropped.delete(attempt);
    attempt.abort();
  }

  function lose(attempt: Attempt, failure: AttemptFailure): void {
    dropped.delete(attempt);
    const wasLive = live.delete(attempt);
    if (attempt !== winner && !wasLive) return;
    exchange.cause = failure.cause;
    if (attempt !== winner && live.size > 0) {
      reconsider();
    } else if (attempt !== winner && canGoOn()) {
      next();
    } else {
      exchange.upstream = attempt.upstream.name;
      events.onFail(failure);
    }
  }

  function createMeter(): Meter {
    return createStreamMeter(routeEndpoint(request.method ?? '', requestTarget.path).dialect, parts.tokenizer);
  }

  function hold(attempt: Attempt, status: number, headers: HeaderList): Taker {
    const held: Held = { status, headers, pieces: [], meter: createMeter(), bytes: 0, hasEnded: false };
    live.set(attempt, held);
    return {
      chunk(bytes) {
        held.pieces.push(Buffer.from(bytes));
        held.bytes += bytes.length;
        held.meter.observe(bytes.toString('latin1'));
        weigh(attempt, held);
      },
      end() {
        held.hasEnded = true;
        weigh(attempt, held);
      },
    };
  }

  /** Takes what is held, or gives it up, where enough has come to tell. */
  function weigh(attempt: Attempt, held: Held): void {
    const { meter } = held;
    const isAlone = live.size === 1;
    const isLast = isAlone && !canGoOn();
    if (isLast) {
      release(attempt, held);
      return;
    }
    const isFailed = meter.contentCount === 0 && (meter.hasError || (held.hasEnded && !meter.isComplete));
    if (isFailed) {
      attempt.failed();
      attempt.tell(meter.hasError ? 'error_event' : 'upstream_truncated');
      attempt.abort();
      lose(attempt, { code: 'upstream_reset', outcome: meter.hasError ? 'upstream_error_event' : 'upstream_truncated' });
      return;
    }
    const isProven = isAlone && !isHedged ? meter.eventCount > 0 : meter.contentCount > 0;
    if (isProven || held.hasEnded || held.bytes > MAX_HELD_BYTES || meter.isOff) release(attempt, held);
  }

  function release(attempt: Attempt, held: Held): void {
    const taker = win(attempt, held.status, held.headers);
    attempt.takeOver(taker);
    for (const piece of held.pieces) taker?.chunk(piece);
    if (held.hasEnded) taker?.end();
  }

  /** A rival is out: what the others have said may be enough now. */
  function reconsider(): void {
    for (const [attempt, held] of live) if (held !== undefined) weigh(attempt, held);
  }

  function hedge(nowMs: number): void {
    const latest = [...live.keys()].at(-1);
    if (isHedged && canGoOn() && latest !== undefined && nowMs - (latest.calledAtMs ?? nowMs) > route.hedgeMs) next();
  }

  return {
    begin: () => send(first!),
    get leading() {
      return leading();
    },
    commit() {
      const kept = leading();
      for (const [attempt, held] of live) if (attempt !== kept) giveUp(attempt, held);
      if (kept !== undefined) exchange.upstream = kept.upstream.name;
      const held = kept && live.get(kept);
      if (kept !== undefined && held !== undefined && winner === undefined) release(kept, held);
    },
    judge(nowMs) {
      for (const attempt of live.keys()) attempt.judge(nowMs, !events.hasBegun());
      for (const [attempt, sinceMs] of dropped) if (nowMs - sinceMs > DROP_MS) abandon(attempt);
      if (winner === undefined) hedge(nowMs);
    },
    abort(onClosed) {
      const last = leading();
      for (const attempt of [...dropped.keys(), ...live.keys()]) if (attempt !== last) attempt.abort();
      last?.abort(onClosed);
    },
  };
}

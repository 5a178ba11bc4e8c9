// The tries that one request takes, before the first byte of an answer has gone down: the next target where one fails, the next one
// too where its first token is late, and no upstream asked twice that may have done the work already.

import type { IncomingMessage } from 'node:http';
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
import type { Route, Target } from '../upstream/router.ts';
import type { RequestTarget } from '../upstream/target.ts';
import { type Asker, createRefusalReader, mayRefuseAsking, type Taker } from './asking.ts';
import { type Attempt, type AttemptEvents, type AttemptFailure, createAttempt, isRefusal, requestFor } from './attempt.ts';
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

/** What can be sent. */
export type Cargo = Pick<Entrance, 'canRepeat' | 'bodyBytes' | 'isStream' | 'body'>;

/** What is sent, and where to. */
export interface Errand {
  readonly plan: Plan;
  readonly cargo: Cargo;
}

/** So much of an answer is held until it is worth taking: start-up frames are short, and a longer one is no error. */
const MAX_HELD_BYTES = 256 * 1024;
/** Of an answer that is passed over so much is read, for the sake of its connection, and for so long. */
const MAX_DROPPED_BYTES = 64 * 1024;
const DROP_MS = 1_000;

/** An attempt, where it went, how many of its keys are left, and what is held of its answer. */
interface Sent {
  readonly attempt: Attempt;
  readonly target: Target;
  readonly furtherKeys: number;
  held: Held | undefined;
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
  errand: Errand,
  parts: TriesParts,
  events: TriesEvents,
): Tries {
  return new RouteTries(journey, errand, parts, events);
}

class RouteTries implements Tries, AttemptEvents {
  /** Until one of them is chosen: bodies may be large, and answers long. */
  private errand: Errand | undefined;
  private readonly parts: TriesParts;
  private readonly events: TriesEvents;
  private readonly exchange: Exchange;
  private readonly request: IncomingMessage;
  private readonly requestTarget: RequestTarget;
  private readonly route: Route;
  private readonly canRepeat: boolean;
  /** Those that are still to be tried. */
  private readonly queue: Target[];
  private readonly isHedged: boolean;
  /** Under way, and without an answer that was taken or passed over; those that are held with what they have said. */
  private live: readonly Sent[] = [];
  /** Passed over, and since when. Few requests have any. */
  private dropped: Map<Attempt, number> | undefined;
  private winner: Attempt | undefined;
  private isFirst = true;

  constructor(journey: Entrant & { readonly exchange: Exchange }, errand: Errand, parts: TriesParts, events: TriesEvents) {
    const { plan, cargo } = errand;
    this.errand = errand;
    this.parts = parts;
    this.events = events;
    this.exchange = journey.exchange;
    this.request = journey.request;
    this.requestTarget = journey.requestTarget;
    this.route = plan.route;
    this.canRepeat = cargo.canRepeat && cargo.bodyBytes <= this.route.replayBytes;
    this.queue = parts.balance.order(this.route);
    this.isHedged = this.canRepeat && plan.mayMove && Number.isFinite(this.route.hedgeMs) && this.queue.length > 1 && cargo.isStream();
  }

  /** @param furtherKeys so many keys may yet be tried, should this one be refused */
  private send(target: Target, furtherKeys: number = target.upstream.apiKeys.length - 1): void {
    const { upstream } = target;
    const { clock, metrics, outletOf } = this.parts;
    const outlet = outletOf(upstream);
    const key = outlet.keys.take();
    const { plan, cargo } = this.errand!;
    const edit = plan.edit(target);
    const attempt = createAttempt({ clock, metrics, exchange: this.exchange, outlet, key, edit }, this);
    this.live = [...this.live, { attempt, target, furtherKeys, held: undefined }];
    attempt.begin(requestFor(this.request, { outlet, key, edit, body: cargo.body(edit.splices) }));
  }

  private sentBy(attempt: Attempt): Sent | undefined {
    return this.live.find((sent) => sent.attempt === attempt);
  }

  /** Returns whether it was under way. */
  private forget(attempt: Attempt): boolean {
    const wasLive = this.sentBy(attempt) !== undefined;
    if (wasLive) this.live = this.live.filter((sent) => sent.attempt !== attempt);
    return wasLive;
  }

  onStart(): void {
    if (this.isFirst) this.events.onStart();
    this.isFirst = false;
  }

  onPhase(attempt: Attempt, phase: Phase): void {
    if (attempt === this.leading && !this.events.hasBegun()) this.events.onPhase(phase);
  }

  onSwitch(attempt: Attempt, headers: HeaderList, socket: Socket): void {
    this.choose(attempt);
    this.events.onSwitch?.(attempt, headers, socket);
  }

  onFail(attempt: Attempt, failure: AttemptFailure): void {
    this.lose(attempt, failure);
  }

  get leading(): Attempt | undefined {
    return this.winner ?? this.live[0]?.attempt;
  }

  onHead(attempt: Attempt, status: number, headers: HeaderList): Taker | undefined {
    const { target, furtherKeys } = this.sentBy(attempt)!;
    const { upstream } = target;
    if (isRefusal(status, upstream)) {
      // It has not served the call, so that another key of the same upstream may be tried for it.
      const isOfKey = (status === 401 || status === 429) && furtherKeys > 0 && this.parts.outletOf(upstream).keys.hasFresh;
      if (isOfKey && this.canRepeat && !this.events.hasBegun()) return this.passOver(attempt, () => this.send(target, furtherKeys - 1));
      if (this.canGoOn()) return this.passOver(attempt, () => this.next());
    }
    const take = () =>
      status >= 400 && this.live.length > 1 ? this.passOver(attempt, () => this.reconsider()) : this.win(attempt, status, headers);
    if (attempt.edit.strip !== undefined && mayRefuseAsking(status)) {
      const askLess = () => {
        this.parts.asker.remember(upstream);
        if (this.events.hasBegun()) return false;
        this.forget(attempt);
        attempt.tell('refused');
        this.send(target, furtherKeys);
        return true;
      };
      return createRefusalReader(askLess, take);
    }
    const isHeld = (this.canGoOn() || this.live.length > 1) && isPlainStream(status, headers);
    return isHeld ? this.hold(attempt, status, headers) : take();
  }

  /** Whether there is another target, and it is not too late for it. */
  private canGoOn(): boolean {
    return this.queue.length > 0 && !this.events.hasBegun();
  }

  private next(): void {
    const target = this.queue.shift();
    if (target !== undefined) this.send(target);
  }

  private win(attempt: Attempt, status: number, headers: HeaderList): Taker | undefined {
    this.choose(attempt);
    return this.events.onAnswer(attempt, status, headers);
  }

  private choose(attempt: Attempt): void {
    this.winner = attempt;
    this.errand = undefined;
    this.forget(attempt);
    for (const rival of this.live) this.giveUp(rival);
    attempt.tell('ok');
    this.exchange.upstream = attempt.upstream.name;
    this.exchange.cause = undefined;
  }

  /** It may have written already, and will be paid for. */
  private giveUp({ attempt: rival, held }: Sent): void {
    this.forget(rival);
    rival.tell('lost');
    rival.abort();
    if (rival.sentAtMs !== undefined)
      this.exchange.rivals.push({ upstream: rival.upstream.name, meter: held?.meter ?? this.createMeter() });
  }

  /** Reads a little of an answer that nobody will see, so that its connection can be used again, and goes on without it. */
  private passOver(attempt: Attempt, goOn: () => void): Taker {
    this.forget(attempt);
    attempt.tell('refused');
    this.dropped ??= new Map();
    this.dropped.set(attempt, this.parts.clock.now());
    let bytes = 0;
    goOn();
    return {
      chunk: (chunk) => {
        bytes += chunk.length;
        if (bytes > MAX_DROPPED_BYTES) this.abandon(attempt);
      },
      end: () => void this.dropped?.delete(attempt),
    };
  }

  private abandon(attempt: Attempt): void {
    this.dropped?.delete(attempt);
    attempt.abort();
  }

  private lose(attempt: Attempt, failure: AttemptFailure): void {
    this.dropped?.delete(attempt);
    const wasLive = this.forget(attempt);
    if (attempt !== this.winner && !wasLive) return;
    this.exchange.cause = failure.cause;
    if (attempt !== this.winner && this.live.length > 0) {
      this.reconsider();
    } else if (attempt !== this.winner && this.canGoOn()) {
      this.next();
    } else {
      this.exchange.upstream = attempt.upstream.name;
      this.events.onFail(failure);
    }
  }

  private createMeter(): Meter {
    return createStreamMeter(routeEndpoint(this.request.method ?? '', this.requestTarget.path).dialect, this.parts.tokenizer);
  }

  private hold(attempt: Attempt, status: number, headers: HeaderList): Taker {
    const held: Held = { status, headers, pieces: [], meter: this.createMeter(), bytes: 0, hasEnded: false };
    this.sentBy(attempt)!.held = held;
    return {
      chunk: (bytes) => {
        held.pieces.push(Buffer.from(bytes));
        held.bytes += bytes.length;
        held.meter.observe(bytes.toString('latin1'));
        this.weigh(attempt, held);
      },
      end: () => {
        held.hasEnded = true;
        this.weigh(attempt, held);
      },
    };
  }

  /** Takes what is held, or gives it up, where enough has come to tell. */
  private weigh(attempt: Attempt, held: Held): void {
    const { meter } = held;
    const isAlone = this.live.length === 1;
    const isLast = isAlone && !this.canGoOn();
    if (isLast) {
      this.release(attempt, held);
      return;
    }
    const isFailed = meter.contentCount === 0 && (meter.hasError || (held.hasEnded && !meter.isComplete));
    if (isFailed) {
      attempt.failed();
      attempt.tell(meter.hasError ? 'error_event' : 'upstream_truncated');
      attempt.abort();
      this.lose(attempt, { code: 'upstream_reset', outcome: meter.hasError ? 'upstream_error_event' : 'upstream_truncated' });
      return;
    }
    const isProven = isAlone && !this.isHedged ? meter.eventCount > 0 : meter.contentCount > 0;
    if (isProven || held.hasEnded || held.bytes > MAX_HELD_BYTES || meter.isOff) this.release(attempt, held);
  }

  private release(attempt: Attempt, held: Held): void {
    const taker = this.win(attempt, held.status, held.headers);
    attempt.takeOver(taker);
    for (const piece of held.pieces) taker?.chunk(piece);
    if (held.hasEnded) taker?.end();
    else taker?.flush?.();
  }

  /** A rival is out: what the others have said may be enough now. */
  private reconsider(): void {
    for (const sent of this.live) if (sent.held !== undefined && this.live.includes(sent)) this.weigh(sent.attempt, sent.held);
  }

  private hedge(nowMs: number): void {
    const latest = this.live.at(-1)?.attempt;
    if (this.isHedged && this.canGoOn() && latest !== undefined && nowMs - (latest.calledAtMs ?? nowMs) > this.route.hedgeMs) this.next();
  }

  begin(): void {
    const first = this.queue.shift()!;
    if (!this.canRepeat || !this.errand?.plan.mayMove) this.queue.length = 0;
    this.send(first);
  }

  commit(): void {
    const kept = this.leading;
    for (const sent of this.live) if (sent.attempt !== kept) this.giveUp(sent);
    if (kept !== undefined) this.exchange.upstream = kept.upstream.name;
    const held = kept && this.sentBy(kept)?.held;
    if (kept !== undefined && held !== undefined && this.winner === undefined) this.release(kept, held);
  }

  judge(nowMs: number): void {
    for (const { attempt } of this.live) attempt.judge(nowMs, !this.events.hasBegun());
    for (const [attempt, sinceMs] of this.dropped ?? []) if (nowMs - sinceMs > DROP_MS) this.abandon(attempt);
    if (this.winner === undefined) this.hedge(nowMs);
  }

  abort(onClosed?: () => void): void {
    const last = this.leading;
    for (const attempt of this.dropped?.keys() ?? []) attempt.abort();
    for (const { attempt } of this.live) if (attempt !== last) attempt.abort();
    last?.abort(onClosed);
  }
}

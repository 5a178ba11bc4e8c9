// THE route: one request goes up, its answer comes down, and whoever leaves first, both ends are settled once.
import type { Upstream } from '../config.ts';
import { type ErrorCode, type ErrorDetail, GatewayError } from '../errors.ts';
import type { Exchange, Ledger, Outcome, Phase } from '../exchange.ts';
import type { Roster, Seat } from '../roster.ts';
import { outputSoFar } from '../spending.ts';
import type { Judged } from '../stream/clock.ts';
import type { HeaderList } from '../upstream/headers.ts';
import type { Route } from '../upstream/router.ts';
import { type Answer, type AnswerOwner, type AnswerParts, answerError, beginAnswer, beginUnheard, type Journey } from './answer.ts';
import type { Taker } from './asking.ts';
import type { Attempt, AttemptFailure } from './attempt.ts';
import { createLateAnswer, EARLY_HEADERS, isPlainStream } from './early.ts';
import { createEntrance, type Entrance, type EntranceEvents, type EntranceParts } from './entrance.ts';
import type { Admit } from './limits.ts';
import { asGatewayError, REFUSED } from './listener.ts';
import { createModelList, gatherModels } from './model-list.ts';
import type { Plan } from './plan.ts';
import { createTries, type Tries, type TriesEvents, type TriesParts } from './tries.ts';

/** What forwarding needs; one for all requests. */
export interface Station extends AnswerParts, EntranceParts, TriesParts {
  readonly ledger: Ledger;
  /** All requests that are on their way. */
  readonly passages: Roster<Passage>;
}

/** A request that is on its way. */
export interface Passage {
  readonly exchange: Exchange;
  /** Ends it now, as `draining`. */
  drain(): void;
  /** Ends it now, as its operator wishes. */
  end(): void;
}

/** How requests end whose upstream did its part badly after its answer had begun. */
const UPSTREAM_BROKE = new Set<Outcome>([
  'upstream_reset',
  'upstream_truncated',
  'upstream_error_event',
  'timeout_idle',
  'timeout_first_byte',
]);

/**
 * Sends an admitted request to an upstream and relays the answer. Everything that can end it (the upstream's end or
 * failure, the client's going, a deadline, a drain) comes together here and settles it exactly once.
 * @param admit counts the request against its caller's limits
 */
export function forward(journey: Journey, station: Station, admit: Admit): void {
  new ForwardedRequest(journey, station, admit).begin();
}

/** One object: a closure for each of what it is told would be twenty, for as long as the stream lives. */
class ForwardedRequest implements Passage, EntranceEvents, TriesEvents, AnswerOwner, Judged {
  readonly exchange: Exchange;
  private readonly journey: Journey;
  private readonly station: Station;
  private readonly admittedAtMs: number;
  /** What the client took to send a body that had to be whole: no doing of ours. */
  private uploadMs = 0;
  /** Until the answer has begun and the whole body has gone by. */
  private entrance: Entrance | undefined;
  private route: Route;
  private shows: Plan['shows'];
  private tries: Tries | undefined;
  private answer: Answer | undefined;
  /** When the client left, where the answer is read on without it. */
  private unheardSinceMs: number | undefined;
  private isOver = false;
  /** Among those that are on their way, and on the clock. */
  private seat: Seat<Passage> | undefined;
  private beat: Seat<Judged> | undefined;
  private readonly onHalfClose = () => this.halfClosed();

  constructor(journey: Journey, station: Station, admit: Admit) {
    this.exchange = journey.exchange;
    this.journey = journey;
    this.station = station;
    this.admittedAtMs = station.clock.now();
    this.route = station.planner.firstRoute;
    this.entrance = createEntrance(journey, station, admit, this);
  }

  begin(): void {
    const { request, response } = this.journey;
    const { socket } = request;
    this.seat = this.station.passages.enter(this);
    this.beat = this.station.clock.onBeat(this);
    response.on('close', () => this.clientGone());
    socket.on('end', this.onHalfClose);
    request.on(REFUSED, (error: GatewayError) => this.fail(error, 'rejected'));
    // The client may have left, or its body been refused, while it was being admitted.
    if (socket.destroyed) this.clientGone();
    else if (socket.readableEnded) this.halfClosed();
    else if (response.headersSent) this.onOutcome('rejected');
    else this.entrance?.begin();
  }

  onOutcome(outcome: Outcome): void {
    if (this.isOver) return;
    this.isOver = true;
    this.seat?.leave();
    this.beat?.leave();
    this.journey.request.socket.off('end', this.onHalfClose);
    this.leaveEntrance();
    if (this.answer !== undefined && UPSTREAM_BROKE.has(outcome)) this.tries?.leading?.failed();
    this.tries?.abort();
    this.station.ledger.end(this.exchange, outcome);
  }

  private leaveEntrance(): void {
    this.entrance?.close();
    this.entrance = undefined;
  }

  /** Ends the request as failed: with an error as the answer, or as the end of the answer that has begun. */
  private fail(failure: ErrorCode | GatewayError, outcome: Outcome, detail?: ErrorDetail): void {
    if (this.isOver) return;
    const error = typeof failure === 'string' ? new GatewayError(failure) : failure;
    this.tries?.abort();
    if (outcome === 'rejected' && this.unheardSinceMs === undefined) this.exchange.rejection = reasonOf(error);
    if (this.answer !== undefined) this.answer.relay.break({ detail: detail ?? error.detail, outcome });
    else if (this.unheardSinceMs !== undefined) this.onOutcome('client_closed');
    else this.refuseWith(error, outcome);
  }

  private refuseWith(error: GatewayError, outcome: Outcome): void {
    answerError(this.journey, error);
    this.onOutcome(outcome);
  }

  drain(): void {
    this.fail('draining', 'drained');
  }

  end(): void {
    this.fail('ended_by_operator', 'rejected');
  }

  onRefused(failure: unknown): void {
    this.fail(asGatewayError(failure, this.station.onFault), 'rejected');
  }

  onExhausted(): void {
    this.fail('insufficient_quota', 'rejected');
  }

  onReady(plan: Plan): void {
    const { journey, station, entrance } = this;
    if (entrance === undefined) return;
    this.route = plan.route;
    this.shows = plan.shows;
    if (entrance.isRead) this.uploadMs = station.clock.now() - this.admittedAtMs;
    this.tries =
      plan.merges === undefined
        ? createTries(journey, { plan, cargo: entrance }, station, this)
        : gatherModels(journey, plan.merges, station, this);
    this.tries.begin();
  }

  /** Whether it is too late for another try. */
  hasBegun(): boolean {
    return this.isOver || this.answer !== undefined || this.unheardSinceMs !== undefined;
  }

  onStart(): void {
    const { clock, metrics } = this.station;
    metrics.overhead('request', (clock.now() - this.exchange.startedAtMs - this.uploadMs) / 1000);
  }

  onPhase(phase: Phase): void {
    this.exchange.phase = phase;
  }

  onFail({ code, outcome }: AttemptFailure): void {
    this.fail(code, outcome);
  }

  onAnswer(attempt: Attempt, status: number, headers: HeaderList): Taker | undefined {
    const { exchange, answer, shows } = this;
    exchange.ttfbMs = this.station.clock.now() - exchange.startedAtMs;
    if (answer === undefined && this.unheardSinceMs !== undefined) return this.takeUnheard(status, headers);
    // Providers quote part of a key that they refuse, so none of such an answer goes on.
    if (status === 401 && attempt.key !== undefined) return void this.fail('upstream_auth', 'upstream_error');
    if (answer !== undefined) {
      return isPlainStream(status, headers)
        ? answer.taker
        : createLateAnswer(status, attempt.key, (detail, late) => this.failLate(detail, late));
    }
    if (shows !== undefined && status < 300) return createModelList(shows, headers, (own) => this.beginAnswer(attempt, status, own).taker);
    return this.beginAnswer(attempt, status, headers).taker;
  }

  private takeUnheard(status: number, headers: HeaderList): Taker {
    const onEnd = () => this.onOutcome('client_closed');
    const unheard = beginUnheard(status, headers, this.journey, this.station.tokenizer, onEnd);
    // A file, or an error: it tells nothing of tokens.
    if (this.exchange.meter === undefined) this.fail('upstream_total_timeout', 'client_closed');
    return unheard;
  }

  private beginAnswer(attempt: Attempt | undefined, status: number, headers: HeaderList): Answer {
    this.entrance?.keepForCounting();
    if (this.entrance?.isRead) this.leaveEntrance();
    const upstream = attempt?.upstream ?? this.upstreamNow();
    const sentAtMs = attempt?.sentAtMs ?? this.station.clock.now();
    const received = { status, headers, upstream, key: attempt?.key, sentAtMs, strip: attempt?.edit.strip };
    if (this.beat?.leave()) this.beat = this.station.clock.inTurn(this);
    this.answer = beginAnswer(received, this.journey, this.station, this);
    return this.answer;
  }

  private failLate(detail: ErrorDetail, status: number): void {
    this.fail('upstream_truncated', status >= 400 ? 'upstream_error' : 'upstream_truncated', detail);
  }

  pause(): void {
    this.tries?.leading?.pause();
  }

  resume(): void {
    this.tries?.leading?.resume();
  }

  abort(): void {
    this.tries?.abort();
  }

  /** Whose bounds hold. */
  private upstreamNow(): Upstream {
    return this.tries?.leading?.upstream ?? this.route.targets[0]!.upstream;
  }

  judge(nowMs: number): void {
    const ageMs = nowMs - this.exchange.startedAtMs;
    if (ageMs > this.upstreamNow().timeouts.totalMs) {
      this.fail(this.answer === undefined ? 'upstream_timeout' : 'upstream_total_timeout', 'timeout_total');
      // An answer that has come whole cannot fail any more; its client may still stall.
      if (!this.isOver) this.answer?.relay.judge(nowMs);
    } else if (this.unheardSinceMs !== undefined) {
      if (this.hasReadEnough(nowMs - this.unheardSinceMs)) this.fail('upstream_total_timeout', 'client_closed');
    } else {
      this.tries?.judge(nowMs);
      if (this.isOver) return;
      if (this.answer !== undefined) this.answer.relay.judge(nowMs);
      // Not while the call may yet be refused here, or its body is still to be sent.
      else if (this.tries !== undefined && ageMs > this.station.config.sse.earlyHeadersMs && this.entrance?.isStream())
        this.beginEarly(this.tries);
    }
  }

  /** Something goes down: from here on there is one upstream only. */
  private beginEarly(of: Tries): void {
    this.beginAnswer(of.leading, 200, EARLY_HEADERS);
    of.commit();
  }

  /** Thousands may leave at one instant, as when a network or a replica goes: no other stream waits for all of them. */
  private clientGone(): void {
    if (this.isOver) return;
    const { clock } = this.station;
    const leftAtMs = clock.now();
    const { phase } = this.exchange;
    clock.spread(() => this.leave(leftAtMs, phase));
  }

  private leave(leftAtMs: number, phase: Phase): void {
    if (this.isOver || this.unheardSinceMs !== undefined) return;
    if (this.isWorthReadingOn()) {
      this.readOn(leftAtMs);
      return;
    }
    const { clock, metrics } = this.station;
    this.tries?.abort(() => metrics.upstreamClosed(phase, (clock.now() - leftAtMs) / 1000));
    if (this.answer === undefined) this.onOutcome('client_closed');
    else this.answer.relay.clientGone();
  }

  /** The whole request has gone up, so that its tokens will be billed, and what comes can be metered: not what is gathered first. */
  private isWorthReadingOn(): boolean {
    const attempt = this.tries?.leading;
    if (attempt?.upstream.onClientGone === undefined || attempt.sentAtMs === undefined) return false;
    return this.answer === undefined ? attempt.isHeadDue : this.exchange.meter !== undefined;
  }

  private readOn(leftAtMs: number): void {
    this.unheardSinceMs = leftAtMs;
    this.exchange.outputHeard = outputSoFar(this.exchange.meter);
    this.tries?.commit();
    this.answer?.relay.readOn();
  }

  private hasReadEnough(unheardMs: number): boolean {
    const { drainMs = 0, maxTokens = 0 } = this.upstreamNow().onClientGone ?? {};
    return unheardMs > drainMs || outputSoFar(this.exchange.meter) - (this.exchange.outputHeard ?? 0) > maxTokens;
  }

  /** Node waits with its own end of the connection until a blocked answer has gone out, which then is never. */
  private halfClosed(): void {
    this.clientGone();
    this.station.clock.spread(() => this.journey.response.destroy());
  }
}

/** What metrics call a refusal: its code, and of limits which one it was. */
export function reasonOf({ code, type }: GatewayError): string {
  return code === 'rate_limit_exceeded' ? `${code}_${type}` : code;
}

// THE route: one request goes up, its answer comes down, and whoever leaves first, both ends are settled once.
import type { Upstream } from '../config.ts';
import { type ErrorCode, type ErrorDetail, GatewayError } from '../errors.ts';
import type { Exchange, Ledger, Outcome, Phase } from '../exchange.ts';
import { outputSoFar } from '../spending.ts';
import type { HeaderList } from '../upstream/headers.ts';
import { type Answer, type AnswerParts, answerError, beginAnswer, beginUnheard, type Journey } from './answer.ts';
import type { Taker } from './asking.ts';
import type { Attempt } from './attempt.ts';
import { createLateAnswer, EARLY_HEADERS, isPlainStream } from './early.ts';
import { createEntrance, type EntranceParts } from './entrance.ts';
import type { Admit } from './limits.ts';
import { asGatewayError, REFUSED } from './listener.ts';
import { createModelList, gatherModels } from './model-list.ts';
import type { Plan } from './plan.ts';
import { createTries, type Tries, type TriesEvents, type TriesParts } from './tries.ts';

/** What forwarding needs; one for all requests. */
export interface Station extends AnswerParts, EntranceParts, TriesParts {
  readonly ledger: Ledger;
  /** All requests that are on their way. */
  readonly passages: Set<Passage>;
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
  const { exchange, request, response } = journey;
  const { clock, ledger, metrics, config } = station;
  const { socket } = request;
  const admittedAtMs = clock.now();
  let tries: Tries | undefined;
  let answer: Answer | undefined;
  let plan: Plan | undefined;
  let readyAtMs = admittedAtMs;
  /** When the client left, where the answer is read on without it. */
  let unheardSinceMs: number | undefined;
  let isOver = false;

  function settle(outcome: Outcome): void {
    if (isOver) return;
    isOver = true;
    stopJudging();
    socket.off('end', onHalfClose);
    entrance.close();
    if (answer !== undefined && UPSTREAM_BROKE.has(outcome)) tries?.leading?.failed();
    tries?.abort();
    station.passages.delete(passage);
    ledger.end(exchange, outcome);
  }

  /** Ends the request as failed: with an error as the answer, or as the end of the answer that has begun. */
  function fail(failure: ErrorCode | GatewayError, outcome: Outcome, detail?: ErrorDetail): void {
    if (isOver) return;
    const error = typeof failure === 'string' ? new GatewayError(failure) : failure;
    tries?.abort();
    if (outcome === 'rejected' && unheardSinceMs === undefined) exchange.rejection = reasonOf(error);
    if (answer !== undefined) answer.relay.break({ detail: detail ?? error.detail, outcome });
    else if (unheardSinceMs !== undefined) settle('client_closed');
    else refuseWith(error, outcome);
  }

  function refuseWith(error: GatewayError, outcome: Outcome): void {
    answerError(journey, error);
    settle(outcome);
  }

  function onAnswer(attempt: Attempt, status: number, headers: HeaderList): Taker | undefined {
    exchange.ttfbMs = clock.now() - exchange.startedAtMs;
    if (answer === undefined && unheardSinceMs !== undefined) {
      const unheard = beginUnheard(status, headers, journey, station.tokenizer, () => settle('client_closed'));
      // A file, or an error: it tells nothing of tokens.
      if (exchange.meter === undefined) fail('upstream_total_timeout', 'client_closed');
      return unheard;
    }
    // Providers quote part of a key that they refuse, so none of such an answer goes on.
    if (status === 401 && attempt.key !== undefined) return void fail('upstream_auth', 'upstream_error');
    if (answer !== undefined) return isPlainStream(status, headers) ? answer.taker : createLateAnswer(status, attempt.key, failLate);
    if (plan?.shows !== undefined && status < 300) return createModelList(plan.shows, headers, (own) => begin(attempt, status, own).taker);
    return begin(attempt, status, headers).taker;
  }

  function begin(attempt: Attempt | undefined, status: number, headers: HeaderList): Answer {
    entrance.keepForCounting();
    const upstream = attempt?.upstream ?? upstreamNow();
    const source = { pause: () => tries?.leading?.pause(), resume: () => tries?.leading?.resume(), abort: () => tries?.abort() };
    const ends = {
      source,
      upstream,
      key: attempt?.key,
      sentAtMs: attempt?.sentAtMs ?? clock.now(),
      strip: attempt?.edit.strip,
      onOutcome: settle,
    };
    answer = beginAnswer(status, headers, journey, station, ends);
    return answer;
  }

  function failLate(detail: ErrorDetail, status: number): void {
    fail('upstream_truncated', status >= 400 ? 'upstream_error' : 'upstream_truncated', detail);
  }

  /** Whose bounds hold. */
  function upstreamNow(): Upstream {
    return tries?.leading?.upstream ?? (plan?.route ?? station.planner.firstRoute).targets[0]!.upstream;
  }

  function judge(nowMs: number): void {
    const ageMs = nowMs - exchange.startedAtMs;
    if (ageMs > upstreamNow().timeouts.totalMs) {
      fail(answer === undefined ? 'upstream_timeout' : 'upstream_total_timeout', 'timeout_total');
      // An answer that has come whole cannot fail any more; its client may still stall.
      if (!isOver) answer?.relay.judge(nowMs);
    } else if (unheardSinceMs !== undefined) {
      if (hasReadEnough(nowMs - unheardSinceMs)) fail('upstream_total_timeout', 'client_closed');
    } else {
      tries?.judge(nowMs);
      if (isOver) return;
      if (answer !== undefined) answer.relay.judge(nowMs);
      // Not while the call may yet be refused here, or its body is still to be sent.
      else if (tries !== undefined && ageMs > config.sse.earlyHeadersMs && entrance.isStream()) beginEarly(tries);
    }
  }

  /** Something goes down: from here on there is one upstream only. */
  function beginEarly(of: Tries): void {
    begin(of.leading, 200, EARLY_HEADERS);
    of.commit();
  }

  /** Thousands may leave at one instant, as when a network or a replica goes: no other stream waits for all of them. */
  function onClientGone(): void {
    const leftAtMs = clock.now();
    const { phase } = exchange;
    clock.spread(() => leave(leftAtMs, phase));
  }

  function leave(leftAtMs: number, phase: Phase): void {
    if (isOver || unheardSinceMs !== undefined) return;
    if (isWorthReadingOn()) {
      readOn(leftAtMs);
      return;
    }
    tries?.abort(() => metrics.upstreamClosed(phase, (clock.now() - leftAtMs) / 1000));
    if (answer === undefined) settle('client_closed');
    else answer.relay.clientGone();
  }

  /** The whole request has gone up, so that its tokens will be billed, and what comes can be metered: not what is gathered first. */
  function isWorthReadingOn(): boolean {
    const attempt = tries?.leading;
    if (attempt?.upstream.onClientGone === undefined || attempt.sentAtMs === undefined) return false;
    return answer === undefined ? attempt.isHeadDue : exchange.meter !== undefined;
  }

  function readOn(leftAtMs: number): void {
    unheardSinceMs = leftAtMs;
    exchange.outputHeard = outputSoFar(exchange.meter);
    tries?.commit();
    answer?.relay.readOn();
  }

  function hasReadEnough(unheardMs: number): boolean {
    const { drainMs = 0, maxTokens = 0 } = upstreamNow().onClientGone ?? {};
    return unheardMs > drainMs || outputSoFar(exchange.meter) - (exchange.outputHeard ?? 0) > maxTokens;
  }

  /** Node waits with its own end of the connection until a blocked answer has gone out, which then is never. */
  function onHalfClose(): void {
    onClientGone();
    clock.spread(() => response.destroy());
  }

  const entrance = createEntrance(journey, station, admit, {
    onReady,
    onRefused: (failure) => fail(asGatewayError(failure, station.onFault), 'rejected'),
    onExhausted: () => fail('insufficient_quota', 'rejected'),
  });
  const passage: Passage = {
    exchange,
    drain: () => fail('draining', 'drained'),
    end: () => fail('ended_by_operator', 'rejected'),
  };
  station.passages.add(passage);
  const stopJudging = clock.onBeat(judge);
  response.once('close', onClientGone);
  socket.once('end', onHalfClose);
  request.once(REFUSED, (error: GatewayError) => fail(error, 'rejected'));
  // The client may have left, or its body been refused, while it was being admitted.
  if (socket.destroyed) onClientGone();
  else if (socket.readableEnded) onHalfClose();
  else if (response.headersSent) settle('rejected');
  else entrance.begin();

  function onReady(how: Plan): void {
    plan = how;
    readyAtMs = clock.now();
    const events: TriesEvents = {
      hasBegun: () => isOver || answer !== undefined || unheardSinceMs !== undefined,
      onStart() {
        // What the client took to send a body that had to be whole is no doing of ours.
        const uploadMs = entrance.isRead ? readyAtMs - admittedAtMs : 0;
        metrics.overhead('request', (clock.now() - exchange.startedAtMs - uploadMs) / 1000);
      },
      onPhase(phase) {
        exchange.phase = phase;
      },
      onAnswer,
      onFail: ({ code, outcome }) => fail(code, outcome),
    };
    tries =
      plan.merges === undefined
        ? createTries(journey, { plan, cargo: entrance }, station, events)
        : gatherModels(journey, plan.merges, station, events);
    tries.begin();
  }
}

/** What metrics call a refusal: its code, and of limits which one it was. */
export function reasonOf({ code, type }: GatewayError): string {
  return code === 'rate_limit_exceeded' ? `${code}_${type}` : code;
}

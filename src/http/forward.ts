// THE route: one request goes up, its answer comes down, and whoever leaves first, both ends are settled once.
import type { Readable } from 'node:stream';
import type { Upstream } from '../config.ts';
import { type ErrorCode, type ErrorDetail, GatewayError } from '../errors.ts';
import type { Ledger, Outcome, Phase } from '../exchange.ts';
import { outputSoFar } from '../spending.ts';
import type { UpstreamCall, UpstreamClient, UpstreamFailure, UpstreamRequest } from '../upstream/client.ts';
import { type HeaderList, isKeyInjected, requestHeaders } from '../upstream/headers.ts';
import { upstreamPath } from '../upstream/target.ts';
import { type Answer, type AnswerParts, beginAnswer, beginUnheard, type Journey } from './answer.ts';
import { type Asker, createRefusalReader, mayRefuseAsking, type Taker } from './asking.ts';
import { createLateAnswer, EARLY_HEADERS, isPlainStream } from './early.ts';
import { createEntrance, type EntranceParts } from './entrance.ts';
import type { Admit } from './limits.ts';
import { asGatewayError, REFUSED } from './listener.ts';
import { createModelList } from './model-list.ts';
import type { Plan } from './plan.ts';
import { refuse } from './refuse.ts';

/** What forwarding needs; one for all requests. */
export interface Station extends AnswerParts, EntranceParts {
  readonly asker: Asker;
  readonly ledger: Ledger;
  /** All requests that are on their way. */
  readonly passages: Set<Passage>;
  clientOf(upstream: Upstream): UpstreamClient;
}

/** What `connect` says where this machine, not the upstream, has no room: connect(2), socket(2). */
export const OUT_OF_SOCKETS = new Set(['EADDRNOTAVAIL', 'EMFILE', 'ENFILE', 'ENOBUFS']);

/** A request that is on its way. */
export interface Passage {
  /** Ends it now, as `draining`. */
  drain(): void;
}

/**
 * Sends an admitted request to its upstream and relays the answer. Everything that can end it (the upstream's end or
 * failure, the client's going, a deadline, a drain) comes together here and settles it exactly once.
 * @param admit counts the request against its caller's limits
 */
export function forward(journey: Journey, station: Station, admit: Admit): void {
  const { exchange, request, response } = journey;
  const { clock, ledger, metrics, config } = station;
  const { socket } = request;
  const admittedAtMs = clock.now();
  let call: UpstreamCall | undefined;
  let answer: Answer | undefined;
  /** Who takes the body of the upstream's answer. */
  let taker: Taker | undefined;
  let plan: Plan | undefined;
  let isHeadDue = true;
  let calledAtMs: number | undefined;
  let connectedAtMs: number | undefined;
  let sentAtMs: number | undefined;
  /** When the client left, where the answer is read on without it. */
  let unheardSinceMs: number | undefined;
  let isOver = false;

  function settle(outcome: Outcome): void {
    if (isOver) return;
    isOver = true;
    stopJudging();
    socket.off('end', onHalfClose);
    entrance.close();
    station.passages.delete(passage);
    ledger.end(exchange, outcome);
  }

  /** Ends the request as failed: with an error as the answer, or as the end of the answer that has begun. */
  function fail(failure: ErrorCode | GatewayError, outcome: Outcome, detail?: ErrorDetail): void {
    if (isOver) return;
    const error = typeof failure === 'string' ? new GatewayError(failure) : failure;
    call?.abort();
    if (outcome === 'rejected' && unheardSinceMs === undefined) exchange.rejection = reasonOf(error);
    if (answer !== undefined) answer.relay.break({ detail: detail ?? error.detail, outcome });
    else if (unheardSinceMs !== undefined) settle('client_closed');
    else refuseWith(error, outcome);
  }

  function refuseWith(error: GatewayError, outcome: Outcome): void {
    exchange.status = error.row.status;
    const { upstream } = exchange;
    const served = upstream === undefined ? [] : ['x-sluicegate-upstream', upstream];
    refuse(response, error, ['x-request-id', exchange.requestId, ...served, ...journey.ownHeaders]);
    settle(outcome);
  }

  function failAttempt(code: 'upstream_unreachable' | 'upstream_reset' | 'upstream_timeout' | 'overloaded', outcome: Outcome): void {
    metrics.attempt(journey.route.upstream.name, code);
    fail(code, outcome);
  }

  function onFailure({ kind, detail }: UpstreamFailure): void {
    exchange.cause = detail;
    const code = kind === 'unreachable' ? 'upstream_unreachable' : 'upstream_reset';
    if (OUT_OF_SOCKETS.has(detail)) failAttempt('overloaded', 'rejected');
    else if (isHeadDue) failAttempt(code, code);
    else fail(code, code);
  }

  function onHead(status: number, headers: HeaderList): void {
    const { upstream } = journey.route;
    isHeadDue = false;
    exchange.ttfbMs = clock.now() - exchange.startedAtMs;
    metrics.attempt(upstream.name, 'ok');
    metrics.response(upstream.name, status);
    if (answer === undefined && unheardSinceMs !== undefined) {
      taker = beginUnheard(status, headers, journey, station.tokenizer, () => settle('client_closed'));
      // A file, or an error: it tells nothing of tokens.
      if (exchange.meter === undefined) fail('upstream_total_timeout', 'client_closed');
    }
    // Providers quote part of a key that they refuse, so none of such an answer goes on.
    else if (status === 401 && isKeyInjected(upstream)) fail('upstream_auth', 'upstream_error');
    else if (answer !== undefined) taker = isPlainStream(status, headers) ? answer : createLateAnswer(status, upstream, failLate);
    else if (plan?.asked !== undefined && mayRefuseAsking(status)) taker = createRefusalReader(status, headers, callAsSent, begin);
    else if (plan?.shows !== undefined && status < 300) taker = createModelList(plan.shows, headers, (own) => begin(status, own));
    else taker = begin(status, headers);
  }

  function begin(status: number, headers: HeaderList): Answer {
    entrance.keepForCounting();
    const source = { pause: () => call?.pause(), resume: () => call?.resume(), abort: () => call?.abort() };
    const ends = { source, sentAtMs: sentAtMs ?? clock.now(), strip: plan?.asked?.strip, onOutcome: settle };
    answer = beginAnswer(status, headers, journey, station, ends);
    return answer;
  }

  function failLate(detail: ErrorDetail, status: number): void {
    fail('upstream_truncated', status >= 400 ? 'upstream_error' : 'upstream_truncated', detail);
  }

  function judge(nowMs: number): void {
    const ageMs = nowMs - exchange.startedAtMs;
    const { timeouts } = journey.route.upstream;
    if (ageMs > timeouts.totalMs) {
      fail(answer === undefined ? 'upstream_timeout' : 'upstream_total_timeout', 'timeout_total');
      // An answer that has come whole cannot fail any more; its client may still stall.
      if (!isOver) answer?.relay.judge(nowMs);
    } else if (unheardSinceMs !== undefined) {
      if (hasReadEnough(nowMs - unheardSinceMs)) fail('upstream_total_timeout', 'client_closed');
    } else if (calledAtMs !== undefined && connectedAtMs === undefined && nowMs - calledAtMs > timeouts.connectMs) {
      if (call?.isQueued) failAttempt('overloaded', 'rejected');
      else failAttempt('upstream_timeout', 'timeout_connect');
    } else if (answer !== undefined) {
      answer.relay.judge(nowMs);
    } else if (sentAtMs !== undefined && nowMs - sentAtMs > timeouts.firstByteMs) {
      failAttempt('upstream_timeout', 'timeout_first_byte');
    } else if (calledAtMs !== undefined && ageMs > config.sse.earlyHeadersMs && entrance.isStream()) {
      // Not while the call may yet be refused here, or its body is still to be sent.
      begin(200, EARLY_HEADERS);
    }
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
    call?.abort(() => metrics.upstreamClosed(phase, (clock.now() - leftAtMs) / 1000));
    if (answer === undefined) settle('client_closed');
    else answer.relay.clientGone();
  }

  /** The whole request has gone up, so that its tokens will be billed, and what comes can be metered: not what is gathered first. */
  function isWorthReadingOn(): boolean {
    const { onClientGone: bounds } = journey.route.upstream;
    return bounds !== undefined && sentAtMs !== undefined && (answer === undefined ? isHeadDue : exchange.meter !== undefined);
  }

  function readOn(leftAtMs: number): void {
    unheardSinceMs = leftAtMs;
    exchange.outputHeard = outputSoFar(exchange.meter);
    answer?.relay.readOn();
  }

  function hasReadEnough(unheardMs: number): boolean {
    const { drainMs = 0, maxTokens = 0 } = journey.route.upstream.onClientGone ?? {};
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
  const passage: Passage = { drain: () => fail('draining', 'drained') };
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

  function onReady(how: Plan, body: Readable | Buffer | undefined): void {
    plan = how;
    callWith(body);
  }

  function callAsSent(): void {
    station.asker.remember(journey.route.upstream);
    plan = plan && { ...plan, asked: undefined };
    isHeadDue = true;
    connectedAtMs = sentAtMs = undefined;
    callWith(entrance.bodyFor(undefined));
  }

  function callWith(sent: Readable | Buffer | undefined): void {
    const { upstream } = journey.route;
    exchange.upstream = upstream.name;
    exchange.attempts += 1;
    calledAtMs = clock.now();
    call = station.clientOf(upstream).send(requestFor(journey, sent), {
      onStart() {
        connectedAtMs = clock.now();
        exchange.phase = 'upload';
        // What the client took to send a body that had to be whole is no doing of ours.
        const uploadMs = entrance.isRead ? (calledAtMs ?? admittedAtMs) - admittedAtMs : 0;
        metrics.overhead('request', (connectedAtMs - exchange.startedAtMs - uploadMs) / 1000);
      },
      onSent() {
        sentAtMs = clock.now();
        if (answer === undefined) exchange.phase = 'headers';
      },
      onHead,
      onChunk: (bytes) => taker?.chunk(bytes),
      onEnd: () => taker?.end(),
      onFail: onFailure,
    });
    // What ended while it was being sent could not be aborted yet.
    if (isOver) call.abort();
  }
}

function requestFor({ request, requestTarget, route }: Journey, body: Readable | Buffer | undefined): UpstreamRequest {
  const { upstream } = route;
  const { pathname } = new URL(upstream.baseUrl);
  const headers = requestHeaders(request.rawHeaders, upstream, upstream.apiKeys[0]);
  return {
    method: request.method ?? 'GET',
    path: upstreamPath(requestTarget, pathname === '/' ? '' : pathname, upstream.query),
    // A body that was held has the length that it has.
    headers: Buffer.isBuffer(body) ? headers.filter((_, at) => headers[at - (at % 2)]?.toLowerCase() !== 'content-length') : headers,
    body,
  };
}

/** What metrics call a refusal: its code, and of limits which one it was. */
export function reasonOf({ code, type }: GatewayError): string {
  return code === 'rate_limit_exceeded' ? `${code}_${type}` : code;
}

// THE route: one request goes up, its answer comes down, and whoever leaves first, both ends are settled once.
import type { Readable } from 'node:stream';
import type { Upstream } from '../config.ts';
import { detailOf, type ErrorCode, type ErrorDetail, GatewayError } from '../errors.ts';
import type { Ledger, Outcome, Phase } from '../exchange.ts';
import type { AskedRequest } from '../upstream/ask.ts';
import type { UpstreamCall, UpstreamClient, UpstreamFailure, UpstreamRequest } from '../upstream/client.ts';
import { type HeaderList, isKeyInjected, requestHeaders } from '../upstream/headers.ts';
import { upstreamPath } from '../upstream/target.ts';
import { type Answer, type AnswerParts, beginAnswer, type Journey } from './answer.ts';
import { type Asker, createRefusalReader, type HeldBody, holdBody, mayRefuseAsking, type Taker } from './asking.ts';
import { createLateAnswer, createStreamWish, EARLY_HEADERS, isPlainStream } from './early.ts';
import { REFUSED } from './listener.ts';
import { refuse } from './refuse.ts';
import { openUpload } from './upload.ts';

/** What forwarding needs; one for all requests. */
export interface Station extends AnswerParts {
  readonly asker: Asker;
  readonly ledger: Ledger;
  /** All requests that are on their way. */
  readonly passages: Set<Passage>;
  clientOf(upstream: Upstream): UpstreamClient;
}

/** What `connect` says where this machine, not the upstream, has no room: connect(2), socket(2). */
const OUT_OF_SOCKETS = new Set(['EADDRNOTAVAIL', 'EMFILE', 'ENFILE', 'ENOBUFS']);

/** A request that is on its way. */
export interface Passage {
  /** Ends it now, as `draining`. */
  drain(): void;
}

/**
 * Sends an admitted request to its upstream and relays the answer. Everything that can end it (the upstream's end or
 * failure, the client's going, a deadline, a drain) comes together here and settles it exactly once.
 */
export function forward(journey: Journey, station: Station): void {
  const { exchange, request, response, upstream } = journey;
  const { clock, ledger, metrics, config } = station;
  const { timeouts } = upstream;
  const { socket } = request;
  const admittedAtMs = clock.now();
  let call: UpstreamCall | undefined;
  let answer: Answer | undefined;
  /** Who takes the body of the upstream's answer. */
  let taker: Taker | undefined;
  /** What was asked on the client's behalf, where anything was. */
  let asked: AskedRequest | undefined;
  let held: HeldBody | undefined;
  let isHeadDue = true;
  let calledAtMs: number | undefined;
  let connectedAtMs: number | undefined;
  let sentAtMs: number | undefined;
  let isOver = false;

  function settle(outcome: Outcome): void {
    if (isOver) return;
    isOver = true;
    stopJudging();
    socket.off('end', onHalfClose);
    upload.close();
    held?.letGo();
    station.passages.delete(passage);
    ledger.end(exchange, outcome);
  }

  /** Ends the request as failed: with an error as the answer, or as the end of the answer that has begun. */
  function fail(code: ErrorCode, outcome: Outcome, detail: ErrorDetail = detailOf(code)): void {
    if (isOver) return;
    call?.abort();
    if (outcome === 'rejected') exchange.rejection = code;
    if (answer !== undefined) {
      answer.relay.break({ detail, outcome });
      return;
    }
    const error = new GatewayError(code);
    exchange.status = error.row.status;
    refuse(response, error, ['x-request-id', exchange.requestId, 'x-sluicegate-upstream', upstream.name, ...journey.ownHeaders]);
    settle(outcome);
  }

  function failAttempt(code: 'upstream_unreachable' | 'upstream_reset' | 'upstream_timeout' | 'overloaded', outcome: Outcome): void {
    metrics.attempt(upstream.name, code);
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
    isHeadDue = false;
    exchange.ttfbMs = clock.now() - exchange.startedAtMs;
    metrics.attempt(upstream.name, 'ok');
    metrics.response(upstream.name, status);
    // Providers quote part of a key that they refuse, so none of such an answer goes on.
    if (status === 401 && isKeyInjected(upstream)) fail('upstream_auth', 'upstream_error');
    else if (answer !== undefined) taker = isPlainStream(status, headers) ? answer : createLateAnswer(status, upstream, failLate);
    else if (asked !== undefined && mayRefuseAsking(status)) taker = createRefusalReader(status, headers, callAsSent, begin);
    else taker = begin(status, headers);
  }

  function begin(status: number, headers: HeaderList): Answer {
    held?.letGo();
    const source = { pause: () => call?.pause(), resume: () => call?.resume(), abort: () => call?.abort() };
    const ends = { source, sentAtMs: sentAtMs ?? clock.now(), strip: asked?.strip, onOutcome: settle };
    answer = beginAnswer(status, headers, journey, station, ends);
    return answer;
  }

  function failLate(detail: ErrorDetail, status: number): void {
    fail('upstream_truncated', status >= 400 ? 'upstream_error' : 'upstream_truncated', detail);
  }

  function judge(nowMs: number): void {
    const ageMs = nowMs - exchange.startedAtMs;
    if (ageMs > timeouts.totalMs) {
      fail(answer === undefined ? 'upstream_timeout' : 'upstream_total_timeout', 'timeout_total');
    } else if (calledAtMs !== undefined && connectedAtMs === undefined && nowMs - calledAtMs > timeouts.connectMs) {
      if (call?.isQueued) failAttempt('overloaded', 'rejected');
      else failAttempt('upstream_timeout', 'timeout_connect');
    } else if (answer !== undefined) {
      answer.relay.judge(nowMs);
    } else if (sentAtMs !== undefined && nowMs - sentAtMs > timeouts.firstByteMs) {
      failAttempt('upstream_timeout', 'timeout_first_byte');
    } else if (ageMs > config.sse.earlyHeadersMs && wish?.isStream()) {
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
    if (isOver) return;
    call?.abort(() => metrics.upstreamClosed(phase, (clock.now() - leftAtMs) / 1000));
    if (answer === undefined) settle('client_closed');
    else answer.relay.clientGone();
  }

  /** Node waits with its own end of the connection until a blocked answer has gone out, which then is never. */
  function onHalfClose(): void {
    onClientGone();
    clock.spread(() => response.destroy());
  }

  const ask = station.asker.begin(request, exchange.endpoint, upstream);
  const wish = Number.isFinite(config.sse.earlyHeadersMs) ? createStreamWish(request) : undefined;
  const upload = openUpload(request, {
    flow: exchange,
    maxBytes: config.server.maxRequestBodyBytes,
    onTooLarge: () => fail('request_too_large', 'rejected'),
    observe: wish?.observe,
  });
  const passage: Passage = { drain: () => fail('draining', 'drained') };
  station.passages.add(passage);
  const stopJudging = clock.onBeat(judge);
  response.once('close', onClientGone);
  socket.once('end', onHalfClose);
  request.once(REFUSED, ({ code }: GatewayError) => fail(code, 'rejected'));
  // The client may have left, or its body been refused, while its limits were asked.
  if (socket.destroyed) onClientGone();
  else if (socket.readableEnded) onHalfClose();
  else if (response.headersSent) settle('rejected');
  else start();

  function start(): void {
    exchange.upstream = upstream.name;
    // The client waits with its body until here: for its key and its limits to have been judged (RFC 9110 10.1.1).
    if (request.headers.expect !== undefined) response.writeContinue();
    if (ask === undefined || upload.body === undefined) {
      callWith(upload.body);
      return;
    }
    exchange.phase = 'upload';
    held = holdBody(upload.body, ask, station.asker, callAsking, () => fail('overloaded', 'rejected'));
  }

  function callAsking(how: AskedRequest | undefined): void {
    asked = how;
    callWith(held?.bytes(how));
  }

  function callAsSent(): void {
    station.asker.remember(upstream);
    isHeadDue = true;
    connectedAtMs = sentAtMs = undefined;
    callAsking(undefined);
  }

  function callWith(body: Readable | Buffer | undefined): void {
    exchange.attempts += 1;
    calledAtMs = clock.now();
    call = station.clientOf(upstream).send(requestFor(journey, body), {
      onStart() {
        connectedAtMs = clock.now();
        exchange.phase = 'upload';
        // What the client took to send a body that had to be whole is no doing of ours.
        const uploadMs = held === undefined ? 0 : (calledAtMs ?? admittedAtMs) - admittedAtMs;
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

function requestFor({ request, admitted, upstream }: Journey, body: Readable | Buffer | undefined): UpstreamRequest {
  const { pathname } = new URL(upstream.baseUrl);
  const headers = requestHeaders(request.rawHeaders, upstream);
  return {
    method: request.method ?? 'GET',
    path: upstreamPath(admitted.target, pathname === '/' ? '' : pathname, upstream.query),
    // A body that was held has the length that it has.
    headers: Buffer.isBuffer(body) ? headers.filter((_, at) => headers[at - (at % 2)]?.toLowerCase() !== 'content-length') : headers,
    body,
  };
}

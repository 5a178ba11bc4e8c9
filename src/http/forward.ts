// THE route: one request goes up, its answer comes down, and whoever leaves first, both ends are settled once.
import type { Readable } from 'node:stream';
import type { Upstream } from '../config.ts';
import { detailOf, type ErrorCode, type ErrorDetail, GatewayError } from '../errors.ts';
import type { Ledger, Outcome, Phase } from '../exchange.ts';
import { outputSoFar, reserveFor } from '../spending.ts';
import type { AskedRequest } from '../upstream/ask.ts';
import type { UpstreamCall, UpstreamClient, UpstreamFailure, UpstreamRequest } from '../upstream/client.ts';
import { type HeaderList, isKeyInjected, requestHeaders } from '../upstream/headers.ts';
import { applySplice } from '../upstream/splice.ts';
import { upstreamPath } from '../upstream/target.ts';
import { type Answer, type AnswerParts, beginAnswer, beginUnheard, type Journey } from './answer.ts';
import { type Asker, createRefusalReader, mayRefuseAsking, type Taker } from './asking.ts';
import { type Call, createCall } from './call.ts';
import { createLateAnswer, EARLY_HEADERS, isPlainStream } from './early.ts';
import { holdBody, type Room } from './held.ts';
import type { Admit, Limiter } from './limits.ts';
import { REFUSED } from './listener.ts';
import { createModelList } from './model-list.ts';
import type { Plan, Planner } from './plan.ts';
import { refuse } from './refuse.ts';
import { openUpload } from './upload.ts';

/** What forwarding needs; one for all requests. */
export interface Station extends AnswerParts {
  readonly asker: Asker;
  readonly planner: Planner;
  /** For bodies that must be whole before they are sent. */
  readonly room: Room;
  /** For bodies that are kept to have their tokens counted. */
  readonly promptRoom: Room;
  readonly limiter: Limiter;
  readonly ledger: Ledger;
  /** All requests that are on their way. */
  readonly passages: Set<Passage>;
  clientOf(upstream: Upstream): UpstreamClient;
}

/** What `connect` says where this machine, not the upstream, has no room: connect(2), socket(2). */
const OUT_OF_SOCKETS = new Set(['EADDRNOTAVAIL', 'EMFILE', 'ENFILE', 'ENOBUFS']);

/** A body that is longer is not kept for its tokens to be counted. */
const MAX_PROMPT_BYTES = 4 * 1024 * 1024;

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
  const { clock, ledger, metrics, config, planner } = station;
  const { socket } = request;
  const admittedAtMs = clock.now();
  let call: UpstreamCall | undefined;
  let answer: Answer | undefined;
  /** Who takes the body of the upstream's answer. */
  let taker: Taker | undefined;
  /** What was asked on the client's behalf, where anything was. */
  let asked: AskedRequest | undefined;
  let shows: Plan['shows'];
  let isHeld = false;
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
    upload.close();
    station.passages.delete(passage);
    ledger.end(exchange, outcome);
  }

  /** Ends the request as failed: with an error as the answer, or as the end of the answer that has begun. */
  function fail(code: ErrorCode, outcome: Outcome, detail: ErrorDetail = detailOf(code)): void {
    if (isOver) return;
    call?.abort();
    if (outcome === 'rejected') exchange.rejection = code;
    if (answer !== undefined) answer.relay.break({ detail, outcome });
    else if (unheardSinceMs !== undefined) settle('client_closed');
    else refuseWith(new GatewayError(code), outcome);
  }

  function refuseWith(error: GatewayError, outcome: Outcome): void {
    if (isOver) return;
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
    }
    // Providers quote part of a key that they refuse, so none of such an answer goes on.
    else if (status === 401 && isKeyInjected(upstream)) fail('upstream_auth', 'upstream_error');
    else if (answer !== undefined) taker = isPlainStream(status, headers) ? answer : createLateAnswer(status, upstream, failLate);
    else if (asked !== undefined && mayRefuseAsking(status)) taker = createRefusalReader(status, headers, callAsSent, begin);
    else
      taker = shows === undefined || status !== 200 ? begin(status, headers) : createModelList(shows, headers, (own) => begin(status, own));
  }

  function begin(status: number, headers: HeaderList): Answer {
    body.moveTo(station.promptRoom, MAX_PROMPT_BYTES);
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
    const { timeouts } = journey.route.upstream;
    if (ageMs > timeouts.totalMs) {
      fail(answer === undefined ? 'upstream_timeout' : 'upstream_total_timeout', 'timeout_total');
    } else if (unheardSinceMs !== undefined) {
      if (hasReadEnough(nowMs - unheardSinceMs)) fail('upstream_total_timeout', 'client_closed');
    } else if (calledAtMs !== undefined && connectedAtMs === undefined && nowMs - calledAtMs > timeouts.connectMs) {
      if (call?.isQueued) failAttempt('overloaded', 'rejected');
      else failAttempt('upstream_timeout', 'timeout_connect');
    } else if (answer !== undefined) {
      answer.relay.judge(nowMs);
    } else if (sentAtMs !== undefined && nowMs - sentAtMs > timeouts.firstByteMs) {
      failAttempt('upstream_timeout', 'timeout_first_byte');
    } else if (ageMs > config.sse.earlyHeadersMs && said?.isStream()) {
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

  /** The whole request has gone up, so that its tokens will be billed, and what comes can be metered. */
  function isWorthReadingOn(): boolean {
    const { onClientGone: bounds } = journey.route.upstream;
    return bounds !== undefined && sentAtMs !== undefined && (answer === undefined || exchange.meter !== undefined);
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

  const said = createCall(request);
  let body = holdBody(station.promptRoom, MAX_PROMPT_BYTES);
  const upload = openUpload(request, {
    flow: exchange,
    maxBytes: config.server.maxRequestBodyBytes,
    onTooLarge: () => fail('request_too_large', 'rejected'),
    observe: said === undefined ? undefined : (chunk) => observe(said, chunk),
  });
  const passage: Passage = { drain: () => fail('draining', 'drained') };
  station.passages.add(passage);
  const stopJudging = clock.onBeat(judge);
  response.once('close', onClientGone);
  socket.once('end', onHalfClose);
  request.once(REFUSED, ({ code }: GatewayError) => fail(code, 'rejected'));
  // The client may have left, or its body been refused, while it was being admitted.
  if (socket.destroyed) onClientGone();
  else if (socket.readableEnded) onHalfClose();
  else if (response.headersSent) settle('rejected');
  else void start().catch(onStartFailure);

  /** A call is read as it passes; its bytes are kept for another try, and for their tokens to be counted. */
  function observe(by: Call, chunk: Buffer): void {
    by.observe(chunk);
    if (!body.add(chunk) && isHeld) fail('overloaded', 'rejected');
  }

  function onStartFailure(failure: unknown): void {
    const error = failure instanceof GatewayError ? failure : new GatewayError('internal_error');
    if (error !== failure) station.onFault(failure);
    exchange.rejection = error.code === 'rate_limit_exceeded' ? `${error.code}_${error.type}` : error.code;
    refuseWith(error, 'rejected');
  }

  async function start(): Promise<void> {
    const mustRead = upload.body !== undefined && planner.mustRead(journey, said);
    const { expect } = request.headers;
    // Who waits with its body is judged without it.
    const isWeighed = said !== undefined && upload.body !== undefined && expect === undefined && station.limiter.readsCall(journey.client);
    if (mustRead || isWeighed) body = holdBody(station.room, config.server.maxRequestBodyBytes);
    exchange.prompt = body;
    if (exchange.operation === undefined && !mustRead && !isWeighed) body.letGo();
    if (!mustRead && !isWeighed) takeRoute(undefined);
    if (!isWeighed) await enter(Number(request.headers['content-length'] ?? 0), 0);
    if (isOver) return;
    // The client waits with its body until here: for its key and its limits to have been judged (RFC 9110 10.1.1).
    if (expect !== undefined) response.writeContinue();
    if (mustRead || isWeighed) readWhole(isWeighed);
    else callWith(upload.body);
  }

  function readWhole(isWeighed: boolean): void {
    exchange.phase = 'upload';
    isHeld = true;
    upload.body?.resume();
    upload.body?.once('end', () => void sendWhole(isWeighed).catch(onStartFailure));
  }

  async function sendWhole(isWeighed: boolean): Promise<void> {
    if (isOver) return;
    takeRoute(said);
    if (isWeighed) await enter(body.bytes, said?.maxOutputTokens() ?? 0);
    if (!isOver) callAsking(asked);
  }

  /** Passes the caller's limits. Whoever leaves meanwhile has used nothing. */
  async function enter(promptBytes: number, maxOutputTokens: number): Promise<void> {
    const reserve = reserveFor(promptBytes, maxOutputTokens, exchange.price);
    const { headers, lease } = await admit(reserve, () => fail('insufficient_quota', 'rejected'));
    if (isOver) lease?.settle({ tokens: 0, nanoUsd: 0 });
    else exchange.lease = lease;
    journey.ownHeaders.push(...headers);
  }

  function takeRoute(by: Call | undefined): void {
    const plan = planner.plan(journey, by);
    journey.route = plan.route;
    asked = plan.asked;
    shows = plan.shows;
    exchange.model = plan.route.match;
    exchange.price = plan.route.price;
  }

  function callAsking(how: AskedRequest | undefined): void {
    asked = how;
    callWith(Buffer.concat(how === undefined ? body.pieces : applySplice(body.pieces, how.splice)));
  }

  function callAsSent(): void {
    station.asker.remember(journey.route.upstream);
    isHeadDue = true;
    connectedAtMs = sentAtMs = undefined;
    callAsking(undefined);
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
        const uploadMs = isHeld ? (calledAtMs ?? admittedAtMs) - admittedAtMs : 0;
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

function requestFor({ request, target, route }: Journey, body: Readable | Buffer | undefined): UpstreamRequest {
  const { upstream } = route;
  const { pathname } = new URL(upstream.baseUrl);
  const headers = requestHeaders(request.rawHeaders, upstream);
  return {
    method: request.method ?? 'GET',
    path: upstreamPath(target, pathname === '/' ? '' : pathname, upstream.query),
    // A body that was held has the length that it has.
    headers: Buffer.isBuffer(body) ? headers.filter((_, at) => headers[at - (at % 2)]?.toLowerCase() !== 'content-length') : headers,
    body,
  };
}

// The other route: a request for a WebSocket goes up, and where the upstream takes it, the two connections become one.
import type { Socket } from 'node:net';
import type { Upstream } from '../config.ts';
import { detailOf, type ErrorCode, GatewayError } from '../errors.ts';
import type { Outcome, Phase } from '../exchange.ts';
import { type Channel, openChannel } from '../stream/channel.ts';
import { createSessionMeter } from '../stream/session.ts';
import type { UpstreamCall, UpstreamFailure, UpstreamRequest } from '../upstream/client.ts';
import { createSessionReader } from '../upstream/dialects/realtime.ts';
import { handshakeHeaders } from '../upstream/handshake.ts';
import { type HeaderList, isKeyInjected, responseHead } from '../upstream/headers.ts';
import { upstreamPath } from '../upstream/target.ts';
import { type Answer, beginAnswer, type Journey } from './answer.ts';
import { OUT_OF_SOCKETS, type Passage, reasonOf, type Station } from './forward.ts';
import type { Admit } from './limits.ts';
import { asGatewayError } from './listener.ts';
import { refuse } from './refuse.ts';

/** What a client sends before it may send anything (RFC 6455 4.1) is held, so that its going is seen; more than this is refused. */
const MAX_EARLY_BYTES = 64 * 1024;
const NOTHING = { tokens: 0, nanoUsd: 0 };

/**
 * Sends an admitted handshake to its upstream, and relays what follows. As in `forward`, everything that can end it comes
 * together here and settles it exactly once; but for an upstream that refuses, there is no answer then, but a channel.
 * @param admit counts the session against its caller's limits
 */
export function tunnel(journey: Journey, station: Station, admit: Admit): void {
  const { exchange, request, response } = journey;
  const { clock, ledger, metrics, config } = station;
  const { socket } = request;
  let { upstream } = journey.route;
  let call: UpstreamCall | undefined;
  /** Of an upstream that refuses. */
  let answer: Answer | undefined;
  let channel: Channel | undefined;
  let calledAtMs: number | undefined;
  let connectedAtMs: number | undefined;
  let sentAtMs: number | undefined;
  let isOver = false;

  function settle(outcome: Outcome, cause?: string): void {
    if (isOver) return;
    isOver = true;
    stopJudging();
    exchange.cause = cause ?? exchange.cause;
    station.passages.delete(passage);
    ledger.end(exchange, outcome);
  }

  function fail(failure: ErrorCode | GatewayError, outcome: Outcome): void {
    if (isOver) return;
    const error = typeof failure === 'string' ? new GatewayError(failure) : failure;
    call?.abort();
    if (outcome === 'rejected') exchange.rejection = reasonOf(error);
    const ended = channel ?? answer?.relay;
    if (ended === undefined) refuseWith(error, outcome);
    else ended.break({ detail: error.detail, outcome });
  }

  function refuseWith(error: GatewayError, outcome: Outcome): void {
    exchange.status = error.row.status;
    const served = exchange.upstream === undefined ? [] : ['x-sluicegate-upstream', exchange.upstream];
    refuse(response, error, ['x-request-id', exchange.requestId, ...served, ...journey.ownHeaders]);
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
    else if (answer === undefined) failAttempt(code, code);
    else fail(code, code);
  }

  function tellAnswered(status: number): void {
    exchange.ttfbMs = clock.now() - exchange.startedAtMs;
    exchange.status = status;
    metrics.attempt(upstream.name, 'ok');
    metrics.response(upstream.name, status);
  }

  function onRefused(status: number, headers: HeaderList): void {
    tellAnswered(status);
    if (status === 401 && isKeyInjected(upstream)) {
      fail('upstream_auth', 'upstream_error');
      return;
    }
    const source = { pause: () => call?.pause(), resume: () => call?.resume(), abort: () => call?.abort() };
    answer = beginAnswer(status, headers, journey, station, {
      source,
      sentAtMs: sentAtMs ?? clock.now(),
      strip: undefined,
      onOutcome: settle,
    });
  }

  function onSwitch(headers: HeaderList, upstreamSocket: Socket): void {
    tellAnswered(101);
    const traits = {
      status: 101,
      upstream: upstream.name,
      requestId: exchange.requestId,
      key: isKeyInjected(upstream) ? upstream.apiKeys[0] : undefined,
    };
    const head = responseHead(headers, { ...traits, isCorsOurs: config.server.cors !== undefined, own: journey.ownHeaders });
    exchange.requestId = head.requestId;
    exchange.phase = 'stream';
    response.writeHead(101, [...head.headers, 'connection', 'Upgrade', 'upgrade', 'websocket']);
    response.flushHeaders();
    socket.off('end', onHalfClose);
    early.putBack();
    const meter = createSessionMeter(createSessionReader(), station.tokenizer);
    exchange.meter = meter;
    channel = openChannel({
      ...{ client: socket, upstream: upstreamSocket, meter, flow: exchange, now: clock.now, spread: clock.spread, errorOf: detailOf },
      bounds: { clientStallMs: config.server.clientStallMs, upstreamStallMs: upstream.timeouts.idleMs },
      onPhase(phase) {
        exchange.phase = phase;
      },
      onLeft(leftAtMs) {
        const { phase } = exchange;
        upstreamSocket.once('close', () => tellClosed(phase, leftAtMs));
      },
      onOutcome: settle,
    });
  }

  function tellClosed(phase: Phase, leftAtMs: number): void {
    metrics.upstreamClosed(phase, (clock.now() - leftAtMs) / 1000);
  }

  function judge(nowMs: number): void {
    const ageMs = nowMs - exchange.startedAtMs;
    const { timeouts } = upstream;
    if (ageMs > timeouts.totalMs) {
      fail(channel === undefined && answer === undefined ? 'upstream_timeout' : 'upstream_total_timeout', 'timeout_total');
      if (!isOver) (channel ?? answer?.relay)?.judge(nowMs);
    } else if (channel !== undefined || answer !== undefined) {
      (channel ?? answer?.relay)?.judge(nowMs);
    } else if (calledAtMs !== undefined && connectedAtMs === undefined && nowMs - calledAtMs > timeouts.connectMs) {
      if (call?.isQueued) failAttempt('overloaded', 'rejected');
      else failAttempt('upstream_timeout', 'timeout_connect');
    } else if (sentAtMs !== undefined && nowMs - sentAtMs > timeouts.firstByteMs) {
      failAttempt('upstream_timeout', 'timeout_first_byte');
    }
  }

  /** Until there is a channel, which sees to that itself. */
  function onClientGone(): void {
    if (channel !== undefined) return;
    const leftAtMs = clock.now();
    const { phase } = exchange;
    clock.spread(() => {
      if (isOver || channel !== undefined) return;
      call?.abort(() => tellClosed(phase, leftAtMs));
      if (answer === undefined) settle('client_closed');
      else answer.relay.clientGone();
    });
  }

  function onHalfClose(): void {
    onClientGone();
    clock.spread(() => socket.destroy());
  }

  async function enter(): Promise<void> {
    journey.route = station.planner.routeSession(journey);
    ({ upstream } = journey.route);
    exchange.model = journey.route.match;
    exchange.price = journey.route.price;
    // Nothing is known of what it will use: it is debited as its responses end.
    const { headers, lease } = await admit(NOTHING, () => fail('insufficient_quota', 'rejected'));
    if (isOver) lease?.settle(NOTHING);
    else exchange.lease = lease;
    journey.ownHeaders.push(...headers);
    if (!isOver && !response.destroyed) callUpstream();
  }

  function callUpstream(): void {
    exchange.upstream = upstream.name;
    exchange.attempts += 1;
    calledAtMs = clock.now();
    call = station.clientOf(upstream).send(requestFor(journey, upstream), {
      onStart() {
        connectedAtMs = clock.now();
        metrics.overhead('request', (connectedAtMs - exchange.startedAtMs) / 1000);
      },
      onSent() {
        sentAtMs = clock.now();
        exchange.phase = 'headers';
      },
      onHead: onRefused,
      onSwitch,
      onChunk: (bytes) => answer?.chunk(bytes),
      onEnd: () => answer?.end(),
      onFail: onFailure,
    });
    // What ended while it was being sent could not be aborted yet.
    if (isOver) call.abort();
  }

  const passage: Passage = {
    drain() {
      fail('draining', 'drained');
      channel?.hurry();
    },
  };
  station.passages.add(passage);
  const stopJudging = clock.onBeat(judge);
  const early = holdEarly(socket, () => fail('invalid_request', 'rejected'));
  response.once('close', onClientGone);
  socket.once('end', onHalfClose);
  if (socket.destroyed) onClientGone();
  else void enter().catch((failure: unknown) => fail(asGatewayError(failure, station.onFault), 'rejected'));
}

function requestFor({ request, requestTarget }: Journey, upstream: Upstream): UpstreamRequest {
  const { pathname } = new URL(upstream.baseUrl);
  return {
    method: 'GET',
    path: upstreamPath(requestTarget, pathname === '/' ? '' : pathname, upstream.query),
    headers: handshakeHeaders(request.rawHeaders, upstream, upstream.apiKeys[0]),
    body: undefined,
    upgrade: 'websocket',
  };
}

/** Reads on, since only a connection that is read shows that its client has left. */
function holdEarly(socket: Socket, onTooMuch: () => void): { putBack(): void } {
  const held: Buffer[] = [];
  let heldBytes = 0;

  function hold(chunk: Buffer): void {
    heldBytes += chunk.length;
    if (heldBytes <= MAX_EARLY_BYTES) held.push(chunk);
    else onTooMuch();
  }
  socket.on('data', hold);
  return {
    putBack() {
      socket.off('data', hold);
      socket.pause();
      if (heldBytes > 0) socket.unshift(Buffer.concat(held));
    },
  };
}

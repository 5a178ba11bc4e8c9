// The other route: a request for a WebSocket goes up, and where the upstream takes it, the two connections become one.
import type { Socket } from 'node:net';
import { detailOf, type ErrorCode, GatewayError } from '../errors.ts';
import type { Outcome, Phase } from '../exchange.ts';
import { type Channel, openChannel } from '../stream/channel.ts';
import { createSessionMeter } from '../stream/session.ts';
import { createSessionReader } from '../upstream/dialects/realtime.ts';
import { type HeaderList, responseHead } from '../upstream/headers.ts';
import { type Answer, type AnswerOwner, answerError, beginAnswer, type Journey } from './answer.ts';
import type { Taker } from './asking.ts';
import type { Attempt } from './attempt.ts';
import { type Passage, reasonOf, type Station } from './forward.ts';
import type { Admit } from './limits.ts';
import { asGatewayError } from './listener.ts';
import type { Plan } from './plan.ts';
import { type Cargo, createTries, type Tries } from './tries.ts';

/** What a client sends before it may send anything (RFC 6455 4.1) is held, so that its going is seen; more than this is refused. */
const MAX_EARLY_BYTES = 64 * 1024;
const NOTHING = { tokens: 0, nanoUsd: 0 };
/** A handshake has no body, and may be made again. */
const NO_CARGO: Cargo = { canRepeat: true, bodyBytes: 0, isStream: () => false, body: () => undefined };

/**
 * Sends an admitted handshake to its upstream, and relays what follows. As in `forward`, everything that can end it comes
 * together here and settles it exactly once; but for an upstream that refuses, there is no answer then, but a channel.
 * @param admit counts the session against its caller's limits
 */
export function tunnel(journey: Journey, station: Station, admit: Admit): void {
  const { exchange, request, response } = journey;
  const { clock, ledger, metrics, config, planner } = station;
  const { socket } = request;
  let tries: Tries | undefined;
  /** Of an upstream that refuses. */
  let answer: Answer | undefined;
  let channel: Channel | undefined;
  let isOver = false;

  function settle(outcome: Outcome, cause?: string): void {
    if (isOver) return;
    isOver = true;
    exchange.cause = cause ?? exchange.cause;
    if (channel === undefined) tries?.abort();
    for (const seat of seats) seat.leave();
    ledger.end(exchange, outcome);
  }

  function fail(failure: ErrorCode | GatewayError, outcome: Outcome): void {
    if (isOver) return;
    const error = typeof failure === 'string' ? new GatewayError(failure) : failure;
    if (channel === undefined) tries?.abort();
    if (outcome === 'rejected') exchange.rejection = reasonOf(error);
    const ended = channel ?? answer?.relay;
    if (ended === undefined) refuseWith(error, outcome);
    else ended.break({ detail: error.detail, outcome });
  }

  function refuseWith(error: GatewayError, outcome: Outcome): void {
    answerError(journey, error);
    settle(outcome);
  }

  function onRefused({ upstream, key, sentAtMs = clock.now() }: Attempt, status: number, headers: HeaderList): Taker | undefined {
    exchange.ttfbMs = clock.now() - exchange.startedAtMs;
    if (status === 401 && key !== undefined) {
      fail('upstream_auth', 'upstream_error');
      return undefined;
    }
    const owner: AnswerOwner = {
      pause: () => tries?.leading?.pause(),
      resume: () => tries?.leading?.resume(),
      abort: () => tries?.abort(),
      onOutcome: settle,
    };
    answer = beginAnswer({ status, headers, upstream, key, sentAtMs, strip: undefined }, journey, station, owner);
    return answer.taker;
  }

  function onSwitch({ upstream, key }: Attempt, headers: HeaderList, upstreamSocket: Socket): void {
    exchange.ttfbMs = clock.now() - exchange.startedAtMs;
    exchange.status = 101;
    const { requestId } = exchange;
    const traits = { status: 101, upstream: upstream.name, requestId, key };
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
        // What ended while it was blocked did so in that phase, whatever its sockets say of it later.
        if (!isOver) exchange.phase = phase;
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
    const { timeouts } = tries?.leading?.upstream ?? planner.firstRoute.targets[0]!.upstream;
    if (nowMs - exchange.startedAtMs > timeouts.totalMs) {
      fail(channel === undefined && answer === undefined ? 'upstream_timeout' : 'upstream_total_timeout', 'timeout_total');
      if (!isOver) (channel ?? answer?.relay)?.judge(nowMs);
    } else if (channel !== undefined || answer !== undefined) {
      (channel ?? answer?.relay)?.judge(nowMs);
    } else {
      tries?.judge(nowMs);
    }
  }

  /** Until there is a channel, which sees to that itself. */
  function onClientGone(): void {
    if (channel !== undefined) return;
    const leftAtMs = clock.now();
    const { phase } = exchange;
    clock.spread(() => {
      if (isOver || channel !== undefined) return;
      tries?.abort(() => tellClosed(phase, leftAtMs));
      if (answer === undefined) settle('client_closed');
      else answer.relay.clientGone();
    });
  }

  function onHalfClose(): void {
    onClientGone();
    clock.spread(() => socket.destroy());
  }

  async function enter(): Promise<void> {
    const plan = planner.planSession(journey);
    exchange.trace?.askedSession(plan.model);
    exchange.model = plan.route.match;
    exchange.price = plan.route.price;
    // Nothing is known of what it will use: it is debited as its responses end.
    const { headers, lease } = await admit(NOTHING, () => fail('insufficient_quota', 'rejected'));
    if (isOver) lease?.settle(NOTHING);
    else exchange.lease = lease;
    journey.ownHeaders.push(...headers);
    if (!isOver && !response.destroyed) callUpstream(plan);
  }

  function callUpstream(plan: Plan): void {
    tries = createTries(journey, { plan, cargo: NO_CARGO }, station, {
      hasBegun: () => isOver || answer !== undefined || channel !== undefined,
      onStart: () => metrics.overhead('request', (clock.now() - exchange.startedAtMs) / 1000),
      onPhase(phase) {
        exchange.phase = phase === 'upload' ? 'connect' : phase;
      },
      onAnswer: onRefused,
      onSwitch,
      onFail: ({ code, outcome }) => fail(code, outcome),
    });
    tries.begin();
  }

  const passage: Passage = {
    exchange,
    drain() {
      fail('draining', 'drained');
      channel?.hurry();
    },
    end() {
      fail('ended_by_operator', 'rejected');
      channel?.hurry();
    },
  };
  const seats = [station.passages.enter(passage), clock.onBeat({ judge })];
  const early = holdEarly(socket, () => fail('invalid_request', 'rejected'));
  response.once('close', onClientGone);
  socket.once('end', onHalfClose);
  if (socket.destroyed) onClientGone();
  else void enter().catch((failure: unknown) => fail(asGatewayError(failure, station.onFault), 'rejected'));
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

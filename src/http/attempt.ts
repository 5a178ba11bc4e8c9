// One try at one upstream: the call, its clocks, and what the upstream's health and keys learn from it.
import type { IncomingMessage } from 'node:http';
import type { Socket } from 'node:net';
import type { Upstream } from '../config.ts';
import type { ErrorCode } from '../errors.ts';
import type { Exchange, Outcome, Phase } from '../exchange.ts';
import type { Clock } from '../stream/clock.ts';
import type { Metrics } from '../telemetry/metrics.ts';
import type { TracedTry } from '../telemetry/traces.ts';
import type { UpstreamCall, UpstreamFailure, UpstreamRequest } from '../upstream/client.ts';
import { handshakeHeaders } from '../upstream/handshake.ts';
import { type HeaderList, isKeyInjected, requestHeaders } from '../upstream/headers.ts';
import type { Outlet } from '../upstream/outlet.ts';
import { upstreamPath } from '../upstream/target.ts';
import type { Taker } from './asking.ts';
import { isUpgraded } from './listener.ts';
import type { Edit } from './plan.ts';

/** Why a try has come to nothing. */
export interface AttemptFailure {
  readonly code: ErrorCode;
  readonly outcome: Outcome;
  /** What broke underneath, as a code such as ECONNREFUSED. */
  readonly cause?: string | undefined;
}

export interface AttemptParts {
  readonly clock: Clock;
  readonly metrics: Metrics;
  readonly exchange: Exchange;
  readonly outlet: Outlet;
  /** The key that goes up with it; undefined where none of ours does. */
  readonly key: string | undefined;
  readonly edit: Edit;
}

export interface AttemptEvents {
  /** A connection stands, and the request is being written. */
  onStart(): void;
  /** How far the call is, while it has no answer. */
  onPhase(phase: Phase): void;
  /** The answer begins. Returns who takes its body. */
  onHead(status: number, headers: HeaderList): Taker | undefined;
  /** The upstream takes the WebSocket that it was asked for: its connection is the caller's. */
  onSwitch?(headers: HeaderList, socket: Socket): void;
  /** There will be no answer, or no more of it. */
  onFail(failure: AttemptFailure): void;
}

export interface Attempt {
  readonly upstream: Upstream;
  readonly key: string | undefined;
  readonly edit: Edit;
  /** Undefined until it was begun. */
  readonly calledAtMs: number | undefined;
  /** When the last byte of the request had gone up. */
  readonly sentAtMs: number | undefined;
  readonly isHeadDue: boolean;
  /** Sends the request; it may fail at once. Nothing here keeps it: its body may be large, and the answer long. */
  begin(request: UpstreamRequest): void;
  /** Hands the rest of the body to another. */
  takeOver(taker: Taker | undefined): void;
  /** Says what has become of it, for metrics and log; only once. */
  tell(result: string): void;
  /** The upstream has done its part badly, after its answer had begun. */
  failed(): void;
  /** Judges how long it takes to connect, and, if `isUnanswered`, to answer. */
  judge(nowMs: number, isUnanswered: boolean): void;
  /** Closes the call at once, in whatever phase; `onClosed` runs when its socket is closed. */
  abort(onClosed?: () => void): void;
  pause(): void;
  resume(): void;
}

/** What `connect` says where this machine, not the upstream, has no room: connect(2), socket(2). */
const OUT_OF_SOCKETS = new Set(['EADDRNOTAVAIL', 'EMFILE', 'ENFILE', 'ENOBUFS']);

/** Whether a status says that the upstream would not or could not serve this call, and that it has not: another may. */
export function isRefusal(status: number, upstream: Upstream): boolean {
  return status === 429 || status >= 500 || (status === 401 && isKeyInjected(upstream));
}

/** What goes up: the client's request as this upstream gets it. */
export function requestFor(
  request: IncomingMessage,
  { upstream, key, edit, body }: Pick<Attempt, 'upstream' | 'key' | 'edit'> & { readonly body: UpstreamRequest['body'] },
): UpstreamRequest {
  const { method = 'GET', rawHeaders } = request;
  const { pathname } = new URL(upstream.baseUrl);
  const path = upstreamPath(edit.requestTarget, pathname === '/' ? '' : pathname, upstream.query);
  if (isUpgraded(request)) return { method, path, headers: handshakeHeaders(rawHeaders, upstream, key), body, upgrade: 'websocket' };
  const headers = requestHeaders(rawHeaders, upstream, key);
  return {
    method,
    path,
    // A body that was held has the length that it has.
    headers: Buffer.isBuffer(body) ? headers.filter((_, at) => headers[at - (at % 2)]?.toLowerCase() !== 'content-length') : headers,
    body,
  };
}

/** For one try; nothing is sent yet. */
export function createAttempt(parts: AttemptParts, events: AttemptEvents): Attempt {
  const { clock, metrics, exchange, outlet, key, edit } = parts;
  const { upstream, client, keys, health } = outlet;
  const trial = health.begin();
  let call: UpstreamCall | undefined;
  let calledAtMs: number | undefined;
  let connectedAtMs: number | undefined;
  let sentAtMs: number | undefined;
  let isHeadDue = true;
  let isOver = false;
  let isTold = false;
  let taker: Taker | undefined;
  let traced: TracedTry | undefined;

  function begin(request: UpstreamRequest): void {
    exchange.upstream = upstream.name;
    exchange.attempts += 1;
    exchange.cause = undefined;
    events.onPhase('connect');
    calledAtMs = clock.now();
    traced = exchange.trace?.begin(upstream.name, edit.model, calledAtMs);
    call = client.send(traced === undefined ? request : { ...request, headers: traced.carry(request.headers) }, {
      onStart() {
        connectedAtMs = clock.now();
        events.onPhase('upload');
        events.onStart();
      },
      onSent() {
        sentAtMs = clock.now();
        events.onPhase('headers');
      },
      onHead,
      onSwitch(headers, socket) {
        isHeadDue = false;
        traced?.answered(101);
        metrics.response(upstream.name, 101);
        trial.answered();
        trial.close();
        events.onSwitch?.(headers, socket);
      },
      onChunk: (bytes) => taker?.chunk(bytes),
      onEnd() {
        trial.close();
        taker?.end();
      },
      onFail: onFailure,
    });
    // What ended while it was being sent could not be aborted yet.
    if (isOver) call.abort();
  }

  function onHead(status: number, headers: HeaderList): void {
    isHeadDue = false;
    traced?.answered(status);
    metrics.response(upstream.name, status);
    if (status >= 500) trial.failed();
    else if (!isRefusal(status, upstream)) trial.answered();
    else if (key !== undefined) keys.refused(key, status, headers);
    taker = events.onHead(status, headers);
  }

  function onFailure({ kind, detail }: UpstreamFailure): void {
    const code = `upstream_${kind}` as const;
    if (OUT_OF_SOCKETS.has(detail)) fail({ code: 'overloaded', outcome: 'rejected', cause: detail });
    else fail({ code, outcome: code, cause: detail });
  }

  /** A pool that is full, or a machine without sockets, says nothing of the upstream. */
  function fail(failure: AttemptFailure): void {
    if (isOver) return;
    if (failure.code !== 'overloaded') trial.failed();
    tell(failure.code);
    abort();
    events.onFail(failure);
  }

  function tell(result: string): void {
    if (isTold) return;
    isTold = true;
    traced?.end(result, clock.now());
    metrics.attempt(upstream.name, result);
    exchange.tried.push(`${upstream.name} ${result}`);
  }

  function abort(onClosed?: () => void): void {
    isOver = true;
    if (calledAtMs !== undefined) tell('aborted');
    trial.close();
    call?.abort(onClosed);
  }

  return {
    ...{ upstream, key, edit, begin, tell, abort },
    get calledAtMs() {
      return calledAtMs;
    },
    get sentAtMs() {
      return sentAtMs;
    },
    get isHeadDue() {
      return isHeadDue;
    },
    takeOver(other) {
      taker = other;
    },
    failed: trial.failed,
    judge(nowMs, isUnanswered) {
      if (isOver || calledAtMs === undefined) return;
      const { connectMs, firstByteMs } = upstream.timeouts;
      if (connectedAtMs === undefined) {
        if (nowMs - calledAtMs <= connectMs) return;
        if (call?.isQueued) fail({ code: 'overloaded', outcome: 'rejected' });
        else fail({ code: 'upstream_timeout', outcome: 'timeout_connect' });
      } else if (isUnanswered && sentAtMs !== undefined && nowMs - sentAtMs > firstByteMs) {
        fail({ code: 'upstream_timeout', outcome: 'timeout_first_byte' });
      }
    },
    pause: () => call?.pause(),
    resume: () => call?.resume(),
  };
}

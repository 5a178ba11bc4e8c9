// One try at one upstream: the call, its clocks, and what the upstream's health and keys learn from it.
import type { IncomingMessage } from 'node:http';
import type { Socket } from 'node:net';
import type { Upstream } from '../config.ts';
import type { ErrorCode } from '../errors.ts';
import type { Exchange, Outcome, Phase } from '../exchange.ts';
import type { Clock } from '../stream/clock.ts';
import type { Metrics } from '../telemetry/metrics.ts';
import type { TracedTry } from '../telemetry/traces.ts';
import type { UpstreamCall, UpstreamEvents, UpstreamFailure, UpstreamRequest } from '../upstream/client.ts';
import { handshakeHeaders } from '../upstream/handshake.ts';
import { type HeaderList, isKeyInjected, requestHeaders } from '../upstream/headers.ts';
import type { Trial } from '../upstream/health.ts';
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
  onStart(attempt: Attempt): void;
  /** How far the call is, while it has no answer. */
  onPhase(attempt: Attempt, phase: Phase): void;
  /** The answer begins. Returns who takes its body. */
  onHead(attempt: Attempt, status: number, headers: HeaderList): Taker | undefined;
  /** The upstream takes the WebSocket that it was asked for: its connection is the caller's. */
  onSwitch?(attempt: Attempt, headers: HeaderList, socket: Socket): void;
  /** There will be no answer, or no more of it. */
  onFail(attempt: Attempt, failure: AttemptFailure): void;
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
  { outlet, key, edit, body }: Pick<AttemptParts, 'outlet' | 'key' | 'edit'> & { readonly body: UpstreamRequest['body'] },
): UpstreamRequest {
  const { method = 'GET', rawHeaders } = request;
  const { upstream, basePath } = outlet;
  const path = upstreamPath(edit.requestTarget, basePath, upstream.query);
  if (isUpgraded(request)) return { method, path, headers: handshakeHeaders(rawHeaders, upstream, key), body, upgrade: 'websocket' };
  return { method, path, headers: requestHeaders(rawHeaders, upstream, key, Buffer.isBuffer(body)), body };
}

/** For one try; nothing is sent yet. */
export function createAttempt(parts: AttemptParts, events: AttemptEvents): Attempt {
  return new UpstreamAttempt(parts, events);
}

class UpstreamAttempt implements Attempt, UpstreamEvents {
  calledAtMs: number | undefined;
  sentAtMs: number | undefined;
  isHeadDue = true;
  private readonly parts: AttemptParts;
  private readonly events: AttemptEvents;
  private readonly trial: Trial;
  private call: UpstreamCall | undefined;
  private connectedAtMs: number | undefined;
  private isOver = false;
  private isTold = false;
  private taker: Taker | undefined;
  private traced: TracedTry | undefined;

  constructor(parts: AttemptParts, events: AttemptEvents) {
    this.parts = parts;
    this.events = events;
    this.trial = parts.outlet.health.begin();
  }

  get upstream(): Upstream {
    return this.parts.outlet.upstream;
  }

  get key(): string | undefined {
    return this.parts.key;
  }

  get edit(): Edit {
    return this.parts.edit;
  }

  begin(request: UpstreamRequest): void {
    const { exchange, clock, outlet } = this.parts;
    exchange.upstream = this.upstream.name;
    exchange.attempts += 1;
    exchange.cause = undefined;
    this.events.onPhase(this, 'connect');
    this.calledAtMs = clock.now();
    this.traced = exchange.trace?.begin(this.upstream.name, this.edit.model, this.calledAtMs);
    const { traced } = this;
    this.call = outlet.client.send(traced === undefined ? request : { ...request, headers: traced.carry(request.headers) }, this);
    // What ended while it was being sent could not be aborted yet.
    if (this.isOver) this.call.abort();
  }

  onStart(): void {
    this.connectedAtMs = this.parts.clock.now();
    this.events.onPhase(this, 'upload');
    this.events.onStart(this);
  }

  onSent(): void {
    this.sentAtMs = this.parts.clock.now();
    this.events.onPhase(this, 'headers');
  }

  onHead(status: number, headers: HeaderList): void {
    this.isHeadDue = false;
    this.traced?.answered(status);
    this.parts.metrics.response(this.upstream.name, status);
    if (status >= 500) this.trial.failed();
    else if (!isRefusal(status, this.upstream)) this.trial.answered();
    else if (this.key !== undefined) this.parts.outlet.keys.refused(this.key, status, headers);
    this.taker = this.events.onHead(this, status, headers);
  }

  onSwitch(headers: HeaderList, socket: Socket): void {
    this.isHeadDue = false;
    this.traced?.answered(101);
    this.parts.metrics.response(this.upstream.name, 101);
    this.trial.answered();
    this.trial.close();
    this.events.onSwitch?.(this, headers, socket);
  }

  onChunk(bytes: Buffer): void {
    this.taker?.chunk(bytes);
  }

  onReadEnd(): void {
    this.taker?.flush?.();
  }

  onEnd(): void {
    this.trial.close();
    this.taker?.end();
  }

  onFail({ kind, detail }: UpstreamFailure): void {
    const code = `upstream_${kind}` as const;
    if (OUT_OF_SOCKETS.has(detail)) this.fail({ code: 'overloaded', outcome: 'rejected', cause: detail });
    else this.fail({ code, outcome: code, cause: detail });
  }

  /** A pool that is full, or a machine without sockets, says nothing of the upstream. */
  private fail(failure: AttemptFailure): void {
    if (this.isOver) return;
    if (failure.code !== 'overloaded') this.trial.failed();
    this.tell(failure.code);
    this.abort();
    this.events.onFail(this, failure);
  }

  failed(): void {
    this.trial.failed();
  }

  tell(result: string): void {
    if (this.isTold) return;
    this.isTold = true;
    this.parts.metrics.attempt(this.upstream.name, result);
    this.traced?.end(result, this.parts.clock.now());
    const { exchange } = this.parts;
    const told = `${this.upstream.name} ${result}`;
    // Most calls have one, and a spread leaves room to grow, which would live as long as the stream.
    exchange.tried = exchange.tried.length === 0 ? [told] : [...exchange.tried, told];
  }

  abort(onClosed?: () => void): void {
    this.isOver = true;
    if (this.calledAtMs !== undefined) this.tell('aborted');
    this.trial.close();
    this.call?.abort(onClosed);
  }

  takeOver(other: Taker | undefined): void {
    this.taker = other;
  }

  judge(nowMs: number, isUnanswered: boolean): void {
    if (this.isOver || this.calledAtMs === undefined) return;
    const { connectMs, firstByteMs } = this.upstream.timeouts;
    if (this.connectedAtMs === undefined) {
      if (nowMs - this.calledAtMs <= connectMs) return;
      if (this.call?.isQueued) this.fail({ code: 'overloaded', outcome: 'rejected' });
      else this.fail({ code: 'upstream_timeout', outcome: 'timeout_connect' });
    } else if (isUnanswered && this.sentAtMs !== undefined && nowMs - this.sentAtMs > firstByteMs) {
      this.fail({ code: 'upstream_timeout', outcome: 'timeout_first_byte' });
    }
  }

  pause(): void {
    this.call?.pause();
  }

  resume(): void {
    this.call?.resume();
  }
}

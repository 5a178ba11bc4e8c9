// Reaching an upstream: connections of our own, every phase visible, every abort immediate; who waits for one, and which one serves.
import type { Socket } from 'node:net';
import type { Readable } from 'node:stream';
import type { Upstream } from '../config.ts';
import { createAlpnConnection } from './alpn.ts';
import { createConnector, type Way } from './connector.ts';
import type { UpstreamFailure } from './failure.ts';
import type { HeaderList } from './headers.ts';
import { createHttp1Connection } from './http1.ts';
import { CALLS_PER_CONNECTION } from './http2.ts';
import { createWireConnection } from './wire.ts';

export type { UpstreamFailure } from './failure.ts';

/** What goes to the upstream. `path` is sent verbatim. */
export interface UpstreamRequest {
  readonly method: string;
  readonly path: string;
  readonly headers: HeaderList;
  readonly body: Readable | Buffer | undefined;
  /** The protocol that the connection is to change to, where the upstream takes it. */
  readonly upgrade?: string;
}

/** What a call tells, in this order; after `onEnd`, `onFail` or an abort nothing but `onClosed`. */
export interface UpstreamEvents {
  /** A connection stands; the request is being written. */
  onStart(): void;
  /** The whole request has been written. */
  onSent(): void;
  /** The final status and its raw headers; 1xx answers are not told. */
  onHead(status: number, headers: HeaderList): void;
  /** The upstream took the protocol that it was asked for: its connection is the caller's from now on, and the call is over. */
  onSwitch?(headers: HeaderList, socket: Socket): void;
  /** The next bytes of the body; only valid during the call. */
  onChunk(chunk: Buffer): void;
  /** What one read has brought has been told: whoever gathers chunks goes on with them now. Not told where the body ended in it. */
  onReadEnd(): void;
  /** The body ended as its framing said it would. */
  onEnd(): void;
  onFail(failure: UpstreamFailure): void;
}

export interface UpstreamCall {
  /**
   * Gives the call up, in whatever phase: its socket is destroyed at once, or never made; on HTTP/2 its stream is reset, and
   * no other. `onClosed` runs when that is closed; not at all where the call was over already.
   */
  abort(onClosed?: () => void): void;
  /** Whether it still waits for a connection to be free. */
  readonly isQueued: boolean;
  pause(): void;
  resume(): void;
}

/** How many connections are in use, however many calls share them, how many are idle, and how many calls wait for one. */
export interface ConnectionCounts {
  readonly active: number;
  readonly idle: number;
  readonly queued: number;
}

export interface UpstreamClient {
  /** Sends a request on a connection that has room for it, waiting for one where `maxConnections` are in use. */
  send(request: UpstreamRequest, events: UpstreamEvents): UpstreamCall;
  counts(): ConnectionCounts;
  /** Closes what is idle now, and everything else as soon as its call is over. */
  retire(): void;
  /** Destroys every connection. */
  close(): void;
}

/** One connection, as what shares them out sees it. */
export interface Connection {
  /** How many calls it takes beyond those that it has. */
  readonly room: number;
  readonly isIdle: boolean;
  /** @param giveBack called instead of further events, where no other end is true: the upstream has not touched the request */
  send(request: UpstreamRequest, events: UpstreamEvents, giveBack: GiveBack): Carried;
  /** Takes no more calls, and closes with its last one. */
  retire(): void;
  /** Destroys it at once. */
  close(): void;
}

/** A call on a connection. */
export type Carried = Omit<UpstreamCall, 'isQueued'>;

/** Takes back a call that may be sent again as it is: it was never sent, or it was and the upstream refused it unseen (RFC 9113 8.7). */
export type GiveBack = (why: 'unsent' | 'refused') => void;

/** What a connection tells: that it may have room again, or is idle; and, once, that it is over, and for what code. */
export interface ConnectionListener {
  onRoom(): void;
  onGone(detail?: string): void;
}

/**
 * Calls whose body is whole go on connections that cost little; those with a body that comes as it comes, and WebSockets, on undici's;
 * and where `http2` is on, all but WebSockets share connections.
 */
type Kind = 'whole' | 'streamed' | 'shared';

const HTTP1 = ['http/1.1'];

export type UpstreamSettings = Way & Pick<Upstream, 'maxConnections' | 'http2'>;

/**
 * A client for one upstream. undici's own pool cannot be used, nor its HTTP/2: it holds an abandoned call until its turn or
 * its connection comes, and a departed client must be gone upstream within milliseconds in every phase.
 * @param probeMs how long an HTTP/2 connection with calls may be silent before it is asked for a sign of life
 */
export function createUpstreamClient(upstream: UpstreamSettings, probeMs?: number): UpstreamClient {
  const { origin, host } = new URL(upstream.baseUrl);
  const connect = createConnector(upstream);
  const all = new Set<Connection>();
  /** Those that may have room, the one used last at the end: it is the one least likely to have been closed by the other side. */
  const free: Record<Kind, Connection[]> = { whole: [], streamed: [], shared: [] };
  const queue = new Set<PooledCall>();
  /** How many calls the next connection is expected to take; the last one tells. */
  let expectedRoom = upstream.http2 ? CALLS_PER_CONNECTION : 1;
  let isRetired = false;

  function kindOf({ body, upgrade }: UpstreamRequest): Kind {
    if (upgrade !== undefined) return 'streamed';
    if (upstream.http2) return 'shared';
    return body === undefined || Buffer.isBuffer(body) ? 'whole' : 'streamed';
  }

  function openConnection(kind: Kind): Connection {
    const listener: ConnectionListener = { onRoom: () => offer(connection, kind), onGone: () => discard(connection) };
    const connection = create(kind, listener);
    all.add(connection);
    return connection;
  }

  function create(kind: Kind, listener: ConnectionListener): Connection {
    if (kind === 'shared') {
      return createAlpnConnection({ origin, connect, expectedRoom, probeMs, onRoomKnown: (room) => (expectedRoom = room) }, listener);
    }
    if (kind === 'whole') return createWireConnection(host, (onOpened, onread) => connect(HTTP1, onOpened, onread), listener);
    return createHttp1Connection(origin, (onOpened) => connect(HTTP1, onOpened), listener);
  }

  function discard(connection: Connection): void {
    if (!all.delete(connection)) return;
    for (const known of Object.values(free)) {
      const at = known.indexOf(connection);
      if (at >= 0) known.splice(at, 1);
    }
    connection.close();
    serveQueue();
  }

  function offer(connection: Connection, kind: Kind): void {
    if (!all.has(connection)) return;
    if (connection.isIdle && (isRetired || connection.room === 0)) discard(connection);
    else if (connection.room > 0 && !free[kind].includes(connection)) free[kind].push(connection);
    serveQueue();
  }

  function take(kind: Kind): Connection | undefined {
    for (let connection = free[kind].at(-1); connection !== undefined; connection = free[kind].at(-1)) {
      if (connection.room > 0) return connection;
      free[kind].pop();
      if (connection.isIdle) discard(connection);
    }
    if (all.size >= upstream.maxConnections) makeRoom();
    if (all.size >= upstream.maxConnections) return undefined;
    const connection = openConnection(kind);
    free[kind].push(connection);
    return connection;
  }

  /** Closes one that is idle and of another kind. */
  function makeRoom(): void {
    const idle = Object.values(free)
      .flat()
      .find((connection) => connection.isIdle);
    if (idle !== undefined) discard(idle);
  }

  function serveQueue(): void {
    for (const call of queue) {
      const connection = take(call.kind);
      // Thousands may wait: they are not all looked at where no connection of any kind has room.
      if (connection === undefined && Object.values(free).every(({ length }) => length === 0)) return;
      if (connection === undefined) continue;
      queue.delete(call);
      call.begin(connection);
    }
  }

  /** It takes its connection now, or queues for one. */
  class PooledCall implements UpstreamCall {
    readonly kind: Kind;
    /** Until it cannot come back any more: its body may be large, and the answer long. */
    private request: UpstreamRequest | undefined;
    private readonly events: UpstreamEvents;
    private carried: Carried | undefined;
    private isRefused = false;

    constructor(request: UpstreamRequest, events: UpstreamEvents) {
      this.request = request;
      this.events = events;
      this.kind = kindOf(request);
      const connection = take(this.kind);
      if (connection === undefined) queue.add(this);
      else this.begin(connection);
    }

    begin(connection: Connection): void {
      const request = this.request!;
      if (this.kind !== 'shared') this.request = undefined;
      this.carried = connection.send(request, this.events, (why) => this.giveBack(why));
      if (connection.room <= 0 && free[this.kind].at(-1) === connection) free[this.kind].pop();
    }

    /** It keeps its place: whoever came later is served later. */
    private giveBack(why: 'unsent' | 'refused'): void {
      this.carried = undefined;
      if (why === 'refused' && this.isRefused) {
        this.events.onFail({ kind: 'reset', detail: 'HTTP2_REFUSED_STREAM' });
        return;
      }
      this.isRefused ||= why === 'refused';
      const later = [...queue];
      queue.clear();
      for (const call of [this, ...later]) queue.add(call);
      serveQueue();
    }

    get isQueued(): boolean {
      return queue.has(this);
    }

    abort(onClosed?: () => void): void {
      if (queue.delete(this)) onClosed?.();
      else this.carried?.abort(onClosed);
    }

    pause(): void {
      this.carried?.pause();
    }

    resume(): void {
      this.carried?.resume();
    }
  }

  return {
    send: (request, events) => new PooledCall(request, events),
    counts() {
      const idle = [...all].filter((connection) => connection.isIdle).length;
      return { active: all.size - idle, idle, queued: queue.size };
    },
    retire() {
      isRetired = true;
      for (const connection of [...all]) {
        if (connection.isIdle) discard(connection);
        else connection.retire();
      }
    },
    close() {
      for (const connection of [...all]) discard(connection);
    },
  };
}

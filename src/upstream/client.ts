// Reaching an upstream: connections of our own, one call at a time on each, every phase visible, every abort immediate.
import type { Socket } from 'node:net';
import type { Readable } from 'node:stream';
import { buildConnector, Client, type Dispatcher } from 'undici';
import type { Upstream } from '../config.ts';
import type { HeaderList } from './headers.ts';

/** What goes to the upstream. `path` is sent verbatim. */
export interface UpstreamRequest {
  readonly method: string;
  readonly path: string;
  readonly headers: HeaderList;
  readonly body: Readable | Buffer | undefined;
  /** The protocol that the connection is to change to, where the upstream takes it. */
  readonly upgrade?: string;
}

/** Why a call failed: before a connection stood, or on one. `detail` is an error code such as ECONNREFUSED, never a message. */
export interface UpstreamFailure {
  readonly kind: 'unreachable' | 'reset';
  readonly detail: string;
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
  /** The body ended as its framing said it would. */
  onEnd(): void;
  onFail(failure: UpstreamFailure): void;
}

export interface UpstreamCall {
  /**
   * Gives the call up, in whatever phase: its socket is destroyed at once, or never made. `onClosed` runs when the socket
   * is closed; not at all where the call was over already.
   */
  abort(onClosed?: () => void): void;
  /** Whether it still waits for a connection to be free. */
  readonly isQueued: boolean;
  pause(): void;
  resume(): void;
}

/** How many connections are in use, idle and how many calls wait for one. */
export interface ConnectionCounts {
  readonly active: number;
  readonly idle: number;
  readonly queued: number;
}

export interface UpstreamClient {
  /** Sends a request on a connection of its own, waiting for one where `maxConnections` are in use. */
  send(request: UpstreamRequest, events: UpstreamEvents): UpstreamCall;
  counts(): ConnectionCounts;
  /** Closes what is idle now, and everything else as soon as its call is over. */
  retire(): void;
  /** Destroys every connection. */
  close(): void;
}

/** One connection: undici's client for HTTP/1.1, and the socket, which is known here from its first SYN on. */
interface Connection {
  readonly client: Client;
  socket: Socket | undefined;
  /** Whether it was asked to change its protocol: undici lets go of one that does. */
  isSwitching: boolean;
}

/** The reason handed to undici for an abort of ours; it reaches nobody. */
const ABORTED = new Error('aborted');
/** undici's own clocks tick in half seconds and stop while a body is paused; the relay's clocks judge, these are off. */
const NO_TIMEOUT = 0;

/**
 * A client for one upstream. HTTP/1.1 with one call at a time on a connection, so that giving a call up is closing its
 * socket and disturbs no other. undici's own pool cannot be used: it holds an abandoned call until its turn or its
 * connection comes, and a departed client must be gone upstream within milliseconds in every phase.
 */
export function createUpstreamClient(upstream: Pick<Upstream, 'baseUrl' | 'maxConnections'>): UpstreamClient {
  const { origin } = new URL(upstream.baseUrl);
  const connector = buildConnector({ allowH2: false, timeout: NO_TIMEOUT });
  const all = new Set<Connection>();
  const idle: Connection[] = [];
  const queue = new Set<(connection: Connection) => void>();
  let isRetired = false;

  function openConnection(): Connection {
    const connection: Connection = {
      socket: undefined,
      isSwitching: false,
      client: new Client(origin, {
        pipelining: 1,
        headersTimeout: NO_TIMEOUT,
        bodyTimeout: NO_TIMEOUT,
        connect: (options, callback) => {
          // The connector does return its socket, which is what makes an abort while connecting possible.
          connection.socket = connector(options, callback) as unknown as Socket;
        },
      }),
    };
    connection.client.on('disconnect', () => {
      if (!connection.isSwitching || connection.socket?.destroyed !== false) discard(connection);
    });
    all.add(connection);
    return connection;
  }

  function discard(connection: Connection): void {
    if (!all.delete(connection)) return;
    const at = idle.indexOf(connection);
    if (at >= 0) idle.splice(at, 1);
    void connection.client.destroy(ABORTED);
    connection.socket?.destroy();
    serveQueue();
  }

  /** A turn later: undici tells of an answer's end, and only then closes a connection that the answer closed (RFC 9112 9.6). */
  function release(connection: Connection): void {
    queueMicrotask(() => {
      if (!all.has(connection)) return;
      if (isRetired || isGone(connection)) {
        discard(connection);
      } else {
        idle.push(connection);
        serveQueue();
      }
    });
  }

  /** The connection used last is the one least likely to have been closed by the other side. */
  function take(): Connection | undefined {
    let connection = idle.pop();
    while (connection !== undefined && isGone(connection)) {
      discard(connection);
      connection = idle.pop();
    }
    return connection ?? (all.size < upstream.maxConnections ? openConnection() : undefined);
  }

  function serveQueue(): void {
    for (const waiter of queue) {
      const connection = take();
      if (connection === undefined) return;
      queue.delete(waiter);
      waiter(connection);
    }
  }

  function send(request: UpstreamRequest, events: UpstreamEvents): UpstreamCall {
    let connection: Connection | undefined;
    let controller: Dispatcher.DispatchController | undefined;
    let isOver = false;
    let isStarted = false;
    let isPaused = false;

    function finish(): void {
      isOver = true;
      controller = undefined;
    }

    function fail(error: Error | null): void {
      if (isOver) return;
      finish();
      const detail = codeOf(error);
      if (connection !== undefined) discard(connection);
      events.onFail({ kind: isStarted ? 'reset' : 'unreachable', detail });
    }

    const handler: Dispatcher.DispatchHandler = {
      onRequestStart(started) {
        if (isOver) return started.abort(ABORTED);
        controller = started;
        isStarted = true;
        events.onStart();
      },
      onRequestSent() {
        if (!isOver) events.onSent();
      },
      onResponseStart(started, status) {
        if (isOver || (status < 200 && status !== 101)) return;
        // Nobody asked for another protocol.
        if (status === 101) return fail(new Error('101'));
        const headers = rawHeaderList(started.rawHeaders);
        if (!isUnframed(headers)) return fail(new Error('transfer coding'));
        controller = started;
        events.onHead(status, headers);
      },
      onRequestUpgrade(started, _status, _headers, socket) {
        const held = connection;
        if (isOver || held === undefined) return void socket.destroy();
        finish();
        // It is counted until it is closed.
        socket.once('close', () => discard(held));
        events.onSwitch?.(rawHeaderList(started.rawHeaders), socket as Socket);
      },
      onResponseData(_, chunk) {
        if (!isOver) events.onChunk(chunk);
      },
      onResponseEnd() {
        if (isOver) return;
        // undici takes a reset for the end of a body that only the connection's end delimits.
        const { errored } = connection?.socket ?? {};
        if (errored) return fail(errored);
        finish();
        if (connection !== undefined) release(connection);
        events.onEnd();
      },
      onResponseError: (_, error) => fail(error),
    };

    function dispatch(free: Connection): void {
      connection = free;
      free.isSwitching = request.upgrade !== undefined;
      try {
        free.client.dispatch({ ...request, body: request.body ?? null } as Dispatcher.DispatchOptions, handler);
      } catch (error) {
        fail(error as Error);
      }
    }

    const free = take();
    if (free === undefined) queue.add(dispatch);
    else dispatch(free);

    return {
      get isQueued() {
        return queue.has(dispatch);
      },
      abort(onClosed) {
        if (isOver) return;
        finish();
        queue.delete(dispatch);
        const socket = connection?.socket;
        if (socket === undefined || socket.closed) onClosed?.();
        else if (onClosed !== undefined) socket.once('close', onClosed);
        if (connection !== undefined) discard(connection);
      },
      pause() {
        if (isPaused) return;
        isPaused = true;
        controller?.pause();
      },
      resume() {
        if (!isPaused) return;
        isPaused = false;
        controller?.resume();
      },
    };
  }

  return {
    send,
    counts: () => ({ active: all.size - idle.length, idle: idle.length, queued: queue.size }),
    retire() {
      isRetired = true;
      for (const connection of [...idle]) discard(connection);
    },
    close() {
      for (const connection of [...all]) discard(connection);
    },
  };
}

/** Whether its socket is closed already, before undici has said so. */
function isGone({ socket }: Connection): boolean {
  return socket?.destroyed === true;
}

/** undici hands raw headers on as strings or as buffers; on the wire they are bytes (RFC 9110 5.5). */
function rawHeaderList(raw: Dispatcher.DispatchController['rawHeaders']): HeaderList {
  if (!Array.isArray(raw)) return [];
  return raw.map((part) => (typeof part === 'string' ? part : part.toString('latin1')));
}

/**
 * Whether undici has taken off every transfer coding (RFC 9112 6.1), of which nothing is told further down. Of `gzip, chunked`
 * it takes off one, and of `chunked` with a tab behind it none: the framing would become the client's body.
 */
function isUnframed(headers: HeaderList): boolean {
  const codings = headers.filter((_, at) => headers[at - 1]?.toLowerCase() === 'transfer-encoding' && at % 2 === 1);
  return codings.length === 0 || (codings.length === 1 && /^chunked *$/i.test(codings[0] ?? ''));
}

/** The code of an error or of what caused it; its message may quote addresses and stays here. */
function codeOf(error: unknown): string {
  for (let at = error; at instanceof Error; at = at.cause) {
    const code: unknown = Reflect.get(at, 'code');
    if (typeof code === 'string') return code;
    const [first]: unknown[] = at instanceof AggregateError ? at.errors : [];
    if (first !== undefined && at.cause === undefined) return codeOf(first);
  }
  return error instanceof Error ? error.name : 'unknown';
}

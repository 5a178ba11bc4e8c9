// One HTTP/1.1 connection to an upstream: undici's client, one call at a time, and the socket, known from its first SYN on.
import type { Socket } from 'node:net';
import { Client, type Dispatcher } from 'undici';
import type { Carried, Connection, ConnectionListener, UpstreamEvents, UpstreamRequest } from './client.ts';
import type { Opened, Opening } from './connector.ts';
import { codeOf } from './failure.ts';
import type { HeaderList } from './headers.ts';
import { createReadEnd } from './read-end.ts';

/** The reason handed to undici for an abort of ours; it reaches nobody. */
const ABORTED = new Error('aborted');
/** undici's own clocks tick in half seconds and stop while a body is paused; the relay's clocks judge, these are off. */
const NO_TIMEOUT = 0;

/**
 * One call at a time, so that giving it up is closing the socket and disturbs no other.
 * @param open opens its socket, once: when the first call comes
 */
export function createHttp1Connection(
  origin: string,
  open: (onOpened: Opened) => Opening,
  { onRoom, onGone }: ConnectionListener,
): Connection {
  let opening: Opening | undefined;
  let isBusy = false;
  let isRetired = false;
  let isOver = false;
  /** It was asked to change its protocol: undici lets go of one that does. */
  let isSwitching = false;
  const client = new Client(origin, {
    pipelining: 1,
    headersTimeout: NO_TIMEOUT,
    bodyTimeout: NO_TIMEOUT,
    connect: (_, callback) => {
      opening = open((error, socket) => (error === null ? callback(null, socket!) : callback(error, null)));
    },
  });
  client.on('disconnect', () => {
    if (!isSwitching || opening?.socket.destroyed !== false) close();
  });

  function close(): void {
    if (isOver) return;
    isOver = true;
    void client.destroy(ABORTED);
    opening?.destroy();
    onGone();
  }

  /** A turn later: undici tells of an answer's end, and only then closes a connection that the answer closed (RFC 9112 9.6). */
  function release(): void {
    queueMicrotask(() => {
      if (isOver) return;
      isBusy = false;
      if (isRetired || opening?.socket.destroyed === true) close();
      else onRoom();
    });
  }

  function send(request: UpstreamRequest, events: UpstreamEvents): Carried {
    let controller: Dispatcher.DispatchController | undefined;
    let isCallOver = false;
    let isStarted = false;
    let isPaused = false;
    isBusy = true;

    const endRead = createReadEnd(() => isCallOver || events.onReadEnd());

    function finish(): void {
      isCallOver = true;
      controller = undefined;
    }

    function fail(error: Error | null): void {
      if (isCallOver) return;
      finish();
      const detail = codeOf(error);
      close();
      events.onFail({ kind: isStarted ? 'reset' : 'unreachable', detail });
    }

    const handler: Dispatcher.DispatchHandler = {
      onRequestStart(started) {
        if (isCallOver) return started.abort(ABORTED);
        controller = started;
        isStarted = true;
        events.onStart();
      },
      onRequestSent() {
        if (!isCallOver) events.onSent();
      },
      onResponseStart(started, status) {
        if (isCallOver || (status < 200 && status !== 101)) return;
        // Nobody asked for another protocol.
        if (status === 101) return fail(new Error('101'));
        const headers = rawHeaderList(started.rawHeaders);
        if (!isUnframed(headers)) return fail(new Error('transfer coding'));
        controller = started;
        events.onHead(status, headers);
      },
      onRequestUpgrade(started, _status, _headers, socket) {
        if (isCallOver) return void socket.destroy();
        finish();
        // It is counted until it is closed.
        socket.once('close', close);
        events.onSwitch?.(rawHeaderList(started.rawHeaders), socket as Socket);
      },
      onResponseData(_, chunk) {
        if (isCallOver) return;
        events.onChunk(chunk);
        endRead();
      },
      onResponseEnd() {
        if (isCallOver) return;
        // undici takes a reset for the end of a body that only the connection's end delimits.
        const { errored } = opening?.socket ?? {};
        if (errored) return fail(errored);
        finish();
        release();
        events.onEnd();
      },
      onResponseError: (_, error) => fail(error),
    };

    isSwitching = request.upgrade !== undefined;
    try {
      client.dispatch({ ...request, body: request.body ?? null } as Dispatcher.DispatchOptions, handler);
    } catch (error) {
      fail(error as Error);
    }

    return {
      abort(onClosed) {
        if (isCallOver) return;
        finish();
        const socket = opening?.socket;
        if (socket === undefined || socket.closed) onClosed?.();
        else if (onClosed !== undefined) socket.once('close', onClosed);
        close();
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
    get room() {
      return isBusy || isRetired || isOver || opening?.socket.destroyed === true ? 0 : 1;
    },
    get isIdle() {
      return !isBusy;
    },
    send,
    retire() {
      isRetired = true;
    },
    close,
  };
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

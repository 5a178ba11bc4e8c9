// One HTTP/1.1 connection without streams on the way: for calls that are whole. What comes is read into one buffer for all, and told at once.
import type { OnReadOpts, Socket } from 'node:net';
import type { Carried, Connection, ConnectionListener, UpstreamEvents, UpstreamRequest } from './client.ts';
import type { Opened, Opening } from './connector.ts';
import { codeOf } from './failure.ts';
import { createResponseReader, type ResponseReader } from './response.ts';

/** Opens a socket whose bytes go where `onread` says; through a proxy or another socket they come as events all the same. */
export type OpenWire = (onOpened: Opened, onread: OnReadOpts) => Opening;

/**
 * libuv reads when the loop turns to a socket, and what it read is told before it turns to the next: one buffer does for all. A buffer
 * for each read and a stream to hand it on, as undici has them, cost a quarter of all that is done with an event.
 */
const readBuffer = Buffer.allocUnsafeSlow(64 * 1024);
/** As undici: shorter than what servers keep an idle connection for, by enough that a request does not meet its end (RFC 9112 9.3.1). */
const IDLE_MS = 4_000;
const IDLE_MARGIN_MS = 2_000;
const LONGEST_IDLE_MS = 600_000;
/** Whoever sends such a request says how long its body is, and be it nothing (RFC 9110 8.6). */
const HAS_BODY = new Set(['POST', 'PUT', 'PATCH']);
/** What would be another line. */
const LINE_BREAK = /[\r\n\0]/;

interface WireCall {
  /** Until it has been sent. */
  request: UpstreamRequest | undefined;
  readonly events: UpstreamEvents;
}

/** One call at a time, so that giving it up is closing the socket and disturbs no other. Its socket is opened at once. */
export function createWireConnection(authority: string, open: OpenWire, { onRoom, onGone }: ConnectionListener): Connection {
  let opened: Socket | undefined;
  let reader: ResponseReader | undefined;
  let call: WireCall | undefined;
  let isStarted = false;
  let isPaused = false;
  let isRetired = false;
  let isOver = false;
  let freeUntilMs = Number.POSITIVE_INFINITY;
  let isRead = false; // by its own buffer
  let idleTimer: NodeJS.Timeout | undefined;

  const opening = open(onOpened, {
    buffer: readBuffer,
    callback(length, bytes) {
      isRead = true;
      take((bytes as Buffer).subarray(0, length));
      return true;
    },
  });

  function onOpened(error: Error | null, socket: Socket | null): void {
    if (isOver) return;
    if (socket === null) {
      fail(codeOf(error));
      return;
    }
    opened = socket;
    socket.on('data', (bytes: Buffer) => isRead || take(bytes));
    socket.on('error', (fault) => fail(codeOf(fault)));
    socket.on('end', onEnd);
    socket.on('close', () => fail('ECONNRESET'));
    write();
  }

  function take(bytes: Buffer): void {
    // Nobody was asked: it is an answer to nothing, and the next call must not get it.
    if (reader === undefined) close();
    else settle(reader, reader.read(bytes));
  }

  function onEnd(): void {
    if (reader !== undefined) settle(reader, reader.end());
    close();
  }

  /** Once all that came has been read: what comes behind an answer speaks against its connection. */
  function settle(by: ResponseReader, fault: string | undefined): void {
    if (by !== reader) return;
    if (fault !== undefined) fail(fault);
    else if (by.isComplete) finish();
  }

  function fail(detail: string): void {
    const failed = call;
    close();
    failed?.events.onFail({ kind: isStarted ? 'reset' : 'unreachable', detail });
  }

  function close(): void {
    if (isOver) return;
    isOver = true;
    letGo();
    clearTimeout(idleTimer);
    opening.destroy();
    opened?.destroy();
    onGone();
  }

  function letGo(): void {
    reader?.stop();
    reader = call = undefined;
  }

  function finish(): void {
    const { events } = call!;
    const { isReusable, keepAliveMs = IDLE_MS + IDLE_MARGIN_MS } = reader!;
    letGo();
    if (isReusable && !isRetired) rest(Math.min(keepAliveMs - IDLE_MARGIN_MS, LONGEST_IDLE_MS));
    else close();
    events.onEnd();
  }

  /** A paused socket would not show what comes, or that it ends. */
  function rest(idleMs: number): void {
    resume();
    freeUntilMs = performance.now() + idleMs;
    idleTimer = setTimeout(close, Math.max(0, idleMs)).unref();
    onRoom();
  }

  function resume(): void {
    if (!isPaused) return;
    isPaused = false;
    opened?.resume();
  }

  function write(): void {
    const own = call;
    if (own?.request === undefined || opened === undefined) return;
    const { request, events } = own;
    // What it sends may be large, and the answer long.
    own.request = undefined;
    isStarted = true;
    reader = createResponseReader(request.method, { onHead: events.onHead, onBody: events.onChunk });
    events.onStart();
    if (call !== own) return;
    const head = headOf(request, authority);
    if (head === undefined) fail('MALFORMED_REQUEST');
    else writeTo(opened, head, request.body as Buffer | undefined, () => call === own && events.onSent());
  }

  return {
    get room() {
      return isOver || isRetired || call !== undefined || performance.now() >= freeUntilMs ? 0 : 1;
    },
    get isIdle() {
      return call === undefined;
    },
    send(request, events): Carried {
      const own: WireCall = { request, events };
      call = own;
      isStarted = false;
      clearTimeout(idleTimer);
      write();
      return {
        abort(onClosed) {
          if (call !== own) return;
          const socket = opened ?? opening.socket;
          if (socket.closed) onClosed?.();
          else if (onClosed !== undefined) socket.once('close', onClosed);
          close();
        },
        pause() {
          if (call !== own || isPaused) return;
          isPaused = true;
          opened?.pause();
        },
        resume() {
          if (call === own) resume();
        },
      };
    },
    retire() {
      isRetired = true;
      if (call === undefined) close();
    },
    close,
  };
}

/** The request line and headers (RFC 9112 3, 5); undefined where a part has what would begin another line. */
function headOf({ method, path, headers, body }: UpstreamRequest, authority: string): string | undefined {
  let head = `${method} ${path} HTTP/1.1\r\nhost: ${authority}\r\nconnection: keep-alive\r\n`;
  for (let i = 0; i < headers.length; i += 2) {
    const [name, value] = [headers[i]!, headers[i + 1]!];
    if (LINE_BREAK.test(name) || LINE_BREAK.test(value)) return undefined;
    if (name.length !== 14 || name.toLowerCase() !== 'content-length') head += `${name}: ${value}\r\n`;
  }
  if (body !== undefined || HAS_BODY.has(method)) head += `content-length: ${(body as Buffer | undefined)?.length ?? 0}\r\n`;
  return `${head}\r\n`;
}

function writeTo(socket: Socket, head: string, body: Buffer | undefined, onSent: () => void): void {
  if (body === undefined || body.length === 0) {
    socket.write(head, 'latin1', onSent);
    return;
  }
  socket.cork();
  socket.write(head, 'latin1');
  socket.write(body, onSent);
  socket.uncork();
}

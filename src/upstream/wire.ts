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
const readBuffer = Buffer.allocUnsafeSlow(32 * 1024);
/** As undici: shorter than what servers keep an idle connection for, by enough that a request does not meet its end (RFC 9112 9.3.1). */
const IDLE_MS = 4_000;
const IDLE_MARGIN_MS = 2_000;
const LONGEST_IDLE_MS = 600_000;
/** Whoever sends such a request says how long its body is, and be it nothing (RFC 9110 8.6). */
const HAS_BODY = new Set(['POST', 'PUT', 'PATCH']);
/** A body that goes out in one string with the head: Node sends that without an allocation, and two pieces in a vector that it makes. */
const SHORT_BODY_BYTES = 8 * 1024;
/** What would be another line. */
const LINE_BREAK = /[\r\n\0]/;

class WireCall implements Carried {
  /** Until it has been sent. */
  request: UpstreamRequest | undefined;
  readonly events: UpstreamEvents;
  private readonly connection: WireConnection;

  constructor(request: UpstreamRequest, events: UpstreamEvents, connection: WireConnection) {
    this.request = request;
    this.events = events;
    this.connection = connection;
  }

  abort(onClosed?: () => void): void {
    this.connection.abort(this, onClosed);
  }

  pause(): void {
    this.connection.pause(this);
  }

  resume(): void {
    this.connection.resume(this);
  }
}

/** One call at a time, so that giving it up is closing the socket and disturbs no other. Its socket is opened at once. */
export function createWireConnection(authority: string, open: OpenWire, listener: ConnectionListener): Connection {
  return new WireConnection(authority, open, listener);
}

class WireConnection implements Connection {
  private readonly authority: string;
  private readonly listener: ConnectionListener;
  private opened: Socket | undefined;
  private reader: ResponseReader | undefined;
  private call: WireCall | undefined;
  private isStarted = false;
  private isPaused = false;
  private isRetired = false;
  private isOver = false;
  private freeUntilMs = Number.POSITIVE_INFINITY;
  private isRead = false; // by its own buffer
  private idleTimer: NodeJS.Timeout | undefined;
  private idleMs = 0;
  private readonly opening: Opening;

  constructor(authority: string, open: OpenWire, listener: ConnectionListener) {
    this.authority = authority;
    this.listener = listener;
    this.opening = open((error, socket) => this.onOpened(error, socket), {
      buffer: readBuffer,
      callback: (length, bytes) => {
        this.isRead = true;
        this.take(bytes as Buffer, length);
        return true;
      },
    });
  }

  private onOpened(error: Error | null, socket: Socket | null): void {
    if (this.isOver) return;
    if (socket === null) {
      this.fail(codeOf(error));
      return;
    }
    this.opened = socket;
    socket.on('data', (bytes: Buffer) => this.isRead || this.take(bytes, bytes.length));
    socket.on('error', (fault) => this.fail(codeOf(fault)));
    socket.on('end', () => this.onEnd());
    socket.on('close', () => this.fail('ECONNRESET'));
    this.write();
  }

  private take(bytes: Buffer, length: number): void {
    // Nobody was asked: it is an answer to nothing, and the next call must not get it.
    const { reader, call } = this;
    if (reader === undefined) this.close();
    else this.settle(reader, reader.read(bytes, length));
    // The call may have ended, and another be under way.
    if (this.call === call) call?.events.onReadEnd();
  }

  private onEnd(): void {
    if (this.reader !== undefined) this.settle(this.reader, this.reader.end());
    this.close();
  }

  /** Once all that came has been read: what comes behind an answer speaks against its connection. */
  private settle(by: ResponseReader, fault: string | undefined): void {
    if (by !== this.reader) return;
    if (fault !== undefined) this.fail(fault);
    else if (by.isComplete) this.finish();
  }

  private fail(detail: string): void {
    const failed = this.call;
    this.close();
    failed?.events.onFail({ kind: this.isStarted ? 'reset' : 'unreachable', detail });
  }

  close(): void {
    if (this.isOver) return;
    this.isOver = true;
    this.letGo();
    clearTimeout(this.idleTimer);
    this.opening.destroy();
    this.opened?.destroy();
    this.listener.onGone();
  }

  private letGo(): void {
    this.reader?.stop();
    this.reader = this.call = undefined;
  }

  private finish(): void {
    const { events } = this.call!;
    const { isReusable, keepAliveMs = IDLE_MS + IDLE_MARGIN_MS } = this.reader!;
    this.letGo();
    if (isReusable && !this.isRetired) this.rest(Math.min(keepAliveMs - IDLE_MARGIN_MS, LONGEST_IDLE_MS));
    else this.close();
    events.onEnd();
  }

  /** A paused socket would not show what comes, or that it ends. */
  private rest(idleMs: number): void {
    this.goOn();
    this.freeUntilMs = performance.now() + idleMs;
    this.closeAfter(Math.max(0, idleMs));
    this.listener.onRoom();
  }

  /** One timer for the connection's life: it runs on while a call is under way, and comes to nothing then. */
  private closeAfter(idleMs: number): void {
    if (this.idleTimer !== undefined && this.idleMs === idleMs) {
      this.idleTimer.refresh();
      return;
    }
    clearTimeout(this.idleTimer);
    this.idleMs = idleMs;
    this.idleTimer = setTimeout(() => this.isIdle && this.close(), idleMs).unref();
  }

  private goOn(): void {
    if (!this.isPaused) return;
    this.isPaused = false;
    this.opened?.resume();
  }

  private write(): void {
    const own = this.call;
    if (own?.request === undefined || this.opened === undefined) return;
    const { request, events } = own;
    // What it sends may be large, and the answer long.
    own.request = undefined;
    this.isStarted = true;
    this.reader = createResponseReader(request.method, events);
    events.onStart();
    if (this.call !== own) return;
    const head = headOf(request, this.authority);
    if (head === undefined) this.fail('MALFORMED_REQUEST');
    else writeTo(this.opened, head, request.body as Buffer | undefined, () => this.call === own && events.onSent());
  }

  get room(): number {
    return this.isOver || this.isRetired || this.call !== undefined || performance.now() >= this.freeUntilMs ? 0 : 1;
  }

  get isIdle(): boolean {
    return this.call === undefined;
  }

  send(request: UpstreamRequest, events: UpstreamEvents): Carried {
    const own = new WireCall(request, events, this);
    this.call = own;
    this.isStarted = false;
    this.write();
    return own;
  }

  abort(call: WireCall, onClosed?: () => void): void {
    if (this.call !== call) return;
    const socket = this.opened ?? this.opening.socket;
    if (socket.closed) onClosed?.();
    else if (onClosed !== undefined) socket.once('close', onClosed);
    this.close();
  }

  pause(call: WireCall): void {
    if (this.call !== call || this.isPaused) return;
    this.isPaused = true;
    this.opened?.pause();
  }

  resume(call: WireCall): void {
    if (this.call === call) this.goOn();
  }

  retire(): void {
    this.isRetired = true;
    if (this.call === undefined) this.close();
  }
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
  if (body === undefined || body.length <= SHORT_BODY_BYTES) {
    socket.write(head + (body?.toString('latin1') ?? ''), 'latin1', onSent);
    return;
  }
  socket.cork();
  socket.write(head, 'latin1');
  socket.write(body, onSent);
  socket.uncork();
}

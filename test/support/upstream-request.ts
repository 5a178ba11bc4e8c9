// What a scripted upstream can see of, and say on, one connection and one request.

import { STATUS_CODES } from 'node:http';
import type { Socket } from 'node:net';
import type { Field, Message, MessageReader } from './framing.ts';
import type { Ending, Peer } from './peer.ts';

export interface UpstreamConnection {
  /** All received so far. */
  readonly bytes: Buffer;
  /** performance.now() */
  readonly openedAt: number;
  /** When and how the other side closed it; the bound of the wait begins as this is read. Unseen while reading is paused. */
  readonly closed: Promise<Ending>;
  readonly isClosed: boolean;
  write(text: string | Buffer): void;
  /** FIN. */
  end(): void;
  /** RST. */
  reset(): void;
  pauseReading(): void;
  resumeReading(): void;
  /** Until so many bytes of it have come. */
  received(bytes: number): Promise<void>;
}

export interface UpstreamRequest {
  readonly connection: UpstreamConnection;
  readonly method: string;
  readonly target: string;
  readonly rawHeaders: readonly Field[];
  /** Lower-case names, several values joined by ', '. */
  readonly headers: Record<string, string>;
  readonly head: string;
  /** The whole body, de-chunked; after an `Upgrade`, all bytes up to the FIN. */
  body(): Promise<Buffer>;
  /** The body's first n bytes as soon as they are there. */
  bodyBytes(n: number): Promise<Buffer>;
  /** Framed by Content-Length, unless `headers` say otherwise. */
  respond(status: number, headers?: Headers, body?: string | Buffer): void;
  /** 200 `text/event-stream`, chunked; the head goes out at once. */
  startSse(headers?: Headers): void;
  /** `data: …` and a blank line, as one chunk; an object as JSON. */
  event(data: string | object): void;
  /** One HTTP chunk of exactly these bytes. */
  chunk(bytes: string | Buffer): void;
  /** The final chunk; the connection stays. */
  endChunks(): void;
}

/** Objects for convenience; pairs where a name comes twice. */
export type Headers = Record<string, string> | readonly Field[];

function formatHead(status: number, defaults: Record<string, string>, headers: Headers): string {
  const given = Array.isArray(headers) ? headers : Object.entries(headers);
  const names = new Set(given.map(([name]) => name.toLowerCase()));
  const fields = [...Object.entries(defaults).filter(([name]) => !names.has(name.toLowerCase())), ...given];
  return `HTTP/1.1 ${status} ${STATUS_CODES[status] ?? ''}\r\n${fields.map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n`;
}

const asBuffer = (bytes: string | Buffer) => (typeof bytes === 'string' ? Buffer.from(bytes) : bytes);

export function createConnection(socket: Socket, reader: MessageReader, peer: Peer): UpstreamConnection {
  const openedAt = performance.now();
  return {
    openedAt,
    get bytes() {
      return reader.bytes.view();
    },
    get closed() {
      return peer.closed();
    },
    get isClosed() {
      return peer.ending !== undefined;
    },
    write: (text) => void socket.write(text),
    end: () => void socket.end(),
    reset: () => peer.reset(),
    pauseReading: () => void socket.pause(),
    resumeReading: () => void socket.resume(),
    received: (bytes) => peer.wait(`${bytes} bytes on a connection`, () => reader.bytes.length >= bytes || undefined).then(() => undefined),
  };
}

export function createRequest(message: Message, connection: UpstreamConnection, peer: Peer): UpstreamRequest {
  const { head, body } = message;
  const [method = '', target = ''] = head.startLine.split(' ');
  const name = `of ${method} ${target}`;

  function chunk(bytes: string | Buffer): void {
    const piece = asBuffer(bytes);
    if (piece.length === 0) throw new RangeError('an empty chunk would be the final one');
    connection.write(Buffer.concat([Buffer.from(`${piece.length.toString(16)}\r\n`), piece, Buffer.from('\r\n')]));
  }
  return {
    connection,
    method,
    target,
    rawHeaders: head.rawHeaders,
    headers: head.headers,
    head: head.text,
    body: () => peer.wait(`the whole body ${name}`, () => (message.isComplete ? body.view() : undefined)),
    bodyBytes: (n) => peer.wait(`${n} body bytes ${name}`, () => (body.length >= n ? body.view().subarray(0, n) : undefined)),
    respond(status, headers = {}, text = '') {
      const content = asBuffer(text);
      const isBodiless = status < 200 || status === 204 || status === 304;
      const start = formatHead(status, isBodiless ? {} : { 'Content-Length': String(content.length) }, headers);
      connection.write(Buffer.concat([Buffer.from(start, 'latin1'), method === 'HEAD' ? Buffer.alloc(0) : content]));
    },
    startSse(headers = {}) {
      const defaults = { 'Content-Type': 'text/event-stream', 'Transfer-Encoding': 'chunked' };
      connection.write(Buffer.from(formatHead(200, defaults, headers), 'latin1'));
    },
    event: (data) => chunk(`data: ${typeof data === 'string' ? data : JSON.stringify(data)}\n\n`),
    chunk,
    endChunks: () => connection.write('0\r\n\r\n'),
  };
}

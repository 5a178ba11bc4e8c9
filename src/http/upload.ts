// The client's request body on its way up: counted, bounded, under back-pressure, and apart from the client's connection.
import type { IncomingMessage } from 'node:http';
import { Readable } from 'node:stream';
import type { Exchange } from '../exchange.ts';
import { hasBody } from './stream-message.ts';

export interface Upload {
  readonly hasBody: boolean;
  /** Reads the body to its end, for `onBytes` alone; `onEnd` runs when it has seen all of it. */
  read(onEnd: () => void): void;
  /** The body to send as it comes, undefined where the request has none. */
  stream(): Readable | undefined;
  /** Lets go of the request: what still comes is read and dropped, so that the answer can be heard. */
  close(): void;
}

export interface UploadEvents {
  /** The body goes beyond the bound; nothing more of it is sent. Called once. */
  onTooLarge(): void;
  /** The next bytes, on their way. */
  onBytes(chunk: Buffer): void;
}

/**
 * Read ahead of what the upstream takes: a departed client shows only when its connection is read, and most bodies are
 * smaller than this.
 */
const READ_AHEAD_BYTES = 1024 * 1024;

/**
 * Opens the body of a request: to be read here, or to be sent as it comes. The request itself is never handed on: an upstream that
 * breaks destroys the stream that it was given, and with the request's own stream the client's connection would go before it is told why.
 * @param flow where its bytes are counted
 */
export function openUpload(request: IncomingMessage, flow: Pick<Exchange, 'bytesIn'>, maxBytes: number, events: UploadEvents): Upload {
  return new RequestUpload(request, flow, maxBytes, events);
}

class RequestUpload implements Upload {
  readonly hasBody: boolean;
  private readonly request: IncomingMessage;
  private readonly flow: Pick<Exchange, 'bytesIn'>;
  private readonly maxBytes: number;
  private readonly events: UploadEvents;
  private readonly onData = (chunk: Buffer): void => this.pass(chunk);
  private readonly onEnd = (): void => this.finish();
  private body: Readable | undefined;
  private onRead: (() => void) | undefined;

  constructor(request: IncomingMessage, flow: Pick<Exchange, 'bytesIn'>, maxBytes: number, events: UploadEvents) {
    this.request = request;
    this.flow = flow;
    this.maxBytes = maxBytes;
    this.events = events;
    this.hasBody = hasBody(request);
  }

  private pass(chunk: Buffer): void {
    this.flow.bytesIn += chunk.length;
    if (this.flow.bytesIn > this.maxBytes) {
      this.close();
      this.events.onTooLarge();
      return;
    }
    this.events.onBytes(chunk);
    if (this.body !== undefined && !this.body.push(chunk)) this.request.pause();
  }

  private finish(): void {
    this.body?.push(null);
    this.onRead?.();
  }

  read(onEnd: () => void): void {
    this.onRead = onEnd;
    const whole = takeWhole(this.request);
    if (whole === undefined) {
      this.listen();
      return;
    }
    this.pass(whole);
    this.finish();
  }

  private listen(): void {
    this.request.on('data', this.onData).on('end', this.onEnd);
  }

  stream(): Readable | undefined {
    if (!this.hasBody || this.body !== undefined) return this.body;
    this.body = new Readable({
      highWaterMark: READ_AHEAD_BYTES,
      read: () => void this.request.resume(),
      destroy: (_, callback) => {
        this.close();
        callback(null);
      },
    });
    // A paused request starts to flow only when the upstream asks.
    this.request.pause();
    this.listen();
    return this.body;
  }

  close(): void {
    this.onRead = undefined;
    this.request.off('data', this.onData).off('end', this.onEnd).resume();
  }
}

/**
 * The body, where all of it has come along with its head, as short ones do: without the turns of Node's queues in which a stream
 * tells of its data and of its end. By the length that it was announced with, as the end is only told of behind the data.
 */
function takeWhole(request: IncomingMessage): Buffer | undefined {
  const { readableLength, headers } = request;
  return readableLength === Number(headers['content-length']) ? (request.read() ?? undefined) : undefined;
}

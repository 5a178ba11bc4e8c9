// The client's request body on its way up: counted, bounded, under back-pressure, and apart from the client's connection.
import type { IncomingMessage } from 'node:http';
import { Readable } from 'node:stream';
import type { Exchange } from '../exchange.ts';
import { hasBody } from './stream-message.ts';

export interface Upload {
  /** The body to send, undefined where the request has none. */
  readonly body: Readable | undefined;
  /** Lets go of the request: what still comes is read and dropped, so that the answer can be heard. */
  close(): void;
}

export interface UploadOptions {
  /** Where bytes are counted. */
  readonly flow: Pick<Exchange, 'bytesIn'>;
  readonly maxBytes: number;
  /** Called once when the body goes beyond the bound; nothing more of it is sent. */
  onTooLarge(): void;
  /** Looks at the bytes on their way. */
  observe?: ((chunk: Buffer) => void) | undefined;
}

/**
 * Read ahead of what the upstream takes: a departed client shows only when its connection is read, and most bodies are
 * smaller than this.
 */
const READ_AHEAD_BYTES = 1024 * 1024;

/**
 * Opens the body of a request. The request itself is never handed on: an upstream that breaks destroys the stream that
 * it was given, and with the request's own stream the client's connection would go before it is told why.
 */
export function openUpload(request: IncomingMessage, { flow, maxBytes, onTooLarge, observe }: UploadOptions): Upload {
  if (!hasBody(request)) return { body: undefined, close: () => void request.resume() };
  const body = new Readable({
    highWaterMark: READ_AHEAD_BYTES,
    read: () => void request.resume(),
    destroy: (_, callback) => {
      close();
      callback(null);
    },
  });

  function onData(chunk: Buffer): void {
    flow.bytesIn += chunk.length;
    if (flow.bytesIn > maxBytes) {
      close();
      onTooLarge();
      return;
    }
    observe?.(chunk);
    if (!body.push(chunk)) request.pause();
  }
  const onEnd = () => void body.push(null);

  function close(): void {
    request.off('data', onData).off('end', onEnd).resume();
  }

  // Attached before the first read: a paused request starts to flow only when the upstream asks.
  request.pause();
  request.on('data', onData).on('end', onEnd);
  return { body, close };
}

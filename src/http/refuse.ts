// Answers made here: the error form that every OpenAI SDK raises, sent so that it arrives.
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { errorBody, type GatewayError } from '../errors.ts';
import type { HeaderList } from '../upstream/headers.ts';
import { onStream } from './stream-message.ts';

/** How long and how much of what a refused client still sends is read and dropped. */
const LINGER_MS = 5_000;
const LINGER_BYTES = 256 * 1024 * 1024;
/** The rest of a body that is worth reading for the sake of its connection. */
const SHORT_BODY_BYTES = 64 * 1024;

/**
 * Sends an error as the whole answer, and closes the connection where the next request on it would be in doubt.
 * An answer that has begun stays as it is. `headers` are those that any answer of this request would have.
 */
export function refuse(response: ServerResponse, error: GatewayError, headers: HeaderList = []): void {
  if (response.headersSent) return;
  const body = errorBody(error.detail);
  const own = Object.entries({ ...error.row.headers, ...error.headers });
  const replaced = new Set(own.map(([name]) => name));
  const kept = headers.filter((_, at) => !replaced.has(headers[at - (at % 2)]!));
  // A stream ends for itself: where another begins is never in doubt.
  if (onStream(response) !== undefined) response.req.resume();
  else if (isLastOfConnection(response.req, error.row.status)) closeAfter(response);
  response.writeHead(error.row.status, [
    ...kept,
    ...own.flat(),
    'content-type',
    'application/json',
    'content-length',
    String(Buffer.byteLength(body)),
  ]);
  response.end(body);
}

/** Whoever wrote a malformed request is not trusted with where it ends; and a long rest of a body, or one that waits for a 100, is not waited for. */
function isLastOfConnection({ complete, headers }: IncomingMessage, status: number): boolean {
  if ([400, 405, 408, 413].includes(status)) return true;
  return !complete && (headers.expect !== undefined || !(Number(headers['content-length']) <= SHORT_BODY_BYTES));
}

function closeAfter(response: ServerResponse): void {
  const { socket } = response.req;
  response.shouldKeepAlive = false;
  // A request that nobody reads holds its connection back.
  response.req.resume();
  // Node closes after the last answer by this; it would destroy the socket with the client's bytes unread.
  response.prependOnceListener('finish', () => {
    socket.destroySoon = () => closeGently(socket);
  });
}

/**
 * Sends FIN, and goes on to read and drop for a while. Closing a connection with bytes unread resets it, and the reset
 * overtakes the answer (RFC 9112 9.6).
 */
export function closeGently(socket: Socket): void {
  let leftBytes = LINGER_BYTES;
  const timer = setTimeout(() => socket.destroy(), LINGER_MS);
  socket.once('close', () => clearTimeout(timer));
  // The parser's: nothing that comes now is a request any more.
  socket.removeAllListeners('data');
  socket.on('data', ({ length }) => {
    leftBytes -= length;
    if (leftBytes < 0) socket.destroy();
  });
  socket.end();
}

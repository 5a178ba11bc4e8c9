// A Fastify application on a listener of its own, with the form of errors and the bounds that all listeners share.
import { createServer, METHODS, type Server } from 'node:http';
import type { Socket } from 'node:net';
import { type FastifyInstance, fastify } from 'fastify';
import { detailOf, type ErrorCode, errorBody, errorTable, GatewayError } from '../errors.ts';

export interface ListenerOptions {
  /** Whether X-Forwarded-For is believed from this address. */
  isTrusted(address: string): boolean;
  /** A request that was refused before it was one, with the reason. */
  onUnparsed(reason: ErrorCode): void;
  /** An error that is none of ours, which the client learns nothing of. */
  onFault(error: Error): void;
}

/** INTERFACE section 5; Node answers 431 beyond it. */
const MAX_HEADER_BYTES = 16 * 1024;
/** Longer than the 60 s for which load balancers keep idle connections, so that they and not we close them. */
const KEEP_ALIVE_MS = 72_000;
const HEADERS_TIMEOUT_MS = 10_000;
const REQUEST_TIMEOUT_MS = 300_000;
const TIMEOUT_CHECK_MS = 1_000;

/** Makes the application; nothing listens yet. Bodies are left unread for whoever wants them. */
export function createListener(options: ListenerOptions): FastifyInstance {
  const app = fastify({
    logger: false,
    trustProxy: options.isTrusted,
    exposeHeadRoutes: false,
    return503OnClosing: false,
    forceCloseConnections: 'idle',
    serverFactory: (handler) => {
      const server = createServer(
        {
          maxHeaderSize: MAX_HEADER_BYTES,
          keepAliveTimeout: KEEP_ALIVE_MS,
          headersTimeout: HEADERS_TIMEOUT_MS,
          requestTimeout: REQUEST_TIMEOUT_MS,
          connectionsCheckingInterval: TIMEOUT_CHECK_MS,
          // Judged with the rest of the request, so that its refusal has a body too.
          requireHostHeader: false,
          noDelay: true,
        },
        handler,
      );
      // Without this Node would ask for the body at once, before the key and the limits were judged.
      server.on('checkContinue', handler);
      return watchAnswers(server);
    },
    clientErrorHandler: (error, socket) => answerUnparsed(error, socket, options),
  });
  // No method has a body as far as Fastify is concerned: it neither reads one nor judges its content type.
  for (const method of METHODS) app.addHttpMethod(method, { hasBody: false, overrideExisting: true });
  return app;
}

/** Sockets with an answer under way: garbage behind the request must not put a 400 into it. */
const answering = new WeakSet<Socket>();

/** Knows which sockets are being answered, and lets a closed server's connections go as soon as they have their answer. */
function watchAnswers(server: Server): Server {
  server.prependListener('request', (request, response) => {
    answering.add(request.socket);
    if (!server.listening) response.shouldKeepAlive = false;
    response.once('close', () => {
      answering.delete(request.socket);
      if (!server.listening) setImmediate(() => server.closeIdleConnections());
    });
  });
  return server;
}

/** The error of llhttp or of Node's own timeouts, as one of ours. */
function codeOfUnparsed(error: NodeJS.ErrnoException): ErrorCode {
  if (error.code === 'HPE_HEADER_OVERFLOW') return 'headers_too_large';
  if (error.code === 'ERR_HTTP_REQUEST_TIMEOUT') return 'request_timeout';
  return 'invalid_request';
}

function answerUnparsed(error: NodeJS.ErrnoException, socket: Socket, options: ListenerOptions): void {
  if (error.code === 'ECONNRESET' || !socket.writable || answering.has(socket)) return void socket.destroy();
  const code = codeOfUnparsed(error);
  options.onUnparsed(code);
  const body = errorBody(detailOf(code));
  const { status } = errorTable[code];
  const head = `HTTP/1.1 ${status} \r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n`;
  socket.end(head + body);
}

/** Any error as a GatewayError: Fastify's own by their status, everything else as our fault. */
export function asGatewayError(error: unknown, onFault: (error: Error) => void): GatewayError {
  if (error instanceof GatewayError) return error;
  const status = error instanceof Error ? Number(Reflect.get(error, 'statusCode')) : 500;
  if (status === 413) return new GatewayError('request_too_large');
  if (status === 404) return new GatewayError('not_found');
  if (status >= 400 && status < 500) return new GatewayError('invalid_request');
  onFault(error instanceof Error ? error : new Error('not an error'));
  return new GatewayError('internal_error');
}

// A Fastify application on a listener of its own, with the form of errors and the bounds that all listeners share.
import { createServer, type IncomingMessage, METHODS, type RequestListener, type Server, ServerResponse, STATUS_CODES } from 'node:http';
import type { Socket } from 'node:net';
import { type FastifyInstance, fastify } from 'fastify';
import { detailOf, type ErrorCode, errorBody, errorTable, GatewayError } from '../errors.ts';
import { Roster } from '../roster.ts';
import { countHeader } from '../upstream/headers.ts';
import { letGoInTurns } from './crowd.ts';
import { closeGently, refuse } from './refuse.ts';
import { type Credentials, createSecureServer, HTTP1 } from './secure.ts';
import { createSessions } from './sessions.ts';
import type { StreamRequest, StreamResponse } from './stream-message.ts';

/** Milliseconds that a client may take. */
export interface ListenerClocks {
  /** For the head of a request, from the first byte; for the first one, from the connection on. */
  readonly headersMs: number;
  /** For a whole request with its body. */
  readonly requestMs: number;
  /** Between two looks at them all. */
  readonly checkMs: number;
  /** For an idle connection to bring its next request. */
  readonly keepAliveMs?: number;
}

export interface ListenerOptions {
  /** Whether X-Forwarded-For is believed from this address. */
  isTrusted(address: string): boolean;
  /** Whether connections should move elsewhere: answers then say `Connection: close`. */
  isLeaving(): boolean;
  /** A request that was refused before it was one, with the reason. */
  onUnparsed(reason: ErrorCode): void;
  /** An error that is none of ours, which the client learns nothing of. */
  onFault(error: Error): void;
  /** Runs what thousands of connections can want at one instant, now or in one of the next turns of the loop. */
  spread(task: () => void): void;
  readonly clocks?: ListenerClocks | undefined;
  /** Listens under TLS, for HTTP/2 and HTTP/1.1. */
  readonly credentials?: Credentials | undefined;
}

/**
 * What a request emits, with a GatewayError, when its body turns out malformed or does not arrive in time. Whoever has
 * begun to forward it listens, and answers; where nobody does, the listener answers.
 */
export const REFUSED = 'refused';

/** INTERFACE section 5; Node answers 431 beyond it. */
const MAX_HEADER_BYTES = 16 * 1024;
/** Longer than the 60 s for which load balancers keep idle connections, so that they and not we close them. */
const KEEP_ALIVE_MS = 72_000;
/** A connection that sends nothing is closed within ten seconds, the check included. */
const CLOCKS: ListenerClocks = { headersMs: 8_000, requestMs: 300_000, checkMs: 1_000 };

/** How long a connection that has just been made may take to bring its request when the listener closes. */
const LAST_WORD_MS = 1_000;

/** Makes the application; nothing listens yet. Bodies are left unread for whoever wants them. */
export function createListener(options: ListenerOptions): FastifyInstance {
  const app = fastify({
    logger: false,
    // A client that had gone before its connection was taken has no address.
    trustProxy: (address: string | undefined) => address !== undefined && options.isTrusted(address),
    exposeHeadRoutes: false,
    return503OnClosing: false,
    forceCloseConnections: 'idle',
    serverFactory: (handler) => {
      const server = createServerFor(handler, options);
      // Who half-closes has left, which is for whoever answers it to act on: Node would close a thousand sockets in one turn.
      Reflect.set(server, 'httpAllowHalfOpen', true);
      // The bytes of the head bound the headers; beyond this count, 2,000 by default, Node would drop them unsaid.
      server.maxHeadersCount = 0;
      letGoInTurns(server, openingOf(options));
      return takeRequests(server, handler, options);
    },
    // Fastify's router decodes targets before any route sees them, and would answer in a form of its own.
    frameworkErrors: (error, _, reply) => {
      reply.hijack();
      refuseUnparsed(reply.raw, asGatewayError(error, options.onFault).code, options);
    },
    clientErrorHandler: (error, socket) => {
      const answer = () => answerUnparsed(error, socket, options);
      // Node looks at its clocks once a second, and tells of all that were too slow in one turn.
      if (error.code === 'ERR_HTTP_REQUEST_TIMEOUT') options.spread(answer);
      else answer();
    },
  });
  // No method has a body as far as Fastify is concerned: it neither reads one nor judges its content type.
  for (const method of METHODS) app.addHttpMethod(method, { hasBody: false, overrideExisting: true });
  return app;
}

function createServerFor(handler: RequestListener, options: ListenerOptions): Server {
  const { credentials, clocks = CLOCKS, spread } = options;
  const { headersMs, requestMs, checkMs, keepAliveMs = KEEP_ALIVE_MS } = clocks;
  const settings = {
    maxHeaderSize: MAX_HEADER_BYTES,
    keepAliveTimeout: keepAliveMs,
    headersTimeout: headersMs,
    requestTimeout: requestMs,
    connectionsCheckingInterval: checkMs,
    // Judged with the rest of the request, so that its refusal has a body too.
    requireHostHeader: false,
    noDelay: true,
    // Any other protocol that is offered need not be taken (RFC 9110 7.8): the request is one like any other.
    shouldUpgradeCallback: (request: IncomingMessage) => isHandshake(request) && !answers.has(request.socket),
  };
  if (credentials === undefined) return createServer(settings);
  const sessions = createSessions({
    ...{ clocks, keepAliveMs, spread },
    onRequest: (request, response) => takeFromStream(request, response, handler, options),
    onLate(request, response) {
      if (!request.emit(REFUSED, new GatewayError('request_timeout'))) refuseUnparsed(plain(response), 'request_timeout', options);
    },
  });
  return createSecureServer(settings, {
    ...{ credentials, sessions, spread, handshakeMs: headersMs, lastWordMs: LAST_WORD_MS },
    onFailed({ code }) {
      if (code === 'ERR_TLS_HANDSHAKE_TIMEOUT') options.onUnparsed('request_timeout');
      // Plain HTTP. Whoever does not like the certificate has not asked for anything.
      else if (code === 'ERR_SSL_HTTP_REQUEST') options.onUnparsed('invalid_request');
    },
  });
}

/** The server's event for a connection that speaks HTTP/1.1. */
function openingOf({ credentials }: ListenerOptions): string {
  return credentials === undefined ? 'connection' : HTTP1;
}

/** Hands on a request on an HTTP/2 stream. */
function takeFromStream(request: StreamRequest, response: StreamResponse, handler: RequestListener, options: ListenerOptions): void {
  const { method, headers, headerBytes, isAmbiguous } = request;
  if (options.isLeaving()) response.shouldKeepAlive = false;
  if (headerBytes > MAX_HEADER_BYTES) refuseUnparsed(plain(response), 'headers_too_large', options);
  else if (method === 'CONNECT') refuseUnparsed(plain(response), 'method_not_allowed', options);
  else if (isAmbiguous || !/^(?:100-continue)?$/i.test(headers.expect ?? '')) refuseUnparsed(plain(response), 'invalid_request', options);
  else handler(request as unknown as IncomingMessage, plain(response));
}

/** In the shape that everybody else knows. */
function plain(response: StreamResponse): ServerResponse {
  return response as unknown as ServerResponse;
}

/** The answer that is under way on a socket, or the last in line. */
const answers = new WeakMap<Socket, ServerResponse>();

/** Requests whose connections are no longer read as HTTP. */
const upgraded = new WeakSet<IncomingMessage>();

/** Whether a request asks for a WebSocket on a connection that can become one. What the client sends next is still unread. */
export function isUpgraded(request: IncomingMessage): boolean {
  return upgraded.has(request);
}

/** The opening handshake of a WebSocket (RFC 6455 4.2.1). */
function isHandshake({ method, httpVersion, headers }: IncomingMessage): boolean {
  const { upgrade = '', 'sec-websocket-key': key = '', 'sec-websocket-version': version } = headers;
  const isBodiless = headers['transfer-encoding'] === undefined && Number(headers['content-length'] ?? 0) === 0;
  const isGet = method === 'GET' && httpVersion === '1.1' && isBodiless;
  return isGet && /\bwebsocket\b/i.test(upgrade) && version === '13' && /^[A-Za-z0-9+/]{22}==$/.test(key);
}

/** Hands on what is a request beyond doubt, and lets a closed server's connections go as soon as they have their answer. */
function takeRequests(server: Server, handler: RequestListener, options: ListenerOptions): Server {
  const underWay = new Roster<ServerResponse>();
  /** Connections that have not brought a request yet. */
  const silent = new Set<Socket>();

  function take(request: IncomingMessage, response: ServerResponse): void {
    const { socket } = request;
    // Behind a last answer nothing is read (RFC 9112 9.6).
    if (answers.get(socket)?.shouldKeepAlive === false) return;
    answers.set(socket, response);
    // What follows the offer of another protocol may be in that protocol already.
    if (options.isLeaving() || request.headers.upgrade !== undefined) response.shouldKeepAlive = false;
    silent.delete(socket);
    const seat = underWay.enter(response);
    response.on('close', () => {
      seat.leave();
      if (answers.get(socket) === response) answers.delete(socket);
      if (!server.listening) setImmediate(() => server.closeIdleConnections());
    });
    if (!isUnambiguous(request)) refuseUnparsed(response, 'invalid_request', options);
    else if (request.headers['transfer-encoding'] === undefined) handler(request, response);
    // The parser goes on with what came along with the head, and tells of errors in between turns: a body whose chunks
    // are malformed there never goes up. No other body can be malformed.
    else setImmediate(() => response.headersSent || handler(request, response));
  }
  server.on(openingOf(options), (socket: Socket) => {
    silent.add(socket);
    socket.on('close', () => silent.delete(socket));
  });
  server.on('request', take);
  server.on('upgrade', (request: IncomingMessage, socket: Socket, head: Buffer) => {
    const response = new ServerResponse(request);
    response.assignSocket(socket);
    // Node has taken its own listeners away.
    socket.on('error', () => undefined);
    response.once('finish', () => socket.destroySoon());
    if (head.length > 0) socket.unshift(head);
    upgraded.add(request);
    take(request, response);
  });
  const { close } = server;
  server.close = (done) => {
    // Whoever is being answered learns with the head that this connection takes no further request.
    for (const response of underWay) response.shouldKeepAlive = false;
    // Node's own clocks stop with the listener, and a connection that never said a word is not idle to it.
    setTimeout(() => {
      for (const socket of silent) socket.destroy();
    }, LAST_WORD_MS).unref();
    return close.call(server, done);
  };
  // Without this Node would ask for the body at once, before the key and the limits were judged.
  server.on('checkContinue', take);
  // Node would answer 417 itself, in a form of its own (RFC 9110 10.1.1: may).
  server.on('checkExpectation', (_, response: ServerResponse) => refuseUnparsed(response, 'invalid_request', options));
  server.on('connect', (_, socket: Socket) => answerRaw(socket, 'method_not_allowed', options));
  return server;
}

/**
 * Whether no other server on the way could read the message otherwise. The parser lets these pass: versions 0.9 and 2.0,
 * transfer codings before `chunked`, which would be taken off here and not be told upstream, or from an HTTP/1.0 client
 * (RFC 9112 6.1), and a second Host (3.2).
 */
function isUnambiguous({ httpVersion, headers, rawHeaders }: IncomingMessage): boolean {
  const coding = headers['transfer-encoding'];
  if (coding !== undefined && (coding.toLowerCase() !== 'chunked' || httpVersion !== '1.1')) return false;
  return (httpVersion === '1.1' || httpVersion === '1.0') && countHeader(rawHeaders, 'host') < 2;
}

/** The error of llhttp or of Node's own timeouts, as one of ours. */
function codeOfUnparsed(error: NodeJS.ErrnoException): ErrorCode {
  if (error.code === 'HPE_HEADER_OVERFLOW') return 'headers_too_large';
  if (error.code === 'ERR_HTTP_REQUEST_TIMEOUT') return 'request_timeout';
  return 'invalid_request';
}

function answerUnparsed(error: NodeJS.ErrnoException, socket: Socket, options: ListenerOptions): void {
  if (error.code === 'ECONNRESET' || !socket.writable) return void socket.destroy();
  const code = codeOfUnparsed(error);
  const response = answers.get(socket);
  if (response === undefined) {
    answerRaw(socket, code, options);
  } else if (error.code === 'HPE_INVALID_EOF_STATE' || response.req.complete || response.headersSent || response.socket !== socket) {
    // A FIN inside a body is a client that has gone. Garbage behind a request must not put a 400 into the answer to it;
    // one that refuses it may still be on its way out.
    if (!response.writableEnded || response.shouldKeepAlive) socket.destroy();
  } else if (!response.req.emit(REFUSED, new GatewayError(code))) {
    refuseUnparsed(response, code, options);
  }
}

function refuseUnparsed(response: ServerResponse, code: ErrorCode, options: ListenerOptions): void {
  options.onUnparsed(code);
  refuse(response, new GatewayError(code));
}

/** Answers on a socket that has no request. */
function answerRaw(socket: Socket, code: ErrorCode, options: ListenerOptions): void {
  // Browsers open connections ahead of need: one that brought nothing is no request that was refused.
  if (socket.bytesRead > 0) options.onUnparsed(code);
  const body = errorBody(detailOf(code));
  const { status } = errorTable[code];
  const head = `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n`;
  socket.write(head + body);
  // Who was too slow sends nothing that would have to be read.
  if (code === 'request_timeout') socket.destroySoon();
  else closeGently(socket);
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

// An upstream and clients that speak WebSocket by the `ws` package, for tests of what lies between them.
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type IncomingMessage } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import type { TlsOptions } from 'node:tls';
import type { Test } from 'tap';
import { type ClientOptions, WebSocket, WebSocketServer } from 'ws';

/** One end of a session. */
export interface End {
  readonly socket: WebSocket;
  /** The messages that came, in order; `next` waits for the one that was not yet handed out. */
  next(): Promise<Buffer>;
  /** How it ended here: the code, or 1006 where no Close frame came. */
  readonly closed: Promise<{ code: number; reason: string; atMs: number }>;
}

export interface SessionUpstream {
  readonly url: string;
  readonly requests: readonly IncomingMessage[];
  /** The next session that began and was not yet handed out. */
  session(): Promise<End>;
}

function endOf(socket: WebSocket): End {
  const messages: Buffer[] = [];
  let takers: ((message: Buffer) => void)[] = [];
  socket.on('message', (message: Buffer) => {
    const [taker, ...rest] = takers;
    takers = rest;
    if (taker === undefined) messages.push(message);
    else taker(message);
  });
  const closed = once(socket, 'close').then(([code, reason]) => ({ code, reason: String(reason), atMs: performance.now() }));
  socket.on('error', () => undefined);
  return {
    socket,
    closed,
    next: () => {
      const [message] = messages.splice(0, 1);
      return message ? Promise.resolve(message) : new Promise((resolve) => takers.push(resolve));
    },
  };
}

/** Takes every session, but echoes nothing by itself. */
export async function startSessions(t: Test, options: { tls?: TlsOptions } = {}): Promise<SessionUpstream> {
  const http = options.tls === undefined ? createServer() : createTlsServer(options.tls);
  // Which subprotocol it takes is its own business: OpenAI's takes `realtime`.
  const server = new WebSocketServer({ server: http, perMessageDeflate: true });
  const requests: IncomingMessage[] = [];
  const sessions: End[] = [];
  let takers: ((session: End) => void)[] = [];
  server.on('connection', (socket, request) => {
    requests.push(request);
    const [taker, ...rest] = takers;
    takers = rest;
    if (taker === undefined) sessions.push(endOf(socket));
    else taker(endOf(socket));
  });
  http.listen(0, '127.0.0.1');
  await once(http, 'listening');
  t.teardown(async () => {
    for (const client of server.clients) client.terminate();
    http.close();
    http.closeAllConnections();
    await once(http, 'close');
  });
  const { port } = http.address() as AddressInfo;
  return {
    url: `${options.tls ? 'https' : 'http'}://127.0.0.1:${port}/v1`,
    requests,
    session: () => {
      const [session] = sessions.splice(0, 1);
      return session ? Promise.resolve(session) : new Promise((resolve) => takers.push(resolve));
    },
  };
}

/** Opens a session, and resolves once it is open; `head` is what the gateway answered. */
export async function openSession(
  t: Test,
  gateway: { readonly url: string },
  options: ClientOptions & { target?: string; protocols?: string[] } = {},
): Promise<End & { head: IncomingMessage }> {
  const { target = '/v1/realtime?model=gpt-realtime', protocols = [], ...more } = options;
  const socket = new WebSocket(gateway.url.replace('http', 'ws') + target, protocols, more);
  const end = endOf(socket);
  t.teardown(() => socket.terminate());
  const [[head]] = await Promise.all([once(socket, 'upgrade'), once(socket, 'open')]);
  return { ...end, head };
}

/** Asks for a session that is refused. */
export async function refusedSession(
  gateway: { readonly url: string },
  options: ClientOptions & { target?: string; protocols?: string[] } = {},
): Promise<{ status: number; headers: IncomingMessage['headers']; body: string }> {
  const { target = '/v1/realtime?model=gpt-realtime', protocols = [], ...more } = options;
  const socket = new WebSocket(gateway.url.replace('http', 'ws') + target, protocols, more);
  const [, response] = (await once(socket, 'unexpected-response')) as [unknown, IncomingMessage];
  const body = (await response.toArray()).join('');
  return { status: response.statusCode ?? 0, headers: response.headers, body };
}

/** A client's row of a configuration. */
export function clientOf(key: string, more: object = {}): object {
  return { name: 'team', keySha256: createHash('sha256').update(key).digest('hex'), ...more };
}

/** The bytes of an opening handshake, for clients that write their own. */
export function handshake(target: string, more = ''): string {
  const own = 'Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n';
  return `GET ${target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n${own}${more}\r\n`;
}

/** What an upstream on a raw socket answers it with. */
export const SWITCHING =
  'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n';

// The clients' listener under TLS: one port for HTTP/2 and HTTP/1.1, by ALPN (RFC 7301).
import { createServer, type Server, type ServerOptions } from 'node:https';
import type { Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';
import type { Sessions } from './sessions.ts';

/** The event with each connection that speaks HTTP/1.1. */
export const HTTP1 = 'http1';

/** PEM texts. */
export interface Credentials {
  readonly cert: string;
  readonly key: string;
}

export interface SecureParts {
  readonly credentials: Credentials;
  readonly handshakeMs: number;
  /** How long a connection that is shaking hands may go on when the listener closes. */
  readonly lastWordMs: number;
  /** For connections that speak HTTP/2. */
  readonly sessions: Sessions;
  /** A handshake came to nothing. */
  onFailed(error: NodeJS.ErrnoException): void;
  /** Runs what thousands of connections can want at one instant, now or in one of the next turns of the loop. */
  spread(task: () => void): void;
}

/** Makes the server; what speaks HTTP/1.1 on it is the same as without TLS, with the same `options`. */
export function createSecureServer(options: ServerOptions, parts: SecureParts): Server {
  const server = createServer({
    ...options,
    ...contextOf(parts.credentials),
    ALPNProtocols: ['h2', 'http/1.1'],
    handshakeTimeout: parts.handshakeMs,
    // As without TLS; see there.
    allowHalfOpen: true,
  });
  /** Below TLS, by the address at the other end, until hands are shaken. */
  const shaking = new Map<string, Socket>();

  const speakHttp1 = server.listeners('secureConnection');
  server.removeAllListeners('secureConnection');
  server.on('connection', (socket: Socket) => {
    const peer = peerOf(socket);
    shaking.set(peer, socket);
    socket.once('close', () => shaking.get(peer) === socket && shaking.delete(peer));
  });
  server.on('secureConnection', (socket: TLSSocket) => {
    const peer = peerOf(socket);
    makeResettable(socket, shaking.get(peer));
    shaking.delete(peer);
    if (socket.alpnProtocol === 'h2') {
      parts.sessions.take(socket);
      return;
    }
    server.emit(HTTP1, socket);
    for (const speak of speakHttp1) Reflect.apply(speak, server, [socket]);
  });
  // Node's own would tell it as a malformed request, and have an answer written that nobody could read.
  server.removeAllListeners('tlsClientError');
  server.on('tlsClientError', (error: NodeJS.ErrnoException, socket: TLSSocket) => {
    // A scanner's thousand connections time out in one turn.
    parts.spread(() => socket.destroy());
    parts.onFailed(error);
  });
  const { close, closeAllConnections } = server;
  const hangUp = () => {
    for (const socket of shaking.values()) socket.destroy();
  };
  server.close = (done) => {
    parts.sessions.close();
    setTimeout(hangUp, parts.lastWordMs).unref();
    return close.call(server, done);
  };
  server.closeAllConnections = () => {
    hangUp();
    parts.sessions.destroy();
    closeAllConnections.call(server);
  };
  return server;
}

/** Serves new connections with another certificate; live ones stay as they are. */
export function changeCertificate(server: object, credentials: Credentials): void {
  (server as Server).setSecureContext(contextOf(credentials));
}

function contextOf({ cert, key }: Credentials) {
  return { cert, key, minVersion: 'TLSv1.2' } as const;
}

function peerOf({ remoteAddress, remotePort }: Socket): string {
  return `${remoteAddress} ${remotePort}`;
}

/** Node resets TCP connections only: so the one below is marked for it, and goes with the one above. */
function makeResettable(socket: TLSSocket, below: Socket | undefined): void {
  socket.resetAndDestroy = () => {
    if (below !== undefined) {
      // Gone first, it would have the one above close within this call, which a plain socket never does.
      const { destroy } = below;
      below.destroy = () => below;
      below.resetAndDestroy();
      below.destroy = destroy;
    }
    return socket.destroy();
  };
}

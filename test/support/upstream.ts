// A scripted upstream on a raw socket: says exactly what a test tells it to, when it is told, and shows every byte that it was sent.

import { once } from 'node:events';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import { createServer as createTlsServer, type TlsOptions } from 'node:tls';
import { reset } from '../../src/stream/reset.ts';
import { createMessageReader, frameRequest } from './framing.ts';
import { createPeer } from './peer.ts';
import { createConnection, createRequest, type UpstreamConnection, type UpstreamRequest } from './upstream-request.ts';
import { createWaiting, type Waiting } from './waiting.ts';

export type { UpstreamConnection, UpstreamRequest };

export interface UpstreamOptions {
  /** Serves TLS with this `key` and `cert`. */
  readonly tls?: TlsOptions;
  /** `false`: accepts TCP and keeps what comes, but stays mute; no TLS handshake, no requests. */
  readonly accept?: boolean;
  /** Bound of each wait, 5 s if not given. */
  readonly waitMs?: number;
}

export interface ScriptedUpstream {
  readonly port: number;
  /** As a configuration names it: `http://127.0.0.1:PORT/v1`. */
  readonly url: string;
  readonly connections: readonly UpstreamConnection[];
  /** Requests whose head has come, on all connections. */
  readonly requestCount: number;
  /** The next connection not yet handed out. */
  connection(): Promise<UpstreamConnection>;
  /** The next request whose head has come, on any connection, not yet handed out. Rejects once anything malformed has come. */
  request(): Promise<UpstreamRequest>;
  /** Destroys every connection and stops listening; rejects if any connection ever brought something malformed. */
  close(): Promise<void>;
}

/** Hands out each item once, in the order that they came. */
function takeInTurn<T>(items: readonly T[]): () => T | undefined {
  let taken = 0;
  return () => (taken < items.length ? items[taken++] : undefined);
}

/** What one upstream has seen. */
function createLedger(waiting: Waiting, isMute: boolean) {
  const connections: UpstreamConnection[] = [];
  const requests: UpstreamRequest[] = [];
  /** One for each connection that may still bring something malformed; those that ended well need no second look. */
  const looks = new Set<() => void>();

  function admit(socket: Socket, sendReset: () => void): void {
    const reader = createMessageReader(isMute ? undefined : frameRequest, (message) => {
      requests.push(createRequest(message, connection, peer));
    });
    const peer = createPeer({ socket, reader, waiting, sendReset });
    const connection = createConnection(socket, reader, peer);
    const look = () => {
      if (peer.fault) throw peer.fault;
      if (!peer.ending) return;
      if (reader.strayBytes > 0) throw new Error(`not a whole request: ${peer.describe()}`);
      looks.delete(look);
    };
    looks.add(look);
    connections.push(connection);
    waiting.changed();
  }
  function refuseMalformed(): void {
    for (const look of looks) look();
  }
  function seen(): string {
    const sizes = connections.map((connection) => connection.bytes.length);
    return `${connections.length} connection(s) that brought [${sizes}] bytes, ${requests.length} request(s)`;
  }
  return { connections, requests, admit, refuseMalformed, seen };
}

/** Listens on 127.0.0.1, any port. Writes only what it is told, and never closes by itself, not even in answer to a FIN. */
export async function startUpstream({ tls, accept = true, waitMs }: UpstreamOptions = {}): Promise<ScriptedUpstream> {
  const waiting = createWaiting(waitMs);
  const ledger = createLedger(waiting, !accept);
  const isTls = tls !== undefined && accept;
  const server = isTls ? createTlsServer({ ...tls, allowHalfOpen: true }) : createServer({ allowHalfOpen: true });
  const sockets = new Set<Socket>();
  /** Those below TLS, by the port at the other end: one that was reset may be followed by another from the same port. */
  const rawSockets = new Map<number, Socket>();

  server.on('connection', (socket: Socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
    if (isTls) rawSockets.set(socket.remotePort ?? 0, socket);
    socket.on('error', () => {}); // seen by the connection's own listeners; a failed handshake is the other side's to tell
    if (!isTls) ledger.admit(socket, () => reset(socket));
  });
  server.on('secureConnection', (socket: Socket) => ledger.admit(socket, () => rawSockets.get(socket.remotePort ?? 0)?.resetAndDestroy()));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');

  const { port } = server.address() as AddressInfo;
  const takeConnection = takeInTurn(ledger.connections);
  const takeRequest = takeInTurn(ledger.requests);
  return {
    port,
    url: `${tls ? 'https' : 'http'}://127.0.0.1:${port}/v1`,
    connections: ledger.connections,
    get requestCount() {
      return ledger.requests.length;
    },
    connection: () => waiting.wait({ awaited: 'a connection', seen: ledger.seen, attempt: takeConnection }),
    request() {
      const attempt = () => {
        ledger.refuseMalformed();
        return takeRequest();
      };
      return waiting.wait({ awaited: 'a request', seen: ledger.seen, attempt });
    },
    async close() {
      const closed = new Promise((resolve) => server.close(resolve));
      for (const socket of sockets) socket.destroy();
      await Promise.all([closed, ...ledger.connections.map((connection) => connection.closed)]);
      waiting.abandon('the upstream was closed while it waited');
      ledger.refuseMalformed();
    },
  };
}

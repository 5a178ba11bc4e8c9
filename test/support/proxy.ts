// An HTTP proxy for tunnels: shows what it was asked and what came through, and answers as it is told.
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { createServer as createTlsServer, type TlsOptions } from 'node:tls';
import { createWaiting } from './waiting.ts';

export interface ScriptedProxy {
  readonly port: number;
  /** The heads of all requests. */
  readonly asked: readonly string[];
  /** All that has come through its tunnels from clients. */
  readonly carried: Buffer;
  readonly openCount: number;
  /** Until so many requests have come. */
  heard(count: number): Promise<void>;
  /** Until no connection to it is open. */
  empty(): Promise<void>;
  close(): Promise<void>;
}

/** What it says to CONNECT: `tunnel`, nothing at all, or these bytes. */
export type Manner = 'tunnel' | 'mute' | { readonly says: string; readonly ends?: boolean };

export async function startProxy(manner: Manner = 'tunnel', tls?: TlsOptions): Promise<ScriptedProxy> {
  const waiting = createWaiting();
  const asked: string[] = [];
  const carried: Buffer[] = [];
  const sockets = new Set<Socket>();
  const clients = new Set<Socket>();

  function keep(socket: Socket, among: Set<Socket>): void {
    for (const set of new Set([sockets, among])) set.add(socket);
    socket.on('error', () => {});
    socket.on('close', () => {
      sockets.delete(socket);
      among.delete(socket);
      waiting.changed();
    });
  }

  function serve(client: Socket): void {
    keep(client, clients);
    let head = '';
    const onData = (chunk: Buffer) => {
      head += chunk.toString('latin1');
      if (!head.includes('\r\n\r\n')) return;
      client.off('data', onData);
      asked.push(head);
      waiting.changed();
      answer(client, head);
    };
    client.on('data', onData);
  }

  function answer(client: Socket, head: string): void {
    if (manner === 'mute') return void client.resume();
    if (manner !== 'tunnel') {
      client.resume().write(manner.says);
      if (manner.ends) client.end();
      return;
    }
    const [, host = '', port] = /^CONNECT \[?([^\]\s]+?)\]?:(\d+) /.exec(head) ?? [];
    const upstream = connect(Number(port), host === 'localhost' ? '127.0.0.1' : host, () => {
      client.write('HTTP/1.1 200 Connection established\r\nProxy-Agent: test\r\n\r\n');
      client
        .on('data', (chunk) => carried.push(chunk))
        .pipe(upstream)
        .pipe(client);
    });
    keep(upstream, sockets);
    client.on('close', () => upstream.destroy());
    upstream.on('close', () => client.destroy());
  }

  const server = tls === undefined ? createServer(serve) : createTlsServer(tls, serve);
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    port: (server.address() as AddressInfo).port,
    asked,
    get carried() {
      return Buffer.concat(carried);
    },
    get openCount() {
      return clients.size;
    },
    heard: async (count) =>
      void (await waiting.wait({
        awaited: `${count} requests`,
        seen: () => asked.join(),
        attempt: () => asked.length >= count || undefined,
      })),
    empty: async () =>
      void (await waiting.wait({ awaited: 'nobody', seen: () => `${clients.size} open`, attempt: () => clients.size === 0 || undefined })),
    async close() {
      const closed = new Promise((resolve) => server.close(resolve));
      for (const socket of sockets) socket.destroy();
      await closed;
    },
  };
}

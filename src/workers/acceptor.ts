// The primary's listening sockets, which Node's cluster makes and shows to nobody: caught as they are made, so that they can be closed first.
import net, { type AddressInfo, type Server } from 'node:net';

/** What node:net keeps of a socket underneath; closing it twice is nothing. */
interface Handle {
  close(): void;
}

export interface Acceptor {
  /** Takes no more connections on a port. What was taken before still reaches a worker. */
  close(port: number): void;
}

/**
 * To be called before the first worker is started. The workers' own closing would end the taking of connections as well, but a connection
 * that is handed to the last of them as it closes comes back to the primary, which then keeps it, unheard, for as long as it lives:
 * of 20 clients that connected at that moment some waited until the last stream had ended.
 */
export function catchAcceptor(): Acceptor {
  const handles = new Map<number, Handle>();
  const { createServer } = net;
  net.createServer = ((...args: []): Server => {
    const server = createServer(...args);
    // Before cluster's own listener, which takes the handle away.
    server.once('listening', () => {
      const { port } = server.address() as AddressInfo;
      handles.set(port, Reflect.get(server, '_handle') as Handle);
    });
    return server;
  }) as typeof createServer;
  return {
    close: (port) => handles.get(port)?.close(),
  };
}

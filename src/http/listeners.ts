// The two listeners: one for clients, one for operators, which may be the same.
import type { AddressInfo } from 'node:net';
import type { FastifyInstance } from 'fastify';
import type { Config } from '../config.ts';
import { createListener, type ListenerOptions } from './listener.ts';
import { type Credentials, changeCertificate } from './secure.ts';

export interface Listeners {
  /** Where clients call. */
  readonly app: FastifyInstance;
  /** Where operators look. */
  readonly ops: FastifyInstance;
  /** Whether both are one. */
  readonly isShared: boolean;
  readonly all: readonly FastifyInstance[];
  /** Takes what of another configuration can change while they listen. */
  reload(config: Config): void;
  /**
   * Resolves when both accept.
   * @throws the error of `listen` (EADDRINUSE, EACCES, …)
   */
  listen(): Promise<void>;
  /** Where they listen, or did: one that has been closed has no address any more. Nowhere before they do. */
  readonly urls: { readonly url: string; readonly opsUrl: string };
}

/** Makes them; nothing listens yet. */
export function createListeners(config: Config, options: Omit<ListenerOptions, 'credentials'>): Listeners {
  const { server, ops: opsSettings } = config;
  const app = createListener({ ...options, credentials: credentialsOf(config) });
  const isShared = isSame(config);
  const ops = isShared ? app : createListener({ ...options, isTrusted: () => false });
  const all = [...new Set([app, ops])];
  let urls = { url: '', opsUrl: '' };
  bound(config);

  function bound({ server: { maxConnections } }: Config): void {
    // Without the drop, one of several processes with its share of connections would have the next one handed to another; and where
    // all have theirs, it would go round for ever.
    for (const on of all) Object.assign(on.server, { maxConnections, dropMaxConnection: true });
  }

  return {
    ...{ app, ops, isShared, all },
    reload(next) {
      bound(next);
      const credentials = credentialsOf(next);
      // Live connections stay; whether there is TLS at all is the listener's, which stays too.
      if (credentials !== undefined && server.tls !== undefined) changeCertificate(app.server, credentials);
    },
    async listen() {
      await app.listen({ ...server.listen });
      if (!isShared) await ops.listen({ ...opsSettings.listen });
      const scheme = server.tls === undefined ? 'http' : 'https';
      urls = { url: urlOf(app, scheme), opsUrl: urlOf(ops, isShared ? scheme : 'http') };
    },
    get urls() {
      return urls;
    },
  };
}

function isSame({ server, ops }: Config): boolean {
  return server.listen.host === ops.listen.host && server.listen.port === ops.listen.port && ops.listen.port !== 0;
}

function credentialsOf({ server: { tls } }: Config): Credentials | undefined {
  return tls && { cert: tls.cert.text, key: tls.key.text };
}

function urlOf({ server }: FastifyInstance, scheme: string): string {
  const { address, port, family } = server.address() as AddressInfo;
  return `${scheme}://${family === 'IPv6' ? `[${address}]` : address}:${port}`;
}

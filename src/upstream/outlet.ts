// An upstream as the gateway holds it: its connections, its keys, and how it has been doing.
import type { Upstream } from '../config.ts';
import { createUpstreamClient, type UpstreamClient } from './client.ts';
import { createHealth, type Health } from './health.ts';
import { createKeyPool, type KeyPool } from './keys.ts';

export interface Outlet {
  readonly upstream: Upstream;
  /** The base URL's path; empty where that is at its origin. */
  readonly basePath: string;
  readonly client: UpstreamClient;
  readonly keys: KeyPool;
  readonly health: Health;
  /** Takes no new calls: what is idle is closed, and everything else as soon as its call is over. */
  retire(): void;
  /** Destroys every connection. */
  close(): void;
}

/**
 * @param now monotonic milliseconds
 * @param onFault told when the file of a key can no longer be read
 */
export function createOutlet(upstream: Upstream, now: () => number, onFault: (fault: unknown) => void): Outlet {
  const { pathname } = new URL(upstream.baseUrl);
  const client = createUpstreamClient(upstream);
  const keys = createKeyPool(upstream, now, onFault);
  return {
    ...{ upstream, client, keys },
    basePath: pathname === '/' ? '' : pathname,
    health: createHealth(upstream.eject, now),
    retire() {
      keys.close();
      client.retire();
    },
    close() {
      keys.close();
      client.close();
    },
  };
}

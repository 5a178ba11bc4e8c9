// All upstreams as the gateway holds them: those of the configuration in effect, and those that only end what they still serve.
import { isDeepStrictEqual } from 'node:util';
import type { Upstream } from '../config.ts';
import type { ConnectionCounts } from './client.ts';
import { createOutlet, type Outlet } from './outlet.ts';

export interface Outlets {
  /**
   * Puts these in the place of those in use, which retire: they take no new calls. One whose settings stay keeps its connections, and
   * what is known of its health.
   */
  use(upstreams: readonly Upstream[]): ReadonlyMap<Upstream, Outlet>;
  /** By upstream name; one whose settings have changed may be there twice. */
  connections(): Iterable<readonly [upstream: string, counts: ConnectionCounts]>;
  /** Whether each upstream in use is up: not put aside. */
  health(): Iterable<readonly [upstream: string, isUp: boolean]>;
  /** Destroys every connection. */
  close(): void;
}

/**
 * @param now monotonic milliseconds
 * @param onFault told when the file of a key can no longer be read
 */
export function createOutlets(now: () => number, onFault: (fault: unknown) => void): Outlets {
  let inUse: ReadonlyMap<Upstream, Outlet> = new Map();
  const retired = new Set<Outlet>();

  function retire(outlets: readonly Outlet[]): void {
    for (const outlet of outlets) {
      outlet.retire();
      retired.add(outlet);
    }
    forgetRetired();
  }

  function forgetRetired(): void {
    for (const outlet of retired) if (outlet.client.counts().active === 0) retired.delete(outlet);
  }

  return {
    use(upstreams) {
      const before = inUse;
      const keep = (upstream: Upstream) => [...before].find(([known]) => isDeepStrictEqual(known, upstream))?.[1];
      inUse = new Map(upstreams.map((upstream) => [upstream, keep(upstream) ?? createOutlet(upstream, now, onFault)]));
      const kept = new Set(inUse.values());
      retire([...before.values()].filter((outlet) => !kept.has(outlet)));
      return inUse;
    },
    *connections() {
      forgetRetired();
      for (const { upstream, client } of [...inUse.values(), ...retired]) yield [upstream.name, client.counts()];
    },
    *health() {
      for (const { upstream, health } of inUse.values()) yield [upstream.name, health.isUp];
    },
    close() {
      for (const outlet of [...inUse.values(), ...retired]) outlet.close();
    },
  };
}

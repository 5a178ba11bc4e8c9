// What a reload swaps, whole: a request keeps the generation that it began with.
import type { Config, Upstream } from '../config.ts';
import { createBalance } from '../upstream/balance.ts';
import type { Outlet } from '../upstream/outlet.ts';
import type { Gates } from './admit.ts';
import { createAuthenticator } from './auth.ts';
import type { Station } from './forward.ts';
import { createGuard } from './guard.ts';
import { createPlanner } from './plan.ts';
import { createTrust } from './trust.ts';

export interface Generation {
  readonly config: Config;
  /** Whether X-Forwarded-For is believed from this address. */
  isTrusted(address: string): boolean;
  /** What judges requests. */
  readonly gates: Gates;
  /** What sends them on. */
  readonly station: Station;
}

/** What all generations share. */
export type Commons = Omit<Station, 'config' | 'planner' | 'outletOf' | 'balance'> & Pick<Gates, 'isDraining'>;

/**
 * It is not to see its predecessor: what closures close over lives as long as they do, and so would every generation.
 * @param outlets of the upstreams of this configuration
 */
export function createGeneration(config: Config, outlets: ReadonlyMap<Upstream, Outlet>, commons: Commons): Generation {
  const { listen, hostnames, cors, trustProxy } = config.server;
  const { isDraining, ...shared } = commons;
  const outletOf = (upstream: Upstream) => outlets.get(upstream)!;
  return {
    config,
    isTrusted: createTrust(trustProxy),
    gates: {
      ...{ config, isDraining, authenticate: createAuthenticator(config) },
      guard: createGuard({ listen, hostnames, origins: cors?.origins ?? [] }),
    },
    station: { ...shared, config, planner: createPlanner(config, commons.asker), outletOf, balance: createBalance(outletOf) },
  };
}

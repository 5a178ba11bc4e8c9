// What one worker may of what the configuration allows the gateway.
import type { Config } from '../config.ts';

/**
 * The configuration as one of so many workers has it: bounds of the whole gateway are divided, so that all together come to
 * them; everybody has one at least.
 * @param seat which of the workers, from 0
 */
export function shareOf(config: Config, workers: number, seat: number): Config {
  const share = (total: number) => Math.max(1, Math.floor(total / workers) + (seat < total % workers ? 1 : 0));
  return {
    ...config,
    server: {
      ...config.server,
      maxConnections: share(config.server.maxConnections),
      maxHeldBodiesBytes: share(config.server.maxHeldBodiesBytes),
    },
    upstreams: config.upstreams.map((upstream) => ({ ...upstream, maxConnections: share(upstream.maxConnections) })),
  };
}

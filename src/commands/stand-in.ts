// The built-in demo, which stands in where no upstream is configured.
import { type Config, loadConfig, type Upstream } from '../config.ts';
import { startDemo } from '../demo/server.ts';

export interface StandIn {
  /** Whether it was needed at the start; it does not begin later. */
  readonly isUsed: boolean;
  /** The configuration as it is served: with the demo, where there is one and it names no upstream. */
  complete(config: Config): Config;
  close(): Promise<void>;
}

/** @throws the error of `listen` */
export async function openStandIn({ upstreams }: Config): Promise<StandIn> {
  if (upstreams.length > 0) return { isUsed: false, complete: (config) => config, close: async () => undefined };
  const demo = await startDemo({ host: '127.0.0.1', port: 0 });
  return {
    isUsed: true,
    complete: (config) => (config.upstreams.length > 0 ? config : { ...config, upstreams: upstreamAt(demo.url) }),
    close: demo.close,
  };
}

/** With the settings that any upstream from the environment has. */
function upstreamAt(url: string): Upstream[] {
  const loaded = loadConfig(undefined, { SLUICEGATE_UPSTREAM: url });
  return loaded.ok ? loaded.config.upstreams.map((upstream) => ({ ...upstream, name: 'demo' })) : [];
}

// Free ports, found before workers listen: whoever takes another's place, or everybody's, must come back to the same one.
import { once } from 'node:events';
import { type AddressInfo, createServer, type Server } from 'node:net';
import type { Address, Config } from '../config.ts';

/** The configuration with a free port for each listener that may have any. */
export async function choosePorts(config: Config): Promise<Config> {
  const { server, ops } = config;
  const held: Server[] = [];
  const choose = async (listen: Address): Promise<Address> => {
    if (listen.port !== 0) return listen;
    const probe = createServer().listen({ ...listen });
    await once(probe, 'listening');
    held.push(probe);
    return { ...listen, port: (probe.address() as AddressInfo).port };
  };
  try {
    const chosen = [await choose(server.listen), await choose(ops.listen)] as const;
    return { ...config, server: { ...server, listen: chosen[0] }, ops: { ...ops, listen: chosen[1] } };
  } finally {
    for (const probe of held) {
      probe.close();
      await once(probe, 'close');
    }
  }
}

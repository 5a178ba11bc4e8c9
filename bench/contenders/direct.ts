// No contender at all: the load calls the upstream. What is measured here is the instrument.
import { type Contender, PLAIN_CALL } from '../contender.ts';

export const direct: Contender = {
  name: 'direct',
  describe: () => 'nothing between load and upstream, never TLS: what the instrument itself needs',
  isAvailable: () => undefined,
  start: async ({ upstreamPort }) => ({ ...PLAIN_CALL, port: upstreamPort, pids: [], stop: async () => undefined }),
};

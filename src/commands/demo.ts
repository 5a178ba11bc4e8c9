// `sluicegate demo`: the demo upstream alone.
import { parseAddress } from '../config.ts';
import { startDemo } from '../demo/server.ts';
import { type Command, print, refuseArgument, refuseUsage, tellStartFailure } from './command.ts';
import { endWhenTold } from './ending.ts';

export const demo: Command = {
  usage: 'demo [--listen HOST:PORT]',
  brief: 'the demo upstream alone, an OpenAI-compatible server that needs no key',
  more: `      --listen ADDR   where it listens; without it 127.0.0.1:8081`,

  flags: ['listen'],
  async run([unexpected], flags) {
    if (unexpected !== undefined) return refuseArgument(unexpected, 'demo');
    const listen = parseAddress(flags.listen ?? '127.0.0.1:8081');
    if (listen === undefined) return refuseUsage(`--listen takes HOST:PORT, not "${flags.listen}"`, 'demo');
    try {
      const server = await startDemo(listen);
      print(`The demo upstream listens at ${server.url}\n`);
      endWhenTold(() => server.close());
      return undefined;
    } catch (error) {
      return tellStartFailure(error, listen);
    }
  },
};

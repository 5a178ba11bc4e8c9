// `sluicegate top`: what a gateway is doing, in the terminal.
import { runTop } from '../top/top.ts';
import { type Command, EXIT, refuseArgument } from './command.ts';
import { reachable } from './start-lines.ts';

export const top: Command = {
  usage: 'top [URL] [--once] [--token TOKEN]',
  brief: 'what is streaming now, once a second, in the terminal',
  more: `Shows what the live page shows, as the ops listener at URL tells it; without URL, the one at $SLUICEGATE_OPS_LISTEN
(127.0.0.1:9464). One look where nobody watches, as in a pipe. q or Ctrl-C ends it.

      --once          one look
      --token TOKEN   where the listener asks for ops.token; or $SLUICEGATE_OPS_TOKEN

Exit codes: 0 clean, 2 where it cannot be had.`,

  flags: ['token', 'once'],
  async run([url, unexpected], flags) {
    if (unexpected !== undefined) return refuseArgument(unexpected, 'top');
    const { SLUICEGATE_OPS_LISTEN = '127.0.0.1:9464', SLUICEGATE_OPS_TOKEN } = process.env;
    const ended = new AbortController();
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, () => ended.abort());
    const how = {
      url: url ?? reachable(`http://${SLUICEGATE_OPS_LISTEN}`),
      token: flags.token ?? SLUICEGATE_OPS_TOKEN,
      isOnce: flags.once === true,
      ended: ended.signal,
    };
    const isWell = await runTop(how, { input: process.stdin, output: process.stdout, errors: process.stderr });
    return isWell ? EXIT.clean : EXIT.couldNotStart;
  },
};

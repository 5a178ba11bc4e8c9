// `sluicegate traffic`: calls a gateway before the demo upstream until it is told to stop.
import { type Command, print, refuseUsage } from './command.ts';
import { endWhenTold } from './ending.ts';

export const traffic: Command = {
  usage: 'traffic URL [KEY...]',
  brief: 'call a gateway before the demo upstream as an app’s users would',
  more: `Calls the gateway at URL with the demo's models, streamed and not, leaves some streams, and asks for some failures, so
that a dashboard has something to show. With keys, each caller takes one of them. Ctrl-C ends it.

Example
  sluicegate traffic http://127.0.0.1:8080/v1`,

  flags: [],
  /** Other models than the demo's it never names, so that it costs nothing wherever it is pointed. */
  async run([url, ...keys]) {
    if (url === undefined || !/^https?:/.test(url) || !URL.canParse(url))
      return refuseUsage('traffic takes the base URL of a gateway, as http://127.0.0.1:8080/v1, and the keys to call it with', 'traffic');
    const { startTraffic } = await import('../demo/traffic.ts');
    const calls = startTraffic({ url: url.replace(/\/+$/, ''), keys });
    print(`Calling ${url}\n`);
    endWhenTold(() => calls.stop());
    return undefined;
  },
};

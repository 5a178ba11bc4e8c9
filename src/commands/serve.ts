// `sluicegate serve`: the gateway, until the process is told to end.
import { availableParallelism } from 'node:os';
import type { Config } from '../config.ts';
import type { Served } from '../gateway.ts';
import { createLogger, type Logger } from '../telemetry/log.ts';
import { type Command, EXIT, type Flags, readVersion, refuseArgument, tellStartFailure } from './command.ts';
import { endWithGrace } from './ending.ts';
import { boundGarbage } from './heap.ts';
import { type Loaded, load } from './load.ts';
import { reloadOnDemand } from './reload.ts';
import { openStandIn, type StandIn } from './stand-in.ts';
import { writeStartLines } from './start-lines.ts';
import { WORKER } from './worker.ts';

export const serve: Command = {
  usage: '[serve] [-c FILE] [--watch]',
  brief: 'serve (what it does without a command)',
  more: `Serves apps on one port (127.0.0.1:8080) and operators on another (127.0.0.1:9464).

  -c, --config FILE   the configuration; without it $SLUICEGATE_CONFIG, else config/sluicegate.yaml if it is
                      there, else the environment alone
      --watch         load the file again whenever it changes

Without any configuration it forwards to
  OPENAI_API_KEY        OpenAI, with this key, or to
  SLUICEGATE_UPSTREAM   this base URL, with SLUICEGATE_UPSTREAM_KEY if set, or, with neither, to
                        the built-in demo, which needs no key

The environment is heeded in any case for
  SLUICEGATE_LISTEN                 where apps call; PORT=N means 0.0.0.0:N
  SLUICEGATE_OPS_LISTEN             where metrics and the live page are
  SLUICEGATE_KEY                    a client named "default" with this key
  SLUICEGATE_ALLOW_ANONYMOUS=true   let anyone who reaches the gateway use it

Signals: TERM and INT drain (a second one ends it at once), HUP loads the configuration again, whole or not at all.

Examples
  sluicegate                                                       the demo, to try things out
  OPENAI_API_KEY=sk-... sluicegate                                 OpenAI
  SLUICEGATE_UPSTREAM=http://localhost:11434/v1 sluicegate         Ollama, vLLM, llama.cpp
  sluicegate -c /etc/sluicegate.yaml --watch                       everything else`,

  flags: ['config', 'watch'],
  async run([unexpected], flags) {
    if (unexpected !== undefined) return refuseArgument(unexpected, 'serve');
    const loaded = load(flags);
    if (loaded === undefined) return EXIT.badConfiguration;
    boundGarbage();
    const log = createLogger(loaded.config.log, isTerminal());
    let standIn: StandIn | undefined;
    try {
      standIn = await openStandIn(loaded.config);
      await serveBy(loaded, flags, standIn, log);
      return undefined;
    } catch (error) {
      await standIn?.close();
      return tellStartFailure(error, loaded.config.server.listen);
    }
  },
};

function isTerminal(): boolean {
  return process.stdout.isTTY === true;
}

async function serveBy(loaded: Loaded, flags: Flags, standIn: StandIn, log: Logger): Promise<void> {
  const config = standIn.complete(loaded.config);
  const { file } = loaded;
  const gateway = await start(config, log);
  // Lines for a person go where they cannot break a stream of JSON lines.
  const lines = config.log.format === 'json' || !isTerminal() ? process.stderr : process.stdout;
  lines.write(writeStartLines(gateway, { config, file }, standIn.isUsed));
  log.info({ url: gateway.url, opsUrl: gateway.opsUrl, upstreams: config.upstreams.map(({ name }) => name) }, 'listening');
  reloadOnDemand(gateway, {
    ...{ log, config, watchedFile: flags.watch ? file : undefined },
    load() {
      const again = load(flags);
      return again && standIn.complete(again.config);
    },
  });
  endWithGrace(gateway, config.server.drainMs, log, standIn.close);
}

/** In this process, or in so many others behind one port. */
async function start(config: Config, log: Logger): Promise<Served> {
  const { workers } = config.server;
  const count = workers === 'auto' ? availableParallelism() : workers;
  // Whoever only looks after workers needs none of what they serve with: some 15 MB.
  if (count > 1) return (await import('../workers/supervisor.ts')).startWorkers({ config, log, count, args: [WORKER] });
  return (await import('../gateway.ts')).startGateway({ config, log, version: readVersion() });
}

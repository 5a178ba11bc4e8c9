// A worker: a whole gateway in a process of its own, which asks the primary for what all have in common.
import cluster from 'node:cluster';
import { type Gateway, startGateway } from '../gateway.ts';
import { createRemoteStore } from '../limits/remote.ts';
import { createLogger, type Logger } from '../telemetry/log.ts';
import type { PrimaryCalls, WorkerCalls } from './calls.ts';
import { channelOf, createLine, failureOf } from './line.ts';

export interface Worker {
  readonly log: Logger;
  /** A fault has left it in doubt: it serves nothing new, lets what is live end, and says farewell. */
  fault(drainMs: number): Promise<void>;
  /** Resolves when it has drained because the primary said so. */
  readonly closed: Promise<void>;
}

/**
 * Serves as the primary says, with the listeners that it holds. Ends with it, which Node sees to: a worker whose channel closes exits.
 * @returns undefined where it could not, which the primary has been told
 */
export async function startWorker(version: string, isTerminal: boolean): Promise<Worker | undefined> {
  if (cluster.worker === undefined) throw new Error('not a worker');
  const closed = Promise.withResolvers<void>();
  const started = Promise.withResolvers<Gateway>();
  let ending: Promise<void> | undefined;
  // Whoever waits for it is told; where nobody does it is no fault.
  started.promise.catch(() => undefined);

  const served: WorkerCalls = {
    reload: async (config) => (await started.promise).reload(config),
    reloadFailed: async () => (await started.promise).reloadFailed(),
    read: async (extent) => (await started.promise).read(extent),
    look: async () => (await started.promise).look(),
    endStream: async (id) => (await started.promise).endStream(id),
    async close(drainMs) {
      await end(drainMs);
      closed.resolve();
    },
  };
  const call = createLine<PrimaryCalls>(channelOf(cluster.worker), served);

  /** Once, whether for a fault or because the primary says so. */
  function end(drainMs: number | undefined): Promise<void> {
    ending ??= started.promise.then(async (gateway) => {
      await gateway.close(drainMs);
      await call('farewell', await gateway.read('counts'));
    });
    return ending;
  }

  const { config, isReloadFailed } = await call('hello');
  const log = createLogger(config.log, isTerminal);
  const common = {
    notice: { asked: () => tell('asked'), given: () => call('noticed') },
    countInMemory: () => createRemoteStore((questions) => call('count', questions)),
    scrape: (accept: string) => call('scrape', accept),
    look: () => call('look'),
    endStream: (id: string) => call('endStream', id),
  };

  /** Nothing is to be done where the primary is gone. */
  function tell(what: 'asked' | 'faulted'): void {
    call(what).catch(() => undefined);
  }

  try {
    const gateway = await startGateway({ config, log, version, common });
    if (isReloadFailed) gateway.reloadFailed();
    started.resolve(gateway);
    await call('serving', { url: gateway.url, opsUrl: gateway.opsUrl });
  } catch (error) {
    started.reject(error);
    await call('failed', failureOf(error));
    return undefined;
  }
  return {
    log,
    closed: closed.promise,
    fault(drainMs) {
      tell('faulted');
      return end(drainMs);
    },
  };
}

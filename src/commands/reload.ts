// A gateway that serves takes another configuration while it does: whole, or not at all.
import { watchFile } from 'node:fs';
import { isDeepStrictEqual } from 'node:util';
import type { Config } from '../config.ts';
import type { Served } from '../gateway.ts';
import type { Logger } from '../telemetry/log.ts';

export interface Reloading {
  readonly log: Logger;
  /** What is in effect now. */
  readonly config: Config;
  /** Looked at for changes; undefined where none is. */
  readonly watchedFile: string | undefined;
  /** Undefined where it cannot be used, which has been told. */
  load(): Config | undefined;
}

const WATCH_MS = 500;

/** Loads again on SIGHUP, and whenever a watched file changes. */
export function reloadOnDemand(gateway: Served, { log, config, watchedFile, load }: Reloading): void {
  let current = config;
  const reload = async () => {
    const next = load();
    if (next === undefined) {
      gateway.reloadFailed();
      log.error('the new configuration was not taken; the old one stays');
      return;
    }
    const before = current;
    current = next;
    await gateway.reload(current);
    tellReload(log, before, current);
  };
  process.on('SIGHUP', reload);
  // Looked at, not listened to: editors and Kubernetes replace the file, and a watch would stay with the old one.
  if (watchedFile !== undefined) watchFile(watchedFile, { interval: WATCH_MS }, reload);
}

/** Logs that another configuration is in effect, and what of it is not. */
function tellReload(log: Logger, before: Config, { server, ops, upstreams }: Config): void {
  if (!isDeepStrictEqual(server.listen, before.server.listen)) log.warn('server.listen changes only with a restart');
  if (!isDeepStrictEqual(ops.listen, before.ops.listen)) log.warn('ops.listen changes only with a restart');
  if ((server.tls === undefined) !== (before.server.tls === undefined)) log.warn('server.tls changes only with a restart');
  if (server.workers !== before.server.workers) log.warn('server.workers changes only with a restart');
  log.info({ upstreams: upstreams.map(({ name }) => name) }, 'configuration reloaded');
}

// A worker, which the primary starts this program as, and no person does.
import { EXIT, readVersion } from './command.ts';
import { endAtFaults, ignoreSignals } from './ending.ts';
import { boundGarbage } from './heap.ts';

/** How the primary calls it. */
export const WORKER = 'worker';

/** Serves as the primary says, and ends when it says so, or with it. */
export async function work(): Promise<number | undefined> {
  ignoreSignals();
  boundGarbage();
  // One line a write: those of all processes share the pipe, which keeps a write whole up to 4 KiB (PIPE_BUF).
  Object.assign(process.stdout, { _writev: null });
  const { startWorker } = await import('../workers/worker.ts');
  const worker = await startWorker(readVersion(), process.stdout.isTTY === true);
  if (worker === undefined) return EXIT.couldNotStart;
  endAtFaults(worker.log, (drainMs) => worker.fault(drainMs));
  await worker.closed;
  process.exit(EXIT.clean);
}

// How processes end: what signals and faults make of whatever runs in them.
import { setTimeout as delayFor } from 'node:timers/promises';
import closeWithGrace from 'close-with-grace';
import type { Served } from '../gateway.ts';
import { MAX_NOTICE_MS } from '../http/notice.ts';
import { faultFacts, type Logger } from '../telemetry/log.ts';

/** For the small programs, which have nothing to lose. */
const SMALL_DELAY_MS = 5000;
/** How long live streams may finish after a fault of the process itself. */
const FAULT_DRAIN_MS = 3000;
/** For what comes after the drain: the last events read, the last tokens counted, the last spans sent. */
const OVERTIME_MS = 3500;
/** They reach every process of a terminal's or a service's group; the primary tells its workers what to do. */
const SIGNALS_OF_PRIMARY = ['SIGHUP', 'SIGINT', 'SIGQUIT', 'SIGTERM'] as const;

/** Ends one of the small programs at the first signal. */
export function endWhenTold(close: () => Promise<void>): void {
  closeWithGrace({ delay: SMALL_DELAY_MS, logger: false }, close);
}

/**
 * Signals drain; a second one, or a drain that does not come to its end, is an end at once with a code of failure.
 * @param close what is to be closed after the gateway
 */
export function endWithGrace(gateway: Served, drainMs: number, log: Logger, close: () => Promise<void>): void {
  const delay = Number.isFinite(drainMs) ? MAX_NOTICE_MS + drainMs + OVERTIME_MS : false;
  const tellFault = createFaultTeller(log);
  closeWithGrace({ delay, logger: false, skip: ['SIGHUP'], onSecondError: tellFault }, async ({ signal, err }) => {
    if (err) {
      tellFault(err);
      await endInDoubt((ms) => gateway.close(ms));
      return;
    }
    log.info({ signal }, 'draining');
    await gateway.close();
    await close();
    log.info('closed');
  });
}

/** From a worker's first moment on. */
export function ignoreSignals(): void {
  for (const signal of SIGNALS_OF_PRIMARY) process.on(signal, () => undefined);
}

/** Ends a worker that is in doubt; that it ends otherwise is for the primary to say. */
export function endAtFaults(log: Logger, close: (drainMs: number) => Promise<void>): void {
  const tellFault = createFaultTeller(log);
  closeWithGrace({ delay: false, logger: false, skip: [...SIGNALS_OF_PRIMARY], onSecondError: tellFault }, async ({ err }) => {
    if (err) tellFault(err);
    await endInDoubt(close);
  });
}

/** Nobody knows what a fault has left behind: what ends soon may end well, and nothing new begins. */
async function endInDoubt(close: (drainMs: number) => Promise<void>): Promise<void> {
  await Promise.race([close(FAULT_DRAIN_MS), delayFor(FAULT_DRAIN_MS + OVERTIME_MS)]);
}

function createFaultTeller(log: Logger): (fault: unknown) => void {
  return (fault) => log.fatal(faultFacts(fault), 'the process failed inside');
}

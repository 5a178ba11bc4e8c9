// The end of serving: the gateway says that it leaves, then takes no more requests, then lets what is live end in its time.
import { setTimeout as delayFor } from 'node:timers/promises';
import type { FastifyInstance } from 'fastify';
import type { Roster } from '../roster.ts';
import type { Passage } from './forward.ts';
import type { Notice } from './notice.ts';

export interface Drain {
  /** `leaving`: it says so, and serves on. */
  readonly state: 'ready' | 'leaving' | 'draining';
  /** Resolves when all requests have ended, by themselves or because they were cut after `drainMs`. */
  begin(app: FastifyInstance, drainMs: number): Promise<void>;
}

/** Between two looks whether the answers that nobody hears have all been read. */
const REST_MS = 20;
/** A client has a second to read the last event of a cut stream; the rest is for the way. */
const CUT_GRACE_MS = 1200;

/** @param passages the requests that are on their way */
export function createDrain(notice: Notice, passages: Roster<Passage>): Drain {
  let state: Drain['state'] = 'ready';

  async function close(app: FastifyInstance, drainMs: number): Promise<void> {
    const closed = app.close();
    const cutTheRest = () => {
      for (const passage of passages) passage.drain();
    };
    // A timer of Infinity fires at once.
    const deadline = Number.isFinite(drainMs) ? setTimeout(cutTheRest, drainMs) : undefined;
    // Whoever does not even read the end of a stream that was cut is not waited for.
    const lastResort = Number.isFinite(drainMs) ? setTimeout(() => app.server.closeAllConnections(), drainMs + CUT_GRACE_MS) : undefined;
    await closed;
    // Answers that are read on without their clients have no connection here that the listener would wait for.
    while (passages.size > 0) await delayFor(REST_MS);
    clearTimeout(deadline);
    clearTimeout(lastResort);
  }

  return {
    get state() {
      return state;
    },
    async begin(app, drainMs) {
      state = 'leaving';
      await notice.given();
      state = 'draining';
      await close(app, drainMs);
    },
  };
}

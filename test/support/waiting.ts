// Bounded waits on events: each resolves when its condition holds, or rejects saying what was awaited and what was seen instead.

/** The bound of a wait that names none. */
export const defaultWaitMs = 5000;

/**
 * A bound is that many turns of the loop apart: a process that others keep from running for seconds has not waited for them,
 * and its timers are called before it has read what came in the meantime.
 */
const STEPS = 20;

export interface Wait<T> {
  /** Completes "waited N ms for …". */
  readonly awaited: string;
  /** What has been seen so far, for the message. */
  readonly seen: () => string;
  /** The result once it is there, else undefined; throws where it can no longer come. Runs at once and after every change. */
  readonly attempt: () => T | undefined;
}

export interface Waiting {
  /** Something happened: looks at every wait again, oldest first. */
  changed(): void;
  wait<T>(wait: Wait<T>): Promise<T>;
  /** Rejects whatever is still awaited; for closing. */
  abandon(why: string): void;
}

export function createWaiting(boundMs: number = defaultWaitMs): Waiting {
  const pending = new Map<() => boolean, (why: string) => void>();

  function wait<T>({ awaited, seen, attempt }: Wait<T>): Promise<T> {
    const asked = new Error(`asked here for ${awaited}`);
    return new Promise((resolve, reject) => {
      const isSettled = () => {
        try {
          const result = attempt();
          if (result === undefined) return false;
          resolve(result);
        } catch (error) {
          reject(error);
        }
        clearTimeout(timer);
        return true;
      };
      const giveUp = (why: string) => {
        clearTimeout(timer);
        pending.delete(isSettled);
        reject(new Error(`${why} for ${awaited}; seen: ${seen()}`, { cause: asked }));
      };
      let stepsLeft = STEPS;
      const step = () => {
        if (--stepsLeft === 0) giveUp(`waited ${boundMs} ms`);
        else timer = setTimeout(step, boundMs / STEPS);
      };
      let timer = setTimeout(step, boundMs / STEPS);
      if (!isSettled()) pending.set(isSettled, giveUp);
    });
  }

  return {
    wait,
    changed() {
      for (const isSettled of [...pending.keys()]) if (pending.has(isSettled) && isSettled()) pending.delete(isSettled);
    },
    abandon(why) {
      for (const giveUp of [...pending.values()]) giveUp(why);
    },
  };
}

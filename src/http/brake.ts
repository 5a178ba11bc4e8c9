// Slows down a caller that goes on asking while it is refused: what that costs, other callers would pay for with their waits.
import { setTimeout as delayFor } from 'node:timers/promises';

/** So many refusals in a second are told at once: more than any SDK makes that heeds them. */
const FREE_A_SECOND = 50;
/** Far longer than a refusal takes, far shorter than what it tells to wait. A caller with four connections then gets 40 of them a second. */
const DELAY_MS = 100;
const SECOND_MS = 1000;
const MAX_CALLERS = 10_000;

/**
 * @param now monotonic milliseconds
 * @returns called on each refusal of a caller; resolves when it is to be told
 */
export function createBrake(now: () => number): (caller: string) => Promise<void> {
  const seconds = new Map<string, { beganAtMs: number; refusals: number }>();

  return async (caller) => {
    const nowMs = now();
    let second = seconds.get(caller);
    if (second === undefined || nowMs - second.beganAtMs >= SECOND_MS) {
      if (seconds.size >= MAX_CALLERS) seconds.clear();
      second = { beganAtMs: nowMs, refusals: 0 };
      seconds.set(caller, second);
    }
    second.refusals += 1;
    if (second.refusals > FREE_A_SECOND) await delayFor(DELAY_MS, undefined, { ref: false });
  };
}

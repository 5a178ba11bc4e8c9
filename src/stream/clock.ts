// Monotonic time, and one coarse beat on which all live streams judge their deadlines: no timer is made or moved per event.
import { performance } from 'node:perf_hooks';

export interface Clock {
  /** Monotonic milliseconds: a jump of the wall clock changes no duration and no deadline. */
  now(): number;
  /** Has `judge` called on every beat until the returned function is called. */
  onBeat(judge: (nowMs: number) => void): () => void;
  close(): void;
}

/** Deadlines are seconds to minutes; ten beats a second judge them finely enough at next to no cost. */
const BEAT_MS = 100;

/**
 * The process's clock. A beat is judged after the loop has polled its sockets: what arrived while the process was
 * stopped or busy is read before anyone is found to have been silent.
 */
export function createClock(beatMs: number = BEAT_MS): Clock {
  const judges = new Set<(nowMs: number) => void>();
  const now = () => performance.now();

  function beat(): void {
    const nowMs = now();
    for (const judge of judges) judge(nowMs);
  }

  const timer = setInterval(() => {
    if (judges.size > 0) setImmediate(beat);
  }, beatMs);
  timer.unref();

  return {
    now,
    onBeat(judge) {
      judges.add(judge);
      return () => void judges.delete(judge);
    },
    close: () => clearInterval(timer),
  };
}

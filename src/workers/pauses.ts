// How long to wait before a worker takes the place of one that died: nothing once, and ever longer for one that dies again and again.

export interface Pause {
  readonly forMs: number;
  /** Whether it died so often of late that something must be wrong with what every one of them does; true once for each loop. */
  readonly isLoop: boolean;
}

/** Deaths longer ago are forgotten. */
const RECENT_MS = 60_000;
const FIRST_PAUSE_MS = 100;
const MAX_PAUSE_MS = 10_000;
/** So many deaths within a minute are a loop. */
const LOOP = 5;

/** @returns called on each death, with its time in monotonic milliseconds */
export function createPauses(): (nowMs: number) => Pause {
  let deathsMs: number[] = [];
  return (nowMs) => {
    deathsMs = [...deathsMs.filter((atMs) => nowMs - atMs < RECENT_MS), nowMs];
    const again = deathsMs.length - 1;
    return { forMs: again === 0 ? 0 : Math.min(MAX_PAUSE_MS, FIRST_PAUSE_MS * 2 ** (again - 1)), isLoop: deathsMs.length === LOOP };
  };
}

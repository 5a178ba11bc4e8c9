// How long it has been quiet: from the upstream, which ends a stream in time, and towards the client, which a heartbeat breaks.

/** Bounds in milliseconds; Infinity where there is none. */
export interface SilenceBounds {
  /** From the last byte of the request to the first event with meaning. */
  readonly firstByteMs: number;
  /** Between events with meaning. */
  readonly idleMs: number;
  /** Towards the client. */
  readonly heartbeatMs: number;
}

export interface Progress {
  /**
   * Grows with everything that has meaning: comments and pings are no sign of life of a model. It is asked for seldom, as a meter
   * then looks at all that has come: so `idle` is noticed up to a 32nd of its bound late.
   */
  meaningCount(): number;
}

export type Verdict = 'noFirstByte' | 'idle' | 'beat' | undefined;

export interface Silence {
  /**
   * Compares the counters with what they were before, and says what is due, if anything: an event costs nothing here.
   * @param bytes grows with every byte sent down
   */
  judge(nowMs: number, progress: Progress, bytes: number): Verdict;
  /** A pause that was the client's doing is over: it counts for nothing. */
  resume(nowMs: number): void;
  /** Something was sent down that no counter shows. */
  broken(nowMs: number): void;
}

/** How often in the time of `idleMs` meaning is looked for: at every beat, meters could not look at several pieces in a row. */
const LOOKS = 32;

/** @param sentAtMs when the request had gone up */
export function createSilence(bounds: SilenceBounds, sentAtMs: number, nowMs: number): Silence {
  return new SilenceWatch(bounds, sentAtMs, nowMs);
}

class SilenceWatch implements Silence {
  private readonly bounds: SilenceBounds;
  private readonly sentAtMs: number;
  private readonly lookEveryMs: number;
  private lookedAtMs: number;
  private meaningSeen = 0;
  private meaningAtMs: number;
  private bytesSeen = 0;
  private downAtMs: number;

  constructor(bounds: SilenceBounds, sentAtMs: number, nowMs: number) {
    this.bounds = bounds;
    this.sentAtMs = sentAtMs;
    this.lookEveryMs = bounds.idleMs / LOOKS;
    this.lookedAtMs = nowMs;
    this.meaningAtMs = nowMs;
    this.downAtMs = nowMs;
  }

  judge(nowMs: number, progress: Progress, bytes: number): Verdict {
    if (bytes !== this.bytesSeen) {
      this.bytesSeen = bytes;
      this.downAtMs = nowMs;
    }
    const hasBegun = this.meaningSeen > 0;
    const isDue = hasBegun ? nowMs - this.meaningAtMs > this.bounds.idleMs : nowMs - this.sentAtMs > this.bounds.firstByteMs;
    const isLooking = isDue || !hasBegun || nowMs - this.lookedAtMs >= this.lookEveryMs;
    if (isLooking && !this.hasMoved(nowMs, progress.meaningCount()) && isDue) return hasBegun ? 'idle' : 'noFirstByte';
    return nowMs - this.downAtMs >= this.bounds.heartbeatMs ? 'beat' : undefined;
  }

  private hasMoved(nowMs: number, meaning: number): boolean {
    this.lookedAtMs = nowMs;
    if (meaning === this.meaningSeen) return false;
    this.meaningSeen = meaning;
    this.meaningAtMs = nowMs;
    return true;
  }

  resume(nowMs: number): void {
    this.meaningAtMs = nowMs;
    this.downAtMs = nowMs;
  }

  broken(nowMs: number): void {
    this.downAtMs = nowMs;
  }
}

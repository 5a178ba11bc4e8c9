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

export type Verdict = 'noFirstByte' | 'idle' | 'beat' | undefined;

export interface Silence {
  /**
   * Compares the counters with what they were at the beat before, and says what is due, if anything: an event costs nothing here.
   * @param meaning grows with everything that has meaning: comments and pings are no sign of life of a model
   * @param bytes grows with every byte sent down
   */
  judge(nowMs: number, meaning: number, bytes: number): Verdict;
  /** A pause that was the client's doing is over: it counts for nothing. */
  resume(nowMs: number): void;
  /** Something was sent down that no counter shows. */
  broken(nowMs: number): void;
}

/** @param sentAtMs when the request had gone up */
export function createSilence(bounds: SilenceBounds, sentAtMs: number, nowMs: number): Silence {
  return new SilenceWatch(bounds, sentAtMs, nowMs);
}

class SilenceWatch implements Silence {
  private readonly bounds: SilenceBounds;
  private readonly sentAtMs: number;
  private meaningSeen = 0;
  private meaningAtMs: number;
  private bytesSeen = 0;
  private downAtMs: number;

  constructor(bounds: SilenceBounds, sentAtMs: number, nowMs: number) {
    this.bounds = bounds;
    this.sentAtMs = sentAtMs;
    this.meaningAtMs = nowMs;
    this.downAtMs = nowMs;
  }

  judge(nowMs: number, meaning: number, bytes: number): Verdict {
    if (bytes !== this.bytesSeen) {
      this.bytesSeen = bytes;
      this.downAtMs = nowMs;
    }
    if (meaning !== this.meaningSeen) {
      this.meaningSeen = meaning;
      this.meaningAtMs = nowMs;
    } else if (meaning === 0 && nowMs - this.sentAtMs > this.bounds.firstByteMs) {
      return 'noFirstByte';
    } else if (meaning > 0 && nowMs - this.meaningAtMs > this.bounds.idleMs) {
      return 'idle';
    }
    return nowMs - this.downAtMs >= this.bounds.heartbeatMs ? 'beat' : undefined;
  }

  resume(nowMs: number): void {
    this.meaningAtMs = nowMs;
    this.downAtMs = nowMs;
  }

  broken(nowMs: number): void {
    this.downAtMs = nowMs;
  }
}

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

export interface SilenceParts {
  readonly bounds: SilenceBounds;
  /** When the request had gone up. */
  readonly sentAtMs: number;
  readonly nowMs: number;
  /** Grows with everything that has meaning: comments and pings are no sign of life of a model. */
  meaning(): number;
  /** Grows with every byte sent down. */
  bytes(): number;
}

export type Verdict = 'noFirstByte' | 'idle' | 'beat' | undefined;

export interface Silence {
  /** Looks at the counters and says what is due, if anything. */
  judge(nowMs: number): Verdict;
  /** A pause that was the client's doing is over: it counts for nothing. */
  resume(nowMs: number): void;
  /** Something was sent down that no counter shows. */
  broken(nowMs: number): void;
}

/** Counters are compared at each beat of the clock, so that an event costs nothing here. */
export function createSilence({ bounds, sentAtMs, nowMs: startedAtMs, meaning, bytes }: SilenceParts): Silence {
  return new SilenceWatch({ bounds, sentAtMs, nowMs: startedAtMs, meaning, bytes });
}

class SilenceWatch implements Silence {
  private readonly bounds: SilenceParts['bounds'];
  private readonly sentAtMs: SilenceParts['sentAtMs'];
  private readonly meaning: SilenceParts['meaning'];
  private readonly bytes: SilenceParts['bytes'];
  private meaningSeen = 0;
  private meaningAtMs: number;
  private bytesSeen = 0;
  private downAtMs: number;

  constructor({ bounds, sentAtMs, nowMs: startedAtMs, meaning, bytes }: SilenceParts) {
    this.bounds = bounds;
    this.sentAtMs = sentAtMs;
    this.meaning = meaning;
    this.bytes = bytes;
    this.meaningAtMs = startedAtMs;
    this.downAtMs = startedAtMs;
  }

  judge(nowMs: number): 'noFirstByte' | 'idle' | 'beat' | undefined {
    if (this.bytes() !== this.bytesSeen) {
      this.bytesSeen = this.bytes();
      this.downAtMs = nowMs;
    }
    if (this.meaning() !== this.meaningSeen) {
      this.meaningSeen = this.meaning();
      this.meaningAtMs = nowMs;
    } else if (this.meaningSeen === 0 && nowMs - this.sentAtMs > this.bounds.firstByteMs) {
      return 'noFirstByte';
    } else if (this.meaningSeen > 0 && nowMs - this.meaningAtMs > this.bounds.idleMs) {
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

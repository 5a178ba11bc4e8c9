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
  let meaningSeen = 0;
  let meaningAtMs = startedAtMs;
  let bytesSeen = 0;
  let downAtMs = startedAtMs;

  return {
    judge(nowMs) {
      if (bytes() !== bytesSeen) {
        bytesSeen = bytes();
        downAtMs = nowMs;
      }
      if (meaning() !== meaningSeen) {
        meaningSeen = meaning();
        meaningAtMs = nowMs;
      } else if (meaningSeen === 0 && nowMs - sentAtMs > bounds.firstByteMs) {
        return 'noFirstByte';
      } else if (meaningSeen > 0 && nowMs - meaningAtMs > bounds.idleMs) {
        return 'idle';
      }
      return nowMs - downAtMs >= bounds.heartbeatMs ? 'beat' : undefined;
    },
    resume(nowMs) {
      meaningAtMs = nowMs;
      downAtMs = nowMs;
    },
    broken(nowMs) {
      downAtMs = nowMs;
    },
  };
}

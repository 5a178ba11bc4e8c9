// Whether an upstream is fit to be asked: one that fails is put aside, for growing intervals, until one call has found it well again.

/** One call's part in it. */
export interface Trial {
  /** It has answered, whatever the answer was worth to its client. */
  answered(): void;
  /** It has failed as an upstream; also after it had answered. */
  failed(): void;
  /** The call is over: nothing more is learnt from it. */
  close(): void;
}

export interface Health {
  /** Not aside. */
  readonly isUp: boolean;
  /** Whether a call may go to it: it is up, or its time aside is over, and no other call is finding out how it is. */
  readonly isFit: boolean;
  begin(): Trial;
}

/** When it is put aside, and for how long at first. */
export interface EjectRules {
  /** So many failures, one after the other. */
  readonly failures: number;
  /** Or this share of the calls of half a minute, where these are enough to say so. */
  readonly share: number;
  readonly forMs: number;
}

const WINDOW_MS = 30_000;
const ENOUGH_CALLS = 20;
/** Each time that the one call which probes it fails, it stays aside twice as long, up to so many times as long as at first. */
const LONGEST = 10;

/** @param rules undefined: it is never put aside */
export function createHealth(rules: EjectRules | undefined, now: () => number): Health {
  const recent = createShare(now);
  let failuresInRow = 0;
  let asideUntilMs: number | undefined;
  let forMs = 0;
  let probe: Trial | undefined;
  /** Whose answer ended the last row of failures. */
  let lastAnswered: Trial | undefined;

  function putAside(): void {
    if (rules === undefined) return;
    forMs = asideUntilMs === undefined ? rules.forMs : Math.min(forMs * 2, rules.forMs * LONGEST);
    asideUntilMs = now() + forMs;
  }

  function bringBack(): void {
    asideUntilMs = undefined;
    failuresInRow = 0;
    recent.clear();
  }

  function isBad(): boolean {
    return rules !== undefined && (failuresInRow >= rules.failures || (recent.calls() >= ENOUGH_CALLS && recent.share() >= rules.share));
  }

  const isFit = () => asideUntilMs === undefined || (probe === undefined && now() >= asideUntilMs);

  class CallTrial implements Trial {
    private hasFailed = false;
    private hasAnswered = false;
    private rowBefore = 0;

    answered(): void {
      if (probe === this) bringBack();
      this.hasAnswered = true;
      lastAnswered = this;
      this.rowBefore = failuresInRow;
      failuresInRow = 0;
      recent.answered();
    }

    failed(): void {
      if (this.hasFailed) return;
      this.hasFailed = true;
      // An answer that breaks off has ended no row.
      failuresInRow += lastAnswered === this ? this.rowBefore + 1 : 1;
      recent.failed(this.hasAnswered);
      // What was under way when it was put aside says nothing new.
      if (asideUntilMs === undefined ? isBad() : probe === this) putAside();
      this.close();
    }

    close(): void {
      if (probe === this) probe = undefined;
    }
  }

  return {
    get isUp() {
      return asideUntilMs === undefined;
    },
    get isFit() {
      return isFit();
    },
    begin() {
      const trial = new CallTrial();
      if (asideUntilMs !== undefined && isFit()) probe = trial;
      return trial;
    },
  };
}

interface Tally {
  calls: number;
  failures: number;
}

/** What share of the last calls failed: those of this half of the window and of the one before. */
function createShare(now: () => number) {
  const none = (): Tally => ({ calls: 0, failures: 0 });
  let halves: [Tally, Tally] = [none(), none()];
  let half = 0;

  function turn(): void {
    const current = Math.floor(now() / (WINDOW_MS / 2));
    if (current > half) halves = current === half + 1 ? [none(), halves[0]] : [none(), none()];
    half = current;
  }
  function sum(of: keyof Tally): number {
    turn();
    return halves[0][of] + halves[1][of];
  }

  return {
    answered() {
      turn();
      halves[0].calls += 1;
    },
    /** @param isCounted whether the call was counted when it was answered */
    failed(isCounted: boolean) {
      turn();
      if (!isCounted) halves[0].calls += 1;
      halves[0].failures += 1;
    },
    calls: () => sum('calls'),
    share: () => sum('failures') / Math.max(1, sum('calls')),
    clear() {
      halves = [none(), none()];
    },
  };
}

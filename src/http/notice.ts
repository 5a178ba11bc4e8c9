// Leaving in good order: load balancers hear that this gateway is not ready before its listener is gone.

export interface Notice {
  /** `/readyz` was asked on the clients' listener. */
  asked(): void;
  /** Resolves once whoever asks has heard the new answer often enough to believe it; at once where nobody asks. */
  given(): Promise<void>;
}

/** A balancer asks every few seconds; what has not asked twice in so long is none, or no more. */
const RECENT_MS = 15_000;
/** HAProxy's default (`fall 3`), no less than those of others, and once more: only then the third answer has surely been acted on. */
const TIMES_ASKED = 4;
/** How long a notice may take. */
export const MAX_NOTICE_MS = 10_000;

/** @param now monotonic milliseconds */
export function createNotice(now: () => number): Notice {
  let askedAtMs = Number.NEGATIVE_INFINITY;
  let askedBeforeAtMs = Number.NEGATIVE_INFINITY;
  let onAsked: () => void = () => undefined;
  return {
    asked() {
      askedBeforeAtMs = askedAtMs;
      askedAtMs = now();
      onAsked();
    },
    async given() {
      if (now() - askedBeforeAtMs > RECENT_MS) return;
      await new Promise<void>((resolve) => {
        let left = TIMES_ASKED;
        const timer = setTimeout(resolve, MAX_NOTICE_MS);
        onAsked = () => {
          left -= 1;
          if (left > 0) return;
          clearTimeout(timer);
          // The answer that has just been asked for is still on its way.
          setTimeout(resolve, 100);
        };
      });
    },
  };
}

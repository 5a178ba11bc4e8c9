// Ended requests are recorded a few at a time. For each by itself, metrics, board and log would find the processor's caches full of
// streams, and that costs a tenth of a short call more.
import type { Exchange } from '../exchange.ts';

export interface Recorder {
  /** Takes an exchange that has ended and whose tokens are counted. */
  take(ended: Exchange): void;
  /** Records whatever waits: for who is about to read, or to leave. */
  flush(): void;
}

/** So many take a quarter of a millisecond, which other streams' events wait for. */
const MAX_WAITING = 8;
/** So late a line of the log may be. */
const MAX_WAIT_MS = 40;

export function createRecorder(record: (ended: readonly Exchange[]) => void): Recorder {
  let waiting: Exchange[] = [];
  let timer: NodeJS.Timeout | undefined;

  function flush(): void {
    if (waiting.length === 0) return;
    clearTimeout(timer);
    const ended = waiting;
    waiting = [];
    record(ended);
  }

  return {
    take(ended) {
      waiting.push(ended);
      if (waiting.length === MAX_WAITING) flush();
      else if (waiting.length === 1) timer = setTimeout(flush, MAX_WAIT_MS);
    },
    flush,
  };
}

// Lets a meter look at several pieces in a row: of many streams at once, each one's state has left the processor's caches by its next event.
import type { Meter } from './meter.ts';

/** Beyond, what waits would be felt in a stream's memory. */
const MAX_PIECES = 8;
const MAX_BYTES = 4096;

/**
 * The same meter: whoever looks at any of its figures sees all that was observed. With 200 streams of 100 events a second the gateway
 * takes 13 % more processor time an event with metering than without (median of five pairs), and 16 to 28 % without this.
 */
export function createBatchedMeter(meter: Meter): Meter {
  const waiting: string[] = [];
  let waitingBytes = 0;

  function look(): Meter {
    if (waitingBytes === 0) return meter;
    waitingBytes = 0;
    for (const bytes of waiting.splice(0)) meter.observe(bytes);
    return meter;
  }

  return {
    observe(bytes) {
      waitingBytes += bytes.length;
      waiting.push(bytes);
      if (waiting.length >= MAX_PIECES || waitingBytes >= MAX_BYTES) look();
    },
    errorEvent: (error) => look().errorEvent(error),
    usage: (prompt) => look().usage(prompt),
    get isOff() {
      return look().isOff;
    },
    get fault() {
      return look().fault;
    },
    get eventCount() {
      return look().eventCount;
    },
    get contentCount() {
      return look().contentCount;
    },
    get meaningCount() {
      return look().meaningCount;
    },
    get textLength() {
      return look().textLength;
    },
    get model() {
      return look().model;
    },
    get isComplete() {
      return look().isComplete;
    },
    get isTerminated() {
      return look().isTerminated;
    },
    get hasError() {
      return look().hasError;
    },
    get hasIdOrRetry() {
      return look().hasIdOrRetry;
    },
    get isEventOpen() {
      return look().isEventOpen;
    },
  };
}

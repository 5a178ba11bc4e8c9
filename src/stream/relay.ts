// What happens to the bytes of an answer: they go down as they come up, under back-pressure, and end in exactly one truthful way.
import { detailOf, type ErrorDetail } from '../errors.ts';
import type { Outcome, Phase } from '../exchange.ts';
import type { Clock } from './clock.ts';
import type { Meter } from './meter.ts';
import { createSilence, type Progress, type Silence, type SilenceBounds } from './silence.ts';
import type { UsageStrip } from './strip.ts';

/** The client's side of a body. Strings hold one byte a character (latin1). */
export interface Sink {
  /** Sends the next bytes; false: they are held, and no more should come until the relay's `drained` is called. */
  write(bytes: string | Buffer): boolean;
  /** Completes the body. */
  end(): void;
  /** What `act` sends goes out in one write, where that can be. */
  together(act: () => void): void;
  /** Closes the connection with the body incomplete, after what is held has gone out. */
  cut(): void;
  /** As `cut`, but leaves the client a moment to read what was just sent. */
  cutGently(): void;
  /** Closes the connection at once. */
  destroy(): void;
  /** Nobody waits for `drained` any more. */
  letGo(): void;
  /** Bytes taken from the relay that the connection has not sent yet. */
  readonly heldBytes: number;
}

/** The upstream's side of a body. */
export interface Source {
  pause(): void;
  resume(): void;
  abort(): void;
}

/** Bounds in milliseconds; Infinity where there is none. */
export interface RelayBounds extends SilenceBounds {
  readonly clientStallMs: number;
}

/** Why a body ends that should not: what its last event says, and what the end is called. */
export interface Break {
  readonly detail: ErrorDetail;
  readonly outcome: Outcome;
}

export interface RelayParts {
  readonly sink: Sink;
  readonly source: Source;
  readonly meter: Meter | undefined;
  /** Takes out what came only of our asking. The meter sees the bytes as they came up. */
  readonly strip: UsageStrip | undefined;
  /** An event stream; anything else is only relayed, but for what its meter says of it. */
  readonly isEventStream: boolean;
  /**
   * The body is compressed. Nothing may be inserted, and as what its meter sees is late, and a coding has an end of its own, it
   * ends as its framing says: well if that is whole, and cut if it is not, whatever the events in it were.
   */
  readonly isEncoded: boolean;
  /** How an answer ends that ends well: `completed`, or `upstream_error` for an error status. */
  readonly goodEnd: Outcome;
  readonly bounds: RelayBounds;
  /** When the last byte of the request had gone up. */
  readonly sentAtMs: number;
  readonly clock: Pick<Clock, 'now'>;
  /** Where the bytes that go down are counted. */
  readonly flow: { bytesOut: number };
  readonly events: RelayEvents;
}

export interface RelayEvents {
  onPhase(phase: Phase): void;
  /** The first piece of content went down. */
  onFirstToken(): void;
  /** How long the relay took from the upstream's read to the client's write; told for a sample of the chunks. */
  onChunkOverhead(ms: number): void;
  /** A fault of ours: the body cannot be gone on with. */
  onFault(fault: unknown): void;
  /** Called exactly once, with the upstream's side already settled. */
  onOutcome(outcome: Outcome): void;
}

export interface Relay {
  /** The next bytes of the upstream's body: gathered until `flush` where they are metered. */
  chunk(bytes: Buffer): void;
  /** What has come in one read goes down in one write. */
  flush(): void;
  /** The upstream's body ended as its framing said it would. */
  end(): void;
  /** Ends the body as broken: in an event stream with a last event that says why, where that can be said. */
  break(why: Break): void;
  /** The connection takes bytes again. */
  drained(): void;
  /** The whole answer has gone out. */
  flushed(): void;
  /** The client's connection is gone. */
  clientGone(): void;
  /** It is gone, and the rest of the body is read for the meter only; the outcome is that it has left. */
  readOn(): void;
  /** Judges silence and stall, and beats where it is due; called on every beat of the clock. */
  judge(nowMs: number): void;
}

const LF_LF = 0x0a0a;
const CR_CR = 0x0d0d;
const LF_CR_LF = 0x0a0d0a;
const CR_CR_LF = 0x0d0d0a;
/** One chunk in so many is timed: enough for a histogram, too few to be felt. */
const OVERHEAD_SAMPLE = 32;

export function createRelay(parts: RelayParts): Relay {
  return new BodyRelay(parts);
}

class BodyRelay implements Relay, Progress {
  private readonly sink: Sink;
  private readonly source: Source;
  private readonly meter: Meter | undefined;
  private readonly strip: UsageStrip | undefined;
  private readonly isEventStream: boolean;
  private readonly isEncoded: boolean;
  private readonly goodEnd: Outcome;
  private readonly bounds: RelayBounds;
  private readonly clock: Pick<Clock, 'now'>;
  private readonly flow: { bytesOut: number };
  private readonly events: RelayEvents;
  private state: 'flowing' | 'blocked' | 'unheard' | 'ending' | 'over' = 'flowing';
  private pending = '';
  private lastThree = 0; // bytes that went down: a string of them would be one more object that outlives its event
  private chunkCount = 0;
  private readAtMs = 0;
  private hasToken = false;
  private heldBytes = 0;
  private progressAtMs = 0;
  private readonly readable: Meter | undefined;
  private readonly silence: Silence;

  constructor(parts: RelayParts) {
    this.sink = parts.sink;
    this.source = parts.source;
    this.meter = parts.meter;
    this.strip = parts.strip;
    this.isEventStream = parts.isEventStream;
    this.isEncoded = parts.isEncoded;
    this.goodEnd = parts.goodEnd;
    this.bounds = parts.bounds;
    this.clock = parts.clock;
    this.flow = parts.flow;
    this.events = parts.events;
    this.readable = this.isEventStream ? this.meter : undefined;
    this.silence = createSilence(parts.bounds, parts.sentAtMs, parts.clock.now());
  }

  private finish(outcome: Outcome): void {
    if (this.state === 'over') return;
    this.state = 'over';
    this.pending = '';
    this.sink.letGo();
    this.events.onOutcome(outcome);
  }

  private block(): void {
    if (this.state !== 'flowing') return;
    this.state = 'blocked';
    this.progressAtMs = this.clock.now();
    this.heldBytes = this.sink.heldBytes;
    this.source.pause();
    this.events.onPhase('backpressure');
  }

  flush(): void {
    if (this.pending === '') return;
    const bytes = this.pending;
    this.pending = '';
    if (this.state === 'unheard') {
      this.meter?.observe(bytes);
      return;
    }
    const down = this.strip === undefined ? bytes : this.stripped(this.strip, bytes);
    if (down === undefined) return;
    const wantsMore = this.send(down);
    if (this.readAtMs > 0) {
      this.events.onChunkOverhead(this.clock.now() - this.readAtMs);
      this.readAtMs = 0;
    }
    if (this.meter !== undefined) this.observe(this.meter, bytes);
    if (!wantsMore) this.block();
  }

  /** What is to go down; undefined where that is no longer known, and the body was cut. */
  private stripped(by: UsageStrip, bytes: string): string | undefined {
    try {
      return by.next(bytes);
    } catch (fault) {
      this.events.onFault(fault);
      this.source.abort();
      this.sink.cut();
      this.finish('upstream_truncated');
      return undefined;
    }
  }

  private send(bytes: string): boolean {
    if (bytes === '') return true;
    this.flow.bytesOut += bytes.length;
    for (let at = Math.max(0, bytes.length - 3); at < bytes.length; at++)
      this.lastThree = ((this.lastThree << 8) | bytes.charCodeAt(at)) & 0xffffff;
    return this.sink.write(bytes);
  }

  private observe(by: Meter, bytes: string): void {
    by.observe(bytes);
    if (!this.hasToken && by.contentCount > 0) {
      this.hasToken = true;
      this.events.onFirstToken();
    }
  }

  private relayBytes(bytes: Buffer): void {
    this.flow.bytesOut += bytes.length;
    if (!this.sink.write(bytes)) this.block();
  }

  private endWell(): void {
    if (this.strip !== undefined) this.send(this.strip.rest());
    this.state = 'ending';
    this.heldBytes = this.sink.heldBytes;
    this.progressAtMs = this.clock.now();
    this.sink.end();
  }

  /** Whether the upstream has said its last word: what comes or breaks after it is nobody's any more. */
  private isSaid(): boolean {
    return this.meter !== undefined && (this.meter.isTerminated || this.meter.hasError);
  }

  private goodOutcome(): Outcome {
    return this.meter?.hasError ? 'upstream_error_event' : this.goodEnd;
  }

  clientGone(): void {
    if (this.state === 'over') return;
    if (this.state !== 'ending') this.source.abort();
    this.finish(this.isSaid() ? this.goodOutcome() : 'client_closed');
  }

  /** Whether something may be inserted here. */
  private isBetweenEvents(by: Meter): boolean {
    return !this.isEncoded && endsBetweenEvents(this.flow.bytesOut, this.lastThree) && !by.isEventOpen;
  }

  private breakOff({ detail, outcome }: Break): void {
    const lastEvent = this.readable !== undefined && this.isBetweenEvents(this.readable) ? this.readable.errorEvent(detail) : '';
    if (lastEvent === '') {
      this.sink.cut();
    } else {
      this.sink.write(Buffer.from(lastEvent).toString('latin1'));
      this.sink.cutGently();
    }
    this.finish(outcome);
  }

  private beat(nowMs: number): void {
    if (this.readable === undefined || !this.isBetweenEvents(this.readable)) return;
    this.silence.broken(nowMs);
    if (!this.sink.write(heartbeat(this.readable.hasIdOrRetry))) this.block();
  }

  meaningCount(): number {
    const { readable } = this;
    return readable === undefined || readable.isOff ? this.flow.bytesOut : readable.meaningCount;
  }

  private judgeSilence(nowMs: number): void {
    const verdict = this.silence.judge(nowMs, this, this.flow.bytesOut);
    if (verdict === undefined) return;
    if (verdict === 'beat') {
      this.beat(nowMs);
      return;
    }
    this.source.abort();
    if (verdict === 'idle') this.breakOff({ detail: detailOf('upstream_idle_timeout'), outcome: 'timeout_idle' });
    else this.breakOff({ detail: detailOf('upstream_timeout'), outcome: 'timeout_first_byte' });
  }

  chunk(bytes: Buffer): void {
    if (this.state === 'over' || this.state === 'ending') return;
    if (this.meter === undefined) {
      this.relayBytes(bytes);
      return;
    }
    if (this.chunkCount++ % OVERHEAD_SAMPLE === 0) this.readAtMs = this.clock.now();
    this.pending += bytes.toString('latin1');
  }

  end(): void {
    this.sink.together(() => this.conclude());
  }

  private conclude(): void {
    this.flush();
    if (this.state === 'unheard') this.finish('client_closed');
    if (this.state === 'over' || this.state === 'ending') return;
    const isWhole =
      this.meter === undefined || !this.isEventStream || this.isEncoded || this.meter.isOff || this.meter.hasError || this.meter.isComplete;
    if (isWhole) this.endWell();
    else this.breakOff({ detail: detailOf('upstream_truncated'), outcome: 'upstream_truncated' });
  }

  break(why: Break): void {
    this.flush();
    if (this.state === 'over' || this.state === 'ending') return;
    this.source.abort();
    if (this.state === 'unheard') this.finish('client_closed');
    else if (this.isSaid() && !this.isEncoded) this.endWell();
    else this.breakOff(why);
  }

  drained(): void {
    if (this.state !== 'blocked') return;
    this.state = 'flowing';
    this.silence.resume(this.clock.now());
    this.events.onPhase('stream');
    this.source.resume();
  }

  flushed(): void {
    this.finish(this.goodOutcome());
  }

  readOn(): void {
    if (this.state === 'over' || this.state === 'ending' || this.isSaid()) {
      this.clientGone();
      return;
    }
    const isBlocked = this.state === 'blocked';
    this.state = 'unheard';
    if (isBlocked) this.source.resume();
  }

  judge(nowMs: number): void {
    if (this.state === 'over' || this.state === 'unheard') return;
    if (this.state === 'flowing') this.judgeSilence(nowMs);
    else this.judgeStall(nowMs);
  }

  private judgeStall(nowMs: number): void {
    if (this.sink.heldBytes !== this.heldBytes) {
      this.heldBytes = this.sink.heldBytes;
      this.progressAtMs = nowMs;
    } else if (nowMs - this.progressAtMs > this.bounds.clientStallMs) {
      if (this.state !== 'ending') this.source.abort();
      this.sink.destroy();
      this.finish('client_stalled');
    }
  }
}

/**
 * A comment (WHATWG HTML 9.2.5) that every SDK takes. With its blank line, because clients that split on blank lines lose the
 * event behind a comment without one; but openai-python takes any blank line for an event once it has seen `id:` or `retry:`.
 */
function heartbeat(hasIdOrRetry: boolean): string {
  return hasIdOrRetry ? ':\n' : ':\n\n';
}

/**
 * Whether the bytes sent so far end between two events: at a blank line, or before the first byte (WHATWG HTML 9.2.5).
 * A CR after a line break may be half of a CRLF that is still to come, and so counts as inside.
 */
function endsBetweenEvents(bytesSent: number, lastThree: number): boolean {
  const lastTwo = lastThree & 0xffff;
  return bytesSent === 0 || lastTwo === LF_LF || lastTwo === CR_CR || lastThree === LF_CR_LF || lastThree === CR_CR_LF;
}

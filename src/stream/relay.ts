// What happens to the bytes of an answer: they go down as they come up, under back-pressure, and end in exactly one truthful way.
import type { ErrorDetail } from '../errors.ts';
import type { Outcome, Phase } from '../exchange.ts';
import type { Meter } from './meter.ts';
import { createSilence, type SilenceBounds } from './silence.ts';
import type { UsageStrip } from './strip.ts';

/** The client's side of a body. Strings hold one byte a character (latin1). */
export interface Sink {
  /** Sends the next bytes; false: they are held, and no more should come until the relay's `drained` is called. */
  write(bytes: string | Buffer): boolean;
  /** Completes the body. */
  end(): void;
  /** Closes the connection with the body incomplete, after what is held has gone out. */
  cut(): void;
  /** As `cut`, but leaves the client a moment to read what was just sent. */
  cutGently(): void;
  /** Closes the connection at once. */
  destroy(): void;
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
  now(): number;
  /** Where the bytes that go down are counted. */
  readonly flow: { bytesOut: number };
  errorOf(code: 'upstream_truncated' | 'upstream_timeout' | 'upstream_idle_timeout'): ErrorDetail;
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
  /** The next bytes of the upstream's body. */
  chunk(bytes: Buffer): void;
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

/** One chunk in so many is timed: enough for a histogram, too few to be felt. */
const OVERHEAD_SAMPLE = 32;

export function createRelay(parts: RelayParts): Relay {
  const { sink, source, meter, strip, isEventStream, isEncoded, bounds, flow } = parts;
  let state: 'flowing' | 'blocked' | 'unheard' | 'ending' | 'over' = 'flowing';
  let pending = '';
  let tail = '';
  let chunkCount = 0;
  let readAtMs = 0;
  let hasToken = false;
  let heldBytes = 0;
  let progressAtMs = 0;
  const readable = isEventStream ? meter : undefined;
  const silence = createSilence({
    bounds,
    sentAtMs: parts.sentAtMs,
    nowMs: parts.now(),
    meaning: () => (readable === undefined || readable.isOff ? flow.bytesOut : readable.meaningCount),
    bytes: () => flow.bytesOut,
  });

  function finish(outcome: Outcome): void {
    if (state === 'over') return;
    state = 'over';
    pending = '';
    parts.onOutcome(outcome);
  }

  function block(): void {
    if (state !== 'flowing') return;
    state = 'blocked';
    progressAtMs = parts.now();
    heldBytes = sink.heldBytes;
    source.pause();
    parts.onPhase('backpressure');
  }

  /** Everything read in one turn of the loop goes down in one write; nothing waits for a later turn. */
  function flush(): void {
    if (pending === '') return;
    const bytes = pending;
    pending = '';
    if (state === 'unheard') {
      meter?.observe(bytes);
      return;
    }
    const down = strip === undefined ? bytes : stripped(strip, bytes);
    if (down === undefined) return;
    const wantsMore = send(down);
    if (readAtMs > 0) {
      parts.onChunkOverhead(parts.now() - readAtMs);
      readAtMs = 0;
    }
    if (meter !== undefined) observe(meter, bytes);
    if (!wantsMore) block();
  }

  /** What is to go down; undefined where that is no longer known, and the body was cut. */
  function stripped(by: UsageStrip, bytes: string): string | undefined {
    try {
      return by.next(bytes);
    } catch (fault) {
      parts.onFault(fault);
      source.abort();
      sink.cut();
      finish('upstream_truncated');
      return undefined;
    }
  }

  function send(bytes: string): boolean {
    if (bytes === '') return true;
    flow.bytesOut += bytes.length;
    tail = bytes.length >= 3 ? bytes.slice(-3) : (tail + bytes).slice(-3);
    return sink.write(bytes);
  }

  function observe(by: Meter, bytes: string): void {
    by.observe(bytes);
    if (!hasToken && by.contentCount > 0) {
      hasToken = true;
      parts.onFirstToken();
    }
  }

  function relayBytes(bytes: Buffer): void {
    flow.bytesOut += bytes.length;
    if (!sink.write(bytes)) block();
  }

  function endWell(): void {
    if (strip !== undefined) send(strip.rest());
    state = 'ending';
    heldBytes = sink.heldBytes;
    progressAtMs = parts.now();
    sink.end();
  }

  /** Whether the upstream has said its last word: what comes or breaks after it is nobody's any more. */
  function isSaid(): boolean {
    return meter !== undefined && (meter.isTerminated || meter.hasError);
  }

  function goodOutcome(): Outcome {
    return meter?.hasError ? 'upstream_error_event' : parts.goodEnd;
  }

  function leave(): void {
    if (state === 'over') return;
    if (state !== 'ending') source.abort();
    finish(isSaid() ? goodOutcome() : 'client_closed');
  }

  /** Whether something may be inserted here. */
  function isBetweenEvents(by: Meter): boolean {
    return !isEncoded && endsBetweenEvents(flow.bytesOut, tail) && !by.isEventOpen;
  }

  function breakOff({ detail, outcome }: Break): void {
    const lastEvent = readable !== undefined && isBetweenEvents(readable) ? readable.errorEvent(detail) : '';
    if (lastEvent === '') {
      sink.cut();
    } else {
      sink.write(Buffer.from(lastEvent).toString('latin1'));
      sink.cutGently();
    }
    finish(outcome);
  }

  function beat(nowMs: number): void {
    if (readable === undefined || !isBetweenEvents(readable)) return;
    silence.broken(nowMs);
    if (!sink.write(heartbeat(readable.hasIdOrRetry))) block();
  }

  return {
    chunk(bytes) {
      if (state === 'over' || state === 'ending') return;
      if (meter === undefined) return relayBytes(bytes);
      if (chunkCount++ % OVERHEAD_SAMPLE === 0) readAtMs = parts.now();
      if (pending === '') queueMicrotask(flush);
      pending += bytes.toString('latin1');
    },

    end() {
      flush();
      if (state === 'unheard') finish('client_closed');
      if (state === 'over' || state === 'ending') return;
      const isWhole = meter === undefined || !isEventStream || isEncoded || meter.isOff || meter.hasError || meter.isComplete;
      if (isWhole) endWell();
      else breakOff({ detail: parts.errorOf('upstream_truncated'), outcome: 'upstream_truncated' });
    },

    break(why) {
      flush();
      if (state === 'over' || state === 'ending') return;
      source.abort();
      if (state === 'unheard') finish('client_closed');
      else if (isSaid() && !isEncoded) endWell();
      else breakOff(why);
    },

    drained() {
      if (state !== 'blocked') return;
      state = 'flowing';
      silence.resume(parts.now());
      parts.onPhase('stream');
      source.resume();
    },

    flushed: () => finish(goodOutcome()),

    clientGone: leave,

    readOn() {
      if (state === 'over' || state === 'ending' || isSaid()) {
        leave();
        return;
      }
      const isBlocked = state === 'blocked';
      state = 'unheard';
      if (isBlocked) source.resume();
    },

    judge(nowMs) {
      if (state === 'over' || state === 'unheard') return;
      if (state === 'flowing') return judgeSilence(nowMs);
      if (sink.heldBytes !== heldBytes) {
        heldBytes = sink.heldBytes;
        progressAtMs = nowMs;
      } else if (nowMs - progressAtMs > bounds.clientStallMs) {
        if (state !== 'ending') source.abort();
        sink.destroy();
        finish('client_stalled');
      }
    },
  };

  function judgeSilence(nowMs: number): void {
    const verdict = silence.judge(nowMs);
    if (verdict === undefined) return;
    if (verdict === 'beat') {
      beat(nowMs);
      return;
    }
    source.abort();
    if (verdict === 'idle') breakOff({ detail: parts.errorOf('upstream_idle_timeout'), outcome: 'timeout_idle' });
    else breakOff({ detail: parts.errorOf('upstream_timeout'), outcome: 'timeout_first_byte' });
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
function endsBetweenEvents(bytesSent: number, tail: string): boolean {
  return bytesSent === 0 || tail.endsWith('\n\n') || tail.endsWith('\r\r') || tail === '\n\r\n' || tail === '\r\r\n';
}

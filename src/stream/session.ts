// Watches what an upstream says over a WebSocket: its events, the tokens of one response after the other, where a word of ours may stand.
import type { StreamError, Usage } from '../upstream/dialects/dialect.ts';
import type { SessionReader } from '../upstream/dialects/realtime.ts';
import { createTextCounter, type Meter, type Metered, type MeterFault, NOTHING } from './meter.ts';
import type { Tokenizer } from './tokens.ts';
import { createFrameReader, type FrameReader, textFrame } from './websocket.ts';

/** A longer message is relayed, and not read. */
const MAX_MESSAGE_BYTES = 1_048_576;

export interface SessionMeter extends Meter {
  /** Looks at the next relayed bytes. Never throws. */
  look(chunk: Buffer): void;
  readonly frames: Pick<FrameReader, 'isBetweenFrames' | 'isClosed' | 'closeCode'>;
  /** What responses that are over have used, and the one that is under way. */
  readonly session: {
    readonly finished: Usage | undefined;
    readonly underWay: { readonly contentCount: number; readonly textLength: number };
  };
}

export function createSessionMeter(reader: SessionReader, tokenizer: Tokenizer): SessionMeter {
  const frames = createFrameReader(readMessage, MAX_MESSAGE_BYTES);
  let counted = reader.underWay;
  let counter = createTextCounter(counted, tokenizer);
  let fault: MeterFault | undefined;

  function readMessage(text: string): void {
    if (fault !== undefined) return;
    try {
      reader.read(text);
      if (reader.underWay !== counted) {
        counted = reader.underWay;
        counter = createTextCounter(counted, tokenizer);
      }
      counter.bound();
    } catch {
      fault = 'event';
    }
  }

  function look(chunk: Buffer): void {
    try {
      frames.read(chunk);
      if (frames.isLost) fault ??= 'framing';
    } catch {
      fault ??= 'framing';
    }
  }

  /** What was reported is exact, unless a response was under way: its input is not known, and of its output the text. */
  async function settle(): Promise<Metered | undefined> {
    const { finished, underWay } = reader;
    const isCut = underWay.contentCount > 0 || fault !== undefined;
    const text = underWay.textLength > 0 ? await counter.total() : 0;
    if (finished === undefined && text === 0) return undefined;
    const source = isCut ? 'running' : 'reported';
    return {
      ...(finished ?? NOTHING),
      output: (finished?.output ?? 0) + text,
      inputSource: finished === undefined ? undefined : source,
      outputSource: text > 0 ? 'counted' : source,
    };
  }

  return {
    look,
    observe: (bytes) => look(Buffer.from(bytes, 'latin1')),
    frames,
    session: reader,
    errorEvent(error: StreamError) {
      try {
        return reader.hasEvents && frames.isBetweenMessages ? textFrame(reader.errorEvent(error)).toString('latin1') : '';
      } catch {
        fault ??= 'error_event';
        return '';
      }
    },
    async usage() {
      try {
        return await settle();
      } catch {
        fault = 'usage';
        return undefined;
      }
    },
    isComplete: true,
    hasError: false,
    hasIdOrRetry: false,
    get isOff() {
      return fault !== undefined;
    },
    get fault() {
      return fault;
    },
    get eventCount() {
      return frames.messageCount;
    },
    get contentCount() {
      return reader.contentCount;
    },
    get meaningCount() {
      return frames.messageCount;
    },
    get textLength() {
      return reader.textLength;
    },
    get model() {
      return reader.model;
    },
    get isTerminated() {
      return frames.isClosed;
    },
    get isEventOpen() {
      return !frames.isBetweenFrames;
    },
  };
}

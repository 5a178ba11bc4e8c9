// Watches one answer as it is relayed: what it is, what it says about tokens, how much text has gone by, whether it has ended.
import type { Dialect, EventReader, StreamError, Usage } from '../upstream/dialects/dialect.ts';
import { createExcerpt, type Excerpt } from './excerpt.ts';
import { createTopLevelScanner, decodeString, decodeValue } from './json.ts';
import { lastCut } from './slices.ts';
import { createEventScanner } from './sse.ts';
import type { Tokenizer } from './tokens.ts';

/** Text of a stream is held up to this, then counted: usage may yet come, and then nothing need be counted. */
const MAX_HELD_TEXT = 16_384;
/** Less of one text stays uncut: of 64 lanes, 64 KiB at most. */
const MIN_SLICE = 1024;
/** A longer JSON answer, if it has no usage, is not counted. */
const MAX_KEPT_ANSWER = 1_048_576;
const MAX_USAGE_BYTES = 65_536;
/** Of a longer event only an excerpt is read. */
const MAX_EVENT_BYTES = 1_048_576;

/** A request's body; undefined where it was not kept. */
export type Prompt = () => Uint8Array | undefined;

export interface Meter {
  /** Looks at the next relayed bytes of the body (latin1). Never throws: a fault switches it off for the rest of this stream. */
  observe(bytes: string): void;
  /** A fault has switched it off; framing (`isEventOpen`, `hasIdOrRetry`) is still followed, where that was not the fault. */
  readonly isOff: boolean;
  /** Why it is off: what the metric of such faults is labelled with. */
  readonly fault: MeterFault | undefined;
  readonly eventCount: number;
  /** Events with text, reasoning, tool-call arguments, refusal, audio or image. */
  readonly contentCount: number;
  /** Grows with everything but pings, comments and empty deltas: what the idle clock goes by. */
  readonly meaningCount: number;
  /** UTF-8 bytes of output text, for rates. */
  readonly textLength: number;
  readonly model: string | undefined;
  /** A proper end of the body would be the answer's end; true also where that cannot be known (off, or an event too long to know what it was). */
  readonly isComplete: boolean;
  /** The terminal event came. */
  readonly isTerminated: boolean;
  /** The upstream said in the stream that it failed. */
  readonly hasError: boolean;
  readonly hasIdOrRetry: boolean;
  /** Nothing may be inserted here. */
  readonly isEventOpen: boolean;
  /** The last event to write when the upstream breaks, framed; `''` where none can be made. */
  errorEvent(error: StreamError): string;
  /**
   * Tokens, at the end: as the upstream reported them, else counted. Undefined where there is nothing to say. Never rejects.
   * @param prompt the request's JSON body, from which input is counted where it was not reported: asked for only then, and given away
   */
  usage(prompt?: Prompt): Promise<Metered | undefined>;
}

/** Where a meter failed: on an event, on the bytes around them, while usage was settled; or the body could not be inflated. */
export type MeterFault = 'event' | 'framing' | 'usage' | 'error_event' | 'coding' | 'bomb' | 'behind';

/** A number without a source is not known, and not to be recorded. */
export interface Metered extends Usage {
  inputSource: 'reported' | 'running' | 'counted' | undefined;
  outputSource: 'reported' | 'running' | 'counted' | undefined;
}

/** A meter for a text/event-stream answer. */
export function createStreamMeter(dialect: Dialect, tokenizer: Tokenizer): Meter {
  const reader = dialect.createReader();
  const scanner = createEventScanner(readEvent, MAX_EVENT_BYTES, readLongData);
  const counter = createTextCounter(reader, tokenizer);
  let excerpt: Excerpt | undefined; // of the event that is passing, where that is too long
  let obscureCount = 0; // long events that the dialect could make nothing of
  let hasUnknown = false;
  let fault: MeterFault | undefined;
  let isScannerOff = false;

  function readEvent(name: string, data: string): void {
    if (fault !== undefined) return;
    try {
      if (excerpt === undefined) reader.read(name, data);
      else readExcerpt(name, excerpt);
      counter.bound();
    } catch {
      fault = 'event';
    }
  }

  function readLongData(piece: string): void {
    if (fault !== undefined) return;
    excerpt ??= createExcerpt();
    excerpt.scan(piece);
  }

  /** Work is going on, whatever it is. */
  function readExcerpt(name: string, of: Excerpt): void {
    excerpt = undefined;
    const { meaningCount } = reader;
    reader.read(name, of.text());
    if (reader.meaningCount === meaningCount) obscureCount++;
    if (!of.hasType && name === '') hasUnknown = true;
  }

  function observe(bytes: string): void {
    if (isScannerOff) return;
    try {
      scanner.scan(bytes);
    } catch {
      isScannerOff = true;
      fault ??= 'framing';
    }
  }

  return {
    observe,
    errorEvent(error) {
      try {
        return dialect.errorEvent(error, reader);
      } catch {
        fault ??= 'error_event';
        return '';
      }
    },
    async usage(prompt) {
      try {
        if (fault !== undefined) return undefined;
        return await settleUsage(reader, counter, () => countInput(prompt, dialect, reader.model, tokenizer));
      } catch {
        fault = 'usage';
        return undefined;
      }
    },
    get isOff() {
      return fault !== undefined;
    },
    get fault() {
      return fault;
    },
    get eventCount() {
      return scanner.eventCount;
    },
    get contentCount() {
      return reader.contentCount;
    },
    get meaningCount() {
      return fault !== undefined ? scanner.eventCount : reader.meaningCount + obscureCount;
    },
    get textLength() {
      return reader.textLength;
    },
    get model() {
      return reader.model;
    },
    get isComplete() {
      return fault !== undefined || hasUnknown || reader.isComplete;
    },
    get isTerminated() {
      return reader.isTerminated;
    },
    get hasError() {
      return reader.hasError;
    },
    get hasIdOrRetry() {
      return scanner.hasIdOrRetry;
    },
    get isEventOpen() {
      return isScannerOff || scanner.isEventOpen;
    },
  };
}

interface TextCounter {
  /** Hands text on to the tokenizer once there is too much of it. */
  bound(): void;
  /** All tokens of all text. */
  total(): Promise<number>;
}

/** Counts a reader's texts, each apart, in slices that are cut where tokens begin. */
export function createTextCounter(reader: Pick<EventReader, 'lanes' | 'textLength' | 'model'>, tokenizer: Tokenizer): TextCounter {
  const rests: string[] = []; // of each lane, what is not counted yet
  let takenLength = 0;
  let counted = Promise.resolve(0);

  function add(text: string): void {
    if (text === '') return;
    const tokens = tokenizer.count(reader.model, text);
    counted = Promise.all([counted, tokens]).then(([before, more]) => before + more);
    counted.catch(() => undefined); // told in total()
    counted.catch(() => {}); // it is awaited in the end, and may not end the process before
  }

  function bound(): void {
    if (reader.textLength - takenLength < MAX_HELD_TEXT) return;
    takenLength = reader.textLength;
    reader.lanes.forEach((lane, i) => {
      const text = (rests[i] ?? '') + lane.takeText();
      const cut = text.length < MIN_SLICE ? 0 : lastCut(text, text.length);
      rests[i] = text.slice(cut);
      add(text.slice(0, cut));
    });
  }

  async function total(): Promise<number> {
    reader.lanes.forEach((lane, i) => {
      add((rests[i] ?? '') + lane.takeText());
      rests[i] = '';
    });
    return await counted;
  }
  return { bound, total };
}

export const NOTHING: Usage = { input: 0, output: 0, cachedInput: 0, cacheWrite: 0, reasoning: 0, audioInput: 0, audioOutput: 0 };

type InputCount = () => Promise<number | undefined>;

async function settleUsage(reader: EventReader, counter: TextCounter, countInput: InputCount): Promise<Metered | undefined> {
  const { usage } = reader;
  if (usage !== undefined && reader.isUsageFinal) return { ...usage, inputSource: 'reported', outputSource: 'reported' };
  if (usage !== undefined && reader.isOutputKnown) return { ...usage, inputSource: 'running', outputSource: 'running' };
  const hasText = reader.textLength > 0;
  const [output, input] = await Promise.all([counter.total(), usage === undefined ? countInput() : undefined]);
  if (usage === undefined && input === undefined && !hasText) return undefined;
  return {
    ...(usage ?? NOTHING),
    ...(input === undefined ? {} : { input }),
    output,
    reasoning: 0, // part of an output that is not known
    audioOutput: 0,
    inputSource: usage !== undefined ? 'running' : input === undefined ? undefined : 'counted',
    outputSource: hasText ? 'counted' : undefined,
  };
}

async function countInput(prompt: Prompt | undefined, { writes }: Dialect, model: string | undefined, tokenizer: Tokenizer) {
  const body = prompt?.();
  return body && (await tokenizer.countPrompt(model, body, writes === 'messages'));
}

/** A meter for a JSON answer: finds `usage` and `model` in passing, whatever the size. */
export function createBodyMeter(dialect: Dialect, tokenizer: Tokenizer): Meter {
  const scanner = createTopLevelScanner(['usage', 'model'], MAX_USAGE_BYTES);
  const model = () => decodeString(scanner.value('model') ?? '') || undefined;
  /** The answer, as long as its tokens may have to be counted. */
  let kept: string[] | undefined = dialect.writes === undefined ? undefined : [];
  let keptBytes = 0;

  function keep(bytes: string): void {
    keptBytes += bytes.length;
    if (keptBytes > MAX_KEPT_ANSWER || scanner.value('usage') !== undefined) kept = undefined;
    kept?.push(bytes);
  }

  async function countOutput(): Promise<number | undefined> {
    return kept && (await tokenizer.countAnswer(model(), Buffer.from(kept.join(''), 'latin1')));
  }

  return createFlatMeter({
    scan(bytes) {
      scanner.scan(bytes);
      keep(bytes);
    },
    model,
    async usage(prompt) {
      const usage = dialect.usageOf(decodeValue(scanner.value('usage') ?? ''));
      if (usage !== undefined) return { ...usage, inputSource: 'reported', outputSource: 'reported' };
      const [input, output] = await Promise.all([countInput(prompt, dialect, model(), tokenizer), countOutput()]);
      if (input === undefined && output === undefined) return undefined;
      const sourceOf = (tokens: number | undefined) => (tokens === undefined ? undefined : 'counted');
      return { ...NOTHING, input: input ?? 0, output: output ?? 0, inputSource: sourceOf(input), outputSource: sourceOf(output) };
    },
  });
}

/** A meter for bodies that say nothing about themselves. */
export function createNullMeter(): Meter {
  return createFlatMeter({ scan() {}, model: () => undefined, usage: async () => undefined });
}

interface FlatBody {
  scan(bytes: string): void;
  model(): string | undefined;
  usage(prompt: Prompt | undefined): Promise<Metered | undefined>;
}

/** What is no event stream has no events, ends where its framing says, and takes no insertion. */
function createFlatMeter(body: FlatBody): Meter {
  let fault: MeterFault | undefined;
  let meaningCount = 0;

  function guard<T>(look: () => T): T | undefined {
    try {
      return fault === undefined ? look() : undefined;
    } catch {
      fault = 'framing';
      return undefined;
    }
  }

  return {
    observe(bytes) {
      if (/\S/.test(bytes)) meaningCount++; // some keep a JSON answer alive with blanks
      guard(() => body.scan(bytes));
    },
    errorEvent: () => '',
    async usage(prompt) {
      try {
        return fault === undefined ? await body.usage(prompt) : undefined;
      } catch {
        fault = 'usage';
        return undefined;
      }
    },
    eventCount: 0,
    contentCount: 0,
    textLength: 0,
    isComplete: true,
    isTerminated: false,
    hasError: false,
    hasIdOrRetry: false,
    isEventOpen: true,
    get isOff() {
      return fault !== undefined;
    },
    get fault() {
      return fault;
    },
    get meaningCount() {
      return meaningCount;
    },
    get model() {
      return guard(body.model);
    },
  };
}

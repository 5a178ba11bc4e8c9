// Watches one answer as it is relayed: what it is, what it says about tokens, how much text has gone by, whether it has ended.
import type { Dialect, EventReader, StreamError, Usage } from '../upstream/dialects/dialect.ts';
import { createExcerpt, type Excerpt } from './excerpt.ts';
import { createTopLevelScanner, decodeString, decodeValue } from './json.ts';
import { lastCut } from './slices.ts';
import { createEventScanner, type EventScanner, type EventTaker } from './sse.ts';
import type { Tokenizer } from './tokens.ts';

/** Text of a stream is held up to this, then counted: usage may yet come, and then nothing need be counted. So much is 16,000 tokens. */
const MAX_HELD_TEXT = 65_536;
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
  return new StreamMeter(dialect, tokenizer);
}

class StreamMeter implements Meter, EventTaker {
  private readonly dialect: Dialect;
  private readonly tokenizer: Tokenizer;
  private readonly reader: EventReader;
  private readonly scanner: EventScanner;
  private readonly counter: TextCounter;
  private excerpt: Excerpt | undefined; // of the event that is passing, where that is too long
  private obscureCount = 0; // long events that the dialect could make nothing of
  private hasUnknown = false;
  fault: MeterFault | undefined;
  private isScannerOff = false;

  constructor(dialect: Dialect, tokenizer: Tokenizer) {
    this.dialect = dialect;
    this.tokenizer = tokenizer;
    this.reader = dialect.createReader();
    this.scanner = createEventScanner(this, MAX_EVENT_BYTES);
    this.counter = createTextCounter(this.reader, tokenizer);
  }

  onEvent(name: string, data: string): void {
    if (this.fault !== undefined) return;
    try {
      if (this.excerpt === undefined) this.reader.read(name, data);
      else this.readExcerpt(name, this.excerpt);
      this.counter.bound();
    } catch {
      this.fault = 'event';
    }
  }

  onLongData(piece: string): void {
    if (this.fault !== undefined) return;
    this.excerpt ??= createExcerpt();
    this.excerpt.scan(piece);
  }

  /** Work is going on, whatever it is. */
  private readExcerpt(name: string, of: Excerpt): void {
    this.excerpt = undefined;
    const { meaningCount } = this.reader;
    this.reader.read(name, of.text());
    if (this.reader.meaningCount === meaningCount) this.obscureCount++;
    if (!of.hasType && name === '') this.hasUnknown = true;
  }

  observe(bytes: string): void {
    if (this.isScannerOff) return;
    try {
      this.scanner.scan(bytes);
    } catch {
      this.isScannerOff = true;
      this.fault ??= 'framing';
    }
  }

  errorEvent(error: StreamError): string {
    try {
      return this.dialect.errorEvent(error, this.reader);
    } catch {
      this.fault ??= 'error_event';
      return '';
    }
  }

  async usage(prompt: Prompt | undefined): Promise<Metered | undefined> {
    try {
      if (this.fault !== undefined) return undefined;
      return await settleUsage(this.reader, this.counter, () => countInput(prompt, this.dialect, this.reader.model, this.tokenizer));
    } catch {
      this.fault = 'usage';
      return undefined;
    }
  }

  get isOff(): boolean {
    return this.fault !== undefined;
  }

  get eventCount(): number {
    return this.scanner.eventCount;
  }

  get contentCount(): number {
    return this.reader.contentCount;
  }

  get meaningCount(): number {
    return this.fault !== undefined ? this.scanner.eventCount : this.reader.meaningCount + this.obscureCount;
  }

  get textLength(): number {
    return this.reader.textLength;
  }

  get model(): string | undefined {
    return this.reader.model;
  }

  get isComplete(): boolean {
    return this.fault !== undefined || this.hasUnknown || this.reader.isComplete;
  }

  get isTerminated(): boolean {
    return this.reader.isTerminated;
  }

  get hasError(): boolean {
    return this.reader.hasError;
  }

  get hasIdOrRetry(): boolean {
    return this.scanner.hasIdOrRetry;
  }

  get isEventOpen(): boolean {
    return this.isScannerOff || this.scanner.isEventOpen;
  }
}

interface TextCounter {
  /** Hands text on to the tokenizer once there is too much of it. */
  bound(): void;
  /** All tokens of all text. */
  total(): Promise<number>;
}

/** Counts a reader's texts, each apart, in slices that are cut where tokens begin. */
export function createTextCounter(reader: Pick<EventReader, 'lanes' | 'textLength' | 'model'>, tokenizer: Tokenizer): TextCounter {
  return new LaneCounter(reader, tokenizer);
}

class LaneCounter implements TextCounter {
  private readonly reader: Pick<EventReader, 'lanes' | 'textLength' | 'model'>;
  private readonly tokenizer: Tokenizer;
  private readonly rests: string[] = []; // of each lane, what is not counted yet
  private takenLength = 0;
  private counted = Promise.resolve(0);

  constructor(reader: Pick<EventReader, 'lanes' | 'textLength' | 'model'>, tokenizer: Tokenizer) {
    this.reader = reader;
    this.tokenizer = tokenizer;
  }

  private add(text: string): void {
    if (text === '') return;
    const tokens = this.tokenizer.count(this.reader.model, text);
    this.counted = Promise.all([this.counted, tokens]).then(([before, more]) => before + more);
    this.counted.catch(() => {}); // it is awaited in the end, and may not end the process before
  }

  bound(): void {
    if (this.reader.textLength - this.takenLength < MAX_HELD_TEXT) return;
    this.takenLength = this.reader.textLength;
    this.reader.lanes.forEach((lane, i) => {
      const text = (this.rests[i] ?? '') + lane.takeText();
      const cut = text.length < MIN_SLICE ? 0 : lastCut(text, text.length);
      this.rests[i] = text.slice(cut);
      this.add(text.slice(0, cut));
    });
  }

  async total(): Promise<number> {
    this.reader.lanes.forEach((lane, i) => {
      this.add((this.rests[i] ?? '') + lane.takeText());
      this.rests[i] = '';
    });
    return await this.counted;
  }
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

const IN_ANSWER = ['usage', 'model'];

/** A meter for a JSON answer: finds `usage` and `model` in passing, whatever the size. */
export function createBodyMeter(dialect: Dialect, tokenizer: Tokenizer): Meter {
  const scanner = createTopLevelScanner(IN_ANSWER, MAX_USAGE_BYTES);
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
  return new FlatMeter(body);
}

class FlatMeter implements Meter {
  private readonly body: FlatBody;
  fault: MeterFault | undefined;
  meaningCount = 0;
  readonly eventCount = 0;
  readonly contentCount = 0;
  readonly textLength = 0;
  readonly isComplete = true;
  readonly isTerminated = false;
  readonly hasError = false;
  readonly hasIdOrRetry = false;
  readonly isEventOpen = true;

  constructor(body: FlatBody) {
    this.body = body;
  }

  private guard<T>(look: () => T): T | undefined {
    try {
      return this.fault === undefined ? look() : undefined;
    } catch {
      this.fault = 'framing';
      return undefined;
    }
  }

  observe(bytes: string): void {
    if (/\S/.test(bytes)) this.meaningCount++; // some keep a JSON answer alive with blanks
    this.guard(() => this.body.scan(bytes));
  }

  errorEvent(): string {
    return '';
  }

  async usage(prompt: Prompt | undefined): Promise<Metered | undefined> {
    try {
      return this.fault === undefined ? await this.body.usage(prompt) : undefined;
    } catch {
      this.fault = 'usage';
      return undefined;
    }
  }

  get isOff(): boolean {
    return this.fault !== undefined;
  }

  get model(): string | undefined {
    return this.guard(this.body.model);
  }
}

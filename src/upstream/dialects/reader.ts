// What all dialects' readers have in common: parsing what must be parsed, gathering text, counting, remembering usage.
import { type EventReader, isObject, type JsonObject, type Usage } from './dialect.ts';
import { createLanes, type Lane, type OpenLane } from './lanes.ts';
import { createTemplate, type Template } from './template.ts';

/** Shapes that alternate in one stream: choices, reasoning and content, tool calls. One that does not fit costs 30 ns to see. */
const MAX_TEMPLATES = 8;
/** Where so many more events were unlike the known than like them, one parsed in 16 is learnt from: it costs as much as parsing. */
const MAX_FRUITLESS = 8;
/** After so many in a row that nothing was like, what is known is forgotten: looking through it takes 1 µs of 5. */
const MAX_STRANGE = 64;
const MAX_NAME_CHARS = 128;

/** What a dialect says about one event as it goes through it. */
export interface Findings {
  /** Output text of this lane. Anything but a string with something in it is passed over. */
  addText(text: unknown, lane: string): void;
  /** The name of a tool that the model chose: a text by itself. One that is repeated for the same call counts once. */
  addName(name: unknown, lane: string, callId: unknown): void;
  /** Output that is no text: audio, images. */
  addOpaque(content: unknown): void;
  /** The event shows work going on, with or without content. */
  addMeaning(): void;
  setModel(model: unknown): void;
  /** The usage so far, or with `isFinal` of the whole answer; without `isOutputKnown` its output is a placeholder. */
  setUsage(usage: Usage | undefined, isFinal: boolean, isOutputKnown?: boolean): void;
  setError(): void;
  /** The terminal event, or with false the start of a further message in the same stream. */
  setTerminated(isTerminated: boolean): void;
  /** Events with content so far, this one left out. */
  readonly contentCount: number;
}

export interface Interpreter {
  /**
   * Goes through one event. Returns true if it was nothing but one more piece of content: then events that differ from it in
   * their text only may be read without parsing them.
   */
  interpret(event: JsonObject, name: string, findings: Findings): boolean;
  /** Events that are not a JSON object: `[DONE]`, and named ones that were too long to read (`data` is `''`). */
  interpretOther?(name: string, data: string, findings: Findings): void;
  /** Complete without a terminal event. */
  isComplete?(): boolean;
}

interface KnownShape {
  readonly template: Template;
  /** An event's literals hold the index of its choice: all of one shape belong to one lane. */
  readonly lane: OpenLane;
}

export function createReader(interpreter: Interpreter): EventReader {
  return new InterpretingReader(interpreter);
}

class InterpretingReader implements EventReader, Findings {
  private readonly interpreter: Interpreter;
  private shapes: readonly KnownShape[] = [];
  private readonly texts = createLanes();
  private fruitless = 0;
  private strange = 0; // events since one was like a known one
  private passedOver = 0;
  contentCount = 0;
  meaningCount = 0;
  sequenceNumber = -1;
  model: string | undefined;
  usage: Usage | undefined;
  isUsageFinal = false;
  private isPlaceholder = false;
  private usageContent = 0; // contentCount when the usage came
  isTerminated = false;
  hasError = false;
  // Of the event being interpreted:
  private lastText = '';
  private lastLane: OpenLane | undefined;
  private textCount = 0;
  private hasName = false;
  private hasContent = false;
  private hasMeaning = false;
  private hasUsage = false;

  constructor(interpreter: Interpreter) {
    this.interpreter = interpreter;
  }

  addText(text: unknown, key: string): void {
    if (typeof text !== 'string' || text === '') return;
    this.lastText = text;
    this.lastLane = this.texts.of(key);
    this.lastLane.addDecoded(text);
    this.textCount++;
    this.hasContent = true;
  }

  addName(name: unknown, key: string, callId: unknown): void {
    if (typeof name !== 'string' || name === '') return;
    const lane = this.texts.of(key);
    const call = typeof callId === 'string' && callId !== '' ? callId.slice(0, MAX_NAME_CHARS) : lane.lastCall;
    if (lane.lastCall === call && lane.lastName === name) return;
    lane.lastCall = call;
    lane.lastName = name.slice(0, MAX_NAME_CHARS);
    lane.addDecoded(name);
    this.hasName = this.hasContent = true;
  }

  addOpaque(content: unknown): void {
    if (content) this.hasContent = true;
  }

  addMeaning(): void {
    this.hasMeaning = true;
  }

  setModel(name: unknown): void {
    if (this.model === undefined && typeof name === 'string' && name !== '') this.model = name;
  }

  setUsage(value: Usage | undefined, isFinal: boolean, isOutputKnown = true): void {
    if (value === undefined) return;
    this.usage = value;
    this.isUsageFinal = isFinal;
    this.isPlaceholder = !isOutputKnown;
    this.hasUsage = this.hasMeaning = true;
  }

  setError(): void {
    this.hasError = this.hasMeaning = true;
  }

  setTerminated(value: boolean): void {
    this.isTerminated = value;
    this.hasMeaning = true;
  }

  read(name: string, data: string): void {
    for (const { template, lane } of this.shapes) {
      const text = template.match(name, data);
      if (text === '') continue;
      this.strange = 0;
      if (this.fruitless > 0) this.fruitless--;
      if (template.sequenceNumber >= 0) this.sequenceNumber = template.sequenceNumber;
      lane.addRaw(text);
      this.contentCount++;
      this.meaningCount++;
      return;
    }
    this.parse(name, data);
  }

  private parse(name: string, data: string): void {
    this.textCount = 0;
    this.hasName = this.hasContent = this.hasMeaning = this.hasUsage = false;
    const event = parseEvent(data);
    let isPlain = false;
    if (event === undefined) this.readOther(name, data);
    else {
      if (typeof event.sequence_number === 'number') this.sequenceNumber = event.sequence_number;
      isPlain = this.interpreter.interpret(event, name, this);
    }
    if (this.hasContent) this.contentCount++;
    if (this.hasContent || this.hasMeaning) this.meaningCount++;
    if (this.hasUsage) this.usageContent = this.contentCount;
    if (isPlain && this.textCount === 1 && !this.hasName && this.lastLane !== undefined)
      this.learn(name, data, this.lastText, this.lastLane);
  }

  private readOther(name: string, data: string): void {
    this.hasMeaning = name !== 'ping';
    if (name === 'error') this.setError();
    if (data.startsWith('[DONE]')) this.endWithDone();
    this.interpreter.interpretOther?.(name, data, this);
  }

  /** Running totals that nothing followed were the final ones. */
  private endWithDone(): void {
    this.isTerminated = true;
    if (this.usage !== undefined && !this.isPlaceholder && this.usageContent === this.contentCount) this.isUsageFinal = true;
  }

  private learn(name: string, data: string, text: string, lane: OpenLane): void {
    if (++this.strange > MAX_STRANGE) this.shapes = [];
    this.fruitless = Math.min(this.fruitless + 1, 4 * MAX_FRUITLESS);
    if (this.fruitless > MAX_FRUITLESS && ++this.passedOver % 16 !== 0) return;
    const template = createTemplate(name, data, text);
    if (template === undefined) return;
    this.shapes = [{ template, lane }, ...this.shapes.slice(0, MAX_TEMPLATES - 1)];
  }

  get isOutputKnown(): boolean {
    return this.usage !== undefined && (this.isUsageFinal || (!this.isPlaceholder && this.usageContent === this.contentCount));
  }

  get isComplete(): boolean {
    return this.isTerminated || (this.interpreter.isComplete?.() ?? false);
  }

  get lanes(): readonly Lane[] {
    return this.texts.all;
  }

  get textLength(): number {
    return this.texts.textLength;
  }
}

function parseEvent(data: string): JsonObject | undefined {
  if (data.startsWith('[DONE]')) return undefined; // an exception takes longer than all the rest of an event
  try {
    const event: unknown = JSON.parse(Buffer.from(data, 'latin1').toString('utf8'));
    return isObject(event) ? event : undefined;
  } catch {
    return undefined;
  }
}

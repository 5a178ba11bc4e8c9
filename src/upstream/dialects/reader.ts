// What all dialects' readers have in common: parsing what must be parsed, gathering text, counting, remembering usage.
import { type EventReader, isObject, type JsonObject, type Usage } from './dialect.ts';
import { createLanes, type OpenLane } from './lanes.ts';
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
  const shapes: KnownShape[] = [];
  const lanes = createLanes();
  let fruitless = 0;
  let strange = 0; // events since one was like a known one
  let passedOver = 0;
  let contentCount = 0;
  let meaningCount = 0;
  let sequenceNumber = -1;
  let model: string | undefined;
  let usage: Usage | undefined;
  let isUsageFinal = false;
  let isPlaceholder = false;
  let usageContent = 0; // contentCount when the usage came
  let isTerminated = false;
  let hasError = false;
  // Of the event being interpreted:
  let lastText = '';
  let lastLane: OpenLane | undefined;
  let textCount = 0;
  let hasName = false;
  let hasContent = false;
  let hasMeaning = false;
  let hasUsage = false;

  const findings: Findings = {
    addText(text, key) {
      if (typeof text !== 'string' || text === '') return;
      lastText = text;
      lastLane = lanes.of(key);
      lastLane.addDecoded(text);
      textCount++;
      hasContent = true;
    },
    addName(name, key, callId) {
      if (typeof name !== 'string' || name === '') return;
      const lane = lanes.of(key);
      const call = typeof callId === 'string' && callId !== '' ? callId.slice(0, MAX_NAME_CHARS) : lane.lastCall;
      if (lane.lastCall === call && lane.lastName === name) return;
      lane.lastCall = call;
      lane.lastName = name.slice(0, MAX_NAME_CHARS);
      lane.addDecoded(name);
      hasName = hasContent = true;
    },
    addOpaque(content) {
      if (content) hasContent = true;
    },
    addMeaning() {
      hasMeaning = true;
    },
    setModel(name) {
      if (model === undefined && typeof name === 'string' && name !== '') model = name;
    },
    setUsage(value, isFinal, isOutputKnown = true) {
      if (value === undefined) return;
      usage = value;
      isUsageFinal = isFinal;
      isPlaceholder = !isOutputKnown;
      hasUsage = hasMeaning = true;
    },
    setError() {
      hasError = hasMeaning = true;
    },
    setTerminated(value) {
      isTerminated = value;
      hasMeaning = true;
    },
    get contentCount() {
      return contentCount;
    },
  };

  function read(name: string, data: string): void {
    for (const { template, lane } of shapes) {
      if (!template.match(name, data)) continue;
      strange = 0;
      if (fruitless > 0) fruitless--;
      if (template.sequenceNumber >= 0) sequenceNumber = template.sequenceNumber;
      lane.addRaw(template.text);
      contentCount++;
      meaningCount++;
      return;
    }
    parse(name, data);
  }

  function parse(name: string, data: string): void {
    textCount = 0;
    hasName = hasContent = hasMeaning = hasUsage = false;
    const event = parseEvent(data);
    let isPlain = false;
    if (event === undefined) readOther(name, data);
    else {
      if (typeof event.sequence_number === 'number') sequenceNumber = event.sequence_number;
      isPlain = interpreter.interpret(event, name, findings);
    }
    if (hasContent) contentCount++;
    if (hasContent || hasMeaning) meaningCount++;
    if (hasUsage) usageContent = contentCount;
    if (isPlain && textCount === 1 && !hasName && lastLane !== undefined) learn(name, data, lastText, lastLane);
  }

  function readOther(name: string, data: string): void {
    hasMeaning = name !== 'ping';
    if (name === 'error') findings.setError();
    if (data.startsWith('[DONE]')) endWithDone();
    interpreter.interpretOther?.(name, data, findings);
  }

  /** Running totals that nothing followed were the final ones. */
  function endWithDone(): void {
    isTerminated = true;
    if (usage !== undefined && !isPlaceholder && usageContent === contentCount) isUsageFinal = true;
  }

  function learn(name: string, data: string, text: string, lane: OpenLane): void {
    if (++strange > MAX_STRANGE) shapes.length = 0;
    fruitless = Math.min(fruitless + 1, 4 * MAX_FRUITLESS);
    if (fruitless > MAX_FRUITLESS && ++passedOver % 16 !== 0) return;
    const template = createTemplate(name, data, text);
    if (template === undefined) return;
    shapes.unshift({ template, lane });
    if (shapes.length > MAX_TEMPLATES) shapes.pop();
  }

  return {
    read,
    lanes: lanes.all,
    get model() {
      return model;
    },
    get usage() {
      return usage;
    },
    get isUsageFinal() {
      return isUsageFinal;
    },
    get isOutputKnown() {
      return usage !== undefined && (isUsageFinal || (!isPlaceholder && usageContent === contentCount));
    },
    get isComplete() {
      return isTerminated || (interpreter.isComplete?.() ?? false);
    },
    get isTerminated() {
      return isTerminated;
    },
    get hasError() {
      return hasError;
    },
    get sequenceNumber() {
      return sequenceNumber;
    },
    get contentCount() {
      return contentCount;
    },
    get meaningCount() {
      return meaningCount;
    },
    get textLength() {
      return lanes.textLength;
    },
  };
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

// What all dialects' readers have in common: parsing what must be parsed, gathering text, counting, remembering usage.
import { type EventReader, isObject, type JsonObject, type Usage } from './dialect.ts';
import { createTemplate, type Template } from './template.ts';

/** Shapes that alternate in one stream: choices, reasoning and content, tool calls. */
const MAX_TEMPLATES = 4;
/** After so many events that nothing was known like, only every sixteenth is learnt from: learning costs as much as parsing. */
const MAX_FRUITLESS = 8;
/** Pieces of text are slices that keep their chunks alive: so many at most. */
const MAX_PIECES = 16;
const MAX_RAW_BYTES = 1024;

/** What a dialect says about one event as it goes through it. */
export interface Findings {
  /** Output text. Anything but a string with something in it is passed over. */
  addText(text: unknown): void;
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

export function createReader(interpreter: Interpreter): EventReader {
  const templates: Template[] = [];
  let fruitless = 0;
  let gathered = ''; // decoded
  let raw = ''; // latin1, with JSON escapes
  let pieces = 0;
  let textLength = 0;
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
  let texts: string[] = [];
  let hasContent = false;
  let hasMeaning = false;
  let hasUsage = false;

  const findings: Findings = {
    addText(text) {
      if (typeof text !== 'string' || text === '') return;
      texts.push(text);
      hasContent = true;
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
    for (const template of templates) {
      if (!template.match(name, data)) continue;
      fruitless = 0;
      if (template.sequenceNumber >= 0) sequenceNumber = template.sequenceNumber;
      addRaw(template.text);
      contentCount++;
      meaningCount++;
      return;
    }
    parse(name, data);
  }

  function parse(name: string, data: string): void {
    texts = [];
    hasContent = hasMeaning = hasUsage = false;
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
    for (const text of texts) addDecoded(text);
    if (isPlain && texts.length === 1) learn(name, data, texts[0]!);
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

  function learn(name: string, data: string, text: string): void {
    if (++fruitless > MAX_FRUITLESS && fruitless % 16 !== 0) return;
    const template = createTemplate(name, data, text);
    if (template === undefined) return;
    templates.unshift(template);
    if (templates.length > MAX_TEMPLATES) templates.pop();
  }

  function addRaw(piece: string): void {
    raw += piece;
    textLength += piece.length;
    if (++pieces >= MAX_PIECES || raw.length >= MAX_RAW_BYTES) settleRaw();
  }

  function addDecoded(text: string): void {
    settleRaw();
    gathered += text;
    textLength += Buffer.byteLength(text);
  }

  function settleRaw(): void {
    if (pieces === 0) return;
    gathered += decodeRaw(raw);
    raw = '';
    pieces = 0;
  }

  return {
    read,
    takeText() {
      settleRaw();
      const text = gathered;
      gathered = '';
      return text;
    },
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
      return textLength;
    },
  };
}

function parseEvent(data: string): JsonObject | undefined {
  try {
    const event: unknown = JSON.parse(Buffer.from(data, 'latin1').toString('utf8'));
    return isObject(event) ? event : undefined;
  } catch {
    return undefined;
  }
}

/** Text of JSON strings in a row. Should it not be what a JSON string may hold, it counts as it stands. */
function decodeRaw(raw: string): string {
  const text = Buffer.from(raw, 'latin1').toString('utf8');
  if (!text.includes('\\')) return text;
  try {
    return JSON.parse(`"${text}"`);
  } catch {
    return text;
  }
}

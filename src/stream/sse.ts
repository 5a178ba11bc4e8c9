// Splits the bytes of an event stream into events as they pass, without keeping what has passed.
// WHATWG HTML 9.2.6; works on binary strings: one latin1 character per byte.

const LF = 10;
const COLON = 58;
const BOM = '\xef\xbb\xbf';
/** What is kept of a line in an event that is given up: enough to tell the name of its field. */
const KEPT_BYTES = 9;
/**
 * V8 joins pieces to a tree, and copies them into one where a character is asked for: with each piece, 1 MiB in pieces of 7 bytes took
 * minutes; never, it takes 50 MiB in pieces of one.
 */
const FLATTEN_EACH = 256;

export interface EventScanner {
  /** Looks at the next bytes of the body (latin1), cut anywhere. Calls `onEvent` once for each event that ends in them. */
  scan(bytes: string): void;
  /** Bytes of an event, or of an unfinished line, have come since the last blank line: nothing may be inserted here. */
  readonly isEventOpen: boolean;
  /** The stream has carried `id:` or `retry:`; from then on openai-python takes any blank line for an event. */
  readonly hasIdOrRetry: boolean;
  /** Events that ended so far, skipped ones included. */
  readonly eventCount: number;
  /** An event was longer than the bound: `onEvent` got its name and no data. */
  readonly hasOverflowed: boolean;
}

/** Who gets the events. */
export interface EventTaker {
  /** The event's name (`''` where it had none) and its data lines joined by LF, both latin1. */
  onEvent(name: string, data: string): void;
  /** The data of an event that is longer than the bound, in pieces, before `onEvent` tells of its end; white space around its lines is not exact. */
  onLongData?(piece: string): void;
}

/**
 * A scanner for one stream. An `error:` line, as llama.cpp before late 2025 wrote its errors, comes as an event named `error`; and
 * events without a blank line between them (SambaNova, DeepInfra) come apart where two lines of data cannot be one JSON text.
 */
export function createEventScanner(to: EventTaker, maxEventBytes = 1_048_576): EventScanner {
  return new LineScanner(to, maxEventBytes);
}

class LineScanner implements EventScanner {
  private readonly to: EventTaker;
  private readonly maxEventBytes: number;
  private held = ''; // the start of a line that is not whole yet
  private heldPieces = 0;
  private isComment = false; // the held line is one
  private name = '';
  private lastName = '';
  private data = '';
  private hasData = false;
  private hasFields = false;
  private eventBytes = 0; // of the event's whole lines
  private isSkipping = false;
  private isPassing = false; // the held line is one of data, and goes to onLongData as it comes
  private isStart = true;
  private isAfterCr = false; // the last byte was a CR: an LF may belong to it
  private hasLoneCr = false;
  hasIdOrRetry = false;
  hasOverflowed = false;
  eventCount = 0;

  constructor(to: EventTaker, maxEventBytes: number) {
    this.to = to;
    this.maxEventBytes = maxEventBytes;
  }

  private dispatch(): void {
    const isEvent = this.hasData || this.isSkipping;
    const endedName = this.name;
    const endedData = this.data;
    this.reset(); // first, so that a fault in onEvent does not make one event of two
    if (!isEvent) return;
    this.eventCount++;
    this.to.onEvent(endedName, endedData);
  }

  private reset(): void {
    this.name = this.data = '';
    this.hasData = this.hasFields = this.isSkipping = false;
    this.eventBytes = 0;
  }

  private skip(): void {
    if (!this.isSkipping && this.hasData) this.to.onLongData?.(this.data);
    this.isSkipping = this.hasOverflowed = true;
    this.data = '';
  }

  /** Reads the line `text[start, end)`. */
  private readLine(text: string, start: number, end: number): void {
    if (this.isStart) {
      this.isStart = false;
      if (text.startsWith(BOM, start)) start += BOM.length;
    }
    if (start === end) this.dispatch();
    else this.readField(text, start, end);
  }

  private readField(text: string, start: number, end: number): void {
    const first = text.charCodeAt(start);
    if (first === COLON) return;
    this.hasFields = true;
    this.eventBytes += end - start;
    if (this.eventBytes > this.maxEventBytes) this.skip();
    if (first === 100 && isField('data', text, start, end)) this.readData(text.slice(valueStart(4, text, start, end), end));
    else if (first === 101) this.readEventField(text, start, end);
    else if (isField('id', text, start, end) || isField('retry', text, start, end)) this.hasIdOrRetry = true;
  }

  private readData(value: string): void {
    if (this.isOver() && (value.startsWith('{') || value === '[DONE]')) this.endHere();
    this.addData(value);
    if (value === '[DONE]') this.endHere(); // maybe nothing follows
  }

  /** No JSON text goes on with `{`, or with an error, on the line behind one that ends so. */
  private isOver(): boolean {
    return this.hasData && this.data.endsWith('}');
  }

  /** Ends an event before its blank line, which may never come. */
  private endHere(): void {
    if (this.isSkipping) return;
    this.dispatch();
    this.hasFields = true;
  }

  private addData(value: string): void {
    if (this.isSkipping) {
      if (!this.isPassing) this.to.onLongData?.(`\n${value}`);
      return;
    }
    this.data = this.hasData ? `${this.data}\n${value}` : value;
    this.hasData = true;
  }

  private readEventField(text: string, start: number, end: number): void {
    if (isField('event', text, start, end)) {
      if (!this.isSkipping) this.name = this.readName(text.slice(valueStart(5, text, start, end), end));
    } else if (isField('error', text, start, end)) {
      if (this.isOver()) this.endHere();
      this.name = 'error';
      this.addData(text.slice(valueStart(5, text, start, end), end));
    }
  }

  /** Most events have the name of the one before; a copy of its own keeps a chunk from living on for the sake of a name. */
  private readName(value: string): string {
    if (value !== this.lastName) this.lastName = Buffer.from(value, 'latin1').toString('latin1');
    return this.lastName;
  }

  private hold(piece: string): void {
    if (piece === '') return;
    if (this.held === '') {
      this.isComment = piece.charCodeAt(0) === COLON;
      this.heldPieces = 0;
    } else if (++this.heldPieces % FLATTEN_EACH === 0) this.isComment = this.held.charCodeAt(0) === COLON;
    if (!this.isSkipping && !this.isComment && this.eventBytes + this.held.length + piece.length > this.maxEventBytes) this.skip();
    this.held += piece;
    if (this.isComment) this.held = ':';
    else if (this.isSkipping) this.pass(piece);
  }

  /** Of a line in an event that is given up, `piece` came last. */
  private pass(piece: string): void {
    if (this.isPassing) this.to.onLongData?.(piece);
    else if (this.held.startsWith('data:')) {
      this.isPassing = true;
      this.to.onLongData?.(`\n${this.held.slice(5)}`);
    }
    this.held = this.held.slice(0, KEPT_BYTES);
  }

  private readHeldLine(rest: string): void {
    this.hold(rest);
    const line = this.held;
    this.held = '';
    this.readLine(line, 0, line.length);
    this.isPassing = false;
  }

  /** A piece that is one event of one line of data, as most are where models are slower than networks: 0.2 µs instead of 0.4. */
  private takeWhole(bytes: string): boolean {
    const end = bytes.length - 2;
    if (this.held !== '' || this.hasFields || this.isAfterCr || bytes.charCodeAt(0) !== 100 || bytes.indexOf('\n') !== end) return false;
    if (bytes.charCodeAt(end + 1) !== LF || end > this.maxEventBytes || !isField('data', bytes, 0, end) || bytes.includes('\r'))
      return false;
    this.isStart = false;
    this.eventCount++;
    this.to.onEvent('', bytes.slice(valueStart(4, bytes, 0, end), end));
    return true;
  }

  scan(bytes: string): void {
    if (bytes === '' || this.takeWhole(bytes)) return;
    let start = this.isAfterCr && bytes.charCodeAt(0) === LF ? 1 : 0;
    if (this.isAfterCr && start === 0) this.hasLoneCr = true;
    this.isAfterCr = false;
    let lf = bytes.indexOf('\n', start);
    let cr = bytes.indexOf('\r', start);
    while (lf >= 0 || cr >= 0) {
      const end = lf < 0 || (cr >= 0 && cr < lf) ? cr : lf;
      if (this.held === '') this.readLine(bytes, start, end);
      else this.readHeldLine(bytes.slice(start, end));
      start = end + 1;
      if (end === cr) {
        if (start === bytes.length) this.isAfterCr = true;
        else if (bytes.charCodeAt(start) === LF) start++;
        else this.hasLoneCr = true;
        cr = bytes.indexOf('\r', start);
      }
      if (lf >= 0 && lf < start) lf = bytes.indexOf('\n', start);
    }
    this.hold(bytes.slice(start));
  }

  get isEventOpen(): boolean {
    return this.hasFields || this.held !== '' || (this.isAfterCr && !this.hasLoneCr);
  }
}

/** The line is `field`, alone or with a colon behind it. */
function isField(field: string, text: string, start: number, end: number): boolean {
  const colon = start + field.length;
  return text.startsWith(field, start) && (colon === end || (colon < end && text.charCodeAt(colon) === COLON));
}

/** Where the value begins: behind the colon and one space, or at the line's end. */
function valueStart(fieldLength: number, text: string, start: number, end: number): number {
  const value = start + fieldLength + 1;
  if (value >= end) return end;
  return text.charCodeAt(value) === 32 ? value + 1 : value;
}

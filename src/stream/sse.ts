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

/**
 * A scanner for one stream. `onEvent` gets the event's name (`''` where it had none) and its data lines joined by LF, both latin1.
 * An `error:` line, as llama.cpp before late 2025 wrote its errors, comes as an event named `error`; and events without a blank
 * line between them (SambaNova, DeepInfra) come apart where two lines of data cannot be one JSON text.
 * @param onLongData gets the data of an event that is longer than the bound, in pieces, before `onEvent` tells of its end; white
 *   space around its lines is not exact
 */
export function createEventScanner(
  onEvent: (name: string, data: string) => void,
  maxEventBytes = 1_048_576,
  onLongData?: (piece: string) => void,
): EventScanner {
  let held = ''; // the start of a line that is not whole yet
  let heldPieces = 0;
  let isComment = false; // the held line is one
  let name = '';
  let lastName = '';
  let data = '';
  let hasData = false;
  let hasFields = false;
  let eventBytes = 0; // of the event's whole lines
  let isSkipping = false;
  let isPassing = false; // the held line is one of data, and goes to onLongData as it comes
  let isStart = true;
  let isAfterCr = false; // the last byte was a CR: an LF may belong to it
  let hasLoneCr = false;
  let hasIdOrRetry = false;
  let hasOverflowed = false;
  let eventCount = 0;

  function dispatch(): void {
    const isEvent = hasData || isSkipping;
    const endedName = name;
    const endedData = data;
    reset(); // first, so that a fault in onEvent does not make one event of two
    if (!isEvent) return;
    eventCount++;
    onEvent(endedName, endedData);
  }

  function reset(): void {
    name = data = '';
    hasData = hasFields = isSkipping = false;
    eventBytes = 0;
  }

  function skip(): void {
    if (!isSkipping && hasData) onLongData?.(data);
    isSkipping = hasOverflowed = true;
    data = '';
  }

  /** Reads the line `text[start, end)`. */
  function readLine(text: string, start: number, end: number): void {
    if (isStart) {
      isStart = false;
      if (text.startsWith(BOM, start)) start += BOM.length;
    }
    if (start === end) dispatch();
    else readField(text, start, end);
  }

  function readField(text: string, start: number, end: number): void {
    const first = text.charCodeAt(start);
    if (first === COLON) return;
    hasFields = true;
    eventBytes += end - start;
    if (eventBytes > maxEventBytes) skip();
    if (first === 100 && isField('data', text, start, end)) readData(text.slice(valueStart(4, text, start, end), end));
    else if (first === 101) readEventField(text, start, end);
    else if (isField('id', text, start, end) || isField('retry', text, start, end)) hasIdOrRetry = true;
  }

  function readData(value: string): void {
    if (isOver() && (value.startsWith('{') || value === '[DONE]')) endHere();
    addData(value);
    if (value === '[DONE]') endHere(); // maybe nothing follows
  }

  /** No JSON text goes on with `{`, or with an error, on the line behind one that ends so. */
  function isOver(): boolean {
    return hasData && data.endsWith('}');
  }

  /** Ends an event before its blank line, which may never come. */
  function endHere(): void {
    if (isSkipping) return;
    dispatch();
    hasFields = true;
  }

  function addData(value: string): void {
    if (isSkipping) {
      if (!isPassing) onLongData?.(`\n${value}`);
      return;
    }
    data = hasData ? `${data}\n${value}` : value;
    hasData = true;
  }

  function readEventField(text: string, start: number, end: number): void {
    if (isField('event', text, start, end)) {
      if (!isSkipping) name = readName(text.slice(valueStart(5, text, start, end), end));
    } else if (isField('error', text, start, end)) {
      if (isOver()) endHere();
      name = 'error';
      addData(text.slice(valueStart(5, text, start, end), end));
    }
  }

  /** Most events have the name of the one before; a copy of its own keeps a chunk from living on for the sake of a name. */
  function readName(value: string): string {
    if (value !== lastName) lastName = Buffer.from(value, 'latin1').toString('latin1');
    return lastName;
  }

  function hold(piece: string): void {
    if (piece === '') return;
    if (held === '') {
      isComment = piece.charCodeAt(0) === COLON;
      heldPieces = 0;
    } else if (++heldPieces % FLATTEN_EACH === 0) isComment = held.charCodeAt(0) === COLON;
    if (!isSkipping && !isComment && eventBytes + held.length + piece.length > maxEventBytes) skip();
    held += piece;
    if (isComment) held = ':';
    else if (isSkipping) pass(piece);
  }

  /** Of a line in an event that is given up, `piece` came last. */
  function pass(piece: string): void {
    if (isPassing) onLongData?.(piece);
    else if (held.startsWith('data:')) {
      isPassing = true;
      onLongData?.(`\n${held.slice(5)}`);
    }
    held = held.slice(0, KEPT_BYTES);
  }

  function readHeldLine(rest: string): void {
    hold(rest);
    const line = held;
    held = '';
    readLine(line, 0, line.length);
    isPassing = false;
  }

  /** A piece that is one event of one line of data, as most are where models are slower than networks: 0.2 µs instead of 0.4. */
  function takeWhole(bytes: string): boolean {
    const end = bytes.length - 2;
    if (held !== '' || hasFields || isAfterCr || bytes.charCodeAt(0) !== 100 || bytes.indexOf('\n') !== end) return false;
    if (bytes.charCodeAt(end + 1) !== LF || end > maxEventBytes || !isField('data', bytes, 0, end) || bytes.includes('\r')) return false;
    isStart = false;
    eventCount++;
    onEvent('', bytes.slice(valueStart(4, bytes, 0, end), end));
    return true;
  }

  function scan(bytes: string): void {
    if (bytes === '' || takeWhole(bytes)) return;
    let start = isAfterCr && bytes.charCodeAt(0) === LF ? 1 : 0;
    if (isAfterCr && start === 0) hasLoneCr = true;
    isAfterCr = false;
    let lf = bytes.indexOf('\n', start);
    let cr = bytes.indexOf('\r', start);
    while (lf >= 0 || cr >= 0) {
      const end = lf < 0 || (cr >= 0 && cr < lf) ? cr : lf;
      if (held === '') readLine(bytes, start, end);
      else readHeldLine(bytes.slice(start, end));
      start = end + 1;
      if (end === cr) {
        if (start === bytes.length) isAfterCr = true;
        else if (bytes.charCodeAt(start) === LF) start++;
        else hasLoneCr = true;
        cr = bytes.indexOf('\r', start);
      }
      if (lf >= 0 && lf < start) lf = bytes.indexOf('\n', start);
    }
    hold(bytes.slice(start));
  }

  return {
    scan,
    get isEventOpen() {
      return hasFields || held !== '' || (isAfterCr && !hasLoneCr);
    },
    get hasIdOrRetry() {
      return hasIdOrRetry;
    },
    get eventCount() {
      return eventCount;
    },
    get hasOverflowed() {
      return hasOverflowed;
    },
  };
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

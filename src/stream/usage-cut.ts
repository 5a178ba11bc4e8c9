// Cuts the member `usage` out of the objects in an event stream as they pass, and holds back only what may belong to it.
// WHATWG HTML 9.2.6 and RFC 8259; works on binary strings: one latin1 character per byte.
import type { Strip } from '../upstream/ask.ts';
import { closingQuote, createChoicesWalk } from './choices.ts';

/** An event that is longer goes by untouched from here on. */
export const MAX_EVENT_BYTES = 1_048_576;
/** After so many lines that began in another way than the one before, only every sixteenth is learnt. */
const MAX_FRUITLESS = 8;
/** Longer than any usage of zeros. */
const MAX_ZEROS_BYTES = 1024;
/** A time, a count: what may differ from line to line. */
const LONG_NUMBER = /\d{4,}/;
const BOM = '\xef\xbb\xbf';
const DATA = 'data:';

// Numbers, because the walk asks for its place at every token: strings cost it 10 %.
const LINE = 0; // at a line's start, or within `data:`
const OTHER = 1; // in a line, or an event, that is passed over
const START = 2; // before the object
const FIRST_KEY = 3;
const KEY = 4;
const IN_KEY = 5;
const COLON = 6;
const VALUE = 7;
const STRING = 8;
const SCALAR = 9;
const NESTED = 10;
const COMMA = 11;
const FIRST_CUT = 12; // behind a value that goes together with the comma behind it
const END = 13;

export interface UsageCut {
  /** Walks on from `start` to the end of `bytes`, or of the line that makes `isFinished` true; returns where it stopped. */
  walk(bytes: string, start: number): number;
  /** Walks through all of `bytes`; nothing is cut from the next object in them where `isUncut`. */
  walkAll(bytes: string, isUncut: boolean): void;
  /** The second half of a CRLF, behind a piece that ended between the two. */
  takeLf(): void;
  /** At a line's start, outside of any object, and every choice has had its `finish_reason`. */
  readonly isFinished: boolean;
  /** The member that may have to go, as far as it has come. */
  readonly held: string;
  /** At the body's end. */
  release(): void;
}

/** For one stream. A top-level `usage` member goes with the comma before it (behind it, where it is the first); the rest goes to `emit`. */
export function createUsageCut(strip: Strip, emit: (bytes: string) => void): UsageCut {
  const choices = createChoicesWalk();
  let text = ''; // what is being walked
  let at = 0;
  let from = 0; // first byte of `text` that has not been emitted
  let limit = 0; // the line's end in `text`, or the end of `text`
  let walked = 0; // bytes walked before `text`
  let held = ''; // of a member that may have to go: its bytes in earlier pieces
  let holdAt = -1; // and where it begins in `text`; -1 for none
  // The line and the object in its data:
  let place = LINE;
  let suspended = START; // the place to go on from in the next `data:` line of the event
  let matched = 0; // of `data:`, or of `null`
  let objectStart = 0;
  let isUncut = false;
  let isFirst = false; // no member has gone out before this one
  let key = '';
  let isUsage = false; // the member may have to go
  let isEscaped = false;
  // The last line's beginning, up to its choices: equal bytes lead to the same place, and need not be walked again.
  let known: readonly string[] = []; // literals, with a number between each two
  let knownObject = 0; // where its object begins
  let fruitless = 0;
  let lineAt = -1; // where the line began in `text`; -1 where in an earlier piece

  function release(): void {
    if (held !== '') emit(held);
    held = '';
    holdAt = -1;
  }

  function cutOut(end: number): void {
    if (isTooLong(end)) {
      release();
      return;
    }
    emit(text.slice(from, holdAt));
    held = '';
    holdAt = -1;
    from = end;
  }

  function isTooLong(end: number): boolean {
    return walked + end - objectStart > MAX_EVENT_BYTES;
  }

  function breakOff(): void {
    release();
    place = suspended = OTHER;
  }

  /** Goes on behind the closing quote; false where the line or piece ends first. */
  function passString(): boolean {
    const quote = closingQuote(text, isEscaped ? at + 1 : at, limit);
    isEscaped = quote > limit;
    at = Math.min(quote + 1, limit);
    return quote < limit;
  }

  function beginKey(): void {
    if (place === FIRST_CUT) cutOut(at - 1);
    isFirst = place !== KEY;
    if (isFirst) holdAt = at - 1;
    key = '';
    place = IN_KEY;
  }

  function passKey(): void {
    const start = at;
    const isWhole = passString();
    const end = isWhole ? at - 1 : at;
    const length = key.length + end - start;
    if (isWhole ? length === 5 || length === 7 : length <= 7) key += text.slice(start, end);
    else key = '-';
    if (!isWhole) return;
    isUsage = key === 'usage';
    if (!isUsage) keepMember();
    place = COLON;
  }

  function keepMember(): void {
    release();
    isFirst = false;
  }

  function keepUsage(): void {
    keepMember();
    isUsage = false;
  }

  function beginValue(code: number): void {
    if (isUsage && !mayGo(code)) keepUsage();
    if (code === 34) place = STRING;
    else if (code === 123 || code === 91) beginNested(code);
    else if (isScalar(code)) {
      place = SCALAR;
      matched = 0;
      at--;
    } else breakOff();
  }

  /** Only what goes if it turns out whole is held any longer: `null`, zeros, and running totals. */
  function mayGo(code: number): boolean {
    return code === 110 ? strip.final : code === 123;
  }

  function beginNested(code: number): void {
    const isChoices = key === 'choices' && code === 91;
    if (isChoices) learnLine();
    choices.begin(isChoices);
    place = NESTED;
  }

  function passNested(): void {
    const start = at;
    at = choices.read(text, at, limit);
    // Not zeros, however it goes on.
    if (isUsage && !strip.running && /[1-9]/.test(text.slice(start, at))) keepUsage();
    if (!choices.isOpen) endNested();
  }

  function passScalar(): void {
    while (at < limit && isScalar(text.charCodeAt(at))) {
      if (isUsage && text.charCodeAt(at) !== 'null'.charCodeAt(matched++)) keepUsage();
      at++;
    }
    if (at < limit) endScalar();
  }

  function endScalar(): void {
    if (isUsage && matched !== 4) keepUsage();
    endValue();
  }

  function endNested(): void {
    if (isUsage && holdAt >= 0 && !strip.running && !isZeros(held + text.slice(holdAt, at))) keepUsage();
    endValue();
  }

  function endValue(): void {
    const goes = isUsage && holdAt >= 0;
    place = goes && isFirst ? FIRST_CUT : COMMA;
    if (goes && !isFirst) cutOut(at);
  }

  /** Takes one byte between tokens. */
  function step(): void {
    const code = text.charCodeAt(at++);
    if (place === COMMA && holdAt < 0 && (code === 44 || code === 32 || code === 9)) holdAt = at - 1;
    if (code === 32 || code === 9) return;
    if (place === VALUE) beginValue(code);
    else if (place === COLON && code === 58) place = VALUE;
    else if (place === COMMA && code === 44) place = KEY;
    else if (code === 34 && (place === KEY || place === FIRST_KEY || place === FIRST_CUT)) beginKey();
    else if (place === START && code === 123) beginObject();
    else if (code === 125 && (place === COMMA || place === FIRST_KEY || place === FIRST_CUT)) endObject();
    else if (place !== FIRST_CUT || code !== 44) breakOff();
  }

  function beginObject(): void {
    objectStart = isUncut ? -MAX_EVENT_BYTES : walked + at; // as if it were too long
    isUncut = false;
    place = FIRST_KEY;
  }

  function endObject(): void {
    if (place === FIRST_CUT) cutOut(at - 1);
    else release();
    place = END;
  }

  function readJson(): void {
    while (at < limit) {
      if (place === IN_KEY) passKey();
      else if (place === STRING) passString() && endValue();
      else if (place === NESTED) passNested();
      else if (place === SCALAR) passScalar();
      else if (place === OTHER) at = limit;
      else step();
    }
  }

  function learnLine(): void {
    const object = objectStart - walked - lineAt;
    if (lineAt < from || object < 0) return; // begun elsewhere, or cut already
    if (++fruitless > MAX_FRUITLESS && fruitless % 16 !== 0) return;
    const begun = Buffer.from(text.slice(lineAt, at), 'latin1').toString('latin1'); // a slice would keep the whole piece
    known = begun.split(LONG_NUMBER);
    knownObject = object;
  }

  /**
   * Goes to the choices at once, where the line begins as the last one did, but for numbers, which change nothing about where
   * things stand: 0.5 µs of 0.9 for an event of 330 bytes.
   */
  function skipKnown(): boolean {
    lineAt = at;
    if (known.length === 0 || isUncut || !isOutside()) return false;
    const end = endOfKnown();
    if (end < 0) return false;
    objectStart = walked + at + knownObject;
    at = end;
    fruitless = 0;
    choices.begin(true);
    place = NESTED;
    return true;
  }

  /** Behind what is known of the line that begins here; -1 where it begins in another way. */
  function endOfKnown(): number {
    let end = at;
    for (let i = 0; i < known.length; i++) {
      const start = i === 0 ? at : behindDigits(text, end);
      if (i > 0 && start === end) return -1;
      const literal = known[i]!;
      end = start + literal.length;
      if (text.slice(start, end) !== literal) return -1;
    }
    return end;
  }

  /** `data:` at the start of a line, byte by byte; a blank line ends the event. */
  function readLineStart(): void {
    const code = text.charCodeAt(at);
    if (code === DATA.charCodeAt(matched)) {
      if (matched > 0 || !skipKnown()) passDataByte();
    } else if (code === BOM.charCodeAt(walked + at)) at++;
    else if (matched === 0 && (code === 10 || code === 13)) {
      release();
      suspended = START;
      at = nextLine(text, at);
    } else passOver();
  }

  function passDataByte(): void {
    at++;
    if (++matched < DATA.length) return;
    matched = 0;
    place = suspended === END ? START : suspended; // no blank line between events: SambaNova, DeepInfra
  }

  /** A line without data: an object that is open does not survive it. */
  function passOver(): void {
    release();
    matched = 0;
    place = OTHER;
    if (!isOutside()) suspended = OTHER;
  }

  function isOutside(): boolean {
    return suspended === START || suspended === END;
  }

  function readLine(): void {
    limit = lineEnd(text, at);
    readJson();
    if (limit < text.length) endLine();
  }

  function endLine(): void {
    if (place === SCALAR) endScalar();
    if (place === STRING || place === IN_KEY || (place === NESTED && choices.isInString)) breakOff();
    if (place !== OTHER) suspended = place;
    isEscaped = false;
    matched = 0;
    place = LINE;
    at = nextLine(text, limit);
  }

  function isFinished(): boolean {
    return place === LINE && matched === 0 && isOutside() && choices.areFinished;
  }

  function walk(bytes: string, start: number): number {
    text = bytes;
    at = from = start;
    lineAt = -1;
    walked -= start;
    holdAt = held === '' ? -1 : start;
    do {
      if (place === LINE) readLineStart();
      else readLine();
    } while (at < text.length && !isFinished());
    settle();
    walked += at;
    text = '';
    return at;
  }

  function walkAll(bytes: string, uncut: boolean): void {
    isUncut = uncut;
    for (let start = 0; start < bytes.length; ) start = walk(bytes, start);
  }

  /** Emits what has been walked, up to a member that may have to go. */
  function settle(): void {
    const isOther = place === IN_KEY && !'usage'.startsWith(key);
    if (isOther || isTooLong(at)) release();
    const end = holdAt < 0 ? at : holdAt;
    emit(text.slice(from, end));
    held += text.slice(end, at);
  }

  return {
    walk,
    walkAll,
    takeLf() {
      if (held === '') emit('\n');
      else held += '\n';
    },
    get isFinished() {
      return isFinished();
    },
    get held() {
      return held;
    },
    release,
  };
}

function behindDigits(text: string, start: number): number {
  let at = start;
  while (text.charCodeAt(at) >= 48 && text.charCodeAt(at) <= 57) at++;
  return at;
}

/** A member with an object in which all numbers are zero: Ollama puts that on every chunk, where it is asked for usage. */
function isZeros(member: string): boolean {
  if (member.length > MAX_ZEROS_BYTES) return false;
  return /^,*"usage":\{("[a-z_]+":(0|null|\{("[a-z_]+":(0|null),?)*\}),?)+\}$/.test(member.replace(/[ \t]/g, ''));
}

/** Where the line that `start` is in ends, in front of its break; the end of `bytes` where it has none yet. */
export function lineEnd(bytes: string, start: number): number {
  const lf = bytes.indexOf('\n', start);
  const end = lf < 0 ? bytes.length : lf;
  const cr = bytes.slice(start, end).indexOf('\r');
  return cr < 0 ? end : start + cr;
}

/** Behind the line break at `end`. */
export function nextLine(bytes: string, end: number): number {
  return bytes.charCodeAt(end) === 13 && bytes.charCodeAt(end + 1) === 10 ? end + 2 : end + 1;
}

/** Numbers, true, false and null: whatever is neither structure nor whitespace nor a quote. */
function isScalar(code: number): boolean {
  return code > 32 && code !== 34 && code !== 44 && code !== 58 && code !== 91 && code !== 93 && code !== 123 && code !== 125;
}

// Cuts the member `usage` out of the objects in an event stream as they pass, and holds back only what may belong to it.
// WHATWG HTML 9.2.6 and RFC 8259; works on binary strings: one latin1 character per byte.
import type { Strip } from '../upstream/ask.ts';
import type { ChoiceBook } from '../upstream/dialects/choice-book.ts';
import { DATA, lookAt, MAX_EVENT_BYTES } from './at-sight.ts';
import { type ChoicesWalk, closingQuote, createChoicesWalk } from './choices.ts';

/** Longer than any usage of zeros. */
const MAX_ZEROS_BYTES = 1024;
const BOM = '\xef\xbb\xbf';

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
  /** Passes whole events from `start` on that need no walk; returns where it stopped. */
  passAtSight(bytes: string, start: number): number;
  /** Walks on from `start` to the end of `bytes`, or of the line that makes `isFinished` true; returns where it stopped. */
  walk(bytes: string, start: number): number;
  /** Walks through all of `bytes`; nothing is cut from the next object in them where `isUncut`. */
  walkAll(bytes: string, isUncut: boolean): void;
  /** The second half of a CRLF, behind a piece that ended between the two. */
  takeLf(): void;
  /** At a line's start, outside of any object. */
  readonly isBetween: boolean;
  /** The same, and every choice has had its `finish_reason`. */
  readonly isFinished: boolean;
  /** The member that may have to go, as far as it has come. */
  readonly held: string;
  /** At the body's end. */
  release(): void;
}

/** Where bytes go that have been walked. */
export interface CutTaker {
  emit(bytes: string): void;
}

/** For one stream. A top-level `usage` member goes with the comma before it (behind it, where it is the first); the rest goes to `to`. */
export function createUsageCut(strip: Strip, book: ChoiceBook, to: CutTaker): UsageCut {
  return new MemberCut(strip, book, to);
}

class MemberCut implements UsageCut {
  private readonly strip: Strip;
  private readonly to: CutTaker;
  private readonly choices: ChoicesWalk;
  private text = ''; // what is being walked
  private at = 0;
  private from = 0; // first byte of `text` that has not been emitted
  private limit = 0; // the line's end in `text`, or the end of `text`
  private walked = 0; // bytes walked before `text`
  held = ''; // of a member that may have to go: its bytes in earlier pieces
  private holdAt = -1; // and where it begins in `text`; -1 for none
  // The line and the object in its data:
  private place = LINE;
  private suspended = START; // the place to go on from in the next `data:` line of the event
  private matched = 0; // of `data:`, or of `null`
  private objectStart = 0;
  private isUncut = false;
  private isFirst = false; // no member has gone out before this one
  private key = '';
  private isUsage = false; // the member may have to go
  private isEscaped = false;

  constructor(strip: Strip, book: ChoiceBook, to: CutTaker) {
    this.strip = strip;
    this.choices = createChoicesWalk(book);
    this.to = to;
  }

  release(): void {
    if (this.held !== '') this.to.emit(this.held);
    this.held = '';
    this.holdAt = -1;
  }

  private cutOut(end: number): void {
    if (this.isTooLong(end)) {
      this.release();
      return;
    }
    this.to.emit(this.text.slice(this.from, this.holdAt));
    this.held = '';
    this.holdAt = -1;
    this.from = end;
  }

  private isTooLong(end: number): boolean {
    return this.walked + end - this.objectStart > MAX_EVENT_BYTES;
  }

  private breakOff(): void {
    this.release();
    this.place = this.suspended = OTHER;
  }

  /** Goes on behind the closing quote; false where the line or piece ends first. */
  private passString(): boolean {
    const quote = closingQuote(this.text, this.isEscaped ? this.at + 1 : this.at, this.limit);
    this.isEscaped = quote > this.limit;
    this.at = Math.min(quote + 1, this.limit);
    return quote < this.limit;
  }

  private beginKey(): void {
    if (this.place === FIRST_CUT) this.cutOut(this.at - 1);
    this.isFirst = this.place !== KEY;
    if (this.isFirst) this.holdAt = this.at - 1;
    this.key = '';
    this.place = IN_KEY;
  }

  private passKey(): void {
    const start = this.at;
    const isWhole = this.passString();
    const end = isWhole ? this.at - 1 : this.at;
    const length = this.key.length + end - start;
    if (isWhole ? length === 5 || length === 7 : length <= 7) this.key += this.text.slice(start, end);
    else this.key = '-';
    if (!isWhole) return;
    this.isUsage = this.key === 'usage';
    if (!this.isUsage) this.keepMember();
    this.place = COLON;
  }

  private keepMember(): void {
    this.release();
    this.isFirst = false;
  }

  private keepUsage(): void {
    this.keepMember();
    this.isUsage = false;
  }

  private beginValue(code: number): void {
    if (this.isUsage && !this.mayGo(code)) this.keepUsage();
    if (code === 34) this.place = STRING;
    else if (code === 123 || code === 91) this.beginNested(code);
    else if (isScalar(code)) {
      this.place = SCALAR;
      this.matched = 0;
      this.at--;
    } else this.breakOff();
  }

  /** Only what goes if it turns out whole is held any longer: `null`, zeros, and running totals. */
  private mayGo(code: number): boolean {
    return code === 110 ? this.strip.final : code === 123;
  }

  private beginNested(code: number): void {
    const isChoices = this.key === 'choices' && code === 91;
    this.choices.begin(isChoices);
    this.place = NESTED;
  }

  private passNested(): void {
    const start = this.at;
    this.at = this.choices.read(this.text, this.at, this.limit);
    // Not zeros, however it goes on.
    if (this.isUsage && !this.strip.running && /[1-9]/.test(this.text.slice(start, this.at))) this.keepUsage();
    if (!this.choices.isOpen) this.endNested();
  }

  private passScalar(): void {
    while (this.at < this.limit && isScalar(this.text.charCodeAt(this.at))) {
      if (this.isUsage && this.text.charCodeAt(this.at) !== 'null'.charCodeAt(this.matched++)) this.keepUsage();
      this.at++;
    }
    if (this.at < this.limit) this.endScalar();
  }

  private endScalar(): void {
    if (this.isUsage && this.matched !== 4) this.keepUsage();
    this.endValue();
  }

  private endNested(): void {
    if (this.isUsage && this.holdAt >= 0 && !this.strip.running && !isZeros(this.held + this.text.slice(this.holdAt, this.at)))
      this.keepUsage();
    this.endValue();
  }

  private endValue(): void {
    const goes = this.isUsage && this.holdAt >= 0;
    this.place = goes && this.isFirst ? FIRST_CUT : COMMA;
    if (goes && !this.isFirst) this.cutOut(this.at);
  }

  /** Takes one byte between tokens. */
  private step(): void {
    const code = this.text.charCodeAt(this.at++);
    if (this.place === COMMA && this.holdAt < 0 && (code === 44 || code === 32 || code === 9)) this.holdAt = this.at - 1;
    if (code === 32 || code === 9) return;
    if (this.place === VALUE) this.beginValue(code);
    else if (this.place === COLON && code === 58) this.place = VALUE;
    else if (this.place === COMMA && code === 44) this.place = KEY;
    else if (code === 34 && (this.place === KEY || this.place === FIRST_KEY || this.place === FIRST_CUT)) this.beginKey();
    else if (this.place === START && code === 123) this.beginObject();
    else if (code === 125 && (this.place === COMMA || this.place === FIRST_KEY || this.place === FIRST_CUT)) this.endObject();
    else if (this.place !== FIRST_CUT || code !== 44) this.breakOff();
  }

  private beginObject(): void {
    this.objectStart = this.isUncut ? -MAX_EVENT_BYTES : this.walked + this.at; // as if it were too long
    this.isUncut = false;
    this.place = FIRST_KEY;
  }

  private endObject(): void {
    if (this.place === FIRST_CUT) this.cutOut(this.at - 1);
    else this.release();
    this.place = END;
  }

  private readJson(): void {
    while (this.at < this.limit) {
      if (this.place === IN_KEY) this.passKey();
      else if (this.place === STRING) this.passString() && this.endValue();
      else if (this.place === NESTED) this.passNested();
      else if (this.place === SCALAR) this.passScalar();
      else if (this.place === OTHER) this.at = this.limit;
      else this.step();
    }
  }

  /** `data:` at the start of a line, byte by byte; a blank line ends the event. */
  private readLineStart(): void {
    const code = this.text.charCodeAt(this.at);
    if (code === DATA.charCodeAt(this.matched)) this.passDataByte();
    else if (code === BOM.charCodeAt(this.walked + this.at)) this.at++;
    else if (this.matched === 0 && (code === 10 || code === 13)) {
      this.release();
      this.suspended = START;
      this.at = nextLine(this.text, this.at);
    } else this.passOver();
  }

  private passDataByte(): void {
    this.at++;
    if (++this.matched < DATA.length) return;
    this.matched = 0;
    this.place = this.suspended === END ? START : this.suspended; // no blank line between events: SambaNova, DeepInfra
  }

  /** A line without data: an object that is open does not survive it. */
  private passOver(): void {
    this.release();
    this.matched = 0;
    this.place = OTHER;
    if (!this.isOutside()) this.suspended = OTHER;
  }

  private isOutside(): boolean {
    return this.suspended === START || this.suspended === END;
  }

  private readLine(): void {
    this.limit = lineEnd(this.text, this.at);
    this.readJson();
    if (this.limit < this.text.length) this.endLine();
  }

  private endLine(): void {
    if (this.place === SCALAR) this.endScalar();
    if (this.place === STRING || this.place === IN_KEY || (this.place === NESTED && this.choices.isInString)) this.breakOff();
    if (this.place !== OTHER) this.suspended = this.place;
    this.isEscaped = false;
    this.matched = 0;
    this.place = LINE;
    this.at = nextLine(this.text, this.limit);
  }

  get isBetween(): boolean {
    return this.place === LINE && this.matched === 0 && this.isOutside();
  }

  private ownIsFinished(): boolean {
    return this.isBetween && this.choices.areFinished;
  }

  passAtSight(bytes: string, start: number): number {
    if (!this.isBetween || this.isUncut) return start;
    const { end, out } = lookAt(bytes, start, this.strip.final, this.choices);
    if (end === start) return start;
    this.release();
    this.suspended = START;
    this.walked += end - start;
    this.to.emit(out);
    return end;
  }

  walk(bytes: string, start: number): number {
    this.text = bytes;
    this.at = this.from = start;
    this.walked -= start;
    this.holdAt = this.held === '' ? -1 : start;
    do {
      if (this.place === LINE) this.readLineStart();
      else this.readLine();
    } while (this.at < this.text.length && !this.ownIsFinished());
    this.settle();
    this.walked += this.at;
    this.text = '';
    return this.at;
  }

  walkAll(bytes: string, uncut: boolean): void {
    this.isUncut = uncut;
    for (let start = 0; start < bytes.length; ) start = this.walk(bytes, start);
  }

  /** Emits what has been walked, up to a member that may have to go. */
  private settle(): void {
    const isOther = this.place === IN_KEY && !'usage'.startsWith(this.key);
    if (isOther || this.isTooLong(this.at)) this.release();
    const end = this.holdAt < 0 ? this.at : this.holdAt;
    this.to.emit(this.text.slice(this.from, end));
    this.held += this.text.slice(end, this.at);
  }

  takeLf(): void {
    if (this.held === '') this.to.emit('\n');
    else this.held += '\n';
  }

  get isFinished(): boolean {
    return this.ownIsFinished();
  }
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

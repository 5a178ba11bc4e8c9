// Walks through the nested values of a chunk, and notes in its `choices` which of them have their `finish_reason`.
// RFC 8259; works on binary strings: one latin1 character per byte.
import type { ChoiceBook } from '../upstream/dialects/choice-book.ts';

export interface ChoicesWalk {
  /** Behind the opening bracket of an object or array; whether it is the array of choices. */
  begin(isChoices: boolean): void;
  /** Reads on in `text[start, limit)`; returns where it stopped: behind the closing bracket, or at `limit`. */
  read(text: string, start: number, limit: number): number;
  /** The closing bracket has not come. */
  readonly isOpen: boolean;
  readonly isInString: boolean;
  /** There were choices, and each has had its reason. */
  readonly areFinished: boolean;
  /** Where in `text[start, end)`, whole chunks, one of the choices may begin or end; `end` where none does: then they need not be read. */
  movedAt(text: string, start: number, end: number): number;
}

/** Members of a choice whose values count. */
const AWAITED = ['index', 'finish_reason'];

/** For the chunks of one stream, one nested value after the other. @param book where its choices are noted */
export function createChoicesWalk(book: ChoiceBook): ChoicesWalk {
  return new BracketWalk(book);
}

class BracketWalk implements ChoicesWalk {
  private readonly book: ChoiceBook;
  private text = '';
  private at = 0;
  private limit = 0;
  private depth = 0;
  private choiceDepth = 0; // of a choice's members; 0 outside of choices
  isInString = false;
  private isInKey = false;
  private isEscaped = false;
  private expectsKey = false;
  private key = ''; // of a choice
  private isAwaited = false; // the key's value, where it counts
  private index = 0;
  private hasFinish = false;

  constructor(book: ChoiceBook) {
    this.book = book;
  }

  begin(isChoices: boolean): void {
    this.depth = 1;
    this.choiceDepth = isChoices ? 2 : 0;
    this.isInString = this.isInKey = this.isEscaped = this.expectsKey = this.isAwaited = false;
  }

  read(bytes: string, start: number, end: number): number {
    this.text = bytes;
    this.at = start;
    this.limit = end;
    while (this.at < this.limit && this.depth > 0) {
      if (this.isInString) this.passString();
      else this.passTokens();
    }
    this.text = '';
    return this.at;
  }

  private passString(): void {
    const start = this.at;
    const quote = closingQuote(this.text, this.isEscaped ? this.at + 1 : this.at, this.limit);
    this.isEscaped = quote > this.limit;
    this.isInString = quote >= this.limit;
    this.at = Math.min(quote + 1, this.limit);
    if (this.isInKey) this.readKey(start, Math.min(quote, this.limit));
    else if (this.isAwaited) this.endReason(quote > start);
  }

  private readKey(start: number, end: number): void {
    const length = this.key.length + end - start;
    if (this.isInString ? length <= 13 : length === 5 || length === 13) this.key += this.text.slice(start, end);
    else this.key = '-';
    if (this.isInString) return;
    this.isInKey = false;
    // Not what was read itself: a slice would keep its chunk alive.
    this.key = AWAITED.find((name) => name === this.key) ?? '';
    this.isAwaited = this.key !== '';
  }

  /** Up to the next string, or the end of the value. */
  private passTokens(): void {
    while (this.at < this.limit) {
      const code = this.text.charCodeAt(this.at++);
      if (this.isAwaited) this.readValue(code);
      if (code === 34) {
        this.beginString();
        return;
      }
      if (code === 44) this.expectsKey = this.depth === this.choiceDepth;
      else if (code === 123 || code === 91) {
        if (++this.depth === this.choiceDepth) this.beginChoice(code);
      } else if (code === 125 || code === 93) {
        if (this.depth === this.choiceDepth) this.endChoice();
        if (--this.depth === 0) return;
      }
    }
  }

  private beginString(): void {
    this.isInString = true;
    this.isInKey = this.expectsKey;
    this.expectsKey = false;
    if (this.isInKey) this.key = '';
  }

  private beginChoice(code: number): void {
    this.expectsKey = code === 123;
    this.index = 0;
    this.hasFinish = false;
  }

  /** Takes a byte behind a key; forgets the key where its value is none that counts. */
  private readValue(code: number): void {
    if (code === 58 || code === 32 || code === 9) return;
    if (this.key === 'index' && code >= 48 && code <= 57) this.index = this.index * 10 + code - 48;
    else if (this.key !== 'finish_reason' || code !== 34) this.isAwaited = false;
  }

  private endReason(hasBytes: boolean): void {
    this.hasFinish = hasBytes; // '' is none
    this.isAwaited = false;
  }

  private endChoice(): void {
    this.expectsKey = this.isAwaited = false;
    if (this.hasFinish) this.book.end(this.index);
    else this.book.begin(this.index);
  }

  movedAt(text: string, start: number, end: number): number {
    // What has no index is the first.
    if (!this.book.isKnown(0)) return start;
    return reasonAt(text, start, this.unknownAt(text, start, end));
  }

  /** Of whatever has an index: of tool calls as well. */
  private unknownAt(text: string, start: number, end: number): number {
    for (let at = valueBehind(text, INDEX, start); at >= 0 && at < end; at = valueBehind(text, INDEX, at)) {
      const key = at - 1;
      let index = 0;
      for (let code = text.charCodeAt(at); code >= 48 && code <= 57; code = text.charCodeAt(++at)) index = index * 10 + code - 48;
      if (!this.book.isKnown(index)) return key;
    }
    return end;
  }

  get isOpen(): boolean {
    return this.depth > 0;
  }

  get areFinished(): boolean {
    return this.book.areEnded;
  }
}

/** How keys end. None can be written in another way: they are compared as they are written, here and where they are walked. */
const INDEX = 'index"';
const FINISH_REASON = 'finish_reason"';

/** Of a reason that is not null. */
function reasonAt(text: string, start: number, end: number): number {
  for (let at = valueBehind(text, FINISH_REASON, start); at >= 0 && at < end; at = valueBehind(text, FINISH_REASON, at)) {
    if (text.charCodeAt(at) !== 110) return at;
  }
  return end;
}

/**
 * Where the value begins of the next string that ends with these bytes; -1 for none. A key without its first quote is found in a
 * quarter of the time: V8 stops at each byte that is the first of what it looks for, and quotes are many. That a longer key ends so
 * as well costs a walk, and nothing else.
 */
function valueBehind(text: string, keyEnd: string, start: number): number {
  let at = text.indexOf(keyEnd, start);
  if (at < 0) return -1;
  at += keyEnd.length;
  for (let code = text.charCodeAt(at); code === 58 || code === 32 || code === 9; code = text.charCodeAt(at)) at++;
  return at;
}

/** Where a string ends that `start` is in; `limit` where it does not, and `limit + 1` where the first byte behind is escaped. */
export function closingQuote(text: string, start: number, limit: number): number {
  let at = start;
  for (; at < limit; at++) {
    const code = text.charCodeAt(at);
    if (code === 34) return at;
    if (code === 92) at++;
  }
  return at;
}

// Finds the raw text of chosen top-level members in one JSON object that comes in pieces, in bounded memory.
// RFC 8259; works on binary strings: one latin1 character per byte.

const QUOTE = 34;
const BACKSLASH = 92;

/** One occurrence of a wanted member, with byte offsets from the start of the document. */
export interface Member {
  /** The value's raw bytes (latin1); undefined where they were more than `maxValueBytes`. */
  readonly raw: string | undefined;
  /** Of the key's opening quote. */
  readonly keyStart: number;
  /** Of the value's first byte. */
  readonly valueStart: number;
  /** Behind the value's last byte. */
  readonly valueEnd: number;
  /** How often the key has occurred. More than once is legal, and read differently by different parsers. */
  readonly occurrences: number;
}

export interface TopLevelScanner {
  /** Looks at the next bytes (latin1), cut anywhere. Never throws: what is not an object becomes `isMalformed`. */
  scan(bytes: string): void;
  /** The raw text (latin1) of a wanted member's last value that is whole, if it is not longer than the bound. */
  value(key: string): string | undefined;
  member(key: string): Member | undefined;
  /** The object has been closed. */
  readonly isComplete: boolean;
  /** Not an object, or broken at its top level. Inside nested values only strings and depth are followed. */
  readonly isMalformed: boolean;
  /** Behind the opening brace; -1 before it came. */
  readonly bodyStart: number;
  /** Of the closing brace; -1 before it came. */
  readonly bodyEnd: number;
  /** No member has begun. */
  readonly isEmpty: boolean;
  /** A key differs from this wanted one in its case only: some parsers, Go's among them, take it for the same. */
  hasLookalike(key: string): boolean;
}

type Place = 'start' | 'firstKey' | 'key' | 'inKey' | 'colon' | 'value' | 'inString' | 'inScalar' | 'inNested' | 'comma' | 'end' | 'broken';

/**
 * A scanner for one document. `wanted` are keys as JSON.parse would give them; each value is kept up to `maxValueBytes`.
 * @param inner gets the value of one of them as it comes, whatever its length
 */
export function createTopLevelScanner(
  wanted: readonly string[],
  maxValueBytes: number,
  inner?: { readonly key: string; scan(bytes: string): void },
): TopLevelScanner {
  return new MemberScanner(wanted, maxValueBytes, inner);
}

interface Wanted {
  readonly keys: ReadonlySet<string>;
  /** Of the longest of them, all in escapes. */
  readonly maxBytes: number;
}

const wantedIn = new WeakMap<readonly string[], Wanted>();

/** Lists stand for many documents, so made once for each. */
function wantedOf(list: readonly string[]): Wanted {
  let wanted = wantedIn.get(list);
  if (wanted === undefined) {
    wanted = { keys: new Set(list), maxBytes: Math.max(0, ...list.map((key) => key.length * '\\u0000'.length)) };
    wantedIn.set(list, wanted);
  }
  return wanted;
}

class MemberScanner implements TopLevelScanner {
  private readonly wanted: Wanted;
  private readonly maxValueBytes: number;
  private readonly inner: { readonly key: string; scan(bytes: string): void } | undefined;
  private readonly members = new Map<string, Member>();
  private place: Place = 'start';
  private base = 0; // bytes in earlier pieces
  private text = '';
  private at = 0;
  private depth = 0; // below the top level
  private isQuoted = false; // within a string of a nested value
  private isEscaped = false; // the piece before ended on a backslash that escapes
  private mark = -1; // where in this piece the token that is kept began; -1 for none
  private kept: string | undefined = '';
  private keyStart = 0;
  private key: string | undefined; // the wanted key whose value is being read
  private valueStart = 0;
  bodyStart = -1;
  bodyEnd = -1;
  isEmpty = true;
  private lookalikes: Set<string> | undefined;

  constructor(wanted: readonly string[], maxValueBytes: number, inner: { readonly key: string; scan(bytes: string): void } | undefined) {
    this.wanted = wantedOf(wanted);
    this.maxValueBytes = maxValueBytes;
    this.inner = inner;
  }

  private keep(end: number, maxBytes: number): void {
    if (this.mark < 0) return;
    if (this.key !== undefined && this.key === this.inner?.key) this.inner.scan(this.text.slice(this.mark, end));
    if (this.kept !== undefined)
      this.kept = this.kept.length + end - this.mark > maxBytes ? undefined : this.kept + this.text.slice(this.mark, end);
    this.mark = -1;
  }

  private beginToken(start: number): void {
    this.mark = start;
    this.kept = '';
  }

  private endKey(): void {
    this.keep(this.at - 1, this.wanted.maxBytes);
    this.key = undefined;
    // A key may be written with escapes: "\u0075sage" is usage.
    if (this.kept !== undefined) this.readKey(decodeString(`"${this.kept}"`) ?? '');
    this.place = 'colon';
  }

  private readKey(name: string): void {
    const { keys } = this.wanted;
    const lower = name.toLowerCase();
    if (keys.has(name)) this.key = name;
    else if (keys.has(lower)) {
      this.lookalikes ??= new Set();
      this.lookalikes.add(lower);
    }
  }

  private beginValue(code: number): void {
    this.valueStart = this.base + this.at - 1;
    if (this.key !== undefined) this.beginToken(this.at - 1);
    if (code === QUOTE) this.place = 'inString';
    else if (code === 123 || code === 91) {
      this.depth = 1;
      this.place = 'inNested';
    } else this.place = isScalar(code) ? 'inScalar' : 'broken';
  }

  private endValue(): void {
    this.keep(this.at, this.maxValueBytes);
    if (this.key !== undefined) {
      const occurrences = (this.members.get(this.key)?.occurrences ?? 0) + 1;
      this.members.set(this.key, {
        raw: this.kept,
        keyStart: this.keyStart,
        valueStart: this.valueStart,
        valueEnd: this.base + this.at,
        occurrences,
      });
    }
    this.key = undefined;
    this.place = 'comma';
  }

  /** Goes on behind the closing quote of the string that `at` is in; false where this piece ends first. */
  private passString(): boolean {
    if (this.isEscaped) this.at++;
    this.isEscaped = false;
    for (;;) {
      const quote = this.text.indexOf('"', this.at);
      const end = quote < 0 ? this.text.length : quote;
      const isOdd = countBackslashes(this.text, this.at, end) % 2 === 1;
      this.at = quote < 0 ? end : quote + 1;
      if (quote < 0) this.isEscaped = isOdd;
      if (quote < 0 || !isOdd) return quote >= 0;
    }
  }

  private passNested(): boolean {
    while (this.at < this.text.length) {
      if (this.isQuoted) {
        if (!this.passString()) return false;
        this.isQuoted = false;
      }
      for (; this.at < this.text.length; this.at++) {
        const code = this.text.charCodeAt(this.at) | 32; // [ and {, ] and } differ in this bit only
        if (code === 123) this.depth++;
        else if (code === 125 && --this.depth === 0) {
          this.at++;
          return true;
        } else if (code === QUOTE && this.text.charCodeAt(this.at) === QUOTE) break;
      }
      if (this.at < this.text.length) this.isQuoted = true;
      if (this.isQuoted) this.at++;
    }
    return false;
  }

  private passScalar(): void {
    while (this.at < this.text.length && isScalar(this.text.charCodeAt(this.at))) this.at++;
    if (this.at < this.text.length) this.endValue();
  }

  private close(): void {
    this.bodyEnd = this.base + this.at - 1;
    this.place = 'end';
  }

  private beginKey(): void {
    this.isEmpty = false;
    this.keyStart = this.base + this.at - 1;
    this.beginToken(this.at);
    this.place = 'inKey';
  }

  /** Takes one byte between tokens. */
  private step(code: number): void {
    this.at++;
    if (code === 32 || code === 10 || code === 13 || code === 9) return;
    if (this.place === 'start' && code === 123) {
      this.bodyStart = this.base + this.at;
      this.place = 'firstKey';
    } else if ((this.place === 'firstKey' || this.place === 'key') && code === QUOTE) this.beginKey();
    else if ((this.place === 'firstKey' || this.place === 'comma') && code === 125) this.close();
    else if (this.place === 'comma' && code === 44) this.place = 'key';
    else if (this.place === 'colon' && code === 58) this.place = 'value';
    else if (this.place === 'value') this.beginValue(code);
    else this.place = 'broken';
  }

  scan(bytes: string): void {
    this.text = bytes;
    this.at = 0;
    if (this.key !== undefined || this.place === 'inKey') this.mark = isInToken(this.place) ? 0 : -1;
    while (this.at < this.text.length && this.place !== 'broken') {
      if (this.place === 'inKey') this.passString() && this.endKey();
      else if (this.place === 'inString') this.passString() && this.endValue();
      else if (this.place === 'inNested') this.passNested() && this.endValue();
      else if (this.place === 'inScalar') this.passScalar();
      else this.step(this.text.charCodeAt(this.at));
    }
    this.keep(this.text.length, this.place === 'inKey' ? this.wanted.maxBytes : this.maxValueBytes);
    this.base += this.text.length;
    this.text = '';
  }

  value(name: string): string | undefined {
    return this.members.get(name)?.raw;
  }

  member(name: string): Member | undefined {
    return this.members.get(name);
  }

  get isComplete(): boolean {
    return this.place === 'end';
  }

  get isMalformed(): boolean {
    return this.place === 'broken';
  }

  hasLookalike(name: string): boolean {
    return this.lookalikes?.has(name) ?? false;
  }
}

/** Numbers, true, false and null: whatever is neither structure nor whitespace nor a quote. */
function isScalar(code: number): boolean {
  return code > 32 && code !== QUOTE && code !== 44 && code !== 58 && code !== 91 && code !== 93 && code !== 123 && code !== 125;
}

function isInToken(place: Place): boolean {
  return place === 'inKey' || place === 'inString' || place === 'inScalar' || place === 'inNested';
}

/** Backslashes that stand right before `end`, not looking further back than `start`. */
function countBackslashes(text: string, start: number, end: number): number {
  let first = end;
  while (first > start && text.charCodeAt(first - 1) === BACKSLASH) first--;
  return end - first;
}

/** Without escapes, and of one byte a character: what most keys and names are. */
const PLAIN_STRING = /^"[ !#-[\]-~]*"$/;
const NOT_ASCII = /[\x80-\xff]/;

/** The text of a raw JSON string (latin1, with its quotes), or undefined where it is none. */
export function decodeString(raw: string): string | undefined {
  if (PLAIN_STRING.test(raw)) return raw.slice(1, -1);
  const value = decodeValue(raw);
  return typeof value === 'string' ? value : undefined;
}

/** JSON.parse of raw bytes (latin1) as UTF-8; undefined where they are not JSON. */
export function decodeValue(raw: string): unknown {
  try {
    return JSON.parse(NOT_ASCII.test(raw) ? Buffer.from(raw, 'latin1').toString('utf8') : raw);
  } catch {
    return undefined;
  }
}

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
  const members = new Map<string, Member>();
  const maxKeyBytes = Math.max(0, ...wanted.map((key) => key.length * 6));
  let place: Place = 'start';
  let base = 0; // bytes in earlier pieces
  let text = '';
  let at = 0;
  let depth = 0; // below the top level
  let isQuoted = false; // within a string of a nested value
  let isEscaped = false; // the piece before ended on a backslash that escapes
  let mark = -1; // where in this piece the token that is kept began; -1 for none
  let kept: string | undefined = '';
  let keyStart = 0;
  let key: string | undefined; // the wanted key whose value is being read
  let valueStart = 0;
  let bodyStart = -1;
  let bodyEnd = -1;
  let isEmpty = true;
  const lookalikes = new Set<string>();

  function keep(end: number, maxBytes: number): void {
    if (mark < 0) return;
    if (key !== undefined && key === inner?.key) inner.scan(text.slice(mark, end));
    if (kept !== undefined) kept = kept.length + end - mark > maxBytes ? undefined : kept + text.slice(mark, end);
    mark = -1;
  }

  function beginToken(start: number): void {
    mark = start;
    kept = '';
  }

  function endKey(): void {
    keep(at - 1, maxKeyBytes);
    key = undefined;
    // A key may be written with escapes: "\u0075sage" is usage.
    if (kept !== undefined) readKey(decodeString(`"${kept}"`) ?? '');
    place = 'colon';
  }

  function readKey(name: string): void {
    if (wanted.includes(name)) key = name;
    else if (wanted.includes(name.toLowerCase())) lookalikes.add(name.toLowerCase());
  }

  function beginValue(code: number): void {
    valueStart = base + at - 1;
    if (key !== undefined) beginToken(at - 1);
    if (code === QUOTE) place = 'inString';
    else if (code === 123 || code === 91) {
      depth = 1;
      place = 'inNested';
    } else place = isScalar(code) ? 'inScalar' : 'broken';
  }

  function endValue(): void {
    keep(at, maxValueBytes);
    if (key !== undefined) {
      const occurrences = (members.get(key)?.occurrences ?? 0) + 1;
      members.set(key, { raw: kept, keyStart, valueStart, valueEnd: base + at, occurrences });
    }
    key = undefined;
    place = 'comma';
  }

  /** Goes on behind the closing quote of the string that `at` is in; false where this piece ends first. */
  function passString(): boolean {
    if (isEscaped) at++;
    isEscaped = false;
    for (;;) {
      const quote = text.indexOf('"', at);
      const end = quote < 0 ? text.length : quote;
      const isOdd = countBackslashes(text, at, end) % 2 === 1;
      at = quote < 0 ? end : quote + 1;
      if (quote < 0) isEscaped = isOdd;
      if (quote < 0 || !isOdd) return quote >= 0;
    }
  }

  function passNested(): boolean {
    while (at < text.length) {
      if (isQuoted) {
        if (!passString()) return false;
        isQuoted = false;
      }
      for (; at < text.length; at++) {
        const code = text.charCodeAt(at) | 32; // [ and {, ] and } differ in this bit only
        if (code === 123) depth++;
        else if (code === 125 && --depth === 0) {
          at++;
          return true;
        } else if (code === QUOTE && text.charCodeAt(at) === QUOTE) break;
      }
      if (at < text.length) isQuoted = true;
      if (isQuoted) at++;
    }
    return false;
  }

  function passScalar(): void {
    while (at < text.length && isScalar(text.charCodeAt(at))) at++;
    if (at < text.length) endValue();
  }

  function close(): void {
    bodyEnd = base + at - 1;
    place = 'end';
  }

  function beginKey(): void {
    isEmpty = false;
    keyStart = base + at - 1;
    beginToken(at);
    place = 'inKey';
  }

  /** Takes one byte between tokens. */
  function step(code: number): void {
    at++;
    if (code === 32 || code === 10 || code === 13 || code === 9) return;
    if (place === 'start' && code === 123) {
      bodyStart = base + at;
      place = 'firstKey';
    } else if ((place === 'firstKey' || place === 'key') && code === QUOTE) beginKey();
    else if ((place === 'firstKey' || place === 'comma') && code === 125) close();
    else if (place === 'comma' && code === 44) place = 'key';
    else if (place === 'colon' && code === 58) place = 'value';
    else if (place === 'value') beginValue(code);
    else place = 'broken';
  }

  function scan(bytes: string): void {
    text = bytes;
    at = 0;
    if (key !== undefined || place === 'inKey') mark = isInToken(place) ? 0 : -1;
    while (at < text.length && place !== 'broken') {
      if (place === 'inKey') passString() && endKey();
      else if (place === 'inString') passString() && endValue();
      else if (place === 'inNested') passNested() && endValue();
      else if (place === 'inScalar') passScalar();
      else step(text.charCodeAt(at));
    }
    keep(text.length, place === 'inKey' ? maxKeyBytes : maxValueBytes);
    base += text.length;
    text = '';
  }

  return {
    scan,
    value: (name) => members.get(name)?.raw,
    member: (name) => members.get(name),
    get isComplete() {
      return place === 'end';
    },
    get isMalformed() {
      return place === 'broken';
    },
    get bodyStart() {
      return bodyStart;
    },
    get bodyEnd() {
      return bodyEnd;
    },
    get isEmpty() {
      return isEmpty;
    },
    hasLookalike: (name) => lookalikes.has(name),
  };
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

/** The text of a raw JSON string (latin1, with its quotes), or undefined where it is none. */
export function decodeString(raw: string): string | undefined {
  const value = decodeValue(raw);
  return typeof value === 'string' ? value : undefined;
}

/** JSON.parse of raw bytes (latin1) as UTF-8; undefined where they are not JSON. */
export function decodeValue(raw: string): unknown {
  try {
    return JSON.parse(Buffer.from(raw, 'latin1').toString('utf8'));
  } catch {
    return undefined;
  }
}

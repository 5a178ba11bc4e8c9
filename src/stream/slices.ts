// Finds where a text may be cut so that its slices have the tokens of the whole.
//
// OpenAI's encodings first split a text into words, runs of digits, of punctuation and of blanks, and then encode each apart: a cut
// between two of them changes nothing. The rules are o200k's and cl100k's: behind a letter, everything that is no letter begins
// anew, but for the ' of a contraction; so does a blank behind whatever is none, but for the line breaks behind punctuation.

/** How far back a cut is looked for; where there is none, as in Thai or in base64, a cut costs a token at most. */
const WINDOW = 512;
const LETTER = /\p{L}/u;
const NO_START = /[\p{L}\p{M}\p{Cs}'’\u200c\u200d]/u;

/** The last place not behind `end` where `text` may be cut; `end` itself where none is near, but for half a character. */
export function lastCut(text: string, end: number): number {
  for (let at = Math.min(end, text.length - 1); at > Math.max(0, end - WINDOW); at--) if (isCut(text, at)) return at;
  return isHighSurrogate(text.charCodeAt(end - 1)) ? end - 1 : end;
}

function isCut(text: string, at: number): boolean {
  const before = text.charCodeAt(at - 1);
  const behind = text.charCodeAt(at);
  if (behind === 32 || behind === 9) return !isBlank(before);
  return LETTER.test(text[at - 1]!) && !NO_START.test(text[at]!);
}

function isBlank(code: number): boolean {
  return (
    code === 32 || (code >= 9 && code <= 13) || code === 0xa0 || (code >= 0x2000 && code <= 0x200a) || code === 0x2028 || code === 0x3000
  );
}

function isHighSurrogate(code: number): boolean {
  return code >= 0xd800 && code < 0xdc00;
}

/** By code unit, filled as they come: a regular expression for each takes ten times as long. */
const kinds = new Uint8Array(65_536);

/** Byte pair encoding is quadratic in the length of a word (50,000 letters: 2 s): cut at so many characters. */
const MAX_WORD = 512;
const DIGITS = 3;

/**
 * The text in slices, cut only within words that are longer than the bound, be they letters, punctuation or blanks.
 * A cut costs half a token in 200, and none in a run of one character, whose tokens are powers of two long.
 */
export function cutLongWords(text: string): string[] {
  const slices: string[] = [];
  let start = 0; // of the slice
  let wordStart = 0;
  let kind = -1;
  for (let at = 0; at < text.length; at++) {
    const code = text.charCodeAt(at);
    const next = kinds[code] || learnKind(code);
    if (next !== kind) {
      kind = next;
      wordStart = at;
    } else if (at - wordStart >= MAX_WORD && kind !== DIGITS && !isHighSurrogate(text.charCodeAt(at - 1))) {
      slices.push(text.slice(start, at));
      start = wordStart = at;
    }
  }
  slices.push(text.slice(start));
  return slices;
}

function learnKind(code: number): number {
  kinds[code] = kindOf(code);
  return kinds[code]!;
}

/** What stands together in one word: letters and marks; blanks; digits, but only three of them; punctuation and the rest. */
function kindOf(code: number): number {
  const char = String.fromCharCode(code);
  if (/[\p{L}\p{M}]/u.test(char)) return 1;
  if (/\s/.test(char)) return 2;
  return /\p{N}/u.test(char) ? DIGITS : 4;
}

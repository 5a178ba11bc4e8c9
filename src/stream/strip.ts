// Takes out of an event stream the token usage that is in it only because Sluicegate asked, and holds back nothing else.
// WHATWG HTML 9.2.6 and RFC 8259; works on binary strings: one latin1 character per byte.
import type { Strip } from '../upstream/ask.ts';

export interface UsageStrip {
  /** Looks at the next bytes of the body (latin1), cut anywhere; returns what may go down now. */
  next(bytes: string): string;
  /** At the body's end: what was held. */
  rest(): string;
  readonly heldBytes: number;
}

/** An event that is longer goes by untouched from here on. */
const MAX_EVENT_BYTES = 1_048_576;
/** Beyond, indexes of choices are not believed. */
const MAX_CHOICES = 1024;
/** After so many lines that began in another way than the one before, only every sixteenth is learnt. */
const MAX_FRUITLESS = 8;
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
const CHOICES = 11; // in the array of that name
const COMMA = 12;
const FIRST_CUT = 13; // behind a value that goes together with the comma behind it
const END = 14;

type Wanted = '' | 'usage' | 'choices' | 'index' | 'finish_reason' | 'finish_string';

/**
 * For the answer to one call that was asked for usage on its client's behalf. A top-level `usage` member is cut out with the comma
 * before it (behind it, where it is the first). Once every choice has its `finish_reason`, each event is gathered until its data is whole, and
 * the usage chunk among them is left out: only then, because its `choices: []` may stand behind anything.
 */
export function createUsageStrip(strip: Strip): UsageStrip {
  let out = '';
  let text = ''; // what is being walked
  let at = 0;
  let from = 0; // first byte of `text` that is not in `out`
  let limit = 0; // the line's end in `text`, or the end of `text`
  let walked = 0; // bytes walked before `text`
  let held = ''; // of a member that may have to go: its bytes in earlier pieces
  let holdAt = -1; // and where it begins in `text`; -1 for none
  let isAfterCr = false;
  let crAt = -1;
  // The line and the object in its data:
  let place = LINE;
  let suspended = START; // the place to go on from in the next `data:` line of the event
  let matched = 0; // of `data:`, or of `null`
  let objectStart = 0;
  let isOversized = false;
  let isFirst = false; // no member has gone out before this one
  let wanted: Wanted = '';
  let token = ''; // of a key, in earlier pieces
  let isEscaped = false;
  let isQuoted = false;
  let depth = 0;
  let keepsUsage = false; // the usage chunk, where the client asked for it
  // The last line's beginning, up to its choices: equal bytes lead to the same place, and need not be walked again.
  let known = '';
  let knownObject = 0; // where its object begins
  let fruitless = 0;
  let lineAt = -1; // where the line began in `text`; -1 where in an earlier piece
  // Choices:
  let expectsKey = false;
  let isInChoiceKey = false;
  let choiceIndex = 0;
  let hasFinish = false;
  const open = new Set<number>();
  const finished = new Set<number>();
  // Once all are finished:
  let isGathering = false;
  let line = ''; // not whole yet
  let isComment = false;
  let gathered = ''; // whole lines of an event
  let comments = ''; // those among them
  let data: string | undefined;
  let dropping: 'nothing' | 'rest' | 'blanks' = 'nothing';
  let isLfDropped = false;
  let isCommentLast = false; // of what was gathered

  function release(): void {
    out += held;
    held = '';
    holdAt = -1;
  }

  function cutOut(end: number): void {
    if (walked + end - objectStart > MAX_EVENT_BYTES) {
      release();
      return;
    }
    out += text.slice(from, holdAt);
    held = '';
    holdAt = -1;
    from = end;
  }

  function breakOff(): void {
    release();
    place = OTHER;
    suspended = OTHER;
  }

  function lineEnd(bytes: string, start: number): number {
    if (crAt >= 0 && crAt < start) crAt = bytes.indexOf('\r', start);
    const lf = bytes.indexOf('\n', start);
    const end = crAt >= 0 && (lf < 0 || crAt < lf) ? crAt : lf;
    return end < 0 ? bytes.length : end;
  }

  /** Behind the line break at `end`. */
  function nextLine(bytes: string, end: number): number {
    if (bytes.charCodeAt(end) === 10) return end + 1;
    isAfterCr = end + 1 === bytes.length;
    return bytes.charCodeAt(end + 1) === 10 ? end + 2 : end + 1;
  }

  /** Goes on behind the closing quote; false where the line or piece ends first. */
  function passString(): boolean {
    if (isEscaped) {
      isEscaped = false;
      at++;
    }
    const bytes = text; // locals: 1.3 times as fast over an event
    const end = limit;
    let i = at;
    for (; i < end; i++) {
      const code = bytes.charCodeAt(i);
      if (code === 34) {
        at = i + 1;
        return true;
      }
      if (code === 92) i++;
    }
    isEscaped = i > end;
    at = end;
    return false;
  }

  /** Reads on in a key; false where it is not whole. `wanted` becomes the key, if it is one of the two. */
  function passKey(first: Wanted, second: Wanted): boolean {
    const start = at;
    const isWhole = passString();
    const end = isWhole ? at - 1 : at;
    const length = token.length + end - start;
    const isOther = isWhole ? length !== first.length && length !== second.length : length > second.length;
    const key = isOther ? '-' : token + text.slice(start, end);
    token = isWhole ? '' : key;
    wanted = isWhole && key === first ? first : isWhole && key === second ? second : '';
    return isWhole;
  }

  function endKey(): void {
    if (wanted !== 'usage') {
      release();
      isFirst = false;
    }
    place = COLON;
  }

  function beginValue(code: number): void {
    if (wanted === 'usage') judgeUsage(code);
    isQuoted = false;
    matched = 0;
    if (code === 34) place = STRING;
    else if (code === 123 || code === 91) {
      depth = 1;
      expectsKey = isInChoiceKey = false;
      place = NESTED;
      if (wanted === 'choices' && code === 91) beginChoices();
    } else if (isScalar(code)) {
      place = SCALAR;
      at--;
    } else breakOff();
    if (wanted === 'choices') wanted = '';
  }

  function beginChoices(): void {
    place = CHOICES;
    if (lineAt < from || held !== '' || objectStart < 0) return;
    if (++fruitless > MAX_FRUITLESS && fruitless % 16 !== 0) return;
    known = Buffer.from(text.slice(lineAt, at), 'latin1').toString('latin1'); // a slice would keep the whole piece
    knownObject = objectStart - walked - lineAt;
  }

  /** Goes to the choices at once, where the line begins as the last one did: 0.5 µs of 0.9 for an event of 330 bytes. */
  function skipKnown(): boolean {
    lineAt = at;
    if (known === '' || isOversized || (suspended !== START && suspended !== END)) return false;
    const end = at + known.length;
    if (text.slice(at, end) !== known) return false;
    objectStart = walked + at + knownObject;
    at = end;
    fruitless = 0;
    depth = 1;
    wanted = '';
    isFirst = expectsKey = isInChoiceKey = isQuoted = false;
    place = CHOICES;
    return true;
  }

  /** Only what goes if it turns out whole is held any longer: `null`, and running totals. */
  function judgeUsage(code: number): void {
    const mayGo = code === 110 ? strip.final : code === 123 && strip.running && !keepsUsage;
    if (!mayGo) keepUsage();
  }

  function endValue(): void {
    const goes = wanted === 'usage' && holdAt >= 0;
    wanted = '';
    place = goes && isFirst ? FIRST_CUT : COMMA;
    if (goes && !isFirst) cutOut(at);
  }

  function passScalar(): void {
    while (at < limit && isScalar(text.charCodeAt(at))) {
      if (wanted === 'usage' && text.charCodeAt(at) !== 'null'.charCodeAt(matched++)) keepUsage();
      at++;
    }
    if (at < limit) endScalar();
  }

  function endScalar(): void {
    if (wanted === 'usage' && matched !== 4) keepUsage();
    endValue();
  }

  function keepUsage(): void {
    release();
    isFirst = false;
    wanted = '';
  }

  function passNested(): boolean {
    while (at < limit) {
      if (isQuoted && !passString()) return false;
      isQuoted = false;
      while (at < limit) {
        const code = text.charCodeAt(at++);
        if (code === 34) {
          isQuoted = true;
          break;
        }
        if (code === 123 || code === 91) depth++;
        else if ((code === 125 || code === 93) && --depth === 0) return true;
      }
    }
    return false;
  }

  /** As passNested, with an eye on `index` and `finish_reason` of each choice. */
  function passChoices(): boolean {
    while (at < limit) {
      if (isInChoiceKey) {
        if (!passKey('index', 'finish_reason')) return false;
        isInChoiceKey = false;
      } else if (isQuoted) {
        if (wanted === 'finish_string') hasFinish = text.charCodeAt(at) !== 34; // '' is none
        if (wanted === 'finish_string') wanted = '';
        if (!passString()) return false;
        isQuoted = false;
      }
      while (at < limit) {
        const code = text.charCodeAt(at++);
        if (wanted !== '') readChoiceValue(code);
        if (code === 34) {
          isInChoiceKey = expectsKey;
          isQuoted = !expectsKey;
          expectsKey = false;
          break;
        }
        if (code === 44) {
          if (depth === 2) expectsKey = true;
        } else if (code === 123 || code === 91) {
          if (++depth === 2) beginChoice(code);
        } else if (code === 125 || code === 93) {
          if (depth === 2) endChoice();
          if (--depth === 0) return true;
        }
      }
    }
    return false;
  }

  function beginChoice(code: number): void {
    expectsKey = code === 123;
    choiceIndex = 0;
    hasFinish = false;
  }

  function readChoiceValue(code: number): void {
    if (code === 58 || code === 32 || code === 9) return;
    const isDigit = code >= 48 && code <= 57;
    if (wanted === 'index' && isDigit) choiceIndex = choiceIndex * 10 + code - 48;
    else wanted = wanted === 'finish_reason' && code === 34 ? 'finish_string' : '';
  }

  function endChoice(): void {
    expectsKey = false;
    wanted = '';
    if (hasFinish) {
      open.delete(choiceIndex);
      if (finished.size < MAX_CHOICES) finished.add(choiceIndex);
    } else if (!open.has(choiceIndex) && !finished.has(choiceIndex) && open.size < MAX_CHOICES) open.add(choiceIndex);
  }

  /** Takes one byte between tokens. */
  function step(): void {
    const code = text.charCodeAt(at++);
    if (code === 32 || code === 9) {
      if (place === COMMA && holdAt < 0) holdAt = at - 1;
      return;
    }
    if (place === VALUE) beginValue(code);
    else if (place === COLON && code === 58) place = VALUE;
    else if (place === COMMA && code === 44) {
      if (holdAt < 0) holdAt = at - 1;
      place = KEY;
    } else if (code === 34 && (place === KEY || place === FIRST_KEY || place === FIRST_CUT)) beginKey();
    else if (place === START && code === 123) beginObject();
    else if (code === 125 && (place === COMMA || place === FIRST_KEY || place === FIRST_CUT)) {
      if (place === FIRST_CUT) cutOut(at - 1);
      else release();
      place = END;
    } else if (place !== FIRST_CUT || code !== 44) breakOff();
  }

  function beginObject(): void {
    objectStart = isOversized ? -MAX_EVENT_BYTES : walked + at;
    isOversized = false;
    place = FIRST_KEY;
  }

  function beginKey(): void {
    if (place === FIRST_CUT) cutOut(at - 1);
    isFirst = place !== KEY;
    if (isFirst) holdAt = at - 1;
    token = '';
    place = IN_KEY;
  }

  function readJson(): void {
    while (at < limit) {
      if (place === IN_KEY) passKey('usage', 'choices') && endKey();
      else if (place === STRING) passString() && endValue();
      else if (place === NESTED) passNested() && endValue();
      else if (place === CHOICES) passChoices() && endValue();
      else if (place === SCALAR) passScalar();
      else if (place === OTHER) at = limit;
      else step();
    }
  }

  /** `data:` at the start of a line, byte by byte; a blank line ends the event. */
  function readLineStart(): void {
    const code = text.charCodeAt(at);
    if (code === DATA.charCodeAt(matched)) {
      if (matched === 0 && skipKnown()) return;
      at++;
      if (++matched < DATA.length) return;
      matched = 0;
      place = suspended;
      if (place === END) place = START; // no blank line between events: SambaNova, DeepInfra
    } else if (code === BOM.charCodeAt(walked + at)) at++;
    else if (matched === 0 && (code === 10 || code === 13)) {
      release();
      suspended = START;
      at = nextLine(text, at);
    } else {
      if (held !== '' || holdAt >= 0) release();
      matched = 0;
      place = OTHER;
      if (suspended !== END && suspended !== START) suspended = OTHER;
    }
  }

  function endLine(isData: boolean): void {
    if (place === SCALAR) endScalar();
    if (place === STRING || place === IN_KEY || isQuoted || isInChoiceKey) breakOff();
    if (isData) suspended = place;
    isQuoted = isInChoiceKey = isEscaped = false;
    matched = 0;
    place = LINE;
    at = nextLine(text, limit);
  }

  /** Walks from `start` to the end of `bytes`, or of the line in which the last choice finished; returns where it stopped. */
  function walk(bytes: string, start: number, isReleased: boolean): number {
    text = bytes;
    at = from = start;
    lineAt = -1;
    walked -= start;
    holdAt = held === '' ? -1 : start;
    while (at < text.length) {
      if (place === LINE) readLineStart();
      else if (!readLine()) break;
      if (isReleased || place !== LINE || matched > 0 || !isFinished()) continue;
      isGathering = true;
      break;
    }
    settle();
    walked += at;
    isLfDropped = false;
    text = '';
    return at;
  }

  /** Reads on in a line; false where it is not whole. */
  function readLine(): boolean {
    const isData = place !== OTHER || suspended === OTHER;
    limit = lineEnd(text, at);
    readJson();
    if (limit === text.length) return false;
    endLine(isData);
    return true;
  }

  /** Every choice, and no object has begun. */
  function isFinished(): boolean {
    return finished.size > 0 && open.size === 0 && (suspended === END || suspended === START);
  }

  function settle(): void {
    if (holdAt < 0) {
      out += from === 0 && at === text.length ? text : text.slice(from, at);
      return;
    }
    const isOut = (place === IN_KEY && !'usage'.startsWith(token)) || walked + at - objectStart > MAX_EVENT_BYTES;
    if (isOut) {
      release();
      out += text.slice(from, at);
    } else {
      out += text.slice(from, holdAt);
      held += text.slice(holdAt, at);
    }
  }

  /** Takes one line, or what has come of it; returns where it stopped. */
  function gather(bytes: string, start: number): number {
    const end = lineEnd(bytes, start);
    const isWhole = end < bytes.length;
    const after = isWhole ? nextLine(bytes, end) : end;
    const isBlank = end === start && line === '' && !isComment;
    if (line === '' && !isComment) isComment = bytes.charCodeAt(start) === 58;
    if (isComment && gathered === '') out += bytes.slice(start, after);
    else line += bytes.slice(start, after);
    if (isComment && dropping === 'blanks') dropping = 'nothing';
    if (isWhole) isLfDropped = takeLine(isBlank);
    else if (gathered.length + line.length > MAX_EVENT_BYTES) pass(true);
    return after;
  }

  /** Returns whether the line has been left out. */
  function takeLine(isBlank: boolean): boolean {
    const whole = line;
    isCommentLast = isComment && gathered !== '';
    const wasComment = isComment;
    line = '';
    isComment = false;
    if (wasComment) {
      gathered += whole; // both '' where it has gone down already
      comments += whole;
      return false;
    }
    const value = dataOf(whole);
    if (isDropped(isBlank, value !== undefined)) return true;
    gathered += whole;
    if (value !== undefined) takeData(value);
    else if (isBlank) endEvent();
    return dropping !== 'nothing';
  }

  /** Whether a line belongs to the usage chunk that was left out: what is behind its data, up to the blank lines. */
  function isDropped(isBlank: boolean, isData: boolean): boolean {
    if (dropping === 'nothing') return false;
    if (isBlank) dropping = 'blanks';
    else if (isData || dropping === 'blanks') dropping = 'nothing';
    return dropping !== 'nothing';
  }

  /** Most data is one line. More are joined and judged once, at the event's end, or it would be quadratic. */
  function takeData(value: string): void {
    const isOne = data === undefined;
    data = isOne ? value : `${data}\n${value}`;
    if (gathered.length > MAX_EVENT_BYTES) pass(true);
    else if (isOne) settleEvent(judge(data));
  }

  function endEvent(): void {
    if (data === undefined || judge(data) !== 'usage') pass();
    else drop('blanks');
  }

  function settleEvent(verdict: 'usage' | 'partial' | 'other'): void {
    if (verdict === 'usage') drop('rest');
    else if (verdict === 'other') pass();
  }

  function drop(next: 'rest' | 'blanks'): void {
    if (!strip.final) {
      keepsUsage = true;
      pass();
      keepsUsage = false;
      return;
    }
    out += comments;
    gathered = comments = '';
    data = undefined;
    dropping = next;
  }

  /** Lets go what was gathered, by the way of all events. */
  function pass(isTooLong = false): void {
    const bytes = gathered + line;
    gathered = comments = line = '';
    isComment = isCommentLast = false;
    data = undefined;
    isOversized = isTooLong;
    const outer = { isAfterCr, crAt };
    crAt = bytes.indexOf('\r');
    walk(bytes, 0, true);
    ({ isAfterCr, crAt } = outer);
    isGathering = place === LINE && open.size === 0;
  }

  /** The second half of a CRLF goes where the first has gone. */
  function takeLf(): void {
    if (isCommentLast) comments += '\n';
    if (gathered !== '') gathered += '\n';
    else if (held !== '') held += '\n';
    else if (!isLfDropped) out += '\n';
  }

  return {
    next(bytes) {
      out = '';
      let start = 0;
      if (isAfterCr && bytes !== '') {
        isAfterCr = false;
        if (bytes.charCodeAt(0) === 10) {
          takeLf();
          start = 1;
        }
      }
      crAt = bytes.indexOf('\r', start);
      while (start < bytes.length) start = isGathering ? gather(bytes, start) : walk(bytes, start, false);
      return out;
    },
    rest() {
      const bytes = gathered + line + held;
      gathered = line = held = '';
      return bytes;
    },
    get heldBytes() {
      return gathered.length + line.length + held.length;
    },
  };
}

/** Numbers, true, false and null: whatever is neither structure nor whitespace nor a quote. */
function isScalar(code: number): boolean {
  return code > 32 && code !== 34 && code !== 44 && code !== 58 && code !== 91 && code !== 93 && code !== 123 && code !== 125;
}

/** The value of a `data` line, without its line break; undefined for other lines. */
function dataOf(line: string): string | undefined {
  return /^data:?([^\r\n]*)/.exec(line)?.[1];
}

/** `usage` is the chunk that include_usage adds; `partial` what may become one with the next data line. */
function judge(data: string): 'usage' | 'partial' | 'other' {
  if (!/^[ \t\n]*(?:\{|$)/.test(data)) return 'other';
  try {
    const event = JSON.parse(Buffer.from(data, 'latin1').toString('utf8'));
    const isUsage = Array.isArray(event.choices) && event.choices.length === 0 && typeof event.usage === 'object' && event.usage !== null;
    return isUsage ? 'usage' : 'other';
  } catch {
    return 'partial';
  }
}

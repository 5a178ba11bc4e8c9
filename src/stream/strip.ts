// Takes out of an event stream the token usage that is in it only because Sluicegate asked, and holds back nothing else.
// WHATWG HTML 9.2.6; works on binary strings: one latin1 character per byte.
import type { Strip } from '../upstream/ask.ts';
import { createUsageCut, lineEnd, MAX_EVENT_BYTES, nextLine } from './usage-cut.ts';

export interface UsageStrip {
  /** Looks at the next bytes of the body (latin1), cut anywhere; returns what may go down now. */
  next(bytes: string): string;
  /** At the body's end: what was held. */
  rest(): string;
  readonly heldBytes: number;
}

/**
 * For the answer to one call that was asked for usage on its client's behalf. `usage` members are cut out as the bytes pass. Once
 * every choice has its `finish_reason`, each event is gathered until its data is whole, and the usage chunk among them is left
 * out: only then, because its `choices: []` may stand behind anything. A usage chunk whose data line never ends goes down with the rest.
 */
export function createUsageStrip(strip: Strip): UsageStrip {
  let out = '';
  let endsInCr = false;
  const cut = createUsageCut(strip, emit);
  let line = ''; // not whole yet
  let isMidLine = false;
  let isComment = false; // the line, or the last one that was whole
  let gathered = ''; // whole lines of an event
  let comments = ''; // those among them
  let data: string | undefined;
  let dropping: 'nothing' | 'rest' | 'blanks' = 'nothing'; // of the usage chunk, behind its data

  function emit(bytes: string): void {
    out += bytes;
  }

  /** Takes one line, or what has come of it; returns where it stopped. A comment goes down at once, unless it is within an event. */
  function gather(bytes: string, start: number): number {
    const end = lineEnd(bytes, start);
    const next = nextLine(bytes, end);
    if (!isMidLine) isComment = bytes.charCodeAt(start) === 58;
    isMidLine = end === bytes.length;
    if (isComment && gathered === '') emit(bytes.slice(start, next));
    else line += bytes.slice(start, next);
    if (isComment && dropping === 'blanks') dropping = 'nothing';
    if (!isMidLine) takeLine();
    else if (gathered.length + line.length > MAX_EVENT_BYTES) pass(true);
    return next;
  }

  function takeLine(): void {
    const whole = line;
    line = '';
    if (isComment) {
      gathered += whole; // both '' where it has gone down already
      comments += whole;
    } else takeField(whole, dataOf(whole));
  }

  function takeField(whole: string, value: string | undefined): void {
    const isBlank = /^[\r\n]/.test(whole);
    if (dropping !== 'nothing') goOnDropping(isBlank, value !== undefined);
    if (dropping !== 'nothing') return;
    gathered += whole;
    if (value !== undefined) takeData(value);
    else if (isBlank) endEvent();
  }

  /** To the usage chunk belong the fields behind its data, and the blank lines behind them. */
  function goOnDropping(isBlank: boolean, isData: boolean): void {
    if (isBlank) dropping = 'blanks';
    else if (isData || dropping === 'blanks') dropping = 'nothing';
  }

  /** Most data is one line. More are joined and judged once, at the event's end, or it would be quadratic. */
  function takeData(value: string): void {
    const isOne = data === undefined;
    data = isOne ? value : `${data}\n${value}`;
    const isTooLong = gathered.length > MAX_EVENT_BYTES;
    const verdict = isOne && !isTooLong ? judge(data) : 'partial';
    if (verdict === 'usage') drop('rest');
    else if (isTooLong || verdict === 'other') pass(isTooLong);
  }

  function endEvent(): void {
    if (data !== undefined && judge(data) === 'usage') drop('blanks');
    else pass(false);
  }

  /** Leaves the usage chunk out; or lets it go as it is, where the client asked for it. */
  function drop(next: 'rest' | 'blanks'): void {
    if (!strip.final) {
      pass(true);
      return;
    }
    emit(comments);
    forget();
    dropping = next;
  }

  /** Lets go what was gathered, by the way of all events. */
  function pass(isUncut: boolean): void {
    const bytes = gathered + line;
    forget();
    cut.walkAll(bytes, isUncut);
  }

  function forget(): void {
    gathered = comments = line = '';
    data = undefined;
    dropping = 'nothing';
    isMidLine = false;
  }

  /** The second half of a CRLF goes where the first has gone. */
  function takeLf(): void {
    if (gathered !== '') gathered += '\n';
    if (gathered !== '' && isComment) comments += '\n';
    if (gathered === '' && (isComment || dropping === 'nothing')) cut.takeLf();
  }

  return {
    next(bytes) {
      out = '';
      let start = endsInCr && bytes.startsWith('\n') ? 1 : 0;
      if (start === 1) takeLf();
      if (bytes !== '') endsInCr = bytes.endsWith('\r');
      while (start < bytes.length) start = cut.isFinished ? gather(bytes, start) : cut.walk(bytes, start);
      return out;
    },
    rest() {
      out = '';
      cut.release();
      const bytes = out + gathered + line;
      forget();
      return bytes;
    },
    get heldBytes() {
      return cut.held.length + gathered.length + line.length;
    },
  };
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

// Takes out of an event stream the token usage that is in it only because Sluicegate asked, and holds back nothing else.
// WHATWG HTML 9.2.6; works on binary strings: one latin1 character per byte.
import type { Strip } from '../upstream/ask.ts';
import type { ChoiceBook } from '../upstream/dialects/choice-book.ts';
import { MAX_EVENT_BYTES } from './at-sight.ts';
import { type CutTaker, createUsageCut, lineEnd, nextLine, type UsageCut } from './usage-cut.ts';

/** A read is cut anywhere, and may hold a stream's first event or its last: three events to walk through, and the rest at sight. */
const MAX_LOOKS = 3;

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
 * @param book an empty one, where the choices are noted
 */
export function createUsageStrip(strip: Strip, book: ChoiceBook): UsageStrip {
  return new GatheringStrip(strip, book);
}

class GatheringStrip implements UsageStrip, CutTaker {
  private readonly strip: Strip;
  private out = '';
  private endsInCr = false;
  private readonly cut: UsageCut;
  private line = ''; // not whole yet
  private isMidLine = false;
  private isComment = false; // the line, or the last one that was whole
  private gathered = ''; // whole lines of an event
  private comments = ''; // those among them
  private data: string | undefined;
  private dropping: 'nothing' | 'rest' | 'blanks' = 'nothing'; // of the usage chunk, behind its data

  constructor(strip: Strip, book: ChoiceBook) {
    this.strip = strip;
    this.cut = createUsageCut(strip, book, this);
  }

  emit(bytes: string): void {
    this.out += bytes;
  }

  /** Takes one line, or what has come of it; returns where it stopped. A comment goes down at once, unless it is within an event. */
  private gather(bytes: string, start: number): number {
    const end = lineEnd(bytes, start);
    const next = nextLine(bytes, end);
    if (!this.isMidLine) this.isComment = bytes.charCodeAt(start) === 58;
    this.isMidLine = end === bytes.length;
    if (this.isComment && this.gathered === '') this.emit(bytes.slice(start, next));
    else this.line += bytes.slice(start, next);
    if (this.isComment && this.dropping === 'blanks') this.dropping = 'nothing';
    if (!this.isMidLine) this.takeLine();
    else if (this.gathered.length + this.line.length > MAX_EVENT_BYTES) this.pass(true);
    return next;
  }

  private takeLine(): void {
    const whole = this.line;
    this.line = '';
    if (this.isComment) {
      this.gathered += whole; // both '' where it has gone down already
      this.comments += whole;
    } else this.takeField(whole, dataOf(whole));
  }

  private takeField(whole: string, value: string | undefined): void {
    const isBlank = /^[\r\n]/.test(whole);
    if (this.dropping !== 'nothing') this.goOnDropping(isBlank, value !== undefined);
    if (this.dropping !== 'nothing') return;
    this.gathered += whole;
    if (value !== undefined) this.takeData(value);
    else if (isBlank) this.endEvent();
  }

  /** To the usage chunk belong the fields behind its data, and the blank lines behind them. */
  private goOnDropping(isBlank: boolean, isData: boolean): void {
    if (isBlank) this.dropping = 'blanks';
    else if (isData || this.dropping === 'blanks') this.dropping = 'nothing';
  }

  /** Most data is one line. More are joined and judged once, at the event's end, or it would be quadratic. */
  private takeData(value: string): void {
    const isOne = this.data === undefined;
    this.data = isOne ? value : `${this.data}\n${value}`;
    const isTooLong = this.gathered.length > MAX_EVENT_BYTES;
    const verdict = isOne && !isTooLong ? judge(this.data) : 'partial';
    if (verdict === 'usage') this.drop('rest');
    else if (isTooLong || verdict === 'other') this.pass(isTooLong);
  }

  private endEvent(): void {
    if (this.data !== undefined && judge(this.data) === 'usage') this.drop('blanks');
    else this.pass(false);
  }

  /** Leaves the usage chunk out; or lets it go as it is, where the client asked for it. */
  private drop(next: 'rest' | 'blanks'): void {
    if (!this.strip.final) {
      this.pass(true);
      return;
    }
    this.emit(this.comments);
    this.forget();
    this.dropping = next;
  }

  /** Lets go what was gathered, by the way of all events. */
  private pass(isUncut: boolean): void {
    const bytes = this.gathered + this.line;
    this.forget();
    this.cut.walkAll(bytes, isUncut);
  }

  private forget(): void {
    this.gathered = this.comments = this.line = '';
    this.data = undefined;
    this.dropping = 'nothing';
    this.isMidLine = false;
  }

  /** The second half of a CRLF goes where the first has gone. */
  private takeLf(): void {
    if (this.gathered !== '') this.gathered += '\n';
    if (this.gathered !== '' && this.isComment) this.comments += '\n';
    if (this.gathered === '' && (this.isComment || this.dropping === 'nothing')) this.cut.takeLf();
  }

  next(bytes: string): string {
    const isBehindCr = this.endsInCr;
    let at = isBehindCr && bytes.startsWith('\n') ? 1 : 0;
    if (at === 1) this.takeLf();
    if (bytes !== '') this.endsInCr = bytes.endsWith('\r');
    for (let looks = isBehindCr ? 0 : MAX_LOOKS; looks > 0 && at < bytes.length && !this.cut.isFinished; looks--) {
      at = this.cut.passAtSight(bytes, at);
      if (at < bytes.length) at += this.cut.walk(bytes.slice(at, endOfEvent(bytes, at)), 0);
    }
    while (at < bytes.length) at = this.cut.isFinished ? this.gather(bytes, at) : this.cut.walk(bytes, at);
    return this.take();
  }

  private take(): string {
    const bytes = this.out;
    this.out = '';
    return bytes;
  }

  rest(): string {
    this.cut.release();
    const bytes = this.take() + this.gathered + this.line;
    this.forget();
    return bytes;
  }

  get heldBytes(): number {
    return this.cut.held.length + this.gathered.length + this.line.length;
  }
}

/** Behind the next blank line, or at the end. */
function endOfEvent(bytes: string, start: number): number {
  const blank = bytes.indexOf('\n\n', start);
  return blank < 0 ? bytes.length : blank + 2;
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

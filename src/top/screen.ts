// The live page's figures as lines of a terminal, as wide and as high as there is room for.
import type { EndingView, StreamView, UpstreamView, View } from '../telemetry/view.ts';

/** How much room there is; Infinity where nobody counts. */
export interface Room {
  readonly columns: number;
  readonly rows: number;
}

interface Column<T> {
  readonly title: string;
  readonly isNumber?: boolean;
  /** Where there is no room for all, those with the highest rank go first. */
  readonly rank: number;
  text(item: T): string;
}

const GAP = '  ';
const MAX_CELL = 28;
/** Of endings that are shown where there is room for more. */
const ENDINGS = 10;
/** Lines that a table takes besides its rows: a blank one and its head. */
const TABLE_LINES = 2;

const STATES: Readonly<Record<string, string>> = {
  upload: 'sending',
  connect: 'connecting',
  headers: 'waiting',
  stream: 'streaming',
  backpressure: 'slow client',
};

const streamColumns: readonly Column<StreamView>[] = [
  { title: 'STATE', rank: 3, text: ({ phase, isUnheard }) => (isUnheard ? 'client left' : (STATES[phase] ?? phase)) },
  { title: 'CLIENT', rank: 0, text: ({ client }) => client },
  { title: 'MODEL', rank: 1, text: ({ model = '-' }) => model },
  { title: 'UPSTREAM', rank: 4, text: ({ upstream = '-' }) => upstream },
  { title: 'TOKENS', rank: 1, isNumber: true, text: ({ tokens }) => formatCount(tokens) },
  { title: 'TOK/S', rank: 2, isNumber: true, text: ({ tokensPerSecond }) => formatRate(tokensPerSecond) },
  { title: 'FIRST', rank: 5, isNumber: true, text: ({ ttftMs }) => formatTime(ttftMs) },
  { title: 'AGE', rank: 2, isNumber: true, text: ({ ageMs }) => formatSpan(ageMs) },
];

const upstreamColumns: readonly Column<UpstreamView>[] = [
  { title: 'UPSTREAM', rank: 0, text: ({ name }) => name },
  { title: 'HEALTH', rank: 0, text: ({ isUp }) => (isUp ? 'up' : 'PUT ASIDE') },
  { title: 'IN USE', rank: 1, isNumber: true, text: ({ active }) => formatCount(active) },
  { title: 'IDLE', rank: 3, isNumber: true, text: ({ idle }) => formatCount(idle) },
  { title: 'QUEUED', rank: 2, isNumber: true, text: ({ queued }) => formatCount(queued) },
];

const endingColumns = (at: number): readonly Column<EndingView>[] => [
  { title: 'ENDED', rank: 2, text: ({ endedAt }) => `${formatSpan(Math.max(0, at - endedAt))} ago` },
  { title: 'OUTCOME', rank: 0, text: ({ outcome }) => outcome },
  { title: 'CAUSE', rank: 3, text: ({ outcome, cause, phase }) => (outcome === 'completed' ? '' : (cause ?? `in ${phase}`)) },
  { title: 'CLIENT', rank: 1, text: ({ client }) => client },
  { title: 'MODEL', rank: 2, text: ({ model = '-' }) => model },
  { title: 'UPSTREAM', rank: 4, text: ({ upstream = '-' }) => upstream },
  { title: 'TOKENS', rank: 3, isNumber: true, text: ({ outputTokens }) => (outputTokens === undefined ? '-' : formatCount(outputTokens)) },
  { title: 'TOOK', rank: 2, isNumber: true, text: ({ durationMs }) => formatTime(durationMs) },
];

/**
 * The whole picture, line by line.
 * @param note what has to be said first: that it is old, say
 */
export function drawScreen(view: View, room: Room, note?: string): string[] {
  const head = [...(note === undefined ? [] : [note]), ...summarize(view, room.columns)];
  const upstreams = drawTable(view.upstreams, upstreamColumns, room.columns);
  let left = room.rows - head.length - upstreams.length - 1;
  // Half of what is left at least is for what is under way.
  const streams = view.streams.slice(0, Math.max(1, left - Math.min(ENDINGS, Math.floor(left / 2)) - 2 * TABLE_LINES));
  const missing = view.streamCount - streams.length;
  const live =
    streams.length === 0
      ? ['', 'Nothing is streaming.']
      : [...drawTable(streams, streamColumns, room.columns), ...(missing > 0 ? [`and ${formatCount(missing)} more`] : [])];
  left -= live.length + TABLE_LINES;
  const endings = view.recent.slice(0, Math.max(0, Math.min(left, ENDINGS)));
  const lines = [...head, ...upstreams, ...live, ...(endings.length === 0 ? [] : drawTable(endings, endingColumns(view.at), room.columns))];
  return lines.slice(0, room.rows).map((line) => fit(line, room.columns));
}

function summarize(view: View, columns: number): string[] {
  const { totals, recent, streams } = view;
  const { completed = 0, ...others } = totals.outcomes;
  const firsts = [...recent, ...streams].flatMap(({ ttftMs = [] }) => ttftMs).sort((one, other) => one - other);
  const workers = view.workers > 1 ? `, ${view.workers} workers` : '';
  const ended = Object.entries(others)
    .sort(([, one], [, other]) => other - one)
    .map(([outcome, count]) => `${formatCount(count)} ${outcome}`);
  const facts = [
    `Streams ${formatCount(view.streamCount)}`,
    `Tokens/s ${formatRate(view.tokensPerSecond)}`,
    `First token ${formatTime(firsts[Math.floor(firsts.length / 2)])}`,
    `Requests ${formatCount(totals.requests)}`,
    `Tokens ${formatCount(totals.outputTokens)} out, ${formatCount(totals.inputTokens)} in`,
    ...(totals.costUsd > 0 ? [`Cost $${totals.costUsd.toFixed(totals.costUsd < 1 ? 4 : 2)}`] : []),
  ];
  return [
    `Sluicegate ${view.version}  ${view.state}, up ${formatSpan(view.at - view.startedAt)}${workers}`,
    ...wrap(facts, columns, '   '),
    ...(totals.requests === 0 ? [] : wrap([`${formatCount(completed)} completed`, ...ended], columns, ', ')),
  ];
}

/** Parts in lines that are full, and broken between parts only. */
function wrap(parts: readonly string[], columns: number, between: string): string[] {
  const lines: string[] = [];
  for (const part of parts) {
    const longer = `${lines.at(-1)}${between}${part}`;
    if (lines.length === 0 || longer.length > columns) lines.push(part);
    else lines[lines.length - 1] = longer;
  }
  return lines;
}

function drawTable<T>(items: readonly T[], columns: readonly Column<T>[], width: number): string[] {
  const sized = columns.map((column) => {
    const cells = items.map((item) => fit(printable(column.text(item)), MAX_CELL));
    return { column, cells, size: Math.max(column.title.length, ...cells.map((cell) => cell.length)) };
  });
  while (sized.length > 1 && sized.reduce((sum, { size }) => sum + size + GAP.length, -GAP.length) > width) {
    const last = Math.max(...sized.map(({ column }) => column.rank));
    sized.splice(
      sized.findLastIndex(({ column }) => column.rank === last),
      1,
    );
  }
  const row = (cellOf: (at: (typeof sized)[number]) => string) =>
    sized
      .map((at) => (at.column.isNumber ? cellOf(at).padStart(at.size) : cellOf(at).padEnd(at.size)))
      .join(GAP)
      .trimEnd();
  return ['', row(({ column }) => column.title), ...items.map((_, at) => row(({ cells }) => cells[at]!))];
}

function fit(text: string, columns: number): string {
  return text.length <= columns ? text : `${text.slice(0, Math.max(0, columns - 1))}…`;
}

/** Names come from elsewhere: none of them moves a cursor. */
function printable(text: string): string {
  return text.replace(/[^ -~]/g, '?');
}

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });

function formatCount(count: number): string {
  return count < 10_000 ? whole.format(count) : compact.format(count);
}

function formatRate(rate: number): string {
  return rate > 0 && rate < 10 ? rate.toFixed(1) : formatCount(rate);
}

function formatTime(ms: number | undefined): string {
  if (ms === undefined) return '-';
  if (ms < 1000) return `${Math.round(ms)}ms`;
  return ms < 60_000 ? `${(ms / 1000).toFixed(1)}s` : formatSpan(ms);
}

/** As `17s`, `6m0s`, `2h0m`, `3d`. */
export function formatSpan(ms: number): string {
  const seconds = Math.floor(ms / 1000);
  const minutes = Math.floor(seconds / 60);
  const hours = Math.floor(minutes / 60);
  if (minutes === 0) return `${seconds}s`;
  if (hours === 0) return `${minutes}m${seconds % 60}s`;
  return hours < 48 ? `${hours}h${minutes % 60}m` : `${Math.floor(hours / 24)}d`;
}

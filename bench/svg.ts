// Draws plots as SVG by hand: bars, dots on a logarithmic scale, lines. They follow the reader's light or dark scheme.

export interface Series {
  readonly name: string;
  /** A number from 0: which of the colours. */
  readonly color: number;
}

export interface Category {
  readonly name: string;
  /** Drawn heavier: whom the page is about. */
  readonly isOwn: boolean;
  /** One for each series; NaN: there is none. */
  readonly values: readonly number[];
}

export interface Plot {
  readonly title: string;
  /** What is measured, in which unit, and under which load. */
  readonly subtitle: string;
  readonly series: readonly Series[];
}

const WIDTH = 760;
const LEFT = 112;
const RIGHT = 92;
const TOP = 84;
const ROW = 34;
const INNER = WIDTH - LEFT - RIGHT;
const LINES_HEIGHT = 240;
/** The colour of those who are only there to be compared with. */
const REST = 3;

const style = `
  .card { fill: #ffffff; stroke: #d8dee4; }
  text { font: 13px system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #57606a; }
  .title { font-size: 16px; font-weight: 600; fill: #1f2328; }
  .own { font-weight: 600; fill: #1f2328; }
  .value { fill: #1f2328; font-variant-numeric: tabular-nums; }
  .grid { stroke: #d8dee4; stroke-width: 1; }
  .link { stroke: #afb8c1; stroke-width: 2; }
  .c0 { fill: #0969da; stroke: #0969da; } .c1 { fill: #bf8700; stroke: #bf8700; } .c2 { fill: #cf222e; stroke: #cf222e; } .c3 { fill: #8c959f; stroke: #8c959f; }
  .line { fill: none; stroke-width: 2; }
  .mark { stroke: none; }
  @media (prefers-color-scheme: dark) {
    .card { fill: #0d1117; stroke: #30363d; }
    text { fill: #9198a1; }
    .title, .own, .value { fill: #f0f6fc; }
    .grid { stroke: #30363d; } .link { stroke: #484f58; }
    .c0 { fill: #58a6ff; stroke: #58a6ff; } .c1 { fill: #d29922; stroke: #d29922; } .c2 { fill: #f85149; stroke: #f85149; } .c3 { fill: #8b949e; stroke: #8b949e; }
  }`;

/** One bar for each category, of one part for each series, with the sum at its end. Of a single series, whom it is about stands out. */
export function drawBars(plot: Plot, categories: readonly Category[], format = formatNumber): string {
  const isAlone = plot.series.length === 1;
  const total = ({ values }: Category) => values.reduce((sum, value) => sum + value, 0);
  const scale = linearScale(Math.max(...categories.map(total)));
  const rows = categories.map((category, n) => {
    const y = TOP + n * ROW;
    let x = LEFT;
    const parts = category.values.map((value, index) => {
      const width = scale.x(value) - LEFT;
      const color = isAlone && !category.isOwn ? REST : plot.series[index]?.color;
      const part = `<rect class="c${color} mark" x="${round(x)}" y="${y + 6}" width="${round(Math.max(width, 1))}" height="${ROW - 12}"/>`;
      x += width;
      return part;
    });
    return `${nameOf(category, y)}${parts.join('')}<text class="value" x="${round(x + 7)}" y="${y + 21}">${format(total(category))}</text>`;
  });
  return frame(plot, categories.length * ROW, scale, rows);
}

/** One line for each category, with a dot for each series, on a logarithmic scale; the last dot's number stands beside it. */
export function drawDots(plot: Plot, categories: readonly Category[], format = formatNumber): string {
  const all = categories.flatMap(({ values }) => values.filter((value) => value > 0));
  const scale = logScale(Math.min(...all), Math.max(...all));
  const rows = categories.map((category, n) => {
    const y = TOP + n * ROW + ROW / 2;
    const xs = category.values.map((value) => scale.x(Math.max(value, scale.ticks[0] ?? value)));
    const link = `<line class="link" x1="${round(Math.min(...xs))}" x2="${round(Math.max(...xs))}" y1="${y}" y2="${y}"/>`;
    const dots = xs.map((x, index) => `<circle class="c${plot.series[index]?.color} mark" cx="${round(x)}" cy="${y}" r="6"/>`);
    const label = category.values.map(format).join(' · ');
    const at = Math.max(...xs) + 12;
    const isTight = at + label.length * 6.6 > WIDTH - 8;
    const place = isTight ? `x="${round(Math.min(...xs) - 12)}" text-anchor="end"` : `x="${round(at)}"`;
    return `${nameOf(category, y - ROW / 2)}${link}${dots.join('')}<text class="value" ${place} y="${y + 4}">${label}</text>`;
  });
  return frame(plot, categories.length * ROW, scale, rows);
}

/** One line for each series over a few numbers that are set evenly apart, with its last value beside it. */
export function drawLines(plot: Plot, xs: readonly number[], lines: readonly (readonly number[])[], format = formatNumber): string {
  const top = niceTicks(Math.max(...lines.flat().filter(Number.isFinite)));
  const highest = top.at(-1) ?? 1;
  const xOf = (n: number) => LEFT + (INNER * n) / Math.max(1, xs.length - 1);
  const yOf = (value: number) => TOP + LINES_HEIGHT * (1 - value / highest);
  const grid = top.map(
    (tick) =>
      `<line class="grid" x1="${LEFT}" x2="${LEFT + INNER}" y1="${round(yOf(tick))}" y2="${round(yOf(tick))}"/><text x="${LEFT - 10}" y="${round(yOf(tick) + 4)}" text-anchor="end">${formatNumber(tick)}</text>`,
  );
  const labels = xs.map(
    (x, n) => `<text x="${round(xOf(n))}" y="${TOP + LINES_HEIGHT + 24}" text-anchor="middle">${x.toLocaleString('en')} streams</text>`,
  );
  const ends = spreadApart(
    lines.map((line) => yOf(line.findLast(Number.isFinite) ?? 0)),
    16,
  );
  const drawn = lines.map((line, index) => {
    const color = plot.series[index]?.color;
    const points = line.flatMap((value, n) => (Number.isFinite(value) ? [`${round(xOf(n))},${round(yOf(value))}`] : []));
    const dots = points.map((point) => `<circle class="c${color} mark" cx="${point.split(',')[0]}" cy="${point.split(',')[1]}" r="4.5"/>`);
    const last = line.findLast(Number.isFinite) ?? Number.NaN;
    const number = `<text class="value" x="${LEFT + INNER + 12}" y="${round((ends[index] ?? 0) + 4)}">${format(last)}</text>`;
    return `<polyline class="c${color} line" style="fill:none" points="${points.join(' ')}"/>${dots.join('')}${number}`;
  });
  return wrap(plot, LINES_HEIGHT + 40, [...grid, ...labels, ...drawn]);
}

/** Three digits that mean something, and k for thousands. */
export function formatNumber(value: number): string {
  if (!Number.isFinite(value)) return '–';
  if (Math.abs(value) >= 10_000) return `${Math.round(value / 1000)}k`;
  if (Math.abs(value) >= 1000) return `${(value / 1000).toFixed(1).replace(/\.0$/, '')}k`;
  if (Math.abs(value) >= 100 || Number.isInteger(value)) return value.toFixed(0);
  return Math.abs(value) >= 10 ? value.toFixed(1).replace(/\.0$/, '') : value.toFixed(2).replace(/\.?0+$/, '');
}

interface Scale {
  readonly ticks: readonly number[];
  x(value: number): number;
}

function linearScale(max: number): Scale {
  const ticks = niceTicks(max);
  const highest = ticks.at(-1) ?? 1;
  return { ticks, x: (value) => LEFT + (INNER * value) / highest };
}

/** Whole powers of ten around what is drawn. */
function logScale(min: number, max: number): Scale {
  const from = Math.floor(Math.log10(min));
  const to = Math.max(from + 1, Math.ceil(Math.log10(max)));
  const ticks = Array.from({ length: to - from + 1 }, (_, n) => 10 ** (from + n));
  return { ticks, x: (value) => LEFT + (INNER * (Math.log10(value) - from)) / (to - from) };
}

/** From 0 past the largest value, in steps of 1, 2 or 5 times a power of ten. */
export function niceTicks(largest: number): number[] {
  const max = largest > 0 ? largest : 1;
  const rough = max / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((one) => one >= rough) ?? 10 * power;
  return Array.from({ length: Math.ceil(max / step - 1e-9) + 1 }, (_, n) => Number((n * step).toPrecision(12)));
}

/** Moves what lies too near to each other apart, from the top. */
function spreadApart(ys: readonly number[], gap: number): number[] {
  const order = ys.map((_, n) => n).sort((a, b) => (ys[a] ?? 0) - (ys[b] ?? 0));
  const moved = [...ys];
  order.forEach((index, n) => {
    const above = order[n - 1];
    if (above !== undefined) moved[index] = Math.max(moved[index] ?? 0, (moved[above] ?? 0) + gap);
  });
  return moved;
}

function nameOf({ name, isOwn }: Category, y: number): string {
  return `<text${isOwn ? ' class="own"' : ''} x="${LEFT - 10}" y="${y + 21}" text-anchor="end">${name}</text>`;
}

function frame(plot: Plot, height: number, scale: Scale, rows: readonly string[]): string {
  const grid = scale.ticks.map((tick) => {
    const x = round(scale.x(tick));
    return `<line class="grid" x1="${x}" x2="${x}" y1="${TOP}" y2="${TOP + height}"/><text x="${x}" y="${TOP + height + 20}" text-anchor="middle">${formatNumber(tick)}</text>`;
  });
  return wrap(plot, height + 34, [...grid, ...rows]);
}

function wrap({ title, subtitle, series }: Plot, height: number, parts: readonly string[]): string {
  let x = 20;
  const legend = (series.length > 1 ? series : []).map(({ name, color }) => {
    const entry = `<circle class="c${color} mark" cx="${x + 5}" cy="66" r="5"/><text x="${x + 16}" y="70">${name}</text>`;
    x += 32 + name.length * 7.2;
    return entry;
  });
  const total = TOP + height + 8;
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${total}" viewBox="0 0 ${WIDTH} ${total}" role="img" aria-label="${title}">
<style>${style}
</style>
<rect class="card" x="0.5" y="0.5" width="${WIDTH - 1}" height="${total - 1}" rx="8"/>
<text class="title" x="20" y="28">${title}</text>
<text x="20" y="48">${subtitle}</text>
${[...legend, ...parts].join('\n')}
</svg>
`;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}

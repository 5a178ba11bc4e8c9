// What Sluicegate promises of its speed and size, and whether a run has kept it. Each is judged by medians of one run.
import type { FigureName } from './figures.ts';
import { addedOf, align, ratioOf, rowOf, sampleOf } from './report.ts';
import type { Row, ScenarioResult } from './run.ts';
import type { Sample } from './statistics.ts';

interface Promised {
  readonly text: string;
  readonly scenario: string;
  readonly figure: FigureName;
  /** Of whom the figure is a multiple, or over whom it is counted; itself in another scenario for `growth`. */
  readonly than?: string;
  readonly as: 'value' | 'ratio' | 'added' | 'growth';
  readonly bound: number;
  readonly unit: string;
}

const OWN = 'sluicegate';

/** With streams of 100 events, a call of which costs as much as ten of them, and of 1,000. */
const perEvent = (
  [
    ['paced', ''],
    ['long', ', streams of 1,000'],
  ] as const
).flatMap(([scenario, of]): Promised[] => [
  { text: `CPU per event over nginx${of}`, scenario, figure: 'cpuPerEventUs', as: 'ratio', than: 'nginx', bound: 1.8, unit: '×' },
  {
    text: `CPU per event over a bare Node pipe${of}`,
    scenario,
    figure: 'cpuPerEventUs',
    as: 'ratio',
    than: 'pipe',
    bound: 1.25,
    unit: '×',
  },
  { text: `p50 of an event over nginx${of}`, scenario, figure: 'eventP50Us', as: 'ratio', than: 'nginx', bound: 1.5, unit: '×' },
  { text: `p99 of an event over nginx${of}`, scenario, figure: 'eventP99Us', as: 'ratio', than: 'nginx', bound: 3, unit: '×' },
]);

const promises: readonly Promised[] = [
  ...perEvent,
  {
    text: 'p99 of an event over nginx, all at one instant',
    scenario: 'instant',
    figure: 'eventP99Us',
    as: 'ratio',
    than: 'nginx',
    bound: 3,
    unit: '×',
  },
  {
    text: 'added to the first token, p50',
    scenario: 'one-at-a-time',
    figure: 'ttftP50Us',
    as: 'added',
    than: 'direct',
    bound: 300,
    unit: ' µs',
  },
  {
    text: 'added to the first token, p99',
    scenario: 'one-at-a-time',
    figure: 'ttftP99Us',
    as: 'added',
    than: 'direct',
    bound: 1000,
    unit: ' µs',
  },
  {
    text: 'TTFB of a 1 MB request over nginx, p50',
    scenario: 'request-1MB',
    figure: 'ttfbP50Us',
    as: 'added',
    than: 'nginx',
    bound: 3000,
    unit: ' µs',
  },
  { text: 'memory per live stream of 3,000', scenario: 'memory', figure: 'busyKb', as: 'value', bound: 40, unit: ' KB' },
  { text: 'memory after 20,000 streams with aborts', scenario: 'churn', figure: 'growthPercent', as: 'value', bound: 10, unit: ' %' },
  {
    text: 'CPU per event at 5,000 streams over 200',
    scenario: 'curve-5000',
    figure: 'cpuPerEventUs',
    as: 'growth',
    than: 'paced',
    bound: 1.2,
    unit: '×',
  },
  {
    text: 'memory per stream at 5,000 over 1,000',
    scenario: 'memory-5000',
    figure: 'busyKb',
    as: 'growth',
    than: 'memory-1000',
    bound: 1.2,
    unit: '×',
  },
  {
    // What is left of a core where one has to do more for each event: 1.8 times the streams.
    text: 'CPU per event of two workers over one with half the streams',
    scenario: 'two-workers',
    figure: 'cpuPerEventUs',
    as: 'growth',
    than: 'one-worker',
    bound: 1.11,
    unit: '×',
  },
];

type Find = (scenario: string) => ScenarioResult | undefined;

/** Of each promise what was measured; undefined where the run has no figures for it. */
function measured({ scenario, figure, as, than = '' }: Promised, find: Find): Sample | undefined {
  const result = find(scenario);
  const own = result && rowOf(result, OWN);
  const base: Row | undefined = as === 'growth' ? rowOfScenario(find(than)) : result && rowOf(result, than);
  if (own === undefined || (as !== 'value' && base === undefined)) return undefined;
  if (as === 'value') return sampleOf(own, figure);
  return as === 'added' ? addedOf(own, base, figure) : ratioOf(own, base, figure);
}

function rowOfScenario(result: ScenarioResult | undefined): Row | undefined {
  return result && rowOf(result, OWN);
}

/** A table of the promises that the run says something of, for the terminal and, with bars between, for Markdown. */
export function formatPromises(results: readonly ScenarioResult[]): { text: string; markdown: string } {
  const find: Find = (name) => results.find(({ scenario }) => scenario.name === name);
  const rows = promises.flatMap((promised) => {
    const sample = measured(promised, find);
    if (sample === undefined || !Number.isFinite(sample.median)) return [];
    const show = (value: number) => value.toFixed(Math.abs(value) < 10 ? 2 : 0);
    const value = `${show(sample.median)} ±${show(sample.spread)}${promised.unit}`;
    return [[promised.text, value, `≤ ${promised.bound}${promised.unit}`, sample.median <= promised.bound ? 'kept' : 'MISSED']];
  });
  const table = [['promise', 'measured', 'bound', ''], ...rows];
  const [head = '', ...body] = table.map((row) => `| ${row.join(' | ')} |`);
  return { text: ['\npromises', ...align(table)].join('\n'), markdown: [head, '| --- | --- | --- | --- |', ...body].join('\n') };
}

// Which plots are made of a run's results: one file for each figure that the README or docs/performance.md shows.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { FigureName } from './figures.ts';
import { addedOf, rowOf, sampleOf } from './report.ts';
import type { Row, ScenarioResult } from './run.ts';
import { type Category, drawBars, drawDots, drawLines, type Plot } from './svg.ts';

type Find = (scenario: string) => ScenarioResult | undefined;

const OWN = 'sluicegate';
const PACED = '200 streams at 100 events a second: 20,000 events and 200 new calls a second';
const one = (name: string): Plot['series'] => [{ name, color: 0 }];
const quantiles: Plot['series'] = [
  { name: 'p50', color: 0 },
  { name: 'p99', color: 1 },
  { name: 'p99.9', color: 2 },
];

/** Of each contender but direct, the medians of some figures. */
function categoriesOf(
  { rows }: ScenarioResult,
  names: readonly FigureName[],
  read = (row: Row, name: FigureName) => sampleOf(row, name).median,
): Category[] {
  return rows
    .filter(({ name }) => name !== 'direct')
    .map((row) => ({ name: row.name, isOwn: row.name === OWN, values: names.map((name) => read(row, name)) }));
}

const toMs = (row: Row, name: FigureName) => sampleOf(row, name).median / 1000;

/** Each file, and how it is drawn; undefined where its scenario was not run. */
const plots: Record<string, (find: Find) => string | undefined> = {
  'cpu-per-event.svg'(find) {
    const paced = find('paced');
    const series = [
      { name: 'user', color: 0 },
      { name: 'kernel', color: 3 },
    ];
    const plot = { title: 'CPU per relayed event, µs', subtitle: `${PACED}; less is better`, series };
    return paced && drawBars(plot, categoriesOf(paced, ['userPerEventUs', 'kernelPerEventUs']));
  },
  'event-latency.svg'(find) {
    const paced = find('paced');
    const plot = {
      title: 'Time of an event from upstream to client, ms',
      subtitle: `${PACED}; direct is the instrument itself`,
      series: quantiles,
    };
    if (paced === undefined) return undefined;
    const categories = paced.rows.map((row): Category => {
      return {
        name: row.name,
        isOwn: row.name === OWN,
        values: (['eventP50Us', 'eventP99Us', 'eventP999Us'] as const).map((name) => toMs(row, name)),
      };
    });
    return drawDots(plot, categories);
  },
  'first-token.svg'(find) {
    const single = find('one-at-a-time');
    const direct = single && rowOf(single, 'direct');
    const plot = {
      title: 'Time added to the first token, ms',
      subtitle: 'over a direct call in the same run; one stream at a time, 1 KB requests',
      series: quantiles,
    };
    const addedMs = (row: Row, name: FigureName) => Math.max(0.001, addedOf(row, direct, name).median / 1000);
    return direct && drawDots(plot, categoriesOf(single, ['ttftP50Us', 'ttftP99Us', 'ttftP999Us'], addedMs));
  },
  'streams-held.svg'(find) {
    const capacity = find('capacity');
    const plot = {
      title: 'Streams held on one core',
      subtitle: 'at 50 events a second each, no event later than 50 ms; more is better',
      series: one('streams'),
    };
    return capacity && drawBars(plot, categoriesOf(capacity, ['streamsHeld']));
  },
  'short-calls.svg'(find) {
    const calls = find('short-calls');
    const plot = {
      title: 'Short calls a second on one core',
      subtitle: 'without a stream, 32 at one time; more is better',
      series: one('calls a second'),
    };
    return calls && drawBars(plot, categoriesOf(calls, ['callsPerSecond']));
  },
  'memory.svg'(find) {
    const memory = find('memory');
    const plot = {
      title: 'Memory per live stream, KB',
      subtitle: '3,000 streams at 4 events a second: growth of resident memory; less is better',
      series: one('while events flow'),
    };
    return memory && drawBars(plot, categoriesOf(memory, ['busyKb']));
  },
  'cpu-curve.svg': (find) =>
    drawCurve(find, ['paced', 'curve-1000', 'curve-5000'], 'cpuPerEventUs', {
      title: 'CPU per relayed event as streams grow, µs',
      subtitle: '20,000 events a second in all, over more and more streams',
    }),
  'memory-curve.svg': (find) =>
    drawCurve(find, ['memory-1000', 'memory', 'memory-5000'], 'busyKb', {
      title: 'Memory per live stream as streams grow, KB',
      subtitle: 'growth of resident memory over the open streams, 4 events a second each',
    }),
};

/** Draws the plots that the results have figures for, into a folder; returns the files' names. */
export function plotAll(results: readonly ScenarioResult[], folder: string): string[] {
  const find: Find = (name) => results.find(({ scenario, rows }) => scenario.name === name && rows.length > 0);
  return Object.entries(plots).flatMap(([file, draw]) => {
    const drawn = draw(find);
    if (drawn === undefined) return [];
    writeFileSync(join(folder, file), drawn);
    return [file];
  });
}

function drawCurve(
  find: Find,
  names: readonly string[],
  figure: FigureName,
  { title, subtitle }: Omit<Plot, 'series'>,
): string | undefined {
  const results = names.map(find).filter((result) => result !== undefined);
  if (results.length < names.length) return undefined;
  const contenders = [OWN, 'nginx', 'pipe'].filter((name) => results.every((result) => rowOf(result, name)));
  const colors = [0, 3, 1];
  const series = contenders.map((name, n) => ({ name, color: colors[n] ?? 0 }));
  const lines = contenders.map((name) => results.map((result) => sampleOf(rowOf(result, name) as Row, figure).median));
  return drawLines(
    { title, subtitle, series },
    results.map(({ scenario }) => scenario.streams),
    lines,
  );
}

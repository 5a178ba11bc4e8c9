// Says what was measured: a table for the terminal, with spreads and ratios, and what goes into the JSON file.
import { type Figure, type FigureName, figures } from './figures.ts';
import type { Row, ScenarioResult } from './run.ts';
import { type Sample, sample, sampleDifferences, sampleRatios } from './statistics.ts';

/** Above so much of other processes' work, or of the hypervisor's, a run is worth nothing. */
const DISTURBANCE_CORES = 0.1;
const HEALTH: FigureName[] = ['contenderCores', 'upstreamCores', 'loadCores', 'foreignCores', 'failed'];

/** A figure of a contender in all rounds. */
export function sampleOf(row: Row, name: FigureName): Sample {
  return sample(valuesOf(row, name));
}

/** The same over another contender's, round by round. */
export function ratioOf(row: Row, base: Row | undefined, name: FigureName): Sample {
  return sampleRatios(valuesOf(row, name), base === undefined ? [] : valuesOf(base, name));
}

/** The same less another contender's, round by round. */
export function addedOf(row: Row, base: Row | undefined, name: FigureName): Sample {
  return sampleDifferences(valuesOf(row, name), base === undefined ? [] : valuesOf(base, name));
}

function valuesOf({ rounds }: Row, name: FigureName): number[] {
  return rounds.map((figures) => figures[name] ?? Number.NaN);
}

export function rowOf({ rows }: ScenarioResult, name: string): Row | undefined {
  return rows.find((row) => row.name === name);
}

/**
 * Medians and spreads; below, what is added over direct, and ratios to nginx and to the pipe.
 * @param generatorCount cores of the generators: on one they share it
 */
export function formatScenario(result: ScenarioResult, generatorCount: number): string {
  const { scenario, rows, skipped } = result;
  const names = [...scenario.quoted, ...HEALTH];
  const direct = rowOf(result, 'direct');
  const lines = [`\n${scenario.name}: ${scenario.about}`];
  const heads = names.map((name) => `${figures[name].label}${figures[name].unit ? ` ${figures[name].unit}` : ''}`);
  lines.push(
    ...align([['', ...heads], ...rows.map((row) => [row.name, ...names.map((name) => formatSample(sampleOf(row, name), figures[name]))])]),
  );
  const added = scenario.quoted.filter((name) => (figures[name] as Figure).isAdded);
  const others = rows.filter((row) => row !== direct);
  if (direct !== undefined && added.length > 0 && others.length > 0) {
    const body = others.map((row) => [row.name, ...added.map((name) => formatSample(addedOf(row, direct, name), figures[name]))]);
    lines.push('added over direct', ...align([['', ...added.map((name) => figures[name].label)], ...body]));
  }
  for (const base of [rowOf(result, 'nginx'), rowOf(result, 'pipe')]) {
    if (base === undefined) continue;
    const body = others
      .filter((row) => row !== base)
      .map((row) => [row.name, ...scenario.quoted.map((name) => formatRatio(ratioOf(row, base, name)))]);
    if (body.length > 0)
      lines.push(`ratio to ${base.name}`, ...align([['', ...scenario.quoted.map((name) => figures[name].label)], ...body]));
  }
  const limited = rows.filter((row) => isAtLimit(row, generatorCount)).map(({ name }) => name);
  // One call at a time leaves the two generators no pause where nothing stands between them.
  if (limited.length > 0 && scenario.kind !== 'oneAtATime')
    lines.push(`the generators were at their limit: what these could do beyond was not measured: ${limited.join(', ')}`);
  const disturbed = rows.filter(isDisturbed).map(({ name }) => name);
  if (disturbed.length > 0) lines.push(`disturbed by other work on the machine: ${disturbed.join(', ')}`);
  lines.push(...skipped.map(({ name, reason }) => `skipped: ${name}: ${reason}`));
  return lines.join('\n');
}

/** What others took of the machine while this one was measured: the median of its rounds. */
export function foreignCoresOf(row: Row): number {
  return sampleOf(row, 'foreignCores').median;
}

export function isDisturbed(row: Row): boolean {
  return foreignCoresOf(row) > DISTURBANCE_CORES;
}

function isAtLimit(row: Row, generatorCount: number): boolean {
  const [upstream, load] = [sampleOf(row, 'upstreamCores').median, sampleOf(row, 'loadCores').median];
  return (generatorCount === 1 ? upstream + load : Math.max(upstream, load)) > 0.95;
}

function formatSample({ median, spread }: Sample, { digits }: Figure): string {
  if (Number.isNaN(median)) return '-';
  return spread < 0.5 * 10 ** -digits ? median.toFixed(digits) : `${median.toFixed(digits)} ±${spread.toFixed(digits)}`;
}

function formatRatio({ median, spread }: Sample): string {
  return Number.isFinite(median) ? `${median.toFixed(2)} ±${spread.toFixed(2)}` : '-';
}

/** Columns to the right, the first one to the left. */
export function align(rows: readonly (readonly string[])[]): string[] {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  return rows.map((row) => row.map((cell, n) => (n === 0 ? cell.padEnd(widths[n] ?? 0) : cell.padStart(widths[n] ?? 0))).join('  '));
}

/** The meaning of all figures that the results quote. */
export function formatMeanings(results: readonly ScenarioResult[]): string {
  const names = new Set([...results.flatMap(({ scenario }) => scenario.quoted), ...HEALTH]);
  const width = Math.max(...[...names].map((name) => figures[name].label.length));
  return [
    '\nfigures (median of the rounds ± half the distance between the quartiles):',
    ...[...names].map((name) => `  ${figures[name].label.padEnd(width)}  ${figures[name].meaning}`),
  ].join('\n');
}

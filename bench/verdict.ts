// What a comparison of two commits says: better, worse, a regression, or nothing, because other processes were at work.
import { type FigureName, type Figures, figures } from './figures.ts';
import { EXIT } from './options.ts';
import { align, foreignCoresOf, isDisturbed, sampleOf } from './report.ts';
import type { Row } from './run.ts';
import { isRegression, sampleRatios, TOLERANCE } from './statistics.ts';

const COMPARED: FigureName[] = [
  'cpuPerEventUs',
  'userPerEventUs',
  'eventP50Us',
  'eventP99Us',
  'ttftP50Us',
  'ttftP99Us',
  'cpuPerCallUs',
  'rssMb',
];
/** A regression of these fails the run: CPU per event and p99. The others are told. */
const JUDGED = new Set<FigureName>(['cpuPerEventUs', 'eventP99Us']);

export type Verdict = 'fine' | 'regression' | 'disturbed';

/** One scenario's comparison: the table to print, and the verdict. Disturbed, it calls nothing a regression, and nothing fine. */
export function judge(title: string, [before, after]: readonly [Row, Row]): { text: string; verdict: Verdict } {
  const disturbed = [before, after].filter(isDisturbed);
  const rows = COMPARED.filter((name) => before.rounds.some((round) => round[name] !== undefined)).map((name) => {
    const ratio = sampleRatios(valuesOf(after, name), valuesOf(before, name));
    const isWorse = isRegression(ratio);
    const isJudged = isWorse && JUDGED.has(name) && disturbed.length === 0;
    const percent = `${((ratio.median - 1) * 100).toFixed(1)} % ±${(ratio.spread * 100).toFixed(1)}`;
    const medians = [before, after].map((row) => sampleOf(row, name).median.toFixed(1));
    return { cells: [figures[name].label, ...medians, percent, isJudged ? 'REGRESSION' : isWorse ? 'worse' : ''], isJudged };
  });
  const lines = [
    `\n${title}, ${after.rounds.length} pairs (a regression: more than ${TOLERANCE * 100} % worse beyond the spread)`,
    ...align([['', before.name, after.name, 'difference', ''], ...rows.map(({ cells }) => cells)]),
  ];
  if (disturbed.length > 0) {
    const takers = disturbed.map((row) => `${foreignCoresOf(row).toFixed(2)} cores beside ${row.name}`).join(', ');
    lines.push(`disturbed by other work on the machine (${takers}): no verdict; run it again when it is quiet`);
  }
  const isWorse = rows.some((row) => row.isJudged);
  return { text: lines.join('\n'), verdict: disturbed.length > 0 ? 'disturbed' : isWorse ? 'regression' : 'fine' };
}

function valuesOf({ rounds }: Row, name: FigureName): number[] {
  return rounds.map((round: Figures) => round[name] ?? Number.NaN);
}

/** A regression that was seen undisturbed is one, whatever disturbed the other scenarios. */
export function exitCodeOf(verdicts: readonly Verdict[]): number {
  if (verdicts.includes('regression')) return EXIT.regression;
  return verdicts.includes('disturbed') ? EXIT.disturbed : EXIT.measured;
}

// Measures two commits alternately, and says whether the newer one got worse: the other one in a worktree of its own, with the same packages.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { createSluicegate } from './contenders/sluicegate.ts';
import { type FigureName, type Figures, figures } from './figures.ts';
import { align, sampleOf } from './report.ts';
import { type Row, type RunParts, runScenario } from './run.ts';
import { scenarios } from './scenarios.ts';
import { isRegression, sampleRatios, TOLERANCE } from './statistics.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const SCENARIOS = ['paced', 'one-at-a-time', 'short-calls'];
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

/** Returns the exit code: 1 where a judged figure got worse by more than the tolerance and the spread. */
export async function compareWith(base: string, parts: Omit<RunParts, 'contenders'>): Promise<number> {
  const folder = mkdtempSync(join(tmpdir(), 'sluicegate-base-'));
  const git = (...args: string[]) =>
    execFileSync('git', ['-C', root, ...args], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
  const tree = join(folder, 'tree');
  const commit = git('rev-parse', '--short', `${base}^{commit}`);
  git('worktree', 'add', '--detach', tree, commit);
  try {
    symlinkSync(join(root, 'node_modules'), join(tree, 'node_modules'));
    return await compare(`${base} (${commit})`, tree, parts);
  } finally {
    git('worktree', 'remove', '--force', tree);
    rmSync(folder, { recursive: true, force: true });
  }
}

async function compare(baseName: string, tree: string, parts: Omit<RunParts, 'contenders'>): Promise<number> {
  const [before, after] = [createSluicegate(baseName, tree), createSluicegate('this checkout', root)];
  let code = 0;
  for (const scenario of scenarios.filter(({ name }) => SCENARIOS.includes(name))) {
    const rows: [Row, Row] = [
      { name: before.name, rounds: [] },
      { name: after.name, rounds: [] },
    ];
    // Each pair is of fresh processes: two runs of one process are more alike than two processes of one commit.
    for (let pair = 0; pair < parts.rounds; pair++) {
      // A B, B A, A B, …
      const contenders = pair % 2 === 0 ? [before, after] : [after, before];
      const { rows: measured, skipped } = await runScenario(scenario, { ...parts, contenders, rounds: 1 });
      for (const { name, reason } of skipped) throw new Error(`${name}: ${reason}`);
      for (const row of rows) row.rounds.push(...(measured.find(({ name }) => name === row.name)?.rounds ?? []));
    }
    if (tellOf(scenario.name, rows)) code = 1;
  }
  return code;
}

/** Prints the comparison of one scenario; true: a judged figure got worse. */
function tellOf(title: string, [before, after]: [Row, Row]): boolean {
  const valuesOf = ({ rounds }: Row, name: FigureName) => rounds.map((round: Figures) => round[name] ?? Number.NaN);
  const rows = COMPARED.filter((name) => before.rounds.some((round) => round[name] !== undefined)).map((name) => {
    const ratio = sampleRatios(valuesOf(after, name), valuesOf(before, name));
    const isWorse = isRegression(ratio);
    const verdict = isWorse ? (JUDGED.has(name) ? 'REGRESSION' : 'worse') : '';
    const percent = `${((ratio.median - 1) * 100).toFixed(1)} % ±${(ratio.spread * 100).toFixed(1)}`;
    return {
      cells: [figures[name].label, ...[before, after].map((row) => sampleOf(row, name).median.toFixed(1)), percent, verdict],
      isRegression: isWorse && JUDGED.has(name),
    };
  });
  const table = align([['', before.name, after.name, 'difference', ''], ...rows.map(({ cells }) => cells)]);
  console.log(
    `\n${title}, ${after.rounds.length} pairs (a regression: more than ${TOLERANCE * 100} % worse beyond the spread)\n${table.join('\n')}`,
  );
  return rows.some((row) => row.isRegression);
}

// Measures two commits alternately, and says whether the newer one got worse: the other one in a worktree of its own, with the same packages.
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { createSluicegate } from './contenders/sluicegate.ts';
import { type Row, type RunParts, runScenario } from './run.ts';
import type { Scenario } from './scenarios.ts';
import { exitCodeOf, judge, type Verdict } from './verdict.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
/** What is compared where nothing is named. */
export const COMPARED_SCENARIOS = ['paced', 'one-at-a-time', 'short-calls'];

export interface Comparison extends Omit<RunParts, 'contenders'> {
  readonly scenarios: readonly Scenario[];
}

/** The commit that a name stands for, short; undefined: none. */
export function findCommit(name: string): string | undefined {
  const args = ['-C', root, 'rev-parse', '--verify', '--quiet', '--short', '--end-of-options', `${name}^{commit}`];
  const { status, stdout } = spawnSync('git', args, { encoding: 'utf8' });
  return status === 0 ? stdout.trim().split('\n').at(-1) : undefined;
}

/** Returns the exit code. */
export async function compareWith(base: string, commit: string, comparison: Comparison): Promise<number> {
  const folder = mkdtempSync(join(tmpdir(), 'sluicegate-base-'));
  const git = (...args: string[]) => execFileSync('git', ['-C', root, ...args], { stdio: 'ignore' });
  const tree = join(folder, 'tree');
  git('worktree', 'add', '--detach', tree, commit);
  try {
    symlinkSync(join(root, 'node_modules'), join(tree, 'node_modules'));
    return await compare(`${base} (${commit})`, tree, comparison);
  } finally {
    git('worktree', 'remove', '--force', tree);
    rmSync(folder, { recursive: true, force: true });
  }
}

async function compare(baseName: string, tree: string, { scenarios, ...parts }: Comparison): Promise<number> {
  const [before, after] = [createSluicegate(baseName, tree), createSluicegate('this checkout', root)];
  const verdicts: Verdict[] = [];
  for (const scenario of scenarios) {
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
    const { text, verdict } = judge(scenario.name, rows);
    console.log(text);
    verdicts.push(verdict);
  }
  return exitCodeOf(verdicts);
}

// Which core does what: the contender has its own, so that nobody else's work is in its times.
import { execFileSync, spawnSync } from 'node:child_process';
import { availableParallelism } from 'node:os';

export interface Cores {
  /** For a contender of one worker, as taskset has it. */
  readonly contender: string;
  readonly generators: string;
  /** For contenders of two workers. */
  readonly pair: string;
  /** Of the two generators, each single-threaded: 1 where they share a core. */
  readonly generatorCount: number;
  readonly note: string;
}

const hasTaskset = spawnSync('taskset', ['--version']).status === 0;

/** A command that runs on these cores only; as it is where the machine cannot do that. */
export function pinned(cpus: string, command: string[]): string[] {
  return hasTaskset && cpus !== '' ? ['taskset', '-c', cpus, ...command] : command;
}

export function divideCores(): Cores {
  const count = availableParallelism();
  if (!hasTaskset)
    return {
      contender: '',
      generators: '',
      pair: '',
      generatorCount: 2,
      note: 'no taskset: everything runs on all cores, and disturbs itself',
    };
  if (count < 2)
    return {
      contender: '',
      generators: '',
      pair: '',
      generatorCount: 1,
      note: 'one core for everything: only CPU and memory mean something',
    };
  if (count < 4) {
    const note = 'contender on core 0, upstream and load together on core 1; contenders of two workers on both, beside the generators';
    return { contender: '0', generators: '1', pair: '0,1', generatorCount: 1, note };
  }
  return {
    contender: '0',
    generators: '2,3',
    pair: '0,1',
    generatorCount: 2,
    note: 'contender on core 0 (of two workers: 0 and 1), upstream and load on 2 and 3',
  };
}

/** The orchestrator's own work goes to the generators' side. */
export function pinSelf(cpus: string): void {
  if (hasTaskset && cpus !== '') execFileSync('taskset', ['-a', '-c', '-p', cpus, String(process.pid)], { stdio: 'ignore' });
}

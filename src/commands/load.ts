// The configuration that the command line, the environment and the folder choose, and what is wrong with it.
import { existsSync, readFileSync } from 'node:fs';
import { type Config, formatProblem, loadConfig } from '../config.ts';
import type { Flags } from './command.ts';

export interface Loaded {
  readonly config: Config;
  /** Undefined where it comes from the environment alone. */
  readonly file: string | undefined;
}

const DEFAULT_FILE = 'config/sluicegate.yaml';

/** Loads the configuration, telling problems and warnings on standard error; undefined where it cannot be used. */
export function load(flags: Flags): Loaded | undefined {
  const file = flags.config ?? process.env.SLUICEGATE_CONFIG ?? (existsSync(DEFAULT_FILE) ? DEFAULT_FILE : undefined);
  let text: string | undefined;
  try {
    if (file !== undefined) text = readFileSync(file, 'utf8');
  } catch (error) {
    process.stderr.write(`${file}:1:1: cannot be read (${(error as NodeJS.ErrnoException).code}); name a file that can with -c FILE\n`);
    return undefined;
  }
  const result = loadConfig(file === undefined || text === undefined ? undefined : { file, text }, process.env);
  for (const warning of result.warnings) process.stderr.write(`warning: ${formatProblem(warning)}\n`);
  if (process.env.NODE_TLS_REJECT_UNAUTHORIZED === '0') {
    process.stderr.write(
      'warning: NODE_TLS_REJECT_UNAUTHORIZED=0 turns off the check of upstreams’ certificates: anyone on the way can read your keys\n',
    );
  }
  if (result.ok) return { config: result.config, file };
  for (const problem of result.problems) process.stderr.write(`${formatProblem(problem)}\n`);
  return undefined;
}

// Sluicegate as a process of its own, as a person starts it.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import type { Test } from 'tap';
import { createWaiting } from './waiting.ts';

export interface Running {
  readonly child: ChildProcess;
  readonly stdout: string;
  readonly stderr: string;
  /** Resolves with the first match in what the process has said on either stream. */
  said(pattern: RegExp): Promise<RegExpExecArray>;
  /** Resolves with the exit code, or the signal's name. */
  exited(): Promise<number | string>;
}

const mainFile = fileURLToPath(new URL('../../src/main.ts', import.meta.url));

/** What starts Sluicegate, to be wrapped or followed by its arguments. */
export const command = [process.execPath, mainFile];

/** Starts `sluicegate ARGS` in a folder, with this environment only; killed at the test's end should it still run. */
export function runSluicegate(t: Test, args: string[], env: Record<string, string> = {}, cwd?: string): Running {
  return runCommand(t, [...command, ...args], env, cwd);
}

/** As `runSluicegate`, for any command; with `pipe`, whose standard input is the test's to write. */
export function runCommand(
  t: Test,
  [file = '', ...args]: string[],
  env: Record<string, string> = {},
  cwd?: string,
  stdin: 'ignore' | 'pipe' = 'ignore',
): Running {
  const child = spawn(file, args, {
    env: { PATH: process.env.PATH ?? '', ...env },
    ...(cwd && { cwd }),
    stdio: [stdin, 'pipe', 'pipe'],
  });
  const waiting = createWaiting(15_000);
  const output = { stdout: '', stderr: '' };
  let ended: number | string | undefined;
  for (const name of ['stdout', 'stderr'] as const) {
    child[name]?.setEncoding('utf8').on('data', (text: string) => {
      output[name] += text;
      waiting.changed();
    });
  }
  child.once('close', (code, signal) => {
    ended = code ?? signal ?? 'unknown';
    waiting.changed();
  });
  t.teardown(async () => {
    if (ended !== undefined) return;
    child.kill('SIGKILL');
    await once(child, 'close');
  });
  const all = () => output.stdout + output.stderr;
  return {
    child,
    get stdout() {
      return output.stdout;
    },
    get stderr() {
      return output.stderr;
    },
    said: (pattern) => waiting.wait({ awaited: `output like ${pattern}`, seen: all, attempt: () => pattern.exec(all()) ?? undefined }),
    exited: () => waiting.wait({ awaited: 'the process to exit', seen: all, attempt: () => ended }),
  };
}

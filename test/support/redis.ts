// A redis-server of a test's own, on a free loopback port, that can die, freeze and come back.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Test } from 'tap';
import { findFreePort } from './servers.ts';

const binary = (process.env.PATH ?? '')
  .split(delimiter)
  .map((folder) => join(folder, 'redis-server'))
  .find((file) => existsSync(file));

/** For a test's `skip`. */
export const isRedisMissing = binary === undefined && 'redis-server is not installed';

/** Should a test fail or be ended, nothing stays behind. */
const servers = new Set<ChildProcess>();
process.once('exit', () => {
  for (const server of servers) server.kill('SIGKILL');
});
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));

export interface TestRedis {
  readonly port: number;
  readonly url: string;
  /** SIGKILL; resolves once it is gone. */
  kill(): Promise<void>;
  /** Starts it again on the same port, with nothing in it. */
  start(): Promise<void>;
  /** It accepts connections and answers nothing. */
  freeze(): void;
  thaw(): void;
}

/** @param settings as on redis-server's command line: `['--requirepass', 'secret']` */
export async function startRedis(t: Test, settings: readonly string[] = []): Promise<TestRedis> {
  const port = await findFreePort();
  const folder = t.testdir({});
  let child: ChildProcess | undefined;
  async function kill(): Promise<void> {
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const gone = once(child, 'exit');
    child.kill('SIGKILL');
    await gone;
  }
  async function start(): Promise<void> {
    const options = ['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no', '--dir', folder, ...settings];
    child = spawn(binary ?? '', options, { stdio: ['ignore', 'pipe', 'inherit'] });
    servers.add(child);
    const said: string[] = [];
    for await (const line of createInterface({ input: child.stdout as NonNullable<typeof child.stdout> })) {
      said.push(line);
      if (line.includes('Ready to accept connections')) {
        child.stdout?.resume();
        return;
      }
    }
    throw new Error(`redis-server did not start: ${said.join('\n')}`);
  }
  t.teardown(kill);
  await start();
  return {
    port,
    url: `redis://127.0.0.1:${port}/0`,
    kill,
    start,
    freeze: () => void child?.kill('SIGSTOP'),
    thaw: () => void child?.kill('SIGCONT'),
  };
}

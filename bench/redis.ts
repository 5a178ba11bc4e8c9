// A redis-server for the limits, on the generators' core: its work is not the contender's.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { findFreePort, findProgram, startProcess } from './contender.ts';

export async function startRedis(cpus: string): Promise<{ readonly url: string; stop(): Promise<void> } | undefined> {
  const program = findProgram('redis-server');
  if (program === undefined) return undefined;
  const port = await findFreePort();
  const folder = mkdtempSync(join(tmpdir(), 'sluicegate-bench-'));
  const options = ['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no', '--dir', folder];
  const running = await startProcess({ command: [program, ...options], port, cpus });
  return {
    url: `redis://127.0.0.1:${port}/0`,
    async stop() {
      await running.stop();
      rmSync(folder, { recursive: true });
    },
  };
}

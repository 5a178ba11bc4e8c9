// Starts the two generators on their core, and talks to them.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { createCertificate } from '../../test/support/tls.ts';
import { pinned } from '../cores.ts';
import type { LoadPlan, LoadResult, UpstreamPlan } from './plan.ts';

export interface Generators {
  readonly upstreamPort: number;
  readonly upstreamTlsPort: number;
  /** The certificate that the upstream's TLS port shows, PEM: its own authority. */
  readonly caFile: string;
  readonly upstreamPid: number;
  configure(plan: UpstreamPlan): Promise<void>;
  run(plan: Omit<LoadPlan, 'upstreamPid'>): Promise<LoadResult>;
  stop(): void;
}

export async function startGenerators(cpus: string): Promise<Generators> {
  const folder = mkdtempSync(join(tmpdir(), 'sluicegate-bench-'));
  const { key, cert } = createCertificate({ validTo: new Date(Date.now() + 24 * 3_600_000) });
  const [keyFile, caFile] = [join(folder, 'key.pem'), join(folder, 'cert.pem')];
  writeFileSync(keyFile, key, { mode: 0o600 });
  writeFileSync(caFile, cert);
  const upstream = start('upstream.ts', cpus, [keyFile, caFile]);
  const load = start('load.ts', cpus, []);
  const [[ports], _] = await Promise.all([once(upstream, 'message'), once(load, 'message')]);
  const upstreamPid = Number(upstream.pid);
  return {
    upstreamPort: ports.port,
    upstreamTlsPort: ports.tlsPort,
    caFile,
    upstreamPid,
    async configure(plan) {
      upstream.send(plan);
      await once(upstream, 'message');
    },
    async run(plan) {
      load.send({ ...plan, upstreamPid });
      const [result] = await once(load, 'message');
      return result as LoadResult;
    },
    stop() {
      upstream.disconnect();
      load.disconnect();
      rmSync(folder, { recursive: true });
    },
  };
}

function start(file: string, cpus: string, args: string[]): ChildProcess {
  const script = fileURLToPath(new URL(file, import.meta.url));
  const [command = '', ...rest] = pinned(cpus, [process.execPath, '--max-semi-space-size=32', script, ...args]);
  const child = spawn(command, rest, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
  child.once('exit', (code, signal) => {
    if (code !== 0) throw new Error(`the bench's ${file} ended: ${code ?? signal}`);
  });
  return child;
}

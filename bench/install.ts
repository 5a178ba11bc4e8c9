// Fetches the peers into bench/.peers, each by its own package manager. One that cannot be had is told of, and skipped by name later.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { findProgram, peersFolder } from './contender.ts';

const NPM_PEERS = ['fastify@5.12.8', '@fastify/http-proxy@11.6.3', '@portkey-ai/gateway@1.15.2'];
/** With a newer one Portkey answers 500 ("immutable"): it changes headers of an answer that those hand out frozen. */
const OVERRIDES = { '@hono/node-server': '1.13.8' };
/** The newest one names a dependency that PyPI did not have in November 2026. */
const LITELLM = 'litellm[proxy]==1.80.0';
const BIFROST = 'github.com/maximhq/bifrost/transports/bifrost-http@latest';

/** Installs what is missing; never fails. */
export function installPeers(): void {
  mkdirSync(join(peersFolder, 'go'), { recursive: true });
  writeFileSync(join(peersFolder, 'package.json'), JSON.stringify({ private: true, overrides: OVERRIDES }));
  if (!existsSync(join(peersFolder, 'node_modules/@portkey-ai')))
    attempt('npm', ['install', '--no-audit', '--no-fund', '--save-exact', ...NPM_PEERS]);
  if (!existsSync(join(peersFolder, 'venv/bin/litellm'))) {
    attempt('python3', ['-m', 'venv', 'venv']);
    attempt(join(peersFolder, 'venv/bin/pip'), ['install', '--quiet', LITELLM]);
  }
  if (!existsSync(join(peersFolder, 'go/bifrost-http')) && findProgram('go'))
    attempt('go', ['install', BIFROST], { GOBIN: join(peersFolder, 'go') });
}

function attempt(command: string, args: string[], env: Record<string, string> = {}): void {
  console.error(`${command} ${args.join(' ')}`);
  const { status, error } = spawnSync(command, args, {
    cwd: peersFolder,
    env: { ...process.env, ...env },
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  if (status !== 0) console.error(`not installed: ${error?.message ?? `exit code ${status}`}`);
}

// What a contender is to the bench: something between the load and the upstream that can be started, and that is skipped by name where it is missing.
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { delimiter, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { pinned } from './cores.ts';
import { listTree, readParent } from './generators/accounting.ts';

export interface Setup {
  readonly upstreamPort: number;
  /** The way to the upstream is TLS; `caFile` is the authority. */
  readonly isTls: boolean;
  readonly caFile: string;
  readonly workers: number;
  readonly cpus: string;
  /** Where limits are counted, for who can. */
  readonly redisUrl: string | undefined;
  /** A folder of this contender's own for its configuration. */
  readonly folder: string;
}

export interface Running {
  readonly port: number;
  /** The processes that the contender is; their descendants count as well. */
  readonly pids: readonly number[];
  readonly headers: readonly string[];
  readonly path: string;
  readonly model: string;
  stop(): Promise<void>;
}

export interface Contender {
  readonly name: string;
  /** Its version and what is special about its configuration; in the output. */
  describe(): string;
  /** Why it is not there; undefined: it is. */
  isAvailable(): string | undefined;
  /** Why it is not in scenarios of this kind; undefined: it is. */
  cannot?(setup: Setup): string | undefined;
  start(setup: Setup): Promise<Running>;
}

/** The key that contenders put in place of the client's. */
export const UPSTREAM_KEY = 'sk-bench-upstream';
export const CLIENT_KEY = 'sk-bench-client';
export const PLAIN_CALL = { headers: [`Authorization: Bearer ${CLIENT_KEY}`], path: '/v1/chat/completions', model: 'gpt-4o' };

/** Where `--install` puts the peers: not among the product's dependencies. */
export const peersFolder = fileURLToPath(new URL('./.peers', import.meta.url));

const START_WAIT_MS = 60_000;
const STOP_WAIT_MS = 5000;
const alive = new Set<ChildProcess>();
process.once('exit', () => {
  for (const child of alive) child.kill('SIGKILL');
});
// Not 1: that is a regression's.
for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const)
  process.once(signal, () => process.exit(code));

export interface Command {
  readonly command: readonly string[];
  readonly port: number;
  readonly cpus: string;
  readonly env?: Record<string, string>;
  readonly cwd?: string;
}

/** Starts a contender's process on its cores, its output to nowhere; resolves when its port accepts. */
export async function startProcess({ command, port, cpus, env = {}, cwd }: Command): Promise<Running> {
  const [name = '', ...args] = pinned(cpus, [...command]);
  const isTold = Boolean(process.env.BENCH_DEBUG);
  const output = isTold ? 'inherit' : 'ignore';
  const child = spawn(name, args, { stdio: ['ignore', output, output], env: { ...process.env, ...env }, cwd });
  alive.add(child);
  const gone = once(child, 'exit').then(() => alive.delete(child));
  await waitForPort(port, child);
  return {
    ...PLAIN_CALL,
    port,
    pids: [Number(child.pid)],
    async stop() {
      const tree = listTree(Number(child.pid));
      child.kill('SIGTERM');
      await Promise.race([gone, delay(STOP_WAIT_MS, undefined, { ref: false }).then(() => child.kill('SIGKILL'))]);
      await gone;
      await killOrphans(tree);
    },
  };
}

/** Some leave their workers behind. An id that has been given anew by now is no orphan: it has another parent than init. */
async function killOrphans(pids: readonly number[]): Promise<void> {
  await delay(100);
  for (const pid of pids) if (readParent(pid) === 1) process.kill(pid, 'SIGKILL');
}

async function waitForPort(port: number, child: ChildProcess): Promise<void> {
  for (const untilMs = performance.now() + START_WAIT_MS; performance.now() < untilMs; await delay(50)) {
    if (child.exitCode !== null) throw new Error(`${child.spawnargs.join(' ')} ended with ${child.exitCode}; BENCH_DEBUG=1 shows why`);
    const socket = connect(port, '127.0.0.1');
    const isOpen = await new Promise((resolve) => socket.once('connect', () => resolve(true)).once('error', () => resolve(false)));
    socket.destroy();
    if (isOpen) return;
  }
  child.kill('SIGKILL');
  throw new Error(`${child.spawnargs.join(' ')} did not listen within ${START_WAIT_MS / 1000} s`);
}

/** Nobody listens there at the moment. */
export async function findFreePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  return typeof address === 'object' ? (address?.port ?? 0) : 0;
}

/** A program on the PATH, or in Debian's folder for servers. */
export function findProgram(name: string): string | undefined {
  const folders = [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin'];
  return folders.map((folder) => join(folder, name)).find((file) => existsSync(file));
}

/** The first line of what a program says of its version, on either output. */
export function versionOf(program: string, flag: string): string {
  const { stdout, stderr } = spawnSync(program, [flag], { encoding: 'utf8' });
  return `${stdout}${stderr}`.trim().split('\n')[0] ?? '';
}

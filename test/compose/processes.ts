// The services of docker-compose.yml as plain processes, from the same configuration files with addresses of this machine put in.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delayFor } from 'node:timers/promises';
import type { Stack } from './compose.ts';
import type { Verdict } from './judge.ts';
import { root } from './queries.ts';

const read = (path: string) => readFileSync(join(root, path), 'utf8');
const START_MS = 20_000;
/** How long a process may take to end when it is asked to. */
const END_MS = 3000;
/** What stop_grace_period allows the gateway, for its streams. */
const DRAIN_MS = 75_000;

/** Free a moment ago. */
export async function findFreePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  return typeof address === 'object' ? (address?.port ?? 0) : 0;
}

/** Resolves once the URL answers 2xx; rejects when that takes too long. */
export async function waitFor(url: string, patienceMs = START_MS): Promise<void> {
  const untilMs = performance.now() + patienceMs;
  for (;;) {
    const isThere = await fetch(url, { signal: AbortSignal.timeout(2000) }).then(
      ({ ok }) => ok,
      () => false,
    );
    if (isThere) return;
    if (performance.now() > untilMs) throw new Error(`${url} does not answer`);
    await delayFor(100);
  }
}

/** Starts demo, gateway, callers, Redis, nginx and Prometheus on free ports. */
export async function startProcesses(): Promise<Stack> {
  const folder = mkdtempSync(join(tmpdir(), 'sluicegate-stack-'));
  const children: ChildProcess[] = [];
  const names = ['demo', 'api', 'ops', 'redis', 'edge', 'prometheus'] as const;
  const ports = Object.fromEntries(await Promise.all(names.map(async (name) => [name, await findFreePort()] as const)));
  const at = (name: (typeof names)[number]) => `127.0.0.1:${ports[name]}`;

  function start(file: string, args: string[], env: Record<string, string> = {}): ChildProcess {
    const child = spawn(file, args, {
      cwd: folder,
      env: { PATH: `${process.env.PATH}:/usr/sbin`, ...env },
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    let said = '';
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      said = (said + text).slice(-2000);
    });
    child.once('close', (code) => code !== 0 && code !== null && console.log(`${file} ended with ${code}: ${said}`));
    children.push(child);
    return child;
  }

  async function stop(): Promise<void> {
    const live = children.filter(({ exitCode, signalCode }) => exitCode === null && signalCode === null);
    // Asked first: a master of nginx's that is killed leaves its workers behind.
    for (const child of live) child.kill('SIGTERM');
    const killing = setTimeout(() => {
      for (const child of live) child.kill('SIGKILL');
    }, END_MS);
    await Promise.all(live.map((child) => child.exitCode === null && child.signalCode === null && once(child, 'exit')));
    clearTimeout(killing);
    rmSync(folder, { recursive: true, force: true });
  }
  process.once('exit', () => {
    for (const child of children) child.kill('SIGKILL');
  });

  let gateway: ChildProcess;
  try {
    const main = join(root, 'src/main.ts');
    const settings = read('config/compose/demo.yaml').replaceAll('demo:8081', at('demo'));
    writeFileSync(join(folder, 'sluicegate.yaml'), settings.replace('0.0.0.0:8080', at('api')).replace('0.0.0.0:9464', at('ops')));
    writeFileSync(join(folder, 'ops-token'), 'demo');
    const scrape = read('config/prometheus/prometheus.yml').replace('gateway:9464', at('ops')).replace('localhost:9090', at('prometheus'));
    writeFileSync(join(folder, 'prometheus.yml'), scrape.replace('/tmp/ops-token', join(folder, 'ops-token')));
    writeFileSync(join(folder, 'rules.yaml'), read('config/prometheus/rules.yaml'));
    const edge = read('config/nginx/sluicegate.conf')
      .replaceAll('gateway:8080', at('api'))
      .replace('listen 80;', `listen ${at('edge')};`);
    writeFileSync(join(folder, 'sluicegate.conf'), edge);
    const nginx = read('config/nginx/nginx.conf').replaceAll('/tmp/', `${folder}/`).replaceAll('/etc/nginx/sluicegate', folder);
    writeFileSync(
      join(folder, 'nginx.conf'),
      nginx.replace('/dev/stdout', join(folder, 'access.log')).replace(/^worker_rlimit_nofile.*$/m, ''),
    );
    mkdirSync(join(folder, 'data'));

    start('redis-server', ['--port', String(ports.redis), '--bind', '127.0.0.1', '--save', '', '--maxmemory-policy', 'noeviction']);
    start(process.execPath, [main, 'demo', '--listen', at('demo')]);
    await waitFor(`http://${at('demo')}/v1/models`);
    gateway = start(process.execPath, [main, 'serve', '-c', 'sluicegate.yaml'], { LIMITS_STORE: `redis://${at('redis')}/0` });
    await waitFor(`http://${at('ops')}/readyz`);
    const keys = ['sk-demo-web-app', 'sk-demo-mobile', 'sk-demo-batch', 'sk-demo-trial'];
    start(process.execPath, [main, 'traffic', `http://${at('api')}/v1`, ...keys]);
    start('nginx', ['-e', 'stderr', '-c', join(folder, 'nginx.conf'), '-g', 'daemon off;']);
    const data = `--storage.tsdb.path=${join(folder, 'data')}`;
    start('prometheus', ['--config.file=prometheus.yml', data, `--web.listen-address=${at('prometheus')}`]);
    await Promise.all([waitFor(`http://${at('edge')}/readyz`), waitFor(`http://${at('prometheus')}/-/ready`)]);
  } catch (error) {
    await stop();
    throw error;
  }
  async function end(): Promise<Verdict> {
    const ended = once(gateway, 'exit', { signal: AbortSignal.timeout(DRAIN_MS) });
    gateway.kill('SIGTERM');
    const [code] = await ended;
    return { name: 'the gateway lets its streams finish and ends when it is told to', fault: code === 0 ? undefined : `code ${code}` };
  }
  return {
    prometheusUrl: `http://${at('prometheus')}`,
    edgeUrl: `http://${at('edge')}`,
    gatewayUrl: `http://${at('api')}`,
    check: async () => [],
    end,
    stop,
  };
}

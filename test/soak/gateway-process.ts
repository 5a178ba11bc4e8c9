// A gateway in a process of its own, as a soak watches it: every log line, every metric, its memory, its descriptors and its loop.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { stringify } from 'yaml';
import { type Metrics, parseMetrics } from '../support/metrics.ts';

/** What loop-watch.ts tells: the longest turn since the last telling, in milliseconds; bytes once garbage is gone. */
export interface Watched {
  readonly wallMs: number;
  readonly ranMs: number;
  /** By how much the loop was late, in 99 of 100 turns no more. */
  readonly delayP99Ms: number;
  readonly heap: number;
  readonly outside: number;
  readonly resident: number;
}

export type RequestLine = Record<string, unknown> & {
  readonly requestId: string;
  readonly outcome: string;
  readonly bytesIn: number;
  readonly bytesOut: number;
  readonly tokens?: Record<string, number | string>;
};

export interface GatewayProcess {
  readonly port: number;
  scrape(): Promise<string>;
  metrics(): Promise<Metrics>;
  watch(): Promise<Watched>;
  /** Open file descriptors. */
  descriptors(): number;
  /** Writes a configuration (or text that is none) and sends SIGHUP; resolves when the gateway has said what it made of it. */
  reload(configuration: object | string): Promise<void>;
  /** SIGTERM; resolves with the exit code. */
  stop(): Promise<number | null>;
}

export interface GatewayProcessParts {
  readonly configuration: object;
  /** Each line on standard output, as it stands. */
  onLine?(line: string): void;
  /** The same, for requests that ended. */
  onRequest?(line: RequestLine): void;
}

const mainFile = fileURLToPath(new URL('../../src/main.ts', import.meta.url));
const loopWatch = fileURLToPath(new URL('./loop-watch.ts', import.meta.url));

/** Starts it on free ports of 127.0.0.1; resolves when it listens. */
export async function startGatewayProcess({ configuration, onLine, onRequest }: GatewayProcessParts): Promise<GatewayProcess> {
  const folder = mkdtempSync(join(tmpdir(), 'sluicegate-soak-'));
  const file = join(folder, 'c.yaml');
  const toYaml = (given: object) =>
    stringify({ server: { listen: '127.0.0.1:0' }, ops: { listen: '127.0.0.1:0' }, log: { format: 'json' }, ...given });
  writeFileSync(file, toYaml(configuration));
  const child = spawn(process.execPath, [`--import=${loopWatch}`, mainFile, '-c', file], { stdio: ['ignore', 'pipe', 'pipe'] });
  // Should whoever watches it fail or be ended, nothing stays behind.
  process.once('exit', () => child.kill('SIGKILL'));
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));
  const told = createTeller();
  createInterface({ input: child.stdout }).on('line', (line) => {
    onLine?.(line);
    const parsed = JSON.parse(line) as Record<string, unknown>;
    if (parsed.outcome !== undefined) onRequest?.(parsed as RequestLine);
    else told.tell(String(parsed.msg), line);
  });
  createInterface({ input: child.stderr }).on('line', (line) => {
    if (line.startsWith('loop-watch {')) told.tell('loop-watch', line.slice(11));
    else if (/warning/i.test(line)) process.stderr.write(`gateway: ${line}\n`);
  });
  const { url, opsUrl } = JSON.parse(await told.heard('listening')) as { url: string; opsUrl: string };
  const scrape = async () => (await fetch(`${opsUrl}/metrics`)).text();

  return {
    port: Number(new URL(url).port),
    scrape,
    metrics: async () => parseMetrics(await scrape()),
    async watch() {
      const answer = told.heard('loop-watch');
      child.kill('SIGWINCH');
      return JSON.parse(await answer);
    },
    descriptors: () => readdirSync(`/proc/${child.pid}/fd`).length,
    async reload(given) {
      const answer = told.heard('configuration reloaded', 'the new configuration was not taken; the old one stays');
      writeFileSync(file, typeof given === 'string' ? given : toYaml(given));
      child.kill('SIGHUP');
      await answer;
    },
    async stop() {
      const code = await stop(child);
      rmSync(folder, { recursive: true });
      return code;
    },
  };
}

async function stop(child: ChildProcess): Promise<number | null> {
  const closed = once(child, 'close');
  child.kill('SIGTERM');
  const [code] = (await closed) as [number | null];
  return code;
}

/** What a process says from now on, by its first words. */
function createTeller() {
  const listeners = new Map<string, (line: string) => void>();
  return {
    tell: (message: string, line: string) => listeners.get(message)?.(line),
    heard: (...messages: string[]) =>
      new Promise<string>((resolve) => {
        for (const message of messages) listeners.set(message, resolve);
      }),
  };
}

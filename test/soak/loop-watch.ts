// Preloaded into a gateway process (--import): tells on SIGWINCH the longest turn of its loop since the last telling, the 99th of a hundred
// by its delay, and what its memory holds; blocks the loop for a while on SIGPWR.
import { readFileSync } from 'node:fs';
import { createHistogram } from 'node:perf_hooks';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { isMainThread } from 'node:worker_threads';

interface Reading {
  readonly atMs: number;
  /** How long the kernel has let the main thread run. */
  readonly ranMs: number;
}

/** A fraction of what is looked for, so that each turn has a reading at its end. */
const EVERY_MS = 2;
const BLOCK_MS = 800;
const { pid } = process;

/** /proc/PID/task/TID/schedstat (Linux, Documentation/scheduler/sched-stats): nanoseconds run first. */
function read(): Reading {
  const [ran = 0] = readFileSync(`/proc/self/task/${pid}/schedstat`, 'utf8').split(' ').map(Number);
  return { atMs: performance.now(), ranMs: ran / 1e6 };
}

/** What is held once garbage is gone, in bytes: inside V8's heap, outside of it, and all that the process occupies. */
function weigh(): { heap: number; outside: number; resident: number } {
  setFlagsFromString('--expose-gc');
  const collect: () => void = runInNewContext('gc');
  collect();
  const { heapUsed, external, rss } = process.memoryUsage();
  return { heap: heapUsed, outside: external, resident: rss };
}

function watch(): void {
  let last = read();
  const delays = createHistogram();
  let wallMs = 0;
  let ranMs = 0;
  setInterval(() => {
    const now = read();
    wallMs = Math.max(wallMs, now.atMs - last.atMs);
    delays.record(Math.max(1, Math.round((now.atMs - last.atMs - EVERY_MS) * 1000)));
    ranMs = Math.max(ranMs, now.ranMs - last.ranMs);
    last = now;
  }, EVERY_MS).unref();
  process.on('SIGPWR', () => {
    process.stderr.write('loop-watch blocks\n');
    for (const untilMs = performance.now() + BLOCK_MS; performance.now() < untilMs; );
  });
  process.on('SIGWINCH', () => {
    process.stderr.write(`loop-watch ${JSON.stringify({ wallMs, ranMs, delayP99Ms: delays.percentile(99) / 1000, ...weigh() })}\n`);
    last = read();
    wallMs = ranMs = 0;
    delays.reset();
  });
}

if (isMainThread && process.argv[1]?.endsWith('main.ts')) watch();

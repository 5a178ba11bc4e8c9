// What a soak finds and measures, as it is told: findings as they come, figures by name, and an exit code in the end.
import { slopePerMinute } from './figures.ts';
import type { Watched } from './gateway-process.ts';

export type Weight = Pick<Watched, 'heap' | 'outside' | 'resident'> & { readonly atMs: number };

const findings: string[] = [];

export function find(what: string): void {
  findings.push(what);
  if (findings.length <= 20) process.stderr.write(`finding: ${what}\n`);
}

export function print(name: string, value: unknown): void {
  console.log(`${name.padEnd(34)} ${typeof value === 'object' ? JSON.stringify(value) : value}`);
}

/** To be called last. */
export function conclude(): void {
  console.log(findings.length === 0 ? 'nothing found' : `${findings.length} findings`);
  process.exitCode = findings.length === 0 ? 0 : 1;
}

/** Code and tables that are still warming up grow by less once a run is some minutes old; a leak does not. */
const LEAK_MIB_A_MINUTE = 0.5;
/** Of a run shorter than this, the last half says nothing about leaks. */
const WARM_MINUTES = 8;

/**
 * Prints what was held once garbage was gone, over the last half of the run apart, and finds a leak where that rises clearly.
 * @param isSteady whether what is live holds no more as it grows older
 */
export function printMemory(weights: readonly Weight[], isSteady = true): void {
  const held = weights.map(({ heap, outside, atMs }) => ({ atMs, value: (heap + outside) / 1_048_576 }));
  const heap = weights.map(({ heap: bytes, atMs }) => ({ atMs, value: bytes / 1_048_576 }));
  const lastHalf = <T>(points: readonly T[]) => points.slice(Math.floor(points.length / 2));
  const show = (points: readonly { atMs: number; value: number }[]) =>
    `${slopePerMinute(points).toFixed(2)} MiB a minute, from ${points[0]?.value.toFixed(1)} to ${points.at(-1)?.value.toFixed(1)} MiB`;
  print('held after GC', show(held));
  print('held after GC, last half', show(lastHalf(held)));
  print('heap after GC, last half', show(lastHalf(heap)));
  const resident = lastHalf(weights).map(({ resident: bytes, atMs }) => ({ atMs, value: bytes / 1_048_576 }));
  print('resident memory, last half', show(resident));
  const ranMinutes = ((weights.at(-1)?.atMs ?? 0) - (weights[0]?.atMs ?? 0)) / 60_000;
  const slope = slopePerMinute(lastHalf(heap));
  if (isSteady && ranMinutes > WARM_MINUTES && slope > LEAK_MIB_A_MINUTE)
    find(`the heap rises by ${slope.toFixed(2)} MiB a minute in the last half: a leak`);
}

// What processes have used, from the kernel's own books: /proc/PID/stat of each and of all that descend from it.
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';

/** Seconds of CPU since each process began, and memory now. */
export interface Usage {
  readonly userS: number;
  readonly kernelS: number;
  /** Resident memory, summed: what processes share is counted once for each. */
  readonly rssKb: number;
}

/** Seconds of all cores together since the machine began. */
export interface MachineUsage {
  /** In processes, whoever's. */
  readonly busyS: number;
  /** Taken by the hypervisor for others. */
  readonly stolenS: number;
}

/** USER_HZ: 100 on every Linux that Node runs on. The kernel keeps the sum of both parts exact, and splits it by sampling. */
const TICKS_A_SECOND = 100;
const PAGE_KB = Number(execFileSync('getconf', ['PAGESIZE'], { encoding: 'utf8' })) / 1024;

/** A process and all its descendants, as they are now. */
export function listTree(pid: number): number[] {
  const children = readTasks(pid).flatMap((task) =>
    readOr(`/proc/${pid}/task/${task}/children`, '').split(' ').filter(Boolean).map(Number),
  );
  return [pid, ...children.flatMap(listTree)];
}

/** The parent's id; undefined: there is no such process. */
export function readParent(pid: number): number | undefined {
  const line = readOr(`/proc/${pid}/stat`, '');
  return line === '' ? undefined : Number(line.slice(line.lastIndexOf(')') + 2).split(' ')[1]);
}

/** Sums up what these processes and their descendants have used; what has ended by now is not in it. */
export function readUsage(pids: readonly number[]): Usage {
  const rows = pids.flatMap(listTree).map((pid) => parseStat(readOr(`/proc/${pid}/stat`, '')));
  const sum = (of: (row: Usage) => number) => rows.reduce((total, row) => total + of(row), 0);
  return { userS: sum((row) => row.userS), kernelS: sum((row) => row.kernelS), rssKb: sum((row) => row.rssKb) };
}

/** One line of /proc/PID/stat (proc(5)): after the name in brackets, utime is the 12th field, stime the 13th, rss the 22nd. */
export function parseStat(line: string): Usage {
  const fields = line.slice(line.lastIndexOf(')') + 2).split(' ');
  const field = (n: number) => Number(fields[n - 1] ?? 0) || 0;
  return { userS: field(12) / TICKS_A_SECOND, kernelS: field(13) / TICKS_A_SECOND, rssKb: field(22) * PAGE_KB };
}

/** The first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal. */
export function readMachine(): MachineUsage {
  const [user = 0, nice = 0, system = 0, , , , , steal = 0] =
    readFileSync('/proc/stat', 'utf8').split('\n')[0]?.split(/\s+/).slice(1).map(Number) ?? [];
  return { busyS: (user + nice + system) / TICKS_A_SECOND, stolenS: steal / TICKS_A_SECOND };
}

function readTasks(pid: number): string[] {
  try {
    return readdirSync(`/proc/${pid}/task`);
  } catch {
    return [];
  }
}

function readOr(file: string, otherwise: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return otherwise;
  }
}

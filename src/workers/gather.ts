// The metrics of all processes as those of one gateway, in which what a process counted outlives it.
import { addUp, countsOf, type Extent, type Instruments, type Page, type Snapshot, writePage } from '../telemetry/registry.ts';
import { inTime } from './line.ts';

/** A process that counts. */
export interface Counting {
  read(extent: Extent): Promise<Snapshot>;
}

export interface MetricsOfAll {
  add(process: Counting): void;
  /** It has told its last counts itself. */
  farewell(process: Counting, counts: Snapshot): void;
  /** It is gone; what it had counted when it was last looked at stays. */
  bury(process: Counting): void;
  scrape(accept: string): Promise<Page>;
  close(): void;
}

/** How often counts are brought to safety: what a killed process counted since is lost. */
const KEEP_MS = 1_000;
/** And how often at most where they are many, for a hundredth of a worker's time: a sample takes 2 µs to read and to send. */
const KEEP_SAMPLE_MS = 0.2;
/** A process that does not answer in this time is busy; its last counts then stand for it. */
const READ_MS = 3_000;

/** @param own the metrics of this process, which serves no requests itself */
export function gatherMetrics(own: Pick<Instruments, 'read'>): MetricsOfAll {
  /** What each has counted, as last seen. */
  const counts = new Map<Counting, Snapshot>();
  /** Counts of those that are gone. */
  let departed: Snapshot[] = [];
  let timer = setTimeout(keep, KEEP_MS).unref();
  let isClosed = false;

  /** Undefined where it does not answer. */
  async function read(process: Counting, extent: Extent): Promise<Snapshot | undefined> {
    const answer = process.read(extent).then((snapshot) => {
      // One that comes too late for whoever asked is kept all the same.
      if (counts.has(process)) counts.set(process, countsOf(snapshot));
      return snapshot;
    });
    return inTime(answer, READ_MS);
  }

  async function keep(): Promise<void> {
    await Promise.all([...counts.keys()].map((process) => read(process, 'counts')));
    const gone = departed.length;
    if (gone > 1) departed = [await addUp(departed.slice(0, gone)), ...departed.slice(gone)];
    const samples = Math.max(0, ...[...counts.values()].map((snapshot) => snapshot.reduce((sum, { values }) => sum + values.length, 0)));
    if (!isClosed) timer = setTimeout(keep, Math.max(KEEP_MS, samples * KEEP_SAMPLE_MS)).unref();
  }

  return {
    add: (process) => void counts.set(process, []),
    farewell(process, last) {
      if (counts.has(process)) counts.set(process, last);
    },
    bury(process) {
      departed.push(counts.get(process) ?? []);
      counts.delete(process);
    },
    async scrape(accept) {
      const ownSnapshot = await own.read('all');
      const processes = [...counts.keys()];
      const snapshots = await Promise.all(processes.map((process) => read(process, 'all')));
      // One that died meanwhile is among the departed already.
      const alive = processes.flatMap((process, at) => (counts.has(process) ? [snapshots[at] ?? counts.get(process) ?? []] : []));
      return writePage(await addUp([ownSnapshot, ...departed, ...alive]), accept);
    },
    close() {
      isClosed = true;
      clearTimeout(timer);
    },
  };
}

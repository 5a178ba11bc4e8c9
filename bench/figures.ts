// The figures: what each means, in which unit, and from which counts it is computed.
import type { LoadResult } from './generators/plan.ts';

export interface Figure {
  /** As a column's head. */
  readonly label: string;
  readonly unit: string;
  /** One sentence: how it is computed. */
  readonly meaning: string;
  readonly digits: number;
  /** Where more is better; elsewhere less is. */
  readonly isMoreBetter?: true;
  /** Also shown less what `direct` needed in the same run. */
  readonly isAdded?: true;
}

export const figures = {
  cpuPerEventUs: {
    label: 'CPU/event',
    unit: 'µs',
    digits: 1,
    meaning:
      "the contender's CPU time, user and kernel, from /proc/PID/stat of its processes, over the events that arrived; the streams' beginnings and ends are in it",
  },
  userPerEventUs: { label: 'user', unit: 'µs', digits: 1, meaning: 'the part of it outside the kernel' },
  kernelPerEventUs: { label: 'kernel', unit: 'µs', digits: 1, meaning: 'the part of it in the kernel' },
  eventP50Us: {
    label: 'event p50',
    unit: 'µs',
    digits: 0,
    isAdded: true,
    meaning: "from an event's write at the upstream to its read at the client",
  },
  eventP99Us: { label: 'p99', unit: 'µs', digits: 0, isAdded: true, meaning: 'the same, 99 of 100 events' },
  eventP999Us: { label: 'p99.9', unit: 'µs', digits: 0, isAdded: true, meaning: 'the same, 999 of 1,000 events' },
  ttfbP50Us: { label: 'TTFB p50', unit: 'µs', digits: 0, isAdded: true, meaning: "from the request's write to the answer's first byte" },
  ttfbP99Us: { label: 'TTFB p99', unit: 'µs', digits: 0, isAdded: true, meaning: 'the same, 99 of 100 calls' },
  ttftP50Us: {
    label: 'TTFT p50',
    unit: 'µs',
    digits: 0,
    isAdded: true,
    meaning: "from the request's write to the first event, which the upstream sends at once",
  },
  ttftP99Us: { label: 'TTFT p99', unit: 'µs', digits: 0, isAdded: true, meaning: 'the same, 99 of 100 calls' },
  ttftP999Us: { label: 'TTFT p99.9', unit: 'µs', digits: 0, isAdded: true, meaning: 'the same, 999 of 1,000 calls' },
  callP50Us: { label: 'call p50', unit: 'µs', digits: 0, isAdded: true, meaning: "from the request's write to the answer's last byte" },
  callP99Us: { label: 'call p99', unit: 'µs', digits: 0, isAdded: true, meaning: 'the same, 99 of 100 calls' },
  callsPerSecond: { label: 'calls/s', unit: '1/s', digits: 0, isMoreBetter: true, meaning: 'calls that ended whole, a second' },
  cpuPerCallUs: {
    label: 'CPU/call',
    unit: 'µs',
    digits: 0,
    meaning: "the contender's CPU time over the calls that ended, whole or left by their client",
  },
  eventsPerSecond: { label: 'events/s', unit: '1/s', digits: 0, isMoreBetter: true, meaning: 'events that arrived, a second' },
  streamsHeld: {
    label: 'streams held',
    unit: '',
    digits: 0,
    isMoreBetter: true,
    meaning: 'the most streams of 50 events a second in whose measured time no event took longer than 50 ms',
  },
  idleKb: {
    label: 'idle stream',
    unit: 'KB',
    digits: 1,
    meaning: 'growth of resident memory over the open streams that have had a head and no event yet',
  },
  busyKb: { label: 'busy stream', unit: 'KB', digits: 1, meaning: 'growth of resident memory over the open streams while events flow' },
  rssMb: { label: 'RSS', unit: 'MB', digits: 0, meaning: "resident memory at the measured time's end, of all its processes" },
  rssFreshMb: { label: 'RSS fresh', unit: 'MB', digits: 0, meaning: 'resident memory after the start, before the first call' },
  rssWarmMb: { label: 'RSS before', unit: 'MB', digits: 0, meaning: 'resident memory after a tenth of the calls, at rest' },
  rssAfterMb: { label: 'RSS after', unit: 'MB', digits: 0, meaning: 'resident memory after all the calls, at rest' },
  growthPercent: { label: 'growth', unit: '%', digits: 1, meaning: 'RSS after over RSS before, less one' },
  failed: {
    label: 'failed',
    unit: '',
    digits: 0,
    meaning: "calls with another status than 200, refused, or ended before the answer's end",
  },
  contenderCores: { label: 'cores', unit: '', digits: 2, meaning: 'cores that the contender kept busy' },
  upstreamCores: { label: 'upstream', unit: 'cores', digits: 2, meaning: 'cores that the upstream kept busy' },
  loadCores: {
    label: 'load',
    unit: 'cores',
    digits: 2,
    meaning: 'cores that the load kept busy: where the two have used up their core, they are what is measured',
  },
  foreignCores: {
    label: 'others',
    unit: 'cores',
    digits: 2,
    meaning: 'cores that other processes kept busy, or the hypervisor took: above some hundredths, the run is disturbed',
  },
} satisfies Record<string, Figure>;

export type FigureName = keyof typeof figures;
export type Figures = Partial<Record<FigureName, number>>;

/** What every run tells of itself. */
export function healthOf(result: LoadResult): Figures {
  return {
    failed: result.failed,
    contenderCores: cpuOf(result) / result.seconds,
    upstreamCores: result.upstreamCores,
    loadCores: result.loadCores,
    foreignCores: result.foreignCores,
  };
}

export function eventFigures(result: LoadResult): Figures {
  const perEventUs = (seconds: number) => (seconds * 1e6) / result.events;
  return {
    cpuPerEventUs: perEventUs(cpuOf(result)),
    userPerEventUs: perEventUs(result.contender.userS),
    kernelPerEventUs: perEventUs(result.contender.kernelS),
    eventP50Us: result.event.p50Us,
    eventP99Us: result.event.p99Us,
    eventP999Us: result.event.p999Us,
    ttftP50Us: result.firstEvent.p50Us,
    ttftP99Us: result.firstEvent.p99Us,
    eventsPerSecond: result.events / result.seconds,
    rssMb: result.contender.rssKb / 1024,
    ...healthOf(result),
  };
}

export function callFigures(result: LoadResult): Figures {
  return {
    callsPerSecond: result.calls / result.seconds,
    cpuPerCallUs: (cpuOf(result) * 1e6) / (result.calls + result.aborted),
    callP50Us: result.call.p50Us,
    callP99Us: result.call.p99Us,
    rssMb: result.contender.rssKb / 1024,
    ...healthOf(result),
  };
}

export function firstByteFigures(result: LoadResult): Figures {
  return {
    ttfbP50Us: result.firstByte.p50Us,
    ttfbP99Us: result.firstByte.p99Us,
    ttftP50Us: result.firstEvent.p50Us,
    ttftP99Us: result.firstEvent.p99Us,
    ttftP999Us: result.firstEvent.p999Us,
    ...healthOf(result),
  };
}

function cpuOf({ contender }: LoadResult): number {
  return contender.userS + contender.kernelS;
}

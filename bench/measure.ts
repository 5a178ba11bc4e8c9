// How each kind of scenario is measured: what the generators are asked, and which figures become of it.
import { setTimeout as delay } from 'node:timers/promises';
import type { Running } from './contender.ts';
import { callFigures, eventFigures, type Figures, firstByteFigures, healthOf } from './figures.ts';
import { readUsage } from './generators/accounting.ts';
import type { Generators } from './generators/generators.ts';
import type { LoadPlan, LoadResult } from './generators/plan.ts';
import type { Scenario } from './scenarios.ts';

export interface Pace {
  /** So long a contender works before its first round: compilers have compiled, pools are filled. */
  readonly firstWarmupMs: number;
  /** And before each of them. */
  readonly warmupMs: number;
  readonly measureMs: number;
}

export interface Measuring {
  readonly generators: Generators;
  readonly running: Running;
  readonly scenario: Scenario;
  readonly pace: Pace;
}

type Kind = Scenario['kind'];

/** Between runs, so that what the last one left is gone: connections that close, garbage that is collected. */
const REST_MS = 300;
/** So long it takes at least until all buffers between a flood and its slow reader are full. */
const FLOOD_MS = 8000;
/** At rest, memory is given back for so long before it is weighed. */
const SETTLE_MS = 5000;
const CAPACITY_RATE = 50;
const UNBOUNDED = Number.MAX_SAFE_INTEGER;

/** One measurement of one contender. */
export async function measure(measuring: Measuring): Promise<Figures> {
  const figures = await kinds[measuring.scenario.kind](measuring);
  await delay(REST_MS);
  return figures;
}

/**
 * Work for compilers: short streams and short calls as fast as they are answered, then what the scenario is made of. At the scenario's
 * own pace, what Node compiles would be compiled after a minute, beside what is measured and on the same core.
 */
export async function warmUp(measuring: Measuring): Promise<void> {
  const { generators, running, scenario, pace } = measuring;
  await generators.configure({ events: 20, intervalMs: 0, firstTokenMs: 0 });
  const busy = { ...planOf(running, scenario), connections: 20, spreadMs: 0, warmupMs: 0, measureMs: pace.firstWarmupMs / 3 };
  for (const isStreamed of [false, true]) await generators.run({ ...busy, isStreamed });
  await delay(REST_MS);
  await runPaced(
    { ...measuring, pace: { ...pace, warmupMs: pace.firstWarmupMs / 3, measureMs: 0 } },
    { isStreamed: scenario.kind !== 'calls', spreadMs: 1000 },
  );
  await delay(REST_MS);
}

/** Contenders of these kinds are started anew for each measurement: memory is what is measured. */
export function needsFreshStart(kind: Kind): boolean {
  return kind === 'memory' || kind === 'churn' || kind === 'slowReaders';
}

const kinds: Record<Kind, (measuring: Measuring) => Promise<Figures>> = {
  async stream(measuring) {
    return eventFigures(await runPaced(measuring, {}));
  },
  async oneAtATime(measuring) {
    return firstByteFigures(await runPaced(measuring, {}));
  },
  async calls(measuring) {
    return callFigures(await runPaced(measuring, { isStreamed: false, spreadMs: 0 }));
  },
  slowReaders: async (measuring) => {
    const rssFreshMb = rssMb(measuring);
    return { rssFreshMb, ...eventFigures(await runPaced(measuring, { slowShare: 0.2, warmupMs: FLOOD_MS })) };
  },
  capacity: measureCapacity,
  memory: measureMemory,
  churn: measureChurn,
};

/** Runs the load that the scenario tells of, but for what is given. */
async function runPaced({ generators, running, scenario, pace }: Measuring, given: Partial<LoadPlan>): Promise<LoadResult> {
  const intervalMs = scenario.rate === 0 ? 0 : 1000 / scenario.rate;
  await generators.configure({ events: scenario.events, intervalMs, firstTokenMs: 0 });
  const plan = { ...planOf(running, scenario), ...pace, ...given };
  // All streams are there before anything is measured.
  return generators.run({ ...plan, warmupMs: Math.max(plan.warmupMs, plan.maxCalls === UNBOUNDED ? plan.spreadMs * 1.1 : 0) });
}

function planOf({ port, headers, path, model, pids }: Running, scenario: Scenario) {
  const streamMs = scenario.rate === 0 ? 500 : (1000 * (scenario.events + 1)) / scenario.rate;
  return {
    port,
    headers,
    path,
    model,
    pids,
    isStreamed: true,
    connections: scenario.streams,
    // Over the length of a stream, so that as many begin as end at any time.
    spreadMs: scenario.start === 'instant' ? 0 : streamMs,
    promptBytes: scenario.promptBytes,
    maxCalls: UNBOUNDED,
    abortShare: 0,
    slowShare: 0,
  };
}

/** Doubles until a number is not held, then halves the distance, down to a sixteenth. A number is held if one of two tries holds it. */
async function measureCapacity(measuring: Measuring): Promise<Figures> {
  let held = 0;
  let health: Figures = {};
  const holds = async (streams: number): Promise<boolean> => {
    for (let tries = 0; tries < 2; tries++) {
      const result = await runPaced(measuring, { connections: streams, spreadMs: 1000 });
      await delay(REST_MS);
      const isComplete =
        result.events >= 0.97 * streams * CAPACITY_RATE * result.seconds * (measuring.scenario.events / (measuring.scenario.events + 1));
      if (result.lateEvents > 0 || result.failed > 0 || !isComplete) continue;
      held = Math.max(held, streams);
      health = healthOf(result);
      return true;
    }
    return false;
  };
  let tooMany = measuring.scenario.streams;
  while (tooMany < 8000 && (await holds(tooMany))) tooMany *= 2;
  for (let low = held; tooMany - low > tooMany / 16; ) {
    const between = Math.round((low + tooMany) / 2);
    if (await holds(between)) low = between;
    else tooMany = between;
  }
  return { streamsHeld: held, ...health };
}

/** Before the first of the streams, some calls have been made: code and tables that a first call needs are no stream's memory. */
async function measureMemory(measuring: Measuring): Promise<Figures> {
  const { generators, running, scenario } = measuring;
  const rssFreshMb = rssMb(measuring);
  await generators.configure({ events: 20, intervalMs: 5, firstTokenMs: 0 });
  await generators.run({ ...planOf(running, scenario), connections: 50, warmupMs: 0, measureMs: 1500 });
  // Of those that were cut off at its end, tokens are counted: the tables for that take a second or two to load.
  await delay(SETTLE_MS);
  const perStream = (result: LoadResult) => (result.contender.rssKb - result.rssBeforeKb) / scenario.streams;
  await generators.configure({ events: 1, intervalMs: 1000, firstTokenMs: 600_000 });
  const idle = await generators.run({ ...planOf(running, scenario), spreadMs: 2000, warmupMs: 2500, measureMs: 1000 });
  await delay(REST_MS);
  // On top of what the idle ones have left, which is theirs as well: the one base for both.
  const busy = await runPaced(measuring, { spreadMs: 2000, warmupMs: 2500 });
  return {
    rssFreshMb,
    idleKb: perStream(idle),
    busyKb: (busy.contender.rssKb - idle.rssBeforeKb) / scenario.streams,
    rssMb: busy.contender.rssKb / 1024,
    ...healthOf(busy),
  };
}

const CHURN_CALLS = 20_000;

/** The base is a tenth of the calls: what a first load brings once and for all is not growth. */
async function measureChurn(measuring: Measuring): Promise<Figures> {
  const rssFreshMb = rssMb(measuring);
  const churn = { abortShare: 0.3, warmupMs: 0, measureMs: 120_000 };
  await runPaced(measuring, { ...churn, maxCalls: CHURN_CALLS / 10 });
  await delay(SETTLE_MS);
  const rssWarmMb = rssMb(measuring);
  const result = await runPaced(measuring, { ...churn, maxCalls: CHURN_CALLS });
  await delay(SETTLE_MS);
  const rssAfterMb = rssMb(measuring);
  return { ...callFigures(result), rssFreshMb, rssWarmMb, rssAfterMb, growthPercent: (rssAfterMb / rssWarmMb - 1) * 100 };
}

function rssMb({ running }: Measuring): number {
  return readUsage(running.pids).rssKb / 1024;
}

/** One call with a stream, to the end: what does not pass it is not measured. Returns what is wrong. */
export async function verify({ generators, running, scenario }: Omit<Measuring, 'pace'>): Promise<string | undefined> {
  await generators.configure({ events: 5, intervalMs: 5, firstTokenMs: 0 });
  const result = await generators.run({
    ...planOf(running, scenario),
    connections: 1,
    spreadMs: 0,
    maxCalls: 1,
    warmupMs: 0,
    measureMs: 10_000,
  });
  if (result.failed > 0) return 'its answer is not a whole stream with status 200';
  return result.events === 5 ? undefined : `${result.events} of 5 events arrived`;
}

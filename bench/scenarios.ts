// What is measured, as data. Each scenario says which contenders take part, and what is quoted of it.
import type { FigureName } from './figures.ts';

export interface Scenario {
  readonly name: string;
  readonly about: string;
  /** How it is measured: a function of measure.ts. */
  readonly kind: 'stream' | 'oneAtATime' | 'calls' | 'capacity' | 'memory' | 'churn' | 'slowReaders';
  /** Streams at one time; of capacity, the first guess. */
  readonly streams: number;
  /** Events a second of one stream; 0: as fast as they are taken. */
  readonly rate: number;
  /** Events of one stream. */
  readonly events: number;
  readonly start: 'spread' | 'instant';
  readonly promptBytes: number;
  readonly isTls?: true;
  readonly workers?: number;
  /** On the cores of contenders with two workers, beside the generators, whatever its own number. */
  readonly isOnPair?: true;
  /** Limits counted in Redis, for who can count. */
  readonly hasRedis?: true;
  readonly contenders: 'all' | 'main';
  /** The columns of its table, in order; health columns follow. */
  readonly quoted: readonly FigureName[];
  /** No more rounds than so many: it takes long, and spreads little. */
  readonly maxRounds?: number;
  /** Also part of `--quick`. */
  readonly isQuick?: true;
}

const perEvent = [
  'cpuPerEventUs',
  'userPerEventUs',
  'kernelPerEventUs',
  'eventP50Us',
  'eventP99Us',
  'eventP999Us',
  'ttftP50Us',
  'ttftP99Us',
  'eventsPerSecond',
  'rssMb',
] as const;
const firstToken = ['ttfbP50Us', 'ttfbP99Us', 'ttftP50Us', 'ttftP99Us', 'ttftP999Us'] as const;
const perCall = ['callsPerSecond', 'cpuPerCallUs', 'callP50Us', 'callP99Us', 'rssMb'] as const;

const paced: Scenario = {
  name: 'paced',
  about: '200 streams of 100 events at 100 a second, begun one after another: 20,000 events and 200 calls a second',
  kind: 'stream',
  streams: 200,
  rate: 100,
  events: 100,
  start: 'spread',
  promptBytes: 1000,
  contenders: 'all',
  quoted: perEvent,
};

/** 20,000 events a second in all, over more and more streams: what a stream costs by being there. */
const curve = [1000, 5000].map((streams): Scenario => {
  const about = `${streams} streams at ${20_000 / streams} events a second: 20,000 events a second again`;
  return { ...paced, name: `curve-${streams}`, about, streams, rate: 20_000 / streams, contenders: 'main', maxRounds: 3 };
});

const matrix = [200, 1000, 5000].flatMap((streams) =>
  [20, 50, 100].map((rate): Scenario => {
    const about = `${streams} streams at ${rate} events a second: ${streams * rate} events a second where contender and generators can`;
    return { ...paced, name: `matrix-${streams}x${rate}`, about, streams, rate, contenders: 'main', maxRounds: 3 };
  }),
);

const single: Scenario = {
  ...paced,
  name: 'one-at-a-time',
  about: 'one short stream after another on one connection, 1 KB requests: what is added to the first token where nobody else is served',
  kind: 'oneAtATime',
  streams: 1,
  rate: 0,
  events: 5,
  start: 'instant',
  quoted: firstToken,
};

const memory: Scenario = {
  ...paced,
  name: 'memory',
  about: '3,000 streams at one time, idle, then at 4 events a second',
  kind: 'memory',
  streams: 3000,
  rate: 4,
  maxRounds: 3,
  quoted: ['idleKb', 'busyKb', 'rssFreshMb', 'rssMb'],
};

const memoryCurve = [1000, 5000].map((streams): Scenario => {
  return { ...memory, name: `memory-${streams}`, about: `the same with ${streams} streams`, streams, contenders: 'main' };
});

export const scenarios: readonly Scenario[] = [
  { ...paced, isQuick: true },
  {
    ...paced,
    name: 'long',
    about: '200 streams of 1,000 events at 100 a second: 20,000 events and 20 calls a second, so what an event costs and not a call',
    events: 1000,
    maxRounds: 3,
  },
  { ...paced, name: 'instant', about: 'the same, all begun at one instant and then in step: the hardest case for p99', start: 'instant' },
  { ...single, isQuick: true },
  { ...single, name: 'request-100KB', about: 'the same with requests of 100 KB', promptBytes: 100_000 },
  { ...single, name: 'request-1MB', about: 'the same with requests of 1 MB', promptBytes: 1_000_000 },
  {
    ...paced,
    name: 'unpaced',
    about: '200 streams of 1,000 events as fast as they are taken',
    rate: 0,
    events: 1000,
    quoted: ['eventsPerSecond', 'cpuPerEventUs', 'userPerEventUs', 'kernelPerEventUs', 'rssMb'],
  },
  {
    ...paced,
    name: 'short-calls',
    about: 'short calls without a stream, 32 at one time, as fast as they are answered',
    kind: 'calls',
    streams: 32,
    quoted: perCall,
  },
  {
    ...paced,
    name: 'capacity',
    about: 'how many streams of 50 events a second are held with no event later than 50 ms',
    kind: 'capacity',
    maxRounds: 3,
    streams: 200,
    rate: 50,
    events: 250,
    quoted: ['streamsHeld'],
  },
  memory,
  ...memoryCurve,
  ...curve,
  {
    ...paced,
    name: 'churn',
    about: '20,000 streams of 20 events, 30 % of them left by their client in the middle',
    kind: 'churn',
    contenders: 'main',
    maxRounds: 3,
    streams: 100,
    rate: 200,
    events: 20,
    quoted: ['rssFreshMb', 'rssWarmMb', 'rssAfterMb', 'growthPercent', 'cpuPerCallUs'],
  },
  {
    ...paced,
    name: 'slow-readers',
    about: '200 streams at 50 events a second, and among them 50 that ask for a flood and take 16 KiB of it ten times a second',
    kind: 'slowReaders',
    streams: 250,
    rate: 50,
    quoted: ['eventP50Us', 'eventP99Us', 'eventP999Us', 'rssFreshMb', 'rssMb'],
  },
  {
    ...paced,
    name: 'redis',
    about: 'as paced, with the limits of each call counted in Redis (its CPU is not in the figures)',
    hasRedis: true,
    contenders: 'main',
  },
  { ...paced, name: 'tls', about: 'as paced, over TLS to the upstream, as a real provider has it', isTls: true },
  {
    ...paced,
    name: 'one-worker',
    about: 'half of paced, 100 streams, on both cores beside the generators: what one of two workers has to do',
    streams: 100,
    isOnPair: true,
    contenders: 'main',
  },
  { ...paced, name: 'two-workers', about: 'as paced, with two workers on the same cores', workers: 2, isOnPair: true, contenders: 'main' },
  ...matrix,
];

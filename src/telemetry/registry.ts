// Our instruments and Node's, and what they say as plain values: to be sent to another process, added up, and written out by prom-client.
import { setImmediate as nextTurn } from 'node:timers/promises';
import { collectDefaultMetrics, type Metric, Registry } from 'prom-client';
import { Counter, Gauge, Histogram, type MetricValues, type Sample } from './series.ts';

export type Snapshot = readonly MetricValues[];

/** What `GET /metrics` answers. */
export interface Page {
  readonly contentType: string;
  readonly body: string;
}

/** `counts`: counters and histograms, which must not be lost with the process that counted them; `all`: gauges too. */
export type Extent = 'all' | 'counts';

export interface Instruments {
  counter(name: string, help: string, ...labelNames: string[]): Counter;
  gauge(name: string, help: string, ...labelNames: string[]): Gauge;
  histogram(name: string, help: string, buckets: number[], ...labelNames: string[]): Histogram;
  /** Reads a few metrics in each turn of the loop, so that no stream waits for them all. */
  read(extent: Extent): Promise<Snapshot>;
}

/** prom-client's own default metrics that promtool refuses: gauges named like counters. */
const NOT_LINTABLE = ['nodejs_active_handles_total', 'nodejs_active_requests_total', 'nodejs_active_resources_total'];

/** What reading, adding and writing may take of a turn, but for a metric with thousands of series. */
const TURN_MS = 1;

const choose = {
  sum: (one: number, other: number) => one + other,
  first: (one: number) => one,
  min: Math.min,
  max: Math.max,
};

/** What the gauges of several processes come to, where that is not their sum; the first pattern that matches counts. */
const GATHERED: readonly (readonly [name: RegExp, by: keyof typeof choose])[] = [
  [/_info$/, 'first'],
  // Each tells of the one count that all share, of the one configuration, or whether all is well.
  [/^sluicegate_(?:limit|config)_|_up$/, 'min'],
  [/^process_start_time_seconds$|_lag_min_seconds$/, 'min'],
  [/^nodejs_eventloop_lag_/, 'max'],
];

/** Instruments of its own, and Node's metrics of the process. */
export function createInstruments(): Instruments {
  const node = new Registry();
  collectDefaultMetrics({ register: node });
  for (const name of NOT_LINTABLE) node.removeSingleMetric(name);
  const ours: (Counter | Gauge | Histogram)[] = [];

  function keep<Instrument extends Counter | Gauge | Histogram>(instrument: Instrument): Instrument {
    ours.push(instrument);
    return instrument;
  }

  return {
    counter: (name, help, ...labelNames) => keep(new Counter({ name, help, labelNames })),
    gauge: (name, help, ...labelNames) => keep(new Gauge({ name, help, labelNames })),
    histogram: (name, help, buckets, ...labelNames) => keep(new Histogram({ name, help, labelNames }, buckets)),
    async read(extent) {
      const metrics: MetricValues[] = [];
      const turn = createTurn();
      for (const metric of [...(node.getMetricsAsArray() as unknown as Metric[]), ...ours]) {
        const { name, help, type, values } = (await metric.get()) as unknown as MetricValues;
        if (extent === 'all' || type !== 'gauge') metrics.push({ name, help, type, values });
        await turn();
      }
      return metrics;
    },
  };
}

/** Of a snapshot what would be lost with its process. */
export function countsOf(snapshot: Snapshot): Snapshot {
  return snapshot.filter(({ type }) => type !== 'gauge');
}

/** The metrics of several processes as those of one. Not the library's own, which took 60 ms for 10,000 samples, in one turn. */
export async function addUp(snapshots: readonly Snapshot[]): Promise<Snapshot> {
  const named = new Map<string, MetricValues[]>();
  for (const metric of snapshots.flat()) named.set(metric.name, [...(named.get(metric.name) ?? []), metric]);
  const sums: MetricValues[] = [];
  const turn = createTurn();
  for (const [first, ...others] of named.values()) {
    if (first !== undefined) sums.push(others.length === 0 ? first : addUpMetric(first, others));
    await turn();
  }
  return sums;
}

function addUpMetric(first: MetricValues, others: readonly MetricValues[]): MetricValues {
  const by = (first.type === 'gauge' && GATHERED.find(([pattern]) => pattern.test(first.name))?.[1]) || 'sum';
  const samples = new Map(first.values.map((sample) => [keyOf(sample), sample]));
  for (const sample of others.flatMap(({ values }) => values)) {
    const key = keyOf(sample);
    const known = samples.get(key);
    samples.set(key, known === undefined ? sample : { ...known, value: choose[by](known.value, sample.value) });
  }
  return { ...first, values: [...samples.values()] };
}

/** The same code made them all: the labels of a metric stand in one order. */
function keyOf({ metricName = '', labels }: Sample): string {
  let key = metricName;
  for (const name in labels) key += `\0${labels[name]}`;
  return key;
}

/** In the format that `accept` asks for: Prometheus text, or OpenMetrics. */
export async function writePage(snapshot: Snapshot, accept: string): Promise<Page> {
  const isOpenMetrics = accept.includes('application/openmetrics-text');
  const registry = new Registry();
  registry.setContentType(isOpenMetrics ? (Registry.OPENMETRICS_CONTENT_TYPE as never) : Registry.PROMETHEUS_CONTENT_TYPE);
  const texts: string[] = [];
  const turn = createTurn();
  for (const metric of snapshot) {
    // OpenMetrics names a counter without its ending, and the library takes it off for good from whatever it is given.
    const name = isOpenMetrics && metric.type === 'counter' ? metric.name.replace(/_total$/, '') : metric.name;
    registry.registerMetric({ name, type: metric.type, get: () => ({ ...metric, name }) } as unknown as Metric);
    texts.push(await registry.getSingleMetricAsString(name));
    await turn();
  }
  return { contentType: registry.contentType, body: isOpenMetrics ? `${texts.join('\n')}\n# EOF\n` : `${texts.join('\n\n')}\n` };
}

/** @returns resolves in this turn of the loop, or where that has taken its time, in the next one */
function createTurn(): () => Promise<void> {
  let beganMs = performance.now();
  return async () => {
    if (performance.now() - beganMs < TURN_MS) return;
    await nextTurn();
    beganMs = performance.now();
  };
}

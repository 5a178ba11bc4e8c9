// Instruments on prom-client, and what they say as plain values: to be written out, sent to another process, and added up.
import { setImmediate as nextTurn } from 'node:timers/promises';
import { AggregatorRegistry, Counter, collectDefaultMetrics, Gauge, Histogram, type Metric, Registry } from 'prom-client';

export type { Counter, Gauge, Histogram };

/** One metric with all its series; histograms name the sample of each. */
export interface MetricValues {
  readonly name: string;
  readonly help: string;
  readonly type: string;
  readonly aggregator: string;
  readonly values: readonly { readonly labels: Record<string, string | number>; readonly value: number; readonly metricName?: string }[];
}

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

/** What reading may take of a turn, but for a metric with thousands of series: ten thousand samples take some 10 ms. */
const TURN_MS = 1;

/** What the gauges of several processes come to, where that is not their sum; the first pattern that matches counts. */
const GATHERED: readonly (readonly [name: RegExp, aggregator: 'first' | 'min' | 'max'])[] = [
  [/_info$/, 'first'],
  // Each tells of the one count that all share, of the one configuration, or whether all is well.
  [/^sluicegate_(?:limit|config)_|_up$/, 'min'],
  [/^process_start_time_seconds$|_lag_min_seconds$/, 'min'],
  [/^nodejs_eventloop_lag_/, 'max'],
];

/** A registry of its own, with Node's metrics of the process in it. */
export function createInstruments(): Instruments {
  const registry = new Registry();
  const registers = [registry];
  collectDefaultMetrics({ register: registry });
  for (const name of NOT_LINTABLE) registry.removeSingleMetric(name);

  return {
    counter: (name, help, ...labelNames) => new Counter({ name, help, labelNames, registers }),
    gauge: (name, help, ...labelNames) => new Gauge({ name, help, labelNames, registers }),
    histogram: (name, help, buckets, ...labelNames) => new Histogram({ name, help, buckets, labelNames, registers }),
    async read(extent) {
      const metrics: MetricValues[] = [];
      let turnBeganMs = performance.now();
      for (const metric of registry.getMetricsAsArray() as unknown as Metric[]) {
        const values = (await metric.get()) as unknown as MetricValues;
        if (extent === 'all' || isCount(values)) metrics.push({ ...values, aggregator: aggregatorOf(values) });
        if (performance.now() - turnBeganMs < TURN_MS) continue;
        await nextTurn();
        turnBeganMs = performance.now();
      }
      return metrics;
    },
  };
}

/** Of a snapshot what would be lost with its process. */
export function countsOf(snapshot: Snapshot): Snapshot {
  return snapshot.filter(isCount);
}

/** The metrics of several processes as those of one. */
export function addUp(snapshots: readonly Snapshot[]): Snapshot {
  const registry = AggregatorRegistry.aggregate(snapshots as unknown as object[]);
  const metrics = registry.getMetricsAsArray() as unknown as MetricValues[];
  return metrics.map(({ name, help, type, aggregator, values }) => ({ name, help, type, aggregator, values }));
}

/** In the format that `accept` asks for: Prometheus text, or OpenMetrics. */
export async function writePage(snapshot: Snapshot, accept: string): Promise<Page> {
  const isOpenMetrics = accept.includes('application/openmetrics-text');
  const registry = new Registry();
  registry.setContentType(isOpenMetrics ? (Registry.OPENMETRICS_CONTENT_TYPE as never) : Registry.PROMETHEUS_CONTENT_TYPE);
  for (const metric of snapshot) {
    // OpenMetrics names a counter without its ending. The library takes it off for good, from whatever it is given.
    const name = isOpenMetrics && metric.type === 'counter' ? metric.name.replace(/_total$/, '') : metric.name;
    const values = { ...metric, name };
    registry.registerMetric({ ...values, get: () => values } as unknown as Metric);
  }
  return { contentType: registry.contentType, body: await registry.metrics() };
}

function isCount({ type }: MetricValues): boolean {
  return type !== 'gauge';
}

function aggregatorOf({ name, type }: MetricValues): string {
  return (type === 'gauge' && GATHERED.find(([pattern]) => pattern.test(name))?.[1]) || 'sum';
}

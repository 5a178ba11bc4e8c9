// A small strict reader of the Prometheus text format, for tests that look at /metrics from outside.

export interface Sample {
  readonly labels: Record<string, string>;
  readonly value: number;
}

export interface Metrics {
  /** Sum over the series that carry these labels (and maybe others); undefined where there is none. */
  value(name: string, labels?: Record<string, string>): number | undefined;
  /** All series of a sample's name, such as `x_total` or `x_bucket`. */
  series(name: string): readonly Sample[];
  /** Metric names as declared by `# TYPE` (a histogram once, without `_bucket`), and those of samples that nothing declares. */
  readonly names: Set<string>;
}

const sampleLine = /^([a-zA-Z_:][\w:]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\]|\\.)*",?)*)\})? (\S+)(?: [\d.]+)?(?: # \{.*)?$/;
const labelPair = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;

function parseNumber(text: string): number {
  const value = Number(text.replace(/^([+-]?)Inf$/, '$1Infinity'));
  if (Number.isNaN(value) && !/^nan$/i.test(text)) throw new Error(`not a number: ${text}`);
  return value;
}

function parseLabels(text: string): Record<string, string> {
  const plain = (value: string) => value.replace(/\\(.)/g, (_, char: string) => (char === 'n' ? '\n' : char));
  return Object.fromEntries([...text.matchAll(labelPair)].map(([, name = '', value = '']) => [name, plain(value)]));
}

/**
 * Reads the text format 0.0.4, and of OpenMetrics what differs in its samples (exemplars, timestamps in seconds).
 * Throws on a line that is neither a comment nor a sample. Source: prometheus.io, "Exposition formats".
 */
export function parseMetrics(text: string): Metrics {
  const samples = new Map<string, Sample[]>();
  const names = new Set<string>();
  for (const line of text.split('\n')) {
    const declared = /^# TYPE (\S+) \w+$/.exec(line)?.[1];
    if (declared !== undefined) names.add(declared);
    if (line === '' || line.startsWith('#')) continue;
    const [, name, labels = '', value] = sampleLine.exec(line) ?? [];
    if (name === undefined || value === undefined) throw new Error(`not a sample: ${line}`);
    samples.set(name, [...(samples.get(name) ?? []), { labels: parseLabels(labels), value: parseNumber(value) }]);
  }
  for (const name of samples.keys()) {
    const isDeclared = names.has(name) || names.has(name.replace(/_(bucket|sum|count|total|created|info)$/, ''));
    if (!isDeclared) names.add(name);
  }

  const series = (name: string) => samples.get(name) ?? [];
  function value(name: string, labels: Record<string, string> = {}): number | undefined {
    const wanted = Object.entries(labels);
    const found = series(name).filter((sample) => wanted.every(([label, text]) => sample.labels[label] === text));
    return found.length === 0 ? undefined : found.reduce((sum, sample) => sum + sample.value, 0);
  }
  return { value, series, names };
}

/** For a registry without a gateway. */
export const NO_METRICS_PARTS = {
  version: '0',
  live: () => [],
  connections: () => [],
  health: () => [],
  standings: async () => new Map(),
  isLimitStoreUp: () => true,
};

// The few numbers that a soak is judged by.

export const toMib = (bytes: number): string => (bytes / 1_048_576).toFixed(0);

/** Quantiles of milliseconds, for people. */
export function quantiles(times: readonly number[]): string {
  if (times.length === 0) return 'none';
  const sorted = times.toSorted((a, b) => a - b);
  const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))]?.toFixed(1);
  return `${times.length} times: p50 ${at(0.5)}, p99 ${at(0.99)}, worst ${at(1)} ms`;
}

/** The slope of a straight line through the points, by least squares, a minute. */
export function slopePerMinute(points: readonly { atMs: number; value: number }[]): number {
  const mean = (of: (point: { atMs: number; value: number }) => number) =>
    points.reduce((sum, point) => sum + of(point), 0) / points.length;
  const meanMs = mean(({ atMs }) => atMs);
  const meanValue = mean(({ value }) => value);
  const spread = points.reduce((sum, { atMs }) => sum + (atMs - meanMs) ** 2, 0);
  const slope = points.reduce((sum, { atMs, value }) => sum + (atMs - meanMs) * (value - meanValue), 0) / spread;
  return slope * 60_000;
}

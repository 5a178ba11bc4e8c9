// The arithmetic between rounds: medians, spreads, ratios, and the verdict over two commits.

export interface Sample {
  readonly median: number;
  /** Half the distance between the quartiles: half of the rounds lie within it of the median, about. */
  readonly spread: number;
  readonly rounds: number;
}

/** Of a number in each round. The rounds' medians are quoted; no round is left out. */
export function sample(values: readonly number[]): Sample {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  return { median: quantile(sorted, 0.5), spread: (quantile(sorted, 0.75) - quantile(sorted, 0.25)) / 2, rounds: sorted.length };
}

/** Between the two neighbours in proportion. */
function quantile(sorted: readonly number[], share: number): number {
  if (sorted.length === 0) return Number.NaN;
  const at = (sorted.length - 1) * share;
  const below = sorted[Math.floor(at)] ?? Number.NaN;
  const above = sorted[Math.ceil(at)] ?? Number.NaN;
  return below + (above - below) * (at - Math.floor(at));
}

/** Round by round, so that what disturbed both of a round is in neither. */
export function sampleRatios(values: readonly number[], base: readonly number[]): Sample {
  return sample(values.map((value, n) => value / (base[n] ?? Number.NaN)));
}

export function sampleDifferences(values: readonly number[], base: readonly number[]): Sample {
  return sample(values.map((value, n) => value - (base[n] ?? Number.NaN)));
}

/** Worse by so much is a regression, if the spread does not explain it. */
export const TOLERANCE = 0.05;

/** Whether a figure of which less is better got worse from one commit to the other. */
export function isRegression(ratio: Sample): boolean {
  return ratio.median - ratio.spread > 1 + TOLERANCE;
}

/** `A B C`, `B C A`, …: in each round another one begins, so that none always follows the same one. */
export function rotate<T>(items: readonly T[], round: number): T[] {
  const from = items.length === 0 ? 0 : round % items.length;
  return [...items.slice(from), ...items.slice(0, from)];
}

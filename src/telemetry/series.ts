// What counters, gauges and histograms count. A call writes some twenty of them: prom-client, which hashes every label of each write by
// its name, took a tenth of what a short call costs.

/** One series of a metric, or one of a histogram's for it. */
export interface Sample {
  readonly labels: Record<string, string | number>;
  readonly value: number;
  /** Where it differs from the metric's: `x_bucket`. */
  readonly metricName?: string;
}

export interface MetricValues {
  readonly name: string;
  readonly help: string;
  readonly type: string;
  readonly values: readonly Sample[];
}

/** What a metric is called, and the names of its labels. */
export interface Naming {
  readonly name: string;
  readonly help: string;
  readonly labelNames: readonly string[];
}

/** Values of the metric's labels, in the order of their names. */
export type LabelValues = readonly string[];

/** A series costs memory for ever, and time on each scrape. */
const MAX_SERIES = 10_000;
/** Of them, for those that gather the rest. */
const GATHERING_SERIES = 100;
/** Who calls for what; the rest of the labels are ours. */
const OPEN_LABELS = ['client', 'model', 'gen_ai_response_model'];
interface Row<Cell> {
  readonly labels: Record<string, string>;
  readonly cell: Cell;
}

/** What is known of series whose first labels have the values that lead here. */
interface Branch<Cell> {
  /** By the value of the next label: one key for all of them would have to be made, and hashed, for each write. */
  readonly next: Map<string, Branch<Cell>>;
  row: Row<Cell> | undefined;
}

function createBranch<Cell>(): Branch<Cell> {
  return { next: new Map(), row: undefined };
}

/** The series of one metric. Beyond a bound, what differs only in names that come from outside is gathered under `other`. */
class Table<Cell> {
  private readonly labelNames: readonly string[];
  private readonly create: () => Cell;
  private readonly rows: Row<Cell>[] = [];
  private root: Branch<Cell> = createBranch();

  constructor(labelNames: readonly string[], create: () => Cell) {
    this.labelNames = labelNames;
    this.create = create;
  }

  at(values: LabelValues): Cell {
    let branch: Branch<Cell> | undefined = this.root;
    for (let label = 0; label < values.length && branch !== undefined; label++) branch = branch.next.get(values[label]!);
    return branch?.row?.cell ?? this.add(values);
  }

  private add(values: LabelValues): Cell {
    if (values.length !== this.labelNames.length) throw new TypeError(`${values.length} labels instead of ${this.labelNames.join(', ')}`);
    if (this.rows.length >= MAX_SERIES - GATHERING_SERIES) {
      const gathered = values.map((value, at) => (OPEN_LABELS.includes(this.labelNames[at]!) ? 'other' : value));
      if (gathered.some((value, at) => value !== values[at])) return this.at(gathered);
    }
    const row = { labels: Object.fromEntries(this.labelNames.map((name, at) => [name, values[at]!])), cell: this.create() };
    this.rows.push(row);
    this.branchOf(values).row = row;
    return row.cell;
  }

  private branchOf(values: LabelValues): Branch<Cell> {
    let branch = this.root;
    for (const value of values) {
      const next = branch.next.get(value) ?? createBranch();
      branch.next.set(value, next);
      branch = next;
    }
    return branch;
  }

  clear(): void {
    this.rows.length = 0;
    this.root = createBranch();
  }

  samples(samplesOf: (row: Row<Cell>) => readonly Sample[]): Sample[] {
    return this.rows.flatMap(samplesOf);
  }
}

abstract class Metric<Cell> {
  readonly naming: Naming;
  protected readonly table: Table<Cell>;

  constructor(naming: Naming, create: () => Cell) {
    this.naming = naming;
    this.table = new Table(naming.labelNames, create);
  }

  protected abstract readonly type: string;

  protected abstract samplesOf(row: Row<Cell>): readonly Sample[];

  /** What it says now; called as prom-client's metrics are. */
  get(): MetricValues {
    const { name, help } = this.naming;
    return { name, help, type: this.type, values: this.table.samples((row) => this.samplesOf(row)) };
  }
}

interface Total {
  value: number;
}

/** A metric with one number a series. */
abstract class Scalar extends Metric<Total> {
  constructor(naming: Naming) {
    super(naming, () => ({ value: 0 }));
  }

  protected samplesOf({ labels, cell }: Row<Total>): readonly Sample[] {
    return [{ labels, value: cell.value }];
  }
}

/** What only grows. */
export class Counter extends Scalar {
  protected readonly type = 'counter';

  /** @throws TypeError where the count is no finite number, or less than zero */
  add(count: number, ...labels: LabelValues): void {
    if (!(count >= 0 && count < Number.POSITIVE_INFINITY)) throw new TypeError(`${this.naming.name}: ${count}`);
    this.table.at(labels).value += count;
  }
}

/** What goes up and down. */
export class Gauge extends Scalar {
  protected readonly type = 'gauge';

  set(value: number, ...labels: LabelValues): void {
    this.table.at(labels).value = value;
  }

  add(value: number, ...labels: LabelValues): void {
    this.table.at(labels).value += value;
  }

  /** Forgets all series: what is not set again is gone. */
  reset(): void {
    this.table.clear();
  }
}

interface Distribution {
  /** How many fell into each bucket, and behind the last one. */
  readonly counts: number[];
  sum: number;
}

/** How values are spread, in buckets by their upper bounds. */
export class Histogram extends Metric<Distribution> {
  protected readonly type = 'histogram';
  private readonly bounds: readonly number[];

  /** @param bounds ascending; each bucket has its bound in it */
  constructor(naming: Naming, bounds: readonly number[]) {
    super(naming, () => ({ counts: new Array(bounds.length + 1).fill(0), sum: 0 }));
    this.bounds = bounds;
  }

  /** @throws TypeError where the value is no finite number */
  observe(value: number, ...labels: LabelValues): void {
    if (!Number.isFinite(value)) throw new TypeError(`${this.naming.name}: ${value}`);
    const { bounds } = this;
    let bucket = 0;
    while (bucket < bounds.length && value > bounds[bucket]!) bucket++;
    const cell = this.table.at(labels);
    cell.counts[bucket]! += 1;
    cell.sum += value;
  }

  /** Buckets are told with all smaller ones in them (Prometheus: exposition formats, Histograms and summaries). */
  protected samplesOf({ labels, cell }: Row<Distribution>): readonly Sample[] {
    const { name } = this.naming;
    let count = 0;
    const buckets = [...this.bounds, '+Inf'].map((le, at): Sample => {
      count += cell.counts[at]!;
      return { labels: { le, ...labels }, value: count, metricName: `${name}_bucket` };
    });
    return [...buckets, { labels, value: cell.sum, metricName: `${name}_sum` }, { labels, value: count, metricName: `${name}_count` }];
  }
}

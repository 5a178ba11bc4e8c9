// Keeps a registry of other people's texts from growing without end: a series costs memory for ever, and time on each scrape.

/** What may be shown as a model's name: names come from clients and upstreams, and might be anything. */
export const MODEL_NAME = /^[\w.:/@-]{1,64}$/;
const MAX_MODELS = 100;
const MAX_SERIES = 10_000;

export type Labels = Record<string, string>;

/** Labels for model names, which come from outside: well-formed ones only, the first hundred, else `other`. */
export function createModelLabel(): (model: string | undefined) => string {
  const known = new Set<string>();
  return (model) => {
    if (model === undefined || !MODEL_NAME.test(model)) return 'other';
    if (!known.has(model) && known.size >= MAX_MODELS) return 'other';
    known.add(model);
    return model;
  };
}

/** Keeps the sets of labels of each metric within bounds: what comes beyond is gathered under `other`. */
export function createSeriesBound(): (metric: string, labels: Labels) => Labels {
  const seen = new Map<string, Set<string>>();
  return (metric, labels) => {
    const known = seen.get(metric) ?? new Set();
    seen.set(metric, known);
    const key = Object.values(labels).join('\0');
    if (known.has(key)) return labels;
    // Kept a little below the bound, for the gathering series themselves.
    if (known.size < MAX_SERIES - 100) {
      known.add(key);
      return labels;
    }
    return Object.fromEntries(
      Object.entries(labels).map(([name, value]) => [name, name === 'client' || name === 'model' ? 'other' : value]),
    );
  };
}

// Keeps other people's texts out of labels, but for a few that are names.

/** What may be shown as a model's name: names come from clients and upstreams, and might be anything. */
export const MODEL_NAME = /^[\w.:/@-]{1,64}$/;
const MAX_MODELS = 100;

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

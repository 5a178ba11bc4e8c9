// Holds a tree against the schema and against what is supported yet, and says each difference in words.
import { BROKEN, type Path } from './load.ts';
import { type Settings, schema } from './schema.ts';
import { faultOf } from './words.ts';

/** Takes a message without its subject: the setting's path, or the variable that it came from, is put in front. */
export type Report = (path: Path, message: string, options?: { part?: 'key' | 'value'; isWarning?: boolean }) => void;

/** The value at a path of a tree; undefined where there is none. */
export function valueAt(tree: unknown, path: Path): unknown {
  let value = tree;
  for (const segment of path) {
    if (typeof value !== 'object' || value === null || !Object.hasOwn(value, segment)) return undefined;
    value = (value as Record<PropertyKey, unknown>)[segment];
  }
  return value;
}

/** The typed settings of a tree, or undefined once every difference from the schema is reported. */
export function checkSchema(tree: unknown, report: Report): Settings | undefined {
  const result = schema.safeParse(tree);
  for (const issue of result.error?.issues ?? []) reportIssue(tree, issue, [], report);
  return result.data;
}

// The part of zod's issues that the schema can raise.
interface Issue {
  readonly code?: string | undefined;
  readonly path: PropertyKey[];
  readonly message: string;
  readonly keys?: string[];
  readonly errors?: Issue[][];
  readonly expected?: string;
}

function reportIssue(tree: unknown, issue: Issue, parent: Path, report: Report): void {
  const path = [...parent, ...issue.path];
  const value = valueAt(tree, path);
  if (value === BROKEN) return;
  if (issue.code === 'unrecognized_keys') {
    const known = issue.message.split(' ');
    for (const key of issue.keys ?? []) report([...path, key], `is not a setting; ${suggest(key, known)}`, { part: 'key' });
    return;
  }
  // Of a choice like `off` or a mapping, the branch that got inside the value says more than "neither".
  const inside = issue.errors?.find((branch) => branch.every((inner) => inner.path.length > 0 || inner.code === 'unrecognized_keys'));
  if (inside) for (const inner of inside) reportIssue(tree, inner, path, report);
  else report(path, wordIssue(issue, value));
}

function wordIssue(issue: Issue, value: unknown): string {
  if (issue.code === 'too_small') return 'is empty; write at least one, as [one]';
  if (issue.code === 'invalid_union') return `${faultOf(value)}; ${issue.message}`;
  if (issue.code !== 'invalid_type') return issue.message;
  const right = issue.expected === 'array' ? 'write a list, as [one, two]' : 'write its keys below it, indented, as "key: value"';
  const isThere = value !== undefined && value !== null;
  return `${isThere ? `is not a ${issue.expected === 'array' ? 'list' : 'mapping'}` : faultOf(value)}; ${right}`;
}

function suggest(key: string, known: readonly string[]): string {
  const [nearest = ''] = known.toSorted((a, b) => editDistance(key, a) - editDistance(key, b));
  const isNear = editDistance(key, nearest) <= Math.max(2, nearest.length / 3);
  return isNear || known.length === 1 ? `did you mean ${nearest}?` : `the nearest is ${nearest}; known here are ${known.join(', ')}`;
}

/** Insertions, removals and changes of one character between two keys (Levenshtein); case, `_` and `-` do not count. */
export function editDistance(a: string, b: string): number {
  // A key may be as long as the file; what is that long is near to nothing.
  const [from, to] = [a.slice(0, 64), b].map((key) => key.toLowerCase().replace(/[_-]/g, '')) as [string, string];
  let row = Array.from({ length: to.length + 1 }, (_, index) => index);
  for (const [i, character] of [...from].entries()) {
    const next = [i + 1];
    for (let j = 0; j < to.length; j++) {
      next.push(Math.min((next[j] ?? 0) + 1, (row[j + 1] ?? 0) + 1, (row[j] ?? 0) + (character === to[j] ? 0 : 1)));
    }
    row = next;
  }
  return row.at(-1) ?? 0;
}

/** The keys of a mapping, the positions of a list, nothing of anything else. */
export function keysOf(value: unknown): PropertyKey[] {
  if (typeof value !== 'object' || value === null) return [];
  return Array.isArray(value) ? [...value.keys()] : Object.keys(value);
}

// Turns YAML into a tree of text, with variables filled in, that still knows where in the file each part of it stands.
import {
  type Alias,
  type Document,
  isAlias,
  isMap,
  isSeq,
  LineCounter,
  type Node,
  parseDocument,
  Scalar,
  visit,
  type YAMLError,
} from 'yaml';
import type { Problem } from '../config.ts';

export type Path = readonly PropertyKey[];
export type Environment = Record<string, string | undefined>;

/** Stands in the tree for what already has its problem, so that it gets no second one. */
export const BROKEN: unique symbol = Symbol('broken');

export interface Source {
  /** Mappings, lists and text; null where there is no value; BROKEN where there is a problem already. */
  readonly tree: unknown;
  readonly problems: Problem[];
  /** The place of a setting or its key; for what is not there, that of the nearest key around it. */
  place(path: Path, part?: 'key' | 'value'): Omit<Problem, 'message'>;
  namesAt(path: Path): string[];
}

// The parser's own messages quote the source, which may be a secret that was typed in the wrong place.
const SYNTAX: Partial<Record<YAMLError['code'], string>> = {
  BAD_ALIAS: 'an alias without a name; text that begins with * needs quotes',
  BAD_DQ_ESCAPE: 'this escape is not known within double quotes; use single quotes for text with backslashes',
  BAD_INDENT: 'the indentation is not consistent, or a bracket is not closed; keys of one mapping begin in one column',
  BAD_SCALAR_START: 'text cannot begin with this character; put it in quotes',
  BLOCK_AS_IMPLICIT_KEY: 'a mapping cannot begin on this line; put it on the next one, indented, or put text with ": " in quotes',
  DUPLICATE_KEY: 'this key is there twice in one mapping; keep one of them',
  MISSING_CHAR: 'something is missing here: a closing quote or bracket, a comma, or the colon and blank behind a key',
  MULTILINE_IMPLICIT_KEY: 'a key must end on its line; write it as "key: value"',
  MULTIPLE_DOCS: 'a second document begins here; a configuration is one, without "---" inside',
  NON_STRING_KEY: 'a key must be plain text; write it as "key: value"',
  RESOURCE_EXHAUSTION: 'nested too deeply; a configuration has only a few levels',
  TAB_AS_INDENT: 'a tab cannot indent; use blanks',
  TAG_RESOLVE_FAILED: 'tags (!name) are not used here; text that begins with ! needs quotes',
};

const NOT_YAML = 'this is not valid YAML; put text with special characters in quotes';
const UNQUOTED = `within { } and [ ] a variable needs quotes: "\${NAME}"`;

/** Reads one file. Never throws: what cannot be read is among the problems. With schema "failsafe" every scalar stays the text it is. */
export function readYaml(file: string, text: string, env: Environment): Source {
  const lines = new LineCounter();
  const doc = parseDocument(text, { schema: 'failsafe', stringKeys: true, prettyErrors: false, lineCounter: lines });
  const placeAt = (offset: number) => {
    const { line, col } = lines.linePos(offset);
    return { file, line: Math.max(line, 1), column: Math.max(col, 1) };
  };
  const problems = syntaxErrors(doc, text).map(({ offset, message }) => ({ ...placeAt(offset), message }));
  const isReadable = doc.errors.every(({ code }) => code === 'DUPLICATE_KEY');
  const complain = (offset: number, message: string) => problems.push({ ...placeAt(offset), message });
  const tree = isReadable ? toTree(doc, env, complain) : BROKEN;
  return { tree, problems, place: (path, part = 'value') => placeAt(offsetOf(doc, path, part)), namesAt: (path) => namesAt(doc, path) };
}

/** The parser's errors, in our words: of those that an unclosed bracket drags along through the file, none. */
function syntaxErrors(doc: Document, text: string): { offset: number; message: string }[] {
  const isVariable = ({ pos: [offset] }: YAMLError) => text.slice(offset - 1, offset + 1) === '${';
  const lineOf = ({ pos: [offset] }: YAMLError) => text.lastIndexOf('\n', offset - 1);
  const isOwn = (error: YAMLError, index: number, all: YAMLError[]) => {
    if (error.code === 'DUPLICATE_KEY' || isVariable(error)) return true;
    const isSame = (other: YAMLError) => lineOf(other) === lineOf(error) || (!SYNTAX[error.code] && !SYNTAX[other.code]);
    return all.findIndex(isSame) === index;
  };
  const errors = [...doc.errors, ...doc.warnings].filter(isOwn);
  return errors.map((error) => ({ offset: error.pos[0], message: isVariable(error) ? UNQUOTED : (SYNTAX[error.code] ?? NOT_YAML) }));
}

type Complain = (offset: number, message: string) => void;

function toTree(doc: Document, env: Environment, complain: Complain): unknown {
  visit(doc, {
    Scalar: (key, node) => (key === 'key' ? checkKey(node, complain) : fillIn(node, env, complain)),
    Alias: (_key, node) => checkAlias(doc, node, complain),
  });
  try {
    return doc.toJS();
  } catch {
    // Thrown at more than a hundred times the nodes that were written: a few lines of aliases can ask for gigabytes.
    complain(0, 'the aliases (*name) unfold to too much; write out what they stand for');
    return BROKEN;
  }
}

function checkKey(node: Scalar, complain: Complain): void {
  if (node.value === '__proto__') complain(startOf(node), 'this name cannot be used; choose another one');
}

function checkAlias(doc: Document, node: Alias, complain: Complain): Scalar | undefined {
  if (node.resolve(doc) !== undefined) return undefined;
  complain(startOf(node), 'nothing above has this name; text that begins with * needs quotes');
  return new Scalar(BROKEN);
}

// Group 1: the whole of a variable that is well formed, 2: its name, 3: its default.
const VARIABLE = /\$\{(([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})?/g;

/** Works on scalars, after parsing: what a variable holds can never become structure, and is not looked at for further variables. */
function fillIn(node: Scalar, env: Environment, complain: Complain): void {
  if (typeof node.value !== 'string') return;
  if (node.value === '' && node.type === Scalar.PLAIN) {
    node.value = null;
    return;
  }
  const faults = new Set<string>();
  const filled = node.value.replace(VARIABLE, (_whole, isWellFormed: string | undefined, name: string, fallback: string | undefined) => {
    if (isWellFormed === undefined) faults.add(`a variable is not well formed; write \${NAME} or \${NAME:-default}`);
    // As in a shell, `:-` also stands in for a variable that is set to nothing.
    else if (fallback === undefined && env[name] === undefined) faults.add(unsetVariable(name));
    return (fallback === undefined ? env[name] : env[name] || fallback) ?? '';
  });
  for (const fault of faults) complain(startOf(node), fault);
  node.value = faults.size === 0 ? filled : BROKEN;
}

function unsetVariable(name: string): string {
  return `the environment variable ${name} is not set; set it, or write \${${name}:-default}`;
}

function startOf(node: Node | null | undefined): number {
  return node?.range?.[0] ?? 0;
}

/** Where a path's value (or last key) begins, in characters from the start of the file. */
function offsetOf(doc: Document, path: Path, part: 'key' | 'value'): number {
  let node: unknown = doc.contents;
  let offset = startOf(doc.contents);
  for (const [depth, segment] of path.entries()) {
    const parent = isAlias(node) ? node.resolve(doc) : node;
    if (isSeq<Node>(parent)) {
      node = parent.items[Number(segment)];
      if (node === undefined) return offset;
      offset = startOf(node as Node);
    } else if (isMap<Node, Node | null>(parent)) {
      const pair = parent.items.findLast(({ key }) => String(key) === String(segment));
      if (pair === undefined) return offset;
      node = pair.value;
      // A section begins at its key: what is missing in it is best shown there.
      const isLast = depth === path.length - 1;
      offset = startOf(part === 'value' && isLast && pair.value?.range ? pair.value : pair.key);
    } else return offset;
  }
  return offset;
}

/** The keys of the mapping at a path in the order of the file, which an object does not keep for a name like `1`. */
function namesAt(doc: Document, path: Path): string[] {
  const node = doc.getIn(path, true);
  const mapping = isAlias(node) ? node.resolve(doc) : node;
  return isMap(mapping) ? mapping.items.map(({ key }) => String(key)) : [];
}

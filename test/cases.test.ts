// Holds the tests to the catalogue of cases: each has a test that names it, or a line in docs/endings.md that says why not.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { endings } from './support/endings.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const catalogue = join(root, '../shared/CASES.md');
const ID = /\b[A-G]\d{1,2}\b/g;

/** The ids that begin the titles of tests, wherever they stand. */
function namedInTests(): Set<string> {
  const files = readdirSync(join(root, 'test'), { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.ts'));
  const titles = files.flatMap((file) =>
    Array.from(
      readFileSync(join(root, 'test', file), 'utf8').matchAll(/\btest\(\s*(['"`])((?:[A-G]\d{1,2} )+)/g),
      (match) => match[2] ?? '',
    ),
  );
  return new Set([...titles, ...endings.map(({ ids }) => ids)].flatMap((text) => text.match(ID) ?? []));
}

/** The ids at the beginning of the rows of the second table of docs/endings.md. */
function explained(): Set<string> {
  const text = readFileSync(join(root, 'docs/endings.md'), 'utf8').split('## Cases without a test')[1] ?? '';
  return new Set(Array.from(text.matchAll(/^\| ([A-G]\d{1,2}) \|/gm), ([, id = '']) => id));
}

t.test(
  'each case of the catalogue has a test that names it, or says why not',
  { skip: existsSync(catalogue) ? false : 'the catalogue is not here' },
  async (t) => {
    const ids = Array.from(readFileSync(catalogue, 'utf8').matchAll(/^\| ([A-G]\d{1,2})\b/gm), ([, id = '']) => id);
    t.ok(ids.length > 100, `${ids.length} cases`);
    const [named, without] = [namedInTests(), explained()];
    t.same(
      ids.filter((id) => !named.has(id) && !without.has(id)),
      [],
      'cases that nothing speaks of',
    );
    t.same(
      [...without].filter((id) => named.has(id)),
      [],
      'cases that are said to have no test, and have one',
    );
  },
);

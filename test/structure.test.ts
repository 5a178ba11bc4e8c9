// The structure that CONTRIBUTING promises: imports point one way, every package has one home, and the pages tell of everything, truly.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { configJsonSchema, formatProblem, loadConfig } from '../src/config.ts';
import { errorTable } from '../src/errors.ts';
import { createMetrics } from '../src/telemetry/metrics.ts';
import { NO_METRICS_PARTS } from './support/metrics.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const read = (path: string) => readFileSync(join(root, path), 'utf8');
const files = readdirSync(join(root, 'src'), { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.ts'));

interface Import {
  readonly file: string;
  readonly target: string;
  readonly isType: boolean;
}

const imports: Import[] = files.flatMap((file) => {
  const text = readFileSync(join(root, 'src', file), 'utf8');
  const statements = text.matchAll(/^(?:import|export) (type )?(?:[^'";]*? from )?'([^']+)';$/gm);
  const calls = text.matchAll(/\bimport\(()'([^']+)'\)/g);
  return Array.from([...statements, ...calls], ([, type, target = '']) => ({ file, target, isType: Boolean(type) }));
});

/** The room of a file: its folder, or its own name where it stands at the top. */
function roomOf(file: string): string {
  return dirname(file) === '.' ? file.replace(/\.ts$/, '') : (file.split('/')[0] ?? '');
}

/** Which rooms a room may import values from. Types may be shared between siblings. */
const below: Record<string, string[]> = {
  main: ['commands'],
  commands: ['gateway', 'workers', 'http', 'telemetry', 'demo', 'doctor', 'top', 'config'],
  workers: ['gateway', 'http', 'limits', 'telemetry', 'config'],
  gateway: ['http', 'limits', 'upstream', 'stream', 'telemetry', 'doctor', 'config', 'errors', 'exchange', 'roster'],
  http: ['limits', 'upstream', 'stream', 'telemetry', 'doctor', 'config', 'errors', 'exchange', 'roster', 'spending'],
  upstream: ['config', 'errors'],
  stream: ['config', 'errors', 'roster'],
  limits: ['config', 'errors', 'roster'],
  telemetry: ['config', 'errors', 'spending'],
  exchange: ['config', 'errors', 'roster', 'spending'],
  spending: ['config'],
  config: [],
  errors: [],
  roster: [],
  demo: [],
  doctor: [],
  // It sees a gateway from outside, as the live page does.
  top: [],
};

t.test('imports point one way', async (t) => {
  t.ok(imports.length > 100, `${imports.length} imports were read`);
  for (const { file, target, isType } of imports) {
    if (!target.startsWith('.') || isType) continue;
    const from = roomOf(file);
    const to = roomOf(normalize(join(dirname(file), target)));
    t.ok(from === to || below[from]?.includes(to), `${file} may import ${relative('src', join('src', target))}`);
  }
});

t.test('no file needs itself: values are imported in no circle', async (t) => {
  const needs = new Map(files.map((file) => [file, new Set<string>()]));
  for (const { file, target, isType } of imports) {
    if (target.startsWith('.') && !isType) needs.get(file)?.add(normalize(join(dirname(file), target)));
  }
  // Who needs nothing of what is left goes; what stays in the end stands in a circle, or above one.
  for (let before = Number.POSITIVE_INFINITY; needs.size < before; ) {
    before = needs.size;
    for (const [file, of] of needs) if (![...of].some((other) => needs.has(other))) needs.delete(file);
  }
  t.same([...needs.keys()], []);
});

t.test('each package has one home', async (t) => {
  const homes = new Map<string, Set<string>>();
  for (const { file, target, isType } of imports) {
    if (target.startsWith('.') || target.startsWith('node:') || isType) continue;
    const name = target.split('/', target.startsWith('@') ? 2 : 1).join('/');
    homes.set(name, (homes.get(name) ?? new Set()).add(file));
  }
  const { dependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  t.same([...homes.keys()].sort(), Object.keys(dependencies).sort(), 'what is imported is what is depended on');
  for (const [name, owners] of homes)
    t.ok(owners.size <= (name === 'zod' || name === 'yaml' ? 2 : 1), `${name} is imported by ${[...owners].join(', ')}`);
});

t.test('what relays and forwards knows no provider by name', async (t) => {
  const names = /anthropic|azure|claude|deepinfra|deepseek|gemini|groq|llama|mistral|ollama|openrouter|perplexity|sambanova|vllm|xai/i;
  const rooms = files.filter((file) => /^(?:http|limits|stream|telemetry|upstream)\/[^/]+$/.test(file));
  t.ok(rooms.length > 40, `${rooms.length} files`);
  for (const file of rooms) {
    const text = readFileSync(join(root, 'src', file), 'utf8');
    const code = text.replace(/\/\*.*?\*\//gs, '').replace(/\/\/ .*$/gm, '');
    const named = code.split('\n').filter((line) => names.test(line) && !/\bdialects\/|\bdialect: /.test(line));
    t.same(named, [], `${file}: a provider's habit belongs into a dialect`);
  }
});

/** A page's table: its rows' cells, from the row with these titles on. */
function tableRows(page: string, titles: string): string[][] {
  const [, text = ''] = page.split(`${titles}\n`);
  const [, ...lines] = (/^(?:\|.*\n)+/.exec(text)?.[0] ?? '').trimEnd().split('\n');
  return lines.map((line) => line.split('|').map((cell) => cell.trim())).map((cells) => cells.slice(1, -1));
}

/** What stands in backticks. */
const quotedIn = (text: string) => Array.from(text.matchAll(/`([^`]+)`/g), ([, quoted = '']) => quoted);

t.test('docs/errors.md has every error, with its status', async (t) => {
  const page = read('docs/errors.md');
  for (const code of Object.keys(errorTable)) t.match(page, `\`${code}\``, code);
  const rows = tableRows(page, '| code | status | when |');
  t.ok(rows.length > 15, `${rows.length} rows`);
  const statusOf = new Map(Object.entries(errorTable).map(([code, { status }]) => [`\`${code}\``, String(status)]));
  for (const [code = '', status] of rows) t.equal(status, statusOf.get(code), code);
});

t.test('docs/metrics.md has every metric, and none that is not there', async (t) => {
  const { body } = await createMetrics(NO_METRICS_PARTS).scrape('');
  const own = (name: string) => !/^(?:process|nodejs)_/.test(name);
  const made = Array.from(body.matchAll(/^# TYPE (\S+)/gm), ([, name = '']) => name).filter(own);
  const told = tableRows(read('docs/metrics.md'), '| metric | labels | |').flatMap(([names = '']) => quotedIn(names).filter(own));
  t.same(told.sort(), made.sort());
});

interface Schema {
  readonly default?: unknown;
  readonly properties?: Record<string, Schema>;
  readonly additionalProperties?: Schema | boolean;
  readonly items?: Schema;
  readonly anyOf?: Schema[];
}

/** All settings with their defaults, those that hold others too, by their paths: `*` stands for names and positions. */
function settingsOf(schema: Schema, path = '', found = new Map<string, unknown>()): Map<string, unknown> {
  found.set(path, found.get(path) ?? schema.default);
  for (const [name, of] of Object.entries(schema.properties ?? {})) settingsOf(of, path ? `${path}.${name}` : name, found);
  if (typeof schema.additionalProperties === 'object') settingsOf(schema.additionalProperties, `${path}.*`, found);
  if (schema.items) settingsOf(schema.items, `${path}.*`, found);
  for (const of of schema.anyOf ?? []) settingsOf(of, path, found);
  return found;
}

/** The settings that a row is about. A name alone stands beside the one before it. */
function pathsOf(cell: string): string[] {
  let parent = '';
  return quotedIn(cell).map((name) => {
    if (name.includes('.')) parent = name.slice(0, name.lastIndexOf('.') + 1);
    return `${name.includes('.') ? '' : parent}${name}`.replaceAll('NAME', '*').replaceAll('[]', '.*');
  });
}

t.test('docs/configuration.md has every setting, with its default, and none that is not there', async (t) => {
  const page = read('docs/configuration.md');
  const settings = settingsOf(configJsonSchema() as Schema);
  const told = new Map<string, string>();
  for (const [names = '', defaults = ''] of tableRows(page, '| setting | default | |')) {
    const paths = pathsOf(names);
    const each = defaults.split(', ');
    for (const [index, path] of paths.entries()) told.set(path, paths.length === each.length ? (each[index] ?? '') : defaults);
  }
  for (const path of told.keys()) t.ok(settings.has(path), `${path} is a setting`);
  for (const [path, fallback] of settings) {
    const steps = path.split('.');
    const name = steps.findLast((step) => step !== '*');
    if (!name) continue;
    const row = steps.map((_, index) => steps.slice(0, index + 1).join('.')).find((above) => told.has(above));
    const isGroup = [...told.keys()].some((below) => below.startsWith(`${path}.`));
    t.ok(row !== undefined || isGroup, `${path} has a row`);
    t.match(page, new RegExp(`\`[^\`\\n]*\\b${name}\\b[^\`\\n]*\``), `${path} is named`);
    if (fallback !== undefined && told.has(path) && !hasParts(fallback, path, settings))
      t.equal(told.get(path), `\`${textOf(fallback)}\``, `the default of ${path}`);
    for (const part of quotedIn(told.get(path) ?? '')) {
      const [, key, value] = /^(\w+): (\S+)$/.exec(part) ?? [];
      if (key !== undefined) t.equal(textOf(settings.get(`${path}.${key}`)), value, `the default of ${path}.${key}`);
    }
  }
});

const textOf = (value: unknown) => (typeof value === 'object' ? JSON.stringify(value) : String(value));

/** Whether a default is only the sum of those of its parts. */
function hasParts(fallback: unknown, path: string, settings: Map<string, unknown>): boolean {
  return textOf(fallback) === '{}' && [...settings.keys()].some((below) => below.startsWith(`${path}.`) && !below.startsWith(`${path}.*`));
}

t.test('each whole configuration of the README and of docs/configuration.md is valid and gives no warning', async (t) => {
  const blocks = ['README.md', 'docs/configuration.md'].flatMap((file) =>
    Array.from(read(file).matchAll(/^```yaml\n(.*?)^```$/gms), ([, text = '']) => ({ file, text })),
  );
  const whole = blocks.filter(({ text }) => /^upstreams:/m.test(text));
  t.ok(whole.length >= 2, `${whole.length} of ${blocks.length} blocks`);
  for (const { file, text } of whole) {
    const env = Object.fromEntries(Array.from(text.matchAll(/\$\{(\w+)\}/g), ([, name = '']) => [name, 'key']));
    const loaded = loadConfig({ file, text }, env);
    t.same([...(loaded.ok ? [] : loaded.problems), ...loaded.warnings].map(formatProblem), [], file);
  }
});

t.test('each promise of the README names its tests', async (t) => {
  const promises =
    read('README.md')
      .split('\n## ')
      .find((section) => section.startsWith('What it promises\n')) ?? '';
  const lines = promises.split('\n').filter((line) => line.startsWith('- '));
  t.ok(lines.length > 20, `${lines.length} promises`);
  for (const line of lines) t.match(line, /\]\(test\/[\w./-]+\.test\.ts\)$/, line.slice(0, 60));
});

const outsideCode = (page: string) => page.replace(/^```.*?^```$/gms, '');

/** The anchors that a page's headings have on GitHub, and on most that show Markdown. */
function anchorsOf(page: string): string[] {
  const seen = new Map<string, number>();
  return Array.from(outsideCode(page).matchAll(/^#+ +(.+?) *$/gm), ([, title = '']) => {
    const anchor = title.replace(/\]\([^)]*\)/g, '').toLowerCase();
    const plain = anchor.replace(/[^\p{L}\p{N}\s_-]/gu, '').replace(/\s/g, '-');
    const count = seen.get(plain) ?? 0;
    seen.set(plain, count + 1);
    return count === 0 ? plain : `${plain}-${count}`;
  });
}

t.test('each link of the README and of every other page leads to something that is there', async (t) => {
  const pages = ['.', 'docs', 'test/fixtures'].flatMap((folder) =>
    readdirSync(join(root, folder))
      .filter((name) => name.endsWith('.md'))
      .map((name) => join(folder, name)),
  );
  t.ok(pages.includes('README.md') && pages.length > 12, pages.join(' '));
  for (const file of pages) {
    const page = read(file);
    for (const [, target = ''] of outsideCode(page).matchAll(/\]\((?![a-z]+:)([^)\s]+)\)/g)) {
      const [path = '', anchor] = target.split('#');
      const at = path === '' ? file : join(dirname(file), path);
      if (!t.ok(existsSync(join(root, at)), `${file}: ${target}`) || anchor === undefined) continue;
      t.ok(anchorsOf(read(at)).includes(anchor), `${file}: ${target} is a heading there`);
    }
  }
});

// The structure that CONTRIBUTING promises: imports point one way, every package has one home, and the README tells of everything.
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { configJsonSchema } from '../src/config.ts';
import { errorTable } from '../src/errors.ts';
import { createMetrics } from '../src/telemetry/metrics.ts';
import { NO_METRICS_PARTS } from './support/metrics.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const readme = readFileSync(join(root, 'README.md'), 'utf8');
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
  main: ['gateway', 'workers', 'http', 'telemetry', 'demo', 'doctor', 'top', 'config', 'help'],
  workers: ['gateway', 'http', 'limits', 'telemetry', 'config'],
  gateway: ['http', 'limits', 'upstream', 'stream', 'telemetry', 'doctor', 'config', 'errors', 'exchange'],
  http: ['limits', 'upstream', 'stream', 'telemetry', 'doctor', 'config', 'errors', 'exchange', 'spending'],
  upstream: ['config', 'errors'],
  stream: ['config', 'errors'],
  limits: ['config', 'errors'],
  telemetry: ['config', 'errors', 'spending'],
  exchange: ['config', 'errors', 'spending'],
  spending: ['config'],
  config: [],
  errors: [],
  demo: [],
  doctor: [],
  help: ['config'],
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

t.test('the README tells of every error, metric and setting', async (t) => {
  for (const code of Object.keys(errorTable)) t.match(readme, `\`${code}\``, code);
  const metrics = createMetrics(NO_METRICS_PARTS);
  const { body } = await metrics.scrape('');
  for (const [, name = ''] of body.matchAll(/^# TYPE (\S+)/gm)) {
    if (!/^(?:process|nodejs)_/.test(name)) t.match(readme, `\`${name}\``, name);
  }
  const example = readFileSync(join(root, 'config/sluicegate.example.yaml'), 'utf8');
  const settings = settingsOf(configJsonSchema() as Schema)
    .map((path) => path.split('.').findLast((part) => part !== '*') ?? '')
    .filter((key) => new RegExp(`\\b${key}:`).test(example));
  t.ok(settings.length > 25, `${settings.length} settings are in the example`);
  for (const key of settings) t.match(readme, new RegExp(`\`[^\`\\n]*\\b${key}\\b[^\`\\n]*\``), `${key} is in the README`);
});

interface Schema {
  readonly properties?: Record<string, Schema>;
  readonly additionalProperties?: Schema | boolean;
  readonly items?: Schema;
  readonly anyOf?: Schema[];
}

/** The paths of all leaves, with `*` for names and positions. */
function settingsOf(schema: Schema, path = ''): string[] {
  const inner = [
    ...Object.entries(schema.properties ?? {}).flatMap(([name, of]) => settingsOf(of, path ? `${path}.${name}` : name)),
    ...(typeof schema.additionalProperties === 'object' ? settingsOf(schema.additionalProperties, `${path}.*`) : []),
    ...(schema.items ? settingsOf(schema.items, `${path}.*`) : []),
    ...(schema.anyOf ?? []).flatMap((of) => settingsOf(of, path)).filter((found) => found !== path),
  ];
  return inner.length > 0 ? [...new Set(inner)] : [path];
}

t.test('the README links to files that are there', async (t) => {
  for (const [, target = ''] of readme.matchAll(/\]\((?!https?:)([^)#]+)\)/g))
    t.doesNotThrow(() => readdirOrFile(join(root, target)), target);
});

function readdirOrFile(path: string): void {
  try {
    readFileSync(path);
  } catch {
    readdirSync(path);
  }
}

// npm run bench: Sluicegate and others side by side, in one run. What is measured how is told in docs/performance.md, how it is asked for by `--help`.
import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { cpus, loadavg } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { COMPARED_SCENARIOS, compareWith, findCommit } from './compare.ts';
import type { Contender } from './contender.ts';
import { bifrost } from './contenders/bifrost.ts';
import { direct } from './contenders/direct.ts';
import { haproxy } from './contenders/haproxy.ts';
import { httpProxy } from './contenders/http-proxy.ts';
import { litellm } from './contenders/litellm.ts';
import { nginx } from './contenders/nginx.ts';
import { pipe } from './contenders/pipe.ts';
import { portkey } from './contenders/portkey.ts';
import { createSluicegate } from './contenders/sluicegate.ts';
import { divideCores, pinSelf } from './cores.ts';
import { startGenerators } from './generators/generators.ts';
import { installPeers } from './install.ts';
import { EXIT, type Known, type Options, readOptions, UsageError, writeHelp } from './options.ts';
import { plotAll } from './plots.ts';
import { formatPromises } from './promises.ts';
import { formatMeanings, formatScenario } from './report.ts';
import { type RunParts, runScenario, type ScenarioResult } from './run.ts';
import { scenarios } from './scenarios.ts';

const sluicegate = createSluicegate();
const main = [direct, nginx, pipe, sluicegate];
const all = [direct, nginx, haproxy, pipe, sluicegate, httpProxy, portkey, litellm, bifrost];
const namesOf = (contenders: readonly Contender[]) => contenders.map(({ name }) => name);
const known: Known = { scenarios, all: namesOf(all), main: namesOf(main), compared: COMPARED_SCENARIOS };

process.exitCode = await obey(process.argv.slice(2));

/** Does what the command line says; returns the exit code. */
async function obey(args: readonly string[]): Promise<number> {
  try {
    const options = readOptions(args, known);
    if (options === undefined) {
      process.stdout.write(writeHelp(known));
      return EXIT.measured;
    }
    return await run(options);
  } catch (error) {
    console.error(error instanceof UsageError ? `${error.message}\nnpm run bench -- --help says what there is` : error);
    return error instanceof UsageError ? EXIT.usage : EXIT.fault;
  }
}

async function run(options: Options): Promise<number> {
  const { compare, firstWarmupMs, measureMs, rounds } = options;
  const commit = compare === undefined ? undefined : findCommit(compare);
  if (compare !== undefined && commit === undefined) throw new UsageError(`--compare: "${compare}" is no commit of this repository`);
  if (options.install) installPeers();
  const cores = divideCores();
  pinSelf(cores.generators);
  const pace = { firstWarmupMs, warmupMs: Math.min(2000, measureMs / 2), measureMs };
  const generators = await startGenerators(cores.generators);
  const parts = { generators, cores, rounds, pace, tell: (line: string) => console.error(line) };
  try {
    if (compare !== undefined && commit !== undefined)
      return await compareWith(compare, commit, { ...parts, scenarios: options.scenarios });
    await runAll(options, parts);
    return EXIT.measured;
  } finally {
    generators.stop();
  }
}

async function runAll(options: Options, parts: Omit<RunParts, 'contenders'>): Promise<void> {
  const { cores } = parts;
  const out = options.out ?? fileURLToPath(new URL('./results', import.meta.url));
  const conditions = describeConditions(parts);
  console.log(
    Object.entries(conditions)
      .map(([name, text]) => `${name}: ${text}`)
      .join('\n'),
  );
  const results: ScenarioResult[] = [];
  for (const scenario of options.scenarios) {
    const names = options.contendersOf(scenario);
    const result = await runScenario(scenario, { ...parts, contenders: all.filter(({ name }) => names.includes(name)) });
    results.push(result);
    console.log(formatScenario(result, cores.generatorCount));
  }
  console.log(formatMeanings(results));
  const promises = formatPromises(results);
  console.log(promises.text);
  const taking = all.filter((contender) => results.some(({ rows }) => rows.some(({ name }) => name === contender.name)));
  const contenders = Object.fromEntries(taking.map((contender) => [contender.name, contender.describe()]));
  console.log(
    `\n${Object.entries(contenders)
      .map((entry) => entry.join(': '))
      .join('\n')}`,
  );
  mkdirSync(out, { recursive: true });
  writeFileSync(join(out, 'results.json'), JSON.stringify({ conditions, contenders, results }, undefined, 1));
  const facts = Object.entries(conditions).map(([name, text]) => `- ${name}: ${text}`);
  writeFileSync(join(out, 'promises.md'), `${promises.markdown}\n\n${facts.join('\n')}\n`);
  const plots = plotAll(results, out);
  console.log(`\nwritten to ${out}: results.json, promises.md${plots.map((name) => `, ${name}`).join('')}`);
}

/** All that a reader has to know to judge the numbers, or to repeat them. */
function describeConditions({ cores, rounds, pace }: Omit<RunParts, 'contenders'>): Record<string, string> {
  const commit = execFileSync('git', ['describe', '--always', '--dirty'], { encoding: 'utf8' }).trim();
  return {
    date: new Date().toISOString().slice(0, 16),
    commit,
    machine: `${cpus().length} × ${cpus()[0]?.model}, Linux ${execFileSync('uname', ['-r'], { encoding: 'utf8' }).trim()}`,
    load: `${loadavg()[0]?.toFixed(1)} when it began`,
    cores: cores.note,
    rounds: `${rounds} of ${pace.measureMs / 1000} s after ${pace.warmupMs / 1000} s of warm-up (the first after ${pace.firstWarmupMs / 1000}), contenders in turn`,
  };
}

// npm run bench: Sluicegate and others side by side, in one run. What is measured how is told in docs/performance.md.
//   npm run bench -- --quick                      two scenarios, four contenders, under two minutes
//   npm run bench -- --install                    fetch the peers that are not there, then run everything
//   npm run bench -- --only paced,tls --contenders nginx,sluicegate --rounds 5 --seconds 4
//   npm run bench -- --compare main               this checkout and another commit, in turn; fails on a regression
import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { cpus, loadavg } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { compareWith } from './compare.ts';
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
import { plotAll } from './plots.ts';
import { formatPromises } from './promises.ts';
import { formatMeanings, formatScenario } from './report.ts';
import { runScenario, type ScenarioResult } from './run.ts';
import { type Scenario, scenarios } from './scenarios.ts';

const sluicegate = createSluicegate();
const main = [direct, nginx, pipe, sluicegate];
const all = [direct, nginx, haproxy, pipe, sluicegate, httpProxy, portkey, litellm, bifrost];
const sets: Record<Scenario['contenders'], Contender[]> = { all, main };

const { values } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    install: { type: 'boolean', default: false },
    only: { type: 'string' },
    contenders: { type: 'string' },
    rounds: { type: 'string' },
    seconds: { type: 'string' },
    compare: { type: 'string' },
    out: { type: 'string', default: fileURLToPath(new URL('./results', import.meta.url)) },
  },
});

if (values.install) installPeers();
const cores = divideCores();
pinSelf(cores.generators);
const measureMs = 1000 * Number(values.seconds ?? (values.quick ? 2 : 4));
const pace = { warmupMs: Math.min(2000, measureMs / 2), measureMs };
const rounds = Number(values.rounds ?? (values.quick ? 3 : 5));
const generators = await startGenerators(cores.generators);
const tell = (line: string) => console.error(line);

try {
  if (values.compare === undefined) await runAll();
  else process.exitCode = await compareWith(values.compare, { generators, cores, rounds: Number(values.rounds ?? 8), pace, tell });
} finally {
  generators.stop();
}

async function runAll(): Promise<void> {
  const only = values.only?.split(',');
  const chosen = scenarios.filter(({ name, isQuick }) => (only ? only.includes(name) : !values.quick || isQuick));
  if (chosen.length === 0) throw new Error(`no such scenario: ${scenarios.map(({ name }) => name).join(', ')}`);
  const named = values.contenders?.split(',');
  const conditions = describeConditions();
  console.log(
    Object.entries(conditions)
      .map(([name, text]) => `${name}: ${text}`)
      .join('\n'),
  );
  const results: ScenarioResult[] = [];
  for (const scenario of chosen) {
    const contenders = (values.quick ? main : sets[scenario.contenders]).filter(({ name }) => named?.includes(name) ?? true);
    const result = await runScenario(scenario, { generators, cores, contenders, rounds, pace, tell });
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
  mkdirSync(values.out, { recursive: true });
  writeFileSync(join(values.out, 'results.json'), JSON.stringify({ conditions, contenders, results }, undefined, 1));
  const facts = Object.entries(conditions).map(([name, text]) => `- ${name}: ${text}`);
  writeFileSync(join(values.out, 'promises.md'), `${promises.markdown}\n\n${facts.join('\n')}\n`);
  const plots = plotAll(results, values.out);
  console.log(`\nwritten to ${values.out}: results.json, promises.md${plots.map((name) => `, ${name}`).join('')}`);
}

/** All that a reader has to know to judge the numbers, or to repeat them. */
function describeConditions(): Record<string, string> {
  const commit = execFileSync('git', ['describe', '--always', '--dirty'], { encoding: 'utf8' }).trim();
  return {
    date: new Date().toISOString().slice(0, 16),
    commit,
    machine: `${cpus().length} × ${cpus()[0]?.model}, Linux ${execFileSync('uname', ['-r'], { encoding: 'utf8' }).trim()}`,
    load: `${loadavg()[0]?.toFixed(1)} when it began`,
    cores: cores.note,
    rounds: `${rounds} of ${pace.measureMs / 1000} s after ${pace.warmupMs / 1000} s of warm-up, contenders in turn`,
  };
}

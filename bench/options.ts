// The bench's command line: what it may say, what is wrong with it, and the page that `--help` prints.
import { parseArgs } from 'node:util';
import type { Scenario } from './scenarios.ts';

/** What the process says of a run. 1 is a regression's alone, so that a script can trust it. */
export const EXIT = { measured: 0, regression: 1, usage: 2, disturbed: 3, fault: 4 } as const;

export interface Known {
  readonly scenarios: readonly Scenario[];
  /** Names of all contenders, and of those that take part everywhere. */
  readonly all: readonly string[];
  readonly main: readonly string[];
  /** What `--compare` measures where `--only` names nothing. */
  readonly compared: readonly string[];
}

export interface Options {
  /** Those to be measured; with `compare`, those to be compared. */
  readonly scenarios: readonly Scenario[];
  contendersOf(scenario: Scenario): readonly string[];
  readonly rounds: number;
  readonly firstWarmupMs: number;
  readonly measureMs: number;
  readonly install: boolean;
  readonly compare: string | undefined;
  readonly out: string | undefined;
}

/** The command line is wrong; the message says how, and what would be right. */
export class UsageError extends Error {}

const flags = {
  quick: { type: 'boolean', default: false },
  install: { type: 'boolean', default: false },
  only: { type: 'string' },
  contenders: { type: 'string' },
  rounds: { type: 'string' },
  seconds: { type: 'string' },
  compare: { type: 'string' },
  out: { type: 'string' },
} as const;

/** Returns undefined where help is asked for, whatever else is said. Throws a UsageError. */
export function readOptions(args: readonly string[], known: Known): Options | undefined {
  if (args.includes('--help') || args.includes('-h')) return undefined;
  const given = parse(args);
  const isCompared = given.compare !== undefined;
  if (isCompared && given.compare?.trim() === '') throw new UsageError('--compare needs a commit, such as main or HEAD~1');
  if (isCompared && given.contenders !== undefined) throw new UsageError('--compare measures Sluicegate alone: leave --contenders out');
  if (isCompared && given.out !== undefined) throw new UsageError('--compare writes no files: leave --out out');
  const names = listed('only', 'scenario', given.only, namesOf(known.scenarios)) ?? (isCompared ? known.compared : undefined);
  const scenarios = known.scenarios.filter(({ name, isQuick }) => names?.includes(name) ?? (!given.quick || isQuick));
  const wanted = listed('contenders', 'contender', given.contenders, known.all);
  const takingPart = (scenario: Scenario) => (given.quick || scenario.contenders === 'main' ? known.main : known.all);
  for (const name of wanted ?? []) {
    if (scenarios.some((scenario) => takingPart(scenario).includes(name))) continue;
    throw new UsageError(`${name} takes no part in ${given.quick ? '--quick' : namesOf(scenarios).join(', ')}`);
  }
  return {
    scenarios,
    contendersOf: (scenario) => takingPart(scenario).filter((name) => wanted?.includes(name) ?? true),
    rounds: numberOf('rounds', given.rounds, isCompared ? 8 : given.quick ? 3 : 5, Number.isInteger),
    // Of what Node compiles, most is compiled after some 2,000 calls: until then a call costs up to a third more.
    firstWarmupMs: isCompared || given.quick ? 3000 : 10_000,
    measureMs: 1000 * numberOf('seconds', given.seconds, given.quick ? 2 : 4, Number.isFinite),
    install: given.install,
    compare: given.compare,
    out: given.out,
  };
}

function parse(args: readonly string[]) {
  try {
    return parseArgs({ args: [...args], options: flags }).values;
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (!code?.startsWith('ERR_PARSE_ARGS_')) throw error;
    throw new UsageError(message.split('. ')[0] ?? message);
  }
}

const namesOf = (scenarios: readonly Scenario[]) => scenarios.map(({ name }) => name);

/** Names with commas between, each one of those that there are. */
function listed(flag: string, what: string, text: string | undefined, there: readonly string[]): string[] | undefined {
  const names = text?.split(',').map((name) => name.trim());
  const unknown = names?.filter((name) => !there.includes(name)) ?? [];
  if (unknown.length === 0) return names;
  throw new UsageError(`--${flag}: no such ${what}: ${unknown.map((name) => `"${name}"`).join(', ')}; there are ${there.join(', ')}`);
}

function numberOf(flag: string, text: string | undefined, fallback: number, isRight: (value: number) => boolean): number {
  if (text === undefined) return fallback;
  const value = text.trim() === '' ? Number.NaN : Number(text);
  if (isRight(value) && value > 0) return value;
  throw new UsageError(`--${flag}: "${text}" is not a ${isRight === Number.isInteger ? 'whole ' : ''}number above 0`);
}

/** The page of `--help`. */
export function writeHelp({ scenarios, all, main, compared }: Known): string {
  const width = Math.max(...namesOf(scenarios).map((name) => name.length));
  const rows = scenarios.map(
    ({ name, about, isQuick, contenders }) =>
      `  ${isQuick ? 'q' : ' '}${contenders === 'main' ? 'm' : ' '} ${name.padEnd(width)}  ${about.split(':')[0]}`,
  );
  return `npm run bench -- [OPTIONS]

Measures Sluicegate beside nginx, HAProxy, a bare pipe and other gateways, in one run on this machine, and judges the aims
of docs/performance.md. Ratios of one run can be trusted; numbers of two machines, or of two days, cannot be compared.
Leave the machine alone meanwhile: what other processes disturbed is marked, and is worth nothing.

      --quick             two scenarios, ${main.length} contenders, short rounds: under two minutes
      --only NAMES        these scenarios, commas between
      --contenders NAMES  these contenders, commas between
      --rounds N          rounds of each (5; 3 with --quick; 8 pairs with --compare)
      --seconds N         measured time of each round (4; 2 with --quick)
      --install           first fetch the peers that are missing, with npm, pip and go, into bench/.peers
      --out FOLDER        where results.json, promises.md and the plots go (bench/results)
      --compare BASE      this checkout and commit BASE in turn, and nobody else: ${compared.join(', ')},
                          or what --only names
  -h, --help              this page

Without any, everything: about two hours. BENCH_DEBUG=1 in the environment shows what the contenders say.

Exit codes
  0  measured; with --compare: no regression
  1  --compare: CPU per event or p99 got worse by more than 5 % and more than the spread
  2  the command line is wrong
  3  --compare: other processes disturbed the run, so that it says neither yes nor no; once more, on a quiet machine
  4  could not measure: a fault, or a Sluicegate that would not start

Scenarios (q: also with --quick; m: main contenders only)
${rows.join('\n')}

Contenders
  main    ${main.join(', ')}
  others  ${all.filter((name) => !main.includes(name)).join(', ')}; who is missing is skipped by name

Examples
  npm run bench -- --quick
  npm run bench -- --only paced,memory --contenders direct,nginx,sluicegate --rounds 5 --seconds 4
  npm run bench -- --compare main --only paced
`;
}

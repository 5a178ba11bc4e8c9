// The bench's own arithmetic, and its command line: what people doubt first.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import type { Figures } from '../bench/figures.ts';
import { parseStat, readUsage } from '../bench/generators/accounting.ts';
import { nowNs, readStamp, STAMP_DIGITS, STAMP_MARK, writeStamp } from '../bench/generators/clock.ts';
import { createHistogram } from '../bench/generators/histogram.ts';
import { EXIT, type Known, readOptions, UsageError, writeHelp } from '../bench/options.ts';
import { scenarios } from '../bench/scenarios.ts';
import { isRegression, rotate, sample, sampleDifferences, sampleRatios } from '../bench/statistics.ts';
import { formatNumber, niceTicks } from '../bench/svg.ts';
import { exitCodeOf, judge } from '../bench/verdict.ts';
import { createRandom } from './support/random.ts';

t.test('a histogram tells the quantiles of the sorted values, at most 0.8 % off', async (t) => {
  const random = createRandom(1);
  for (const count of [1, 2, 99, 100, 101, 5000]) {
    const histogram = createHistogram();
    // From 0.1 µs to 100 s, as many of each length.
    const values = Array.from({ length: count }, () => 100 * 10 ** (random(9_000_000) / 1_000_000)).sort((a, b) => a - b);
    for (const value of values) histogram.record(value);
    const { p50Us, p99Us, p999Us, maxUs, ...rest } = histogram.quantiles();
    t.equal(rest.count, count);
    for (const [got, share] of [
      [p50Us, 0.5],
      [p99Us, 0.99],
      [p999Us, 0.999],
      [maxUs, 1],
    ] as const) {
      const exactUs = (values[Math.ceil(share * count) - 1] ?? 0) / 1000;
      t.ok(Math.abs(got - exactUs) <= exactUs * 0.008 + 0.05, `${share} of ${count}: ${got} for ${exactUs}`);
    }
  }
});

t.test('a histogram counts what is later than a bound, and takes what is out of its range', async (t) => {
  const histogram = createHistogram();
  for (const ms of [1, 49, 49.5, 51, 60, 1000]) histogram.record(ms * 1e6);
  t.equal(histogram.countAbove(50_000), 3);
  histogram.record(-5);
  histogram.record(1e15);
  t.equal(histogram.quantiles().count, 8);
  t.equal(createHistogram().quantiles().p99Us, 0, 'of nothing');
});

t.test('a time travels inside an event and comes back to the nanosecond', async (t) => {
  const buffer = Buffer.from(`"content":"${STAMP_MARK}${'0'.repeat(STAMP_DIGITS)}"`);
  const at = buffer.indexOf(STAMP_MARK) + STAMP_MARK.length;
  for (const ns of [0, 1, 99_999_999, 100_000_000, 13_800_123_456_789, Number.MAX_SAFE_INTEGER]) {
    writeStamp(buffer, at, ns);
    t.equal(buffer.toString('latin1', at, at + STAMP_DIGITS), String(ns).padStart(STAMP_DIGITS, '0'));
    t.equal(readStamp(buffer, at), ns);
  }
  t.ok(Number.isNaN(readStamp(buffer, at - 1)), 'no digits');
});

t.test('the clock is CLOCK_MONOTONIC', async (t) => {
  const before = Number(process.hrtime.bigint());
  const now = nowNs();
  const after = Number(process.hrtime.bigint());
  t.ok(now >= before - 20_000 && now <= after + 20_000, `${before} ${now} ${after}`);
});

t.test('CPU and memory are read where proc(5) says they are', async (t) => {
  const line = '42 (a) b (c) S 1 42 42 0 -1 4194560 900 0 0 0 1234 567 0 0 20 0 11 0 100 734003200 2500 18446744073709551615 1 1';
  t.same(parseStat(line), { userS: 12.34, kernelS: 5.67, rssKb: 10_000 });
  const before = readUsage([process.pid]);
  for (const untilMs = performance.now() + 60; performance.now() < untilMs; );
  const after = readUsage([process.pid]);
  t.ok(after.userS + after.kernelS > before.userS + before.kernelS, 'work is seen');
  t.ok(after.rssKb > 10_000, `${after.rssKb} KB`);
  t.same(readUsage([]), { userS: 0, kernelS: 0, rssKb: 0 }, 'direct is nobody');
});

t.test('medians, spreads and ratios are those of the rounds', async (t) => {
  t.same(sample([5, 1, 4, 2, 3]), { median: 3, spread: 1, rounds: 5 });
  t.same(sample([1, 2]), { median: 1.5, spread: 0.25, rounds: 2 });
  t.same(sampleRatios([2, 4, 9], [1, 2, 3]).median, 2, 'round by round');
  t.same(sampleDifferences([2, 4, 9], [1, 2, 3]).median, 2);
  t.ok(Number.isNaN(sampleRatios([1, 2], []).median), 'nobody to compare with');
  t.same(
    [0, 1, 2, 3].map((round) => rotate(['a', 'b', 'c'], round).join('')),
    ['abc', 'bca', 'cab', 'abc'],
  );
});

t.test('a regression is more than 5 % beyond the spread', async (t) => {
  t.notOk(isRegression(sample([1.05, 1.05, 1.05])));
  t.ok(isRegression(sample([1.06, 1.06, 1.06])));
  t.notOk(isRegression(sample([0.9, 1.07, 1.3])), 'the spread explains it');
  t.notOk(isRegression(sample([0.5, 0.5])));
});

t.test('axes have round numbers that hold what is drawn', async (t) => {
  t.same(niceTicks(37), [0, 10, 20, 30, 40]);
  t.same(niceTicks(0.3), [0, 0.1, 0.2, 0.3]);
  t.same(niceTicks(0), [0, 0.5, 1]);
  t.same([0.123, 5.5, 13.84, 430, 2500, 12_400, Number.NaN].map(formatNumber), ['0.12', '5.5', '13.8', '430', '2.5k', '12k', '–']);
});

const known: Known = {
  scenarios,
  all: ['direct', 'nginx', 'sluicegate', 'litellm'],
  main: ['direct', 'nginx', 'sluicegate'],
  compared: ['paced'],
};

t.test('the command line says what is measured, whom and how often', async (t) => {
  const read = (line: string) => {
    const options = readOptions(line === '' ? [] : line.split(' '), known);
    if (options === undefined) return undefined;
    const names = options.scenarios.map(({ name }) => name);
    return { ...options, scenarios: names, contenders: options.scenarios.map(options.contendersOf) };
  };
  t.match(read(''), { rounds: 5, measureMs: 4000, compare: undefined, out: undefined, install: false });
  t.equal(read('')?.scenarios.length, scenarios.length);
  t.match(read('--quick'), { scenarios: ['paced', 'one-at-a-time'], contenders: [known.main, known.main], rounds: 3, measureMs: 2000 });
  t.match(read('--only memory-1000,paced --contenders nginx,litellm --rounds 2 --seconds 0.5 --out x'), {
    scenarios: ['paced', 'memory-1000'],
    contenders: [['nginx', 'litellm'], ['nginx']],
    rounds: 2,
    measureMs: 500,
    out: 'x',
  });
  t.match(read('--compare HEAD~1'), { compare: 'HEAD~1', scenarios: ['paced'], rounds: 8, measureMs: 4000 });
  t.match(read('--compare HEAD~1 --only tls,unpaced --quick'), { scenarios: ['unpaced', 'tls'], measureMs: 2000 });
  for (const line of ['--help', '-h', '--quick --help', '--nonsense --only nix -h']) t.equal(read(line), undefined, line);
});

t.test('what the command line cannot mean is said, and what would be right', async (t) => {
  const wrong: [string, RegExp][] = [
    ['--nonsense', /'--nonsense'/],
    ['paced', /'paced'/],
    ['--seconds', /--seconds.*missing/],
    ['--quick=yes', /--quick/],
    ['--only paced,nix', /"nix"; there are paced, long, instant, /],
    ['--only paced,', /""; there are paced/],
    ['--contenders nginx,Nginx', /"Nginx"; there are direct, nginx, sluicegate, litellm$/],
    ['--contenders litellm --only memory-1000', /litellm takes no part in memory-1000/],
    ['--contenders litellm --quick', /litellm takes no part in --quick/],
    ['--rounds 0', /"0"/],
    ['--rounds 1.5', /whole number/],
    ['--seconds -1', /--seconds/],
    ['--seconds=', /--seconds: ""/],
    ['--seconds soon', /"soon"/],
    ['--compare=', /needs a commit/],
    ['--compare main --contenders nginx', /leave --contenders out/],
    ['--compare main --out x', /leave --out out/],
  ];
  for (const [line, message] of wrong) {
    const fault = faultOf(line);
    t.ok(fault instanceof UsageError, line);
    t.match(fault, { message }, line);
  }
});

/** What is thrown for a command line. */
function faultOf(line: string): unknown {
  try {
    readOptions(line.split(' '), known);
  } catch (error) {
    return error;
  }
  return undefined;
}

t.test('the help tells of every option, scenario, contender and exit code', async (t) => {
  const help = writeHelp(known);
  const options = ['quick', 'only', 'contenders', 'rounds', 'seconds', 'install', 'out', 'compare', 'help'];
  for (const name of options) t.match(help, new RegExp(`^ .*--${name}\\b`, 'm'), name);
  for (const name of [...scenarios.map((scenario) => scenario.name), ...known.all]) t.match(help, new RegExp(`[ ,]${name}\\b`), name);
  for (const code of Object.values(EXIT)) t.match(help, new RegExp(`^ {2}${code} {2}\\S`, 'm'), `exit code ${code}`);
});

const bench = fileURLToPath(new URL('../bench/bench.ts', import.meta.url));

/** The bench as a process, to its end. */
async function runBench(...args: string[]) {
  const child = spawn(process.execPath, [bench, ...args], { stdio: ['ignore', 'pipe', 'pipe'], timeout: 60_000 });
  const [out, err] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'close')]);
  return { code: child.exitCode, out, err };
}

t.test('help is printed, and what is wrong ends it with 2, before anything is measured', async (t) => {
  const [help, unknown, base] = await Promise.all([
    runBench('--quick', '--help'),
    runBench('--only', 'nix'),
    runBench('--compare', 'no-such-commit'),
  ]);
  t.match(help, { code: 0, out: /^npm run bench[\s\S]*litellm/, err: '' });
  t.match(unknown, { code: 2, out: '', err: /no such scenario: "nix"[^\n]*\nnpm run bench -- --help says/ });
  t.match(base, { code: 2, out: '', err: /^--compare: "no-such-commit" is no commit/ });
});

/** Four rounds of one commit, each with these figures. */
const rowOf = (name: string, ...rounds: Figures[]) => ({ name, rounds });
const four = (figures: Figures) => Array.from({ length: 4 }, () => figures);

t.test('a comparison calls a regression what got worse, and nothing where others were at work', async (t) => {
  const quiet = { cpuPerEventUs: 30, eventP99Us: 900, rssMb: 100, foreignCores: 0.03 };
  const before = rowOf('base', ...four(quiet));
  const judged = (after: Figures, base = before) => judge('paced', [base, rowOf('this', ...four({ ...quiet, ...after }))]);

  t.match(judged({}), { verdict: 'fine', text: /^\npaced, 4 pairs/ });
  t.notMatch(judged({}).text, /REGRESSION|worse$|disturbed/m);
  t.match(judged({ cpuPerEventUs: 33 }), { verdict: 'regression', text: /CPU\/event +30\.0 +33\.0 +10\.0 % ±0\.0 +REGRESSION/ });
  t.match(judged({ rssMb: 150 }), { verdict: 'fine', text: /RSS.* worse/ }, 'memory is told, not judged');
  t.match(judged({ cpuPerEventUs: 20 }), { verdict: 'fine' }, 'better');

  const disturbed = judged({ cpuPerEventUs: 60, foreignCores: 0.4 });
  t.match(disturbed, { verdict: 'disturbed', text: /disturbed by other work .*0\.40 cores beside this.*no verdict/ });
  t.match(disturbed.text, /CPU\/event .* worse$/m, 'the numbers are shown all the same');
  t.notMatch(disturbed.text, /REGRESSION/);
  t.equal(judged({}, rowOf('base', ...four({ ...quiet, foreignCores: 0.2 }))).verdict, 'disturbed', 'nor is it called fine');
  const once = rowOf('this', { ...quiet, foreignCores: 2 }, quiet, quiet, quiet);
  t.equal(judge('paced', [before, once]).verdict, 'fine', 'one round of four is what the median leaves out');

  t.equal(exitCodeOf(['fine', 'fine']), 0);
  t.equal(exitCodeOf(['fine', 'disturbed']), 3);
  t.equal(exitCodeOf(['disturbed', 'regression', 'fine']), 1, 'what was seen undisturbed holds');
});

// npm test: type check, lint and tests side by side, closing with one line of counts. Arguments go on to tap.
import { spawn } from 'node:child_process';
import { availableParallelism } from 'node:os';

/** Runs a command; its output is shown when it fails, or as it comes where `onLine` wants it. */
function run(command, args, onLine) {
  return new Promise((resolve) => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], shell: process.platform === 'win32' });
    let output = '';
    let rest = '';
    const take = (text) => {
      output += text;
      const lines = (rest + text).split('\n');
      rest = lines.pop() ?? '';
      if (onLine) for (const line of lines) onLine(line);
    };
    child.stdout.setEncoding('utf8').on('data', take);
    child.stderr.setEncoding('utf8').on('data', take);
    child.once('error', (error) => resolve({ isGood: false, output: error.message }));
    child.once('close', (code) => {
      if (onLine && rest !== '') onLine(rest);
      resolve({ isGood: code === 0, output });
    });
  });
}

const counts = { passed: 0, failed: 0, skipped: [] };

/** Shows each file's verdict, what failed and why, and counts assertions and skips from the TAP stream. */
function readTap(line) {
  const verdict = /^( *)(not )?ok \d+ -? ?(.*)$/.exec(line);
  const skip = / # SKIP ?(.*)$/i.exec(line);
  if (skip && verdict) counts.skipped.push(`${verdict[3].replace(/ # SKIP.*$/i, '')} (${skip[1] || 'no reason given'})`);
  if (verdict && verdict[1] === '') console.log(line.replace(/ # time=/, '  ').replace(/ \{$/, ''));
  else if (verdict?.[2] || /^ {2,}(message|at|found|wanted|diff|stack|error|code):|^\s+[-+] /.test(line)) console.log(line);
  const total = /^# \{ total: (\d+), pass: (\d+)(?:, fail: (\d+))?/.exec(line);
  if (total) {
    counts.passed = Number(total[2]);
    counts.failed = Number(total[3] ?? 0);
  }
}

const started = Date.now();
const [types, lint, tests] = await Promise.all([
  run('npx', ['--no-install', 'tsc', '--noEmit']),
  run('npx', ['--no-install', 'biome', 'check', '--error-on-warnings', '.']),
  run('npx', ['--no-install', 'tap', '--reporter=tap', `--jobs=${availableParallelism()}`, ...process.argv.slice(2)], readTap),
]);
for (const [name, { isGood, output }] of Object.entries({ 'type check': types, lint })) {
  console.log(`${isGood ? 'ok' : 'not ok'} ${name}`);
  if (!isGood) console.log(output);
  counts[isGood ? 'passed' : 'failed'] += 1;
}
if (!tests.isGood && counts.failed === 0) {
  console.log(tests.output.slice(-4000));
  counts.failed += 1;
}
for (const name of counts.skipped) console.log(`skipped: ${name}`);
console.log(`in ${((Date.now() - started) / 1000).toFixed(1)} s`);
console.log(`${counts.passed} passed, ${counts.failed} failed${counts.skipped.length > 0 ? `, ${counts.skipped.length} skipped` : ''}`);
process.exit(counts.failed > 0 || !types.isGood || !lint.isGood || !tests.isGood ? 1 : 0);

// The bench's own arithmetic: what people doubt first.
import t from 'tap';
import { parseStat, readUsage } from '../bench/generators/accounting.ts';
import { nowNs, readStamp, STAMP_DIGITS, STAMP_MARK, writeStamp } from '../bench/generators/clock.ts';
import { createHistogram } from '../bench/generators/histogram.ts';
import { isRegression, rotate, sample, sampleDifferences, sampleRatios } from '../bench/statistics.ts';
import { formatNumber, niceTicks } from '../bench/svg.ts';
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

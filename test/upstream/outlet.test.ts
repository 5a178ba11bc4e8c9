// What an upstream learns of itself, on a clock of the test's own: when it is put aside and comes back, which key is used, who is next.
import t from 'tap';
import { type Config, loadConfig, type Upstream } from '../../src/config.ts';
import { createBalance } from '../../src/upstream/balance.ts';
import { createHealth, type Trial } from '../../src/upstream/health.ts';
import { createKeyPool } from '../../src/upstream/keys.ts';
import type { Outlet } from '../../src/upstream/outlet.ts';
import { createRouter } from '../../src/upstream/router.ts';
import { createRandom } from '../support/random.ts';

const RULES = { failures: 3, share: 0.5, forMs: 1000 };

function configOf(text: string): Config {
  const loaded = loadConfig({ file: 'c.yaml', text }, {});
  if (!loaded.ok) throw new Error(JSON.stringify(loaded.problems));
  return loaded.config;
}

t.test(
  'failures in a row put it aside, for longer each time that a probe fails, and one probe that is answered brings it back',
  async (t) => {
    let nowMs = 0;
    const health = createHealth(RULES, () => nowMs);
    const fail = () => health.begin().failed();
    fail();
    fail();
    health.begin().answered();
    fail();
    fail();
    t.ok(health.isUp, 'an answer in between starts the row anew');
    const underWay = health.begin();
    fail();
    t.notOk(health.isUp);
    t.notOk(health.isFit);
    underWay.failed();
    nowMs = 999;
    t.notOk(health.isFit, 'what was under way then changes nothing');
    for (const forMs of [2000, 4000, 8000, 10_000, 10_000]) {
      nowMs += forMs === 2000 ? 1 : 0;
      t.ok(health.isFit, 'its time is over');
      const probe = health.begin();
      t.notOk(health.isFit, 'one call probes it');
      health.begin().failed();
      t.notOk(health.isFit, 'others do not');
      probe.failed();
      nowMs += forMs - 1;
      t.notOk(health.isFit, `${forMs}`);
      nowMs += 1;
    }
    const left = health.begin();
    left.close();
    t.ok(health.isFit, 'a probe whose client left says nothing');
    health.begin().answered();
    t.ok(health.isUp);
    fail();
    fail();
    t.ok(health.isUp, 'it begins anew');
  },
);

t.test('a share of failures puts it aside too, if the calls were enough and recent', async (t) => {
  let nowMs = 0;
  const health = createHealth({ ...RULES, failures: 1000 }, () => nowMs);
  for (let n = 0; n < 9; n++) {
    health.begin().answered();
    health.begin().failed();
  }
  t.ok(health.isUp, '18 calls are too few');
  nowMs = 60_000;
  health.begin().answered();
  health.begin().failed();
  t.ok(health.isUp, 'and they are too old');
  const broken = () => {
    const trial = health.begin();
    trial.answered();
    trial.failed();
  };
  for (let n = 0; n < 17; n++) broken();
  t.ok(health.isUp, 'each is one call');
  broken();
  t.notOk(health.isUp, 'answers that break off are failures as well');
  const strict = createHealth({ ...RULES, failures: 1000, share: 0.9 }, () => 0);
  for (let n = 0; n < 20; n++) {
    const trial = strict.begin();
    trial.answered();
    trial.failed();
  }
  t.notOk(strict.isUp, 'and nothing but failures, where there is nothing else');
  const never = createHealth(undefined, () => 0);
  for (let n = 0; n < 100; n++) never.begin().failed();
  t.ok(never.isUp && never.isFit);
});

t.test('answers that break off, one after the other, put it aside; an answer that stands in between starts the row anew', async (t) => {
  const health = createHealth(RULES, () => 0);
  const breakOff = () => {
    const trial = health.begin();
    trial.answered();
    trial.failed();
  };
  breakOff();
  breakOff();
  const long = health.begin();
  long.answered();
  health.begin().answered();
  long.failed();
  breakOff();
  t.ok(health.isUp, 'two in a row, whatever was before');
  breakOff();
  t.notOk(health.isUp);
});

t.test(
  'whatever comes in whatever order: one probe at a time, never aside for longer than ten times, and always found again',
  async (t) => {
    const random = createRandom(20_261_124);
    let asideCount = 0;
    for (let run = 0; run < 300; run++) {
      let nowMs = 0;
      const health = createHealth(RULES, () => nowMs);
      const trials: Trial[] = [];
      for (let step = 0; step < 100; step++) {
        const isProbe = !health.isUp && health.isFit;
        if (random(2) === 0) {
          trials.push(health.begin());
          if (isProbe && health.isFit) t.fail(`run ${run}: two probes at a time`);
        }
        const trial = trials[random(Math.max(1, trials.length))];
        const act = random(100);
        if (trial !== undefined && act < 60) {
          if (act < 35) trial.failed();
          else if (act < 40) trial.answered();
          trial.close();
          trials.splice(trials.indexOf(trial), 1);
        }
        nowMs += random(400);
      }
      for (const trial of trials) trial.close();
      nowMs += RULES.forMs * 10;
      if (!health.isFit) t.fail(`run ${run} is stuck`);
      if (!health.isUp) asideCount++;
    }
    t.ok(asideCount > 20, `${asideCount} of the runs ended aside`);
  },
);

t.test('keys take turns; one that was refused rests for as long as was said, or as is usual', async (t) => {
  let nowMs = 0;
  const [upstream] = configOf('upstreams: { a: { baseUrl: https://a.example, apiKeys: [k1, k2, k3] } }').upstreams;
  const keys = createKeyPool(
    upstream!,
    () => nowMs,
    (fault) => t.fail(String(fault)),
  );
  const take = (count: number) => Array.from({ length: count }, () => keys.take()).join(' ');
  t.equal(take(4), 'k1 k2 k3 k1');
  keys.refused('k2', 429, ['Retry-After', '7']);
  keys.refused('k3', 429, ['retry-after-ms', '2500', 'retry-after', '3']);
  t.equal(take(3), 'k1 k1 k1');
  nowMs = 2500;
  t.equal(take(3).includes('k3'), true);
  nowMs = 6999;
  t.notMatch(take(4), 'k2');
  nowMs = 7000;
  t.match(take(3), 'k2');
  keys.refused('k1', 401, []);
  keys.refused('k2', 429, ['retry-after', 'Wed, 21 Oct 2026 07:28:00 GMT']);
  keys.refused('k3', 429, ['retry-after', '99999']);
  t.notOk(keys.hasFresh);
  t.equal(take(2), 'k2 k2', 'of those that rest, the one that is the first to be fresh');
  nowMs += 30_000;
  t.ok(keys.hasFresh);
  nowMs += 570_000;
  t.equal(take(3).split(' ').toSorted().join(' '), 'k1 k2 k3', 'ten minutes at most');
  t.equal(
    createKeyPool(
      { ...upstream!, apiKeys: [] },
      () => 0,
      (fault) => t.fail(String(fault)),
    ).take(),
    undefined,
  );
});

t.test('the order of targets: as written, by weight, by calls under way; without those that are aside', async (t) => {
  const config = configOf(`
upstreams: { a: { baseUrl: https://a.example, auth: none }, b: { baseUrl: https://b.example, auth: none }, c: { baseUrl: https://c.example, auth: none } }
models:
  - { match: plain, upstreams: [a, b, c] }
  - { match: weighted, upstreams: [{ name: a, weight: 3 }, b] }
  - { match: busy, upstreams: [a, { name: b, weight: 2 }, c], balance: leastBusy }
`);
  const router = createRouter(config);
  const active: Record<string, number> = { a: 0, b: 0, c: 0 };
  let resting = '';
  const fit: Record<string, boolean> = { a: true, b: true, c: true };
  const outletOf = ({ name }: Upstream) =>
    ({
      health: { isFit: fit[name] },
      keys: { isResting: resting === name },
      client: { counts: () => ({ active: active[name], idle: 0, queued: 0 }) },
    }) as unknown as Outlet;
  const balance = createBalance(outletOf);
  const order = (model: string) =>
    balance
      .order(router.route(model, ''))
      .map(({ upstream }) => upstream.name)
      .join('');
  t.equal(order('plain'), 'abc');
  fit.a = false;
  t.equal(order('plain'), 'bc');
  fit.b = fit.c = false;
  t.equal(order('plain'), 'abc', 'all aside means all are tried');
  fit.a = fit.b = fit.c = true;
  resting = 'a';
  t.equal(order('plain'), 'bca', 'one whose keys all rest is the last resort');
  fit.b = fit.c = false;
  t.equal(order('plain'), 'a');
  fit.b = fit.c = true;
  resting = '';
  t.equal(Array.from({ length: 8 }, () => order('weighted')[0]).join(''), 'aabaaaba');
  t.same(new Set(Array.from({ length: 8 }, () => order('busy')[0])), new Set(['a', 'b', 'c']), 'who is as busy as another takes turns');
  Object.assign(active, { a: 2, b: 3, c: 1 });
  t.equal(order('busy'), 'cba');
  active.c = 9;
  t.equal(order('busy'), 'bac');
});

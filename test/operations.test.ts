// Promise: what is shipped for operating fits the gateway: compose, Prometheus, Grafana, alerts, nginx. Containers and data: npm run test:compose.
import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { parse } from 'yaml';
import { formatProblem, loadConfig } from '../src/config.ts';
import { startDemo } from '../src/demo/server.ts';
import { startTraffic } from '../src/demo/traffic.ts';
import { startGateway } from '../src/gateway.ts';
import { createLogger } from '../src/telemetry/log.ts';
import { dashboard, panelQueries, root, ruleQueries, rules, type Use, usesOf, variableUses } from './compose/queries.ts';
import { parseMetrics } from './support/metrics.ts';
import { createRandom } from './support/random.ts';

const read = (path: string) => readFileSync(join(root, path), 'utf8');
const missing = (command: string, from: string) =>
  spawnSync(command, ['-h'], { env: { PATH: `${process.env.PATH}:/usr/sbin` } }).error
    ? `${command} (Debian: ${from}) is not installed`
    : false;

/** Prometheus makes these itself. */
const OF_PROMETHEUS: Record<string, readonly string[]> = { up: [], ALERTS: ['alertname', 'alertstate'] };
const TARGET_LABELS = ['job', 'instance'];

t.test('every query of dashboard and alerts names what the gateway shows after a demo', async (t) => {
  const demo = await startDemo({ host: '127.0.0.1', port: 0 });
  t.teardown(() => demo.close());
  const text = read('config/compose/demo.yaml')
    .replace(/0\.0\.0\.0:\d+/g, '127.0.0.1:0')
    .replaceAll('http://demo:8081/v1', demo.url);
  const loaded = loadConfig({ file: 'demo.yaml', text }, {});
  if (!loaded.ok) throw new Error(loaded.problems.map(formatProblem).join('\n'));
  const log = createLogger({ level: 'silent', format: 'json' }, false);
  const gateway = await startGateway({ config: loaded.config, log, version: '0' });
  t.teardown(() => gateway.close());

  const dice = createRandom(8);
  const random = () => dice(1_000_000) / 1_000_000;
  const keys = ['sk-demo-web-app', 'sk-demo-mobile', 'sk-demo-batch', 'sk-demo-trial'];
  const url = `${gateway.url}/v1`;
  const traffic = startTraffic({ url, keys, calls: 300, perSecond: 150, speed: 100, random });
  await traffic.done;
  t.ok(traffic.stats.answered > 250, `${traffic.stats.answered} calls were answered`);
  t.equal(traffic.stats.failed, 0, 'no call was without an answer');

  // One that is still under way when metrics are read.
  const leave = new AbortController();
  const body = JSON.stringify({ model: 'demo-large', stream: true, messages: [{ role: 'user', content: 'Hello' }] });
  const headers = { authorization: 'Bearer anything', 'content-type': 'application/json', 'x-demo-tokens-per-second': '0.001' };
  const live = await fetch(`${url}/chat/completions`, { method: 'POST', headers, body, signal: leave.signal });
  t.equal(live.status, 200, 'the key of the README’s examples is one of the demo');
  const page = await fetch(`${gateway.opsUrl}/metrics`, { headers: { authorization: 'Bearer demo' } });
  const shown = parseMetrics(await page.text());
  leave.abort();

  const outcomes = new Set(shown.series('sluicegate_requests_total').map(({ labels }) => labels.outcome));
  t.match(
    [...outcomes].sort(),
    ['client_closed', 'completed', 'rejected', 'upstream_error', 'upstream_reset'],
    'the demo has endings of many kinds',
  );

  const recorded = new Set(rules.map(({ record }) => record));
  const labelsOf = (metric: string) =>
    OF_PROMETHEUS[metric] ?? Object.keys(Object.assign({}, ...shown.series(metric).map(({ labels }) => labels)));
  const checkUse = (name: string, { metric, labels }: Use) => {
    if (recorded.has(metric)) return;
    t.ok(metric in OF_PROMETHEUS || shown.series(metric).length > 0, `${name}: ${metric} is there`);
    const there = [...labelsOf(metric), ...TARGET_LABELS];
    for (const label of labels) t.ok(there.includes(label), `${name}: ${metric} has ${label}`);
  };
  const queries = [...panelQueries(), ...ruleQueries()];
  t.ok(queries.length > 55, `${queries.length} queries`);
  for (const { name, expr } of queries) {
    const { uses, grouping } = usesOf(expr);
    t.ok(uses.length > 0, `${name} asks for a metric`);
    for (const use of uses) checkUse(name, use);
    const there = new Set([...uses.flatMap(({ metric }) => labelsOf(metric)), ...TARGET_LABELS]);
    for (const label of grouping) t.ok(there.has(label), `${name}: ${label} is a label of what it groups`);
    for (const [, values = ''] of expr.matchAll(/\boutcome[=!]~?"([^"]*)"/g))
      for (const value of values.split('|')) t.match(read('docs/metrics.md'), `\`${value}\``, `${name}: ${value} is an outcome`);
  }
  for (const use of variableUses()) checkUse('variable', use);
});

t.test('the reader of queries sees metrics and labels where they stand', async (t) => {
  const { uses, grouping } = usesOf(
    'sum by (a, b) (rate(x_total{c=~"no{d}", e!="y_total"}[5m] offset 1h)) / on (a) group_left z > 0.1 and up == 0',
  );
  t.same(uses, [
    { metric: 'x_total', labels: ['c', 'e'] },
    { metric: 'z', labels: [] },
    { metric: 'up', labels: [] },
  ]);
  t.same(grouping, ['a', 'b', 'a']);
});

t.test('the dashboard: each panel says what it shows, in a unit, and in a place of its own', async (t) => {
  const taken = new Set<string>();
  for (const { title, type, description, gridPos, fieldConfig, targets = [] } of dashboard.panels) {
    for (let x = gridPos.x; x < gridPos.x + gridPos.w; x += 1)
      for (let y = gridPos.y; y < gridPos.y + gridPos.h; y += 1) {
        t.notOk(taken.has(`${x},${y}`) || x > 23, `${title} has its place`);
        taken.add(`${x},${y}`);
      }
    if (type === 'row') continue;
    t.match(description, /\.$/, `${title} has a description`);
    t.ok(fieldConfig?.defaults.unit, `${title} has a unit`);
    t.ok(targets.length > 0, `${title} asks for something`);
  }
});

t.test('cost today counts what a series begins with, and nothing twice', { skip: missing('promtool', 'prometheus') }, async (t) => {
  // Half an hour is in sight (VARIABLES in queries.ts), an hour has gone by. "_" is before it was there.
  const cost = (client: string, instance: string, values: string) => ({
    series: `sluicegate_cost_usd_total{client="${client}",upstream="u",model="m",job="j",instance="${instance}"}`,
    values,
  });
  const target = (instance: string, up: string, startedAt: string) => [
    { series: `up{job="j",instance="${instance}"}`, values: up },
    { series: `process_start_time_seconds{job="j",instance="${instance}"}`, values: startedAt },
  ];
  const series = [
    ...target('watched', '1x60', '0x60'),
    cost('steady', 'watched', '0+0.1x60'),
    cost('new', 'watched', '_x39 2x20'),
    cost('restarted', 'watched', '7x44 1x15'),
    ...target('started', '_x39 1x20', '_x39 2400x20'),
    cost('new', 'started', '_x39 4x20'),
    // Prometheus came to it late: what it had counted by then need not be of today.
    ...target('found', '_x39 1x20', '_x39 0x20'),
    cost('found', 'found', '_x39 900x20'),
  ];
  const expected: Record<string, [string, number][]> = {
    'Cost today': [['{}', 10]],
    'Cost today by client': [
      ['{client="steady"}', 3],
      ['{client="new"}', 6],
      ['{client="restarted"}', 1],
      ['{client="found"}', 0],
    ],
  };
  // Rounded, since Prometheus 2 and 3 differ in whether a range holds its first instant.
  const asked = panelQueries().filter(({ name }) => name in expected);
  t.equal(asked.length, 2);
  const test = {
    tests: [
      {
        interval: '1m',
        input_series: series,
        promql_expr_test: asked.map(({ name, expr }) => ({
          expr: `round(${expr}, 0.5)`,
          eval_time: '60m',
          exp_samples: expected[name]?.map(([labels, value]) => ({ labels, value })),
        })),
      },
    ],
  };
  const file = join(t.testdir({ 'test.yaml': JSON.stringify(test) }), 'test.yaml');
  const { status, stdout, stderr } = spawnSync('promtool', ['test', 'rules', file], { encoding: 'utf8' });
  t.equal(status, 0, stdout + stderr);
});

t.test('alerts: each tells what is the matter and what to do, and is in the operating guide', async (t) => {
  for (const { alert, annotations } of rules) {
    if (alert === undefined) continue;
    t.match(annotations, { summary: /\S/, description: /\S{3,}.*[.?]$/s }, alert);
    t.match(read('docs/operating.md'), `\`${alert}\``, alert);
    t.match(read('config/prometheus/rules.test.yaml').split(`alertname: ${alert}`).length, 3, `${alert} is seen firing and not firing`);
  }
});

interface Service {
  readonly image?: string;
  readonly build?: string;
  readonly user?: string;
  readonly healthcheck?: { readonly test: readonly string[] };
  readonly restart?: string;
  readonly read_only?: boolean;
  readonly mem_limit?: string;
  readonly cpus?: string;
  readonly pids_limit?: number;
  readonly cap_drop?: readonly string[];
  readonly ports?: readonly string[];
  readonly volumes?: readonly string[];
}

t.test('compose: each service is pinned, bounded, read-only, without root, looked after and published to this machine only', async (t) => {
  const text = read('docker-compose.yml');
  const { services } = parse(text, { merge: true }) as { services: Record<string, Service> };
  t.same(Object.keys(services).sort(), ['demo', 'edge', 'gateway', 'grafana', 'limits', 'prometheus', 'traffic']);
  const { version } = JSON.parse(read('package.json')) as { version: string };
  for (const [name, service] of Object.entries(services)) {
    const image = service.image?.replace(/^\$\{\w+:-(.*)\}$/, '$1') ?? '';
    t.match(image, /^[\w./-]+:v?\d+\.\d+\.\d+(-alpine)?$/, `${name} is pinned`);
    if (image.startsWith('sluicegate:')) t.equal(image, `sluicegate:${version}`, `${name} is of this version`);
    else t.match(service.user, /^[1-9]\d*:\d+$/, `${name} is not root`);
    t.match(service, { restart: 'unless-stopped', read_only: true, cap_drop: ['ALL'] }, name);
    t.ok(service.healthcheck && service.mem_limit && service.cpus && service.pids_limit, `${name} has bounds and a health check`);
    for (const port of service.ports ?? []) t.match(port, /^(?:127\.0\.0\.1|\$\{\w+:-127\.0\.0\.1\}):/, `${name} ${port}`);
  }
  t.match(read('Dockerfile'), /^USER 65532:65532$/m);
  t.notMatch(text.replace(/#.*$/gm, ''), /\$\{\w+:-\}/, 'no empty default, which older podman-compose cannot read');
  const examples = [...read('.env.example').matchAll(/^(\w+)=/gm)].map(([, name = '']) => name);
  for (const name of examples.filter((one) => one !== 'COMPOSE_PROFILES'))
    t.match(text, new RegExp(`\\b${name}\\b`), `.env.example: ${name}`);
});

t.test('both configurations for compose are valid', async (t) => {
  const env = {
    OPS_TOKEN: 'token',
    SLUICEGATE_UPSTREAM_KEY: 'sk-upstream',
    SLUICEGATE_KEY: 'sk-client',
    LIMITS_STORE: 'redis://limits:6379/0',
  };
  for (const file of ['config/compose/demo.yaml', 'config/compose/production.yaml']) {
    const result = loadConfig({ file, text: read(file) }, env);
    t.ok(result.ok, result.ok ? file : result.problems.map(formatProblem).join('\n'));
    t.same(result.warnings.map(formatProblem), [], file);
  }
  const result = loadConfig({ file: 'production.yaml', text: read('config/compose/production.yaml') }, {});
  t.notOk(result.ok, 'production asks for its secrets');
});

t.test('promtool has nothing against Prometheus’ configuration', { skip: missing('promtool', 'prometheus') }, async (t) => {
  const { status, stdout, stderr } = spawnSync(
    'promtool',
    ['check', 'config', '--syntax-only', join(root, 'config/prometheus/prometheus.yml')],
    {
      encoding: 'utf8',
    },
  );
  t.equal(status, 0, stdout + stderr);
  const checked = spawnSync('promtool', ['check', 'rules', join(root, 'config/prometheus/rules.yaml')], { encoding: 'utf8' });
  t.equal(checked.status, 0, checked.stdout + checked.stderr);
});

t.test('nginx takes the configuration of the service edge', { skip: missing('nginx', 'nginx-light') }, async (t) => {
  const folder = t.testdir({});
  writeFileSync(join(folder, 'sluicegate.conf'), read('config/nginx/sluicegate.conf').replaceAll('gateway:8080', '127.0.0.1:8080'));
  const config = read('config/nginx/nginx.conf')
    .replaceAll('/tmp/', `${folder}/`)
    .replaceAll('/etc/nginx/sluicegate', folder)
    .replace('/dev/stdout', `${folder}/access.log`);
  writeFileSync(join(folder, 'nginx.conf'), config.replace('worker_rlimit_nofile 65536;', ''));
  const { status, stderr } = spawnSync('nginx', ['-t', '-e', 'stderr', '-c', join(folder, 'nginx.conf')], {
    encoding: 'utf8',
    env: { PATH: `${process.env.PATH}:/usr/sbin` },
  });
  t.equal(status, 0, stderr);
});

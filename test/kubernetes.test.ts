// config/kubernetes: what it says is valid for Kubernetes, without a key that it does not know, and agrees with what the gateway does.
import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { parse, parseAllDocuments } from 'yaml';
import { loadConfig } from '../src/config.ts';
import { MAX_NOTICE_MS } from '../src/http/notice.ts';
import { runSluicegate } from './support/process.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const folder = join(root, 'config/kubernetes');
/** Not of Kubernetes itself: of kustomize, and of a chart. */
const OTHERS = ['kustomization.yaml', 'prometheus-adapter.yaml'];

// biome-ignore lint/suspicious/noExplicitAny: what stands in the files is judged by their schemas, and here only looked up
type Tree = any;

/** Itself, since its wrapper does not get on with tap's. */
const { default: tscOf } = await import(join(root, 'node_modules/typescript/lib/getExePath.js'));

const read = (file: string): string => readFileSync(join(folder, file), 'utf8');
const objects: { file: string; object: Tree }[] = readdirSync(folder)
  .filter((file) => !OTHERS.includes(file))
  .flatMap((file) => parseAllDocuments(read(file), { version: '1.1' }).map((document) => ({ file, object: document.toJS() })));

function find(kind: string, name = 'sluicegate'): Tree {
  const found = objects.find(({ object }) => object.kind === kind && object.metadata.name === name)?.object;
  if (found === undefined) throw new Error(`no ${kind} ${name}`);
  return found;
}

/** The module that knows a kind, by its group. */
function moduleOf({ apiVersion, kind }: Tree): string {
  const isOperators = apiVersion.startsWith('monitoring.coreos.com/');
  return `${isOperators ? '@kubernetes-models/prometheus-operator' : 'kubernetes-models'}/${apiVersion}/${kind}`;
}

const pod = find('Deployment').spec.template.spec;
const [container] = pod.containers;
const portOf = (name: string): number => container.ports.find((port: Tree) => port.name === name)?.containerPort;
const configText: string = find('ConfigMap').data['sluicegate.yaml'];

t.test('each object holds against the schema of its kind', async (t) => {
  t.ok(objects.length >= 9, `${objects.length} objects`);
  for (const { file, object } of objects) {
    const { [object.kind]: Model } = await import(moduleOf(object));
    t.doesNotThrow(() => new Model(object).validate(), `${file}: ${object.kind} ${object.metadata.name}`);
  }
  const { Deployment } = await import('kubernetes-models/apps/v1/Deployment');
  const broken = structuredClone(find('Deployment'));
  broken.spec.template.spec.containers[0].ports[0].containerPort = 'http';
  t.throws(() => new Deployment(broken).validate(), 'the schema would say so');
});

t.test('no object has a key that its kind does not know, nor a value that is none of its choices', async (t) => {
  const check = (entries: readonly Tree[]) => {
    const lines = entries.map((object, index) => [
      `import type { I${object.kind} as Kind${index} } from '${moduleOf(object)}';`,
      `export const object${index}: Kind${index} = ${JSON.stringify(object)};`,
    ]);
    const file = join(t.testdirName, 'objects.ts');
    mkdirSync(t.testdirName, { recursive: true });
    writeFileSync(file, lines.flat().join('\n'));
    const options = [
      '--noEmit',
      '--strict',
      '--skipLibCheck',
      '--module',
      'nodenext',
      '--target',
      'es2024',
      '--types',
      '',
      '--ignoreConfig',
    ];
    const { stdout, status } = spawnSync(tscOf(), [...options, file], { cwd: root, encoding: 'utf8' });
    if (status === null) throw new Error('the compiler did not run');
    return stdout.trim();
  };
  t.testdir({});
  t.equal(check(objects.map(({ object }) => object)), '');
  const misspelt = structuredClone(find('Deployment'));
  misspelt.spec.template.spec.terminationGracePeriod = 1;
  t.match(check([misspelt]), /terminationGracePeriod/, 'a key that is none is told');
});

t.test('everything is applied together, under one namespace', async (t) => {
  const { resources, namespace, images } = parse(read('kustomization.yaml'));
  t.strictSame([...resources].sort(), [...new Set(objects.map(({ file }) => file))].sort());
  t.equal(find('Namespace').metadata.name, namespace);
  t.equal(images[0].name, container.image);
  t.equal(images[0].newTag, JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).version);
  t.match(configText, `sluicegate.${namespace}.svc.cluster.local`);
});

t.test('ports, names and selectors meet', async (t) => {
  const labels = find('Deployment').spec.template.metadata.labels;
  const selects = (selector: Record<string, string>, of: Record<string, string> = labels) =>
    Object.entries(selector).every(([name, value]) => of[name] === value);
  t.ok(selects(find('Deployment').spec.selector.matchLabels));
  t.ok(selects(find('PodDisruptionBudget').spec.selector.matchLabels));
  t.ok(selects(find('NetworkPolicy').spec.podSelector.matchLabels));
  for (const name of ['sluicegate', 'sluicegate-ops']) {
    const { selector, ports } = find('Service', name).spec;
    t.ok(selects(selector));
    t.strictSame(
      ports.map((port: Tree) => port.targetPort),
      [name === 'sluicegate' ? 'http' : 'ops'],
      `${name} leads to one listener only`,
    );
  }
  const monitor = find('ServiceMonitor').spec;
  t.ok(selects(monitor.selector.matchLabels, find('Service', 'sluicegate-ops').metadata.labels));
  t.notOk(selects(monitor.selector.matchLabels, find('Service').metadata.labels), 'only the pods themselves are asked, and once');
  t.equal(monitor.endpoints[0].port, find('Service', 'sluicegate-ops').spec.ports[0].name);
  const open = find('NetworkPolicy').spec.ingress.filter((rule: Tree) => rule.from === undefined);
  t.strictSame(
    open.flatMap((rule: Tree) => rule.ports.map((port: Tree) => port.port)),
    ['http'],
    'only clients may come from anywhere',
  );
  t.match(find('HorizontalPodAutoscaler').spec.scaleTargetRef, { kind: 'Deployment', name: find('Deployment').metadata.name });
});

t.test('the configuration is valid, and a pod of it listens, answers its probes and gives Prometheus its metrics', async (t) => {
  const keys = pod.volumes.find(({ name }: Tree) => name === 'keys').secret.items.map(({ path }: Tree) => path);
  const mounted = container.volumeMounts.find(({ name }: Tree) => name === 'keys').mountPath;
  const dir = t.testdir({ config: {}, keys: Object.fromEntries(keys.map((path: string) => [path, 'sk-from-the-secret\n'])) });
  const file = join(dir, 'config/sluicegate.yaml');
  writeFileSync(file, configText.replaceAll(mounted, join(dir, 'keys')));
  t.match(container.args, ['serve', '--watch', '-c', /\/config\/sluicegate\.yaml$/]);
  const env = Object.fromEntries(container.env.map(({ name }: Tree) => [name, `sk-${name.toLowerCase()}`]));

  const check = runSluicegate(t, ['check', '-c', file], env);
  t.equal(await check.exited(), 0, check.stderr);
  t.equal(check.stderr, '', 'and without a warning');
  const loaded = loadConfig({ file, text: readFileSync(file, 'utf8') }, env);
  if (!loaded.ok) throw new Error('not valid');
  const { server, ops } = loaded.config;
  t.strictSame([server.listen.port, ops.listen.port], [portOf('http'), portOf('ops')]);
  t.strictSame([server.listen.host, ops.listen.host], ['0.0.0.0', '0.0.0.0']);
  const seconds = container.lifecycle.preStop.sleep.seconds + (MAX_NOTICE_MS + server.drainMs) / 1000;
  t.ok(pod.terminationGracePeriodSeconds >= seconds + 5, `${pod.terminationGracePeriodSeconds} s for ${seconds} s and the overtime`);

  const listen = { SLUICEGATE_LISTEN: '127.0.0.1:0', SLUICEGATE_OPS_LISTEN: '127.0.0.1:0' };
  const running = runSluicegate(t, [...container.args.slice(0, 3), file], { ...env, ...listen });
  const urls: Record<string, string> = {
    http: (await running.said(/API +(http:\S+)\/v1/))[1] ?? '',
    ops: (await running.said(/Metrics +(http:\S+)\/metrics/))[1] ?? '',
  };
  for (const probe of ['startupProbe', 'readinessProbe', 'livenessProbe']) {
    const { path, port } = container[probe].httpGet;
    t.equal((await fetch(`${urls[port]}${path}`)).status, 200, `${probe} ${port} ${path}`);
  }
  const [{ path, authorization }] = find('ServiceMonitor').spec.endpoints;
  const { name, key } = authorization.credentials;
  const token = container.env.find(({ valueFrom: { secretKeyRef: of } }: Tree) => of.name === name && of.key === key).name;
  t.equal((await fetch(`${urls.ops}${path}`)).status, 401, 'a token is asked for');
  const scraped = await fetch(`${urls.ops}${path}`, { headers: { authorization: `Bearer ${env[token]}` } });
  t.match(await scraped.text(), /^sluicegate_build_info/m);
  running.child.kill('SIGTERM');
  // As the kubelet does, which is what the gateway waits for.
  await running.said(/"draining"/);
  for (let asked = 0; asked < 3; asked++) t.equal((await fetch(`${urls.http}/readyz`)).status, 503);
  t.equal(await running.exited(), 0);
});

const hasPromtool = spawnSync('promtool', ['--version']).status === 0;
t.test(
  'the autoscaler is told of each pod, also while nothing streams',
  { skip: !hasPromtool && 'promtool is not installed' },
  async (t) => {
    const [rule] = parse(read('prometheus-adapter.yaml')).rules.custom;
    t.equal(rule.name.as, find('HorizontalPodAutoscaler').spec.metrics[0].pods.metric.name);
    const query = rule.metricsQuery.replaceAll('<<.LabelMatchers>>', 'namespace="sluicegate",pod=~"a|b"').replaceAll('<<.GroupBy>>', 'pod');
    const of = (pod: string) => `namespace="sluicegate",pod="${pod}"`;
    const test = {
      tests: [
        {
          input_series: [
            ...['a', 'b', 'c'].map((pod) => ({ series: `sluicegate_build_info{${of(pod)}}`, values: '1 1' })),
            { series: `sluicegate_streams_active{${of('a')},client="x"}`, values: '3 3' },
            { series: `sluicegate_streams_active{${of('a')},client="y"}`, values: '4 4' },
          ],
          promql_expr_test: [
            {
              expr: query,
              eval_time: '1m',
              exp_samples: [
                { labels: '{pod="a"}', value: 7 },
                { labels: '{pod="b"}', value: 0 },
              ],
            },
          ],
        },
      ],
    };
    const file = join(t.testdir({ 'test.yaml': JSON.stringify(test) }), 'test.yaml');
    const { status, stdout, stderr } = spawnSync('promtool', ['test', 'rules', file], { encoding: 'utf8' });
    t.equal(status, 0, stdout + stderr);
  },
);

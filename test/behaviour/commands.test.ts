// Promise: the commands do what --help says, as processes of their own: start, answer, drain, and exit with the right code.
import { createHash } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import t from 'tap';
import { runSluicegate } from '../support/process.ts';
import { type ScriptedUpstream, startUpstream } from '../support/upstream.ts';
import { connect } from '../support/wire.ts';

const anyPorts = { SLUICEGATE_LISTEN: '127.0.0.1:0', SLUICEGATE_OPS_LISTEN: '127.0.0.1:0' };

/** A stream of which so much has come down. */
async function beginStream(port: number, upstream: ScriptedUpstream, text: string) {
  const client = await connect(port);
  client.request({ method: 'POST', target: '/v1/chat/completions', body: '{"stream":true}' });
  const request = await upstream.request();
  request.startSse();
  request.event({ choices: [{ index: 0, delta: { content: text } }] });
  await client.until(text);
  return { client, request };
}

t.test('without key or setting: the demo answers the curl line that was printed, and SIGTERM ends it with 0', async (t) => {
  const running = runSluicegate(t, [], anyPorts, t.testdir());
  const [, url, body] = await running.said(/curl -N (\S+) -H 'content-type: application\/json' -d '(.*)'/);
  t.match(running.stderr, /built-in demo/);
  t.notMatch(running.stderr, /unrecognized flag/, 'Node knows what it is told about its heap');
  const answer = await fetch(url!, { method: 'POST', headers: { 'content-type': 'application/json' }, body: body! });
  t.equal(answer.status, 200);
  t.match(await answer.text(), /^data: .*"content":[\s\S]*data: \[DONE\]\n\n$/);
  await running.said(/"outcome":"completed"/);
  const [metricsUrl] = await running.said(/http:\S+\/metrics/);
  t.match(await (await fetch(metricsUrl!)).text(), /sluicegate_requests_total\{[^}]*outcome="completed"\} 1/);
  running.child.kill('SIGTERM');
  t.equal(await running.exited(), 0);
  for (const line of running.stdout.trim().split('\n')) t.ok(JSON.parse(line), 'nothing but JSON lines on standard output');
});

t.test('F1 SIGTERM lets a live stream finish, is not ready meanwhile, and takes no new connection', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const running = runSluicegate(t, [], { ...anyPorts, SLUICEGATE_UPSTREAM: upstream.url }, t.testdir());
  const port = Number((await running.said(/API +http:\/\/127\.0\.0\.1:(\d+)\/v1/))[1]);
  const opsUrl = (await running.said(/Metrics +(http:\S+)\/metrics/))[1];
  const { client, request } = await beginStream(port, upstream, 'before');
  t.equal((await fetch(`${opsUrl}/readyz`)).status, 200);
  running.child.kill('SIGTERM');
  await running.said(/"draining"/);
  const notReady = await fetch(`${opsUrl}/readyz`);
  t.equal(notReady.status, 503);
  t.match(await notReady.text(), 'draining');
  t.equal((await fetch(`${opsUrl}/healthz`)).status, 200);
  t.match(await (await fetch(`${opsUrl}/api/streams`)).json(), { state: 'draining', streamCount: 1, url: `http://127.0.0.1:${port}` });
  await t.rejects(connect(port), 'the listener is closed');
  request.event({ choices: [{ index: 0, delta: { content: 'after' } }] });
  await client.until('after');
  request.chunk('data: [DONE]\n\n');
  request.endChunks();
  await client.body();
  t.equal(await running.exited(), 0);
  t.match(running.stdout, /"outcome":"completed"/);
});

t.test('F2 a stream longer than drain is cut, and said to be', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const folder = t.testdir({
    'g.yaml': `server: { drain: 50ms, listen: "127.0.0.1:0" }\nops: { listen: "127.0.0.1:0" }\nupstreams: { u: { baseUrl: "${upstream.url}", auth: none } }\n`,
  });
  const running = runSluicegate(t, ['serve', '-c', 'g.yaml'], {}, folder);
  const port = Number((await running.said(/API +http:\/\/127\.0\.0\.1:(\d+)\/v1/))[1]);
  const { client } = await beginStream(port, upstream, 'before');
  running.child.kill('SIGINT');
  t.match(await client.until('}}\n\n'), /"code":"draining"/);
  t.match(await client.closed, { isComplete: false });
  t.equal(await running.exited(), 0);
  t.match(running.stdout, /"outcome":"drained"/);
});

t.test('F6 SIGHUP takes a valid file whole and refuses an invalid one whole; live streams keep what they began with', async (t) => {
  const [before, after] = [await startUpstream(), await startUpstream()];
  t.teardown(() => Promise.all([before.close(), after.close()]));
  const fileFor = (url: string, extra = '') =>
    `server: { listen: "127.0.0.1:0" }\nops: { listen: "127.0.0.1:0" }\nupstreams: { u: { baseUrl: "${url}", auth: none } }\n${extra}`;
  const folder = t.testdir({ 'g.yaml': fileFor(before.url) });
  const file = join(folder, 'g.yaml');
  const running = runSluicegate(t, ['-c', 'g.yaml'], {}, folder);
  const port = Number((await running.said(/API +http:\/\/127\.0\.0\.1:(\d+)\/v1/))[1]);
  const opsUrl = (await running.said(/Metrics +(http:\S+)\/metrics/))[1];
  const isSuccessful = async () =>
    /^sluicegate_config_last_reload_successful (\d)$/m.exec(await (await fetch(`${opsUrl}/metrics`)).text())?.[1];
  const { client: live, request } = await beginStream(port, before, 'one');

  writeFileSync(file, fileFor(after.url, 'nonsense: 1\n'));
  running.child.kill('SIGHUP');
  await running.said(/the old one stays/);
  t.match(running.stderr, /^g\.yaml:4:1: .*nonsense/m);
  t.equal(await isSuccessful(), '0');
  const old = await connect(port);
  old.request({ method: 'GET', target: '/v1/models' });
  (await before.request()).respond(200, {}, 'old');
  t.equal((await old.body()).toString(), 'old');

  writeFileSync(file, fileFor(after.url));
  running.child.kill('SIGHUP');
  await running.said(/configuration reloaded/);
  t.equal(await isSuccessful(), '1');
  const fresh = await connect(port);
  fresh.request({ method: 'GET', target: '/v1/models' });
  (await after.request()).respond(200, {}, 'new');
  t.equal((await fresh.body()).toString(), 'new');
  request.event({ choices: [{ index: 0, delta: { content: 'two' } }] });
  await live.until('two');
  request.chunk('data: [DONE]\n\n');
  request.endChunks();
  await live.body();
  t.equal((await request.connection.closed).how, 'fin', 'the old upstream’s connection is closed once its last stream is over');
  running.child.kill('SIGTERM');
  t.equal(await running.exited(), 0);
});

t.test('F3 a second SIGTERM ends it at once, and not with 0', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const running = runSluicegate(t, [], { ...anyPorts, SLUICEGATE_UPSTREAM: upstream.url }, t.testdir());
  const client = await connect(Number((await running.said(/API +http:\/\/127\.0\.0\.1:(\d+)\/v1/))[1]));
  client.request({ method: 'POST', target: '/v1/chat/completions', body: '{}' });
  await upstream.request();
  running.child.kill('SIGTERM');
  await running.said(/"draining"/);
  running.child.kill('SIGTERM');
  t.not(await running.exited(), 0);
});

t.test('F12 check tells every problem with its place, and what is in effect', async (t) => {
  const folder = t.testdir({
    'bad.yaml':
      'server:\n  lisen: 1\nupstreams:\n  a: { baseUrl: ftp://x, auth: none }\nmodels: [{ match: "*", upstreams: [a], hedge: 1s }]\n',
  });
  const bad = runSluicegate(t, ['check', '-c', 'bad.yaml'], {}, folder);
  t.equal(await bad.exited(), 1);
  t.match(bad.stderr, /^bad\.yaml:2:3: .*listen/m);
  t.match(bad.stderr, /^bad\.yaml:4:\d+: /m);
  t.match(bad.stderr, /needs a second upstream to ask/);
  t.equal(bad.stdout, '');

  const good = runSluicegate(t, ['check'], { OPENAI_API_KEY: 'sk-canary-in-environment' }, folder);
  t.equal(await good.exited(), 0);
  t.match(good.stdout, /https:\/\/api\.openai\.com\/v1/);
  t.notMatch(good.stdout + good.stderr, 'canary');

  const missing = runSluicegate(t, ['check', '-c', 'nowhere.yaml'], {}, folder);
  t.equal(await missing.exited(), 1);
  t.match(missing.stderr, /^nowhere\.yaml:1:1: cannot be read \(ENOENT\)/);
  const refused = runSluicegate(t, ['-c', 'bad.yaml'], {}, folder);
  t.equal(await refused.exited(), 1, 'serve refuses what check refuses');
});

t.test('key makes a key that works with the lines it prints', async (t) => {
  const made = runSluicegate(t, ['key', 'web-app']);
  t.equal(await made.exited(), 0);
  const key = /sk-sluicegate-\S+/.exec(made.stdout)?.[0] ?? '';
  const hash = /keySha256: (\S+)/.exec(made.stdout)?.[1];
  t.equal(hash, createHash('sha256').update(key).digest('hex'));
  const folder = t.testdir();
  const lines = made.stdout.slice(made.stdout.indexOf('clients:'));
  writeFileSync(join(folder, 'g.yaml'), `${lines}upstreams: { u: { baseUrl: "http://127.0.0.1:1/v1", auth: none } }\n`);
  t.equal(await runSluicegate(t, ['check', '-c', 'g.yaml'], {}, folder).exited(), 0);
  t.equal(await runSluicegate(t, ['key', 'no good name']).exited(), 1);
});

t.test('demo alone; help; version; what is not there', async (t) => {
  const demo = runSluicegate(t, ['demo', '--listen', '127.0.0.1:0']);
  const url = (await demo.said(/listens at (\S+)/))[1];
  t.match(await (await fetch(`${url}/models`)).json(), { object: 'list' });
  demo.child.kill('SIGTERM');
  t.equal(await demo.exited(), 0);
  for (const [args, code, pattern] of [
    [['--help'], 0, /Usage/],
    [['--version'], 0, /^\d+\.\d+\.\d+\n$/],
    [['help'], 0, /Usage[\s\S]*sluicegate doctor URL/],
    [['help', 'doctor'], 0, /^sluicegate doctor URL.*\n\n[\s\S]*Exit codes/],
    [['check', '--help'], 0, /^sluicegate check/],
    [['help', 'nothing'], 1, /no command "nothing"\n/],
    [['serv'], 1, /no command "serv"; did you mean "serve"\?/],
    [['check', '--watch'], 1, /check does not take --watch\nsluicegate check --help/],
    [['check', '--cofig', 'x'], 1, /unknown option '--cofig'/],
    [['--nonsense'], 1, /--nonsense/],
    [['check', 'x'], 1, /unexpected argument "x"/],
    [['demo', '--listen', 'nowhere'], 1, /HOST:PORT/],
  ] as const) {
    const running = runSluicegate(t, [...args]);
    t.equal(await running.exited(), code, args.join(' '));
    t.match(running.stdout + running.stderr, pattern);
  }
});

t.test('F12 a port in use is one clear line and exit code 2; no clients beyond loopback is refused', async (t) => {
  const taken = createServer().listen(0, '127.0.0.1');
  const { port } = await new Promise<{ port: number }>((resolve) =>
    taken.once('listening', () => resolve(taken.address() as { port: number })),
  );
  t.teardown(() => taken.close());
  const busy = runSluicegate(t, [], { ...anyPorts, SLUICEGATE_LISTEN: `127.0.0.1:${port}` }, t.testdir());
  t.equal(await busy.exited(), 2);
  t.match(busy.stderr, new RegExp(`could not listen at 127\\.0\\.0\\.1:${port}: something listens there already\n$`));
  const open = runSluicegate(t, [], { PORT: '0' }, t.testdir());
  t.equal(await open.exited(), 1);
  t.match(open.stderr, /allowAnonymous|SLUICEGATE_ALLOW_ANONYMOUS/);
});

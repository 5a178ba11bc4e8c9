// Promise: starting, draining, dying and starting again happen as an operator expects, and cost no stream that could be saved.
import { spawn } from 'node:child_process';
import dns from 'node:dns';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { setImmediate } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import t, { type Test } from 'tap';
import { loadConfig } from '../../src/config.ts';
import { chat } from '../../src/upstream/dialects/chat.ts';
import { startTestGateway, UPSTREAM_KEY } from '../support/gateway.ts';
import { parseMetrics } from '../support/metrics.ts';
import { command, type Running, runCommand, runSluicegate } from '../support/process.ts';
import { startUpstream, type UpstreamRequest } from '../support/upstream.ts';
import { connect, type WireClient } from '../support/wire.ts';

t.jobs = 3;

const delta = (content: string) => ({ choices: [{ index: 0, delta: { content }, finish_reason: null }] });
const streamed = { method: 'POST', target: '/v1/chat/completions', body: '{"model":"m","stream":true}' };
const anyPorts = { SLUICEGATE_LISTEN: '127.0.0.1:0', SLUICEGATE_OPS_LISTEN: '127.0.0.1:0' };

/** A scripted upstream that closes with the test. */
async function upstreamFor(t: Test) {
  const upstream = await startUpstream({ waitMs: 10_000 });
  t.teardown(() => upstream.close());
  return upstream;
}

interface Served extends Running {
  readonly port: number;
  readonly opsUrl: string;
}

/** Sluicegate as a process before `url`, with these settings, once it listens. */
async function serve(t: Test, url: string, server: string, env: Record<string, string> = {}): Promise<Served> {
  const upstream = `{ baseUrl: "${url}", apiKey: ${UPSTREAM_KEY} }`;
  const text = `server: { listen: "127.0.0.1:0", ${server} }\nops: { listen: "127.0.0.1:0" }\nupstreams: { main: ${upstream} }\n`;
  const running = runSluicegate(t, ['-c', 'g.yaml'], env, t.testdir({ 'g.yaml': text }));
  const port = Number((await running.said(/API +http:\/\/127\.0\.0\.1:(\d+)\/v1/))[1]);
  const opsUrl = (await running.said(/Metrics +(http:\S+)\/metrics/))[1] ?? '';
  return Object.assign(Object.create(running) as Running, { port, opsUrl });
}

/** A stream under way, its first event read by its client. */
async function openStream(upstream: { request(): Promise<UpstreamRequest> }, port: number) {
  const client = await connect(port, '127.0.0.1', 10_000);
  client.request(streamed);
  const request = await upstream.request();
  request.startSse();
  request.event(delta('before'));
  await client.until('before');
  return { client, request };
}

async function finish({ client, request }: { client: WireClient; request: UpstreamRequest }): Promise<Buffer> {
  request.event('[DONE]');
  request.endChunks();
  return await client.body();
}

/** An open connection that waits for its next request; it closes together with the listener. */
async function idleConnection(port: number): Promise<WireClient> {
  const idle = await connect(port, '127.0.0.1', 10_000);
  idle.request({ target: '/healthz' });
  await idle.body();
  return idle;
}

/**
 * Whether a new connection is refused, or closed unanswered: the kernel may still take one in the microseconds between the
 * close of idle connections and that of the listener.
 */
async function isRefused(port: number): Promise<boolean> {
  const client = await connect(port).catch(() => undefined);
  client?.request({ target: '/healthz' });
  await client?.closed;
  return client === undefined || client.raw().length === 0;
}

/** The log lines of requests that have ended. */
function requestLines({ stdout }: Running): Record<string, unknown>[] {
  const lines = stdout.split('\n').filter((line) => line.startsWith('{'));
  return lines.map((line) => JSON.parse(line) as Record<string, unknown>).filter(({ outcome }) => outcome !== undefined);
}

/** When the process logged this, as milliseconds of the wall clock. */
function timeOf({ stdout }: Running, message: string): number {
  const line = stdout.split('\n').find((text) => text.endsWith(`"msg":"${message}"}`));
  return Date.parse(String((JSON.parse(line ?? '{}') as Record<string, unknown>).time));
}

/** Loads a module before Sluicegate that runs `code` when the process gets SIGWINCH, which nothing else heeds. */
function preload(code: string): Record<string, string> {
  return { NODE_OPTIONS: `--import=data:text/javascript,${encodeURIComponent(`process.on('SIGWINCH', () => { ${code} });`)}` };
}

t.test('F1 SIGTERM under 100 live streams: not ready, no new connections, all 100 whole, exit 0', { buffered: true }, async (t) => {
  const upstream = await upstreamFor(t);
  const gateway = await serve(t, upstream.url, 'drain: 30s');
  const streams = [];
  for (let n = 0; n < 100; n += 1) streams.push(await openStream(upstream, gateway.port));
  const idle = await idleConnection(gateway.port);
  gateway.child.kill('SIGTERM');
  await idle.closed;
  t.equal((await fetch(`${gateway.opsUrl}/readyz`)).status, 503);
  t.ok(await isRefused(gateway.port), 'the listener is closed');
  const scraped = parseMetrics(await (await fetch(`${gateway.opsUrl}/metrics`)).text());
  t.equal(scraped.value('sluicegate_streams_active'), 100, 'metrics are still there, and so are the streams');
  for (const { request } of streams) request.event(delta('after'));
  for (const { client } of streams) await client.until('after');
  for (const stream of streams) t.match((await finish(stream)).toString(), /before[\s\S]*after[\s\S]*data: \[DONE\]\n\n$/);
  t.equal(await gateway.exited(), 0);
  const outcomes = requestLines(gateway).map(({ outcome }) => outcome);
  t.same(outcomes, Array(100).fill('completed'), 'one line each');
});

t.test('F2 a drain ends in time even with a client that reads nothing any more', { buffered: true }, async (t) => {
  const upstream = await upstreamFor(t);
  const gateway = await serve(t, upstream.url, 'drain: 100ms, clientStall: 60s');
  const [reading, torn, deaf] = [
    await openStream(upstream, gateway.port),
    await openStream(upstream, gateway.port),
    await openStream(upstream, gateway.port),
  ];
  torn.request.chunk('data: {"half');
  await torn.client.until('{"half');
  deaf.client.pause();
  const flood = `data: ${JSON.stringify(delta('x'.repeat(60_000)))}\n\n`;
  for (let n = 0; n < 200; n += 1) deaf.request.chunk(flood);
  gateway.child.kill('SIGTERM');
  const last = await reading.client.until('}}\n\n');
  t.match(last, /^\n*data: \{"error":.*"code":"draining"/m);
  t.match(await reading.client.closed, { isComplete: false });
  await torn.client.closed;
  t.match(torn.client.raw().toString(), /\{"half\r\n$/, 'nothing is put into half an event');
  t.equal(await gateway.exited(), 0);
  const tookMs = timeOf(gateway, 'closed') - timeOf(gateway, 'draining');
  t.ok(tookMs >= 100 && tookMs < 100 + 2000, `within two seconds of the limit: ${tookMs} ms`);
  const outcomes = requestLines(gateway).map(({ outcome }) => outcome);
  t.same(outcomes, ['drained', 'drained', 'drained']);
  await Promise.all([reading, torn, deaf].map(({ request }) => request.connection.closed));
});

t.test('F4 at SIGTERM idle connections are closed, silent ones soon, and live ones are told to close', { buffered: true }, async (t) => {
  const upstream = await upstreamFor(t);
  const gateway = await serve(t, upstream.url, 'drain: 30s');
  const idle = await connect(gateway.port);
  idle.request({ target: '/healthz' });
  t.equal((await idle.head()).headers.connection, 'keep-alive');
  // Connected in advance, as browsers and balancers do; not idle to Node, whose clocks stop with the listener.
  const silent = await connect(gateway.port);
  const waiting = await connect(gateway.port);
  waiting.request({ ...streamed, body: '{}' });
  const request = await upstream.request();
  gateway.child.kill('SIGTERM');
  t.match(await idle.closed, { how: 'fin', isComplete: true });
  request.respond(200, { 'content-type': 'application/json' }, '{}');
  const { status, headers } = await waiting.head();
  t.equal(status, 200);
  t.equal(headers.connection, 'close');
  t.match(await waiting.closed, { how: 'fin', isComplete: true });
  await silent.closed;
  t.equal(silent.raw().length, 0);
  t.equal(await gateway.exited(), 0);
  t.ok(timeOf(gateway, 'closed') - timeOf(gateway, 'draining') < 5000, 'nobody waits for the end of drain');
});

t.test('F7 killed in mid-stream: the cut shows on both sides, and the same command serves again at once', { buffered: true }, async (t) => {
  const upstream = await upstreamFor(t);
  const first = await serve(t, upstream.url, 'drain: 30s');
  const { client, request } = await openStream(upstream, first.port);
  first.child.kill('SIGKILL');
  t.equal(await first.exited(), 'SIGKILL');
  t.match(await client.closed, { isComplete: false });
  await request.connection.closed;
  const second = runSluicegate(t, [], {
    SLUICEGATE_LISTEN: `127.0.0.1:${first.port}`,
    SLUICEGATE_OPS_LISTEN: new URL(first.opsUrl).host,
    SLUICEGATE_UPSTREAM: upstream.url,
  });
  await second.said(/"listening"/);
  const stream = await openStream(upstream, first.port);
  t.match((await finish(stream)).toString(), '[DONE]');
  second.child.kill('SIGTERM');
  t.equal(await second.exited(), 0);
});

t.test('F9 a dialect that fails hurts the one stream that it fails in, at most', { buffered: true }, async (t) => {
  const upstream = await upstreamFor(t);
  const gateway = await startTestGateway(t, upstream.url, { upstream: { timeouts: { idle: '10s' } } });
  const healthy = await openStream(upstream, gateway.port);
  const { createReader } = chat;
  const breakReader = async (fault: (reader: ReturnType<typeof createReader>) => object) => {
    const captured = t.capture(chat as { createReader: typeof createReader }, 'createReader', () => {
      const reader = createReader();
      return Object.create(reader, Object.getOwnPropertyDescriptors(fault(reader))) as typeof reader;
    });
    const stream = await openStream(upstream, gateway.port);
    captured.restore();
    return stream;
  };
  const failing = (what: string) => (): never => {
    throw new Error(`${what} of ${UPSTREAM_KEY}`);
  };

  const unread = await breakReader(() => ({ read: failing('reading') }));
  unread.request.event(delta('é after the fault'));
  const body = (await finish(unread)).toString();
  t.match(body, /before[\s\S]*é after the fault[\s\S]*\[DONE\]\n\n$/, 'relayed to its last byte');
  t.match(await gateway.ended(), { outcome: 'completed', tokens: undefined });

  const uncounted = await breakReader(() => ({
    get lanes() {
      return failing('counting')();
    },
  }));
  t.match((await finish(uncounted)).toString(), '[DONE]');
  t.match(await gateway.ended(), { outcome: 'completed', tokens: undefined });

  const made = t.capture(chat as { createReader: typeof createReader }, 'createReader', failing('making'));
  const client = await connect(gateway.port);
  client.request(streamed);
  (await upstream.request()).startSse();
  t.ok((await client.head()).status >= 500, 'an answer that cannot even be begun is an error');
  made.restore();
  t.match(await gateway.ended(), { outcome: /^upstream_reset$|^rejected$/ });

  healthy.request.event(delta('untouched'));
  t.match((await finish(healthy)).toString(), /untouched[\s\S]*\[DONE\]/);
  t.match(await gateway.ended(), { outcome: 'completed' });
  t.equal((await gateway.metrics()).value('sluicegate_streams_active') ?? 0, 0);
  t.notMatch(gateway.output, UPSTREAM_KEY);
});

for (const [what, code] of [
  ['an exception that nobody catches', 'throw new TypeError("inside\\n" + process.env.CANARY)'],
  ['a rejection that nobody handles', 'Promise.reject(new TypeError("inside\\n" + process.env.CANARY))'],
] as const) {
  t.test(`F9 ${what}: a fatal line, a short drain, exit code 1`, { buffered: true }, async (t) => {
    const upstream = await upstreamFor(t);
    const env = { ...preload(code), CANARY: 'sk-canary-in-message' };
    const gateway = await serve(t, upstream.url, 'drain: 1h', env);
    const [ending, endless] = [await openStream(upstream, gateway.port), await openStream(upstream, gateway.port)];
    const idle = await idleConnection(gateway.port);
    gateway.child.kill('SIGWINCH');
    const [line] = await gateway.said(/^\{"level":60,.*$/m);
    const failedAt = performance.now();
    t.match(JSON.parse(line), { fault: 'TypeError', at: /^at .*data:/ });
    await idle.closed;
    t.ok(await isRefused(gateway.port), 'no new work for a process that is in doubt');
    t.match((await finish(ending)).toString(), '[DONE]', 'a stream that ends soon ends well');
    t.match(await endless.client.closed, { isComplete: false });
    t.equal(await gateway.exited(), 1);
    t.ok(performance.now() - failedAt < 8000, 'not after server.drain, which is an hour');
    t.match(requestLines(gateway), [{ outcome: 'completed' }]);
    t.notMatch(gateway.stdout + gateway.stderr, 'sk-canary');
  });
}

t.test('F11 the wall clock jumps by an hour, both ways: nothing times out, durations stay true', { buffered: true }, async (t) => {
  const upstream = await upstreamFor(t);
  const jump = `
    const real = Date.now; const offset = globalThis.jumps = ((globalThis.jumps ?? -7200e3) + 3600e3 * 3);
    Date.now = () => real() + offset; console.error('the clock is off by ' + (Date.now() - performance.timeOrigin - performance.now()));`;
  const gateway = await serve(t, upstream.url, 'drain: 30s, clientStall: 60s', preload(jump));
  const startedAt = performance.now();
  const stream = await openStream(upstream, gateway.port);
  const waiting = await connect(gateway.port);
  waiting.request({ ...streamed, body: '{}' });
  const unanswered = await upstream.request();
  const idle = await idleConnection(gateway.port);

  gateway.child.kill('SIGWINCH');
  await gateway.said(/the clock is off by 3[56]\d{5}\b/);
  // A request that comes and goes is proof that the loop has turned, and a beat later all deadlines were judged.
  for (let n = 0; n < 3; n += 1) t.equal((await fetch(`${gateway.opsUrl}/healthz`)).status, 200);
  stream.request.event(delta('after the jump'));
  await stream.client.until('after the jump');
  t.match((await finish(stream)).toString(), '[DONE]');
  unanswered.respond(200, { 'content-type': 'application/json' }, '{}');
  t.equal((await waiting.body()).toString(), '{}');
  idle.request({ target: '/healthz' });
  t.equal((await idle.body()).toString(), 'ok\n', 'an idle connection lives on');
  gateway.child.kill('SIGTERM');
  t.equal(await gateway.exited(), 0, 'and the drain does not take an hour');
  const lines = requestLines(gateway);
  t.equal(lines.length, 2);
  for (const { outcome, durationMs, ttfbMs } of lines) {
    t.equal(outcome, 'completed');
    t.ok(Number(durationMs) > 0 && Number(durationMs) < performance.now() - startedAt, `${durationMs} ms`);
    t.ok(Number(ttfbMs) > 0 && Number(ttfbMs) <= Number(durationMs), `${ttfbMs} ms`);
  }
});

t.test('F12 a key that is not set, and a port in use with a key at hand: one line, no key', { buffered: true }, async (t) => {
  const taken = createServer().listen(0, '127.0.0.1');
  await once(taken, 'listening');
  t.teardown(() => taken.close());
  const { port } = taken.address() as { port: number };
  const folder = t.testdir({
    'unset.yaml': `upstreams: { u: { baseUrl: "https://api.example/v1", apiKey: "\${NO_SUCH_KEY}" } }\n`,
    'broken.yaml': `upstreams: { u: { baseUrl: "https://api.example/v1", apiKey: sk-canary-in-file\n`,
  });
  const unset = runSluicegate(t, ['-c', 'unset.yaml'], anyPorts, folder);
  t.equal(await unset.exited(), 1);
  t.match(unset.stderr, /^unset\.yaml:1:\d+: .*NO_SUCH_KEY.*\n$/);
  const broken = runSluicegate(t, ['-c', 'broken.yaml'], anyPorts, folder);
  t.equal(await broken.exited(), 1);
  t.match(broken.stderr, /^broken\.yaml:\d+:\d+: .+\n$/);
  const env = { OPENAI_API_KEY: 'sk-canary-in-environment', SLUICEGATE_KEY: 'sk-canary-of-client' };
  for (const busy of ['SLUICEGATE_LISTEN', 'SLUICEGATE_OPS_LISTEN']) {
    const running = runSluicegate(t, [], { ...anyPorts, ...env, [busy]: `127.0.0.1:${port}` }, folder);
    t.equal(await running.exited(), 2);
    t.match(running.stderr, new RegExp(`^sluicegate: could not listen at 127\\.0\\.0\\.1:${port}: .*\n$`), busy);
    t.notMatch(running.stdout + running.stderr, 'canary');
  }
  t.notMatch(broken.stdout + broken.stderr, 'canary');
});

const unshare = ['unshare', '--pid', '--fork', '--kill-child', '--mount-proc'];

/** Whether this user may make a process the first of its own PID namespace, as containers do. */
async function mayUnshare(): Promise<boolean> {
  const probe = spawn(unshare[0] ?? '', [...unshare.slice(1), 'true'], { stdio: 'ignore' });
  const ended: unknown[] = await Promise.race([once(probe, 'close'), once(probe, 'error')]);
  return ended[0] === 0;
}

t.test(
  'F13 as PID 1 it heeds SIGTERM, drains and exits 0',
  { buffered: true, skip: !(await mayUnshare()) && 'unshare --pid is not allowed here' },
  async (t) => {
    const upstream = await upstreamFor(t);
    const running = runCommand(t, [...unshare, ...command], { ...anyPorts, SLUICEGATE_UPSTREAM: upstream.url }, t.testdir());
    const port = Number((await running.said(/API +http:\/\/127\.0\.0\.1:(\d+)\/v1/))[1]);
    const stream = await openStream(upstream, port);
    const own = running.child.pid;
    const first = Number(readFileSync(`/proc/${own}/task/${own}/children`, 'utf8').trim());
    t.match(readFileSync(`/proc/${first}/status`, 'utf8'), /^NSpid:\t\d+\t1$/m, 'it is PID 1 to itself');
    process.kill(first, 'SIGTERM');
    await running.said(/"draining"/);
    t.match((await finish(stream)).toString(), '[DONE]');
    t.equal(await running.exited(), 0);
  },
);

/** `localhost` as machines have it: both addresses, in either order. */
function resolveLocalhost(t: Test, addresses: readonly string[]): void {
  const { lookup } = dns;
  const both = addresses.map((address) => ({ address, family: address.includes(':') ? 6 : 4 }));
  t.capture(dns, 'lookup', ((host: string, options: dns.LookupOptions, done: (error: null, found: unknown, family?: number) => void) => {
    if (host !== 'localhost') return lookup(host, options, done as never);
    process.nextTick(() => (options.all ? done(null, both) : done(null, both[0]?.address, both[0]?.family)));
  }) as never);
}

t.test('F17 IPv6, both families, and localhost either way round, towards clients and upstreams', async (t) => {
  for (const [listen, hosts] of [
    ['[::1]:0', ['::1']],
    ['[::]:0', ['::1', '127.0.0.1']],
    ['localhost:0', ['127.0.0.1']],
  ] as const) {
    const upstream = await upstreamFor(t);
    if (listen === 'localhost:0') resolveLocalhost(t, ['127.0.0.1', '::1']);
    const gateway = await startTestGateway(t, upstream.url, { server: { listen, allowAnonymous: true }, ops: { listen: '[::1]:0' } });
    for (const host of hosts) {
      const client = await connect(gateway.port, host);
      client.request({ target: '/v1/models' });
      (await upstream.request()).respond(200, {}, 'here');
      t.equal((await client.body()).toString(), 'here', `${listen} by ${host}`);
      t.match(await gateway.ended(), { outcome: 'completed', remoteAddress: new RegExp(`${host}$`) });
      client.destroy();
    }
    t.equal((await fetch(`${gateway.opsUrl}/readyz`)).status, 200, gateway.opsUrl);
  }

  for (const order of [
    ['::1', '127.0.0.1'],
    ['127.0.0.1', '::1'],
  ]) {
    resolveLocalhost(t, order);
    for (const host of order) {
      const server = createServer((socket) => socket.once('data', () => socket.end('HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nhere')));
      server.listen(0, host);
      await once(server, 'listening');
      const { port } = server.address() as { port: number };
      const gateway = await startTestGateway(t, `http://localhost:${port}/v1`);
      const answer = await fetch(`${gateway.baseUrl}/models`);
      t.equal(await answer.text(), 'here', `localhost as ${order}, the upstream at ${host}`);
      t.match(await gateway.ended(), { outcome: 'completed' });
      await gateway.close();
      await new Promise((resolve) => server.close(resolve));
    }
  }
});

t.test('what a reload replaced is let go of, though nobody scrapes', async (t) => {
  const upstream = await upstreamFor(t);
  const gateway = await startTestGateway(t, upstream.url);
  const replaced: WeakRef<object>[] = [];
  for (let n = 0; n < 5; n++) {
    const text = `upstreams: { name${n}: { baseUrl: "${upstream.url}", apiKey: ${UPSTREAM_KEY} } }`;
    const loaded = loadConfig({ file: 'test.yaml', text }, {});
    if (!loaded.ok) throw new Error('the configuration was not taken');
    // A client of an upstream holds its settings.
    if (n < 4) replaced.push(new WeakRef(loaded.config), new WeakRef(loaded.config.upstreams[0]!));
    gateway.reload(loaded.config);
    const client = await connect(gateway.port);
    client.request({ method: 'POST', target: '/v1/embeddings', body: '{}' });
    (await upstream.request()).respond(200, {}, '{}');
    await client.body();
    client.destroy();
    await gateway.ended();
  }
  setFlagsFromString('--expose-gc');
  const collect: () => void = runInNewContext('gc');
  const left = () => replaced.filter((ref) => ref.deref() !== undefined).length;
  // The last request's parser is let go of once its socket is.
  for (let n = 0; n < 20 && left() > 0; n++) {
    await setImmediate();
    collect();
  }
  t.equal(left(), 0);
});

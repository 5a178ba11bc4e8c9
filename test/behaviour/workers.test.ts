// Promise: several workers are one gateway to everybody outside: one port, one count of limits, one /metrics, one life; and a dead worker is replaced.
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type ServerResponse } from 'node:http';
import { type AddressInfo, createServer as createTcpServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delayFor } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { stringify } from 'yaml';
import type { View } from '../../src/telemetry/view.ts';
import { type Metrics, parseMetrics } from '../support/metrics.ts';
import { type Running, runSluicegate } from '../support/process.ts';
import { startUpstream, type UpstreamRequest } from '../support/upstream.ts';
import { createWaiting } from '../support/waiting.ts';
import { connect, type WireClient } from '../support/wire.ts';

t.jobs = 2;

const WAIT_MS = 15_000;
const delta = (content: string) => ({ choices: [{ index: 0, delta: { content }, finish_reason: null }] });

interface Workers extends Running {
  readonly port: number;
  readonly opsUrl: string;
  readonly file: string;
  /** The process ids of the workers now. */
  pids(): number[];
  metrics(): Promise<Metrics>;
}

/** A configuration in its file's form, with so many workers on free ports. */
function settingsOf(url: string, server: object = {}, rest: object = {}): string {
  return stringify({
    server: { listen: '127.0.0.1:0', workers: 2, drain: '30s', ...server },
    ops: { listen: '127.0.0.1:0' },
    upstreams: { main: { baseUrl: url, auth: 'none', usage: 'asSent' } },
    ...rest,
  });
}

async function serve(t: Test, text: string, env: Record<string, string> = {}): Promise<Workers> {
  const folder = t.testdir({ 'g.yaml': text });
  const running = runSluicegate(t, ['-c', 'g.yaml'], env, folder);
  const port = Number((await running.said(/API +http:\/\/127\.0\.0\.1:(\d+)\/v1/))[1]);
  const opsUrl = (await running.said(/Metrics +(http:\S+)\/metrics/))[1] ?? '';
  await running.said(/"listening"/);
  const workers = Object.assign(Object.create(running) as Running, {
    ...{ port, opsUrl, file: join(folder, 'g.yaml') },
    pids: () => childrenOf(running.child.pid ?? 0),
    metrics: async () => parseMetrics(await (await fetch(`${opsUrl}/metrics`)).text()),
  });
  t.equal(workers.pids().length, 2, 'two workers');
  return workers;
}

function childrenOf(pid: number): number[] {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim();
  return children === '' ? [] : children.split(' ').map(Number);
}

const isRunning = (pid: number) => existsSync(`/proc/${pid}/cmdline`) && readFileSync(`/proc/${pid}/cmdline`, 'utf8') !== '';

/** Where there is no event to wait for: processes that are none of ours, and what another process will have counted by then. */
async function until(what: string, isSo: () => boolean | Promise<boolean>): Promise<void> {
  for (const startedMs = performance.now(); !(await isSo()); await delayFor(20)) {
    if (performance.now() - startedMs > WAIT_MS) throw new Error(`waited ${WAIT_MS} ms for ${what}`);
  }
}

async function upstreamFor(t: Test) {
  const upstream = await startUpstream({ waitMs: WAIT_MS });
  t.teardown(() => upstream.close());
  return upstream;
}

interface Stream {
  readonly client: WireClient;
  readonly request: UpstreamRequest;
}

/** A stream under way on a connection of its own. */
async function openStream(upstream: { request(): Promise<UpstreamRequest> }, port: number): Promise<Stream> {
  const client = await connect(port, '127.0.0.1', WAIT_MS);
  client.request({ method: 'POST', target: '/v1/chat/completions', body: '{"model":"m","stream":true}' });
  const request = await upstream.request();
  request.startSse();
  request.event(delta('before'));
  await client.until('before');
  return { client, request };
}

/** With its usage, or its tokens would be counted first, by a worker that has yet to read the vocabulary. */
async function finish({ client, request }: Stream): Promise<string> {
  request.event({ choices: [], usage: { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2 } });
  request.event('[DONE]');
  request.endChunks();
  return (await client.body()).toString();
}

/** Which streams end with a worker that is killed, and has so many of them. */
async function lostWith(pid: number, count: number, streams: readonly Stream[]): Promise<{ lost: Stream[]; kept: Stream[] }> {
  const lost: Stream[] = [];
  for (const stream of streams) void stream.request.connection.closed.then(() => lost.push(stream));
  process.kill(pid, 'SIGKILL');
  await until('its streams to be lost', () => lost.length >= count);
  await delayFor(50);
  return { lost: [...lost], kept: streams.filter((stream) => !lost.includes(stream)) };
}

/** An upstream that answers at once, or holds its answers back; each call uses 100 tokens. */
async function startAnswering(t: Test) {
  const waiting = createWaiting(WAIT_MS);
  const held = new Set<ServerResponse>();
  const usage = JSON.stringify({ usage: { prompt_tokens: 60, completion_tokens: 40, total_tokens: 100 } });
  const upstream = { isHolding: false, url: '', seen: [] as (string | undefined)[] };
  const server = createServer((incoming, response) => {
    upstream.seen.push(String(incoming.headers['x-settings']));
    response.once('close', () => {
      held.delete(response);
      waiting.changed();
    });
    incoming.resume().once('end', () => {
      response.setHeader('content-type', 'application/json');
      if (upstream.isHolding) held.add(response);
      else response.end(usage);
      waiting.changed();
    });
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  upstream.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`;
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  return Object.assign(upstream, {
    holds: (count: number) =>
      waiting.wait({ awaited: `${count} held`, seen: () => String(held.size), attempt: () => held.size === count || undefined }),
    heldCount: () => held.size,
    release() {
      upstream.isHolding = false;
      for (const response of held) response.end(usage);
    },
  });
}

/** The status of one call on a connection of its own, which goes to the next worker; 0 where that one died. */
async function call(port: number, key: string): Promise<number> {
  const body = JSON.stringify({ model: 'm', max_tokens: 40, messages: 'x'.repeat(240 - 43) });
  const client = await connect(port, '127.0.0.1', WAIT_MS);
  const headers = { authorization: `Bearer ${key}`, 'content-type': 'application/json', connection: 'close' };
  client.request({ method: 'POST', target: '/v1/chat/completions', headers, body });
  try {
    const { status } = await client.head();
    await client.body();
    return status;
  } catch {
    return 0;
  } finally {
    client.destroy();
  }
}

const passed = (statuses: readonly number[]) => statuses.filter((status) => status === 200).length;

t.test('whichever worker is asked shows the streams of all, and ends any of them', { buffered: true }, async (t) => {
  const upstream = await upstreamFor(t);
  const gateway = await serve(t, settingsOf(upstream.url));
  t.match(await finish(await openStream(upstream, gateway.port)), '[DONE]');
  const streams: Stream[] = [];
  for (let n = 0; n < 4; n += 1) streams.push(await openStream(upstream, gateway.port));
  const look = async () => (await (await fetch(`${gateway.opsUrl}/api/streams`)).json()) as View;
  for (let n = 0; n < 3; n += 1) {
    const view = await look();
    t.match(view, {
      workers: 2,
      streamCount: 4,
      totals: { requests: 1, outcomes: { completed: 1 } },
      upstreams: [{ name: 'main', active: 4 }],
    });
    t.equal(new Set(view.streams.map(({ id }) => id)).size, 4, 'each has an id of its own');
  }
  for (const { id } of (await look()).streams) {
    const how = { method: 'DELETE', headers: { 'x-sluicegate-action': 'end' } };
    t.equal((await fetch(`${gateway.opsUrl}/api/streams/${id}`, how)).status, 202);
  }
  for (const { client } of streams) {
    await client.closed;
    t.match(client.raw().toString(), '"code":"ended_by_operator"');
  }
  await until('all to be told', async () => (await look()).totals.requests === 5);
  const view = await look();
  t.match(view, { streamCount: 0, totals: { outcomes: { completed: 1, rejected: 4 } } });
  t.equal(view.recent.length, 5);

  const [first = 0] = gateway.pids();
  process.kill(first, 'SIGKILL');
  // The connection that asks may be one of the dead worker's.
  const seen = async () => look().catch(() => undefined);
  await until('another worker to serve', async () => (await seen())?.workers === 2 && !gateway.pids().includes(first));
  t.match(await seen(), { totals: { requests: 5 } }, 'what a dead worker had counted stays');
});

t.test('one port, one scrape; a worker that is killed costs its own streams, and no count', { buffered: true }, async (t) => {
  const upstream = await upstreamFor(t);
  const gateway = await serve(t, settingsOf(upstream.url));
  t.equal(gateway.stderr.match(/Try it:/g)?.length, 1, 'one start-up text');
  for (let n = 0; n < 4; n += 1) t.match(await finish(await openStream(upstream, gateway.port)), '[DONE]');
  const streams: Stream[] = [];
  for (let n = 0; n < 4; n += 1) streams.push(await openStream(upstream, gateway.port));

  const before = await gateway.metrics();
  t.equal(before.value('sluicegate_requests_total', { outcome: 'completed' }), 4);
  t.equal(before.value('sluicegate_streams_active'), 4);
  t.equal(before.value('sluicegate_upstream_connections', { state: 'active' }), 4);
  t.equal(before.value('sluicegate_build_info'), 1, 'not one a worker');
  t.equal(before.value('sluicegate_limit_store_up'), 1);

  const [first = 0, second = 0] = gateway.pids();
  const { lost, kept } = await lostWith(first, 2, streams);
  t.same([lost.length, kept.length], [2, 2], 'each worker had every other connection');
  for (const { client } of lost) t.match(await client.closed, { isComplete: false });
  await gateway.said(/"another worker serves"/);
  t.match(gateway.stdout, new RegExp(`"level":50,[^\n]*"pid":${first},"end":"SIGKILL"`));
  const pids = gateway.pids();
  t.equal(pids.length, 2);
  t.ok(pids.includes(second) && !pids.includes(first), 'another in its place');

  const after = await gateway.metrics();
  t.equal(after.value('sluicegate_streams_active'), 2, 'the dead have no streams');
  for (const name of before.names) {
    const isCounted = /_total$/.test(name) || before.series(`${name}_count`).length > 0;
    const sample = /_total$/.test(name) ? name : `${name}_count`;
    for (const { labels, value } of isCounted ? before.series(sample) : []) {
      const now = after.value(sample, labels) ?? 0;
      t.ok(now >= value, `${sample} ${JSON.stringify(labels)}: ${value}, then ${now}`);
    }
  }
  for (const stream of kept) t.match(await finish(stream), /before[\s\S]*\[DONE\]/);
  for (let n = 0; n < 4; n += 1) t.match(await finish(await openStream(upstream, gateway.port)), '[DONE]');
  const whole = await gateway.metrics();
  t.equal(whole.value('sluicegate_requests_total', { outcome: 'completed' }), 4 + 2 + 4);
  const text = await fetch(`${gateway.opsUrl}/metrics`, { headers: { accept: 'application/openmetrics-text' } });
  t.match(await text.text(), /^sluicegate_requests_total\{/m);
  gateway.child.kill('SIGTERM');
  t.equal(await gateway.exited(), 0);
});

t.test('what a killed worker had counted is there without a scrape before', { buffered: true }, async (t) => {
  const upstream = await upstreamFor(t);
  const gateway = await serve(t, settingsOf(upstream.url));
  for (let n = 0; n < 4; n += 1) await finish(await openStream(upstream, gateway.port));
  // Counts are brought to safety each second.
  await delayFor(2_500);
  for (const pid of gateway.pids()) process.kill(pid, 'SIGKILL');
  await gateway.said(/"another worker serves"[\s\S]*"another worker serves"/);
  t.equal((await gateway.metrics()).value('sluicegate_requests_total', { outcome: 'completed' }), 4);
  t.match(await finish(await openStream(upstream, gateway.port)), '[DONE]', 'on the same port, though nobody had it for a while');
});

const keyOf = (name: string) => `key-${name}`;
const limited = (limits: Record<string, object>) =>
  Object.entries(limits).map(([name, own]) => {
    return { name, keySha256: createHash('sha256').update(keyOf(name)).digest('hex'), limits: own };
  });

t.test('limits are counted once for all workers', { buffered: true }, async (t) => {
  const upstream = await startAnswering(t);
  const clients = limited({
    requests: { requestsPerMinute: 10 },
    tokens: { tokensPerMinute: 1_000 },
    budget: { budget: { usd: 0.1, per: 'month' } },
    streams: { concurrentStreams: 5 },
  });
  // A cent a call.
  const models = [{ match: '*', upstreams: ['main'], price: { input: 100, output: 100 } }];
  const gateway = await serve(t, settingsOf(upstream.url, {}, { clients, models, limits: { store: 'memory' } }));

  const atOnce = await Promise.all(Array.from({ length: 40 }, () => call(gateway.port, keyOf('requests'))));
  t.equal(passed(atOnce), 10, 'requests, to the request');
  for (const name of ['tokens', 'budget']) {
    let calls = 0;
    while (calls < 20 && (await call(gateway.port, keyOf(name))) === 200) calls += 1;
    t.equal(calls, 10, `${name}, settled by whoever served`);
  }
  const scraped = await gateway.metrics();
  t.equal(scraped.value('sluicegate_limit_remaining', { client: 'requests' }), 0);
  t.equal(scraped.value('sluicegate_limit_configured', { client: 'requests' }), 10, 'not once a worker');

  upstream.isHolding = true;
  // One after the other to each worker, or the one that is quicker could have all.
  const streams: Promise<number>[] = [];
  for (const count of [1, 2]) {
    streams.push(call(gateway.port, keyOf('streams')));
    await upstream.holds(count);
  }
  for (let n = 0; n < 10; n += 1) streams.push(call(gateway.port, keyOf('streams')));
  await upstream.holds(5);
  const [first = 0] = gateway.pids();
  process.kill(first, 'SIGKILL');
  await until('its streams to end', () => upstream.heldCount() < 5);
  const killedAtMs = performance.now();
  const again: Promise<number>[] = [];
  await until('its slots to be free again', async () => {
    const one = call(gateway.port, keyOf('streams'));
    again.push(one);
    await Promise.race([one, delayFor(200)]);
    return upstream.heldCount() === 5;
  });
  t.ok(performance.now() - killedAtMs < 10_000, `${Math.round(performance.now() - killedAtMs)} ms`);
  t.equal(await call(gateway.port, keyOf('streams')), 429, 'and no more than those');
  upstream.release();
  await Promise.all([...streams, ...again]);
  const left = async () => (await gateway.metrics()).value('sluicegate_limit_remaining', { client: 'streams' });
  await until('all slots to be free', async () => (await left()) === 5);
});

t.test('SIGHUP changes all workers or none', { buffered: true }, async (t) => {
  const upstream = await startAnswering(t);
  const text = (version: string, server: object = {}) =>
    settingsOf(upstream.url, server, {
      upstreams: { main: { baseUrl: upstream.url, auth: 'none', headers: { 'x-settings': version } } },
      clients: limited({ all: { requestsPerMinute: 20 } }),
    });
  const gateway = await serve(t, text('old'));
  const seen = async () => {
    upstream.seen.length = 0;
    for (let n = 0; n < 4; n += 1) t.equal(await call(gateway.port, keyOf('all')), 200);
    return upstream.seen;
  };
  const isTaken = async () => (await gateway.metrics()).value('sluicegate_config_last_reload_successful');
  t.same(await seen(), ['old', 'old', 'old', 'old']);

  writeFileSync(gateway.file, text('new', { workers: 3 }));
  gateway.child.kill('SIGHUP');
  await gateway.said(/server\.workers changes only with a restart[\s\S]*configuration reloaded/);
  t.same(await seen(), ['new', 'new', 'new', 'new']);
  t.equal(gateway.stdout.match(/configuration reloaded/g)?.length, 1, 'told once');
  t.equal(gateway.pids().length, 2);

  writeFileSync(gateway.file, text('broken').replace('requestsPerMinute', 'requestsPerMonth'));
  gateway.child.kill('SIGHUP');
  await gateway.said(/the old one stays/);
  await until('the metric to say so', async () => (await isTaken()) === 0);
  for (const pid of gateway.pids()) process.kill(pid, 'SIGHUP');
  t.same(await seen(), ['new', 'new', 'new', 'new'], 'and a signal to the workers is for the primary to heed');

  const [first = 0] = gateway.pids();
  process.kill(first, 'SIGKILL');
  await gateway.said(/"another worker serves"/);
  t.same(await seen(), ['new', 'new', 'new', 'new'], 'a worker that comes later has the same');
  t.equal(await isTaken(), 0);
  const statuses = [];
  for (let n = 0; n < 6; n += 1) statuses.push(await call(gateway.port, keyOf('all')));
  t.equal(passed(statuses), 4, 'and none of it was a reason to forget what 16 calls had used');
});

t.test('SIGTERM: load balancers are told, all drain, live streams end well, exit 0', { buffered: true }, async (t) => {
  const upstream = await upstreamFor(t);
  const gateway = await serve(t, settingsOf(upstream.url));
  const streams: Stream[] = [];
  for (let n = 0; n < 4; n += 1) streams.push(await openStream(upstream, gateway.port));
  const ready = async () => (await fetch(`http://127.0.0.1:${gateway.port}/readyz`, { headers: { connection: 'close' } })).status;
  for (let n = 0; n < 3; n += 1) t.equal(await ready(), 200);
  gateway.child.kill('SIGTERM');
  for (const pid of gateway.pids()) process.kill(pid, 'SIGTERM');
  let told = 0;
  let strandedCount = 0;
  const keepAsking = async () => {
    for (let status = 200; status !== 0; ) {
      const startedAtMs = performance.now();
      status = await ready().catch(() => 0);
      if (status === 503) told += 1;
      // Who is taken by the port is answered or refused, and not left waiting for the live streams to end.
      if (performance.now() - startedAtMs > 5_000) strandedCount += 1;
    }
  };
  await Promise.all(Array.from({ length: 20 }, keepAsking));
  t.ok(told >= 3, `whoever asked heard it ${told} times, from either worker`);
  t.equal(strandedCount, 0);
  t.equal((await fetch(`${gateway.opsUrl}/readyz`)).status, 503);
  t.equal((await gateway.metrics()).value('sluicegate_streams_active'), 4, 'metrics are still there');
  for (const stream of streams) t.match(await finish(stream), /before[\s\S]*\[DONE\]\n\n$/);
  t.equal(await gateway.exited(), 0);
  const outcomes = gateway.stdout.match(/"outcome":"\w+"/g) ?? [];
  t.same(outcomes, Array(4).fill('"outcome":"completed"'), 'one line each');
  t.match(gateway.stdout, /"draining"[\s\S]*"closed"/);
});

t.test('lines of the log stay whole, though several processes write them to one pipe that is read late', { buffered: true }, async (t) => {
  const gateway = await serve(t, settingsOf('http://127.0.0.1:9/v1', {}, { clients: limited({ nobody: {} }) }));
  const { child } = gateway;
  child.stdout?.pause();
  const clients = await Promise.all(Array.from({ length: 8 }, () => connect(gateway.port, '127.0.0.1', WAIT_MS)));
  const target = `/v1/models?${'x'.repeat(50)}`;
  for (let n = 0; n < 400; n += 1) {
    for (const client of clients) client.request({ target, headers: { 'x-request-id': `n${n}`.padEnd(100, '-') } });
    await Promise.all(clients.map((client) => client.head()));
    await Promise.all(clients.map((client) => client.body()));
  }
  for (const client of clients) client.destroy();
  child.stdout?.resume();
  const lines = () => gateway.stdout.split('\n').slice(0, -1);
  await until('all lines', () => lines().length === 1 + 400 * 8);
  let torn = 0;
  for (const line of lines()) {
    try {
      JSON.parse(line);
    } catch {
      torn += 1;
    }
  }
  t.equal(torn, 0);
});

t.test('a second SIGTERM ends all at once, and so does the death of the primary', { buffered: true }, async (t) => {
  const upstream = await upstreamFor(t);
  for (const signals of [['SIGTERM', 'SIGTERM'], ['SIGKILL']] as const) {
    const gateway = await serve(t, settingsOf(upstream.url));
    const pids = gateway.pids();
    const stream = await openStream(upstream, gateway.port);
    gateway.child.kill(signals[0]);
    if (signals.length > 1) {
      await gateway.said(/"draining"/);
      gateway.child.kill(signals[1]);
    }
    t.match(await stream.client.closed, { isComplete: false });
    t.equal(await gateway.exited(), signals.length > 1 ? 1 : 'SIGKILL');
    await until('the workers to be gone', () => !pids.some(isRunning));
  }
});

t.test('a fault inside: another serves at once, what was live may end, and the fault is logged', { buffered: true }, async (t) => {
  const upstream = await upstreamFor(t);
  const code = `process.on('SIGWINCH', () => { throw new TypeError('inside') });`;
  const gateway = await serve(t, settingsOf(upstream.url), { NODE_OPTIONS: `--import=data:text/javascript,${encodeURIComponent(code)}` });
  const streams = [await openStream(upstream, gateway.port), await openStream(upstream, gateway.port)];
  const [first = 0] = gateway.pids();
  process.kill(first, 'SIGWINCH');
  await gateway.said(/^\{"level":60,.*"fault":"TypeError"/m);
  // What is live may end for some seconds, which on a slow machine another takes to start: it is begun before.
  await until('another to be started', () => gateway.pids().length === 3);
  t.ok(isRunning(first), 'before the other has ended');
  for (const stream of streams) t.match(await finish(stream), '[DONE]');
  await gateway.said(/"another worker serves"/);
  await until('the faulty one to be gone', () => !isRunning(first));
  await gateway.said(/"a worker died/);
  t.equal(gateway.pids().length, 2, 'and it is not replaced twice');
  t.equal((await gateway.metrics()).value('sluicegate_requests_total', { outcome: 'completed' }), 2, 'it said farewell');
});

t.test('workers that die again and again are started ever later, and serve once they can', { buffered: true }, async (t) => {
  const upstream = await upstreamFor(t);
  const flag = join(t.testdir({}), 'broken');
  const code = `import { existsSync } from 'node:fs'; if (process.argv[2] === 'worker' && existsSync(${JSON.stringify(flag)})) process.exit(7);`;
  const env = { NODE_OPTIONS: `--import=data:text/javascript,${encodeURIComponent(code)}` };
  const gateway = await serve(t, settingsOf(upstream.url), env);
  writeFileSync(flag, '');
  for (const pid of gateway.pids()) process.kill(pid, 'SIGKILL');
  await gateway.said(/"level":60,[^\n]*again and again/);
  const deaths = gateway.stdout.match(/"a worker died/g)?.length ?? 0;
  t.ok(deaths >= 5 && deaths <= 12, `${deaths} deaths of two workers`);
  rmSync(flag);
  await gateway.said(/"another worker serves"/);
  t.match(await finish(await openStream(upstream, gateway.port)), '[DONE]', 'on the same port');
  gateway.child.kill('SIGTERM');
  t.equal(await gateway.exited(), 0);
});

t.test('a drain does not wait for a worker that is still to serve', { buffered: true }, async (t) => {
  const upstream = await upstreamFor(t);
  const flag = join(t.testdir({}), 'slow');
  const code = `import { existsSync, writeSync } from 'node:fs'; if (process.argv[2] === 'worker' && existsSync(${JSON.stringify(flag)})) {
    writeSync(2, 'it hangs'); Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 30_000); }`;
  const env = { NODE_OPTIONS: `--import=data:text/javascript,${encodeURIComponent(code)}` };
  const gateway = await serve(t, settingsOf(upstream.url), env);
  writeFileSync(flag, '');
  process.kill(gateway.pids()[0]!, 'SIGKILL');
  await gateway.said(/it hangs/);
  const live = await openStream(upstream, gateway.port);
  gateway.child.kill('SIGTERM');
  await gateway.said(/"draining"/);
  t.match(await finish(live), '[DONE]', 'what is live ends by itself');
  t.equal(await gateway.exited(), 0);
});

t.test('a port in use, and workers that cannot start, are one clear line and exit code 2', { buffered: true }, async (t) => {
  const taken = createTcpServer().listen(0, '127.0.0.1');
  await once(taken, 'listening');
  t.teardown(() => taken.close());
  const { port } = taken.address() as AddressInfo;
  const folder = t.testdir({ 'g.yaml': settingsOf('http://127.0.0.1:9/v1') });
  for (const busy of ['SLUICEGATE_LISTEN', 'SLUICEGATE_OPS_LISTEN']) {
    const running = runSluicegate(t, ['-c', 'g.yaml'], { [busy]: `127.0.0.1:${port}` }, folder);
    t.equal(await running.exited(), 2);
    t.equal(running.stderr, `sluicegate: could not listen at 127.0.0.1:${port}: something listens there already\n`, busy);
    t.equal(running.stdout, '');
  }
  const code = `if (process.argv[2] === 'worker') process.exit(7);`;
  const env = { NODE_OPTIONS: `--import=data:text/javascript,${encodeURIComponent(code)}` };
  const dying = runSluicegate(t, ['-c', 'g.yaml'], env, folder);
  t.equal(await dying.exited(), 2);
  t.equal(dying.stderr, 'sluicegate: could not start: a worker ended (7) before it served\n');
  const asked = runSluicegate(t, ['worker'], {}, folder);
  t.equal(await asked.exited(), 1);
  t.match(asked.stderr, /there is no command "worker"/);
});

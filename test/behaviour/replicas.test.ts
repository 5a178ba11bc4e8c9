// Promise: three replicas at full load, as processes of their own on one Redis, let a client have what its limits allow, no more and no less.
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { Agent, createServer, request, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { stringify } from 'yaml';
import { type Running, runSluicegate } from '../support/process.ts';
import { isRedisMissing, startRedis } from '../support/redis.ts';
import { createWaiting } from '../support/waiting.ts';

/** What each call uses, and what it reserves before: its body is 240 bytes long, which is 60 tokens. */
const INPUT = 60;
const OUTPUT = 40;
const usage = JSON.stringify({ usage: { prompt_tokens: INPUT, completion_tokens: OUTPUT, total_tokens: INPUT + OUTPUT } });
const body = JSON.stringify({ model: 'm', max_tokens: OUTPUT, messages: 'x'.repeat(240 - 43) });
/** A dollar for ten thousand tokens: a cent a call. */
const models = [{ match: '*', upstreams: ['main'], price: { input: 100, output: 100 } }];
const CENT = 0.01;

const limits = {
  requests: { requestsPerMinute: 300 },
  tokens: { tokensPerMinute: 30_000 },
  streams: { concurrentStreams: 20 },
  budget: { budget: { usd: 3, per: 'month' } },
};
type Name = keyof typeof limits;

interface Replica extends Running {
  readonly port: number;
  readonly opsPort: number;
}

const agent = new Agent({ keepAlive: true, maxSockets: 64 });

/** Answers at once, or holds its answers back. */
async function startUpstream(t: Test) {
  const waiting = createWaiting(20_000);
  const held = new Set<ServerResponse>();
  const upstream = { isHolding: false, live: 0, mostLive: 0, port: 0 };
  const server = createServer((incoming, response) => {
    upstream.live += 1;
    upstream.mostLive = Math.max(upstream.mostLive, upstream.live);
    response.once('close', () => {
      upstream.live -= 1;
      held.delete(response);
      waiting.changed();
    });
    incoming.resume().once('end', () => {
      response.setHeader('content-type', 'application/json');
      if (!upstream.isHolding) response.end(usage);
      else held.add(response);
      waiting.changed();
    });
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  upstream.port = (server.address() as AddressInfo).port;
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  const until = (awaited: string, isSo: () => boolean) =>
    waiting.wait({ awaited, seen: () => `${upstream.live} live, ${held.size} held`, attempt: () => isSo() || undefined });
  return Object.assign(upstream, {
    holds: (count: number) => until(`${count} held`, () => held.size === count),
    release() {
      upstream.isHolding = false;
      for (const response of held) response.end(usage);
    },
  });
}

async function startReplica(t: Test, folder: string, n: number): Promise<Replica> {
  const running = runSluicegate(t, ['-c', join(folder, 'sluicegate.yaml')], {
    SLUICEGATE_LISTEN: '127.0.0.1:0',
    SLUICEGATE_OPS_LISTEN: '127.0.0.1:0',
  });
  const [, url = '', opsUrl = ''] = await running.said(/"url":"([^"]+)","opsUrl":"([^"]+)"/);
  t.ok(url, `replica ${n} listens`);
  return Object.assign(running, { port: Number(new URL(url).port), opsPort: Number(new URL(opsUrl).port) });
}

/** The status of one call; 0 where its replica died. */
function call({ port }: Replica, name: Name): Promise<number> {
  return new Promise((resolve) => {
    const headers = { authorization: `Bearer key-${name}`, 'content-type': 'application/json', 'content-length': body.length };
    const sent = request({ port, agent, host: '127.0.0.1', method: 'POST', path: '/v1/chat/completions', headers }, (answer) => {
      answer.resume().once('close', () => resolve(answer.statusCode ?? 0));
    });
    sent.once('error', () => resolve(0));
    sent.end(body);
  });
}

/** So many calls, some at one time, over all replicas in turn; how many got through. */
async function load(replicas: readonly Replica[], name: Name, calls: number, atOnce: number): Promise<number> {
  let left = calls;
  let passed = 0;
  const loop = async (n: number) => {
    for (let at = n; left > 0; at++) {
      left -= 1;
      if ((await call(replicas[at % replicas.length]!, name)) === 200) passed += 1;
    }
  };
  await Promise.all(Array.from({ length: atOnce }, (_, n) => loop(n)));
  return passed;
}

/** One call after the other until one is refused. */
async function fillUp(replicas: readonly Replica[], name: Name): Promise<number> {
  for (let passed = 0; passed < 1000; passed++) if ((await call(replicas[passed % replicas.length]!, name)) !== 200) return passed;
  return Number.POSITIVE_INFINITY;
}

/** Resolves once so many of the calls have been refused. */
function allRefused(calls: readonly Promise<number>[], count: number): Promise<void> {
  return new Promise((resolve) => {
    let refused = 0;
    for (const one of calls) {
      void one.then((status) => {
        if (status === 429) refused += 1;
        if (refused === count) resolve();
      });
    }
  });
}

async function metric({ opsPort }: Replica, name: string): Promise<number> {
  const text = await (await fetch(`http://127.0.0.1:${opsPort}/metrics`)).text();
  return [...text.matchAll(new RegExp(`^${name}\\S* (\\S+)$`, 'gm'))].reduce((sum, [, value]) => sum + Number(value), 0);
}

t.test('three replicas on one Redis', { skip: isRedisMissing }, async (t) => {
  t.equal(body.length, 240);
  const redis = await startRedis(t);
  const upstream = await startUpstream(t);
  const clients = Object.entries(limits).map(([name, own]) => {
    return { name, keySha256: createHash('sha256').update(`key-${name}`).digest('hex'), limits: own };
  });
  const folder = t.testdir({});
  const main = { baseUrl: `http://127.0.0.1:${upstream.port}/v1`, auth: 'none', usage: 'asSent' };
  const config = { upstreams: { main }, models, clients, limits: { store: redis.url, onStoreFailure: 'deny' }, log: { format: 'json' } };
  writeFileSync(join(folder, 'sluicegate.yaml'), stringify(config));
  const replicas = await Promise.all([1, 2, 3].map((n) => startReplica(t, folder, n)));

  await t.test('requests: to the request', async (t) => {
    t.equal(await load(replicas, 'requests', 900, 24), 300);
  });

  await t.test('tokens and money: never refused below, and beyond only by what was in flight', async (t) => {
    const atOnce = 24;
    const tokens = (await load(replicas, 'tokens', 600, atOnce)) + (await fillUp(replicas, 'tokens'));
    t.ok(tokens * 100 >= 30_000 && tokens * 100 < 30_000 + atOnce * 100, `${tokens * 100} tokens of 30,000`);
    const calls = (await load(replicas, 'budget', 600, atOnce)) + (await fillUp(replicas, 'budget'));
    const spent = calls * CENT;
    t.ok(calls >= 300 && calls < 300 + atOnce, `${spent.toFixed(2)} of 3 dollars`);
    const told = await Promise.all(replicas.map((replica) => metric(replica, 'sluicegate_cost_usd_total\\{client="budget"')));
    t.equal(told.reduce((sum, usd) => sum + usd, 0).toFixed(2), spent.toFixed(2), 'the metrics tell the same');
  });

  await t.test('streams: so many at one time; and those of a replica that is killed are free again within seconds', async (t) => {
    upstream.isHolding = true;
    upstream.mostLive = 0;
    const [first, ...others] = replicas as [Replica, ...Replica[]];
    // The one that dies holds some, or the others might take all.
    const calls = Array.from({ length: 8 }, () => call(first, 'streams'));
    await upstream.holds(8);
    for (let n = 0; n < 52; n++) calls.push(call(replicas[n % 3]!, 'streams'));
    await upstream.holds(20);
    // Or some of those that are being refused would die with it as well.
    await allRefused(calls, 40);
    const onFirst = await metric(first, 'sluicegate_streams_active\\{client="streams"');
    t.ok(onFirst > 0, `${onFirst} of 20 on the first replica`);
    const killedAtMs = performance.now();
    first.child.kill('SIGKILL');
    await upstream.holds(20 - onFirst);
    const again: Promise<number>[] = [];
    while (upstream.live < 20) {
      const one = call(others[again.length % 2]!, 'streams');
      again.push(one);
      // Refused at once, or held.
      await Promise.race([one, upstream.holds(upstream.live + 1).catch(() => undefined)]);
      if (performance.now() - killedAtMs > 15_000) break;
    }
    const freeAfterMs = performance.now() - killedAtMs;
    t.ok(freeAfterMs < 10_000, `free after ${(freeAfterMs / 1000).toFixed(1)} s`);
    t.equal(upstream.mostLive, 20, 'never one more');
    upstream.release();
    const statuses = await Promise.all([...calls, ...again]);
    t.equal(statuses.filter((status) => status === 200).length, 20, 'those that were live');
    t.equal(statuses.filter((status) => status === 0).length, onFirst, 'those that died with their replica');
    for (let left = 0; left < 20; ) left = await metric(others[0]!, 'sluicegate_limit_remaining\\{client="streams"');
  });

  agent.destroy();
});

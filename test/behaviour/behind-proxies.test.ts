// Promise: proxies in front that lose patience with silence, or restart what is behind them, cost no stream and no request.
import { execFile, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import OpenAI from 'openai';
import t, { type Test } from 'tap';
import { startDemo } from '../../src/demo/server.ts';
import { startTestGateway } from '../support/gateway.ts';
import { runSluicegate } from '../support/process.ts';
import { findFreePort, findProgram, nginxConfig, startServer } from '../support/servers.ts';
import { startUpstream } from '../support/upstream.ts';
import { createWaiting } from '../support/waiting.ts';
import { connect } from '../support/wire.ts';

t.jobs = 2;

const delta = (content: string) => ({ choices: [{ index: 0, delta: { content }, finish_reason: null }] });
const streamed = { method: 'POST', target: '/v1/chat/completions', body: '{"model":"m","stream":true}' };

const [nginx, haproxy] = [findProgram('nginx'), findProgram('haproxy')];

/** nginx with its read timeout at two seconds instead of sixty; resolves with its port once it listens. */
async function startImpatientNginx(t: Test, url: string): Promise<number> {
  const port = await findFreePort();
  const folder = t.testdir({});
  const server = `server { listen 127.0.0.1:${port}; location / { proxy_pass ${url}; proxy_http_version 1.1; proxy_read_timeout 2s; } }`;
  writeFileSync(join(folder, 'nginx.conf'), nginxConfig(folder, server));
  // The first lines that it says come once its sockets listen.
  await startServer(t, nginx ?? '', ['-e', 'stderr', '-p', folder, '-c', join(folder, 'nginx.conf')]).said('OS: ');
  return port;
}

t.test(
  'nginx gives a stream up after its read timeout, but not one with heartbeats',
  { skip: nginx === undefined && 'nginx is not installed' },
  async (t) => {
    t.jobs = 2;
    const run = async (t: Test, sse: object) => {
      const upstream = await startUpstream();
      t.teardown(() => upstream.close());
      const gateway = await startTestGateway(t, upstream.url, { sse });
      const client = await connect(await startImpatientNginx(t, gateway.url), '127.0.0.1', 8000);
      client.request(streamed);
      const request = await upstream.request();
      request.startSse();
      request.event(delta('before'));
      await client.until('before');
      return { gateway, client, request };
    };
    let withoutIsOver: () => void = () => {};
    const over = new Promise<void>((resolve) => {
      withoutIsOver = resolve;
    });
    await Promise.all([
      t.test('without: cut in the silence', { buffered: true }, async (t) => {
        const { gateway, client, request } = await run(t, { heartbeat: 'off' });
        t.match(await client.closed, { isComplete: false });
        await request.connection.closed;
        t.match(await gateway.ended(), { outcome: 'client_closed' });
        withoutIsOver();
      }),
      t.test('with: whole', { buffered: true }, async (t) => {
        const { gateway, client, request } = await run(t, { heartbeat: '500ms' });
        // As silent as long as the other was, and another second.
        await over;
        const beats = client.raw().toString().split(':\n\n').length - 1;
        t.ok(beats >= 3, `${beats} beats in two seconds`);
        for (let n = 0; n < beats + 2; n += 1) await client.until(':\n\n');
        request.event(delta('after'));
        request.event('[DONE]');
        request.endChunks();
        const body = (await client.body()).toString();
        t.equal(
          body.replaceAll(':\n\n', ''),
          `data: ${JSON.stringify(delta('before'))}\n\ndata: ${JSON.stringify(delta('after'))}\n\ndata: [DONE]\n\n`,
        );
        t.match(await gateway.ended(), { outcome: 'completed' });
      }),
    ]);
  },
);

/** The two ways in which a heart beats: with a blank line, and without, once the stream has carried an id. */
const forms = { 'with a blank line': { prefix: '', beat: ':\n\n' }, 'without, after an id': { prefix: 'id: 1\n', beat: ':\n' } };
const chunkOf = (content: string, finish: string | null = null) =>
  JSON.stringify({
    id: 'c',
    object: 'chat.completion.chunk',
    created: 1,
    model: 'm',
    choices: [{ index: 0, delta: { content }, finish_reason: finish }],
  });

for (const [name, { prefix, beat }] of Object.entries(forms)) {
  t.test(`the openai SDK reads through heartbeats ${name}`, { buffered: true }, async (t) => {
    const upstream = await startUpstream();
    t.teardown(() => upstream.close());
    const gateway = await startTestGateway(t, upstream.url, { sse: { heartbeat: '40ms' } });
    const waiting = createWaiting();
    let seen = '';
    /** What the SDK is given, seen also while it does not read. */
    const listening: typeof fetch = async (input, init) => {
      const answer = await fetch(input, init);
      const [theirs, ours] = answer.body?.tee() ?? [];
      void listen(ours);
      return new Response(theirs ?? null, answer);
    };
    async function listen(body: ReadableStream<Uint8Array> | undefined): Promise<void> {
      for await (const bytes of body ?? []) {
        seen += Buffer.from(bytes).toString('latin1');
        waiting.changed();
      }
    }
    const beats = (n: number) =>
      waiting.wait({ awaited: `${n} heartbeats`, seen: () => seen, attempt: () => seen.endsWith(beat.repeat(n)) || undefined });
    const openai = new OpenAI({ baseURL: gateway.baseUrl, apiKey: 'sk-of-the-app', maxRetries: 0, fetch: listening });
    const asking = openai.chat.completions.create({ model: 'm', messages: [], stream: true });
    const request = await upstream.request();
    request.startSse();
    if (prefix === '') await beats(1);
    const heard: string[] = [];
    request.chunk(`${prefix}data: ${chunkOf('one')}\n\n`);
    for await (const chunk of await asking) {
      heard.push(chunk.choices[0]?.delta.content ?? '');
      if (heard.length < 3) {
        await beats(2);
        request.chunk(`${prefix}data: ${chunkOf(`after ${heard.length}`)}\n\n`);
      } else {
        await beats(2);
        request.event('[DONE]');
        request.endChunks();
      }
    }
    t.same(heard, ['one', 'after 1', 'after 2']);
    t.match(await gateway.ended(), { outcome: 'completed' });
  });
}

const pythonApp = `
import sys, openai
app = openai.OpenAI(base_url=sys.argv[1], api_key="sk-of-the-app", max_retries=0)
for chunk in app.chat.completions.create(model="m", messages=[], stream=True):
    print(chunk.choices[0].delta.content, flush=True)
print("over", flush=True)
`;
const python = process.env.SLUICEGATE_PYTHON ?? 'python3';
const hasPython = spawnSync(python, ['-c', 'import openai']).status === 0;

t.test(
  'openai-python reads through heartbeats, in both forms',
  { buffered: true, skip: !hasPython && 'openai-python is not installed' },
  async (t) => {
    await Promise.all(
      Object.entries(forms).map(async ([name, { prefix, beat }]) => {
        const upstream = await startUpstream({ waitMs: 20_000 });
        t.teardown(() => upstream.close());
        const gateway = await startTestGateway(t, upstream.url, { sse: { heartbeat: '40ms' } });
        const running = promisify(execFile)(python, ['-c', pythonApp, gateway.baseUrl]);
        running.catch(() => upstream.close());
        const request = await upstream.request();
        request.startSse();
        // A client beside it, on whose stream the same beats are seen.
        const witness = await connect(gateway.port);
        witness.request(streamed);
        const witnessed = await upstream.request();
        witnessed.startSse();
        witnessed.chunk(`${prefix}data: ${chunkOf('beside')}\n\n`);
        await witness.until('}\n\n');
        for (const content of ['one', 'two', 'three']) {
          request.chunk(`${prefix}data: ${chunkOf(content)}\n\n`);
          await once(running.child.stdout ?? t, 'data');
          for (let n = 0; n < 4; n += 1) await witness.until(beat);
        }
        request.event('[DONE]');
        request.endChunks();
        t.equal((await running).stdout, 'one\ntwo\nthree\nover\n', name);
        t.match(await gateway.ended(), { outcome: 'completed' });
        witness.destroy();
        await witnessed.connection.closed;
      }),
    );
  },
);

/** What an operator would write: health checks on /readyz, and another replica where one cannot be reached any more. */
function haproxyConfig(front: number, replicas: readonly number[]): string {
  return `global
  log stdout format raw local0
defaults
  mode http
  log global
  option log-health-checks
  timeout connect 1s
  timeout client 30s
  timeout server 30s
  timeout check 2s
  option redispatch
  retries 3
  retry-on conn-failure
frontend clients
  bind 127.0.0.1:${front}
  default_backend replicas
backend replicas
  balance roundrobin
  option httpchk GET /readyz
  default-server check inter 200ms fall 1 rise 1
${replicas.map((port, n) => `  server r${n} 127.0.0.1:${port}`).join('\n')}
`;
}

t.test(
  'F5 behind HAProxy, replicas restart one by one at 200 requests a second, and none fails',
  { skip: haproxy === undefined && 'haproxy is not installed' },
  async (t) => {
    const demo = await startDemo({ host: '127.0.0.1', port: 0 }, { ttftMs: 5, tokensPerSecond: 200 });
    t.teardown(() => demo.close());
    const [front = 0, ...ports] = [await findFreePort(), await findFreePort(), await findFreePort()];
    const start = async (port: number) => {
      const addresses = { SLUICEGATE_LISTEN: `127.0.0.1:${port}`, SLUICEGATE_OPS_LISTEN: '127.0.0.1:0' };
      const running = runSluicegate(t, [], { ...addresses, SLUICEGATE_UPSTREAM: demo.url });
      await running.said(/"listening"/);
      return running;
    };
    const replicas = await Promise.all(ports.map(start));
    const folder = t.testdir({ 'haproxy.cfg': haproxyConfig(front, ports) });
    const proxy = startServer(t, haproxy ?? '', ['-db', '-f', join(folder, 'haproxy.cfg')]);
    await Promise.all(ports.map((_, n) => proxy.said(`Health check for server replicas/r${n} succeeded`)));

    const failures: string[] = [];
    const asked: Promise<void>[] = [];
    async function ask(n: number): Promise<void> {
      const isStream = n % 2 === 0;
      const body = JSON.stringify({
        model: 'demo',
        stream: isStream,
        messages: [{ role: 'user', content: 'Repeat after me: one two three' }],
      });
      try {
        const answer = await fetch(`http://127.0.0.1:${front}/v1/chat/completions`, { method: 'POST', body });
        const text = await answer.text();
        if (answer.status !== 200 || !text.includes(isStream ? 'data: [DONE]' : '"usage"'))
          failures.push(`${answer.status} ${text.slice(0, 200)}`);
      } catch (error) {
        failures.push(String((error as Error).cause ?? error));
      }
    }
    const load = setInterval(() => void asked.push(ask(asked.length)), 5);
    t.teardown(() => clearInterval(load));
    for (const [n, port] of ports.entries()) {
      const mark = proxy.mark();
      replicas[n]?.child.kill('SIGTERM');
      t.equal(await replicas[n]?.exited(), 0);
      await proxy.said(`Server replicas/r${n} is DOWN`, mark);
      replicas[n] = await start(port);
      await proxy.said(`Server replicas/r${n} is UP`, mark);
      await replicas[n].said(/"outcome":"completed"/);
    }
    clearInterval(load);
    await Promise.all(asked);
    t.ok(asked.length > 200, `${asked.length} requests`);
    t.same(failures, []);
    for (const replica of replicas) {
      replica.child.kill('SIGTERM');
      t.equal(await replica.exited(), 0);
    }
  },
);

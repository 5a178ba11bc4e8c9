// Promise: what Sluicegate leans on (names, certificates, kept connections, readers of its numbers and lines) may fail, and only that fails.
import dns from 'node:dns';
import { once } from 'node:events';
import { Agent, createServer as createHttpServer, request as httpRequest } from 'node:http';
import type { AddressInfo, Server } from 'node:net';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import t, { type Test } from 'tap';
import { loadConfig } from '../../src/config.ts';
import { startGateway } from '../../src/gateway.ts';
import { createLogger } from '../../src/telemetry/log.ts';
import { startTestGateway, type TestGateway, UPSTREAM_KEY } from '../support/gateway.ts';
import { runSluicegate } from '../support/process.ts';
import { type Certificate, createCertificate } from '../support/tls.ts';
import { startUpstream } from '../support/upstream.ts';
import { connect } from '../support/wire.ts';

const chat = { method: 'POST', target: '/v1/chat/completions', body: '{"model":"m"}' };

async function newUpstream(t: Test, options: object = {}) {
  const upstream = await startUpstream(options);
  t.teardown(() => upstream.close());
  return upstream;
}

async function listen(t: Test, server: Server, port: number, host: string): Promise<number> {
  server.listen(port, host);
  await once(server, 'listening');
  t.teardown(() => new Promise((resolve) => server.close(resolve)));
  return (server.address() as AddressInfo).port;
}

/** The status and the error code, if it is an error, of one call by a client of its own. */
async function call(port: number): Promise<{ status: number; code: string | undefined }> {
  const client = await connect(port);
  client.request(chat);
  const { status } = await client.head();
  const body = (await client.body()).toString();
  client.destroy();
  return { status, code: /"code":"(\w+)"/.exec(body)?.[1] };
}

/** Where names of this test lead: the machine's resolver with other answers. An address, or the code of a failure. */
function resolveNames(t: Test, answers: Map<string, string>): void {
  const { lookup } = dns;
  t.capture(dns, 'lookup', ((host: string, options: dns.LookupOptions, done: (error: Error | null, ...found: unknown[]) => void) => {
    const answer = answers.get(host);
    if (answer === undefined) return lookup(host, options, done as never);
    const family = answer.includes(':') ? 6 : 4;
    process.nextTick(() => {
      if (/^E[A-Z]/.test(answer)) done(Object.assign(new Error(`getaddrinfo ${answer} ${host}`), { code: answer }));
      else if (options.all) done(null, [{ address: answer, family }]);
      else done(null, answer, family);
    });
  }) as never);
}

t.test('G1 a name that fails and flaps is a 502 while it fails, and nothing need be done when it is back', async (t) => {
  const upstream = await newUpstream(t);
  const names = new Map([['upstream.internal', 'ENOTFOUND']]);
  resolveNames(t, names);
  const gateway = await startTestGateway(t, `http://upstream.internal:${upstream.port}/v1`);
  for (const answer of ['ENOTFOUND', 'EAI_AGAIN', '127.0.0.1', 'ENOTFOUND', '127.0.0.1']) {
    names.set('upstream.internal', answer);
    const called = call(gateway.port);
    if (answer === '127.0.0.1') {
      (await upstream.request()).respond(200, { connection: 'close' }, '{}');
      t.match(await called, { status: 200 });
      t.match(await gateway.ended(), { outcome: 'completed' });
    } else {
      t.match(await called, { status: 502, code: 'upstream_unreachable' });
      t.match(await gateway.ended(), { outcome: 'upstream_unreachable', cause: answer });
    }
  }
  t.notMatch(gateway.output, 'upstream.internal', 'the name of its machine stays inside');
  t.equal((await gateway.metrics()).value('sluicegate_upstream_connections', { state: 'active' }), 0);
});

t.test('G3 an upstream that moves: new connections go to its new address, live streams stay where they are', async (t) => {
  const before = await newUpstream(t);
  const after = createHttpServer((request, response) => request.resume().on('end', () => response.end('moved')));
  await listen(t, after, before.port, '::1');
  const names = new Map([['upstream.internal', '127.0.0.1']]);
  resolveNames(t, names);
  const gateway = await startTestGateway(t, `http://upstream.internal:${before.port}/v1`);
  const live = await connect(gateway.port);
  live.request(chat);
  const request = await before.request();
  request.startSse();
  request.event({ choices: [{ index: 0, delta: { content: 'one' } }] });
  await live.until('one');

  names.set('upstream.internal', '::1');
  const fresh = await connect(gateway.port);
  fresh.request(chat);
  t.equal((await fresh.body()).toString(), 'moved');
  request.event('[DONE]');
  request.endChunks();
  t.match((await live.body()).toString(), /one[\s\S]*\[DONE\]/);
  t.equal(before.requestCount, 1);
  after.closeAllConnections();
});

t.test('B37 a kept connection that breaks as the POST is written: 502, and never a second POST', async (t) => {
  const upstream = await newUpstream(t);
  const gateway = await startTestGateway(t, upstream.url);
  const warmUp = async () => {
    const called = call(gateway.port);
    const request = await upstream.request();
    request.respond(200, {}, '{}');
    t.match(await called, { status: 200 });
    t.match(await gateway.ended(), { outcome: 'completed' });
    return request.connection;
  };
  const kept = await warmUp();
  const raced = call(gateway.port);
  t.equal((await upstream.request()).connection, kept, 'it went out on the kept connection');
  kept.reset();
  t.match(await raced, { status: 502, code: 'upstream_reset' });
  t.match(await gateway.ended(), { outcome: 'upstream_reset', attempts: 1 });
  t.equal(upstream.requestCount, 2, 'the upstream saw the POST once');

  const unread = await warmUp();
  unread.pauseReading();
  const blind = await connect(gateway.port);
  blind.request(chat);
  for (let written = 0; written < 4; )
    written = (await gateway.metrics()).value('sluicegate_overhead_seconds_count', { part: 'request' }) ?? 0;
  unread.reset();
  t.equal((await blind.head()).status, 502, 'nor where nobody can tell whether it was read');
  t.match(await gateway.ended(), { outcome: 'upstream_reset', attempts: 1 });
  t.equal(upstream.connections.length, 2);

  const closed = await warmUp();
  closed.end();
  await closed.closed;
  await warmUp();
  t.equal(upstream.connections.length, 4, 'one that was closed while idle is not used again');
});

/** A gateway before a TLS upstream whose certificate it is to refuse. */
async function assertRefused(t: Test, gateway: Pick<TestGateway, 'port'>, upstream: { requestCount: number }): Promise<void> {
  t.match(await call(gateway.port), { status: 502, code: 'upstream_unreachable' });
  t.equal(upstream.requestCount, 0, 'neither key nor prompt was sent');
}

t.test('G4 TLS: who nobody vouches for, speaks no TLS, or breaks or stalls the handshake, gets no request', async (t) => {
  const untrusted = await newUpstream(t, { tls: createCertificate() });
  const selfSigned = await startTestGateway(t, untrusted.url);
  await assertRefused(t, selfSigned, untrusted);
  t.match(await selfSigned.ended(), { outcome: 'upstream_unreachable', cause: 'DEPTH_ZERO_SELF_SIGNED_CERT' });

  const plain = await newUpstream(t, { accept: false });
  const speaksHttp = await startTestGateway(t, plain.url.replace('http:', 'https:'));
  const called = call(speaksHttp.port);
  const connection = await plain.connection();
  await connection.received(1);
  connection.write('HTTP/1.1 400 Bad Request\r\n\r\n');
  t.match(await called, { status: 502, code: 'upstream_unreachable' });
  t.notMatch(connection.bytes.toString('latin1'), UPSTREAM_KEY);

  const breaking = call(speaksHttp.port);
  (await plain.connection()).reset();
  t.match(await breaking, { status: 502, code: 'upstream_unreachable' });

  const stalling = await startTestGateway(t, plain.url.replace('http:', 'https:'), { upstream: { timeouts: { connect: '50ms' } } });
  const stalled = call(stalling.port);
  const silent = await plain.connection();
  t.match(await stalled, { status: 504, code: 'upstream_timeout' });
  await silent.closed;
  t.match(await stalling.ended(), { outcome: 'timeout_connect' });

  const text = `upstreams: { u: { baseUrl: "https://127.0.0.1:1/v1", auth: none, rejectUnauthorized: "false" } }`;
  t.match(loadConfig({ file: 'g.yaml', text }, {}), { ok: false, problems: [{ message: /rejectUnauthorized is not a setting/ }] });
});

/** Sluicegate as a process before a TLS upstream, in an environment of its own. */
async function serveTls(t: Test, certificate: Certificate, env: Record<string, string>) {
  const upstream = await newUpstream(t, { tls: certificate, waitMs: 10_000 });
  const folder = t.testdir({ 'ca.pem': certificate.cert });
  const { NODE_EXTRA_CA_CERTS: ca, ...rest } = env;
  const running = runSluicegate(
    t,
    [],
    {
      SLUICEGATE_LISTEN: '127.0.0.1:0',
      SLUICEGATE_OPS_LISTEN: '127.0.0.1:0',
      SLUICEGATE_UPSTREAM: upstream.url,
      SLUICEGATE_UPSTREAM_KEY: UPSTREAM_KEY,
      ...rest,
      ...(ca && { NODE_EXTRA_CA_CERTS: join(folder, ca) }),
    },
    folder,
  );
  const port = Number((await running.said(/API +http:\/\/127\.0\.0\.1:(\d+)\/v1/))[1]);
  return { upstream, running, port };
}

const hourMs = 3_600_000;
const past = { validFrom: new Date(Date.now() - 2 * hourMs), validTo: new Date(Date.now() - hourMs) };
const trusted = { NODE_EXTRA_CA_CERTS: 'ca.pem' };
const refused: Record<string, { certificate: Certificate; env: Record<string, string>; cause: RegExp }> = {
  'an expired certificate': { certificate: createCertificate(past), env: trusted, cause: /CERT_HAS_EXPIRED/ },
  'another name': {
    certificate: createCertificate({ names: ['api.example'] }),
    env: trusted,
    cause: /ERR_TLS_CERT_ALTNAME_INVALID/,
  },
  'a certificate that only a half-hearted NODE_TLS_REJECT_UNAUTHORIZED would pass': {
    certificate: createCertificate(),
    env: { NODE_TLS_REJECT_UNAUTHORIZED: 'false' },
    cause: /DEPTH_ZERO_SELF_SIGNED_CERT/,
  },
};

t.test('processes before TLS upstreams', { jobs: 2 }, async (t) => {
  for (const [name, { certificate, env, cause }] of Object.entries(refused)) {
    t.test(`G4 ${name}: 502, and no request`, { buffered: true }, async (t) => {
      const { upstream, running, port } = await serveTls(t, certificate, env);
      await assertRefused(t, { port }, upstream);
      t.match((await running.said(/"outcome":"upstream_unreachable".*/))[0], cause);
    });
  }

  t.test('G4 a certificate that NODE_EXTRA_CA_CERTS vouches for is served', { buffered: true }, async (t) => {
    const { upstream, running, port } = await serveTls(t, createCertificate(), trusted);
    const called = call(port);
    const request = await upstream.request();
    t.equal(request.headers.authorization, `Bearer ${UPSTREAM_KEY}`);
    request.respond(200, {}, '{}');
    t.match(await called, { status: 200 });
    t.notMatch(running.stderr, /NODE_TLS_REJECT_UNAUTHORIZED/, 'nothing is warned of');
  });

  t.test('G5 NODE_TLS_REJECT_UNAUTHORIZED=0 is a loud warning that names the risk', { buffered: true }, async (t) => {
    const { upstream, running, port } = await serveTls(t, createCertificate(), { NODE_TLS_REJECT_UNAUTHORIZED: '0' });
    t.match(running.stderr, /^warning: NODE_TLS_REJECT_UNAUTHORIZED=0 turns off the check .*: anyone on the way can read your keys$/m);
    const called = call(port);
    (await upstream.request()).respond(200, {}, '{}');
    t.match(await called, { status: 200 }, 'and does what it says');
  });
});

t.test('G9 nobody reads the log: requests go on, and the process still ends when it is told', async (t) => {
  const env = { SLUICEGATE_LISTEN: '127.0.0.1:0', SLUICEGATE_OPS_LISTEN: '127.0.0.1:0', SLUICEGATE_KEY: 'sk-some-key' };
  const running = runSluicegate(t, [], env, t.testdir());
  const port = Number((await running.said(/API +http:\/\/127\.0\.0\.1:(\d+)\/v1/))[1]);
  await running.said(/listening/);
  running.child.stdout?.pause();
  const client = await connect(port);
  const statuses = new Set<number>();
  // Each line is some 400 bytes: more than a pipe and both its ends' buffers hold.
  for (let n = 0; n < 1500; n++) {
    client.request({ target: '/v1/models', headers: { 'x-request-id': 'r'.repeat(128) } });
    statuses.add((await client.head()).status);
    await client.body();
  }
  client.destroy();
  t.strictSame([...statuses], [401]);
  const exited = once(running.child, 'exit');
  running.child.kill('SIGTERM');
  t.strictSame(await exited, [0, null]);
  running.child.stdout?.resume();
  await running.exited();
});

t.test('G9 nobody scrapes, and memory stays flat', async (t) => {
  setFlagsFromString('--expose-gc');
  const collectGarbage: () => void = runInNewContext('gc');
  const server = createHttpServer((request, response) => {
    const body = '{"model":"m","usage":{"prompt_tokens":1,"completion_tokens":1}}';
    request.resume().on('end', () => response.setHeader('content-type', 'application/json').end(body));
  });
  const upstreamPort = await listen(t, server, 0, '127.0.0.1');
  const text = `server: { listen: "127.0.0.1:0" }\nops: { listen: "127.0.0.1:0" }\nupstreams: { u: { baseUrl: "http://127.0.0.1:${upstreamPort}/v1", auth: none } }`;
  const loaded = loadConfig({ file: 'g.yaml', text }, {});
  if (!loaded.ok) throw new Error('not loaded');
  const log = createLogger({ level: 'info', format: 'json' }, false, { write: () => undefined });
  const gateway = await startGateway({ config: loaded.config, log, version: '0' });
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  t.teardown(async () => {
    agent.destroy();
    await gateway.close();
  });

  async function heapAfter(calls: number): Promise<number> {
    for (let n = 0; n < calls; n++) {
      const sent = httpRequest(`${gateway.url}${chat.target}`, { method: 'POST', agent }).end(chat.body);
      const [answer] = await once(sent, 'response');
      await once(answer.resume(), 'end');
    }
    await new Promise(setImmediate);
    collectGarbage();
    collectGarbage();
    return process.memoryUsage().heapUsed;
  }
  await heapAfter(500);
  // The lesser of two: what the engine itself keeps for a while comes and goes by a megabyte.
  const before = Math.min(await heapAfter(250), await heapAfter(250));
  const after = Math.min(await heapAfter(1000), await heapAfter(1000));
  t.ok(after - before < 1_500_000, `${after - before} bytes more after 2000 requests`);
});

// Promise: an upstream is reached by the CA, the certificate and the proxy that are configured for it, by nobody else's, and nothing of it leaks.
import { writeFileSync } from 'node:fs';
import t, { type Test } from 'tap';
import { stringify } from 'yaml';
import { loadConfig } from '../../src/config.ts';
import { startFrameUpstream } from '../support/frame-upstream.ts';
import { startTestGateway, type TestGateway, UPSTREAM_KEY } from '../support/gateway.ts';
import { type Manner, type ScriptedProxy, startProxy } from '../support/proxy.ts';
import { createCertificate } from '../support/tls.ts';
import { type ScriptedUpstream, startUpstream, type UpstreamOptions } from '../support/upstream.ts';
import { connect } from '../support/wire.ts';

const certificate = createCertificate();
const clientCertificate = createCertificate({ names: ['gateway.example'] });
const PROXY_PASSWORD = 'p@ss-canary-0123';

async function newUpstream(t: Test, options: UpstreamOptions = { tls: certificate }): Promise<ScriptedUpstream> {
  const upstream = await startUpstream(options);
  t.teardown(() => upstream.close());
  return upstream;
}

async function newProxy(t: Test, manner: Manner = 'tunnel', tls?: typeof certificate): Promise<ScriptedProxy> {
  const proxy = await startProxy(manner, tls);
  t.teardown(() => proxy.close());
  return proxy;
}

/** The files that a configuration may name. */
function filesOf(t: Test) {
  const folder = t.testdir({
    'ca.pem': certificate.cert,
    'other.pem': createCertificate().cert,
    'client.pem': clientCertificate.cert,
    'client.key': clientCertificate.key,
  });
  return { ca: `${folder}/ca.pem`, other: `${folder}/other.pem`, cert: `${folder}/client.pem`, key: `${folder}/client.key` };
}

async function call({ port }: { readonly port: number }) {
  const client = await connect(port);
  client.request({ method: 'POST', target: '/v1/embeddings', body: '{"model":"m","input":"x"}' });
  return client;
}

async function assertServed(t: Test, gateway: TestGateway, upstream: ScriptedUpstream): Promise<void> {
  const client = await call(gateway);
  const request = await upstream.request();
  t.equal(request.headers.authorization, `Bearer ${UPSTREAM_KEY}`);
  request.respond(200, { 'content-type': 'application/json' }, '{"served":true}');
  t.equal((await client.body()).toString(), '{"served":true}');
  client.destroy();
  t.match(await gateway.ended(), { outcome: 'completed' });
}

async function assertUnreachable(t: Test, gateway: TestGateway, cause: string | RegExp): Promise<void> {
  const client = await call(gateway);
  t.equal((await client.head()).status, 502, String(cause));
  t.match((await client.body()).toString(), '"upstream_unreachable"');
  t.match(await gateway.ended(), { outcome: 'upstream_unreachable', cause });
  client.destroy();
}

t.test('G4 a private CA vouches for its upstream, and nobody else does', async (t) => {
  const files = filesOf(t);
  const upstream = await newUpstream(t);
  await assertServed(t, await startTestGateway(t, upstream.url, { upstream: { caFile: files.ca } }), upstream);
  await assertUnreachable(t, await startTestGateway(t, upstream.url), 'DEPTH_ZERO_SELF_SIGNED_CERT');
  await assertUnreachable(t, await startTestGateway(t, upstream.url, { upstream: { caFile: files.other } }), /CERT/);
  const byName = upstream.url.replace('127.0.0.1', 'localhost');
  await assertServed(t, await startTestGateway(t, byName, { upstream: { caFile: files.ca } }), upstream);

  const named = await newUpstream(t, { tls: clientCertificate });
  const wrongName = await startTestGateway(t, named.url, { upstream: { caFile: files.cert } });
  await assertUnreachable(t, wrongName, 'ERR_TLS_CERT_ALTNAME_INVALID');
  t.equal(named.requestCount, 0);
});

t.test('an upstream that asks for a certificate gets it, and who has none is refused', async (t) => {
  const files = filesOf(t);
  const upstream = await newUpstream(t, {
    tls: { ...certificate, requestCert: true, rejectUnauthorized: true, ca: clientCertificate.cert },
  });
  const settings = { caFile: files.ca, certFile: files.cert, keyFile: files.key };
  await assertServed(t, await startTestGateway(t, upstream.url, { upstream: settings }), upstream);

  const without = await startTestGateway(t, upstream.url, { upstream: { caFile: files.ca } });
  const client = await call(without);
  t.equal((await client.head()).status, 502);
  // With TLS 1.3 the refusal comes after the handshake, on what looks like a connection (RFC 8446 4.4.2.4).
  t.match(await without.ended(), { cause: /CERTIFICATE_REQUIRED|ECONNRESET|UND_ERR_SOCKET/ });
  t.equal(upstream.requestCount, 1);
});

t.test('a reload takes the new CA for new connections, and live ones stay', async (t) => {
  const files = filesOf(t);
  writeFileSync(files.ca, createCertificate().cert);
  const upstream = await newUpstream(t);
  const load = () => {
    const main = { baseUrl: upstream.url, apiKey: UPSTREAM_KEY, usage: 'asSent', caFile: files.ca };
    const loaded = loadConfig({ file: 'test.yaml', text: stringify({ server: { listen: '127.0.0.1:0' }, upstreams: { main } }) }, {});
    if (!loaded.ok) throw new Error('not a configuration');
    return loaded.config;
  };
  const gateway = await startTestGateway(t, upstream.url, { upstream: { caFile: files.ca } });
  await assertUnreachable(t, gateway, /CERT/);
  writeFileSync(files.ca, certificate.cert);
  gateway.reload(load());
  const live = await call(gateway);
  const request = await upstream.request();
  writeFileSync(files.ca, createCertificate().cert);
  gateway.reload(load());
  await assertUnreachable(t, gateway, /CERT/);
  request.respond(200, {}, '{}');
  t.equal((await live.body()).toString(), '{}');
});

t.test('a tunnel: the proxy learns where to, and neither the key nor what is said', async (t) => {
  const { ca } = filesOf(t);
  // Vouched for by its own name, not the proxy's.
  const named = createCertificate({ names: ['localhost'] });
  writeFileSync(ca, named.cert);
  const upstream = await newUpstream(t, { tls: named });
  const proxy = await newProxy(t);
  const url = `http://us%40er:${encodeURIComponent(PROXY_PASSWORD)}@127.0.0.1:${proxy.port}`;
  const gateway = await startTestGateway(t, upstream.url.replace('127.0.0.1', 'localhost'), { upstream: { caFile: ca, proxy: url } });
  await assertServed(t, gateway, upstream);
  await assertServed(t, gateway, upstream);
  const [asked = '', ...further] = proxy.asked;
  t.equal(further.length, 0, 'a kept connection needs no second tunnel');
  const authorization = Buffer.from(`us@er:${PROXY_PASSWORD}`).toString('base64');
  t.equal(
    asked,
    `CONNECT localhost:${upstream.port} HTTP/1.1\r\nHost: localhost:${upstream.port}\r\nProxy-Authorization: Basic ${authorization}\r\n\r\n`,
  );
  t.notMatch(proxy.carried.toString('latin1'), UPSTREAM_KEY);
  t.notMatch(upstream.connections.map(({ bytes }) => bytes.toString('latin1')).join(), /proxy-authorization/i);
  t.notMatch(gateway.output, new RegExp(`${authorization}|canary-0123`));
});

t.test('a tunnel for plain http, without credentials; and through a proxy that speaks TLS', async (t) => {
  const upstream = await newUpstream(t, {});
  const proxy = await newProxy(t);
  const gateway = await startTestGateway(t, upstream.url, { upstream: { proxy: `http://127.0.0.1:${proxy.port}` } });
  await assertServed(t, gateway, upstream);
  t.equal(proxy.asked[0], `CONNECT 127.0.0.1:${upstream.port} HTTP/1.1\r\nHost: 127.0.0.1:${upstream.port}\r\n\r\n`);

  // The upstream's private CA is not for the proxy.
  const secured = await newProxy(t, 'tunnel', certificate);
  const { ca } = filesOf(t);
  const behind = await newUpstream(t);
  const distrusting = await startTestGateway(t, behind.url, { upstream: { caFile: ca, proxy: `https://127.0.0.1:${secured.port}` } });
  await assertUnreachable(t, distrusting, 'DEPTH_ZERO_SELF_SIGNED_CERT');
});

t.test('HTTP/2 through a tunnel', async (t) => {
  const { ca } = filesOf(t);
  const upstream = await startFrameUpstream({ tls: certificate });
  t.teardown(() => upstream.close());
  const proxy = await newProxy(t);
  const settings = { caFile: ca, http2: 'on', proxy: `http://127.0.0.1:${proxy.port}` };
  const gateway = await startTestGateway(t, upstream.url, { upstream: settings });
  const clients = [await call(gateway), await call(gateway)];
  for (const client of clients) {
    const stream = await upstream.stream();
    stream.head(200, { 'content-type': 'application/json' });
    stream.data('{}', true);
    t.equal((await client.body()).toString(), '{}');
  }
  t.equal(proxy.asked.length, 1);
  t.notMatch(proxy.carried.toString('latin1'), UPSTREAM_KEY);
});

const refusals: Record<string, { manner: Manner; cause: string }> = {
  'wants a password': { manner: { says: 'HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n' }, cause: 'PROXY_407' },
  forbids: { manner: { says: 'HTTP/1.0 403 Forbidden\r\n\r\nno' }, cause: 'PROXY_403' },
  redirects: { manner: { says: 'HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\n\r\n' }, cause: 'PROXY_302' },
  'speaks no HTTP': { manner: { says: 'SSH-2.0-x\r\n\r\n' }, cause: 'PROXY_MALFORMED' },
  'does not stop': { manner: { says: `HTTP/1.1 200 OK\r\nX: ${'x'.repeat(20_000)}` }, cause: 'PROXY_MALFORMED' },
  'speaks for the upstream': { manner: { says: 'HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n' }, cause: 'PROXY_MALFORMED' },
  'hangs up': { manner: { says: 'HTTP/1.1 200', ends: true }, cause: 'PROXY_CLOSED' },
};

t.test('a proxy that gives no tunnel: 502, and it is asked for nothing more', async (t) => {
  const upstream = await newUpstream(t);
  for (const [name, { manner, cause }] of Object.entries(refusals)) {
    const proxy = await newProxy(t, manner);
    const gateway = await startTestGateway(t, upstream.url, { upstream: { proxy: `http://127.0.0.1:${proxy.port}` } });
    await assertUnreachable(t, gateway, cause);
    await proxy.empty();
    t.equal(proxy.asked.length, 1, name);
  }
  const gone = await newProxy(t);
  await gone.close();
  await assertUnreachable(
    t,
    await startTestGateway(t, upstream.url, { upstream: { proxy: `http://127.0.0.1:${gone.port}` } }),
    'ECONNREFUSED',
  );
  t.equal(upstream.connections.length, 0, 'and nobody went there without it');
});

t.test('B2 A5 a proxy that says nothing: 504 at connect; a client that leaves meanwhile is gone at once', async (t) => {
  const upstream = await newUpstream(t);
  for (const http2 of ['off', 'on']) {
    const proxy = await newProxy(t, 'mute');
    const settings = { proxy: `http://127.0.0.1:${proxy.port}`, http2, timeouts: { connect: '300ms' } };
    const gateway = await startTestGateway(t, upstream.url, { upstream: settings });
    const waiting = await call(gateway);
    t.equal((await waiting.head()).status, 504);
    t.match(await gateway.ended(), { outcome: 'timeout_connect' });
    await proxy.empty();

    const leaving = await call(gateway);
    await proxy.heard(2);
    const leftAtMs = performance.now();
    leaving.reset();
    await proxy.empty();
    t.ok(performance.now() - leftAtMs < 100, `${(performance.now() - leftAtMs).toFixed(1)} ms`);
    t.match(await gateway.ended(), { outcome: 'client_closed', phase: 'connect' });
    t.equal((await gateway.metrics()).value('sluicegate_upstream_connections', { state: 'active' }), 0);
  }
});

t.test('a client that leaves in a stream closes the tunnel', async (t) => {
  const { ca } = filesOf(t);
  const upstream = await newUpstream(t);
  const proxy = await newProxy(t);
  const settings = { caFile: ca, proxy: `http://127.0.0.1:${proxy.port}` };
  const gateway = await startTestGateway(t, upstream.url, { upstream: settings });
  const client = await call(gateway);
  const request = await upstream.request();
  request.startSse();
  request.event('begun');
  await client.until('begun');
  client.reset();
  await request.connection.closed;
  await proxy.empty();
  t.match(await gateway.ended(), { outcome: 'client_closed' });
});

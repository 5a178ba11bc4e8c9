// Promise: bad input and unwanted callers get a clear error in OpenAI's form, and the upstream hears nothing of them.
import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import t, { type Test } from 'tap';
import { stringify } from 'yaml';
import { loadConfig } from '../../src/config.ts';
import { hashKey } from '../../src/http/auth.ts';
import { startTestGateway, type TestGateway, UPSTREAM_KEY } from '../support/gateway.ts';
import { type ScriptedUpstream, startUpstream } from '../support/upstream.ts';
import { connect, type WireRequest } from '../support/wire.ts';

const KEY = 'sk-client-canary-abcdef';
const clients = [{ name: 'web-app', keySha256: hashKey(KEY) }];
const chat = { method: 'POST', target: '/v1/chat/completions', body: '{}' };

async function start(t: Test, settings: Record<string, object> = {}): Promise<{ upstream: ScriptedUpstream; gateway: TestGateway }> {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  return { upstream, gateway: await startTestGateway(t, upstream.url, settings) };
}

async function ask(
  port: number,
  request: WireRequest | string,
): Promise<{ status: number; headers: Record<string, string>; body: string }> {
  const client = await connect(port);
  if (typeof request === 'string') client.send(request);
  else client.request(request);
  const { status, headers } = await client.head();
  const body = (await client.body()).toString();
  client.destroy();
  return { status, headers, body };
}

t.test('malformed requests', async (t) => {
  const { upstream, gateway } = await start(t);
  const get = (target: string, extra = '') => `GET ${target} HTTP/1.1\r\nHost: 127.0.0.1\r\n${extra}\r\n`;
  const cases: [bytes: string, status: number, code: string][] = [
    [get('/v1/../admin'), 400, 'invalid_request'],
    [get('/v1/%2e%2e/admin'), 400, 'invalid_request'],
    [get('http://evil/v1/models'), 400, 'invalid_request'],
    [get('/v1//models'), 400, 'invalid_request'],
    [get('/v2/models'), 404, 'not_found'],
    [get('/'), 404, 'not_found'],
    [get('/metrics'), 404, 'not_found'],
    [get('/v1/models', 'Upgrade: websocket\r\nConnection: Upgrade\r\n'), 400, 'invalid_request'],
    ['TRACE /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n', 405, 'method_not_allowed'],
    ['GET /v1/models HTTP/1.1\r\n\r\n', 400, 'invalid_request'],
    ['nonsense\r\n\r\n', 400, 'invalid_request'],
    ['GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nBad Name: x\r\n\r\n', 400, 'invalid_request'],
    ['POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n', 400, 'invalid_request'],
    [get('/v1/models', `x: ${'y'.repeat(17_000)}\r\n`), 431, 'headers_too_large'],
  ];
  for (const [bytes, status, code] of cases) {
    const answer = await ask(gateway.port, bytes);
    t.equal(answer.status, status, bytes.slice(0, 60));
    t.match(JSON.parse(answer.body), { error: { code, type: 'invalid_request_error', param: null } });
    t.equal(answer.headers['content-type'], 'application/json');
  }
  t.match(await ask(gateway.port, get('/metrics')), { body: /ops listener/ });
  t.equal(upstream.connections.length, 0, 'the upstream heard nothing');
  const metrics = await gateway.metrics();
  t.equal(metrics.value('sluicegate_requests_total', { outcome: 'rejected' }), 11, 'each that was a request is counted');
  t.ok((metrics.value('sluicegate_rejections_total', { reason: 'invalid_request' }) ?? 0) >= 8);
  t.equal(metrics.value('sluicegate_rejections_total', { reason: 'headers_too_large' }), 1);
});

t.test('unknown methods are forwarded, and so are content types that make no sense', async (t) => {
  const { upstream, gateway } = await start(t);
  for (const [method, type] of [
    ['PROPFIND', 'application/json'],
    ['POST', 'x;;;\t y'],
    ['DELETE', ''],
    ['QUERY', 'text/plain'],
  ] as const) {
    const client = await connect(gateway.port);
    client.request({ method, target: '/v1/x', headers: type ? { 'content-type': type } : {}, body: 'body' });
    const request = await upstream.request();
    t.equal(request.method, method);
    t.equal(request.headers['content-type'], type || undefined);
    t.equal((await request.body()).toString(), 'body');
    request.respond(204);
    t.equal((await client.head()).status, 204);
  }
});

t.test('D1 client keys: none, empty, of another scheme, doubled or unknown', async (t) => {
  const { upstream, gateway } = await start(t, { clients });
  const refused: Record<string, string>[] = [
    {},
    { authorization: '' },
    { authorization: 'Bearer ' },
    { authorization: 'Bearer wrong' },
    { authorization: `Basic ${KEY}` },
    { authorization: `Bearer ${KEY} x` },
    { authorization: `Bearer ${'k'.repeat(8000)}` },
    { 'x-api-key': 'wrong' },
    { authorization: `Bearer ${KEY}`, 'x-api-key': KEY },
    { 'x-sluicegate-key': KEY },
    { 'sec-websocket-protocol': 'realtime' },
    { 'sec-websocket-protocol': 'realtime, openai-insecure-api-key.wrong' },
    { 'sec-websocket-protocol': `openai-insecure-api-key.${KEY}, openai-insecure-api-key.${KEY}` },
    { authorization: `Bearer ${KEY}`, 'sec-websocket-protocol': `openai-insecure-api-key.${KEY}` },
  ];
  for (const headers of refused) {
    const answer = await ask(gateway.port, { ...chat, headers });
    t.equal(answer.status, 401, JSON.stringify(headers).slice(0, 60));
    t.match(JSON.parse(answer.body), { error: { code: 'invalid_api_key' } });
  }
  const twice = await ask(
    gateway.port,
    `GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${KEY}\r\nAuthorization: Bearer ${KEY}\r\n\r\n`,
  );
  t.equal(twice.status, 401, 'twice');
  t.equal(upstream.connections.length, 0);

  for (const headers of [
    { authorization: `Bearer ${KEY}` },
    { authorization: `bearer  ${KEY}` },
    { 'api-key': KEY },
    { 'X-Api-Key': KEY },
    { 'Sec-WebSocket-Protocol': `realtime, openai-insecure-api-key.${KEY}, openai-beta.realtime-v1` },
  ]) {
    const client = await connect(gateway.port);
    // A key makes Host and Origin nobody's business.
    client.request({ ...chat, headers: { ...headers, host: 'gateway.example', origin: 'https://app.example' } });
    const request = await upstream.request();
    t.notMatch(request.head, KEY, 'the client’s key does not go up');
    request.respond(200, {}, '{}');
    await client.body();
  }
  t.match(await gateway.metrics().then((metrics) => metrics.value('sluicegate_requests_total', { client: 'web-app' })), 5);
  t.notMatch(gateway.output, 'canary', 'no key in the log');
});

t.test('a key that was right is so only for as long as the configuration has it', async (t) => {
  const { upstream, gateway } = await start(t, { clients });
  const headers = { authorization: `Bearer ${KEY}` };
  const client = await connect(gateway.port);
  for (let call = 0; call < 2; call++) {
    client.request({ ...chat, headers });
    (await upstream.request()).respond(200, {}, '{}');
    t.equal((await client.head()).status, 200);
    await client.body();
  }
  const text = stringify({
    upstreams: { main: { baseUrl: upstream.url, apiKey: UPSTREAM_KEY } },
    clients: [{ name: 'other', keySha256: hashKey('sk-of-another') }],
  });
  const loaded = loadConfig({ file: 'test.yaml', text }, {});
  if (!loaded.ok) throw new Error('not a configuration');
  gateway.reload(loaded.config);
  t.equal((await ask(gateway.port, { ...chat, headers })).status, 401);
});

t.test('C13 a key is judged before the body is asked for', async (t) => {
  const { upstream, gateway } = await start(t, { clients });
  const expecting = (key: string) =>
    `POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${key}\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n`;
  const stranger = await connect(gateway.port);
  stranger.send(expecting('wrong'));
  t.equal((await stranger.head()).status, 401);
  t.notMatch(stranger.raw().toString(), '100 Continue');

  const client = await connect(gateway.port);
  client.send(expecting(KEY));
  await client.head();
  client.send('body');
  const request = await upstream.request();
  t.equal(request.headers.expect, undefined);
  t.equal((await request.body()).toString(), 'body');
  request.respond(200, {}, 'done');
  await client.head();
  t.match(client.raw().toString(), /^HTTP\/1\.1 100 Continue\r\n\r\nHTTP\/1\.1 200 OK\r\n/);
});

t.test('D4 passthrough: the client’s own credential goes on, its Sluicegate key comes apart', async (t) => {
  const { upstream, gateway } = await start(t, { clients, upstream: { apiKey: undefined, auth: 'passthrough' } });
  t.equal((await ask(gateway.port, { ...chat, headers: { authorization: `Bearer ${KEY}` } })).status, 401);
  const client = await connect(gateway.port);
  client.request({ ...chat, headers: { authorization: 'Bearer sk-own', 'x-sluicegate-key': KEY } });
  const request = await upstream.request();
  t.equal(request.headers.authorization, 'Bearer sk-own');
  t.notMatch(request.head, KEY);
  request.respond(401, {}, 'your key');
  t.equal((await client.head()).status, 401, 'a 401 to the client’s own key is the client’s');
});

t.test('D21 web pages that reach for a gateway on loopback', async (t) => {
  const { upstream, gateway } = await start(t, { server: { hostnames: ['gateway.lan'] } });
  const own = `127.0.0.1:${gateway.port}`;
  const forbidden: Record<string, string>[] = [
    { host: 'rebound.example' },
    { host: own, origin: 'https://evil.example' },
    { host: own, origin: 'null' },
    { host: 'rebound.example', origin: 'http://rebound.example' },
    { host: '127.0.0.1.evil.example' },
    { host: own, 'sec-fetch-site': 'cross-site' },
  ];
  for (const headers of forbidden) {
    const answer = await ask(gateway.port, { ...chat, headers });
    t.match(JSON.parse(answer.body), { error: { code: 'forbidden_origin' } }, JSON.stringify(headers));
    t.equal(answer.status, 403);
  }
  t.equal(upstream.connections.length, 0);
  for (const headers of [
    { host: own },
    { host: `localhost:${gateway.port}` },
    { host: '[::1]:80' },
    { host: 'Gateway.lan' },
    { host: own, origin: `http://${own}` },
  ]) {
    const client = await connect(gateway.port);
    client.request({ ...chat, headers });
    (await upstream.request()).respond(200, {}, '{}');
    t.equal((await client.head()).status, 200, JSON.stringify(headers));
    client.destroy();
  }

  const page = await ask(gateway.opsPort, { method: 'GET', target: '/', headers: { host: 'rebound.example' } });
  t.equal(page.status, 403, 'nor the ops listener');
  t.equal((await ask(gateway.opsPort, { method: 'GET', target: '/metrics', headers: { host: 'prometheus.lan' } })).status, 200);
  t.equal((await ask(gateway.opsPort, { method: 'GET', target: '/healthz', headers: { host: 'kubelet' } })).status, 200);
});

t.test('cors: preflights are answered here, and answers carry our word, not the upstream’s', async (t) => {
  const origin = 'https://app.example';
  const { upstream, gateway } = await start(t, { clients, server: { cors: { origins: [origin] } } });
  const preflight = await ask(gateway.port, {
    method: 'OPTIONS',
    target: '/v1/chat/completions',
    headers: { origin, 'access-control-request-method': 'POST', 'access-control-request-headers': 'authorization,x-stainless-os' },
  });
  t.equal(preflight.status, 200);
  t.match(preflight.headers, { 'access-control-allow-origin': origin, 'access-control-allow-headers': 'authorization,x-stainless-os' });
  t.match(preflight.headers['access-control-allow-methods'], /POST/);

  const client = await connect(gateway.port);
  client.request({ ...chat, headers: { origin, authorization: `Bearer ${KEY}` } });
  (await upstream.request()).respond(200, { 'access-control-allow-origin': '*' }, '{}');
  const { headers } = await client.head();
  t.match(headers, { 'access-control-allow-origin': origin });
  const ours = [
    'x-request-id',
    'retry-after',
    'retry-after-ms',
    'x-should-retry',
    'x-ratelimit-reset-requests',
    'x-ratelimit-limit-tokens',
  ];
  t.same(
    ours.filter((name) => !headers['access-control-expose-headers']?.split(', ').includes(name)),
    [],
    'SDKs in browsers may read them',
  );

  const refused = await ask(gateway.port, { ...chat, headers: { origin } });
  t.match(refused, { status: 401, headers: { 'access-control-allow-origin': origin } }, 'a page can read why it was refused');
  const stranger = await ask(gateway.port, {
    method: 'OPTIONS',
    target: '/v1/x',
    headers: { origin: 'https://evil.example', 'access-control-request-method': 'POST' },
  });
  t.notOk(stranger.headers['access-control-allow-origin'] === 'https://evil.example');
});

t.test('E10 a body over the limit, announced or not', async (t) => {
  const { upstream, gateway } = await start(t, { server: { maxRequestBody: 1000 } });
  const announced = await ask(gateway.port, `POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1001\r\n\r\n`);
  t.equal(announced.status, 413);
  t.match(JSON.parse(announced.body), { error: { code: 'request_too_large' } });
  t.equal(upstream.connections.length, 0, 'the upstream was never called');

  const atLimit = await connect(gateway.port);
  atLimit.request({ method: 'POST', target: '/v1/files', body: 'x'.repeat(1000), chunked: true });
  const whole = await upstream.request();
  t.equal((await whole.body()).length, 1000);
  whole.respond(200, {}, '{}');
  t.equal((await atLimit.head()).status, 200);

  const client = await connect(gateway.port);
  client.send('POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n');
  client.send('x'.repeat(1000));
  const request = await upstream.request();
  await request.bodyBytes(1000);
  client.send('\r\n1\r\ny\r\n');
  t.equal((await client.head()).status, 413);
  await request.connection.closed;
  t.equal(request.connection.bytes.toString().split('\r\n\r\n')[1]?.includes('y'), false, 'the byte over the limit stayed here');
  await gateway.ended();
  await gateway.ended();
  t.match(await gateway.ended(), { outcome: 'rejected', rejection: 'request_too_large', bytesIn: 1001 });
});

t.test('requests per minute, in the headers that SDKs read', async (t) => {
  const limited = clients.map((client) => ({ ...client, limits: { requestsPerMinute: 2 } }));
  const { upstream, gateway } = await start(t, { clients: limited });
  const headers = { authorization: `Bearer ${KEY}` };
  for (const remaining of ['1', '0']) {
    const client = await connect(gateway.port);
    client.request({ ...chat, headers });
    (await upstream.request()).respond(200, { 'x-ratelimit-remaining-requests': '9999', 'x-ratelimit-remaining-tokens': '5' }, '{}');
    const head = await client.head();
    t.match(head.headers, {
      'x-ratelimit-limit-requests': '2',
      'x-ratelimit-remaining-requests': remaining,
      'x-ratelimit-remaining-tokens': '5',
    });
    t.match(head.headers['x-ratelimit-reset-requests'], /^(?:1m0s|\d+s)$/);
  }
  const answer = await ask(gateway.port, { ...chat, headers });
  t.equal(answer.status, 429);
  t.match(answer.headers, { 'retry-after': /^\d+$/, 'x-ratelimit-remaining-requests': '0' });
  t.match(JSON.parse(answer.body), { error: { code: 'rate_limit_exceeded', type: 'requests' } });
  t.equal(upstream.requestCount, 2);
  t.equal((await gateway.metrics()).value('sluicegate_rejections_total', { client: 'web-app', reason: 'rate_limit_exceeded_requests' }), 1);
});

t.test('D15 an anonymous caller is its address, of IPv6 the /64', async (t) => {
  const limits = { anonymous: { limits: { requestsPerMinute: 2 } }, server: { trustProxy: ['127.0.0.0/8'] } };
  const { upstream, gateway } = await start(t, limits);
  const from = async (address: string) => {
    const client = await connect(gateway.port);
    client.request({ ...chat, headers: { 'x-forwarded-for': address } });
    void upstream.request().then(
      (request) => request.respond(200, {}, '{}'),
      () => undefined,
    );
    const { status } = await client.head();
    client.destroy();
    return status;
  };
  t.equal(await from('2001:db8:1:2::a'), 200);
  t.equal(await from('2001:0db8:1:2:ffff:1:2:3'), 200);
  t.equal(await from('2001:db8:1:2:3::'), 429, 'rotated within its /64');
  t.equal(await from('2001:db8:1:3::a'), 200, 'another /64');
  t.equal(await from('203.0.113.7'), 200);
  t.equal(await from('::ffff:203.0.113.7'), 200);
  t.equal(await from('203.0.113.7'), 429, 'in whichever form');
});

t.test('ops with a token, on a listener of its own or on that of the clients', async (t) => {
  const token = { authorization: 'Bearer ops-secret' };
  const apart = (await start(t, { ops: { token: 'ops-secret' } })).gateway.opsPort;
  const free = createServer().listen(0, '127.0.0.1');
  await once(free, 'listening');
  const { port: shared } = free.address() as AddressInfo;
  await new Promise((resolve) => free.close(resolve));
  const listen = `127.0.0.1:${shared}`;
  await start(t, { server: { listen }, ops: { listen, token: 'ops-secret' } });
  for (const port of [apart, shared]) {
    t.equal((await ask(port, { method: 'GET', target: '/metrics' })).status, 401);
    t.equal((await ask(port, { method: 'GET', target: '/metrics', headers: { authorization: 'Bearer wrong' } })).status, 401);
    t.match(await ask(port, { method: 'GET', target: '/metrics', headers: token }), { status: 200, body: /sluicegate_build_info/ });
    t.equal((await ask(port, { method: 'GET', target: '/readyz' })).status, 200);
    t.equal((await ask(port, { method: 'GET', target: '/nowhere', headers: token })).status, 404);
  }
});

t.test('D14 X-Forwarded-For counts from a trusted proxy only', async (t) => {
  for (const [trustProxy, forwarded, expected] of [
    ['off', '198.51.100.1, 203.0.113.7', '127.0.0.1'],
    [['127.0.0.0/8'], '198.51.100.1, 203.0.113.7', '203.0.113.7'],
    [['127.0.0.0/8'], '203.0.113.7:5555', '203.0.113.7'],
    [['127.0.0.0/8'], '[2001:db8::1]:5555', '2001:db8::1'],
    [['127.0.0.0/8'], 'unknown', '127.0.0.1'],
  ] as const) {
    const { upstream, gateway } = await start(t, { server: { trustProxy } });
    const client = await connect(gateway.port);
    client.request({ ...chat, headers: { 'x-forwarded-for': forwarded } });
    (await upstream.request()).respond(200, {}, '{}');
    await client.body();
    t.equal((await gateway.ended()).remoteAddress, expected);
  }
});

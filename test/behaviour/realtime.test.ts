// Promise: a WebSocket goes through as if nothing stood between, but for the key; it is metered, limited, and closed on both sides when either goes.
import { once } from 'node:events';
import { type AddressInfo, connect as connectTcp } from 'node:net';
import { setTimeout as delayFor } from 'node:timers/promises';
import { createServer as createTlsServer, getCACertificates, setDefaultCACertificates } from 'node:tls';
import { createServer as createAimock } from '@copilotkit/aimock';
import OpenAI, { AzureOpenAI } from 'openai';
import { OpenAIRealtimeWebSocket } from 'openai/realtime/websocket';
import { OpenAIRealtimeWS } from 'openai/realtime/ws';
import t, { type Test } from 'tap';
import { startTestGateway, type TestGateway, UPSTREAM_KEY } from '../support/gateway.ts';
import { clientOf, handshake, openSession, refusedSession, type SessionUpstream, SWITCHING, startSessions } from '../support/sessions.ts';
import { createCertificate } from '../support/tls.ts';
import { startUpstream } from '../support/upstream.ts';
import { connect } from '../support/wire.ts';

const KEY = 'sk-of-the-team-0123456789';
const KEY_PROTOCOL = `openai-insecure-api-key.${KEY}`;
/** INTERFACE: within 100 ms. */
const BOUND_MS = 100;
const authorized = { headers: { authorization: `Bearer ${KEY}` } };

interface Scene {
  readonly upstream: SessionUpstream;
  readonly gateway: TestGateway;
}

async function start(t: Test, settings: Record<string, object> = {}): Promise<Scene> {
  const upstream = await startSessions(t);
  return { upstream, gateway: await startTestGateway(t, upstream.url, settings) };
}

/** A session that is open on both sides. */
async function open(t: Test, scene: Scene, options: Parameters<typeof openSession>[2] = {}) {
  const [client, session] = await Promise.all([openSession(t, scene.gateway, options), scene.upstream.session()]);
  return { client, session };
}

const done = (input: number, output: number) =>
  JSON.stringify({ type: 'response.done', response: { usage: { input_tokens: input, output_tokens: output } } });
const delta = (text: string) => JSON.stringify({ type: 'response.output_text.delta', response_id: 'r', delta: text });

async function eventually(what: string, isSo: () => Promise<boolean>): Promise<void> {
  for (let looks = 0; looks < 1000; looks++) {
    if (await isSo()) return;
    await delayFor(5);
  }
  throw new Error(`waited in vain until ${what}`);
}

async function active(gateway: TestGateway): Promise<number | undefined> {
  return (await gateway.metrics()).value('sluicegate_upstream_connections', { state: 'active' });
}

t.test('text, bytes, 4 MB, fragments and pings come through as they are, both ways', async (t) => {
  const scene = await start(t);
  const { client, session } = await open(t, scene);
  const large = Buffer.alloc(4_000_000, 'sluice');
  for (const [from, to] of [
    [client, session],
    [session, client],
  ] as const) {
    for (const message of ['é, text', Buffer.from([0, 0xff, 0x88]), large]) {
      from.socket.send(message);
      t.ok((await to.next()).equals(Buffer.from(message)));
    }
    for (const [at, piece] of ['in ', 'three ', 'pieces'].entries()) {
      from.socket.send(piece, { fin: at === 2 });
      if (at === 1) from.socket.ping('between');
    }
    t.equal(String((await Promise.all([to.next(), once(from.socket, 'pong')]))[0]), 'in three pieces');
  }
  client.socket.close(4001, 'that was all');
  t.match(await session.closed, { code: 4001, reason: 'that was all' });
  t.match(await client.closed, { code: 4001 });
  const line = await scene.gateway.ended();
  t.match(line, { outcome: 'completed', status: 101, endpoint: '/v1/realtime', method: 'GET', phase: 'stream', attempts: 1 });
  t.ok(Number(line.bytesIn) > large.length && Number(line.bytesOut) > large.length, 'bytes of both ways');
});

t.test('B34 a closing handshake of either side passes whole, and its code tells how the session ended', async (t) => {
  const scene = await start(t);
  for (const [code, outcome, cause] of [
    [1000, 'completed', undefined],
    [1001, 'completed', undefined],
    [1011, 'upstream_error_event', 'close_1011'],
  ] as const) {
    const { client, session } = await open(t, scene);
    session.socket.close(code, 'so be it');
    t.match(await client.closed, { code, reason: 'so be it' });
    t.match(await session.closed, { code });
    const line = await scene.gateway.ended();
    t.match(line, { outcome });
    t.equal(line.cause, cause);
  }
});

t.test('D4 a key in the subprotocol is understood, ours goes up in its place, and neither is seen where it does not belong', async (t) => {
  const upstream = await startSessions(t);
  for (const auth of ['bearer', 'api-key'] as const) {
    const gateway = await startTestGateway(t, upstream.url, {
      upstream: { auth, query: { 'api-version': '2' } },
      clients: [clientOf(KEY)],
    });
    const protocols = ['realtime', KEY_PROTOCOL, 'openai-organization.org-1'];
    const { client } = await open(
      t,
      { upstream, gateway },
      { protocols, perMessageDeflate: true, headers: { cookie: 'a=b', origin: 'https://x' } },
    );
    const { rawHeaders, headers, url } = upstream.requests.at(-1)!;
    t.equal(url, '/v1/realtime?model=gpt-realtime&api-version=2');
    t.equal(headers['sec-websocket-protocol'], 'realtime, openai-organization.org-1');
    t.equal(auth === 'bearer' ? headers.authorization : headers['api-key'], auth === 'bearer' ? `Bearer ${UPSTREAM_KEY}` : UPSTREAM_KEY);
    for (const name of ['sec-websocket-extensions', 'cookie', 'origin']) t.equal(headers[name], undefined, name);
    t.notMatch(rawHeaders.join(), KEY);
    t.equal(client.socket.protocol, 'realtime');
    t.equal(client.socket.extensions, '');
    t.match(client.head.headers, { 'x-sluicegate-upstream': 'main', 'x-request-id': String });
    t.notMatch(client.head.rawHeaders.join(), UPSTREAM_KEY);
    client.socket.close();
    t.match(await gateway.ended(), { client: 'team', outcome: 'completed' });
    t.notMatch(gateway.output, /sk-/);
  }
});

t.test('with passthrough the client’s own credential goes on', async (t) => {
  const scene = await start(t, { upstream: { auth: 'passthrough', apiKey: undefined } });
  await open(t, scene, { protocols: ['realtime', KEY_PROTOCOL] });
  t.equal(scene.upstream.requests[0]?.headers['sec-websocket-protocol'], `realtime,${KEY_PROTOCOL}`);
});

t.test('Azure’s paths, and TLS to the upstream', async (t) => {
  const { key, cert } = createCertificate();
  const upstream = await startSessions(t, { tls: { key, cert } });
  const unverified = await startTestGateway(t, upstream.url);
  t.match(await refusedSession(unverified), { status: 502, body: /upstream_unreachable/ });

  const azure = await start(t, { models: [{ match: 'voice*', upstreams: ['main'] }] });
  for (const target of ['/openai/realtime?api-version=1&deployment=voice-1', '/openai/v1/realtime?model=voice-2']) {
    const { client } = await open(t, azure, { target });
    t.equal(azure.upstream.requests.at(-1)?.url, target);
    client.socket.close();
    t.match(await azure.gateway.ended(), { endpoint: '/v1/realtime', outcome: 'completed' });
  }
  t.equal((await azure.gateway.metrics()).value('sluicegate_requests_total', { model: 'voice*' }), 2);
});

t.test('D8 D21 what may not pass is refused as any request is, before anything goes up', async (t) => {
  const models = { clients: [clientOf(KEY, { models: ['gpt-realtime*'] })] };
  const { upstream, gateway } = await start(t, models);
  const anonymous = await startTestGateway(t, upstream.url);
  const refusals: [what: string, at: TestGateway, options: Parameters<typeof refusedSession>[1], status: number, code: string][] = [
    ['no key', gateway, {}, 401, 'invalid_api_key'],
    ['a wrong key', gateway, { protocols: ['realtime', 'openai-insecure-api-key.sk-x'] }, 401, 'invalid_api_key'],
    ['two keys', gateway, { ...authorized, protocols: [KEY_PROTOCOL] }, 401, 'invalid_api_key'],
    ['another model', gateway, { ...authorized, target: '/v1/realtime?model=gpt-4o' }, 403, 'model_not_allowed'],
    ['no model', gateway, { ...authorized, target: '/v1/realtime?intent=transcription' }, 403, 'model_not_allowed'],
    ['another deployment', gateway, { ...authorized, target: '/openai/realtime?deployment=gpt-4o' }, 403, 'model_not_allowed'],
    ['messages that name models', gateway, { ...authorized, target: '/v1/responses?model=gpt-realtime' }, 403, 'model_not_allowed'],
    ['two models', gateway, { ...authorized, target: '/v1/realtime?model=gpt-realtime&Deployment=x' }, 400, 'invalid_request'],
    ['another path', gateway, { ...authorized, target: '/v2/realtime?model=gpt-realtime' }, 404, 'not_found'],
    ['a page', anonymous, { origin: 'https://evil.example' }, 403, 'forbidden_origin'],
    ['a rebound name', anonymous, { headers: { host: 'rebound.example' } }, 403, 'forbidden_origin'],
    ['another version of the protocol', anonymous, { protocolVersion: 8 }, 400, 'invalid_request'],
  ];
  for (const [what, at, options, status, code] of refusals) {
    const refusal = await refusedSession(at, options);
    t.equal(refusal.status, status, what);
    t.match(JSON.parse(refusal.body), { error: { code } }, what);
    t.match(await at.ended(), { outcome: 'rejected', rejection: code, attempts: 0 }, what);
  }
  t.equal(upstream.requests.length, 0);
});

t.test('B11 B12 D10 an upstream that refuses: its answer goes down, but for a 401 to our key', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const answers: [status: number, seen: number, outcome: string, body: RegExp][] = [
    [401, 502, 'upstream_error', /upstream_auth/],
    [429, 429, 'upstream_error', /^slow down, \*+ $/],
    [200, 200, 'completed', /^slow down, /],
  ];
  for (const [status, seen, outcome, body] of answers) {
    const refusal = refusedSession(gateway);
    const request = await upstream.request();
    request.respond(status, { 'content-type': 'text/plain', 'retry-after': '7' }, `slow down, ${UPSTREAM_KEY} `);
    t.match(await refusal, { status: seen, body, ...(status === 429 && { headers: { 'retry-after': '7' } }) });
    t.match(await gateway.ended(), { outcome, status: seen, attempts: 1 });
  }
  t.equal(await active(gateway), 0);
  t.equal((await gateway.metrics()).value('sluicegate_upstream_connections', { state: 'idle' }), 0, 'each was closed');
});

t.test('B1 B2 B3 an upstream that cannot be reached, or does not answer, in time', async (t) => {
  const away = await startTestGateway(t, 'http://127.0.0.1:1/v1');
  t.match(await refusedSession(away), { status: 502, body: /upstream_unreachable/ });
  t.match(await away.ended(), { outcome: 'upstream_unreachable', cause: 'ECONNREFUSED' });

  const mute = await startUpstream({ accept: false });
  t.teardown(() => mute.close());
  const timeouts = { connect: '100ms', firstByte: '100ms' };
  const connecting = await startTestGateway(t, mute.url.replace('http:', 'https:'), { upstream: { timeouts } });
  t.match(await refusedSession(connecting), { status: 504, body: /upstream_timeout/ });
  t.match(await connecting.ended(), { outcome: 'timeout_connect' });
  const waiting = await startTestGateway(t, mute.url, { upstream: { timeouts } });
  t.match(await refusedSession(waiting), { status: 504, body: /upstream_timeout/ });
  t.match(await waiting.ended(), { outcome: 'timeout_first_byte' });
  for (const connection of mute.connections) await connection.closed;
});

t.test('A4 A5 A3 A1 A6 the client leaves, in every phase: its upstream is free at once', async (t) => {
  for (const how of ['reset', 'end'] as const) {
    const upstream = await startUpstream();
    const mute = await startUpstream({ accept: false });
    t.teardown(() => Promise.all([upstream.close(), mute.close()]));
    const phases: Record<string, [url: string, expected: string, arrange: (client: Awaited<ReturnType<typeof connect>>) => Promise<void>]> =
      {
        connecting: [mute.url.replace('http:', 'https:'), 'connect', async () => (await mute.connection()).received(1)],
        'awaiting the 101': [upstream.url, 'headers', async () => void (await upstream.request())],
        open: [
          upstream.url,
          'stream',
          async (client) => {
            (await upstream.request()).connection.write(SWITCHING);
            t.equal((await client.head()).status, 101);
          },
        ],
      };
    for (const [name, [url, expected, arrange]] of Object.entries(phases)) {
      const gateway = await startTestGateway(t, url);
      const client = await connect(gateway.port);
      client.send(handshake('/v1/realtime?model=m'));
      await arrange(client);
      const connection = (url === upstream.url ? upstream : mute).connections.at(-1)!;
      const leftAtMs = performance.now();
      if (how === 'reset') client.reset();
      else client.end();
      const { at } = await connection.closed;
      t.ok(at - leftAtMs < BOUND_MS, `${name}, ${how}: closed after ${at - leftAtMs} ms`);
      t.match(await gateway.ended(), { outcome: 'client_closed', phase: expected, attempts: 1 }, name);
      const metrics = await gateway.metrics();
      t.equal(metrics.value('sluicegate_upstream_close_seconds_count', { phase: expected }), 1, name);
      t.equal(metrics.value('sluicegate_upstream_connections', { state: 'active' }), 0, name);
      await client.closed;
    }
  }
});

t.test('A4 a session counts as a connection until it ends; who waits for one may leave, and one is served next', async (t) => {
  const scene = await start(t, { upstream: { maxConnections: 1, timeouts: { connect: '200ms' } } });
  const { client, session } = await open(t, scene);
  t.equal(await active(scene.gateway), 1);
  const leaver = await connect(scene.gateway.port);
  leaver.send(handshake('/v1/realtime?model=m'));
  t.match(await refusedSession(scene.gateway), { status: 503, body: /overloaded/ });
  leaver.reset();
  const lines = [await scene.gateway.ended(), await scene.gateway.ended()].map(({ outcome }) => outcome);
  t.ok(lines.includes('rejected'), String(lines));
  const next = open(t, scene);
  client.socket.close();
  await session.closed;
  await next;
  t.equal(await active(scene.gateway), 1);
  t.equal(scene.upstream.requests.length, 2, 'whoever left was never sent');
});

t.test('B16 B18 the upstream breaks off: the client is told and closed at once; inside a frame, only closed', async (t) => {
  for (const how of ['reset', 'end'] as const) {
    const code = how === 'reset' ? 'upstream_reset' : 'upstream_truncated';
    for (const isTorn of [false, true]) {
      const upstream = await startUpstream();
      t.teardown(() => upstream.close());
      const gateway = await startTestGateway(t, upstream.url);
      const client = await connect(gateway.port);
      client.send(handshake('/v1/realtime?model=m'));
      const { connection } = await upstream.request();
      const event = Buffer.from('{"type":"session.created","session":{"model":"gpt-realtime"}}');
      connection.write(
        Buffer.concat([Buffer.from(SWITCHING), Buffer.from([0x81, event.length]), event, ...(isTorn ? [Buffer.from([0x81])] : [])]),
      );
      await client.head();
      await client.until('gpt-realtime"}}');
      if (isTorn) await client.read(1);
      const brokeAtMs = performance.now();
      connection[how]();
      const { at } = await client.closed;
      t.ok(at - brokeAtMs < BOUND_MS, `${at - brokeAtMs} ms`);
      const last = client.raw().toString('latin1');
      if (isTorn) t.ok(last.endsWith('}}\x81'), 'nothing is added');
      else t.match(last, new RegExp(`"type":"error".*"code":"${code}".*\\x88.\\x03\\xf3${code}$`, 's'));
      t.match(await gateway.ended(), { outcome: code, status: 101, bytesOut: event.length + (isTorn ? 3 : 2) });
      if (how === 'end') connection.end();
      await connection.closed;
      t.equal(await active(gateway), 0);
    }
  }
});

t.test('C12 bytes behind the handshake wait for the 101; too many of them are refused; h2c stays an offer', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const client = await connect(gateway.port);
  client.send(`${handshake('/v1/realtime?model=m')}GET /v1/smuggled HTTP/1.1\r\n\r\n`);
  const request = await upstream.request();
  client.send('and more');
  const probe = await connect(gateway.port);
  probe.request({ target: '/healthz' });
  await probe.body();
  t.ok(
    request.connection.bytes.toString().endsWith('\r\n\r\n') && !request.connection.bytes.includes('smuggled'),
    'nothing but the message',
  );
  request.connection.write(`${SWITCHING}welcome`);
  t.equal((await client.head()).status, 101);
  await client.until('welcome');
  t.equal((await request.bodyBytes(37)).toString(), 'GET /v1/smuggled HTTP/1.1\r\n\r\nand more');
  client.reset();
  await gateway.ended();

  const flooding = await connect(gateway.port);
  flooding.send(handshake('/v1/realtime?model=m') + 'x'.repeat(100_000));
  t.equal((await flooding.head()).status, 400);
  t.match(await gateway.ended(), { outcome: 'rejected' });

  const java = await connect(gateway.port);
  const offer = { connection: 'Upgrade, HTTP2-Settings', upgrade: 'h2c', 'http2-settings': 'AAMAAABkAAQAAP__' };
  java.request({ target: '/v1/files', headers: { ...offer, 'content-type': 'text/plain' }, body: 'the body' });
  const plain = await upstream.request();
  t.equal((await plain.body()).toString(), 'the body');
  plain.respond(200, {}, 'yes');
  t.equal((await java.body()).toString(), 'yes');
});

t.test('A11 a handshake behind a request that is under way is refused', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const client = await connect(gateway.port);
  client.send(`GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n${handshake('/v1/realtime?model=m')}`);
  (await upstream.request()).respond(200, {}, '{}');
  t.equal((await client.head()).status, 200);
  await client.body();
  t.equal((await client.head()).status, 400);
  await client.closed;
  t.equal(upstream.requestCount, 1);
});

t.test('a session that an operator ends', async (t) => {
  const scene = await start(t);
  const { gateway } = scene;
  const { client, session } = await open(t, scene);
  const { streams } = (await (await fetch(`${gateway.opsUrl}/api/streams`)).json()) as { streams: { id: string; endpoint: string }[] };
  t.match(streams, [{ endpoint: '/v1/realtime' }]);
  session.socket.send(done(3, 4));
  await client.next();
  const how = { method: 'DELETE', headers: { 'x-sluicegate-action': 'end' } };
  t.equal((await fetch(`${gateway.opsUrl}/api/streams/${streams[0]?.id}`, how)).status, 202);
  t.match(JSON.parse(String(await client.next())), { type: 'error', error: { code: 'ended_by_operator' } });
  t.match(await client.closed, { code: 1008, reason: 'ended_by_operator' });
  await session.closed;
  t.match(await gateway.ended(), { outcome: 'rejected', rejection: 'ended_by_operator', tokens: { input: 3, output: 4 } });
});

t.test('limits: streams, requests, tokens of each response.done, and the budget that cuts', async (t) => {
  const models = [{ match: '*', upstreams: ['main'], price: { input: 1_000_000, output: 1_000_000 } }]; // a dollar a token
  const limits = { requestsPerMinute: 6, tokensPerMinute: 100, concurrentStreams: 1, budget: { usd: 150, per: 'day' }, onExhausted: 'cut' };
  const scene = await start(t, { models, clients: [clientOf(KEY, { limits })] });
  const { gateway } = scene;
  const { client, session } = await open(t, scene, authorized);
  t.match(client.head.headers, { 'x-ratelimit-remaining-requests': '5', 'x-ratelimit-limit-tokens': '100' });
  t.match(await refusedSession(gateway, authorized), { status: 429, body: /"type":"streams"/, headers: { 'retry-after': String } });
  t.equal((await gateway.ended()).rejection, 'rate_limit_exceeded_streams');

  const left = async (limit: string) => (await gateway.metrics()).value('sluicegate_limit_remaining', { client: 'team', limit });
  session.socket.send(done(30, 10));
  session.socket.send(done(5, 15));
  await eventually('it is debited while it runs', async () => (await left('tokens')) === 40);
  t.equal(await left('budget'), 90);
  client.socket.close();
  await client.closed;
  t.match(await gateway.ended(), { costUsd: 60, tokens: { input: 35, output: 25, inputSource: 'reported', outputSource: 'reported' } });
  t.equal(await left('tokens'), 40);

  const second = await open(t, scene, authorized);
  second.session.socket.send(done(50, 50));
  t.match(JSON.parse(String(await second.client.next())), { type: 'response.done' });
  t.match(JSON.parse(String(await second.client.next())), { type: 'error', error: { code: 'insufficient_quota' } });
  t.match(await second.client.closed, { code: 1008, reason: 'insufficient_quota' });
  await second.session.closed;
  t.match(await gateway.ended(), { outcome: 'rejected', rejection: 'insufficient_quota', tokens: { input: 50, output: 50 } });
  t.match(await refusedSession(gateway, authorized), { status: 429 });
  const metrics = await gateway.metrics();
  t.equal(metrics.value('sluicegate_tokens_total', { client: 'team', model: '*', kind: 'output', source: 'reported' }), 75);
  t.equal(metrics.value('sluicegate_relayed_events_total', { upstream: 'main' }), 3);
});

t.test('a response that was under way is counted; without a table of models, the session names its own', async (t) => {
  const scene = await start(t);
  const { client, session } = await open(t, scene);
  session.socket.send(JSON.stringify({ type: 'session.created', session: { model: 'gpt-realtime-2' } }));
  session.socket.send(delta('One two three'));
  await client.next();
  await client.next();
  t.equal((await scene.gateway.metrics()).value('sluicegate_streams_active', { upstream: 'main' }), 1);
  client.socket.terminate();
  t.match(await scene.gateway.ended(), {
    outcome: 'client_closed',
    model: 'gpt-realtime-2',
    tokens: { output: 3, outputSource: 'counted' },
  });
  const metrics = await scene.gateway.metrics();
  t.equal(metrics.value('sluicegate_requests_total', { endpoint: '/v1/realtime', outcome: 'client_closed', model: 'gpt-realtime-2' }), 1);
  t.equal(metrics.value('sluicegate_responses_total', { status: '101' }), 1);
  t.equal(metrics.value('sluicegate_streams_active') ?? 0, 0);
});

t.test('A9 a session longer than total ends with 1001, and says why', async (t) => {
  const scene = await start(t, { upstream: { timeouts: { total: '300ms' } } });
  const { client, session } = await open(t, scene);
  session.socket.send(delta('x'));
  await client.next();
  t.match(JSON.parse(String(await client.next())), { type: 'error', error: { code: 'upstream_total_timeout' } });
  t.match(await client.closed, { code: 1001, reason: 'upstream_total_timeout' });
  await session.closed;
  t.match(await scene.gateway.ended(), { outcome: 'timeout_total' });
});

t.test('F1 F2 a drain: a session may end by itself, then it is closed with 1012; whoever does not read holds up nothing', async (t) => {
  const patient = await start(t, { server: { drain: '10s' } });
  const one = await open(t, patient);
  const drained = patient.gateway.drain();
  await eventually('it drains', async () => !(await fetch(`${patient.gateway.opsUrl}/readyz`)).ok);
  one.session.socket.send('still here');
  t.equal(String(await one.client.next()), 'still here');
  one.client.socket.close();
  await drained;
  t.equal((await patient.gateway.ended()).outcome, 'completed');

  const hasty = await start(t, { server: { drain: '50ms' } });
  const two = await open(t, hasty);
  const mute = await open(t, hasty);
  mute.client.socket.pause();
  const flood = setInterval(() => mute.session.socket.bufferedAmount < 1e6 && mute.session.socket.send(Buffer.alloc(500_000)), 5);
  t.teardown(() => clearInterval(flood));
  const relayed = async () => (await hasty.gateway.metrics()).value('sluicegate_relayed_bytes_total', { direction: 'out' }) ?? 0;
  await eventually('its buffers fill', async () => (await relayed()) > 1e6);
  const beganAtMs = performance.now();
  await hasty.gateway.drain();
  t.ok(performance.now() - beganAtMs < 2000, `drained in ${performance.now() - beganAtMs} ms`);
  t.match(await two.client.closed, { code: 1012, reason: 'draining' });
  await two.session.closed;
  await mute.session.closed;
  for (const _ of ['two', 'mute']) t.equal((await hasty.gateway.ended()).outcome, 'drained');
});

t.test('A7 A10 E5 back-pressure both ways: little is held, all arrives, and who takes nothing for too long is closed', async (t) => {
  const scene = await start(t, { server: { clientStall: '500ms' }, upstream: { timeouts: { idle: '500ms' } } });
  const messages = 400;
  const message = Buffer.alloc(100_000, 'm');
  const sent = async (socket: import('ws').WebSocket) => {
    for (let last = -1; last !== socket.bufferedAmount; await delayFor(50)) last = socket.bufferedAmount;
    return messages * message.length - socket.bufferedAmount;
  };
  for (const direction of ['down', 'up'] as const) {
    const { client, session } = await open(t, scene);
    const [from, to] = direction === 'down' ? [session, client] : [client, session];
    to.socket.pause();
    for (let n = 0; n < messages; n++) from.socket.send(message);
    const way = direction === 'down' ? 'out' : 'in';
    const before = (await scene.gateway.metrics()).value('sluicegate_relayed_bytes_total', { direction: way }) ?? 0;
    t.ok((await sent(from.socket)) < messages * message.length, 'the sender is held back');
    const relayed = ((await scene.gateway.metrics()).value('sluicegate_relayed_bytes_total', { direction: way }) ?? 0) - before;
    t.ok(relayed < 12_000_000, `${direction}: ${relayed} bytes relayed, nearly all of them held by the kernel`);
    to.socket.resume();
    for (let n = 0; n < messages; n++) if (!(await to.next()).equals(message)) t.fail(`message ${n}`);
    t.pass('all has arrived');
    client.socket.close();
    t.equal((await scene.gateway.ended()).outcome, 'completed');
  }

  const stalled = await open(t, scene);
  stalled.client.socket.pause();
  for (let n = 0; n < messages; n++) stalled.session.socket.send(message);
  await stalled.session.closed;
  t.match(await scene.gateway.ended(), { outcome: 'client_stalled', phase: 'backpressure' });

  const deaf = await open(t, scene);
  deaf.session.socket.pause();
  for (let n = 0; n < messages; n++) deaf.client.socket.send(message);
  t.match(await deaf.client.closed, { code: 1011, reason: 'upstream_idle_timeout' });
  t.equal((await scene.gateway.ended()).outcome, 'timeout_idle');
});

t.test('F9 frames that are none: the bytes go through, the meter is off, and the fault is counted', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const client = connectTcp(gateway.port, '127.0.0.1');
  client.write(handshake('/v1/realtime?model=m'));
  const { connection } = await upstream.request();
  connection.write(`${SWITCHING}\xff\xff this is no frame at all`);
  let heard = '';
  for await (const chunk of client) {
    heard += chunk;
    if (heard.endsWith('no frame at all')) break;
  }
  client.destroy();
  t.match(await gateway.ended(), { outcome: 'client_closed', tokens: undefined });
  t.equal((await gateway.metrics()).value('sluicegate_meter_faults_total', { fault: 'framing' }), 1);
});

/** What clients in this process trust. */
const trusted = createCertificate();
setDefaultCACertificates([...getCACertificates('default'), trusted.cert]);

/** TLS before a gateway, which the SDK insists on; its base URL there. */
async function behindTls(t: Test, gateway: TestGateway): Promise<string> {
  const terminator = createTlsServer(trusted, (socket) => {
    const inner = connectTcp(gateway.port, '127.0.0.1');
    socket.pipe(inner).pipe(socket);
    for (const end of [socket, inner]) end.on('error', () => void [socket.destroy(), inner.destroy()]);
  });
  terminator.listen(0, '127.0.0.1');
  await once(terminator, 'listening');
  t.teardown(() => terminator.close());
  return `https://127.0.0.1:${(terminator.address() as AddressInfo).port}`;
}

t.test('the official SDK’s Realtime clients, for Node and for browsers, with an upstream that nobody here wrote', async (t) => {
  const fixtures = [{ match: { userMessage: 'hello' }, response: { content: 'Well met, é.' } }];
  const mock = await createAimock(fixtures, { host: '127.0.0.1', port: 0, chunkSize: 4, auth: { apiKeys: [UPSTREAM_KEY] } });
  t.teardown(() => mock.server.close());
  const gateway = await startTestGateway(t, `${mock.url}/v1`, { clients: [clientOf(KEY, { models: ['gpt-realtime'] })] });
  const openai = new OpenAI({ baseURL: `${await behindTls(t, gateway)}/v1`, apiKey: KEY });
  const clients: Record<string, () => OpenAIRealtimeWS | OpenAIRealtimeWebSocket> = {
    'openai/realtime/ws': () => new OpenAIRealtimeWS({ model: 'gpt-realtime' }, openai),
    'openai/realtime/websocket': () => new OpenAIRealtimeWebSocket({ model: 'gpt-realtime' }, openai),
  };
  for (const [name, connectBy] of Object.entries(clients)) {
    const realtime = connectBy();
    let heard = '';
    const usage = await new Promise<{ input_tokens?: number; output_tokens?: number } | undefined>((resolve, reject) => {
      realtime.on('error', reject);
      realtime.on('session.created', () => {
        realtime.send({ type: 'session.update', session: { type: 'realtime', output_modalities: ['text'] } });
        realtime.send({
          type: 'conversation.item.create',
          item: { type: 'message', role: 'user', content: [{ type: 'input_text', text: 'hello' }] },
        });
        realtime.send({ type: 'response.create' });
      });
      realtime.on('response.output_text.delta', (event) => {
        heard += event.delta;
      });
      realtime.on('response.done', (event) => resolve(event.response.usage));
    });
    realtime.close();
    t.equal(heard, 'Well met, é.', name);
    const line = await gateway.ended();
    t.match(line, { outcome: 'completed', client: 'team', endpoint: '/v1/realtime', model: 'gpt-realtime' }, name);
    t.match(line.tokens, { input: usage?.input_tokens, output: usage?.output_tokens, outputSource: 'reported' }, JSON.stringify(usage));
  }
  const refused = new OpenAIRealtimeWS({ model: 'gpt-4o' }, openai);
  const failure = await new Promise<Error>((resolve) => refused.on('error', resolve));
  t.match(failure.message, /403/);
});

t.test('the official SDK’s client for Azure', async (t) => {
  const scene = await start(t, { upstream: { auth: 'api-key' }, clients: [clientOf(KEY, { models: ['voice'] })] });
  const azure = new AzureOpenAI({ endpoint: await behindTls(t, scene.gateway), apiKey: KEY, apiVersion: '2026-01-01' });
  const realtime = await OpenAIRealtimeWS.azure(azure, { deploymentName: 'voice' });
  const [session] = await Promise.all([scene.upstream.session(), once(realtime.socket, 'open')]);
  const [{ url, headers } = {}] = scene.upstream.requests;
  t.match([url, headers?.['api-key']], ['/openai/v1/realtime?model=voice', UPSTREAM_KEY]);
  realtime.close();
  t.match(await session.closed, { code: 1000, reason: 'OK' });
  t.match(await scene.gateway.ended(), { outcome: 'completed', endpoint: '/v1/realtime' });
});

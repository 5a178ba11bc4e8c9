// Promise: the live page shows what is under way and nothing that was said, ends a stream truthfully, and obeys no other web page.
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Page } from 'playwright-core';
import t, { type Test } from 'tap';
import { hashKey } from '../../src/http/auth.ts';
import type { View } from '../../src/telemetry/view.ts';
import { createBrowser, skipWithoutChromium } from '../support/chromium.ts';
import { startTestGateway, type TestGateway, UPSTREAM_KEY } from '../support/gateway.ts';
import { type ScriptedUpstream, startUpstream, type UpstreamRequest } from '../support/upstream.ts';
import { connect, type WireClient } from '../support/wire.ts';

const CLIENT_KEY = 'sk-of-the-client';
const OPS_TOKEN = 'ops-secret-0123';
const PROMPT = 'what nobody is to read';
const ANSWER = 'what nobody is to hear';
const ACTION = { 'x-sluicegate-action': 'test' };
const skip = skipWithoutChromium;
const launch = createBrowser(t);
const delta = (content: string) => ({ model: 'model-1', choices: [{ index: 0, delta: { content }, finish_reason: null }] });

interface Scene {
  readonly upstream: ScriptedUpstream;
  readonly gateway: TestGateway;
}

async function start(t: Test, settings: Record<string, object> = {}): Promise<Scene> {
  const upstream = await startUpstream({ waitMs: 10_000 });
  t.teardown(() => upstream.close());
  return { upstream, gateway: await startTestGateway(t, upstream.url, settings) };
}

interface Stream {
  readonly client: WireClient;
  readonly request: UpstreamRequest;
}

/** A stream under way, of which the client has the first event. */
async function openStream({ upstream, gateway }: Scene, headers: Record<string, string> = {}): Promise<Stream> {
  const client = await connect(gateway.port);
  const body = JSON.stringify({ model: 'm', stream: true, messages: [{ role: 'user', content: PROMPT }] });
  client.request({ method: 'POST', target: '/v1/chat/completions', headers, body });
  const request = await upstream.request();
  request.startSse();
  request.event(delta(ANSWER));
  await client.until(ANSWER);
  return { client, request };
}

/** A request as it stands, whatever a browser would make of it. */
async function ask(port: number, method: string, target: string, headers: Record<string, string> = {}) {
  const client = await connect(port);
  client.request({ method, target, headers });
  const head = await client.head();
  const body = (await client.body()).toString();
  client.destroy();
  return { status: head.status, headers: head.headers, body, code: /"code":"(\w+)"/.exec(body)?.[1] };
}

async function look({ gateway }: Scene): Promise<View> {
  return (await (await fetch(`${gateway.opsUrl}/api/streams`)).json()) as View;
}

/** Where no key is asked for, the page looks at once which models there are. */
async function answerModels({ upstream, gateway }: Scene): Promise<void> {
  const request = await upstream.request();
  request.respond(200, { 'content-type': 'application/json' }, '{"object":"list","data":[{"id":"model-1"}]}');
  await gateway.ended();
}

async function openPage(t: Test, url: string): Promise<Page> {
  const context = await (await launch()).newContext();
  const page = await context.newPage();
  t.teardown(() => context.close());
  page.on('pageerror', (error) => t.fail(`the page failed: ${error.message}`));
  page.on('console', (message) => {
    if (/Content Security Policy|Trusted/i.test(message.text())) t.fail(message.text());
  });
  await page.goto(url);
  return page;
}

t.test('what is under way, and how it ended: figures, and no word of what was said', async (t) => {
  const scene = await start(t, { clients: [{ name: 'app', keySha256: hashKey(CLIENT_KEY) }] });
  const { client, request } = await openStream(scene, { authorization: `Bearer ${CLIENT_KEY}`, 'x-request-id': 'call/1?' });
  const before = await look(scene);
  t.match(before, { state: 'ready', workers: 1, streamCount: 1, isKeyNeeded: true, url: scene.gateway.url, recent: [] });
  t.match(before.streams, [
    { requestId: 'call/1?', client: 'app', upstream: 'main', model: 'model-1', endpoint: '/v1/chat/completions', phase: 'stream' },
  ]);
  const [stream] = before.streams;
  t.ok(stream !== undefined && stream.tokens > 0 && stream.tokensPerSecond > 0 && stream.ageMs > 0 && stream.bytesOut > 0);
  t.match(before.upstreams, [{ name: 'main', isUp: true, active: 1 }]);
  request.event({ choices: [], usage: { prompt_tokens: 7, completion_tokens: 5, total_tokens: 12 } });
  request.event('[DONE]');
  request.endChunks();
  await client.body();
  await scene.gateway.ended();
  const after = await look(scene);
  t.match(after, { streamCount: 0, streams: [], totals: { requests: 1, outcomes: { completed: 1 }, inputTokens: 7, outputTokens: 5 } });
  t.match(after.recent, [{ requestId: 'call/1?', client: 'app', outcome: 'completed', status: 200, inputTokens: 7, outputTokens: 5 }]);
  for (const secret of [PROMPT, ANSWER, CLIENT_KEY, UPSTREAM_KEY, scene.upstream.url])
    t.notMatch(JSON.stringify([before, after]), secret, 'neither texts, nor keys, nor an upstream’s address');
});

t.test('what is under way is listed from the oldest on, whoever leaves meanwhile', async (t) => {
  const scene = await start(t);
  const ids = ['a', 'b', 'c', 'd', 'e'];
  const open: Stream[] = [];
  for (const id of ids) open.push(await openStream(scene, { 'x-request-id': id }));
  const listed = async () => (await look(scene)).streams.map(({ requestId }) => requestId);
  t.same(await listed(), ids);
  for (const gone of [0, 1]) {
    open[gone]?.client.destroy();
    await scene.gateway.ended();
    t.same(await listed(), ids.slice(gone + 1));
  }
});

t.test('a stream is ended by whom ops lets in, and by no other web page', async (t) => {
  const scene = await start(t);
  const { gateway } = scene;
  const { client, request } = await openStream(scene);
  const [{ id } = { id: '' }] = (await look(scene)).streams;
  const own = `127.0.0.1:${gateway.opsPort}`;
  const target = `/api/streams/${id}`;
  for (const headers of [
    { host: own },
    { host: own, origin: 'https://evil.example', ...ACTION },
    { host: own, origin: `http://127.0.0.1:${gateway.port}`, ...ACTION },
    { host: own, 'sec-fetch-site': 'cross-site', ...ACTION },
    { host: `rebound.example:${gateway.opsPort}`, ...ACTION },
    { host: `rebound.example`, origin: 'http://rebound.example', ...ACTION },
  ]) {
    t.match(await ask(gateway.opsPort, 'DELETE', target, headers), { status: 403, code: 'forbidden_origin' }, JSON.stringify(headers));
    t.match(await ask(gateway.opsPort, 'GET', '/api/models', headers), { status: 403 }, 'nor is anything spent');
  }
  for (const headers of [{ host: own, origin: 'https://evil.example' }, { host: 'rebound.example' }]) {
    t.match(await ask(gateway.opsPort, 'GET', '/api/streams', headers), { status: 403 });
    t.match(await ask(gateway.opsPort, 'GET', '/', headers), { status: 403 });
  }
  t.match(await ask(gateway.opsPort, 'OPTIONS', target, { host: own, origin: 'https://evil.example' }), {
    status: 404,
    headers: { 'access-control-allow-origin': undefined },
  });
  t.match(await ask(gateway.opsPort, 'DELETE', '/api/streams/none', { host: own, ...ACTION }), { status: 404 });
  request.event(delta('still there'));
  await client.until('still there');

  t.match(await ask(gateway.opsPort, 'DELETE', target, { host: own, origin: `http://${own}`, ...ACTION }), { status: 202 });
  t.match(await client.closed, { isComplete: false });
  t.match(client.raw().toString(), /data: \{"error":\{"message":"[^"]+","type":"server_error","param":null,"code":"ended_by_operator"\}\}/);
  await request.connection.closed;
  t.match(await gateway.ended(), { outcome: 'rejected', rejection: 'ended_by_operator', status: 200 });
  t.match((await look(scene)).recent, [{ outcome: 'rejected', cause: 'ended_by_operator', phase: 'stream' }]);
  t.equal((await gateway.metrics()).value('sluicegate_rejections_total', { reason: 'ended_by_operator' }), 1);
  t.match(await ask(gateway.opsPort, 'DELETE', target, { host: own, ...ACTION }), { status: 404 }, 'once');
});

t.test('an end that comes behind the answer’s last word has ended nothing, and counts as no refusal', async (t) => {
  const scene = await start(t);
  const { gateway } = scene;
  const { client, request } = await openStream(scene);
  const [{ id } = { id: '' }] = (await look(scene)).streams;
  request.event('[DONE]');
  await client.until('[DONE]');
  const own = `127.0.0.1:${gateway.opsPort}`;
  t.match(await ask(gateway.opsPort, 'DELETE', `/api/streams/${id}`, { host: own, ...ACTION }), { status: 202 });
  t.match((await client.body()).toString(), /\[DONE\]\n\n$/, 'whole, with nothing behind its last word');
  t.match(await gateway.ended(), { outcome: 'completed', rejection: undefined });
  t.equal((await gateway.metrics()).value('sluicegate_rejections_total'), undefined);
});

t.test('with a token the page comes without it, and every figure and action only with it', async (t) => {
  const bearer = { authorization: `Bearer ${OPS_TOKEN}` };
  const free = createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => free.once('listening', resolve));
  const listen = `127.0.0.1:${(free.address() as AddressInfo).port}`;
  await new Promise((resolve) => free.close(resolve));
  const apart = await start(t, { ops: { token: OPS_TOKEN } });
  const shared = await start(t, { server: { listen }, ops: { listen, token: OPS_TOKEN } });
  const beyond = await start(t, { ops: { listen: '0.0.0.0:0', token: OPS_TOKEN } });
  for (const { gateway, upstream } of [apart, shared, beyond]) {
    const port = gateway.opsPort;
    const page = await ask(port, 'GET', '/');
    t.match(page, {
      status: 200,
      headers: { 'content-security-policy': /^default-src 'none'; script-src 'self'; .*frame-ancestors 'none'/ },
    });
    t.notMatch(page.body, OPS_TOKEN);
    for (const [method, target] of [
      ...[['GET', '/api/streams'] as const, ['DELETE', '/api/streams/x'] as const],
      ...[['GET', '/api/models'] as const, ['POST', '/api/chat/completions'] as const],
    ]) {
      t.match(await ask(port, method, target, ACTION), { status: 401, code: 'invalid_api_key' }, `${method} ${target}`);
      t.match(await ask(port, method, target, { ...ACTION, authorization: 'Bearer wrong' }), { status: 401 });
    }
    t.match(await ask(port, 'GET', '/api/streams', bearer), { status: 200, headers: { 'cache-control': 'no-store' } });
    t.match(await ask(port, 'DELETE', '/api/streams/x', { ...bearer, ...ACTION }), { status: 404 });
    t.match(await ask(port, 'GET', '/api/streams', { ...bearer, host: 'rebound.example' }), { status: 403 });
    t.equal(upstream.requestCount, 0);
  }
  const open = await start(t, { ops: { listen: '0.0.0.0:0' } });
  for (const target of ['/', '/live/live.js', '/api/streams', '/api/models'])
    t.match(await ask(open.gateway.opsPort, 'GET', target, ACTION), { status: 404 }, `${target}, beyond loopback without a token`);
  t.match(await ask(open.gateway.opsPort, 'GET', '/metrics'), { status: 200 });
});

t.test('a prompt from the page is a client’s call like any other, without the token of ops', async (t) => {
  const clients = [{ name: 'app', keySha256: hashKey(CLIENT_KEY), limits: { requestsPerMinute: 2 } }];
  const scene = await start(t, { clients, ops: { token: OPS_TOKEN } });
  const { gateway, upstream } = scene;
  const call = async (key: string | undefined) => {
    const client = await connect(gateway.opsPort);
    const headers = { ...ACTION, authorization: `Bearer ${OPS_TOKEN}`, ...(key && { 'x-sluicegate-key': key }) };
    client.request({ method: 'POST', target: '/api/chat/completions', headers, body: '{"model":"m","stream":true}' });
    return client;
  };
  for (const key of [undefined, 'sk-unknown', OPS_TOKEN]) {
    t.match(await (await call(key)).head(), { status: 401 });
    t.match(await gateway.ended(), { outcome: 'rejected', rejection: 'invalid_api_key' });
  }
  const client = await call(CLIENT_KEY);
  const request = await upstream.request();
  t.equal(request.target, '/v1/chat/completions');
  t.match(request.headers, { authorization: `Bearer ${UPSTREAM_KEY}` });
  t.notMatch(JSON.stringify(request.headers), new RegExp(`${OPS_TOKEN}|${CLIENT_KEY}|x-sluicegate`));
  request.startSse();
  t.match((await client.head()).headers, { 'x-ratelimit-remaining-requests': '1' });
  request.event(delta('one'));
  await client.until('one');
  client.reset();
  await request.connection.closed;
  t.match(await gateway.ended(), { outcome: 'client_closed', client: 'app', endpoint: '/v1/chat/completions' });
  const second = await call(CLIENT_KEY);
  (await upstream.request()).respond(200, {}, '{}');
  t.equal((await second.head()).status, 200);
  t.equal((await (await call(CLIENT_KEY)).head()).status, 429, 'limits are the client’s');
  t.notMatch(gateway.output, new RegExp(`${OPS_TOKEN}|${CLIENT_KEY}`));
});

t.test('in a browser: a stream comes, is text whatever it is called, and is ended by keyboard', { skip }, async (t) => {
  const scene = await start(t);
  const page = await openPage(t, scene.gateway.opsUrl);
  await answerModels(scene);
  await page.getByText('Nothing is streaming.').waitFor();
  t.match(await page.locator('#curl').textContent(), `curl -N ${scene.gateway.url}/v1/chat/completions`);
  const hostile = '<script>document.title="owned"</script><img/src=x>';
  const { client } = await openStream(scene, { 'x-request-id': hostile });
  const row = page.locator('#streams tbody tr');
  await row.waitFor();
  t.match(await row.textContent(), hostile);
  t.equal(await page.locator('table script, table img').count(), 0);
  t.match(await row.textContent(), /streaming.*anonymous.*model-1.*main · chat\/completions/);
  t.notMatch(await page.content(), ANSWER);
  const button = row.getByRole('button', { name: 'End the stream of anonymous, model-1' });
  await button.focus();
  await page.keyboard.press('Enter');
  await page.getByRole('dialog').waitFor();
  await page.keyboard.press('Escape');
  t.ok(await button.evaluate((node) => node === node.ownerDocument.activeElement), 'the focus is back where it was');
  await page.keyboard.press('Enter');
  await page.getByRole('button', { name: 'End it' }).focus();
  await page.keyboard.press('Enter');
  t.match(await client.closed, { isComplete: false });
  t.match(client.raw().toString(), '"code":"ended_by_operator"');
  const ended = page.locator('#recent tbody tr');
  await ended.filter({ hasText: 'rejected' }).waitFor();
  t.match(await ended.first().textContent(), /rejected.*ended_by_operator/);
  t.equal(await page.title(), 'Sluicegate');
});

t.test('in a browser: names of any kind stay text', { skip }, async (t) => {
  const scene = await start(t);
  const page = await openPage(t, scene.gateway.opsUrl);
  await answerModels(scene);
  const { client } = await openStream(scene);
  const evil = '<img src=x onerror="document.title=1"><script>document.title=2</script>';
  await page.route('**/api/streams', async (route) => {
    const view = (await (await route.fetch()).json()) as View;
    const streams = view.streams.map((stream) => ({ ...stream, client: evil, model: evil, upstream: evil, endpoint: evil, phase: evil }));
    await route.fulfill({ json: { ...view, streams, version: evil, upstreams: [{ ...view.upstreams[0], name: evil }] } });
  });
  await page.getByText(evil).first().waitFor();
  t.ok((await page.getByText(evil).count()) >= 3);
  t.equal(await page.locator('td img, td script, li img, #about img').count(), 0);
  t.equal(await page.title(), '(1) Sluicegate');
  client.destroy();
});

t.test('in a browser: another site can neither read nor end a stream', { skip }, async (t) => {
  const scene = await start(t);
  const { client, request } = await openStream(scene);
  const [{ id } = { id: '' }] = (await look(scene)).streams;
  const server = createServer((_, response) =>
    response.writeHead(200, { 'content-type': 'text/html' }).end('<!doctype html><title>evil</title>'),
  );
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => server.close().closeAllConnections());
  // The same site, and yet another origin, which is the harder one to tell.
  const context = await (await launch()).newContext();
  t.teardown(() => context.close());
  const page = await context.newPage();
  await page.goto(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  const seen = await page.evaluate(
    async ({ url, id }) => {
      const outcome = async (path: string, init: object) => {
        try {
          const response = await fetch(url + path, init);
          return response.type === 'opaque' ? 'opaque' : `read ${response.status}`;
        } catch {
          return 'refused';
        }
      };
      const body = '{"model":"m"}';
      return [
        await outcome('/api/streams', {}),
        await outcome('/api/streams', { mode: 'no-cors' }),
        await outcome(`/api/streams/${id}`, { method: 'DELETE' }),
        await outcome(`/api/streams/${id}`, { method: 'DELETE', headers: { 'x-sluicegate-action': 'x' } }),
        await outcome(`/api/chat/completions`, { method: 'POST', mode: 'no-cors', body }),
        await outcome('/api/models', { mode: 'no-cors' }),
        await outcome('/live/live.js', { mode: 'no-cors' }),
      ];
    },
    { url: scene.gateway.opsUrl, id },
  );
  t.same(seen, ['refused', 'refused', 'refused', 'refused', 'opaque', 'opaque', 'refused'], 'an opaque answer tells a page nothing');
  t.equal(scene.upstream.requestCount, 1, 'nothing was spent');
  request.event(delta('unharmed'));
  await client.until('unharmed');
});

t.test('in a browser: a prompt streams, event by event, with its times', { skip }, async (t) => {
  const scene = await start(t, { clients: [{ name: 'app', keySha256: hashKey(CLIENT_KEY) }] });
  const page = await openPage(t, scene.gateway.opsUrl);
  await page.getByLabel('Client key').fill(CLIENT_KEY);
  const models = page.getByLabel('Model', { exact: true });
  await models.focus();
  await answerModels(scene);
  await page.locator('#try-models option').waitFor({ state: 'attached' });
  await models.fill('model-1');
  await page.getByLabel('Prompt', { exact: true }).fill('Say five words.');
  await page.keyboard.press('Control+Enter');
  const request = await scene.upstream.request();
  t.match(JSON.parse((await request.body()).toString()), { model: 'model-1', stream: true, messages: [{ content: 'Say five words.' }] });
  request.startSse();
  for (let n = 1; n <= 5; n += 1) {
    request.event(delta(`word${n} `));
    await page.locator('#try-answer', { hasText: `word${n}` }).waitFor();
  }
  t.match(await page.locator('#try-state').textContent(), 'Streaming');
  request.event(delta('<b>bold</b>'));
  request.event('[DONE]');
  request.endChunks();
  await page.locator('#try-state', { hasText: 'Complete' }).waitFor();
  t.equal(await page.locator('#try-answer').textContent(), 'word1 word2 word3 word4 word5 <b>bold</b>');
  t.match(await page.locator('#try-tokens').textContent(), '6');
  t.match(await page.locator('#try-ttft').textContent(), /^[\d.]+ m?s$/);
  t.match(await page.locator('#try-rate').textContent(), /^[\d.,K]+$/);

  await page.getByRole('button', { name: 'Send' }).click();
  const broken = await scene.upstream.request();
  broken.startSse();
  broken.event(delta('half'));
  await page.locator('#try-answer', { hasText: 'half' }).waitFor();
  broken.connection.reset();
  await page.locator('#try-state', { hasText: 'upstream_reset' }).waitFor();
});

t.test('in a browser: the token is asked for, kept for the tab, and a gateway that is gone is said to be', { skip }, async (t) => {
  const scene = await start(t, { ops: { token: OPS_TOKEN } });
  const page = await openPage(t, scene.gateway.opsUrl);
  const field = page.getByLabel('Ops token');
  await field.fill('wrong');
  await page.keyboard.press('Enter');
  await page.getByText('That is not the token.').waitFor();
  await field.fill(OPS_TOKEN);
  await page.keyboard.press('Enter');
  await page.getByText('Nothing is streaming.').waitFor();
  await page.reload();
  await page.getByText('Nothing is streaming.').waitFor();
  t.same(await page.evaluate('[localStorage.length, document.cookie, sessionStorage.length]'), [0, '', 1]);
  t.notMatch(page.url(), OPS_TOKEN);
  await scene.gateway.close();
  await page.getByText('The gateway does not answer').waitFor();
  await page.getByText(/figures are \d+ s old/).waitFor();
  t.ok(await page.getByText('Nothing is streaming.').isVisible(), 'what was seen last stays, marked as old');
});

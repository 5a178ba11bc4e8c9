// Promise: a web page reads streams through Sluicegate as they come, if its origin is allowed, and can do nothing at all if it is not.
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Page } from 'playwright-core';
import t, { type Test } from 'tap';
import { hashKey } from '../../src/http/auth.ts';
import { createBrowser, skipWithoutChromium } from '../support/chromium.ts';
import { startTestGateway, UPSTREAM_KEY } from '../support/gateway.ts';
import { startUpstream } from '../support/upstream.ts';
import { createWaiting } from '../support/waiting.ts';

/** What pages find in their global scope. */
interface PageScope {
  report(text: string): Promise<void>;
  leave(): void;
}

const CLIENT_KEY = 'sk-of-the-page';
const skip = skipWithoutChromium;
const launch = createBrowser(t);
const allowed = await serveEmptyPage();
const denied = await serveEmptyPage();

/** An origin of its own, with an empty page. */
async function serveEmptyPage(): Promise<string> {
  const server = createServer((_, response) =>
    response.writeHead(200, { 'content-type': 'text/html' }).end('<!doctype html><title>app</title>'),
  );
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    server.close();
    server.closeAllConnections();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

async function openPage(t: Test, origin: string): Promise<{ page: Page; heard(text: string): Promise<true> }> {
  const page = await (await launch()).newPage();
  t.teardown(() => page.close());
  const waiting = createWaiting(10_000);
  const reports: string[] = [];
  await page.exposeFunction('report', (text: string) => {
    reports.push(text);
    waiting.changed();
  });
  await page.goto(origin);
  const heard = (text: string) => {
    const attempt = () => reports.some((report) => report.includes(text)) || undefined;
    return waiting.wait({ awaited: `the page to report ${text}`, seen: () => reports.join(' | '), attempt });
  };
  return { page, heard };
}

/** Runs in the page: a chat stream by `fetch`, every piece reported; `leave()` aborts it. Returns what a page can tell of its end. */
async function streamByFetch({ url, key }: { url: string; key: string }) {
  const { report } = globalThis as unknown as PageScope;
  const controller = new AbortController();
  Object.assign(globalThis, { leave: () => controller.abort() });
  const headers = { authorization: `Bearer ${key}`, 'content-type': 'application/json' };
  const body = '{"model":"m","stream":true}';
  let text = '';
  try {
    const response = await fetch(`${url}/chat/completions`, { method: 'POST', headers, body, signal: controller.signal });
    const decoder = new TextDecoder();
    const reader = response.body?.getReader();
    for (let next = await reader?.read(); next && !next.done; next = await reader?.read()) {
      const piece = decoder.decode(next.value, { stream: true });
      text += piece;
      await report(piece);
    }
    return { text, status: response.status, requestId: response.headers.get('x-request-id'), type: response.headers.get('content-type') };
  } catch (error) {
    return { text, failed: (error as Error).name };
  }
}

/** Runs in the page: an `EventSource` whose events are reported, each with its id; `leave()` closes it. */
function openEventSource(url: string) {
  const scope = globalThis as unknown as PageScope;
  const source = new (globalThis as unknown as { EventSource: new (url: string) => EventTarget & { close(): void } }).EventSource(url);
  scope.leave = () => source.close();
  source.addEventListener('open', () => scope.report('opened'));
  source.addEventListener('error', () => scope.report('refused'));
  source.addEventListener('response.output_text.delta', (event) => {
    const { data, lastEventId } = event as MessageEvent;
    void scope.report(`${lastEventId}: ${data}`);
  });
}

const leave = (page: Page) => page.evaluate(() => (globalThis as unknown as PageScope).leave());
const delta = (content: string) => ({ choices: [{ index: 0, delta: { content }, finish_reason: null }] });

async function startWay(t: Test, settings: Record<string, object>) {
  const upstream = await startUpstream({ waitMs: 10_000 });
  t.teardown(() => upstream.close());
  return { upstream, gateway: await startTestGateway(t, upstream.url, { server: { cors: { origins: [allowed] } }, ...settings }) };
}
const withKey = { clients: [{ name: 'page', keySha256: hashKey(CLIENT_KEY) }] };

t.test('fetch: event n + 1 is withheld until the page has event n, through all 20', { skip }, async (t) => {
  const { upstream, gateway } = await startWay(t, withKey);
  const { page, heard } = await openPage(t, allowed);
  const reading = page.evaluate(streamByFetch, { url: gateway.baseUrl, key: CLIENT_KEY });
  const request = await upstream.request();
  t.match(request.headers, { authorization: `Bearer ${UPSTREAM_KEY}`, origin: undefined, referer: undefined });
  request.startSse({ 'x-request-id': 'req_browser', 'access-control-allow-origin': 'https://elsewhere.example' });
  for (let n = 1; n <= 20; n += 1) {
    request.event(delta(`token ${n};`));
    t.ok(await heard(`token ${n};`), `token ${n} is in the page`);
  }
  request.event('[DONE]');
  request.endChunks();
  const seen = await reading;
  t.match(seen, { status: 200, requestId: 'req_browser', type: 'text/event-stream; charset=utf-8' });
  t.equal(seen.text.match(/^data: /gm)?.length, 21);
  t.match(await gateway.ended(), { outcome: 'completed', client: 'page' });
});

t.test('fetch: an AbortController closes the upstream', { skip }, async (t) => {
  const { upstream, gateway } = await startWay(t, withKey);
  const { page, heard } = await openPage(t, allowed);
  const reading = page.evaluate(streamByFetch, { url: gateway.baseUrl, key: CLIENT_KEY });
  const request = await upstream.request();
  request.startSse();
  request.event(delta('one;'));
  await heard('one;');
  await leave(page);
  await request.connection.closed;
  t.match(await reading, { failed: 'AbortError' });
  t.match(await gateway.ended(), { outcome: 'client_closed', phase: 'stream' });
});

t.test('fetch: a stream that breaks ends with the error event, and not like a whole one', { skip }, async (t) => {
  const { upstream, gateway } = await startWay(t, withKey);
  const { page, heard } = await openPage(t, allowed);
  const reading = page.evaluate(streamByFetch, { url: gateway.baseUrl, key: CLIENT_KEY });
  const request = await upstream.request();
  request.startSse();
  request.event(delta('one;'));
  await heard('one;');
  request.connection.reset();
  const seen = await reading;
  t.match(seen, { failed: 'TypeError', text: /"code":"upstream_reset"/ });
  t.equal((await gateway.ended()).outcome, 'upstream_reset');
});

t.test('EventSource from another origin: every event and id as it comes, and leaving closes the upstream', { skip }, async (t) => {
  const { upstream, gateway } = await startWay(t, {});
  const { page, heard } = await openPage(t, allowed);
  await page.evaluate(openEventSource, `${gateway.baseUrl}/responses/resp_1?stream=true`);
  const request = await upstream.request();
  t.equal(request.target, '/v1/responses/resp_1?stream=true');
  request.startSse();
  await heard('opened');
  for (let n = 1; n <= 10; n += 1) {
    request.chunk(`event: response.output_text.delta\nid: ${n}\ndata: {"type":"response.output_text.delta","delta":"word"}\n\n`);
    t.ok(await heard(`${n}: {"type"`), `event ${n} is in the page`);
  }
  await leave(page);
  await request.connection.closed;
  t.equal((await gateway.ended()).outcome, 'client_closed');
});

t.test('a page from an origin that is not allowed reads nothing and spends nothing', { skip }, async (t) => {
  const keyed = await startWay(t, withKey);
  const open = await startWay(t, {});
  const { page, heard } = await openPage(t, denied);
  const failed = { failed: 'TypeError', text: '' };
  t.match(await page.evaluate(streamByFetch, { url: keyed.gateway.baseUrl, key: CLIENT_KEY }), failed, 'even with a key');
  t.match(await page.evaluate(streamByFetch, { url: open.gateway.baseUrl, key: 'none' }), failed);
  await page.evaluate(openEventSource, `${open.gateway.baseUrl}/responses/resp_1?stream=true`);
  await heard('refused');

  // No preflight: the browser sends this one whatever the answer will be.
  const kind = await page.evaluate(async (url) => {
    const response = await fetch(`${url}/chat/completions`, { method: 'POST', mode: 'no-cors', body: '{"model":"m","stream":true}' });
    return response.type;
  }, open.gateway.baseUrl);
  t.equal(kind, 'opaque');
  let line = await open.gateway.ended();
  while (line.method !== 'POST') line = await open.gateway.ended();
  t.match(line, { status: 403, outcome: 'rejected', endpoint: '/v1/chat/completions' });
  t.equal(keyed.upstream.requestCount + open.upstream.requestCount, 0, 'no upstream saw anything');
});

// The way up and back: targets, headers, the mask over the key.
import t from 'tap';
import type { Upstream } from '../../src/config.ts';
import { headerValue, isKeyInjected, requestHeaders, responseHead } from '../../src/upstream/headers.ts';
import { createKeyMask } from '../../src/upstream/mask.ts';
import { judgeTarget, upstreamPath } from '../../src/upstream/target.ts';
import { createRandom } from '../support/random.ts';

const upstream: Upstream = {
  name: 'main',
  baseUrl: 'https://api.example/v1',
  apiKeys: ['sk-secret'],
  apiKeyFile: undefined,
  auth: 'bearer',
  headers: {},
  query: {},
  usage: 'asSent',
  onClientGone: undefined,
  endpoints: [],
  ca: undefined,
  certificate: undefined,
  proxy: undefined,
  http2: false,
  eject: undefined,
  maxConnections: 10,
  timeouts: { connectMs: 1, firstByteMs: 1, idleMs: 1, totalMs: 1 },
};

t.test('what is plain goes on byte for byte', async (t) => {
  const cases: [raw: string, expected: string][] = [
    ['/v1', '/base'],
    ['/v1/', '/base/'],
    ['/v1?a', '/base?a'],
    ['/v1/models', '/base/models'],
    ['/v1/models/ft%3Agpt-4o%3Aorg?limit=%20&&x=a+b', '/base/models/ft%3Agpt-4o%3Aorg?limit=%20&&x=a+b'],
    ['/v1/models/deepseek/deepseek-r1:free', '/base/models/deepseek/deepseek-r1:free'],
    ['/v1/files/file.v1..2/content', '/base/files/file.v1..2/content'],
    ['/openai/deployments/gpt-4o/chat/completions?api-version=1', '/openai/deployments/gpt-4o/chat/completions?api-version=1'],
    ['/v1/search?q=../..//', '/base/search?q=../..//'],
    ['/v1/%C3%A9%E2%80%8B', '/base/%C3%A9%E2%80%8B'],
  ];
  for (const [raw, expected] of cases) {
    const verdict = judgeTarget(raw);
    t.ok(verdict.ok, raw);
    if (verdict.ok) t.equal(upstreamPath(verdict.target, '/base', {}), expected);
  }
});

t.test('what some server could read otherwise is refused', async (t) => {
  const invalid = [
    '/v1/../x',
    '/v1/..',
    '/v1/.',
    '/v1/%2e%2e/x',
    '/v1/%2E./x',
    '/v1/..%2fx',
    '/v1/..%5cx',
    '/v1/..\\x',
    '/v1/..;/x',
    '/v1/..;a=b/x',
    '/v1/%00',
    '/v1//x',
    '//v1/x',
    '/v1/a%2f%2fb',
    '/v1/%252e%252e/x',
    '/v1/%25252e./x',
    '/v1/%c0%ae%c0%ae/x',
    '/v1/%ff',
    '/v1/%',
    '/v1/%zz',
    '/v1/a b',
    '/v1/a#b',
    '/v1/"',
    '/v1/é',
    'http://evil/v1/x',
    '*',
    'evil:443',
    '',
    '/\\evil/v1',
    '/v1/x?a#b',
    '/v1/x?a b',
  ];
  for (const raw of invalid) t.match(judgeTarget(raw), { ok: false, code: 'invalid_request' }, raw);
  for (const raw of ['/', '/v2/x', '/v1x', '/metrics', '/%76%31/models', '/openaix/y', '/V1/models']) {
    t.match(judgeTarget(raw), { ok: false, code: 'not_found' }, raw);
  }
});

t.test('C8 of 100,000 random targets none leaves the base path', async (t) => {
  const pieces = [
    '/',
    '.',
    '..',
    '%2e',
    '%2E',
    '%2f',
    '%5c',
    '\\',
    ';',
    '%25',
    '%00',
    'a',
    'v1',
    '/v1/',
    '//',
    '?',
    '#',
    '%c0%ae',
    ':',
    '@',
    'http://',
    '%',
    '2e',
    '*',
  ];
  const random = createRandom(42);
  let accepted = 0;
  for (let n = 0; n < 100_000; n++) {
    const raw = `${random(2) ? '/v1/' : ''}${Array.from({ length: random(8) }, () => pieces[random(pieces.length)]).join('')}`;
    const verdict = judgeTarget(raw);
    if (!verdict.ok) continue;
    accepted += 1;
    const sent = upstreamPath(verdict.target, '/base', {});
    // WHATWG URL resolves dot segments in any spelling and takes \ for /: what it makes of the path must be the path.
    let reading = sent;
    for (let depth = 0; depth < 4; depth++) {
      const { pathname, host } = new URL(`http://upstream${reading}`);
      if (host !== 'upstream' || !/^\/(?:base|openai)(?:\/|$)/.test(pathname)) t.fail(`${raw} reads as ${pathname} at ${host}`);
      reading = reading.replace(/%([0-7][0-9a-f])/gi, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
    }
  }
  t.ok(accepted > 1000, `${accepted} were accepted`);
});

t.test('configured query parameters win over the client’s of the same name', async (t) => {
  const target = { path: '/v1/x', query: 'a=1&api-version=old&api%2Dversion=old2&b' };
  t.equal(upstreamPath(target, '', { 'api-version': '2025 01' }), '/x?a=1&b&api-version=2025%2001');
  t.equal(upstreamPath({ path: '/v1', query: undefined }, '', { k: 'v' }), '/?k=v');
});

t.test('the request’s headers: hop-by-hop, browser and credential headers stay behind, the key is put in', async (t) => {
  const client = [
    'Host',
    'gw',
    'Authorization',
    'Bearer client',
    'api-key',
    'c',
    'X-Api-Key',
    'c',
    'Connection',
    'keep-alive, X-Private, Authorization',
    'X-Private',
    '1',
    'TE',
    'trailers',
    'Transfer-Encoding',
    'chunked',
    'Upgrade',
    'h2c',
    'Cookie',
    'a=b',
    'Origin',
    'http://o',
    'Referer',
    'r',
    'Forwarded',
    'for=x',
    'X-Forwarded-For',
    '1.1.1.1',
    'X-Forwarded-Host',
    'evil',
    'Accept-Encoding',
    'gzip',
    'Expect',
    '100-continue',
    'Proxy-Authorization',
    'p',
    'X-Accel-Redirect',
    '/x',
    'x-sluicegate-key',
    'k',
    'OpenAI-Beta',
    'v2',
    'X-Stainless-Lang',
    'js',
    'Content-Type',
    'application/json',
    'traceparent',
    '00-x',
    '__proto__',
    'p',
    'X-Twice',
    '1',
    'X-Twice',
    '2',
  ];
  t.same(requestHeaders(client, upstream, 'sk-secret'), [
    'OpenAI-Beta',
    'v2',
    'X-Stainless-Lang',
    'js',
    'Content-Type',
    'application/json',
    'traceparent',
    '00-x',
    '__proto__',
    'p',
    'X-Twice',
    '1',
    'X-Twice',
    '2',
    'accept-encoding',
    'identity',
    'authorization',
    'Bearer sk-secret',
  ]);
});

t.test('each kind of auth', async (t) => {
  const client = ['Authorization', 'Bearer own', 'X-Api-Key', 'own'];
  const sent = (auth: Upstream['auth'], key: string | undefined) => requestHeaders(client, { ...upstream, auth }, key);
  const plain = ['accept-encoding', 'identity'];
  t.same(sent('bearer', 'k'), [...plain, 'authorization', 'Bearer k']);
  t.same(sent('api-key', 'k'), [...plain, 'api-key', 'k']);
  t.same(sent('x-api-key', 'k'), [...plain, 'x-api-key', 'k']);
  t.same(sent('none', undefined), plain);
  t.same(sent('passthrough', undefined), [...client, ...plain]);
  t.notOk(isKeyInjected({ ...upstream, auth: 'passthrough', apiKeys: [] }));
  t.ok(isKeyInjected(upstream));
  t.same(requestHeaders(['OpenAI-Organization', 'mine'], { ...upstream, headers: { 'openai-organization': 'ours' } }, 'sk-secret'), [
    ...plain,
    'openai-organization',
    'ours',
    'authorization',
    'Bearer sk-secret',
  ]);
});

t.test('the answer’s headers', async (t) => {
  const traits = { status: 200, upstream: 'main', requestId: 'id-1', isCorsOurs: false, own: [] };
  const json = responseHead(
    [
      'Content-Type',
      'application/json',
      'Content-Length',
      '2',
      'Set-Cookie',
      'a',
      'Alt-Svc',
      'h3',
      'Strict-Transport-Security',
      'x',
      'Connection',
      'close, X-Foo',
      'X-Foo',
      '1',
      'Keep-Alive',
      'timeout=5',
      'Proxy-Authenticate',
      'x',
      'Transfer-Encoding',
      'chunked',
      'X-Ratelimit-Remaining',
      '3',
      'Access-Control-Allow-Origin',
      '*',
      'X-Request-Id',
      'theirs',
    ],
    traits,
  );
  t.same(json.headers, [
    'Content-Type',
    'application/json',
    'Content-Length',
    '2',
    'X-Ratelimit-Remaining',
    '3',
    'Access-Control-Allow-Origin',
    '*',
    'X-Request-Id',
    'theirs',
    'x-sluicegate-upstream',
    'main',
  ]);
  t.match(json, { isEventStream: false, isJson: true, isEncoded: false, requestId: 'theirs' });

  const stream = responseHead(
    ['CONTENT-TYPE', 'Text/Event-Stream ; Charset=UTF-8', 'content-length', '9', 'Cache-Control', 'max-age=9', 'content-encoding', 'gzip'],
    traits,
  );
  t.same(stream.headers, [
    'content-encoding',
    'gzip',
    'x-request-id',
    'id-1',
    'x-sluicegate-upstream',
    'main',
    'content-type',
    'Text/Event-Stream ; Charset=UTF-8',
    'cache-control',
    'no-cache, no-transform',
    'x-accel-buffering',
    'no',
  ]);
  t.match(stream, { isEventStream: true, isJson: false, isEncoded: true });

  const own = responseHead(['access-control-allow-origin', '*', 'X-RateLimit-Limit-Requests', '1', 'vary', 'Accept'], {
    ...traits,
    isCorsOurs: true,
    own: ['access-control-allow-origin', 'https://app', 'x-ratelimit-limit-requests', '5', 'vary', 'Origin'],
  });
  t.same(own.headers, [
    'vary',
    'Accept',
    'x-request-id',
    'id-1',
    'x-sluicegate-upstream',
    'main',
    'access-control-allow-origin',
    'https://app',
    'x-ratelimit-limit-requests',
    '5',
    'vary',
    'Origin',
  ]);
  t.equal(headerValue(own.headers, 'vary'), 'Accept');
});

t.test('a quoted key comes back as asterisks, cut wherever it may be, and every other byte as it was', async (t) => {
  const key = 'sk-aXsk-aXb';
  for (const text of [`{"error":"Incorrect key ${key} and ${key}${key}."}`, `${key}`, 'sk-aXsk-aX', `sk-aXsk-aX${key}sk-`, '']) {
    const bytes = Buffer.from(text);
    for (let at = 0; at <= bytes.length; at++) {
      const mask = createKeyMask(key);
      const out = Buffer.concat([mask.next(bytes.subarray(0, at)), mask.next(bytes.subarray(at)), mask.rest()]);
      t.equal(out.toString(), text.replaceAll(key, '*'.repeat(key.length)));
    }
  }
});

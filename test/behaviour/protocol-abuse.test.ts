// Promise: whatever arrives on a client's connection is read in one way or not at all, and what is refused here never goes up.
import { connect as connectSocket } from 'node:net';
import { gzipSync } from 'node:zlib';
import t, { type Test } from 'tap';
import { startTestGateway, type TestGateway, UPSTREAM_KEY } from '../support/gateway.ts';
import { createRandom } from '../support/random.ts';
import { type ScriptedUpstream, startUpstream } from '../support/upstream.ts';
import { connect, type WireClient } from '../support/wire.ts';

interface Bench {
  readonly upstream: ScriptedUpstream;
  readonly gateway: TestGateway;
}

const HOST = 'Host: 127.0.0.1\r\n';
/** Stands behind whatever is refused; nobody may take it for a request. */
const NEXT = `GET /v1/next HTTP/1.1\r\n${HOST}\r\n`;
const get = (target: string, headers = '') => `GET ${target} HTTP/1.1\r\n${HOST}${headers}\r\n`;
const post = (headers: string, body = '') => `POST /v1/files HTTP/1.1\r\n${HOST}${headers}\r\n${body}`;
const chunked = (body: string) => post('Transfer-Encoding: chunked\r\n', body);

async function start(t: Test, settings: Record<string, object> = {}): Promise<Bench> {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  return { upstream, gateway: await startTestGateway(t, upstream.url, settings) };
}

async function connectAndSend(gateway: TestGateway, bytes: string): Promise<WireClient> {
  const client = await connect(gateway.port);
  client.send(Buffer.from(bytes, 'latin1'));
  return client;
}

/** Each is answered with one of these statuses in the error form, and its connection closed; the upstream hears nothing of it nor of what stands behind. */
async function assertRefused(t: Test, cases: Record<string, string>, statuses: readonly number[] = [400]): Promise<void> {
  const { upstream, gateway } = await start(t);
  const refuseOne = async ([name, bytes]: [string, string]) => {
    const client = await connectAndSend(gateway, bytes + NEXT);
    const { status, headers } = await client.head();
    t.ok(statuses.includes(status), `${name}: ${status}`);
    t.equal(headers.connection, 'close', name);
    t.match(JSON.parse((await client.body()).toString()), { error: { type: 'invalid_request_error', param: null } }, name);
    t.match(await client.closed, { how: 'fin', isComplete: true }, `${name}: closed, and not by a reset`);
    t.equal(client.raw().toString().split('HTTP/1.1 ').length, 2, `${name}: one answer`);
  };
  await Promise.all(Object.entries(cases).map(refuseOne));
  t.equal(upstream.connections.length, 0, 'the upstream saw no byte');
  const metrics = await gateway.metrics();
  // What stands behind a refused request counts as one of its own, where the parser has taken it for one.
  t.ok((metrics.value('sluicegate_rejections_total') ?? 0) >= Object.keys(cases).length, 'each is counted');
  const lines = gateway.output.split('\n').filter((line) => line.includes('"outcome":"rejected"')).length;
  t.equal(lines, metrics.value('sluicegate_requests_total') ?? 0, 'a line for each that was a request');
  t.equal(metrics.value('sluicegate_streams_active') ?? 0, 0);
}

/** What a client hears that writes all it has before it reads. */
async function writeThenRead(port: number, pieces: readonly (string | Buffer)[]): Promise<{ text: string; error: unknown }> {
  const socket = connectSocket(port, '127.0.0.1');
  let text = '';
  try {
    for (const piece of pieces)
      await new Promise<void>((resolve, reject) => socket.write(piece, (error) => (error ? reject(error) : resolve())));
    for await (const bytes of socket) text += bytes;
    return { text, error: undefined };
  } catch (error) {
    return { text, error };
  } finally {
    socket.destroy();
  }
}

/** Sends a request whose head the upstream then shows. */
async function forwarded({ upstream, gateway }: Bench, bytes: string) {
  const client = await connectAndSend(gateway, bytes);
  const request = await upstream.request();
  request.respond(200, {}, 'ok');
  const { status, headers } = await client.head();
  return { client, request, status, headers };
}

t.test('C1 two framings, or a transfer coding other than one chunked, are refused', async (t) => {
  const te = (value: string, more = '') => post(`Transfer-Encoding: ${value}\r\n${more}`, '0\r\n\r\n');
  await assertRefused(t, {
    'length and coding': te('chunked', 'Content-Length: 5\r\n'),
    'coding and length': post('Content-Length: 5\r\nTransfer-Encoding: chunked\r\n', '0\r\n\r\n'),
    'coding and no length': te('chunked', 'Content-Length: 0\r\n'),
    xchunked: te('xchunked'),
    'chunked, identity': te('chunked, identity'),
    'identity, chunked': te('identity, chunked'),
    'gzip, chunked': te('gzip, chunked'),
    identity: te('identity'),
    empty: te(''),
    'a parameter': te('chunked;q=1'),
    'a vertical tab': te('\x0bchunked'),
    'a form feed': te('chunked\x0c'),
    'a tab behind': te('chunked \t'),
    doubled: te('chunked', 'Transfer-Encoding: chunked\r\n'),
    'doubled, identity first': te('identity', 'Transfer-Encoding: chunked\r\n'),
    listed: te('chunked, chunked'),
    'HTTP/1.0': te('chunked').replace('HTTP/1.1', 'HTTP/1.0'),
  });
  // Blanks before a value belong to no value (RFC 9110 5.5); what goes up is framed anew.
  const { request } = await forwarded(await start(t), post('Transfer-Encoding: \t chunked \r\n', '2\r\nab\r\n0\r\n\r\n'));
  t.match(request.head, /^transfer-encoding: chunked\r$/im);
});

t.test('C2 a length that is not one plain number is refused', async (t) => {
  const values = ['2, 2', '+2', '-2', '0x2', '', '1 1', '2.0', '2e0', '٢', '99999999999999999999999', '18446744073709551616'];
  const cases = Object.fromEntries(values.map((value) => [`"${value}"`, post(`Content-Length: ${value}\r\n`, 'ab')]));
  await assertRefused(t, {
    ...cases,
    twice: post('Content-Length: 2\r\nContent-Length: 2\r\n', 'ab'),
    'two of them': post('Content-Length: 2\r\nContent-Length: 3\r\n', 'abc'),
  });
  const huge = ['18446744073709551615', '9007199254740993'];
  await assertRefused(t, Object.fromEntries(huge.map((value) => [value, post(`Content-Length: ${value}\r\n`, 'ab')])), [413]);
});

t.test('C3 chunks that are not exactly so are refused, wherever the body has got to', async (t) => {
  await assertRefused(t, {
    'LF everywhere': chunked('2\nab\n0\n\n'),
    'LF behind the size': chunked('2\nab\r\n0\r\n\r\n'),
    'LF behind the chunk': chunked('2\r\nab\n0\r\n\r\n'),
    'LF at the end': chunked('2\r\nab\r\n0\r\n\n'),
    '0x': chunked('0x2\r\nab\r\n0\r\n\r\n'),
    '+': chunked('+2\r\nab\r\n0\r\n\r\n'),
    '-': chunked('-2\r\nab\r\n0\r\n\r\n'),
    'a blank before': chunked(' 2\r\nab\r\n0\r\n\r\n'),
    'a blank behind': chunked('2 \r\nab\r\n0\r\n\r\n'),
    'no size': chunked('\r\nab\r\n0\r\n\r\n'),
    'a size beyond all': chunked('fffffffffffffffff\r\nab\r\n0\r\n\r\n'),
    'LF in an extension': chunked('2;a\nb\r\nab\r\n0\r\n\r\n'),
    'a long extension': chunked(`2;${'a'.repeat(20_000)}\r\nab\r\n0\r\n\r\n`),
    'a bad end': chunked('2\r\nabXX0\r\n\r\n'),
    'longer than its size': chunked('2\r\nabc\r\n0\r\n\r\n'),
    'a length in the trailers': chunked('2\r\nab\r\n0\r\nContent-Length: 5\r\n\r\n'),
  });

  const { upstream, gateway } = await start(t);
  const client = await connectAndSend(gateway, chunked('2\r\nab\r\n'));
  const request = await upstream.request();
  await request.bodyBytes(2);
  client.send(`0x2\r\ncd\r\n0\r\n\r\n${NEXT}`);
  t.equal((await client.head()).status, 400);
  t.match(await client.closed, { how: 'fin', isComplete: true });
  await request.connection.closed;
  const body = request.connection.bytes.toString().split('\r\n\r\n').slice(1).join();
  t.notMatch(body, /^0$|cd/m, 'the upstream was never told that the body was whole');
  t.match(await gateway.ended(), { outcome: 'rejected', rejection: 'invalid_request', status: 400, bytesIn: 2 });
  t.equal(upstream.requestCount, 1);
  t.equal((await gateway.metrics()).value('sluicegate_upstream_connections', { state: 'active' }), 0);
});

t.test('C5 bare CR or LF, NUL, control bytes, folded headers and names that are none are refused', async (t) => {
  const header = (text: string) => get('/v1/models', `${text}\r\n`);
  await assertRefused(t, {
    'bare LF between headers': header('X: a\nY: b'),
    'bare LF everywhere': 'GET /v1/models HTTP/1.1\nHost: 127.0.0.1\n\n',
    'bare LF behind the request line': `GET /v1/models HTTP/1.1\n${HOST}\r\n`,
    'bare LF at the end': `GET /v1/models HTTP/1.1\r\n${HOST}\n`,
    'bare CR between headers': header('X: a\rY: b'),
    'bare CR at the end of a value': header('X: a\r'),
    'NUL in a value': header('X: a\0b'),
    'NUL in a name': header('X\0: a'),
    'NUL in the target': get('/v1/models\0'),
    'an escape in a value': header('X: \x1b[31m'),
    'DEL in a value': header('X: \x7f'),
    folded: header('X: a\r\n b'),
    'folded first': `GET /v1/models HTTP/1.1\r\n X: a\r\n${HOST}\r\n`,
    'folded behind nothing': header('X:\r\n b'),
    'folded coding': post('Transfer-Encoding:\r\n chunked\r\n', '0\r\n\r\n'),
    'a blank before the colon': header('X : a'),
    'an empty name': header(': a'),
    'a name with brackets': header('X(y): a'),
    'a name beyond ASCII': header('X\xe9: a'),
    'no colon': header('Xy'),
    'two hosts': header('Host: 127.0.0.1'),
    'two different hosts': header('Host: evil.example'),
  });
});

t.test('C7 other forms of target, other versions and other protocols are refused', async (t) => {
  await assertRefused(
    t,
    {
      'absolute-form': get('http://127.0.0.1/v1/models'),
      'absolute-form to another': get('http://evil.example/v1/models'),
      'authority-form': get('127.0.0.1:80'),
      CONNECT: `CONNECT evil.example:443 HTTP/1.1\r\n${HOST}\r\n`,
      'CONNECT with a path': `CONNECT /v1/models HTTP/1.1\r\n${HOST}\r\n`,
      TRACE: `TRACE /v1/models HTTP/1.1\r\n${HOST}\r\n`,
      'HTTP/0.9': 'GET /v1/models\r\n\r\n',
      'HTTP/0.9 by name': `GET /v1/models HTTP/0.9\r\n${HOST}\r\n`,
      'HTTP/1.2': `GET /v1/models HTTP/1.2\r\n${HOST}\r\n`,
      'HTTP/2.0': `GET /v1/models HTTP/2.0\r\n${HOST}\r\n`,
      'HTTP/2 preface': 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
      'small letters': `GET /v1/models http/1.1\r\n${HOST}\r\n`,
      'a TLS hello': `\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03${'\x00\xff\n\r'.repeat(50)}`,
      'an unknown method': `GOT /v1/models HTTP/1.1\r\n${HOST}\r\n`,
    },
    [400, 405, 505],
  );
});

t.test('C8 no spelling of a path leaves the base path', async (t) => {
  const dots = ['/..', '/.', '/%2e%2e', '/%2E.', '/..%2f', '/..%5c', '/..\\', '/..;', '/..;a=b', '/%252e%252e', '/%25252e.', '/a/../../..'];
  const others = [
    '//',
    '/%00',
    '/%',
    '/%zz',
    '/a%2f%2fb',
    '/\\',
    '/%ff',
    '/%c0%ae%c0%ae',
    '/%e0%80%ae%e0%80%ae',
    '/%f0%80%80%ae',
    '/%25e0%2580%25ae%25e0%2580%25ae',
  ];
  const deep = `/%${'25'.repeat(7000)}`;
  const paths = [...dots, ...others, deep].map((path) => `/v1${path}/x`);
  await assertRefused(t, Object.fromEntries([...paths, '//v1/x', '/\\evil.example/v1'].map((path) => [path.slice(0, 40), get(path)])));

  const { upstream, gateway } = await start(t);
  let seen: string[] = [];
  const answerAll = async () => {
    for (;;) {
      const request = await upstream.request();
      seen.push(request.target);
      request.respond(204);
    }
  };
  answerAll().catch(() => undefined);
  const random = createRandom(7);
  const pieces = ['/', '.', '..', '%2e', '%2f', '%5c', ';', '%25', 'a', 'v1', '//', '?', ':', '@', '%c3%a9', '*'];
  let accepted = 0;
  for (let n = 0; n < 200; n++) {
    const path = `/v1/a${Array.from({ length: random(5) }, () => pieces[random(pieces.length)]).join('')}`;
    seen = [];
    const client = await connectAndSend(gateway, get(path));
    const { status } = await client.head();
    client.destroy();
    if (status === 204) accepted += 1;
    else t.ok(status === 400 || status === 404, path);
    t.same(seen, status === 204 ? [path] : [], 'byte for byte or not at all');
    for (const target of seen) t.match(new URL(decodeURIComponent(target.split('?')[0] ?? ''), 'http://upstream').pathname, /^\/v1\//);
  }
  t.ok(accepted > 20 && accepted < 200, `${accepted} went up`);
});

t.test('C10 names from Object’s prototype are headers like others; 16 KiB are the bound', async (t) => {
  const bench = await start(t);
  const odd = ['__proto__', 'constructor', 'prototype', 'hasOwnProperty', 'toString'];
  const { request, status } = await forwarded(bench, get('/v1/models', odd.map((name) => `${name}: polluted\r\n`).join('')));
  t.equal(status, 200);
  for (const name of odd)
    t.ok(
      request.rawHeaders.some((field) => field[0] === name && field[1] === 'polluted'),
      name,
    );
  t.equal(Reflect.get({}, 'polluted'), undefined);
  t.equal(typeof {}.toString, 'function');

  const many = await forwarded(bench, get('/v1/models', 'x:\r\n'.repeat(2500)));
  t.equal(many.request.rawHeaders.filter(([name]) => name === 'x').length, 2500, 'none of many is dropped');
  const overhead = get('/v1/models', 'x: \r\n').length;
  const full = await forwarded(bench, get('/v1/models', `x: ${'y'.repeat(16_000 - overhead)}\r\n`));
  t.equal(full.status, 200);
  await assertRefused(t, { 'one byte more': get('/v1/models', `x: ${'y'.repeat(16_385)}\r\n`) }, [431]);
});

t.test('C11 a client’s Connection strips its own headers, never ours', async (t) => {
  const marked = 'Connection: authorization, accept-encoding, x-request-id, x-private, host, content-length\r\n';
  const own = 'x-request-id: mine\r\nx-private: 1\r\nauthorization: Bearer own\r\n';
  const { request, headers } = await forwarded(await start(t), post(`${marked}${own}Content-Length: 2\r\n`, 'ab'));
  t.match(request.headers, { authorization: `Bearer ${UPSTREAM_KEY}`, 'accept-encoding': 'identity', host: /^127/ });
  t.equal(request.headers['x-private'], undefined);
  t.equal(request.headers['x-request-id'], undefined);
  t.equal((await request.body()).toString(), 'ab', 'the body is framed all the same');
  t.ok(headers['x-request-id'], 'the answer has an id');
});

t.test('C12 an upgrade takes no byte beyond its message up; h2c never goes on', async (t) => {
  const upgrade = (name: string, more = '') => get('/v1/realtime', `Connection: Upgrade${more}\r\nUpgrade: ${name}\r\n`);
  await assertRefused(t, { websocket: `${upgrade('websocket')}${get('/v1/smuggled')}` });

  const { upstream, gateway } = await start(t);
  const h2c = get('/v1/models', 'Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n');
  const client = await connectAndSend(gateway, `${h2c}PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n`);
  void upstream.request().then(
    (request) => request.respond(200),
    () => undefined,
  );
  const { status } = await client.closed.then(() => client.head());
  t.ok([200, 400].includes(status), `${status}`);
  for (const { bytes } of upstream.connections) t.notMatch(bytes.toString(), /upgrade|http2-settings|PRI/i);
});

t.test('C15 a content type changes nothing of what goes up', async (t) => {
  const bench = await start(t);
  for (const type of ['application/json\t;\tcharset=x', 'x;;;"', 'APPLICATION/JSON', 'multipart/form-data', undefined]) {
    const line = type === undefined ? '' : `Content-Type: ${type}\r\n`;
    const { client, request, status } = await forwarded(bench, post(`${line}Content-Length: 11\r\n`, '{"model":1}'));
    t.equal(status, 200);
    t.equal(request.headers['content-type'], type);
    t.equal((await request.body()).toString(), '{"model":1}');
    client.destroy();
  }
  const twice = await forwarded(bench, post('Content-Type: a/b\r\nContent-Type: c/d\r\nContent-Length: 0\r\n'));
  t.equal(twice.request.headers['content-type'], 'a/b, c/d', 'both go on: nothing is chosen here');
});

t.test('C16 an encoded body is passed on untouched', async (t) => {
  const bomb = gzipSync(Buffer.alloc(10_000_000));
  const { request } = await forwarded(
    await start(t),
    post(`Content-Encoding: gzip\r\nContent-Length: ${bomb.length}\r\n`, bomb.toString('latin1')),
  );
  t.equal(request.headers['content-encoding'], 'gzip');
  t.ok((await request.body()).equals(bomb));
});

t.test('C18 no text from outside breaks out of its log line or its label', async (t) => {
  const { upstream, gateway } = await start(t);
  const evil = 'gpt\r\n{"level":60}\u001b[31m\u2028\u2029\u009b31m\u0000\u007f';
  const client = await connect(gateway.port);
  const headers = { 'x-request-id': 'caf\xe9 \x9b31m', traceparent: '00-\x9b', 'x-forwarded-for': '\x9b31m', 'user-agent': 'a\x9bb' };
  client.request({ method: 'POST', target: '/v1/chat/completions', headers, body: JSON.stringify({ model: evil, user: evil }) });
  const request = await upstream.request();
  request.startSse({ 'x-request-id': 'id\x9b31m' });
  request.event({ model: evil, choices: [{ index: 0, delta: { content: 'Hi' }, finish_reason: 'stop' }] });
  request.chunk('data: [DONE]\n\n');
  request.endChunks();
  await client.body();
  await gateway.ended();
  const line = gateway.output;
  t.equal(line.split('\n').length, 2, 'one line');
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is looked for
  t.notMatch(line.trimEnd(), /[\u0000-\u001f\u007f-\u009f\u2028\u2029]/, 'no raw control character');
  const metrics = await gateway.metrics();
  t.equal(metrics.value('sluicegate_requests_total', { model: 'other', outcome: 'completed' }), 1);
  t.equal(metrics.value('sluicegate_requests_total'), 1);
});

t.test('C20 the answer to a refused request arrives though the client goes on sending, and nothing behind it is read', async (t) => {
  const { upstream, gateway } = await start(t, { server: { maxRequestBody: 1000 } });
  const rest = Buffer.alloc(24 * 1024 * 1024, NEXT);
  const cases: Record<string, [bytes: string, status: number]> = {
    'announced too large': [post(`Content-Length: ${rest.length}\r\n`), 413],
    'malformed head': [post('Bad Name: x\r\n'), 400],
    'malformed target': [`POST /v1/../x HTTP/1.1\r\n${HOST}Content-Length: ${rest.length}\r\n\r\n`, 400],
    'malformed chunk': [chunked('xx\r\n'), 400],
    'nothing is there': [`POST /v2 HTTP/1.1\r\n${HOST}Content-Length: ${rest.length}\r\n\r\n`, 404],
  };
  const sendAll = async ([name, [head, status]]: [string, [string, number]]) => {
    const { text, error } = await writeThenRead(gateway.port, [head, rest, NEXT]);
    t.equal(error, undefined, `${name}: no reset`);
    t.match(text, new RegExp(`^HTTP/1\\.1 ${status} [^]*"code":"\\w+"}}$`), name);
  };
  await Promise.all(Object.entries(cases).map(sendAll));
  t.equal(upstream.connections.length, 0);

  const streamed = await connectAndSend(gateway, chunked(`3e8\r\n${'x'.repeat(1000)}\r\n`));
  const request = await upstream.request();
  await request.bodyBytes(1000);
  streamed.send(`1000000\r\n`);
  streamed.send(rest.subarray(0, 0x1000000));
  streamed.send(`\r\n0\r\n\r\n${NEXT}`);
  t.equal((await streamed.head()).status, 413);
  await streamed.body();
  t.match(await streamed.closed, { how: 'fin', isComplete: true });
  await request.connection.closed;
  t.equal(upstream.requestCount, 1);

  const kept = await connect(gateway.port);
  for (const _ of [1, 2]) {
    kept.request({ method: 'POST', target: '/v2/nothing', body: 'short' });
    t.equal((await kept.head()).status, 404, 'a short body costs nobody the connection');
    await kept.body();
  }
});

t.test('C21 what speaks of other proxies does not go on', async (t) => {
  const names = [
    'X-Accel-Redirect',
    'X-Accel-Buffering',
    'TE',
    'Proxy-Authorization',
    'Proxy-Connection',
    'Forwarded',
    'X-Forwarded-Host',
    'Via-X',
  ];
  const { request } = await forwarded(await start(t), get('/v1/models', names.map((name) => `${name}: 1\r\n`).join('')));
  t.same(
    request.rawHeaders
      .map(([name]) => name.toLowerCase())
      .filter((name) => !['host', 'connection', 'accept-encoding', 'authorization'].includes(name)),
    ['via-x'],
  );
});

t.test('A12 garbage behind a request in mid-stream puts nothing into the stream', async (t) => {
  const { upstream, gateway } = await start(t);
  const client = await connectAndSend(gateway, post('Content-Length: 0\r\n').replace('/v1/files', '/v1/chat/completions'));
  const request = await upstream.request();
  request.startSse();
  request.event({ choices: [{ index: 0, delta: { content: 'Hello' } }] });
  await client.until('Hello');
  client.send('\x00garbage\r\n\r\n');
  t.match(await client.closed, { isComplete: false });
  await request.connection.closed;
  t.notMatch(client.raw().toString(), /HTTP\/1\.1 400/);
  t.match(await gateway.ended(), { outcome: 'client_closed' });
});

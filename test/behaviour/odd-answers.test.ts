// Promise: whatever is odd about an upstream's answer, the client gets its bytes as they are, and nobody gets anybody else's.
import { randomBytes } from 'node:crypto';
import { brotliCompressSync, createGzip, deflateRawSync, deflateSync, gzipSync, zstdCompressSync } from 'node:zlib';
import t, { type Test } from 'tap';
import { startTestGateway, type TestGateway } from '../support/gateway.ts';
import { type ScriptedUpstream, startUpstream, type UpstreamRequest } from '../support/upstream.ts';
import { connect, type WireClient } from '../support/wire.ts';

interface Scene {
  readonly upstream: ScriptedUpstream;
  readonly gateway: TestGateway;
  readonly client: WireClient;
  readonly request: UpstreamRequest;
}

async function ask(t: Test, target = '/v1/chat/completions', settings: Record<string, object> = {}): Promise<Scene> {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url, settings);
  const client = await connect(gateway.port);
  client.request({ method: 'POST', target, body: '{"stream":true}' });
  return { upstream, gateway, client, request: await upstream.request() };
}

t.test('B7 interim answers stay here, the final one goes down', async (t) => {
  const { client, request, gateway } = await ask(t);
  request.connection.write(
    'HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok',
  );
  t.equal((await client.head()).status, 200);
  t.equal((await client.body()).toString(), 'ok');
  t.match(client.raw().toString(), /^HTTP\/1\.1 200 OK/);
  t.equal((await gateway.ended()).outcome, 'completed');
});

t.test('B14 D12 redirects of every kind are passed on, not followed', async (t) => {
  const elsewhere = await startUpstream();
  t.teardown(() => elsewhere.close());
  for (const status of [301, 302, 303, 307, 308]) {
    const { client, request } = await ask(t);
    request.respond(status, { location: elsewhere.url }, '');
    const head = await client.head();
    t.equal(head.status, status);
    t.equal(head.headers.location, elsewhere.url);
    await client.body();
  }
  t.equal(elsewhere.connections.length, 0, 'the other origin saw nothing');
});

t.test('B15 a stream was asked for and JSON or HTML came: passed on with its own headers', async (t) => {
  for (const type of ['application/json', 'text/html; charset=latin1']) {
    const { client, request } = await ask(t);
    request.respond(200, { 'content-type': type, 'cache-control': 'max-age=1' }, '<ok>');
    const { headers } = await client.head();
    t.equal(headers['content-type'], type);
    t.equal(headers['cache-control'], 'max-age=1');
    t.equal(headers['x-accel-buffering'], undefined);
    t.equal((await client.body()).toString(), '<ok>');
  }
});

t.test('B9 an answer with a transfer coding that would not come off is refused', async (t) => {
  const chunks = '2\r\nok\r\n0\r\n\r\n';
  const head = (codings: string) => `HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n${codings}\r\n`;
  const te = 'Transfer-Encoding: ';
  for (const codings of ['chunked\t', 'gzip, chunked', 'gzip', 'xchunked', 'chunked, chunked', `chunked\r\n${te}chunked`]) {
    const { gateway, client, request } = await ask(t);
    request.connection.write(head(`${te}${codings}\r\n`) + chunks);
    request.connection.end();
    t.equal((await client.head()).status, 502, JSON.stringify(codings));
    t.match((await client.body()).toString(), /"code":"upstream_reset"/);
    t.match(await gateway.ended(), { outcome: 'upstream_reset' });
  }
  for (const codings of ['chunked', ' chunked  ', 'CHUNKED', '\tchunked']) {
    const { client, request } = await ask(t);
    request.connection.write(head(`${te}${codings}\r\n`).replace('event-stream', 'plain') + chunks);
    t.equal((await client.body()).toString(), 'ok', JSON.stringify(codings));
  }
});

t.test('B25 bytes after the final chunk reach nobody, and the connection is not used again', async (t) => {
  const { upstream, gateway, client, request } = await ask(t);
  request.connection.write(
    'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nstolen',
  );
  t.equal((await client.body()).toString(), 'ok');
  await gateway.ended();
  await request.connection.closed;
  client.request({ method: 'GET', target: '/v1/models' });
  const next = await upstream.request();
  t.not(next.connection, request.connection);
  next.respond(200, {}, 'own');
  t.equal((await client.body()).toString(), 'own');
  t.notMatch(client.raw().toString(), 'stolen');
});

t.test('B26 an unsolicited answer on an idle connection: the next client gets its own', async (t) => {
  const { upstream, gateway, client, request } = await ask(t);
  request.respond(200, {}, 'first');
  t.equal((await client.body()).toString(), 'first');
  await gateway.ended();
  request.connection.write('HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nstolen');
  await request.connection.closed;
  client.request({ method: 'GET', target: '/v1/models' });
  (await upstream.request()).respond(200, {}, 'own');
  t.equal((await client.body()).toString(), 'own');
});

t.test('B29 broken JSON, NUL and invalid UTF-8 in events go down as they came, and metering survives', async (t) => {
  const { gateway, client, request } = await ask(t);
  request.startSse();
  const odd = Buffer.concat([
    Buffer.from('data: {"choices":[{"delta":{"content":"a\n\n'),
    Buffer.from([0x64, 0x61, 0x74, 0x61, 0x3a, 0x00, 0xff, 0xfe, 0xc0, 0x0a, 0x0a]),
    Buffer.from('data: [1,2\n\ndata: null\n\ndata: "x"\n\nevent: x\n\n\n\n: c\n\nid: 1\nretry: 2\ndata\n\n'),
  ]);
  request.chunk(odd);
  request.event({ choices: [], usage: { prompt_tokens: 3, completion_tokens: 4, total_tokens: 7 } });
  request.chunk('data: [DONE]\n\n');
  request.endChunks();
  const body = await client.body();
  t.same(body.subarray(0, odd.length), odd);
  t.match(await gateway.ended(), { outcome: 'completed', tokens: { input: 3, output: 4, outputSource: 'reported' } });
});

const said = 'data: {"model":"gpt-4o","choices":[{"index":0,"delta":{"content":"Hello world"}}]}\n\n';
const told = 'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}\n\n';
const codings: [coding: string, compress: (body: string | Buffer) => Buffer][] = [
  ['gzip', gzipSync],
  ['X-GZIP', gzipSync],
  ['deflate', deflateSync],
  ['deflate', deflateRawSync],
  ['br', brotliCompressSync],
  ['zstd', zstdCompressSync],
];

t.test('B31 a body that comes compressed all the same is passed on as it is, and metered on the side', async (t) => {
  for (const [coding, compress] of codings) {
    const { gateway, client, request } = await ask(t);
    const body = compress(`${said}${told}data: [DONE]\n\n`);
    request.startSse({ 'content-encoding': coding });
    request.chunk(body.subarray(0, 10));
    t.same(await client.read(10), body.subarray(0, 10), coding);
    request.chunk(body.subarray(10));
    request.endChunks();
    t.same(await client.body(), body, coding);
    const line = await gateway.ended();
    t.match(line, { outcome: 'completed', model: 'gpt-4o', tokens: { input: 3, output: 4, outputSource: 'reported' } }, coding);
  }
  const { gateway, client, request } = await ask(t);
  const body = gzipSync('{"model":"gpt-4o","usage":{"prompt_tokens":3,"completion_tokens":4}}');
  request.respond(200, { 'content-type': 'application/json', 'content-encoding': 'gzip' }, body);
  t.same(await client.body(), body);
  t.match(await gateway.ended(), { outcome: 'completed', tokens: { input: 3, output: 4, outputSource: 'reported' } }, 'JSON');
});

t.test('B31 a compressed stream that breaks off is cut, whatever was in it, and what came is counted', async (t) => {
  for (const [coding, compress] of codings) {
    const { gateway, client, request } = await ask(t);
    // zstd codes 128 KiB at a time.
    const noise = `: ${randomBytes(400_000).toString('base64')}\n\n`;
    const body = compress(`${said}data: [DONE]\n\n${noise}`);
    request.startSse({ 'content-encoding': coding });
    const half = body.subarray(0, body.length / 2);
    request.chunk(half);
    t.same(await client.read(half.length), half);
    request.connection.reset();
    t.match(await client.closed, { isComplete: false }, coding);
    t.same(client.raw().subarray(-5), Buffer.concat([half, Buffer.from('\r\n')]).subarray(-5), `${coding}: nothing is added to a coding`);
    t.match(await gateway.ended(), { outcome: 'upstream_reset', tokens: { output: 2, outputSource: 'counted' } }, coding);
  }
});

t.test('B31 a compressed stream of nothing but pings is idle, and is cut', async (t) => {
  const { gateway, client, request } = await ask(t, undefined, { upstream: { timeouts: { idle: '200ms' } } });
  const gzip = createGzip();
  const press = async (text: string): Promise<Buffer> => {
    gzip.write(text);
    await new Promise<void>((resolve) => gzip.flush(() => resolve()));
    return gzip.read();
  };
  request.startSse({ 'content-encoding': 'gzip' });
  request.chunk(await press(said));
  let isOver = false;
  const over = client.closed.then(() => {
    isOver = true;
  });
  while (!isOver) {
    const piece = await press(': ping\n\n');
    request.chunk(piece);
    await Promise.race([client.read(piece.length).catch(() => over), over]);
  }
  gzip.destroy();
  t.match(await client.closed, { isComplete: false });
  t.match(await gateway.ended(), { outcome: 'timeout_idle', tokens: { output: 2, outputSource: 'counted' } });
});

t.test('B31 bombs, broken codings and unknown ones are passed on unmetered', async (t) => {
  const zeros = Buffer.concat([Buffer.from(said), Buffer.alloc(40_000_000)]);
  const broken = Buffer.from(gzipSync(said.repeat(100)));
  broken.fill(0xff, 20, 30);
  const cases: [what: string, coding: string, body: Buffer][] = [
    ...codings.map(([coding, compress]): [string, string, Buffer] => [`a bomb of ${coding}`, coding, compress(zeros)]),
    ['broken', 'gzip', broken],
    ['not what it says', 'br', gzipSync(said)],
    ['no coding that is known', 'aws-chunked', Buffer.from(said)],
    ['two codings', 'gzip, br', gzipSync(said)],
  ];
  for (const [what, coding, body] of cases) {
    const { gateway, client, request } = await ask(t);
    request.startSse({ 'content-encoding': coding });
    request.chunk(body);
    request.endChunks();
    t.same(await client.body(), body, what);
    const line = await gateway.ended();
    t.match(line, { outcome: 'completed', bytesOut: body.length }, what);
    t.equal(line.tokens, undefined, `${what}: what cannot be read is not counted as nothing`);
  }
});

t.test('B32 B40 trailers and hop-by-hop headers of an answer end here', async (t) => {
  const { client, request } = await ask(t);
  request.connection.write(
    'HTTP/1.1 200 OK\r\nconnection: x-foo, keep-alive\r\nx-foo: 1\r\nkeep-alive: timeout=1\r\nproxy-authenticate: Basic\r\ntrailer: x-sum\r\nx-bar: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 3\r\n\r\n',
  );
  const { headers } = await client.head();
  t.equal((await client.body()).toString(), 'ok');
  t.equal(headers['x-bar'], '2');
  for (const name of ['x-foo', 'proxy-authenticate', 'trailer', 'x-sum']) t.notOk(name in headers, name);
  t.notMatch(client.raw().toString(), 'x-sum');
  t.not(headers['keep-alive'], 'timeout=1');
});

t.test('B39 an answer that comes after its client has left is dropped', async (t) => {
  const { upstream, gateway, client, request } = await ask(t);
  client.reset();
  t.equal((await gateway.ended()).outcome, 'client_closed');
  request.connection.write('HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate');
  await request.connection.closed;
  const other = await connect(gateway.port);
  other.request({ method: 'GET', target: '/v1/models' });
  (await upstream.request()).respond(200, {}, 'own');
  t.equal((await other.body()).toString(), 'own');
  t.equal((await gateway.metrics()).value('sluicegate_requests_total'), 2);
});

t.test('B30 100,000 chunks of one byte each are as many bytes, in order', async (t) => {
  const { gateway, client, request } = await ask(t);
  request.startSse();
  const text = `data: {"choices":[{"index":0,"delta":{"content":"${'abcdefghij'.repeat(10_000)}"}}]}\n\ndata: [DONE]\n\n`;
  request.connection.write(Array.from(text, (byte) => `1\r\n${byte}\r\n`).join(''));
  request.endChunks();
  t.equal((await client.body()).toString(), text);
  t.match(await gateway.ended(), { outcome: 'completed', bytesOut: text.length });
});

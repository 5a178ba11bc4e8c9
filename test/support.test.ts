// Proves the two ends that every behaviour test stands on: the scripted upstream and the raw client, here without a gateway between.

import { once } from 'node:events';
import { request as httpsRequest } from 'node:https';
import { Counter, Histogram, Registry } from 'prom-client';
import t, { type Test } from 'tap';
import { createMessageReader, frameRequest, frameResponse } from './support/framing.ts';
import { parseMetrics } from './support/metrics.ts';
import { recordedStreams } from './support/streams.ts';
import { createCertificate } from './support/tls.ts';
import { startUpstream, type UpstreamOptions } from './support/upstream.ts';
import { connect, type IncompleteError, type WireClient } from './support/wire.ts';

async function openPair(t: Test, options: UpstreamOptions = {}) {
  const upstream = await startUpstream(options);
  t.teardown(() => upstream.close());
  const client = await connect(upstream.port, '127.0.0.1', options.waitMs);
  t.teardown(() => client.destroy());
  return { upstream, client };
}

const rejection = (promise: Promise<unknown>): Promise<Error> =>
  promise.then(
    () => new Error('it did not reject'),
    (error) => error,
  );

/** What has happened on a connection before this has been seen by both ends. */
async function roundTrip(port: number): Promise<void> {
  const probe = await connect(port);
  probe.destroy();
  await probe.closed;
}

t.test('an event is read before the next one is sent, and the proper end is told from the rest', async (t) => {
  const { upstream, client } = await openPair(t);
  client.request({ target: '/v1/chat/completions?a=%2F', headers: { 'X-One': '1', 'x-one': '2' }, body: '{"stream":true}' });
  const request = await upstream.request();
  t.match(request, { method: 'POST', target: '/v1/chat/completions?a=%2F', headers: { host: `127.0.0.1:${upstream.port}` } });
  t.equal(request.head.split('\r\n')[0], 'POST /v1/chat/completions?a=%2F HTTP/1.1');
  t.same(
    request.rawHeaders.map(([name]) => name),
    ['Host', 'Content-Length', 'X-One', 'x-one'],
  );
  t.equal(String(await request.body()), '{"stream":true}');

  request.startSse({ 'content-type': 'text/event-stream; x=y' });
  t.same((await client.head()).rawHeaders, [
    ['Transfer-Encoding', 'chunked'],
    ['content-type', 'text/event-stream; x=y'],
  ]);
  request.event({ n: 1 });
  t.equal(await client.until('\n\n'), 'data: {"n":1}\n\n');
  request.event('é');
  t.equal(await client.until('é'), 'data: é');
  request.chunk(': x');
  t.equal(String(await client.read(5)), '\n\n: x');
  t.throws(() => request.chunk(''), 'an empty chunk would end the body');
  request.endChunks();
  t.equal(String(await client.body()), 'data: {"n":1}\n\ndata: é\n\n: x', 'whole, whatever was consumed');
  t.match(String(client.raw()), /^HTTP\/1\.1 200 OK\r\n.*\r\n0\r\n\r\n$/s);
  client.end();
  t.equal((await request.connection.closed).how, 'fin');
  request.connection.end();
  t.match(await client.closed, { how: 'fin', isComplete: true });
});

t.test('several requests go over one connection, with and without bodies, and each gets its answer', async (t) => {
  const { upstream, client } = await openPair(t);
  client.request({ chunked: true, body: 'chunked body' });
  const first = await upstream.request();
  t.equal(String(await first.body()), 'chunked body');
  first.respond(
    404,
    [
      ['set-cookie', 'a'],
      ['Set-Cookie', 'b'],
    ],
    'no',
  );
  t.same(await client.head(), {
    status: 404,
    rawHeaders: [
      ['Content-Length', '2'],
      ['set-cookie', 'a'],
      ['Set-Cookie', 'b'],
    ],
    headers: { 'set-cookie': 'a, b', 'content-length': '2' },
  });
  t.equal(String(await client.body()), 'no');

  client.request({ chunked: true, headers: { expect: '100-continue' } });
  const second = await upstream.request();
  second.respond(103, { link: 'x' });
  client.send('3\r\nabc\r\n');
  t.equal(String(await second.bodyBytes(2)), 'ab', 'before the end of the body');
  client.send('0\r\nx-trailer: 1\r\n\r\n');
  t.equal(String(await second.body()), 'abc');
  second.respond(200, {}, 'yes');
  t.equal((await client.head()).status, 103);
  t.equal(String(await client.body()), 'yes', 'an interim answer has no body to wait for');

  for (const [method, status, length] of [
    ['HEAD', 200, '4'],
    ['GET', 204, undefined],
    ['GET', 304, undefined],
  ] as const) {
    client.request({ method });
    const request = await upstream.request();
    request.respond(status, {}, status === 200 ? 'body' : '');
    t.equal((await client.head()).headers['content-length'], length, `${method} ${status}`);
    t.equal((await client.body()).length, 0);
  }
  client.request({ method: 'HEAD' });
  const last = await upstream.request();
  last.respond(103);
  last.respond(200, {}, 'body');
  t.equal((await client.body()).length, 0, 'an interim answer to HEAD leaves the next one an answer to HEAD');
  t.equal(String(client.raw()).split('HTTP/1.1').length - 1, 8, 'body() went on to the next answer by itself');
  t.equal(upstream.requestCount, 6);
  t.equal(upstream.connections.length, 1);
  t.equal(first.connection, upstream.connections[0]);
});

t.test('a tunnel carries bytes both ways after 101', async (t) => {
  const { upstream, client } = await openPair(t);
  client.request({ target: '/v1/realtime', headers: { connection: 'Upgrade', upgrade: 'websocket' } });
  const request = await upstream.request();
  request.respond(101, { connection: 'Upgrade', upgrade: 'websocket' });
  t.equal((await client.head()).status, 101);
  client.send('GET up\r\n\r\n');
  t.equal(String(await request.bodyBytes(10)), 'GET up\r\n\r\n', 'no further request is looked for');
  request.connection.write('down');
  t.equal(String(await client.read(4)), 'down');
  client.end();
  t.equal(String(await request.body()), 'GET up\r\n\r\n');
});

t.test('connections and requests are handed out once and in order, also to those who asked before', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const asked = [upstream.request(), upstream.request()];
  const clients: WireClient[] = [];
  for (const target of ['/1', '/2', '/3']) {
    const client = await connect(upstream.port);
    clients.push(client);
    client.request({ target });
    await (await upstream.connection()).received(20);
  }
  t.same(
    (await Promise.all(asked)).map((request) => request.target),
    ['/1', '/2'],
  );
  t.equal((await upstream.request()).target, '/3');
  t.same(
    upstream.connections.map((connection) => connection.isClosed),
    [false, false, false],
  );
  for (const client of clients) client.destroy();
});

t.test('FIN and RST are told apart on both sides, with their time', async (t) => {
  for (const [leave, how] of [
    ['end', 'fin'],
    ['destroy', 'fin'],
    ['reset', 'reset'],
  ] as const) {
    const { upstream, client } = await openPair(t);
    const connection = await upstream.connection();
    t.equal(connection.isClosed, false);
    const before = performance.now();
    client[leave]();
    const ending = await connection.closed;
    t.equal(ending.how, how, `client: ${leave}`);
    t.ok(ending.at >= before && ending.at <= performance.now() && connection.openedAt <= before);
    t.equal(connection.isClosed, true);
    if (leave !== 'end') continue;
    connection.write('HTTP/1.1 200 OK\r\n\r\nstill here');
    t.equal(String(await client.read(10)), 'still here', 'a FIN is not answered by one');
  }
  for (const [leave, how] of [
    ['end', 'fin'],
    ['reset', 'reset'],
  ] as const) {
    const { upstream, client } = await openPair(t);
    const connection = await upstream.connection();
    connection[leave]();
    t.match(await client.closed, { how, isComplete: false }, `upstream: ${leave}`);
    t.equal((await connection.closed).how, how, 'the client answers a FIN; our own RST is one');
  }
});

t.test('an answer that ends before its framing says so is incomplete, one that lasts until the end is not', async (t) => {
  const head = 'HTTP/1.1 200 OK\r\n';
  for (const [bytes, leave, received] of [
    [`${head}Content-Length: 5\r\n\r\nfour`, 'end', 'four'],
    [`${head}Transfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n`, 'end', 'four'],
    [`${head}Transfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n0\r\n`, 'end', 'four'],
    [`${head}Transfer-Encoding: chunked\r\n\r\n9\r\nfour`, 'end', 'four'],
    [`${head}\r\nfour`, 'reset', 'four'],
  ] as const) {
    const { upstream, client } = await openPair(t);
    const connection = await upstream.connection();
    connection.write(bytes);
    await client.read(4);
    connection[leave]();
    const error = (await rejection(client.body())) as IncompleteError;
    t.equal(error.code, 'incomplete', JSON.stringify(bytes));
    t.equal(String(error.received), received);
    t.match(await client.closed, { isComplete: false });
  }
  const { upstream, client } = await openPair(t);
  const connection = await upstream.connection();
  connection.write(`${head}\r\nfour`);
  connection.end();
  t.equal(String(await client.body()), 'four');
  t.match(await client.closed, { how: 'fin', isComplete: true });
});

t.test('what no gateway may send throws in the test, at the wait and at the end', async (t) => {
  const host = 'Host: a\r\n';
  const post = `POST / HTTP/1.1\r\n${host}`;
  for (const bytes of [
    `GET / HTTP/1.0\r\n${host}\r\n`,
    `GET /a b HTTP/1.1\r\n${host}\r\n`,
    `\r\nGET / HTTP/1.1\r\n${host}\r\n`,
    'GET / HTTP/1.1\r\n\r\n',
    `GET / HTTP/1.1\r\n${host}${host}\r\n`,
    `GET / HTTP/1.1\r\n${host}A : b\r\n\r\n`,
    `GET / HTTP/1.1\r\n${host}A: b\r\n folded\r\n\r\n`,
    `GET / HTTP/1.1\r\n${host}A: b\0\r\n\r\n`,
    `GET / HTTP/1.1\r\n${host}A: b\rc\r\n\r\n`,
    `GET / HTTP/1.1\n${host}\n`,
    `${post}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n`,
    `${post}Content-Length: 1\r\nContent-Length: 1\r\n\r\n`,
    `${post}Content-Length: +1\r\n\r\n`,
    `${post}Transfer-Encoding: gzip, chunked\r\n\r\n`,
    `${post}Transfer-Encoding: chunked\r\n\r\n1;x\r\na\r\n`,
    `${post}Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n`,
    `${post}Transfer-Encoding: chunked\r\n\r\n1\na\r\n`,
    `${post}Content-Length: 1\r\n\r\nabc\n`,
  ]) {
    const upstream = await startUpstream();
    const client = await connect(upstream.port);
    client.send(bytes);
    await (await upstream.connection()).received(bytes.length);
    t.match((await rejection(upstream.request())).message, /^malformed message/, JSON.stringify(bytes));
    t.match((await rejection(upstream.close())).message, /^malformed message/);
    client.destroy();
  }
  const upstream = await startUpstream();
  const client = await connect(upstream.port);
  client.send(`${post}Content-Length: 1\r\n\r\nabc`);
  t.equal(String(await (await upstream.request()).body()), 'a');
  t.match((await rejection(upstream.close())).message, /not a whole request.*abc/, 'bytes behind a body');
  client.destroy();
});

t.test('a malformed answer fails the client’s waits', async (t) => {
  for (const head of [
    'HTTP/2 200 OK',
    'HTTP/1.1 204 No\r\nContent-Length: 0',
    'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3',
  ]) {
    const { upstream, client } = await openPair(t);
    (await upstream.connection()).write(`${head}\r\n\r\n`);
    t.match((await rejection(client.body())).message, /^malformed message/, head);
  }
});

t.test('a message is read the same wherever its bytes are cut', async (t) => {
  const bytes = Buffer.from(
    'POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na\r\n\r\nB\r\n0123456789\n\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n',
  );
  for (let cut = 1; cut < bytes.length; cut++) {
    const heads: string[] = [];
    const reader = createMessageReader(frameRequest, ({ head }) => heads.push(head.startLine));
    for (const piece of [bytes.subarray(0, cut), bytes.subarray(cut)]) reader.push(piece);
    const [first, second] = reader.messages;
    if (String(first?.body.view()) === 'a\r\n0123456789\n' && second?.isComplete && heads.length === 2 && reader.strayBytes === 0) continue;
    t.fail(`cut at ${cut}`);
  }
  const reader = createMessageReader((head) => frameResponse(head, 'GET'));
  for (const byte of Buffer.from('HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc')) reader.push(Buffer.from([byte]));
  t.equal(String(reader.messages[0]?.body.view()), 'abc');
  t.equal(reader.messages[0]?.isComplete, true);
});

t.test('a wait that is not met says what was awaited and what has been seen', async (t) => {
  const { upstream, client } = await openPair(t, { waitMs: 20 });
  client.request({ body: 'half', headers: { 'content-length': '8' } });
  const request = await upstream.request();
  t.match(
    (await rejection(request.body())).message,
    /waited 20 ms for the whole body of POST \/; seen: connection open, 1 message.*half"/s,
  );
  t.match(
    (await rejection(upstream.request())).message,
    /waited 20 ms for a request; seen: 1 connection\(s\) that brought \[\d+\] bytes, 1 request/,
  );
  t.match((await rejection(request.connection.closed)).message, /for the connection to close/);
  request.startSse();
  request.event('one');
  t.match((await rejection(client.until('two'))).message, /waited 20 ms for "two"; seen: .*data: one/s);
  request.endChunks();
  t.match((await rejection(client.until('two'))).message, /the body ended without "two"/);
  client.end();
  t.match((await rejection(request.connection.received(9999))).message, /ended before 9999 bytes/);
  const awaited = rejection(upstream.connection().then(() => upstream.connection()));
  await upstream.close();
  t.match((await awaited).message, /closed while it waited for a connection/);
  t.match((await rejection(connect(upstream.port))).message, /no connection to 127/);
});

t.test('a side that stops reading takes nothing until it goes on', async (t) => {
  const { upstream, client } = await openPair(t);
  const connection = await upstream.connection();
  connection.pauseReading();
  client.send('GET / HTTP/1.1\r\n');
  await roundTrip(upstream.port);
  t.equal(connection.bytes.length, 0);
  connection.resumeReading();
  client.send('Host: a\r\n\r\n');
  const request = await upstream.request();
  client.pause();
  request.respond(200, {}, 'ok');
  await roundTrip(upstream.port);
  t.equal(client.raw().length, 0);
  client.resume();
  t.equal(String(await client.body()), 'ok');
});

t.test('a flood of megabytes arrives whole, both ways', async (t) => {
  const { upstream, client } = await openPair(t);
  const flood = Buffer.alloc(8 << 20, 'abcdefg');
  client.request({ body: flood });
  const request = await upstream.request();
  t.ok((await request.body()).equals(flood));
  request.respond(200, {}, flood);
  t.ok((await client.body()).equals(flood));
});

t.test('over TLS the same, with a certificate that is good or bad in a chosen way', async (t) => {
  const good = createCertificate();
  const past = new Date(Date.now() - 1000);
  const ask = (port: number, ca: string) => {
    const request = httpsRequest({ port, host: '127.0.0.1', ca, agent: false, signal: AbortSignal.timeout(5000) });
    return request.end();
  };
  const upstream = await startUpstream({ tls: good });
  t.teardown(() => upstream.close());
  const asking = ask(upstream.port, good.cert);
  const answered = once(asking, 'response');
  const request = await upstream.request();
  t.match(upstream.url, /^https:/);
  request.respond(200, {}, 'x');
  const [response] = await answered;
  t.equal(response.statusCode, 200);
  response.on('error', () => {}); // told of the same RST
  const broken = once(asking, 'error');
  request.connection.reset();
  t.match((await broken)[0], { code: 'ECONNRESET', message: 'read ECONNRESET' }, 'an RST below the TLS, not an end');
  t.equal((await request.connection.closed).how, 'reset');

  for (const [certificate, code] of [
    [createCertificate({ names: ['other.example', '127.0.0.2'] }), 'ERR_TLS_CERT_ALTNAME_INVALID'],
    [createCertificate({ validFrom: new Date(0), validTo: past }), 'CERT_HAS_EXPIRED'],
  ] as const) {
    const bad = await startUpstream({ tls: certificate });
    t.match(await rejection(once(ask(bad.port, certificate.cert), 'response')), { code });
    t.equal(bad.requestCount, 0);
    await bad.close();
  }
  t.match(await rejection(once(ask(upstream.port, createCertificate().cert), 'response')), { code: /SELF_SIGNED|SIGNATURE/ });
});

t.test('a mute upstream takes a connection and its bytes, and makes neither a handshake nor a request of them', async (t) => {
  const { upstream, client } = await openPair(t, { accept: false, tls: createCertificate() });
  client.request({});
  const connection = await upstream.connection();
  await connection.received(20);
  await roundTrip(upstream.port);
  t.equal(client.raw().length, 0);
  t.match(String(connection.bytes), /^GET \/ HTTP/);
  t.equal(upstream.requestCount, 0);
  client.reset();
  t.equal((await connection.closed).how, 'reset');
});

t.test('metrics are read as prom-client writes them', async (t) => {
  const registry = new Registry();
  const counter = new Counter({ name: 'x_total', help: 'h', labelNames: ['a', 'b'], registers: [registry] });
  counter.inc({ a: 'quo"te\\ {},\n', b: '1' }, 2);
  counter.inc({ a: 'y', b: '1' }, 1.5e21);
  const histogram = new Histogram({ name: 'h_seconds', help: 'h # {', labelNames: ['a'], buckets: [1], registers: [registry] });
  histogram.observe({ a: 'y' }, 3);
  new Counter({ name: 'unused_total', help: 'h', labelNames: ['a'], registers: [registry] });
  const metrics = parseMetrics(await registry.metrics());
  t.equal(metrics.value('x_total', { a: 'quo"te\\ {},\n' }), 2);
  t.equal(metrics.value('x_total', { b: '1' }), 1.5e21 + 2);
  t.equal(metrics.value('x_total', { b: '2' }), undefined);
  t.same(
    metrics.series('h_seconds_bucket').map(({ labels, value }) => [labels.le, value]),
    [
      ['1', 0],
      ['+Inf', 1],
    ],
  );
  t.same([...metrics.names], ['x_total', 'h_seconds', 'unused_total']);

  const open = parseMetrics('# TYPE y counter\ny_total{a="b"} 3 1.5 # {trace_id="x"} 1\nz +Inf\n# EOF\n');
  t.equal(open.value('y_total'), 3);
  t.equal(open.value('z'), Number.POSITIVE_INFINITY);
  t.same([...open.names], ['y', 'z']);
  for (const line of ['x{a=b} 1', 'x', 'x one', 'x{a="b} 1']) t.throws(() => parseMetrics(line), line);
});

const streams = recordedStreams();
t.test(
  'recorded streams have the events and dialects that their index says',
  { skip: streams ? false : 'no recordings beside the repository' },
  async (t) => {
    for (const { file, events, bytes, dialect } of streams ?? []) {
      t.equal(
        String(bytes)
          .split('\n\n')
          .filter((event) => /^(event|data):(?! ?\[DONE\])/m.test(event)).length,
        events,
        file,
      );
      t.ok(['chat', 'completions', 'responses', 'anthropic'].includes(dialect), dialect);
    }
  },
);

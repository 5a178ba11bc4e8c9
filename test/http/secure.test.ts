// The listener under TLS, with short clocks: whoever is slow at any layer is closed, and certificates change under live connections.
import { EventEmitter, once } from 'node:events';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { connect as connectTls } from 'node:tls';
import t, { type Test } from 'tap';
import { createListener, type ListenerClocks } from '../../src/http/listener.ts';
import { changeCertificate } from '../../src/http/secure.ts';
import { connectFrames, connectH2, END_HEADERS, END_STREAM, FRAME, frame, head } from '../support/h2.ts';
import { createCertificate } from '../support/tls.ts';
import { connect } from '../support/wire.ts';

const credentials = createCertificate();

async function listen(t: Test, clocks: ListenerClocks, isLeaving = () => false) {
  const unparsed: string[] = [];
  const app = createListener({
    isTrusted: () => false,
    isLeaving,
    onUnparsed: (reason) => void unparsed.push(reason),
    onFault: (error) => t.fail(error.message),
    spread: (task) => task(),
    clocks,
    credentials,
  });
  app.get('/fast', async () => 'fast\n');
  const arrivals = new EventEmitter();
  app.post('/*', async (request, reply) => {
    reply.hijack();
    arrivals.emit('request', request.raw, reply.raw);
  });
  await app.listen({ port: 0, host: '127.0.0.1' });
  t.teardown(() => {
    app.server.closeAllConnections();
    return app.close();
  });
  return { app, arrivals, server: app.server as Server, port: (app.server.address() as AddressInfo).port, unparsed };
}

const slow: ListenerClocks = { headersMs: 60_000, requestMs: 60_000, checkMs: 20 };
const quick: ListenerClocks = { headersMs: 200, requestMs: 400, checkMs: 20, keepAliveMs: 300 };

t.test('E2 hands that are never shaken, or connections that bring no request, are let go at their limit', async (t) => {
  const { port, unparsed } = await listen(t, quick);
  const began = performance.now();
  const silent = await connect(port);
  const half = await connect(port);
  half.send(Buffer.from([22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]));
  await Promise.all([silent.closed, half.closed]);
  t.same(unparsed, ['request_timeout', 'request_timeout']);
  const shaken = await connectFrames(t, port);
  const http1 = connectTls({ port, host: '127.0.0.1', ca: credentials.cert, ALPNProtocols: ['http/1.1'] });
  t.match(String(await http1.toArray()), /^HTTP\/1\.1 408 /, 'as without TLS');
  t.equal(unparsed.length, 2, 'nothing was asked on it');
  t.equal(await shaken.closed(), 0, 'with a GOAWAY that blames nobody');
  const begun = connectTls({ port, host: '127.0.0.1', ca: credentials.cert, ALPNProtocols: ['http/1.1'] });
  begun.write('POST ');
  t.match(String(await begun.toArray()), /^HTTP\/1\.1 408 /);
  t.equal(unparsed.length, 3, 'on this one something was');
  const opened = await connectFrames(t, port);
  // A head that never ends.
  opened.send(frame(FRAME.headers, 0, 1, head('GET', '/fast')));
  await opened.closed();
  t.ok(performance.now() - began < 3000);
});

t.test('an idle connection is kept for a while, and one with a live stream as long as that takes', async (t) => {
  const { app, port } = await listen(t, { ...quick, headersMs: 100 });
  const idle = await connectH2(t, port, credentials.cert);
  t.equal(await idle.call({ ':path': '/fast' }).body(), 'fast\n');
  const servedAtMs = performance.now();
  const busy = await connectH2(t, port, credentials.cert);
  busy.call({ ':method': 'POST', ':path': '/live' }, '');
  await idle.closed();
  t.ok(performance.now() - servedAtMs > 250, 'not before its time');
  t.notOk(busy.session.closed, 'the other one stays');
  t.ok(app.server.listening);
});

t.test('A14 a body that stalls on a stream is answered with 408, and the connection stays', async (t) => {
  const { port, unparsed } = await listen(t, { ...slow, headersMs: 200, requestMs: 200, keepAliveMs: 60_000 });
  const client = await connectH2(t, port, credentials.cert);
  const call = client.call({ ':method': 'POST', ':path': '/x' });
  call.stream.write('half');
  t.equal((await call.head()).status, 408);
  t.match(await call.body(), /"code":"request_timeout"/);
  t.same(unparsed, ['request_timeout']);
  t.equal(await client.call({ ':path': '/fast' }).body(), 'fast\n');
});

t.test('A14 and is told to keep the rest, however late it takes its answer', async (t) => {
  const { port } = await listen(t, { ...slow, headersMs: 200, requestMs: 200, keepAliveMs: 60_000 });
  const client = await connectFrames(t, port);
  const noWindow = frame(FRAME.settings, 0, 0, Buffer.from([0, 4, 0, 0, 0, 0]));
  client.send(noWindow, frame(FRAME.headers, END_HEADERS, 1, head('POST', '/x')), frame(FRAME.data, 0, 1, Buffer.from('half')));
  await client.frame(({ type, stream }) => type === FRAME.headers && stream === 1, 'the head of the answer');
  // A ping that is answered: by then whatever was done with the head is done.
  client.send(frame(FRAME.ping, 0, 0, Buffer.alloc(8)));
  await client.frame(({ type, flags }) => type === FRAME.ping && flags === 1, 'the ping');
  client.send(frame(FRAME.window, 0, 1, Buffer.from([0, 0, 255, 255])));
  await client.frame(({ type, flags }) => type === FRAME.data && (flags & END_STREAM) !== 0, 'the answer');
  const { payload } = await client.frame(({ type }) => type === FRAME.rst, 'the reset');
  t.equal(payload.readUInt32BE(0), 0, 'NO_ERROR');
});

t.test('A16 a body whose stream is reset never seems to have come whole', async (t) => {
  const { arrivals, port } = await listen(t, slow);
  const client = await connectFrames(t, port);
  for (const [at, code] of [0, 8].entries()) {
    const stream = 2 * at + 1;
    const seen: string[] = [];
    const taken = once(arrivals, 'request');
    client.send(frame(FRAME.headers, END_HEADERS, stream, head('POST', '/x')), frame(FRAME.data, 0, stream, Buffer.from('half')));
    const [request, response] = await taken;
    for (const event of ['data', 'end']) request.on(event, () => seen.push(event));
    const closed = once(response, 'close');
    client.send(frame(FRAME.rst, 0, stream, Buffer.from([0, 0, 0, code])));
    await closed;
    for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve));
    t.same(seen, ['data']);
  }
});

t.test('who is refused before its body has come is told to keep it', async (t) => {
  const { port } = await listen(t, slow);
  const client = await connectFrames(t, port);
  client.send(frame(FRAME.headers, END_HEADERS, 1, head('PUT', '/nowhere')), frame(FRAME.data, 0, 1, Buffer.from('begin')));
  await client.frame(({ type, flags }) => type === FRAME.data && (flags & END_STREAM) !== 0, 'the answer');
  const { payload } = await client.frame(({ type }) => type === FRAME.rst, 'the reset');
  t.equal(payload.readUInt32BE(0), 0, 'RFC 9113 8.1: NO_ERROR, and behind the answer');
});

t.test('F4 whoever should move elsewhere gets its answer, and a GOAWAY', async (t) => {
  const { port } = await listen(t, slow, () => true);
  const client = await connectH2(t, port, credentials.cert);
  t.equal(await client.call({ ':path': '/fast' }).body(), 'fast\n');
  await client.closed();
  t.same(client.goaways, [0]);
});

t.test('F4 a listener that closes waits neither for idle connections nor for hands that are not shaken', async (t) => {
  const { app, port } = await listen(t, slow);
  const silent = await connect(port);
  const idle = await connectH2(t, port, credentials.cert);
  t.equal(await idle.call({ ':path': '/fast' }).body(), 'fast\n');
  const plain = connectTls({ port, host: '127.0.0.1', ca: credentials.cert });
  await once(plain, 'secureConnect');
  await app.close();
  await Promise.all([silent.closed, idle.closed()]);
  plain.destroy();
});

t.test('F6 another certificate serves new connections, and live ones stay', async (t) => {
  const { server, port } = await listen(t, slow);
  const before = await connectH2(t, port, credentials.cert);
  const next = createCertificate();
  changeCertificate(server, next);
  const after = await connectH2(t, port, next.cert);
  t.equal(await after.call({ ':path': '/fast' }).body(), 'fast\n');
  t.equal(await before.call({ ':path': '/fast' }).body(), 'fast\n');
  await t.rejects(connectH2(t, port, credentials.cert), 'the old one is gone');
});

t.test('ALPN and versions: HTTP/1.1 where nothing is offered, nothing older than TLS 1.2', async (t) => {
  const { port } = await listen(t, slow);
  for (const [offered, agreed] of [
    [['h2', 'http/1.1'], 'h2'],
    [['http/1.1', 'h2'], 'h2'],
    [['http/1.1'], 'http/1.1'],
    [undefined, false],
  ] as const) {
    const socket = connectTls({ port, host: '127.0.0.1', ca: credentials.cert, ...(offered && { ALPNProtocols: [...offered] }) });
    await once(socket, 'secureConnect');
    t.equal(socket.alpnProtocol, agreed);
    socket.destroy();
  }
  for (const options of [
    { ALPNProtocols: ['spdy/3'] },
    { maxVersion: 'TLSv1.1', minVersion: 'TLSv1', ciphers: 'ALL:@SECLEVEL=0' },
  ] as const) {
    const socket = connectTls({
      port,
      host: '127.0.0.1',
      ca: credentials.cert,
      ...options,
      ...('ALPNProtocols' in options && { ALPNProtocols: [...options.ALPNProtocols] }),
    });
    await t.rejects(once(socket, 'secureConnect'));
  }
});

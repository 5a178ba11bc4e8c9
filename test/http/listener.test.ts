// The listener's clocks, with short ones: whoever is slow to send a request is closed, and told so where it can hear it.
import { EventEmitter, once } from 'node:events';
import type { IncomingMessage, Server } from 'node:http';
import { type AddressInfo, connect as connectSocket, createServer, type Socket } from 'node:net';
import { setImmediate } from 'node:timers/promises';
import t, { type Test } from 'tap';
import type { GatewayError } from '../../src/errors.ts';
import { createListener, type ListenerClocks, REFUSED } from '../../src/http/listener.ts';
import { reset } from '../../src/stream/reset.ts';
import { connect } from '../support/wire.ts';

const post = 'POST /v1/files HTTP/1.1\r\nHost: x\r\n';

interface Seen {
  readonly server: Server;
  readonly port: number;
  readonly unparsed: string[];
  /** What may wait for one of the next turns of the loop. */
  readonly spread: readonly (() => void)[];
  /** Emits each request that was taken, as `request`; nobody reads their bodies. */
  readonly arrivals: EventEmitter;
}

async function listen(t: Test, clocks: ListenerClocks = { headersMs: 200, requestMs: 400, checkMs: 20 }): Promise<Seen> {
  const unparsed: string[] = [];
  const spread: (() => void)[] = [];
  const arrivals = new EventEmitter();
  const app = createListener({
    isTrusted: () => false,
    isLeaving: () => false,
    onUnparsed: (reason) => void unparsed.push(reason),
    onFault: (error) => t.fail(error.message),
    spread(task) {
      spread.push(task);
      task();
    },
    clocks,
  });
  app.post('/*', async (request, reply) => {
    reply.hijack();
    arrivals.emit('request', request.raw);
  });
  await app.listen({ port: 0, host: '127.0.0.1' });
  t.teardown(() => app.close());
  return { server: app.server, port: (app.server.address() as AddressInfo).port, unparsed, spread, arrivals };
}

t.test('E2 1,000 connections that send nothing, or never a whole head, are closed at their limit', async (t) => {
  const { port, unparsed, spread } = await listen(t);
  const began = performance.now();
  const close = async (n: number) => {
    const client = await connect(port);
    if (n % 2) client.send(`${post}X: `);
    return { ...(await client.closed), text: client.raw().toString() };
  };
  const ends = await Promise.all(Array.from({ length: 1000 }, (_, n) => close(n)));
  t.ok(
    ends.every(({ how, text }) => how === 'fin' && /^HTTP\/1\.1 408 /.test(text)),
    'each was told',
  );
  t.ok(Math.max(...ends.map(({ at }) => at)) - began < 3000, 'soon after their limit');
  t.same(new Set(unparsed), new Set(['request_timeout']));
  t.equal(unparsed.length, 500, 'whoever sent nothing has asked for nothing');
  t.equal(spread.length, 1000, 'not all in one turn');
});

t.test('A14 a body that stalls is told to whoever forwards it, or answered here', async (t) => {
  const { port, arrivals } = await listen(t);
  const unheard = await connect(port);
  unheard.send(`${post}Content-Length: 10\r\n\r\nhalf`);
  t.equal((await unheard.head()).status, 408);
  t.match((await unheard.body()).toString(), /"code":"request_timeout"/);
  t.match(await unheard.closed, { how: 'fin', isComplete: true });

  const heard = await connect(port);
  heard.send(`${post}Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n`);
  const [request] = (await once(arrivals, 'request')) as [IncomingMessage];
  const told = new Promise<GatewayError>((resolve) => request.once(REFUSED, resolve));
  t.match(await told, { code: 'request_timeout' });
  t.equal(heard.raw().length, 0, 'the answer is left to whoever listens');
  heard.destroy();
});

/** Counts what ends on a server's connections; returns the most of it in one turn of the loop, so far. */
function watchEnds(server: Server): { readonly total: number; readonly mostInTurn: number } {
  const seen = { total: 0, mostInTurn: 0 };
  let inTurn = 0;
  const onEnd = () => {
    if (inTurn++ === 0) void setImmediate().then(() => (inTurn = 0));
    seen.total += 1;
    seen.mostInTurn = Math.max(seen.mostInTurn, inTurn);
  };
  server.on('connection', (socket: Socket) => void socket.on('end', onEnd).on('error', onEnd));
  return seen;
}

t.test('A18 of a crowd that leaves at one instant each turn of the loop sees a hundred, and who stays is read on', async (t) => {
  const { server, port, arrivals } = await listen(t, { headersMs: 60_000, requestMs: 60_000, checkMs: 1000 });
  const ends = watchEnds(server);
  // Whoever answers a request closes its connection when the client has half-closed.
  arrivals.on('request', ({ socket }: IncomingMessage) => socket.once('end', () => socket.destroy()));
  for (const how of ['resetAndDestroy', 'destroy'] as const) {
    const staying = await connect(port);
    staying.send(`${post}Content-Length: 8\r\n\r\nhalf`);
    const [upload] = (await once(arrivals, 'request')) as [IncomingMessage];
    const crowd: Socket[] = [];
    while (crowd.length < 1000) {
      const socket = connectSocket(port, '127.0.0.1').on('error', () => undefined);
      socket.write(`${post}Content-Length: 0\r\n\r\n`);
      crowd.push(socket);
      if (crowd.length % 100 === 0) for (let come = 0; come < 100; come++) await once(arrivals, 'request');
    }
    const before = ends.total;
    for (const socket of crowd) socket[how]();
    staying.send('rest');
    await once(upload.resume(), 'end');
    while (ends.total < before + crowd.length) await setImmediate();
    staying.reset();
  }
  t.ok(ends.mostInTurn <= 100, `${ends.mostInTurn} in one turn`);
});

t.test('a reset frees its descriptor, whether the connection is open, is just being ended, or is full', async (t) => {
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) => void socket.on('error', () => undefined));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const descriptors = () => process.getActiveResourcesInfo().filter((name) => name === 'TCPSocketWrap').length;
  const states: Record<string, (socket: Socket) => void> = {
    open: () => undefined,
    ending: (socket) => void socket.end(),
    'ending with a word': (socket) => void socket.end('word'),
    full: (socket) => void socket.end('x'.repeat(16 * 1024 * 1024)),
  };
  for (const [name, enter] of Object.entries(states)) {
    const socket = connectSocket(port, '127.0.0.1');
    await Promise.all([once(socket, 'connect'), once(server, 'connection')]);
    const open = descriptors();
    enter(socket);
    reset(socket);
    await once(socket, 'close');
    await setImmediate();
    t.equal(descriptors(), open - 1, name);
  }
  server.close();
});

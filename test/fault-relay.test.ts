// The relay that breaks connections for other tests does each fault as it says, on connections that are already there.
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { setImmediate } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { type FaultRelay, startFaultRelay, type Toxic } from './support/fault-relay.ts';

interface Line {
  readonly relay: FaultRelay;
  readonly near: Socket;
  readonly far: Socket;
}

/** A connection through a relay: `near` connected, `far` was connected to. */
async function open(t: Test, first?: Toxic): Promise<Line> {
  const server = createServer({ allowHalfOpen: true }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const relay = await startFaultRelay((server.address() as AddressInfo).port);
  if (first) relay.add(first);
  const near = connect({ port: relay.port, host: '127.0.0.1', allowHalfOpen: true });
  const [far] = (await once(server, 'connection')) as [Socket];
  t.teardown(async () => {
    for (const socket of [near, far]) socket.destroy();
    server.close();
    await relay.close();
  });
  for (const socket of [near, far]) socket.on('error', () => {});
  return { relay, near, far };
}

/** The next n bytes, and how many pieces they came in. */
async function read(socket: Socket, n: number): Promise<{ text: string; pieces: number }> {
  let text = '';
  let pieces = 0;
  while (text.length < n) {
    const [bytes] = (await once(socket, 'data')) as [Buffer];
    text += bytes.toString('latin1');
    pieces++;
  }
  return { text, pieces };
}

async function timed<T>(work: Promise<T>): Promise<{ result: T; ms: number }> {
  const startedAtMs = performance.now();
  const result = await work;
  return { result, ms: performance.now() - startedAtMs };
}

t.test('without a toxic it passes bytes, FIN and RST on, both ways', async (t) => {
  const { near, far, relay } = await open(t);
  near.write('up');
  t.equal((await read(far, 2)).text, 'up');
  far.end('down');
  t.equal((await read(near, 4)).text, 'down');
  await once(near, 'end');
  near.write('still up');
  t.equal((await read(far, 8)).text, 'still up', 'a half-closed connection goes on the other way');
  near.resetAndDestroy();
  const [error] = (await once(far, 'error')) as [NodeJS.ErrnoException];
  t.match(error.code, /^(?:ECONNRESET|EPIPE)$/);
  await once(far, 'close');
  while (relay.liveCount > 0) await setImmediate();
});

t.test('latency delays every byte one way, and is gone when it is removed', async (t) => {
  const { near, far, relay } = await open(t);
  const remove = relay.add({ type: 'latency', direction: 'up', latencyMs: 80, jitterMs: 5 });
  near.write('late');
  t.ok((await timed(read(far, 4))).ms >= 70);
  far.write('soon');
  t.ok((await timed(read(near, 4))).ms < 70, 'the other way is as it was');
  remove();
  near.write('soon');
  t.ok((await timed(read(far, 4))).ms < 70);
});

t.test('bandwidth bounds the rate, slicer the size of pieces', async (t) => {
  const { near, far, relay } = await open(t);
  const remove = relay.add({ type: 'bandwidth', bytesPerSecond: 10_000 });
  near.write('x'.repeat(2000));
  const { ms } = await timed(read(far, 2000));
  t.ok(ms > 90 && ms < 1500, `2,000 bytes at 10,000 a second took ${ms.toFixed(0)} ms`);
  remove();
  relay.add({ type: 'slicer', maxBytes: 3, delayMs: 5 });
  near.write('abcdefghij');
  const { text, pieces } = await read(far, 10);
  t.equal(text, 'abcdefghij');
  t.ok(pieces >= 3, `${pieces} pieces`);
});

t.test('limit_data closes both sides after so many bytes', async (t) => {
  const { near, far } = await open(t, { type: 'limit_data', direction: 'down', bytes: 5 });
  far.write('0123456789');
  t.equal((await read(near, 5)).text, '01234');
  await Promise.all([once(near, 'end'), once(far.resume(), 'end')]);
});

t.test('slow_close delays the FIN alone', async (t) => {
  const { near, far } = await open(t, { type: 'slow_close', delayMs: 80 });
  near.end('bye');
  t.equal((await read(far, 3)).text, 'bye');
  t.ok((await timed(once(far, 'end'))).ms >= 50);
});

t.test('timeout drops what comes, then closes; reset_peer resets', async (t) => {
  const dropping = await open(t, { type: 'timeout', direction: 'up', timeoutMs: 60 });
  dropping.near.write('lost');
  let arrived = 0;
  dropping.far.on('data', (bytes: Buffer) => {
    arrived += bytes.length;
  });
  await once(dropping.far, 'end');
  t.equal(arrived, 0);
  const resetting = await open(t, { type: 'reset_peer', timeoutMs: 10 });
  const codes = await Promise.all([once(resetting.near, 'error'), once(resetting.far, 'error')]);
  t.match(codes, [[{ code: 'ECONNRESET' }], [{ code: 'ECONNRESET' }]]);
});

t.test('down: neither bytes nor an end pass until the cable is in again', async (t) => {
  const { near, far, relay } = await open(t);
  near.write('before');
  await read(far, 6);
  const plugIn = relay.add({ type: 'down' });
  near.end('held');
  let isQuiet = true;
  far.once('data', () => {
    isQuiet = false;
  });
  // A connection beside it that goes to and fro shows that time has passed.
  const other = await open(t);
  for (let n = 0; n < 20; n++) {
    other.near.write('x');
    await read(other.far, 1);
  }
  t.ok(isQuiet);
  plugIn();
  t.equal((await read(far, 4)).text, 'held');
  await once(far, 'end');
});

// The listener's clocks, with short ones: whoever is slow to send a request is closed, and told so where it can hear it.
import { EventEmitter, once } from 'node:events';
import type { IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import t, { type Test } from 'tap';
import type { GatewayError } from '../../src/errors.ts';
import { createListener, REFUSED } from '../../src/http/listener.ts';
import { connect } from '../support/wire.ts';

const post = 'POST /v1/files HTTP/1.1\r\nHost: x\r\n';

interface Seen {
  readonly port: number;
  readonly unparsed: string[];
  /** Emits each request that was taken, as `request`; nobody reads their bodies. */
  readonly arrivals: EventEmitter;
}

async function listen(t: Test): Promise<Seen> {
  const unparsed: string[] = [];
  const arrivals = new EventEmitter();
  const app = createListener({
    isTrusted: () => false,
    isLeaving: () => false,
    onUnparsed: (reason) => void unparsed.push(reason),
    onFault: (error) => t.fail(error.message),
    clocks: { headersMs: 200, requestMs: 400, checkMs: 20 },
  });
  app.post('/*', async (request, reply) => {
    reply.hijack();
    arrivals.emit('request', request.raw);
  });
  await app.listen({ port: 0, host: '127.0.0.1' });
  t.teardown(() => app.close());
  return { port: (app.server.address() as AddressInfo).port, unparsed, arrivals };
}

t.test('E2 1,000 connections that send nothing, or never a whole head, are closed at their limit', async (t) => {
  const { port, unparsed } = await listen(t);
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
  t.equal(unparsed.length, 1000);
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

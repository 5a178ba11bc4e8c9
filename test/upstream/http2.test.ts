// The HTTP/2 side of the upstream client by itself: what a paused call keeps, and connections that are idle, retired, or dead without a word.
import { createSecureServer } from 'node:http2';
import type { AddressInfo } from 'node:net';
import t, { type Test } from 'tap';
import { createUpstreamClient, type UpstreamCall, type UpstreamClient } from '../../src/upstream/client.ts';
import { type FrameStream, type FrameUpstream, startFrameUpstream } from '../support/frame-upstream.ts';
import { createCertificate } from '../support/tls.ts';
import { createWaiting } from '../support/waiting.ts';

const certificate = createCertificate();

interface Scene {
  readonly upstream: FrameUpstream;
  readonly client: UpstreamClient;
}

/** @param probeMs between two looks at a silent connection */
async function newScene(t: Test, probeMs = 60_000): Promise<Scene> {
  const upstream = await startFrameUpstream({ tls: certificate });
  const ca = { path: 'ca.pem', text: certificate.cert };
  const way = { baseUrl: upstream.url, ca, certificate: undefined, proxy: undefined };
  const client = createUpstreamClient({ ...way, http2: true, maxConnections: 10 }, probeMs);
  t.teardown(async () => {
    client.close();
    await upstream.close();
  });
  return { upstream, client };
}

interface Sent {
  readonly call: UpstreamCall;
  readonly stream: FrameStream;
  /** What it was told, chunks as their lengths. */
  readonly told: readonly string[];
  until(what: string): Promise<void>;
}

async function send({ client, upstream }: Scene): Promise<Sent> {
  const waiting = createWaiting();
  const told: string[] = [];
  const tell = (what: string) => {
    told.push(what);
    waiting.changed();
  };
  const call = client.send(
    { method: 'POST', path: '/v1/x', headers: [], body: Buffer.from('{}') },
    {
      onStart: () => tell('start'),
      onSent: () => tell('sent'),
      onHead: (status) => tell(String(status)),
      onChunk: (chunk) => tell(String(chunk.length)),
      onReadEnd: () => undefined,
      onEnd: () => tell('end'),
      onFail: ({ kind, detail }) => tell(`${kind} ${detail}`),
    },
  );
  const stream = await upstream.stream();
  await stream.whole();
  const until = async (what: string) =>
    void (await waiting.wait({ awaited: what, seen: () => told.join(), attempt: () => told.includes(what) || undefined }));
  return { call, stream, told, until };
}

const sumOf = (told: readonly string[]) => told.slice(3).reduce((sum, part) => sum + (Number(part) || 0), 0);

t.test('B35 an answer that came whole before its connection broke reaches a slow client whole', async (t) => {
  const scene = await newScene(t);
  const { call, stream, told, until } = await send(scene);
  stream.head();
  await until('200');
  call.pause();
  stream.data(Buffer.alloc(200_000), true);
  await stream.flushed();
  stream.connection.end();
  await stream.connection.closed();
  t.notOk(told.includes('end'));
  call.resume();
  await until('end');
  t.equal(sumOf(told), 200_000);
});

t.test('one that had not come whole is no answer', async (t) => {
  const scene = await newScene(t);
  const { call, stream, told, until } = await send(scene);
  stream.head();
  await until('200');
  call.pause();
  stream.data(Buffer.alloc(200_000));
  await stream.flushed();
  stream.connection.end();
  await until('reset ECONNRESET');
  call.resume();
  t.strictSame(told.slice(0, 3).concat(told.slice(-1)), ['start', 'sent', '200', 'reset ECONNRESET']);
});

t.test('a paused call holds what its window allows, and goes on where it was', async (t) => {
  const scene = await newScene(t);
  const { call, stream, told, until } = await send(scene);
  stream.head();
  await until('200');
  call.pause();
  stream.data(Buffer.alloc(3_000_000), true);
  const other = await send(scene);
  other.stream.head();
  other.stream.data(Buffer.alloc(1_000_000), true);
  await other.until('end');
  t.equal(sumOf(other.told), 1_000_000, 'another one is not held up');
  t.ok(stream.sentBytes <= 256 * 1024 + 65_535, `${stream.sentBytes} bytes went out`);
  call.resume();
  await until('end');
  t.equal(sumOf(told), 3_000_000);
});

t.test('a connection that no longer answers takes no new calls, and is given up with those that it has', async (t) => {
  const scene = await newScene(t, 50);
  const first = await send(scene);
  first.stream.head();
  await first.until('200');
  first.stream.connection.goSilent();
  // Calls go to it until it is found out.
  let next = await send(scene);
  while (next.stream.connection === first.stream.connection && !first.stream.connection.isClosed) {
    next.call.abort();
    next = await send(scene);
  }
  t.notOk(first.stream.connection.isClosed, 'while it is only doubtful');
  next.stream.head();
  next.stream.data('fine', true);
  await next.until('end');
  await first.until('reset ETIMEDOUT');
  await first.stream.connection.closed();
});

t.test('one that is silent and answers PING is left alone', async (t) => {
  const scene = await newScene(t, 10);
  const { stream, until } = await send(scene);
  stream.head();
  await until('200');
  await stream.connection.pinged(20);
  stream.data('still here', true);
  await until('end');
  t.equal(scene.upstream.connections.length, 1);
});

t.test('an idle connection is kept for a while, and then closed in order', async (t) => {
  const scene = await newScene(t, 50);
  const { stream, until } = await send(scene);
  stream.head(200, {}, true);
  await until('end');
  await stream.connection.closed();
  t.equal(stream.connection.goawayCode, 0);
  t.strictSame(scene.client.counts(), { active: 0, idle: 0, queued: 0 });
});

t.test('a client that is retired closes what is idle at once, and the rest with its last call', async (t) => {
  const scene = await newScene(t);
  const [first, second] = [await send(scene), await send(scene)];
  scene.client.retire();
  first.stream.head(200, {}, true);
  await first.until('end');
  second.stream.head();
  second.stream.data('to the end', true);
  await second.until('end');
  await second.stream.connection.closed();
  t.equal(second.stream.connection.goawayCode, 0);
  t.strictSame(scene.client.counts(), { active: 0, idle: 0, queued: 0 });
});

t.test('an abort tells when the stream is closed, and nothing afterwards', async (t) => {
  const scene = await newScene(t);
  const { call, stream, told, until } = await send(scene);
  stream.head();
  await until('200');
  await new Promise<void>((resolve) => call.abort(resolve));
  await stream.wasReset();
  stream.data('late', true);
  const next = await send(scene);
  t.equal(next.stream.connection, stream.connection);
  t.strictSame(told, ['start', 'sent', '200']);
  next.call.abort();
  t.equal(await next.stream.wasReset(), 8);
});

t.test('which protocol it is each new connection asks again', async (t) => {
  let spoken = 'http/1.1';
  const served: string[] = [];
  const server = createSecureServer(
    { ...certificate, allowHTTP1: true, ALPNCallback: ({ protocols }) => (protocols.includes(spoken) ? spoken : undefined) },
    (request, response) => {
      served.push(request.httpVersion);
      // So that the next call needs a connection of its own.
      response.writeHead(200, request.httpVersionMajor === 1 ? { connection: 'close' } : {}).end();
    },
  );
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const baseUrl = `https://127.0.0.1:${(server.address() as AddressInfo).port}/v1`;
  const ca = { path: 'ca.pem', text: certificate.cert };
  const client = createUpstreamClient({ baseUrl, ca, certificate: undefined, proxy: undefined, http2: true, maxConnections: 10 });
  t.teardown(() => {
    client.close();
    server.close();
  });
  const ask = () =>
    new Promise<string>((resolve) => {
      const ignore = () => {};
      client.send(
        { method: 'GET', path: '/v1/x', headers: [], body: undefined },
        {
          onStart: ignore,
          onSent: ignore,
          onHead: ignore,
          onChunk: ignore,
          onReadEnd: ignore,
          onEnd: () => resolve('end'),
          onFail: ({ detail }) => resolve(detail),
        },
      );
    });
  t.strictSame(await Promise.all([ask(), ask(), ask()]), ['end', 'end', 'end']);
  spoken = 'h2';
  t.strictSame(await Promise.all([ask(), ask(), ask()]), ['end', 'end', 'end']);
  t.strictSame(served, ['1.1', '1.1', '1.1', '2.0', '2.0', '2.0']);
});

// Promise: whatever an upstream does wrong, the client is told the truth: an error before the stream, an error event in it, never a polite end.
import { createServer } from 'node:net';
import t, { type Test } from 'tap';
import { startTestGateway, type TestGateway, UPSTREAM_KEY } from '../support/gateway.ts';
import { startUpstream, type UpstreamRequest } from '../support/upstream.ts';
import { connect, type WireClient } from '../support/wire.ts';

const chat = { method: 'POST', target: '/v1/chat/completions', body: '{"model":"m","stream":true}' };
const responses = { method: 'POST', target: '/v1/responses', body: '{"model":"m","stream":true}' };
const messages = { method: 'POST', target: '/v1/messages', body: '{"model":"m","stream":true}' };

interface Scene {
  readonly gateway: TestGateway;
  readonly client: WireClient;
  readonly request: UpstreamRequest;
}

async function play(t: Test, call: object, settings: Record<string, object> = {}): Promise<Scene> {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url, settings);
  const client = await connect(gateway.port);
  client.request(call);
  return { gateway, client, request: await upstream.request() };
}

async function assertError(t: Test, { gateway, client }: Pick<Scene, 'gateway' | 'client'>, status: number, code: string, outcome: string) {
  const head = await client.head();
  t.equal(head.status, status);
  t.equal(head.headers['content-type'], 'application/json');
  t.ok(head.headers['x-request-id']);
  const body = JSON.parse((await client.body()).toString());
  t.match(body, { error: { message: String, type: 'upstream_error', param: null, code } });
  t.match(await gateway.ended(), { outcome, status });
  t.equal((await gateway.metrics()).value('sluicegate_requests_total', { outcome }), 1);
}

t.test('nobody listens there', async (t) => {
  const closed = createServer().listen(0, '127.0.0.1');
  const { port } = await new Promise<{ port: number }>((resolve) =>
    closed.once('listening', () => resolve(closed.address() as { port: number })),
  );
  await new Promise((resolve) => closed.close(resolve));
  const gateway = await startTestGateway(t, `http://127.0.0.1:${port}/v1`);
  const client = await connect(gateway.port);
  client.request(chat);
  await assertError(t, { gateway, client }, 502, 'upstream_unreachable', 'upstream_unreachable');
  t.notMatch(gateway.output, `127.0.0.1:${port}`, 'the address stays inside');
  t.equal((await gateway.metrics()).value('sluicegate_upstream_attempts_total', { result: 'upstream_unreachable' }), 1);
});

t.test('E3 all its connections are taken for longer than a connect may last', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url, { upstream: { maxConnections: 1, timeouts: { connect: '50ms' } } });
  const first = await connect(gateway.port);
  first.request(chat);
  const request = await upstream.request();
  const second = await connect(gateway.port);
  second.request(chat);
  const head = await second.head();
  t.equal(head.status, 503);
  t.equal(head.headers['retry-after'], '1');
  t.match(JSON.parse((await second.body()).toString()), { error: { code: 'overloaded' } });
  t.match(await gateway.ended(), { outcome: 'rejected', rejection: 'overloaded' });
  request.respond(200, {}, 'undisturbed');
  t.equal((await first.body()).toString(), 'undisturbed');
  t.equal(upstream.requestCount, 1);
});

t.test('it resets while the request is still going up: the client is told all the same', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const client = await connect(gateway.port);
  client.send('POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 500000\r\n\r\nbeginning');
  const request = await upstream.request();
  await request.bodyBytes(9);
  const { connection } = request;
  connection.reset();
  await connection.closed;
  client.send(Buffer.alloc(499_991, 'x'));
  await assertError(t, { gateway, client }, 502, 'upstream_reset', 'upstream_reset');
});

t.test('B11 it refuses the key that was injected: not the client’s fault, and nothing of the answer is shown', async (t) => {
  const scene = await play(t, chat);
  scene.request.respond(401, { 'content-type': 'application/json' }, `{"error":{"message":"Incorrect API key provided: ${UPSTREAM_KEY}"}}`);
  await assertError(t, scene, 502, 'upstream_auth', 'upstream_error');
  t.match(scene.client.raw().toString(), /\r\nx-should-retry: false\r\n/);
  t.notMatch(scene.client.raw().toString(), 'canary');
});

t.test('B12 D10 its own errors pass as they are, but for our key in them', async (t) => {
  const scene = await play(t, chat);
  const text = (key: string) => `{"error":{"message":"Quota of ${key} is spent"}}`;
  const body = text(UPSTREAM_KEY);
  scene.request.connection.write(`HTTP/1.1 429 Too Many\r\nretry-after: 7\r\ncontent-length: ${body.length}\r\n\r\n${body.slice(0, 40)}`);
  t.equal((await scene.client.head()).headers['retry-after'], '7');
  scene.request.connection.write(body.slice(40));
  t.equal((await scene.client.body()).toString(), text('*'.repeat(UPSTREAM_KEY.length)));
  t.match(await scene.gateway.ended(), { outcome: 'upstream_error', status: 429 });
});

const event = (data: object) => `data: ${JSON.stringify(data)}\n\n`;

t.test('the last event is in the dialect of the endpoint', async (t) => {
  const responsesScene = await play(t, responses);
  responsesScene.request.startSse();
  responsesScene.request.chunk(
    `event: response.created\n${event({ type: 'response.created', sequence_number: 0, response: { id: 'r' } })}`,
  );
  await responsesScene.client.until('created');
  responsesScene.request.connection.reset();
  await responsesScene.client.until('event: error\n');
  t.match(await responsesScene.client.until('}}\n\n'), /^data: \{"type":"error","sequence_number":1,"code":"upstream_reset".*"error":\{/);

  const messagesScene = await play(t, messages);
  messagesScene.request.startSse();
  messagesScene.request.chunk(
    `event: message_start\n${event({ type: 'message_start', message: { usage: { input_tokens: 1, output_tokens: 1 } } })}`,
  );
  await messagesScene.client.until('message_start');
  messagesScene.request.connection.reset();
  await messagesScene.client.until('event: error\n');
  t.match(await messagesScene.client.until('}}\n\n'), /^data: \{"type":"error","error":\{"type":/);
});

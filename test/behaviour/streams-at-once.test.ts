// Promise: not a byte is held. What the upstream says, the client hears, before the upstream says more.
import t from 'tap';
import { startTestGateway } from '../support/gateway.ts';
import { startUpstream } from '../support/upstream.ts';
import { connect } from '../support/wire.ts';

const chatRequest = { method: 'POST', target: '/v1/chat/completions', body: '{"model":"m","stream":true}' };

t.test('event n + 1 is withheld until the client has event n, through all 50', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const client = await connect(gateway.port);
  client.request(chatRequest);
  const request = await upstream.request();
  request.startSse();
  const head = await client.head();
  t.equal(head.status, 200, 'the head is there before the first event');
  t.equal(head.headers['content-type'], 'text/event-stream; charset=utf-8');
  t.equal(head.headers['cache-control'], 'no-cache, no-transform');
  t.equal(head.headers['x-accel-buffering'], 'no');
  for (let n = 1; n <= 50; n++) {
    request.event({ choices: [{ index: 0, delta: { content: `token ${n};` } }] });
    t.match(await client.until(`token ${n};`), `token ${n};`);
  }
  request.chunk('data: [DONE]\n\n');
  request.endChunks();
  const body = await client.body();
  t.equal(body.toString().match(/data: /g)?.length, 51);
  t.equal((await gateway.ended()).outcome, 'completed');
});

t.test('half an event goes down as half an event', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const client = await connect(gateway.port);
  client.request(chatRequest);
  const request = await upstream.request();
  request.startSse();
  for (const piece of ['da', 'ta: {"choi', 'ces":[{"delta":{"content":"\u00e9"', '}}]}', '\n', '\n']) {
    request.chunk(piece);
    await client.until(Buffer.from(piece).toString('latin1') === piece ? piece : piece.slice(0, -3));
  }
  request.chunk('data: [DONE]\n\n');
  request.endChunks();
  t.equal((await client.body()).toString(), 'data: {"choices":[{"delta":{"content":"\u00e9"}}]}\n\ndata: [DONE]\n\n');
});

t.test('a request body flows up while it is still being written, and an answer that is not a stream flows down', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const client = await connect(gateway.port);
  client.send(
    'POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\nTransfer-Encoding: chunked\r\n\r\n',
  );
  client.send('5\r\nfirst\r\n');
  const request = await upstream.request();
  t.equal((await request.bodyBytes(5)).toString(), 'first', 'up before the rest is written');
  client.send('6\r\nsecond\r\n0\r\n\r\n');
  t.equal((await request.body()).toString(), 'firstsecond');
  t.equal(request.headers['content-type'], 'multipart/form-data; boundary=x');

  request.connection.write('HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ncontent-length: 10\r\n\r\n');
  t.equal((await client.head()).headers['content-length'], '10', 'the head before the body');
  request.connection.write(Buffer.from([0, 1, 2, 255]));
  t.same(await client.read(4), Buffer.from([0, 1, 2, 255]));
  request.connection.write(Buffer.from([4, 5, 6, 7, 8, 9]));
  t.same(await client.body(), Buffer.from([0, 1, 2, 255, 4, 5, 6, 7, 8, 9]));
});

t.test('a slow reader holds the upstream back and loses nothing', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const client = await connect(gateway.port);
  client.request(chatRequest);
  const request = await upstream.request();
  request.startSse();
  await client.head();
  client.pause();
  const event = `data: {"choices":[{"index":0,"delta":{"content":"${'x'.repeat(100_000)}"}}]}\n\n`;
  const count = 200;
  for (let n = 0; n < count; n++) request.chunk(event);
  request.chunk('data: [DONE]\n\n');
  request.endChunks();
  client.resume();
  const body = await client.body();
  t.equal(body.length, event.length * count + 'data: [DONE]\n\n'.length);
  t.ok(body.toString().startsWith(event));
  const line = await gateway.ended();
  t.equal(line.outcome, 'completed');
  t.equal(line.bytesOut, body.length);
});

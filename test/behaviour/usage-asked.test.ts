// Promise: usage is asked for on the client's behalf, and the client sees nothing of it.
import t, { type Test } from 'tap';
import { startTestGateway, type TestGateway } from '../support/gateway.ts';
import { type ScriptedUpstream, startUpstream, type UpstreamRequest } from '../support/upstream.ts';
import { connect, type WireClient } from '../support/wire.ts';

const json = { 'content-type': 'application/json' };
const body = '{ "stream" : true, "messages":[{"content":"\\"stream_options\\""}] }';
const chunkOf = (content: string, more = '') =>
  `data: {"id":"c","choices":[{"index":0,"delta":{"content":"${content}"},"finish_reason":null}]${more}}\n\n`;
const finish = (more = '') => `data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]${more}}\n\n`;
const usage = '{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11}';
const nulls = ',"usage":null';
const done = 'data: [DONE]\n\n';

interface Scene {
  readonly upstream: ScriptedUpstream;
  readonly gateway: TestGateway;
  readonly client: WireClient;
}

async function start(t: Test, settings: Record<string, object> = {}): Promise<Scene> {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url, { ...settings, upstream: { usage: 'ask', ...settings.upstream } });
  return { upstream, gateway, client: await connect(gateway.port) };
}

async function call({ upstream, client }: Scene, sent = body, target = '/v1/chat/completions', chunked = false): Promise<UpstreamRequest> {
  client.request({ method: 'POST', target, headers: json, body: sent, chunked });
  return upstream.request();
}

t.test('the option goes up, the client’s bytes are those of a call that did not ask, and the tokens are the upstream’s', async (t) => {
  for (const [target, chunked] of [
    ['/v1/chat/completions', false],
    ['/v1/completions', true],
    ['/openai/deployments/x/chat/completions', false],
  ] as const) {
    const scene = await start(t);
    const request = await call(scene, body, target, chunked);
    const sent = (await request.body()).toString();
    t.match(JSON.parse(sent), { stream: true, stream_options: { include_usage: true } });
    t.equal(sent.replace('"stream_options":{"include_usage":true},', ''), body, 'every other byte stays');
    t.equal(request.headers['content-length'], String(sent.length));
    t.equal(request.headers['transfer-encoding'], undefined);
    request.startSse();
    request.chunk(chunkOf('One', nulls));
    t.equal(await scene.client.until('\n\n'), chunkOf('One'), 'each event goes down before the next comes up');
    request.chunk(chunkOf(' two', nulls));
    t.equal(await scene.client.until('\n\n'), chunkOf(' two'));
    request.chunk(`${finish(nulls)}data: {"id":"c","choices":[],"usage":${usage}}\n\n${done}`);
    request.endChunks();
    t.equal((await scene.client.body()).toString(), chunkOf('One') + chunkOf(' two') + finish() + done);
    const line = await scene.gateway.ended();
    t.match(line, { outcome: 'completed', tokens: { input: 9, output: 2, outputSource: 'reported' }, bytesIn: body.length });
    t.equal(line.bytesOut, (chunkOf('One') + chunkOf(' two') + finish() + done).length);
  }
});

t.test('what the client asked for itself, or refused, stands; what does not stream is not touched', async (t) => {
  const scene = await start(t);
  const untouched = [
    '{"stream":true,"stream_options":{"include_usage":true}}',
    '{"stream":true,"stream_options":{"include_usage":false}}',
    '{"stream":false}',
    '{"messages":[]}',
    '{"stream":true,"stream":true}',
    'no JSON at all',
    '',
  ];
  for (const sent of untouched) {
    const request = await call(scene, sent);
    t.equal((await request.body()).toString(), sent);
    const answer = `${chunkOf('x', nulls)}data: {"choices":[],"usage":${usage}}\n\n${done}`;
    request.startSse();
    request.chunk(answer);
    request.endChunks();
    t.equal((await scene.client.body()).toString(), answer);
    await scene.gateway.ended();
  }
  for (const [target, headers] of [
    ['/v1/embeddings', json],
    ['/v1/responses', json],
    ['/v1/chat/completions', { 'content-type': 'text/plain' }],
    ['/v1/chat/completions', { ...json, 'content-encoding': 'gzip' }],
  ] as const) {
    scene.client.request({ method: 'POST', target, headers, body });
    const request = await scene.upstream.request();
    t.equal((await request.body()).toString(), body, target);
    request.respond(200, {}, '{}');
    await scene.client.body();
  }
});

t.test('an upstream that does not know the option is asked once more without, and never again', async (t) => {
  for (const status of [400, 422]) {
    const scene = await start(t);
    const first = await call(scene);
    t.match((await first.body()).toString(), 'include_usage');
    first.respond(status, json, '{"error":{"message":"Unrecognized request argument supplied: stream_options"}}');
    const second = await scene.upstream.request();
    t.equal((await second.body()).toString(), body, 'as it was sent');
    second.startSse();
    second.chunk(chunkOf('One') + finish() + done);
    second.endChunks();
    t.equal((await scene.client.body()).toString(), chunkOf('One') + finish() + done);
    t.match(await scene.gateway.ended(), {
      outcome: 'completed',
      status: 200,
      attempts: 2,
      tokens: { output: 1, outputSource: 'counted' },
    });

    const third = await call(scene);
    t.equal((await third.body()).toString(), body, 'remembered');
    third.respond(200, json, '{}');
    await scene.client.body();
    t.equal(scene.upstream.requestCount, 3);
  }
});

t.test('any other refusal is the client’s to see, whatever its length', async (t) => {
  for (const text of ['{"error":{"message":"no such model"}}', 'x'.repeat(200_000)]) {
    const scene = await start(t);
    const request = await call(scene);
    request.respond(400, { ...json, 'x-own': '1' }, text);
    t.match(await scene.client.head(), { status: 400, headers: { 'x-own': '1' } });
    t.equal((await scene.client.body()).toString(), text);
    t.match(await scene.gateway.ended(), { outcome: 'upstream_error', attempts: 1 });
    t.equal(scene.upstream.requestCount, 1);
  }
});

t.test('continuous: an aborted stream has the last totals that the upstream gave, and the client saw none of them', async (t) => {
  const scene = await start(t, { upstream: { usage: 'continuous' } });
  const request = await call(scene);
  t.match(JSON.parse((await request.body()).toString()), { stream_options: { include_usage: true, continuous_usage_stats: true } });
  request.startSse();
  const running = (n: number) => `,"usage":{"prompt_tokens":9,"completion_tokens":${n},"total_tokens":${9 + n}}`;
  request.chunk(chunkOf('One', running(1)));
  t.equal(await scene.client.until('\n\n'), chunkOf('One'));
  request.chunk(chunkOf(' two three', running(5)));
  t.equal(await scene.client.until('\n\n'), chunkOf(' two three'));
  scene.client.reset();
  t.match(await scene.gateway.ended(), {
    outcome: 'client_closed',
    tokens: { input: 9, output: 5, inputSource: 'running', outputSource: 'running' },
  });
});

t.test('a break: what was held back is no half event to the client', async (t) => {
  const scene = await start(t);
  const request = await call(scene);
  request.startSse();
  request.chunk(`${chunkOf('One', nulls)}${chunkOf('two', ',"usage":nu').slice(0, -3)}`);
  await scene.client.until('two');
  request.connection.reset();
  t.match(await scene.client.closed, { isComplete: false });
  t.notMatch(scene.client.raw().toString(), /usage|"error"/);
  t.equal((await scene.gateway.ended()).outcome, 'upstream_reset');
});

t.test('held bodies are bounded, all together, and given back', async (t) => {
  const scene = await start(t, { server: { maxHeldBodies: 1000 } });
  const filling = await connect(scene.gateway.port);
  filling.send(
    `POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 950\r\n\r\n{"a":"${'x'.repeat(900)}`,
  );
  // Sent before these were asked for, and so read before they were answered.
  for (let scrapes = 0; scrapes < 5; scrapes++) await scene.gateway.metrics();
  scene.client.request({ method: 'POST', target: '/v1/chat/completions', headers: json, body: `{"stream":true,"a":"${'y'.repeat(100)}"}` });
  t.equal((await scene.client.head()).status, 503);
  t.match(JSON.parse((await scene.client.body()).toString()), { error: { code: 'overloaded' } });
  t.match(await scene.gateway.ended(), { outcome: 'rejected', rejection: 'overloaded' });
  filling.reset();
  t.match(await scene.gateway.ended(), { outcome: 'client_closed', phase: 'upload', attempts: 0 });
  t.equal(scene.upstream.connections.length, 0, 'the upstream heard of neither');
  const request = await call({ ...scene, client: await connect(scene.gateway.port) });
  request.respond(200, {}, '{}');
  t.ok((await request.body()).length > body.length, 'and then there is room again');
});

// Promise: the app changes its base URL and nothing else: what it says goes up as it said it, but for the key.
import t from 'tap';
import { startTestGateway, UPSTREAM_KEY } from '../support/gateway.ts';
import { startUpstream } from '../support/upstream.ts';
import { connect } from '../support/wire.ts';

t.test('method, path, query, headers and body go up byte for byte, with the key in place of the client’s', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url, {
    upstream: { headers: { 'OpenAI-Organization': 'org-1' }, query: { 'api-version': '1' } },
  });
  const client = await connect(gateway.port);
  const body = Buffer.from([0, 255, 13, 10, 13, 10, 200]);
  client.request({
    method: 'PATCH',
    target: '/v1/some%20thing/a:b?x=%2F&api-version=0&y',
    headers: [
      ['Authorization', 'Bearer client'],
      ['X-Custom', 'é'],
      ['Accept-Encoding', 'gzip, br'],
      ['Content-Type', 'application/octet-stream'],
    ],
    body,
  });
  const request = await upstream.request();
  t.equal(request.method, 'PATCH');
  t.equal(request.target, '/v1/some%20thing/a:b?x=%2F&y&api-version=1');
  t.match(request.headers, {
    host: `127.0.0.1:${upstream.port}`,
    authorization: `Bearer ${UPSTREAM_KEY}`,
    'accept-encoding': 'identity',
    'content-length': String(body.length),
    'openai-organization': 'org-1',
  });
  t.same(await request.body(), body);
  request.connection.write('HTTP/1.1 207 Multi\r\nX-Mixed-Case: 1\r\nx-twice: a\r\nX-Twice: b\r\ncontent-length: 3\r\n\r\nabc');
  const head = await client.head();
  t.equal(head.status, 207);
  t.match(head.rawHeaders, [
    ['X-Mixed-Case', '1'],
    ['x-twice', 'a'],
    ['X-Twice', 'b'],
  ]);
  const added = head.rawHeaders.slice(3).map(([name]) => name);
  t.same(added, ['content-length', 'x-request-id', 'x-sluicegate-upstream', 'Date', 'Connection', 'Keep-Alive'], 'and nothing else');
  t.equal(head.headers['x-sluicegate-upstream'], 'main');
  t.equal((await client.body()).toString(), 'abc');
});

t.test('request ids: the upstream’s, else the client’s, else a new one; the same in the log', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const cases: [client: Record<string, string>, upstream: Record<string, string>, expected: RegExp][] = [
    [{ 'x-request-id': 'mine' }, { 'x-request-id': 'theirs' }, /^theirs$/],
    [{ 'x-request-id': 'mine' }, {}, /^mine$/],
    [{ 'x-request-id': 'has a blank' }, {}, /^[0-9a-f-]{36}$/],
    [{}, {}, /^[0-9a-f-]{36}$/],
  ];
  for (const [clientHeaders, upstreamHeaders, expected] of cases) {
    const client = await connect(gateway.port);
    client.request({
      method: 'GET',
      target: '/v1/models',
      headers: { ...clientHeaders, traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01' },
    });
    const request = await upstream.request();
    t.ok(request.headers.traceparent);
    request.respond(200, upstreamHeaders, '{}');
    const head = await client.head();
    t.match(head.headers['x-request-id'], expected);
    await client.body();
    const line = await gateway.ended();
    t.equal(line.requestId, head.headers['x-request-id']);
    t.equal(line.traceId, '0af7651916cd43dd8448eb211c80319c');
  }
});

t.test('A23 HEAD, OPTIONS, 204, 304 and an empty body end where they should, and the connection serves on', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const client = await connect(gateway.port);
  const answers: [method: string, bytes: string, status: number][] = [
    ['HEAD', 'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n', 200],
    ['GET', 'HTTP/1.1 204 No Content\r\n\r\n', 204],
    ['GET', 'HTTP/1.1 304 Not Modified\r\netag: "x"\r\n\r\n', 304],
    ['OPTIONS', 'HTTP/1.1 200 OK\r\ncontent-length: 0\r\nallow: GET\r\n\r\n', 200],
    ['GET', 'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok', 200],
  ];
  for (const [method, bytes, status] of answers) {
    client.request({ method, target: '/v1/models' });
    const request = await upstream.request();
    request.connection.write(bytes);
    t.equal((await client.head()).status, status);
    await client.body();
    t.equal((await gateway.ended()).outcome, 'completed', `${method} ${status}`);
  }
  t.equal(upstream.connections.length, 2, 'one upstream connection for all after HEAD, behind which undici trusts none');
});

t.test('Azure-style paths stand at the origin', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url, { upstream: { auth: 'api-key' } });
  const client = await connect(gateway.port);
  client.request({
    method: 'POST',
    target: '/openai/deployments/gpt-4o/chat/completions?api-version=2',
    headers: { 'api-key': 'own' },
    body: '{}',
  });
  const request = await upstream.request();
  t.equal(request.target, '/openai/deployments/gpt-4o/chat/completions?api-version=2');
  t.equal(request.headers['api-key'], UPSTREAM_KEY);
  request.respond(200, {}, '{}');
  await client.body();
  t.equal((await gateway.ended()).endpoint, '/v1/chat/completions');
});

t.test('A22 an HTTP/1.0 client gets a body that ends with the connection, and a reset where it is cut', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  for (const isWhole of [true, false]) {
    const client = await connect(gateway.port);
    client.send('GET /v1/responses/r?stream=true HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n');
    const request = await upstream.request();
    request.startSse();
    request.chunk('event: response.completed\ndata: {"type":"response.com');
    await client.until('response.com');
    if (isWhole) {
      request.chunk('pleted","response":{}}\n\n');
      request.endChunks();
    } else {
      request.connection.reset();
    }
    t.match(await client.closed, { how: isWhole ? 'fin' : 'reset' });
    await gateway.ended();
  }
});

// Promise: the probe is a call like any other at the door and in the books, never goes upstream, and ends with its client or a drain.
import t from 'tap';
import { hops, recognise } from '../../src/doctor/hops.ts';
import { formatEvent, PROBE_PATH, type ProbePlan, parseEvent, pauseBefore, planQuery, readPlan } from '../../src/doctor/probe.ts';
import { findBuffering, judgeSilence } from '../../src/doctor/verdict.ts';
import { hashKey } from '../../src/http/auth.ts';
import { startTestGateway } from '../support/gateway.ts';
import { startUpstream } from '../support/upstream.ts';
import { connect } from '../support/wire.ts';

t.jobs = 4;

const NO_UPSTREAM = 'http://127.0.0.1:1/v1';
const KEY = 'sk-client-of-the-probe';
const LONG = `${PROBE_PATH}?events=3&everyMs=10&silenceMs=600000`;
const plan: ProbePlan = { events: 30, everyMs: 100, silenceMs: 0, nonce: 'n' };

t.test('it tells what it sent and what reached it, in the head of any event stream, and is one request in the books', async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const client = await connect(gateway.port);
  client.request({ target: `${PROBE_PATH}?events=3&everyMs=10&nonce=abc`, headers: { via: '1.1 somebody', 'x-secret': 'value' } });
  const { status, headers } = await client.head();
  t.equal(status, 200);
  t.match(headers, {
    'content-type': 'text/event-stream; charset=utf-8',
    'cache-control': 'no-cache, no-transform',
    'x-accel-buffering': 'no',
  });
  const body = (await client.body()).toString();
  const events = body
    .split('\n\n')
    .map(parseEvent)
    .filter((event) => event !== undefined);
  t.same(
    events.map(({ n }) => n),
    [0, 1, 2],
  );
  t.match(events[0]?.facts, { nonce: 'abc', via: '1.1 somebody', heartbeatMs: 15_000, firstByteMs: 600_000, httpVersion: '1.1' });
  t.ok(events[0]?.facts?.seen.includes('x-secret'));
  t.notMatch(body, 'value"', 'names of headers, no values');
  t.ok((events[2]?.atMs ?? 0) >= 19, 'each has its time');
  t.match(body, /"last":true.*\n\ndata: \[DONE\]\n\n$/);
  t.match(await gateway.ended(), { endpoint: PROBE_PATH, outcome: 'completed', status: 200, attempts: 0, bytesOut: body.length });
  const metrics = await gateway.metrics();
  t.equal(metrics.value('sluicegate_requests_total', { endpoint: PROBE_PATH, upstream: 'none', outcome: 'completed' }), 1);
  t.equal(upstream.requestCount, 0, 'nobody upstream has heard of it');
});

t.test('other methods, bodies and bounds are refused', async (t) => {
  const gateway = await startTestGateway(t, NO_UPSTREAM);
  for (const [init, query, status] of [
    [{ method: 'POST' }, '', 405],
    [{ method: 'DELETE' }, '', 405],
    [{}, '?events=101', 400],
    [{}, '?events=0', 400],
    [{}, '?everyMs=5', 400],
    [{}, '?silenceMs=600001', 400],
    [{}, '?silenceMs=-1', 400],
    [{}, '?nonce=%0a', 400],
    [{}, '?toString=1', 400],
  ] as const) {
    const answer = await fetch(`${gateway.url}${PROBE_PATH}${query}`, init);
    t.equal(answer.status, status, `${JSON.stringify(init)} ${query}`);
    t.match(await answer.json(), { error: { code: status === 405 ? 'method_not_allowed' : 'invalid_request' } });
  }
});

t.test('it asks for a client’s key, whatever models that client may call, and counts against its limits', async (t) => {
  const clients = [{ name: 'app', keySha256: hashKey(KEY), models: ['none'], limits: { requestsPerMinute: 2 } }];
  const gateway = await startTestGateway(t, NO_UPSTREAM, { clients });
  const ask = async (headers: Record<string, string>) => {
    const answer = await fetch(`${gateway.url}${PROBE_PATH}?events=1`, { headers });
    await answer.text();
    return answer.status;
  };
  const authorization = `Bearer ${KEY}`;
  t.same([await ask({}), await ask({ authorization }), await ask({ authorization }), await ask({ authorization })], [401, 200, 200, 429]);
  t.match(await gateway.ended(), { outcome: 'rejected', rejection: 'invalid_api_key', endpoint: PROBE_PATH });
});

t.test('four at a time for a caller; one that is left ends at once and makes room', async (t) => {
  const gateway = await startTestGateway(t, NO_UPSTREAM);
  const clients = await Promise.all(Array.from({ length: 4 }, () => connect(gateway.port)));
  for (const client of clients) {
    client.request({ target: LONG });
    await client.until('"n":1');
  }
  const refused = await fetch(`${gateway.url}${PROBE_PATH}`);
  t.equal(refused.status, 429);
  t.match(await refused.json(), { error: { code: 'rate_limit_exceeded', type: 'streams' } });
  t.match(await gateway.ended(), { outcome: 'rejected' });
  clients[0]?.reset();
  t.match(await gateway.ended(), { outcome: 'client_closed', phase: 'stream' });
  clients[1]?.end();
  t.match(await gateway.ended(), { outcome: 'client_closed' }, 'a FIN is a client that has left');
  t.equal((await fetch(`${gateway.url}${PROBE_PATH}?events=1`)).status, 200);
  for (const client of clients) client.destroy();
});

t.test('a drain lets it finish, and then cuts it as it cuts any stream', async (t) => {
  const gateway = await startTestGateway(t, NO_UPSTREAM, { server: { drain: '300ms' } });
  const [short, long] = [await connect(gateway.port), await connect(gateway.port)];
  short.request({ target: `${PROBE_PATH}?events=3&everyMs=10&silenceMs=100` });
  long.request({ target: LONG });
  await short.until('"n":1');
  await long.until('"n":1');
  const drained = gateway.drain();
  t.match((await short.body()).toString(), /\[DONE\]/);
  t.match(await long.until('}}\n\n'), /"code":"draining"/);
  t.match(await long.closed, { isComplete: false });
  await drained;
  t.same([(await gateway.ended()).outcome, (await gateway.ended()).outcome], ['completed', 'drained']);
});

t.test('a plan survives its query; an event its writing', async (t) => {
  t.same(readPlan(planQuery(plan)), plan);
  t.same(
    [0, 1, 2].map((n) => pauseBefore(n, { ...plan, events: 3, silenceMs: 5000 })),
    [100, 100, 5000],
  );
  const event = { n: 1, atMs: 2.5, facts: { via: 'caf\u00e9' } } as never;
  t.match(parseEvent(formatEvent(event).trim()), event);
  for (const text of [': beat', 'data: [DONE]', 'data: {"n":1', 'data: {"error":{}}']) t.equal(parseEvent(text), undefined, text);
});

t.test('buffering is seen by differences alone: skewed clocks, a slow way and a lost packet are none', async (t) => {
  const arrivals = (arrivalOf: (sentAtMs: number, n: number) => number) =>
    Array.from({ length: 30 }, (_, n) => ({ event: { n, atMs: n * 100 }, atMs: arrivalOf(n * 100, n), bytes: 330 }));
  t.equal(
    findBuffering(
      arrivals((sent) => sent + 1e9),
      plan,
    ),
    undefined,
    'far apart clocks',
  );
  t.equal(
    findBuffering(
      arrivals((sent, n) => sent + 300 + (n % 3) * 20),
      plan,
    ),
    undefined,
    'jitter',
  );
  t.equal(
    findBuffering(
      arrivals((sent, n) => (n >= 10 && n < 13 ? 1350 : sent)),
      plan,
    ),
    undefined,
    'one retransmission',
  );
  t.match(
    findBuffering(
      arrivals(() => 2900),
      plan,
    ),
    { isWhole: true, longestMs: 2900, events: 30, bytes: 9900 },
  );
  const inTwelves = findBuffering(
    arrivals((sent) => Math.ceil((sent + 100) / 1200) * 1200),
    plan,
  );
  t.match(inTwelves, { isWhole: false, events: 12, bytes: 3960 });
  t.match(
    findBuffering(
      arrivals((sent) => Math.ceil(sent / 200) * 200),
      plan,
    ),
    { longestMs: 100 },
    'two at a time',
  );
});

t.test('a silence that is cut is as long as nothing came, however the hop ends it', async (t) => {
  const silent = { ...plan, events: 3, silenceMs: 60_000 };
  const answer = {
    status: 200,
    httpVersion: '1.1',
    headers: ['content-type', 'text/event-stream'],
    headAtMs: 1,
    endAtMs: 5100,
    cause: 'ECONNRESET',
    text: '',
  };
  const first = [0, 100].map((atMs, n) => ({ event: { n, atMs }, atMs, bytes: 1 }));
  t.match(judgeSilence(silent, { ...answer, arrivals: first, isWhole: false }), { silenceMs: 5000, status: undefined });
  t.match(judgeSilence(silent, { ...answer, status: 504, headers: [], headAtMs: 5100, arrivals: [], isWhole: false }), {
    silenceMs: 5000,
    status: 504,
  });
  t.equal(judgeSilence(silent, { ...answer, arrivals: first, isWhole: true }), undefined);
});

t.test('hops are known by what they leave behind, and each has its advice', async (t) => {
  const traces = (arrived: Record<string, string>, added: string[] = [], via?: string) =>
    recognise({ arrived: new Map(Object.entries(arrived)), added: new Set(added), via }).map(({ name }) => name);
  t.same(traces({}), []);
  t.same(traces({ server: 'cloudflare', 'cf-ray': '8f-FRA' }, ['cf-ray', 'x-forwarded-for']), ['Cloudflare']);
  t.same(traces({}, ['x-amzn-trace-id', 'x-forwarded-for']), ['AWS load balancer (ALB)']);
  t.same(traces({ 'x-amz-apigw-id': 'a=' }, ['x-amzn-trace-id']), ['API Gateway']);
  t.same(traces({ via: '1.1 x.cloudfront.net (CloudFront)' }), ['CloudFront']);
  t.same(traces({ server: 'Vercel', 'x-vercel-id': 'fra1::x' }), ['Vercel']);
  t.same(traces({ server: 'nginx' }, ['x-scheme', 'x-forwarded-scheme']), ['ingress-nginx']);
  t.same(traces({ server: 'nginx/1.29' }, ['cf-ray']), ['Cloudflare', 'nginx'], 'one behind the other');
  t.same(traces({}, [], '2.0 Caddy'), ['Caddy']);
  t.same(traces({}, ['x-forwarded-for']), ['a hop that does not give its name']);
  for (const { name, buffered, compressed, cut, patience } of hops)
    t.ok(
      [buffered, compressed, cut, patience].every((text) => text.length > 10),
      name,
    );
});

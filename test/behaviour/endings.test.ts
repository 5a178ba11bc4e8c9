// Promise: whatever happens to either side, in any phase, a request ends in exactly one way, truthfully, and nothing stays behind.
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { describeClient, type Ending, endings, FIRST_EVENT, renderEndings, type Scene } from '../support/endings.ts';
import { startTestGateway, type TestGateway } from '../support/gateway.ts';
import { type ScriptedUpstream, startUpstream } from '../support/upstream.ts';
import { connect } from '../support/wire.ts';

const chat = { target: '/v1/chat/completions', body: '{"model":"m","stream":true}' };

/** The upstream's address, or what the row has in its place. */
function addressFor({ instead }: Ending, upstream: ScriptedUpstream): string {
  if (instead === 'nowhere') return 'http://no-such-host.invalid/v1';
  if (instead === 'refused') return 'http://127.0.0.1:1/v1';
  return instead === 'mute' ? upstream.url.replace('http:', 'https:') : upstream.url;
}

/** Brings a request to the phase of the row. */
async function reach(
  { phase, instead, call = chat }: Ending,
  gateway: TestGateway,
  upstream: ScriptedUpstream,
): Promise<Pick<Scene, 'client' | 'request'>> {
  const client = await connect(gateway.port);
  if (phase === 'upload') {
    client.request({ method: 'POST', target: '/v1/files', chunked: true });
    client.send('5\r\nfirst\r\n');
    const request = await upstream.request();
    await request.bodyBytes(5);
    return { client, request };
  }
  client.request({ method: 'POST', ...call });
  if (instead !== undefined) {
    if (instead === 'mute') await (await upstream.connection()).received(1);
    return { client, request: undefined as never };
  }
  const request = await upstream.request();
  await request.body();
  if (phase === 'backpressure') {
    request.startSse();
    await client.head();
    client.pause();
    const event = `data: {"choices":[{"index":0,"delta":{"content":"${'x'.repeat(60_000)}"}}]}\n\n`;
    for (let n = 0; n < 300; n++) request.chunk(event);
    await flowHasStopped(gateway);
  }
  return { client, request };
}

/** Until the upstream is held back, and has sent no more between two looks: the client's buffers are full. */
async function flowHasStopped(gateway: TestGateway): Promise<void> {
  for (let last = -1; ; ) {
    const [stream] = await streamsOf(gateway);
    // It may be over already, where the row closes who takes nothing.
    if (stream === undefined || (stream.phase === 'backpressure' && stream.bytesOut === last)) return;
    last = stream.bytesOut;
  }
}

async function streamsOf({ opsUrl }: TestGateway): Promise<{ id: string; phase: string; bytesOut: number }[]> {
  return ((await (await fetch(`${opsUrl}/api/streams`)).json()) as { streams: { id: string; phase: string; bytesOut: number }[] }).streams;
}

/** As the live page and curl do. */
async function endFirst(gateway: TestGateway): Promise<void> {
  const [stream] = await streamsOf(gateway);
  await fetch(`${gateway.opsUrl}/api/streams/${stream?.id}`, { method: 'DELETE', headers: { 'x-sluicegate-action': 'end' } });
}

async function assertClient(t: Test, { client: expected }: Ending, { client }: Scene): Promise<void> {
  if (expected === 'nothing: it has left') return;
  if (typeof expected === 'object' && 'status' in expected) {
    t.equal((await client.head()).status, expected.status);
    const body = JSON.parse((await client.body()).toString());
    t.match(body, { error: { message: String, type: String, param: null } });
    t.equal(body.error.code, expected.code);
    return;
  }
  if (expected === 'the answer, complete') {
    t.ok((await client.body()).length > 0);
    return;
  }
  if (expected === 'its connection closed') client.resume();
  const { isComplete } = await client.closed;
  t.equal(isComplete, false, 'the body has no proper end');
  const text = client.raw().toString();
  t.notMatch(text, '[DONE]', 'no made-up end');
  const last = /data: \{"error":\{"message":"[^"]+","type":"[^"]+","param":null,"code":"([^"]+)"\}\}\n\n\r\n$/.exec(text)?.[1];
  t.equal(last, typeof expected === 'object' ? expected.event : undefined, 'the last event');
}

async function assertInvariants(t: Test, row: Ending, gateway: TestGateway, upstream: ScriptedUpstream): Promise<void> {
  const line = await gateway.ended();
  t.equal(line.outcome, row.outcome);
  t.equal(line.attempts, 1);
  const metrics = await gateway.metrics();
  t.equal(metrics.value('sluicegate_requests_total'), 1, 'one increment');
  t.equal(metrics.value('sluicegate_requests_total', { outcome: row.outcome, upstream: 'main' }), 1);
  t.equal(metrics.value('sluicegate_streams_active') ?? 0, 0, 'no stream is active');
  t.equal(metrics.value('sluicegate_upstream_connections', { state: 'active' }), 0, 'no connection is in use');
  t.equal(gateway.output.split('"outcome"').length - 1, 1, 'one log line');
  t.equal(upstream.requestCount, row.phase === 'connect' ? 0 : 1, 'the upstream was asked once, where it could be reached');
  if (row.upstream === 'its connection closed') await upstream.connections[0]?.closed;
  if (row.outcome === 'client_closed') t.equal(metrics.value('sluicegate_upstream_close_seconds_count', { phase: row.phase }), 1);
}

async function playEnding(t: Test, row: Ending): Promise<void> {
  const upstream = await startUpstream({ accept: row.instead !== 'mute' });
  // What it saw last may be half a request, where the client was cut off in its upload.
  t.teardown(() =>
    upstream.close().catch((error: Error) => {
      if (!error.message.includes('not a whole request')) throw error;
    }),
  );
  const gateway = await startTestGateway(t, addressFor(row, upstream), {
    ...row.settings,
    server: { drain: '1ms', ...row.settings?.server },
  });
  const { client, request } = await reach(row, gateway, upstream);
  t.teardown(() => client.destroy());
  const scene = { client, request, drain: () => void gateway.drain(), end: () => endFirst(gateway) };
  await row.act(scene);
  await assertClient(t, row, scene);
  await assertInvariants(t, row, gateway, upstream);
}

t.test('every ending of the table', { jobs: 8 }, async (t) => {
  for (const row of endings) {
    t.test(`${row.ids} ${row.phase}: ${row.cause} → ${describeClient(row.client)}, ${row.outcome}`, { buffered: true }, (t) =>
      playEnding(t, row),
    );
  }
});

t.test('docs/endings.md has the table as it was played', async (t) => {
  const file = fileURLToPath(new URL('../../docs/endings.md', import.meta.url));
  const text = readFileSync(file, 'utf8');
  const [before = '', after = ''] = text.split(/\| phase \| cause \|[\s\S]*?(?=\n\n)/);
  const expected = `${before}${renderEndings(endings)}${after}`;
  if (process.env.UPDATE_DOCS === 'true') writeFileSync(file, expected);
  t.equal(text, expected, 'UPDATE_DOCS=true npm test -- test/behaviour/endings.test.ts writes it anew');
  t.ok(FIRST_EVENT);
});

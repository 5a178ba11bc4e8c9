// Promise: whatever goes wrong, no key, no prompt and no address of an upstream comes out, and nobody gets in by disguise.
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { setImmediate } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { stringify } from 'yaml';
import { type Client, formatProblem, loadConfig } from '../../src/config.ts';
import { errorTable } from '../../src/errors.ts';
import { createExchange, type Outcome } from '../../src/exchange.ts';
import { startGateway } from '../../src/gateway.ts';
import { createAuthenticator } from '../../src/http/auth.ts';
import { createBodyMeter } from '../../src/stream/meter.ts';
import { createTokenizer } from '../../src/stream/tokens.ts';
import { createBoundedLines, createLogger, logExchange } from '../../src/telemetry/log.ts';
import { createMetrics } from '../../src/telemetry/metrics.ts';
import { plain } from '../../src/upstream/dialects/plain.ts';
import { responseHead } from '../../src/upstream/headers.ts';
import { startTestGateway, UPSTREAM_KEY } from '../support/gateway.ts';
import { NO_METRICS_PARTS } from '../support/metrics.ts';
import { runSluicegate } from '../support/process.ts';
import { type ScriptedUpstream, startUpstream, type UpstreamRequest } from '../support/upstream.ts';
import { createWaiting } from '../support/waiting.ts';
import { connect, type WireClient, type WireRequest } from '../support/wire.ts';

t.jobs = 3;

/** Secrets with characters that base64 and URL encoding change; what must not be seen is the part behind the first dash or colon. */
const canaries = {
  upstreamKey: 'sk-q7/Zk+9vTw2xLr5mBn8cHd3fJy=',
  clientKey: 'sk-P4/hs+8RyUe6oKj1gWa0nVb5Cz=',
  limitedKey: 'sk-E9/wu+3JbXs5vTm7dQk2yGf8Lr=',
  restrictedKey: 'sk-W5/kt+8HcJr1nZo4vPb7xLd2Qy=',
  poorKey: 'sk-T2/mv+6XeGs9uAw3jRf5qKn8Bh=',
  unknownKey: 'sk-N6/fr+5LtCq3zYh9pSd2uAi7Mw=',
  opsToken: 'ops-X3/dt+7QfMi2lZc9sEu4rJp6Bk=',
  password: 'user:G5kS2vN8hYb1xTq6DmWf',
  headerSecret: 'org-H8/eu+2PgVk7rXn4bTj9wQc5Lm=',
  querySecret: 'v-I1/go+6NzWd4yCf3kMt8eUh2Rs=',
  prompt: 'tell-me how the heron crossed the lock',
};
const WINDOW = 12;

/** Every form in which a part of a secret could show: plain, URL-encoded, and base64 at each of its three alignments. */
function formsOf(secret: string): string[] {
  const part = secret.slice(secret.search(/[-:]/) + 1);
  return Array.from({ length: part.length - WINDOW + 1 }, (_, at) => {
    const piece = part.slice(at, at + WINDOW);
    const encoded = [0, 1, 2].map((shift) => {
      const text = Buffer.concat([Buffer.alloc(shift), Buffer.from(piece)]).toString('base64');
      // What stands at either end depends on the bytes around the piece.
      return text.slice(Math.ceil((shift * 8) / 6), Math.floor(((shift + WINDOW) * 8) / 6));
    });
    return [piece, encodeURIComponent(piece), ...encoded, ...encoded.map((text) => text.replaceAll('+', '-').replaceAll('/', '_'))];
  }).flat();
}

const forms = Object.entries(canaries).map(([name, secret]) => ({ name, forms: formsOf(secret) }));

/** The names of the canaries that a text shows. */
function leaksIn(text: string): string[] {
  return forms.filter(({ forms }) => forms.some((form) => text.includes(form))).map(({ name }) => name);
}

const hash = (key: string) => createHash('sha256').update(key).digest('hex');
const clients = [
  { name: 'web-app', keySha256: hash(canaries.clientKey) },
  { name: 'limited', keySha256: hash(canaries.limitedKey), limits: { requestsPerMinute: 1 } },
  { name: 'restricted', keySha256: hash(canaries.restrictedKey), models: ['other'] },
  { name: 'poor', keySha256: hash(canaries.poorKey), limits: { budget: { usd: 0, per: 'day' } } },
];
const models = [{ match: 'priced', upstreams: ['main'], price: { input: 1, output: 1 } }];

/** A configuration file with a canary wherever one may stand. */
function fileFor(baseUrl: string, { upstream = {}, server = {}, ...rest }: Record<string, object> = {}): string {
  const headers = { 'X-Org-Secret': canaries.headerSecret };
  return stringify({
    server: { listen: '127.0.0.1:0', drain: '50ms', ...server },
    ops: { listen: '127.0.0.1:0', token: canaries.opsToken },
    upstreams: { main: { baseUrl, apiKey: canaries.upstreamKey, headers, query: { code: canaries.querySecret }, ...upstream } },
    clients,
    models,
    ...rest,
  });
}

type Format = 'json' | 'pretty';

/** Gateways that log everything in one format, and all that came out of them. */
function createStage(t: Test, format: Format) {
  const waiting = createWaiting();
  const wires: WireClient[] = [];
  let log = '';
  let metrics = '';

  async function start(baseUrl: string, settings: Record<string, object> = {}) {
    const text = fileFor(baseUrl, { ...settings, log: { level: 'trace', format } });
    const loaded = loadConfig({ file: 'canary.yaml', text }, {});
    if (!loaded.ok) throw new Error(loaded.problems.map(formatProblem).join('\n'));
    const destination = {
      write(line: string) {
        log += line;
        waiting.changed();
      },
    };
    const logger = createLogger(loaded.config.log, false, destination);
    const gateway = await startGateway({ config: loaded.config, log: logger, version: '0.0.0', beatMs: 5 });
    t.teardown(() => gateway.close());
    return gateway;
  }

  async function open(url: string): Promise<WireClient> {
    const client = await connect(Number(new URL(url).port));
    t.teardown(() => client.destroy());
    wires.push(client);
    return client;
  }

  return {
    start,
    open,
    /** The whole answer to a request, or to bytes. */
    async ask(url: string, request: WireRequest | string): Promise<number> {
      const client = await open(url);
      if (typeof request === 'string') client.send(request);
      else client.request(request);
      const { status } = await client.head();
      await client.body();
      return status;
    },
    async scrape(opsUrl: string): Promise<void> {
      const answer = await fetch(`${opsUrl}/metrics`, { headers: { authorization: `Bearer ${canaries.opsToken}` } });
      if (answer.status !== 200) throw new Error(`/metrics: ${answer.status}`);
      metrics += await answer.text();
    },
    logged: (pattern: RegExp) => waiting.wait({ awaited: String(pattern), seen: () => log, attempt: () => pattern.test(log) || undefined }),
    get log() {
      return log;
    },
    get metrics() {
      return metrics;
    },
    get answers() {
      return wires.map((client) => client.raw().toString('latin1')).join('\n');
    },
  };
}

type Stage = ReturnType<typeof createStage>;

const json = { 'content-type': 'application/json' };
const chat = {
  method: 'POST',
  target: `/v1/chat/completions?key=${encodeURIComponent(canaries.unknownKey)}`,
  headers: { ...json, authorization: `Bearer ${canaries.clientKey}`, 'x-title': canaries.prompt },
  body: JSON.stringify({ model: 'm', stream: true, messages: [{ role: 'user', content: canaries.prompt }] }),
};
const delta = { id: 'c', model: 'm-1', choices: [{ index: 0, delta: { content: 'Hello' }, finish_reason: null }] };

/** Sends a chat and brings its stream to its first event. */
async function beginStream(stage: Stage, url: string, upstream: ScriptedUpstream) {
  const client = await stage.open(url);
  client.request(chat);
  const request = await upstream.request();
  request.startSse();
  request.event(delta);
  await client.until('Hello');
  return { client, request };
}

async function answerNext(upstream: ScriptedUpstream, answer: (request: UpstreamRequest) => void): Promise<void> {
  answer(await upstream.request());
}

async function newUpstream(t: Test, options: object = {}): Promise<ScriptedUpstream> {
  const upstream = await startUpstream(options);
  t.teardown(() => upstream.close());
  return upstream;
}

/** What clients do wrong, and strangers. */
async function playRefusals(stage: Stage, url: string, upstream: ScriptedUpstream): Promise<void> {
  const { clientKey, unknownKey, limitedKey, password } = canaries;
  const get = (target: string, more = '') => `GET ${target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${clientKey}\r\n${more}\r\n`;
  await stage.ask(url, get(`http://${password}@127.0.0.1/v1/models`));
  await stage.ask(url, get(`/v1/../${clientKey}`));
  await stage.ask(url, get(`/v2/models?api-key=${clientKey}`));
  await stage.ask(url, get('/v1/models', `bad name: ${clientKey}\r\n`));
  await stage.ask(url, get('/v1/models', `x: ${clientKey.repeat(700)}\r\n`));
  await stage.ask(url, get('/v1/models').replace('GET', 'TRACE'));
  await stage.ask(url, get('/v1/realtime', 'Connection: upgrade\r\nUpgrade: websocket\r\n'));
  for (const authorization of [`Bearer ${unknownKey}`, `Basic ${Buffer.from(unknownKey).toString('base64')}`, unknownKey]) {
    await stage.ask(url, { ...chat, headers: { authorization } });
  }
  await stage.ask(url, { ...chat, headers: { 'x-api-key': unknownKey, 'api-key': clientKey } });
  await stage.ask(url, { ...chat, body: canaries.prompt.repeat(1000) });
  const limited = { ...chat, headers: { ...json, authorization: `Bearer ${limitedKey}` } };
  await Promise.all([stage.ask(url, limited), answerNext(upstream, (request) => request.respond(200, {}, '{}'))]);
  await stage.ask(url, limited);
  await stage.ask(url, { ...chat, headers: { ...json, authorization: `Bearer ${canaries.restrictedKey}` } });
  await stage.ask(url, { ...chat, headers: { ...json, authorization: `Bearer ${canaries.poorKey}` } });
  await stage.ask(url, { ...chat, headers: { ...chat.headers, 'content-encoding': 'gzip' } });
}

/** What upstreams answer, and how their streams end. */
async function playAnswers(stage: Stage, url: string, upstream: ScriptedUpstream): Promise<void> {
  const { upstreamKey } = canaries;
  const quoting = `{"error":{"message":"Bearer ${upstreamKey} may not do that, nor may ${upstreamKey}"}}`;
  for (const status of [400, 401, 403, 429, 500]) {
    await Promise.all([stage.ask(url, chat), answerNext(upstream, (request) => request.respond(status, {}, quoting))]);
  }
  await Promise.all([stage.ask(url, chat), answerNext(upstream, (request) => request.connection.reset())]);
  await Promise.all([stage.ask(url, chat), answerNext(upstream, (request) => request.connection.write('junk\r\n\r\n'))]);
  const ends: [outcome: RegExp, end: (request: UpstreamRequest) => void][] = [
    [/completed/, (request) => request.event('[DONE]')],
    [/upstream_error_event/, (request) => request.event({ error: { message: 'the model is ill' } })],
    [/upstream_truncated/, () => undefined],
  ];
  for (const [outcome, end] of ends) {
    const { request } = await beginStream(stage, url, upstream);
    end(request);
    request.endChunks();
    await stage.logged(outcome);
  }
  const broken = await beginStream(stage, url, upstream);
  broken.request.connection.reset();
  await broken.client.until('upstream_reset');
  const left = await beginStream(stage, url, upstream);
  left.client.reset();
  await stage.logged(/client_closed/);
}

/** What takes too long, each on a gateway of its own. */
async function playDelays(t: Test, stage: Stage): Promise<void> {
  async function idle() {
    const upstream = await newUpstream(t);
    const { url, opsUrl } = await stage.start(upstream.url, { upstream: { timeouts: { idle: '40ms' } } });
    const { client } = await beginStream(stage, url, upstream);
    await client.until('upstream_idle_timeout');
    await stage.scrape(opsUrl);
  }
  async function firstByte() {
    const upstream = await newUpstream(t);
    const { url, opsUrl } = await stage.start(upstream.url, { upstream: { timeouts: { firstByte: '40ms' } } });
    await stage.ask(url, chat);
    await stage.scrape(opsUrl);
  }
  async function total() {
    const upstream = await newUpstream(t);
    const { url, opsUrl } = await stage.start(upstream.url, { upstream: { timeouts: { total: '1s' } } });
    const { client } = await beginStream(stage, url, upstream);
    await client.until('upstream_total_timeout');
    await stage.scrape(opsUrl);
  }
  async function connecting() {
    const upstream = await newUpstream(t, { accept: false });
    const { url, opsUrl } = await stage.start(upstream.url.replace('http:', 'https:'), { upstream: { timeouts: { connect: '40ms' } } });
    await stage.ask(url, chat);
    await stage.scrape(opsUrl);
  }
  async function queued() {
    const upstream = await newUpstream(t);
    const { url, opsUrl } = await stage.start(upstream.url, { upstream: { maxConnections: 1, timeouts: { connect: '500ms' } } });
    await beginStream(stage, url, upstream);
    await stage.ask(url, chat);
    await stage.scrape(opsUrl);
  }
  async function stalled() {
    const upstream = await newUpstream(t);
    const { url, opsUrl } = await stage.start(upstream.url, { server: { clientStall: '50ms' } });
    const { client, request } = await beginStream(stage, url, upstream);
    client.pause();
    for (let n = 0; n < 400; n++) request.chunk(`data: ${'x'.repeat(60_000)}\n\n`);
    await stage.logged(/client_stalled/);
    await stage.scrape(opsUrl);
  }
  await Promise.all([idle(), firstByte(), total(), connecting(), queued(), stalled()]);
}

/** Nobody there, nobody known, and the end of the gateway itself. */
async function playEnds(t: Test, stage: Stage): Promise<void> {
  const upstream = await newUpstream(t);
  const unreachable = await stage.start(`http://127.0.0.1:${await freePort()}/v1`);
  await stage.ask(unreachable.url, chat);
  const anonymous = await stage.start(upstream.url, { clients: [] });
  await stage.ask(anonymous.url, { ...chat, headers: { ...chat.headers, origin: `https://${canaries.unknownKey}.example` } });
  await stage.ask(anonymous.opsUrl, { method: 'GET', target: '/metrics', headers: { authorization: `Bearer ${canaries.unknownKey}` } });
  for (const { opsUrl } of [unreachable, anonymous]) await stage.scrape(opsUrl);

  const { url, opsUrl, close } = await stage.start(upstream.url);
  const ended = await beginStream(stage, url, upstream);
  const headers = { authorization: `Bearer ${canaries.opsToken}`, 'x-sluicegate-action': 'end' };
  const shown = await (await fetch(`${opsUrl}/api/streams`, { headers })).text();
  t.strictSame(leaksIn(shown), [], 'no canary in what the live page shows');
  await fetch(`${opsUrl}/api/streams/${/"id":"([^"]+)"/.exec(shown)?.[1]}`, { method: 'DELETE', headers });
  await ended.client.until('ended_by_operator');

  const { client } = await beginStream(stage, url, upstream);
  const closed = close();
  await client.until('draining');
  await closed;
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

const outcomes: Record<Outcome, true> = {
  completed: true,
  client_closed: true,
  client_stalled: true,
  upstream_error: true,
  upstream_error_event: true,
  upstream_truncated: true,
  upstream_reset: true,
  upstream_unreachable: true,
  timeout_connect: true,
  timeout_first_byte: true,
  timeout_idle: true,
  timeout_total: true,
  rejected: true,
  drained: true,
};
/** Codes that no request of this play meets: ten seconds of waiting, and a fault of the gateway's own. */
const unmet = ['request_timeout', 'internal_error'];

/** All that a line of the log may say (INTERFACE section 8), and pino's own. */
const logKeys = new Set(
  (
    'level time msg requestId client upstream model method endpoint status outcome rejection cause phase ttfbMs ttftMs durationMs ' +
    'tokens costUsd bytesIn bytesOut attempts remoteAddress traceId fault at'
  ).split(' '),
);

t.test('the search finds a secret in every form that it is meant to find', async (t) => {
  for (const [name, secret] of Object.entries(canaries)) {
    const shown = [secret, encodeURIComponent(secret), `prefix ${secret.slice(5, 20)} suffix`];
    for (const before of ['', 'x', 'xy', 'user:']) shown.push(Buffer.from(`${before}${secret}`).toString('base64'));
    shown.push(Buffer.from(`Bearer ${secret}`).toString('base64url'));
    for (const text of shown) t.strictSame(leaksIn(text), [name], text);
  }
  t.strictSame(leaksIn(JSON.stringify(errorTable)), []);
});

for (const format of ['json', 'pretty'] as const) {
  t.test(
    `D9 D11 D13 every error and every outcome, logged as ${format} at trace: no canary in log, metrics or answers`,
    { buffered: true },
    async (t) => {
      const stage = createStage(t, format);
      const upstream = await newUpstream(t);
      const { url, opsUrl } = await stage.start(upstream.url, { server: { maxRequestBody: '4KiB' } });
      await playRefusals(stage, url, upstream);
      await playAnswers(stage, url, upstream);
      await stage.scrape(opsUrl);
      await playDelays(t, stage);
      await playEnds(t, stage);

      const met = new Set(Array.from(stage.answers.matchAll(/"code":"(\w+)"/g), ([, code = '']) => code));
      t.strictSame(
        Object.keys(errorTable)
          .filter((code) => !met.has(code))
          .sort(),
        [...unmet].sort(),
        'every other code was answered',
      );
      for (const outcome of Object.keys(outcomes)) t.match(stage.log, new RegExp(`\\b${outcome}\\b`), `${outcome} was logged`);
      t.match(stage.metrics, /sluicegate_requests_total\{[^}]*outcome="client_stalled"/);
      t.match(stage.answers, '*'.repeat(canaries.upstreamKey.length), 'the upstream did quote its key');
      for (const [name, text] of Object.entries({ log: stage.log, metrics: stage.metrics, answers: stage.answers })) {
        t.strictSame(leaksIn(text), [], `no canary in the ${name}`);
      }
      t.notMatch(stage.log + stage.answers + stage.metrics, /127\.0\.0\.1:\d/, 'nor the address of an upstream');
      if (format === 'pretty') return;
      const keys = stage.log
        .trim()
        .split('\n')
        .flatMap((line) => Object.keys(JSON.parse(line)));
      t.strictSame(
        keys.filter((key) => !logKeys.has(key)),
        [],
        'lines are made of known facts; no error is logged whole',
      );
    },
  );
}

for (const format of ['json', 'pretty'] as const) {
  t.test(
    `D9 a process that logs ${format} at trace, from its start to its end, is silent about them too`,
    { buffered: true },
    async (t) => {
      const upstream = await newUpstream(t);
      const text = fileFor(upstream.url, { log: { level: 'trace', format } });
      const folder = t.testdir({ 'g.yaml': text });
      const running = runSluicegate(t, ['-c', 'g.yaml'], { OPENAI_API_KEY: canaries.unknownKey }, folder);
      const url = (await running.said(/API +(\S+)\/v1/))[1] ?? '';
      const { status, body } = await askFor(upstream, url, (request) => request.respond(400, {}, `no ${canaries.upstreamKey}`));
      t.equal(status, 400);
      await running.said(/upstream_error/);
      writeFileSync(join(folder, 'g.yaml'), text.replace('baseUrl: http://', `baseUrl: http://${canaries.password}@`));
      running.child.kill('SIGHUP');
      await running.said(/the old one stays/);
      await upstream.close();
      t.match(await askFor(undefined, url), { status: 502 });
      await running.said(/upstream_unreachable/);
      running.child.kill('SIGTERM');
      t.equal(await running.exited(), 0);
      t.match(running.stderr, /g\.yaml:\d+:\d+: upstreams\.main\.baseUrl/);
      t.strictSame(leaksIn(running.stdout + running.stderr + body), []);
    },
  );
}

/** One chat through a process, answered as told. */
async function askFor(upstream: ScriptedUpstream | undefined, url: string, answer: (request: UpstreamRequest) => void = () => undefined) {
  const client = await connect(Number(new URL(url).port));
  client.request(chat);
  if (upstream !== undefined) await answerNext(upstream, answer);
  const { status } = await client.head();
  const body = (await client.body()).toString();
  client.destroy();
  return { status, body };
}

t.test('D9 check, and every start that fails, tell what is wrong and not the secret', { buffered: true }, async (t) => {
  const { upstreamKey, unknownKey, clientKey, password, prompt } = canaries;
  const port = await freePort();
  const taken = createServer().listen(port, '127.0.0.1');
  t.teardown(() => taken.close());
  const good = fileFor('https://127.0.0.1:1/v1');
  const folder = t.testdir({
    'good.yaml': good,
    'credentials.yaml': fileFor(`https://${password}@127.0.0.1/v1`),
    'misplaced.yaml': `${good}${upstreamKey}: ${unknownKey}\n`,
    'torn.yaml': `${good}"${upstreamKey}\n  ${clientKey}: [`,
    'taken.yaml': good.replace('listen: 127.0.0.1:0', `listen: 127.0.0.1:${port}`),
    'spaced.yaml': good.replace(upstreamKey, `${upstreamKey} x`),
  });
  const runs: [args: string[], code: number, said: RegExp, env?: Record<string, string>][] = [
    [['check', '-c', 'good.yaml'], 0, /apiKey: ••••/],
    [['check', '-c', 'credentials.yaml'], 1, /baseUrl/],
    [['check', '-c', 'misplaced.yaml'], 1, /is not a setting/],
    [['check', '-c', 'torn.yaml'], 1, /torn\.yaml:\d+/],
    [['-c', 'spaced.yaml'], 1, /apiKey/],
    [['-c', 'taken.yaml'], 2, /listens there already/],
    [[], 1, /SLUICEGATE_UPSTREAM/, { SLUICEGATE_UPSTREAM: `https://${password}@127.0.0.1/v1`, SLUICEGATE_UPSTREAM_KEY: upstreamKey }],
    [[], 1, /SLUICEGATE_KEY/, { SLUICEGATE_KEY: prompt, OPENAI_API_KEY: upstreamKey }],
  ];
  for (const [args, code, said, env] of runs) {
    const running = runSluicegate(t, args, env, folder);
    t.equal(await running.exited(), code, args.join(' '));
    t.match(running.stdout + running.stderr, said);
    t.strictSame(leaksIn(running.stdout + running.stderr), [], args.join(' '));
  }
});

const KEY = 'sk-client-0123456789abcdef';
const webApp = [{ name: 'web-app', keySha256: hash(KEY) }];

/** A gateway before a scripted upstream. */
async function setUp(t: Test, settings: Record<string, object> = {}) {
  const upstream = await newUpstream(t);
  return { upstream, gateway: await startTestGateway(t, upstream.url, settings) };
}

async function statusOf(port: number, request: WireRequest | string): Promise<number> {
  const client = await connect(port);
  if (typeof request === 'string') client.send(request);
  else client.request(request);
  const { status } = await client.head();
  client.destroy();
  return status;
}

t.test('D1 D3 keys that are none, or strange, are 401 with the body still on its way, and the upstream hears nothing', async (t) => {
  const { upstream, gateway } = await setUp(t, { clients: webApp });
  const strange = ['', `"${KEY}"`, `'${KEY}'`, `${KEY},${KEY}`, `${KEY}\t`.repeat(2), `\u00e9${KEY}`, KEY.toUpperCase(), 'k'.repeat(8192)];
  strange.push(Buffer.from('ключ-🔑').toString('latin1'), '%00', '$KEY', KEY.slice(0, -1), `${KEY}0`, hash(KEY));
  for (const key of strange) {
    for (const header of [`Authorization: Bearer ${key}`, `x-api-key: ${key}`]) {
      const client = await connect(gateway.port);
      client.send(Buffer.from(`POST /v1/files HTTP/1.1\r\nHost: x\r\n${header}\r\nContent-Length: 100\r\n\r\nbegun`, 'latin1'));
      t.equal((await client.head()).status, 401, header.slice(0, 60));
      t.match(JSON.parse((await client.body()).toString()), { error: { code: 'invalid_api_key' } });
      client.destroy();
    }
  }
  const doubled = `GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${KEY}\r\nauthorization: Bearer ${KEY}\r\n\r\n`;
  t.equal(await statusOf(gateway.port, doubled), 401, 'the right one twice is refused as well');
  t.equal(
    await statusOf(gateway.port, `GET /v1/models HTTP/1.1\r\nHost: x\r\nx-api-key: ${KEY}\0\r\n\r\n`),
    400,
    'a NUL is no header at all',
  );
  t.equal(upstream.connections.length, 0);
  t.notMatch(gateway.output, KEY);
});

t.test('D20 the time of a 401 tells nothing: all keys are compared, whole, and near misses cost what far ones do', async (t) => {
  const { upstream, gateway } = await setUp(t, { clients: webApp });
  const loaded = loadConfig({ file: 'x.yaml', text: fileFor(upstream.url) }, {});
  if (!loaded.ok) throw new Error('not loaded');
  const { limits } = loaded.config.anonymous;
  const clientOf = (name: string): Client => ({ name, keySha256: [hash(KEY)], models: undefined, endpoints: [], limits });
  const [first, last] = [clientOf('first'), clientOf('last')];
  const authenticate = createAuthenticator({ ...loaded.config, clients: [first, last] });
  t.equal(authenticate(['authorization', `Bearer ${KEY}`])?.name, 'last', 'the comparison does not stop at the first that fits');

  const client = await connect(gateway.port);
  const times: Record<string, number[]> = { near: [], far: [] };
  const keys = { near: `${KEY.slice(0, -1)}0`, far: 'x'.repeat(KEY.length) };
  for (let n = 0; n < 10_000; n++) {
    const kind = n % 2 === 0 ? 'near' : 'far';
    const startedAt = performance.now();
    client.request({ target: '/v1/models', headers: { authorization: `Bearer ${keys[kind]}` } });
    await client.head();
    await client.body();
    times[kind]?.push(performance.now() - startedAt);
  }
  const [near = 0, far = 0] = ['near', 'far'].map((kind) => times[kind]?.sort((a, b) => a - b)[2500]);
  t.ok(near / far > 0.8 && near / far < 1.25, `medians ${near.toFixed(4)} and ${far.toFixed(4)} ms`);
});

t.test('D4 D5 no header and no field of a body chooses the upstream, its path or its credential', async (t) => {
  const { upstream, gateway } = await setUp(t, { clients: webApp });
  const other = await newUpstream(t);
  const client = await connect(gateway.port);
  const body = JSON.stringify({
    model: 'm',
    api_base: other.url,
    base_url: other.url,
    baseURL: other.url,
    api_key: 'x',
    upstream: 'other',
  });
  const host = `127.0.0.1:${other.port}`;
  const disguises: Record<string, string> = {
    host,
    'x-forwarded-host': host,
    'x-forwarded-proto': 'https',
    forwarded: `host=${host}`,
    'x-upstream': other.url,
    'x-sluicegate-upstream': 'other',
    'x-original-url': '/admin',
    'x-api-base': other.url,
  };
  for (const name of ['authorization', 'api-key', 'x-api-key']) {
    const own: Record<string, string> = { [name]: name === 'authorization' ? `Bearer ${KEY}` : KEY };
    client.request({ method: 'POST', target: '/v1/chat/completions', headers: { ...disguises, ...own }, body });
    const request = await upstream.request();
    t.equal(request.headers.host, `127.0.0.1:${upstream.port}`);
    t.equal(request.headers.authorization, `Bearer ${UPSTREAM_KEY}`);
    t.notMatch(request.headers, { 'api-key': String });
    t.notMatch(request.headers, { 'x-api-key': String });
    t.notMatch(request.head, KEY, `the client’s key in ${name} stays here`);
    t.notMatch(request.head, /x-forwarded|\nforwarded|x-sluicegate/i);
    t.equal((await request.body()).toString(), body);
    request.respond(200, {}, '{}');
    await client.body();
  }
  t.equal(other.connections.length, 0);
});

t.test('D10 a header that quotes our key is overwritten as well', async (t) => {
  const traits = { status: 200, upstream: 'main', requestId: 'ours', isCorsOurs: false, own: [], key: UPSTREAM_KEY };
  const quoting = ['x-request-id', `req-${UPSTREAM_KEY}`, 'x-echo', `Bearer ${UPSTREAM_KEY}, ${UPSTREAM_KEY}`, 'x-plain', 'as it was'];
  const { headers, requestId } = responseHead(quoting, traits);
  t.notMatch(headers.join('\n') + requestId, UPSTREAM_KEY);
  const stars = '*'.repeat(UPSTREAM_KEY.length);
  t.match(headers, ['x-request-id', `req-${stars}`, 'x-echo', `Bearer ${stars}, ${stars}`, 'x-plain', 'as it was']);
});

t.test('D12 no redirect is followed, whatever its status: the client gets it, and the other place never hears of us', async (t) => {
  const { upstream, gateway } = await setUp(t);
  const other = await newUpstream(t);
  const client = await connect(gateway.port);
  for (const status of [301, 302, 303, 307, 308]) {
    client.request({ method: 'POST', target: '/v1/chat/completions', body: '{}' });
    await answerNext(upstream, (request) => request.respond(status, { location: `${other.url}/chat/completions` }));
    t.match(await client.head(), { status, headers: { location: `${other.url}/chat/completions` } });
    await client.body();
    t.match(await gateway.ended(), { status, outcome: 'completed' });
  }
  t.equal(other.connections.length, 0);
  t.equal(upstream.requestCount, 5, 'and each was asked for once');
});

t.test('D13 /metrics on the clients’ listener is 404, with a key or without', async (t) => {
  const { gateway } = await setUp(t, { clients: webApp });
  for (const headers of [{}, { authorization: `Bearer ${KEY}` }])
    t.equal(await statusOf(gateway.port, { target: '/metrics', headers }), 404);
});

t.test('D14 a forged X-Forwarded-For dodges no limit, neither directly nor through a trusted proxy', async (t) => {
  const anonymous = { limits: { requestsPerMinute: 2 } };
  const call = async (upstream: ScriptedUpstream, port: number, forwardedFor: string) => {
    const client = await connect(port);
    client.request({
      target: '/v1/models',
      headers: { 'x-forwarded-for': forwardedFor, 'x-real-ip': forwardedFor, 'true-client-ip': forwardedFor },
    });
    const answered = answerNext(upstream, (request) => request.respond(200, {}, '{}')).catch(() => undefined);
    const { status } = await client.head();
    client.destroy();
    return { status, answered };
  };
  for (const [trustProxy, behind] of [
    ['off', ''],
    [['127.0.0.0/8'], ', 203.0.113.7'],
    [['127.0.0.0/8', '10.0.0.0/8'], ', 203.0.113.7, 10.1.2.3'],
  ] as const) {
    const { upstream, gateway } = await setUp(t, { anonymous, server: { trustProxy } });
    const statuses: number[] = [];
    for (let n = 0; n < 4; n++) statuses.push((await call(upstream, gateway.port, `198.51.100.${n}${behind}`)).status);
    t.strictSame(statuses, [200, 200, 429, 429], String(trustProxy));
    t.match(await gateway.ended(), { remoteAddress: behind === '' ? '127.0.0.1' : '203.0.113.7' });
    if (trustProxy !== 'off') t.equal((await call(upstream, gateway.port, '203.0.113.8')).status, 200, 'another client has its own');
  }
});

t.test('D16 100,000 models leave a hundred labels and `other`, and a scrape that stays small', async (t) => {
  const metrics = createMetrics(NO_METRICS_PARTS);
  for (let n = 0; n < 100_000; n++) {
    const meter = createBodyMeter(plain, createTokenizer());
    meter.observe(`{"model":"m-${n}"}`);
    const exchange = createExchange({ requestId: 'r', startedAtMs: 0, method: 'POST', remoteAddress: '::1', traceId: undefined });
    metrics.record(
      Object.assign(exchange, { upstream: 'main', endpoint: '/v1/embeddings', outcome: 'completed', durationMs: 1, ttfbMs: 1, meter }),
    );
  }
  const { body } = await metrics.scrape('');
  const labels = new Set(Array.from(body.matchAll(/model="([^"]*)"/g), ([, model]) => model));
  t.equal(labels.size, 101);
  t.match(body, /sluicegate_requests_total\{[^}]*model="other"[^}]*\} 99900\n/);
  t.ok(body.length < 500_000, `${body.length} bytes`);
});

t.test('D21 a page in a browser opens no WebSocket, sends no form and reads no metrics page of a gateway on loopback', async (t) => {
  const { upstream, gateway } = await setUp(t);
  const own = `127.0.0.1:${gateway.port}`;
  const socket = {
    connection: 'Upgrade',
    upgrade: 'websocket',
    'sec-websocket-version': '13',
    'sec-websocket-key': 'dGhlIHNhbXBsZSBub25jZQ==',
  };
  const pages: [target: string, headers: Record<string, string>][] = [
    ['/v1/realtime?model=m', { ...socket, host: own, origin: 'https://evil.example' }],
    ['/v1/realtime?model=m', { ...socket, host: 'rebound.example', origin: 'http://rebound.example' }],
    ['/v1/chat/completions', { host: own, origin: 'https://evil.example', 'content-type': 'text/plain' }],
    ['/v1/chat/completions', { host: own, origin: `http://127.0.0.1:${gateway.opsPort}` }],
    ['/v1/chat/completions', { host: `rebound.example:${gateway.port}` }],
    ['/openai/deployments/d/chat/completions', { host: own, origin: 'null' }],
  ];
  for (const [target, headers] of pages) {
    const status = await statusOf(gateway.port, { method: 'upgrade' in headers ? 'GET' : 'POST', target, headers });
    t.equal(status, 403, JSON.stringify([target, headers.host, headers.origin]));
    t.match(await gateway.ended(), { outcome: 'rejected', rejection: 'forbidden_origin', attempts: 0 });
  }
  t.equal(
    await statusOf(gateway.opsPort, { target: '/', headers: { host: `127.0.0.1:${gateway.opsPort}`, origin: 'https://evil.example' } }),
    403,
  );
  t.equal(upstream.connections.length, 0, 'nothing was spent');
});

t.test('what others named is one line without control characters, in either format', async (t) => {
  const nasty = 'gpt\u001b[2J\u009b31m\u2028\u202e\r\n{"level":60}\ud800';
  for (const format of ['json', 'pretty'] as const) {
    let written = '';
    const log = createLogger({ level: 'info', format }, false, { write: (line) => (written += line) });
    const meter = createBodyMeter(plain, createTokenizer());
    meter.observe(JSON.stringify({ model: nasty }));
    const exchange = createExchange({
      requestId: nasty,
      startedAtMs: 0,
      method: 'POST',
      remoteAddress: nasty.repeat(100),
      traceId: undefined,
    });
    logExchange(log, Object.assign(exchange, { outcome: 'completed' as const, durationMs: 1, meter }));
    t.match(written, /^[^\n]*gpt[^\n]*\n$/);
    t.notMatch(written, /[\p{C}\p{Zl}\p{Zp}]./u);
    t.ok(written.length < 1000);
  }
});

t.test('the line of a request is what pino makes of its facts, and none where the level is above', async (t) => {
  const lines: string[] = [];
  const log = createLogger({ level: 'info', format: 'json' }, false, { write: (line) => void lines.push(line) });
  const arrival = { requestId: 'a "quoted" \\ id', startedAtMs: 0, method: 'POST', remoteAddress: '::1', traceId: undefined };
  const exchange = Object.assign(createExchange(arrival), { outcome: 'completed' as const, durationMs: 1.25, status: 200, bytesOut: 3 });
  logExchange(log, exchange);
  const { level, time, msg, ...facts } = JSON.parse(lines[0] ?? '');
  log.info(facts, msg);
  const timeless = (line = '') => line.replace(/"time":"[^"]*"/, '');
  t.equal(timeless(lines[0]), timeless(lines[1]));
  t.match(
    { level, time, facts },
    { level: 30, time: /^\d{4}-\d\d-\d\dT[\d:.]{12}Z$/, facts: { requestId: arrival.requestId, durationMs: 1.3 } },
  );
  log.level = 'warn';
  logExchange(log, exchange);
  t.equal(lines.length, 2);
});

t.test('a log that nobody reads holds so much and no more, and says what it dropped', async (t) => {
  const read: string[] = [];
  let takeNext = () => {};
  const stream = new Writable({
    write(chunk, _, done) {
      read.push(String(chunk));
      takeNext = done;
    },
  });
  const lines = createBoundedLines(stream, 100_000);
  const line = `${'x'.repeat(99)}\n`;
  for (let n = 0; n < 3000; n++) lines.write(line);
  await setImmediate();
  t.equal(stream.writableLength, 100_000, 'as many as fit, and the others are not held');
  const drained = once(stream, 'drain');
  takeNext();
  await drained;
  lines.write('again\n');
  await setImmediate();
  takeNext();
  t.equal(read[0], line.repeat(1000), 'in one write');
  t.match(JSON.parse(read[1] ?? ''), { level: 40, dropped: 2000 });
  t.equal(read[2], 'again\n');
});

t.test('a process that ends within the turn of its last line has written it', async (t) => {
  const log = JSON.stringify(new URL('../../src/telemetry/log.ts', import.meta.url).href);
  const code = `const { createBoundedLines } = await import(${log}); createBoundedLines(process.stdout).write('last\\n'); process.exit(3);`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', code], { stdio: ['ignore', 'pipe', 'inherit'] });
  const [[status], written] = await Promise.all([once(child, 'exit'), text(child.stdout)]);
  t.same({ status, written }, { status: 3, written: 'last\n' });
});

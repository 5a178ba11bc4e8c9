// A soak's scenario (G11): every upstream is down for minutes, at a high rate of calls; fast 502s, no growth, and a quick recovery.
import { createServer, type Server } from 'node:http';
import { setTimeout } from 'node:timers/promises';
import { connect } from '../support/wire.ts';
import { quantiles } from './figures.ts';
import { startGatewayProcess, type Watched } from './gateway-process.ts';
import { minutes } from './options.ts';
import { conclude, find, print, printMemory, type Weight } from './report.ts';

const RATE_A_SECOND = 200;
/** Each keeps a connection, as a load balancer does. */
const CALLERS = 20;
/** For the median: what lies far beyond it tells of the machine. */
const FAST_MS = 50;
const RECOVERY_MS = 1000;
const WEIGH_EVERY_MS = 5000;

const call = { method: 'POST', target: '/v1/chat/completions', headers: { 'content-type': 'application/json' }, body: '{"model":"m"}' };
const upstream = createServer((request, response) => void request.resume().on('end', () => response.end('{"choices":[]}')));

/** A port where nobody listens now. Below those that connections are given: a connection to its own port would be one to itself. */
async function findPort(server: Server): Promise<number> {
  for (let port = 21_000; port < 22_000; port++) {
    const isFree = await new Promise<boolean>((resolve) => {
      server.once('error', () => resolve(false)).listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
    });
    server.removeAllListeners('error').removeAllListeners('listening');
    if (isFree) return port;
  }
  throw new Error('no port is free');
}

const upstreamPort = await findPort(upstream);
const gateway = await startGatewayProcess({
  configuration: { upstreams: { main: { baseUrl: `http://127.0.0.1:${upstreamPort}/v1`, apiKey: 'sk-upstream' } } },
});
const times: number[] = [];
const weights: (Weight & Watched)[] = [];

async function ask(client: Awaited<ReturnType<typeof connect>>): Promise<{ status: number; ms: number }> {
  const startedAtMs = performance.now();
  client.request(call);
  const { status } = await client.head();
  const body = (await client.body()).toString();
  if (status === 502 && JSON.parse(body).error.code !== 'upstream_unreachable') find(`a 502 of another kind: ${body}`);
  return { status, ms: performance.now() - startedAtMs };
}

/** So many calls on one connection: what the client has read of it is kept for its messages. */
const CALLS_A_CONNECTION = 200;

async function keepCalling(untilMs: number): Promise<void> {
  const everyMs = (1000 * CALLERS) / RATE_A_SECOND;
  for (let dueMs = performance.now() + Math.random() * everyMs; dueMs < untilMs; ) {
    const client = await connect(gateway.port);
    for (let n = 0; n < CALLS_A_CONNECTION && dueMs < untilMs; n++, dueMs += everyMs) {
      await setTimeout(Math.max(0, dueMs - performance.now()));
      const { status, ms } = await ask(client);
      times.push(ms);
      if (status !== 502) find(`status ${status} while the upstream is down`);
    }
    client.destroy();
  }
}

async function weigh(untilMs: number): Promise<void> {
  for (; performance.now() < untilMs; await setTimeout(WEIGH_EVERY_MS))
    weights.push({ ...(await gateway.watch()), atMs: performance.now() });
}

/** How long after the upstream is back a call is answered again. */
async function recover(): Promise<number> {
  const client = await connect(gateway.port);
  await new Promise<void>((resolve) => upstream.listen(upstreamPort, '127.0.0.1', resolve));
  const backAtMs = performance.now();
  while ((await ask(client)).status !== 200) {
    if (performance.now() - backAtMs > 10 * RECOVERY_MS) break;
    await setTimeout(10);
  }
  client.destroy();
  return performance.now() - backAtMs;
}

const first = await connect(gateway.port);
await ask(first);
first.destroy();
await gateway.watch();
const descriptors = gateway.descriptors();
const untilMs = performance.now() + minutes(10) * 60_000;
await Promise.all([weigh(untilMs), ...Array.from({ length: CALLERS }, () => keepCalling(untilMs))]);
print('calls answered 502', quantiles(times));
const slow = times.filter((ms) => ms > FAST_MS).length;
if (slow > times.length / 2) find(`${slow} of ${times.length} took longer than ${FAST_MS} ms`);
printMemory(weights);
print('longest turn of the loop, in 5 s', quantiles(weights.slice(1).map(({ ranMs }) => ranMs)));
print('descriptors before, after', [descriptors, gateway.descriptors()]);
const recoveryMs = await recover();
print('recovered after', `${recoveryMs.toFixed(1)} ms`);
if (recoveryMs > RECOVERY_MS) find('the recovery took too long');
const code = await gateway.stop();
if (code !== 0) find(`exit code ${code} after SIGTERM`);
upstream.close().closeAllConnections();
conclude();

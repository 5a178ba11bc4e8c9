// A soak's scenario (E1): Debian's slowhttptest with a thousand connections that are slow in their heads, in their bodies or in reading, while a
// probe is to be served as ever, and each slow connection closed at its limit.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout } from 'node:timers/promises';
import { connect } from '../support/wire.ts';
import { quantiles, toMib } from './figures.ts';
import { type RequestLine, startGatewayProcess } from './gateway-process.ts';
import { atOnce, minutes } from './options.ts';
import { conclude, find, print } from './report.ts';

interface Mode {
  readonly name: string;
  readonly arguments: readonly string[];
  readonly target: string;
  readonly count: number;
  /** Opened in a second. */
  readonly rate: number;
  /** After how long such a connection is closed. */
  readonly limitMs: number;
  /** How long it is tried; where that is too short for the limit, it shows only that others are served. */
  readonly seconds: number;
  /** How such a request ends in the log at its limit; undefined where it has its answer by then, or never becomes a request. */
  readonly outcome: string | undefined;
}

const CONNECTIONS = atOnce(1000);
/** The listener looks at its clocks once a second; the rest is for a busy machine. */
const GRACE_MS = 5000;
const PROBE_EVERY_MS = 200;
const SLOW_PROBE_MS = 1000;
/**
 * What slow readers ask for. On loopback, whose segments are of 64 KB, the kernel takes 2.5 MB for a reader that takes nothing: the first
 * has its whole answer there, and is an idle connection to the gateway; a thousand of the second would be too much for the kernel itself.
 */
const ANSWERS: Record<string, Buffer> = { short: Buffer.alloc(1_000_000, 'x'), long: Buffer.alloc(4_000_000, 'x') };

const READ_SLOWLY = ['-w', '256', '-y', '512', '-n', '5', '-z', '5'];
const modes: readonly Mode[] = [
  {
    name: '-H',
    arguments: ['-i', '2', '-x', '24'],
    target: '/v1/models',
    count: CONNECTIONS,
    rate: 200,
    limitMs: 8000,
    seconds: 60,
    outcome: undefined,
  },
  {
    name: '-B',
    arguments: ['-i', '10', '-x', '10'],
    target: '/v1/files',
    count: CONNECTIONS,
    rate: 200,
    limitMs: 300_000,
    seconds: 330,
    outcome: 'rejected',
  },
  {
    name: '-X',
    arguments: READ_SLOWLY,
    target: '/v1/files/short/content',
    count: CONNECTIONS,
    rate: 50,
    limitMs: 72_000,
    seconds: 110,
    outcome: undefined,
  },
  {
    name: '-X',
    arguments: READ_SLOWLY,
    target: '/v1/files/long/content',
    count: CONNECTIONS / 4,
    rate: 25,
    limitMs: 60_000,
    seconds: 90,
    outcome: 'client_stalled',
  },
];

function answer(request: IncomingMessage, response: ServerResponse): void {
  request.resume().on('error', () => undefined);
  const asked = ANSWERS[/\/files\/(\w+)\/content$/.exec(request.url ?? '')?.[1] ?? ''];
  if (asked !== undefined) {
    response.writeHead(200, { 'content-length': asked.length }).end(asked);
  } else if (request.url === '/v1/chat/completions') {
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    response.end('data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n');
  } else {
    request.once('end', () => response.end('{}'));
  }
}

const upstream = createServer(answer).listen(0, '127.0.0.1');
await once(upstream, 'listening');
const lines: RequestLine[] = [];
const gateway = await startGatewayProcess({
  configuration: {
    upstreams: { main: { baseUrl: `http://127.0.0.1:${(upstream.address() as AddressInfo).port}/v1`, apiKey: 'sk-upstream' } },
  },
  onRequest: (line) => void lines.push(line),
});

/** Calls as any client would until it is told to stop; returns how long each took. */
async function probe(isOver: () => boolean): Promise<number[]> {
  const times: number[] = [];
  for (; !isOver(); await setTimeout(PROBE_EVERY_MS)) {
    const startedAtMs = performance.now();
    try {
      const client = await connect(gateway.port);
      client.request({ method: 'POST', target: '/v1/chat/completions', body: '{"model":"m","stream":true}' });
      const { status } = await client.head();
      const body = (await client.body()).toString();
      client.destroy();
      if (status !== 200 || !body.endsWith('[DONE]\n\n')) find(`a probe was answered ${status} ${body.slice(0, 200)}`);
    } catch (error) {
      find(`a probe: ${(error as Error).message.slice(0, 200)}`);
    }
    times.push(performance.now() - startedAtMs);
  }
  return times;
}

/** One run of the tool, which ends by itself when no connection is left, or its time is over. Returns how many of ours were open before its end. */
async function attack({ name, arguments: given, target, count, rate }: Mode, seconds: number): Promise<number[]> {
  const url = `http://127.0.0.1:${gateway.port}${target}`;
  const size = ['-c', String(count), '-r', String(rate), '-l', String(seconds), '-p', '3'];
  const tool = spawn('slowhttptest', [name, ...size, '-u', url, ...given], { stdio: ['ignore', 'pipe', 'inherit'] });
  const end = () => void tool.kill('SIGKILL');
  process.once('exit', end);
  let text = '';
  tool.stdout.on('data', (piece) => (text += piece));
  const open: number[] = [];
  const counting = setInterval(() => open.push(gateway.descriptors()), 500);
  await once(tool, 'close');
  clearInterval(counting);
  process.off('exit', end);
  // biome-ignore lint/suspicious/noControlCharactersInRegex: the tool colours what it says
  if (/service available:\s+NO/.test(text.replaceAll(/\u001b\[[\d;]*m/g, ''))) find(`${name}: the tool's own probe was not served`);
  return open;
}

async function play(mode: Mode): Promise<void> {
  const { name, count, rate, limitMs, outcome } = mode;
  const seconds = Math.round(minutes(mode.seconds / 60) * 60);
  await gateway.watch();
  lines.length = 0;
  let isOver = false;
  const probing = probe(() => isOver);
  const startedAtMs = performance.now();
  const leftSeconds = () => seconds - Math.round((performance.now() - startedAtMs) / 1000);
  const before = gateway.descriptors();
  const open: number[] = [];
  const roundMs = (count / rate) * 1000 + limitMs + GRACE_MS;
  let rounds = 0;
  let roundAtMs: number;
  do {
    roundAtMs = performance.now();
    open.push(...(await attack(mode, leftSeconds())));
    rounds += 1;
  } while (leftSeconds() * 1000 > roundMs);
  const hasReachedLimit = performance.now() - roundAtMs > roundMs - GRACE_MS;
  const { wallMs, ranMs, resident } = await gateway.watch();
  isOver = true;
  const times = await probing;
  // The gateway's own connection to the upstream, or the probe's, may be among them.
  const left = (open.at(-2) ?? 0) - before;
  print(`slowhttptest ${name} ${mode.target}`, `${rounds} rounds; ${Math.max(...open) - before} descriptors at most, ${left} in the end`);
  print('  probes', quantiles(times));
  print('  longest turn of the loop', `${ranMs.toFixed(1)} ms run, ${wallMs.toFixed(1)} ms in all; ${toMib(resident)} MiB resident`);
  if (times.filter((ms) => ms > SLOW_PROBE_MS).length > times.length / 100) find(`${name}: probes were slow`);
  // It was counted up to a second before the end, and the last that were opened close within that.
  if (hasReachedLimit && left > rate) find(`${name}: ${left} are open after their limit`);
  if (outcome === undefined) return;
  const ended = lines.filter((line) => line.outcome === outcome).map(({ durationMs }) => Number(durationMs));
  print(`  ended as ${outcome}`, quantiles(ended));
  if (ended.some((ms) => ms < limitMs || ms > limitMs + 2 * GRACE_MS)) find(`${name}: some did not end at their limit`);
  if (hasReachedLimit && ended.length < count * 0.99) find(`${name}: ${ended.length} of ${count} ended at their limit`);
}

for (const mode of modes) await play(mode);
const code = await gateway.stop();
if (code !== 0) find(`exit code ${code} after SIGTERM`);
upstream.close().closeAllConnections();
conclude();

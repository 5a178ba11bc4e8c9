// A soak's scenario (E6): thousands of live streams with one event a second each: what a stream holds, and how late the loop is.
import { once } from 'node:events';
import { createServer, type ServerResponse } from 'node:http';
import { type AddressInfo, connect as connectSocket, type Socket } from 'node:net';
import { setTimeout } from 'node:timers/promises';
import { quantiles } from './figures.ts';
import { startGatewayProcess, type Watched } from './gateway-process.ts';
import { atOnce, minutes } from './options.ts';
import { conclude, find, print, printMemory, type Weight } from './report.ts';

const STREAMS = atOnce(3000);
/** Each second has so many slices, so that this process does not write all at one instant. */
const SLICES = 50;
/** A naive relay holds 37 to 55 KB a stream. */
const MAX_STREAM_KIB = 64;
const WEIGH_EVERY_MS = 5000;

const open = new Set<ServerResponse>();
const upstream = createServer((request, response) => {
  request.resume();
  response.writeHead(200, { 'content-type': 'text/event-stream' }).flushHeaders();
  open.add(response);
  response.once('close', () => open.delete(response));
}).listen(0, '127.0.0.1');
await once(upstream, 'listening');
const baseUrl = `http://127.0.0.1:${(upstream.address() as AddressInfo).port}/v1`;
const gateway = await startGatewayProcess({
  configuration: { upstreams: { main: { baseUrl, apiKey: 'sk-upstream', maxConnections: STREAMS + 100 } } },
});

const delays: number[] = [];
let received = 0;

/** A bare socket: thousands of them cost little. It reads only the time at which an event was sent. */
function openStream(): Socket {
  const body = '{"model":"m","stream":true}';
  const head = `POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: ${body.length}\r\n\r\n`;
  const socket = connectSocket(gateway.port, '127.0.0.1', () => socket.write(head + body));
  socket.on('data', (bytes) => {
    for (const [, sentAtMs] of bytes.toString('latin1').matchAll(/"content":"at ([\d.]+)"/g)) {
      received += 1;
      delays.push(performance.now() - Number(sentAtMs));
    }
  });
  return socket.on('error', (error) => find(`a client: ${error.message}`));
}

async function openAll(): Promise<Socket[]> {
  const sockets: Socket[] = [];
  while (sockets.length < STREAMS) {
    const some = Array.from({ length: Math.min(100, STREAMS - sockets.length) }, openStream);
    await Promise.all(some.map((socket) => once(socket, 'data')));
    sockets.push(...some);
  }
  return sockets;
}

let sent = 0;

/** One event to each stream in a second, until it is over. */
async function talk(untilMs: number): Promise<void> {
  const responses = [...open];
  const size = Math.ceil(responses.length / SLICES);
  for (let n = 0, dueMs = performance.now(); dueMs < untilMs; n++, dueMs += 1000 / SLICES) {
    await setTimeout(Math.max(0, dueMs - performance.now()));
    for (const response of responses.slice((n % SLICES) * size, ((n % SLICES) + 1) * size)) {
      response.write(`data: {"choices":[{"index":0,"delta":{"content":"at ${performance.now()}"}}]}\n\n`);
      sent += 1;
    }
  }
}

/** One call before, so that what is made once for all is not counted as a stream's. */
const first = openStream();
await once(first, 'data');
const before: Watched = await gateway.watch();
const sockets = await openAll();
const opened: Watched = await gateway.watch();
const each = (bytes: number) => `${(bytes / STREAMS / 1024).toFixed(1)} KiB`;
const heldBy = ({ heap, outside }: Watched) => heap + outside;
print(
  `${STREAMS} streams, each when opened`,
  `${each(heldBy(opened) - heldBy(before))} held, ${each(opened.resident - before.resident)} resident`,
);

const untilMs = performance.now() + minutes(3) * 60_000;
const weights: (Watched & Weight)[] = [];
const weigh = async () => {
  while (performance.now() < untilMs) {
    await setTimeout(WEIGH_EVERY_MS);
    weights.push({ ...(await gateway.watch()), atMs: performance.now() });
  }
};
await Promise.all([talk(untilMs), weigh()]);
for (let n = 0; n < 50 && received < sent; n++) await setTimeout(100);
const last = weights.at(-1) ?? opened;
print('each after its events', `${each(heldBy(last) - heldBy(before))} held, ${each(last.resident - before.resident)} resident`);
if ((heldBy(last) - heldBy(before)) / STREAMS / 1024 > MAX_STREAM_KIB) find('a stream holds too much');
// A stream keeps up to 64 KiB of its text until that is counted.
printMemory(weights, false);
print('events sent, received', [sent, received]);
if (received !== sent) find('events are missing');
print('event through the gateway', quantiles(delays));
// Each telling collects garbage first, which is a turn of its own and the soak's doing.
print('delay of the loop, p99', quantiles(weights.map(({ delayP99Ms }) => delayP99Ms)));
print('longest turn of the loop', quantiles(weights.map(({ ranMs }) => ranMs)));
for (const socket of [first, ...sockets]) socket.destroy();
for (let n = 0; n < 100 && open.size > 0; n++) await setTimeout(100);
if (open.size > 0) find(`${open.size} streams are open upstream after the clients have left`);
const code = await gateway.stop();
if (code !== 0) find(`exit code ${code} after SIGTERM`);
upstream.close().closeAllConnections();
conclude();

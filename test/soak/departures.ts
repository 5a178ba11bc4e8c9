// npm run soak:departures: how soon an upstream hears that its client has left, what a stalled reader costs, and how long a crowd's leaving holds the loop.
//   node test/soak/departures.ts [--count 1000] [--rounds 3]
// With --count 0, only the crowds.
import { once } from 'node:events';
import { createServer as createHttpServer, type ServerResponse } from 'node:http';
import { type AddressInfo, connect as connectSocket, createServer, type Server, type Socket } from 'node:net';
import { setTimeout } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { quantiles } from './figures.ts';
import { type GatewayProcess, startGatewayProcess } from './gateway-process.ts';

const { values } = parseArgs({ options: { count: { type: 'string', default: '1000' }, rounds: { type: 'string', default: '3' } } });
const COUNT = Number(values.count);
const ROUNDS = Number(values.rounds);
/** So many at a time: a few, as on a busy gateway, and not so many that this process is what is measured. */
const AT_ONCE = 4;
const CROWD = 2000;
const STALLED = 300;

const EVENT = `data: ${JSON.stringify({ choices: [{ index: 0, delta: { content: 'Hello there' } }] })}\n\n`;
const FLOOD = `data: ${JSON.stringify({ choices: [{ index: 0, delta: { content: 'x'.repeat(60_000) } }] })}\n\n`;

async function listen<T extends Server>(server: T): Promise<number> {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return (server.address() as AddressInfo).port;
}

/** What waits for a call by its mark: until it has come as far as it shall, and until its connection is closed. */
const marks = new Map<string, { arrive(): void; close(atMs: number): void }>();

const answers: Record<string, (response: ServerResponse) => void> = {
  upload: () => undefined,
  headers: () => undefined,
  stream: (response) => void response.writeHead(200, { 'content-type': 'text/event-stream' }).write(EVENT),
  backpressure(response) {
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    const pour = () => {
      while (!response.destroyed && response.write(FLOOD));
    };
    response.on('drain', pour);
    pour();
  },
};

const upstream = createHttpServer((request, response) => {
  const [phase = '', mark = ''] = String(request.headers['x-mark']).split(' ');
  request.resume().on('error', () => undefined);
  response.once('close', () => marks.get(mark)?.close(performance.now()));
  answers[phase]?.(response);
  marks.get(mark)?.arrive();
});

/** Accepts, and shakes no hands: whoever calls it by TLS is still connecting. */
const mute = createServer((socket: Socket) => {
  const only = () => [...marks.values()][0];
  socket.on('error', () => undefined).once('close', () => only()?.close(performance.now()));
  socket.once('data', () => only()?.arrive());
});

function startGateway(baseUrl: string): Promise<GatewayProcess> {
  return startGatewayProcess({ configuration: { upstreams: { main: { baseUrl, apiKey: 'sk-upstream', maxConnections: 5000 } } } });
}

function call(port: number, phase: string, mark: string): Socket {
  const length = phase === 'upload' ? 1000 : 2;
  const head = `POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Mark: ${phase} ${mark}\r\nContent-Length: ${length}\r\n\r\n{}`;
  const socket = connectSocket(port, '127.0.0.1', () => socket.write(head));
  return socket.on('error', () => undefined);
}

/** Brings one call to its phase, leaves, and returns how long it took the upstream's connection to close. */
async function depart(gateway: GatewayProcess, phase: string, mark: string): Promise<number> {
  const arrived = new Promise<void>((arrive) => marks.set(mark, { arrive, close: () => undefined }));
  const socket = call(gateway.port, phase, mark);
  if (phase === 'stream') await once(socket, 'data');
  await arrived;
  if (phase === 'backpressure') await setTimeout(300);
  const closed = new Promise<number>((close) => marks.set(mark, { arrive: () => undefined, close }));
  const leftAtMs = performance.now();
  socket.resetAndDestroy();
  const ms = (await closed) - leftAtMs;
  marks.delete(mark);
  return ms;
}

async function measureDepartures(gateway: GatewayProcess, phase: string, atOnce: number): Promise<void> {
  const times: number[] = [];
  let made = 0;
  const worker = async () => {
    while (made < COUNT) times.push(await depart(gateway, phase, `${phase}-${made++}`));
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
  console.log(`${`departure to close, ${phase}`.padEnd(34)} ${quantiles(times)}`);
}

/** Opens so many calls that have had their first bytes and read no more. */
async function open(gateway: GatewayProcess, phase: string, count: number): Promise<Socket[]> {
  const sockets: Socket[] = [];
  while (sockets.length < count) {
    const some = Array.from({ length: Math.min(100, count - sockets.length) }, (_, n) => call(gateway.port, phase, `crowd-${n}`));
    await Promise.all(some.map((socket) => once(socket, 'data').then(() => socket.pause())));
    sockets.push(...some);
  }
  return sockets;
}

async function leaveAll(gateway: GatewayProcess, sockets: Socket[], how: 'reset' | 'fin'): Promise<void> {
  const ended = async () => (await gateway.metrics()).value('sluicegate_requests_total') ?? 0;
  const before = await ended();
  for (const socket of sockets) how === 'reset' ? socket.resetAndDestroy() : socket.destroy();
  while ((await ended()) < before + sockets.length) await setTimeout(20);
}

async function measureStalled(gateway: GatewayProcess): Promise<void> {
  const before = await gateway.watch();
  const sockets = await open(gateway, 'backpressure', STALLED);
  const relayed = async () => (await gateway.metrics()).value('sluicegate_relayed_bytes_total', { direction: 'out' }) ?? 0;
  for (let last = -1, now = 0; now !== last; await setTimeout(500)) [last, now] = [now, await relayed()];
  const after = await gateway.watch();
  const each = (bytes: number) => `${Math.round(bytes / STALLED / 1024)} KiB`;
  const held = after.heap + after.outside - before.heap - before.outside;
  console.log(`${`${STALLED} stalled readers, each`.padEnd(34)} ${each(held)} held, ${each(after.resident - before.resident)} resident`);
  await leaveAll(gateway, sockets, 'reset');
}

async function measureCrowd(gateway: GatewayProcess, how: 'reset' | 'fin'): Promise<void> {
  const before = await gateway.watch();
  const sockets = await open(gateway, 'stream', CROWD);
  const after = await gateway.watch();
  const each = (after.heap + after.outside - before.heap - before.outside) / CROWD / 1024;
  if (how === 'reset') console.log(`${'a live stream holds'.padEnd(34)} ${each.toFixed(1)} KiB`);
  await leaveAll(gateway, sockets, how);
  const { ranMs, wallMs } = await gateway.watch();
  console.log(
    `${`${CROWD} leave at once by ${how}`.padEnd(34)} longest turn of the loop ${ranMs.toFixed(1)} ms run, ${wallMs.toFixed(1)} ms in all`,
  );
}

const [port, mutePort] = await Promise.all([listen(upstream), listen(mute)]);
if (COUNT > 0) {
  const gateway = await startGateway(`http://127.0.0.1:${port}/v1`);
  for (const phase of ['upload', 'headers', 'stream']) await measureDepartures(gateway, phase, AT_ONCE);
  await measureDepartures(gateway, 'backpressure', 5);
  await gateway.stop();
  const connecting = await startGateway(`https://127.0.0.1:${mutePort}/v1`);
  await measureDepartures(connecting, 'connect', 1);
  await connecting.stop();
}
const crowded = await startGateway(`http://127.0.0.1:${port}/v1`);
for (let round = 0; round < ROUNDS; round++) for (const how of ['reset', 'fin'] as const) await measureCrowd(crowded, how);
await measureStalled(crowded);
await crowded.stop();
upstream.close().closeAllConnections();
mute.close();

// The soak's upstream: plays each request's plan, with everything that an upstream can do wrong.
import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { setTimeout } from 'node:timers/promises';
import { contentCount, errorEvent, type Plan } from './plans.ts';

export interface Performance {
  readonly plan: Plan;
  /** The upstream has the request's head. */
  onArrival(): void;
  /** The answer, or the connection before there was one, is over; performance.now(). */
  onClose(atMs: number): void;
  /** The body of an upload, whole. */
  onBody(bytes: Buffer): void;
}

export interface SoakUpstream {
  readonly port: number;
  readonly openSockets: number;
  readonly bytesSent: number;
  close(): void;
}

/** @param find what is planned for the request with this id */
export async function startSoakUpstream(find: (id: string) => Performance | undefined): Promise<SoakUpstream> {
  const sockets = new Set<Socket>();
  let bytesSent = 0;
  const server: Server = createServer((request, response) => {
    const performance_ = find(String(request.headers['x-request-id']));
    if (performance_ === undefined) return void response.writeHead(404).end();
    performance_.onArrival();
    response.once('close', () => performance_.onClose(performance.now()));
    perform(request, response, performance_).catch(() => response.destroy());
  });
  server.keepAliveTimeout = 60_000;
  server.on('connection', (socket) => {
    sockets.add(socket);
    socket.on('error', () => undefined);
    socket.once('close', () => {
      sockets.delete(socket);
      bytesSent += socket.bytesWritten;
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    port: (server.address() as AddressInfo).port,
    get openSockets() {
      return sockets.size;
    },
    get bytesSent() {
      return [...sockets].reduce((sum, { bytesWritten }) => sum + bytesWritten, bytesSent);
    },
    close: () => server.close().closeAllConnections(),
  };
}

async function perform(request: IncomingMessage, response: ServerResponse, { plan, onBody }: Performance): Promise<void> {
  const body = await readBody(request);
  if (body === undefined) return;
  onBody(body);
  const { socket } = request;
  if (plan.departure === 'headers') return;
  if (plan.kind !== 'stream') return sendJson(response, 200, { model: 'soak', bytes: body.length, usage: usageOf(plan) });
  if (plan.fault === 'resetBeforeHead') return void socket.resetAndDestroy();
  if (plan.fault === 'finBeforeHead') return void socket.end();
  if (plan.fault === 'malformedHead') return void socket.end('HTTP/1.1 wrong\r\nno colon\r\n\r\n');
  if (plan.fault === 'silentHead') return;
  const status = /^status(\d+)$/.exec(plan.fault)?.[1];
  if (status !== undefined) return sendJson(response, Number(status), { error: { message: 'no', type: 'x', param: null, code: 'x' } });
  await stream(response, plan);
}

function usageOf({ tokens: { input, output } }: Plan): object {
  return { prompt_tokens: input, completion_tokens: output, total_tokens: input + output };
}

function sendJson(response: ServerResponse, status: number, body: object): void {
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
}

/** Undefined where the client has gone before its end. */
async function readBody(request: IncomingMessage): Promise<Buffer | undefined> {
  try {
    const pieces: Buffer[] = [];
    for await (const piece of request) pieces.push(piece as Buffer);
    return Buffer.concat(pieces);
  } catch {
    return undefined;
  }
}

async function stream(response: ServerResponse, plan: Plan): Promise<void> {
  response.writeHead(200, { 'content-type': 'text/event-stream' });
  const isCut = plan.fault !== 'none' || plan.departure === 'stream';
  const count = isCut ? Math.min(plan.cutAfter, contentCount(plan)) : plan.events.length;
  for (const event of plan.events.slice(0, count)) {
    if (response.destroyed) return;
    if (!response.write(event)) await drained(response);
    if (plan.gapMs > 0) await setTimeout(plan.gapMs);
  }
  if (plan.departure === undefined) await breakOff(response, plan, plan.events[count]?.slice(0, 20) ?? '');
}

function drained(response: ServerResponse): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      response.off('drain', done).off('close', done);
      resolve();
    };
    response.on('drain', done).on('close', done);
  });
}

async function breakOff(response: ServerResponse, { fault, dialect }: Plan, half: string): Promise<void> {
  const { socket } = response;
  if (fault === 'none' || fault === 'truncated') response.end();
  else if (fault === 'errorEvent') response.end(errorEvent(dialect));
  else if (fault !== 'silence') {
    if (fault.endsWith('Inside')) await new Promise((resolve) => response.write(half, resolve));
    if (fault.startsWith('reset')) socket?.resetAndDestroy();
    else socket?.end();
  }
}

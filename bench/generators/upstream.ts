// The upstream of the bench, a process of its own: a paced OpenAI-compatible server on raw sockets, and the same over TLS.
// One wheel of milliseconds for all streams; each event is one precomputed buffer with the time of its write patched in.
import { readFileSync } from 'node:fs';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { createServer as createTlsServer } from 'node:tls';
import { nowNs, STAMP_DIGITS, STAMP_MARK, writeStamp } from './clock.ts';
import type { UpstreamPlan } from './plan.ts';

const chunkHead =
  '"id":"chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT","object":"chat.completion.chunk","created":1741569952,"model":"gpt-4o-2024-08-06"';
/** 330 bytes, as OpenAI's are. */
const eventText = `data: {${chunkHead},"service_tier":"default","system_fingerprint":"fp_44709d6fcb","choices":[{"index":0,"delta":{"content":"${STAMP_MARK}${'0'.repeat(STAMP_DIGITS)}"},"logprobs":null,"finish_reason":null}]}\n\n`;
const streamHead =
  'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\nx-request-id: req_1\r\nopenai-processing-ms: 12\r\nx-ratelimit-remaining-requests: 99\r\n\r\n';
const usageOf = (output: number) => `"usage":{"prompt_tokens":19,"completion_tokens":${output},"total_tokens":${output + 19}}`;
const shortBody = `{"id":"chatcmpl-1","object":"chat.completion","created":1741569952,"model":"gpt-4o-2024-08-06","choices":[{"index":0,"message":{"role":"assistant","content":"${'Hello there. '.repeat(20)}"},"logprobs":null,"finish_reason":"stop"}],${usageOf(80)}}`;
const shortAnswer = Buffer.from(
  `HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nx-request-id: req_1\r\nContent-Length: ${shortBody.length}\r\n\r\n${shortBody}`,
);
/** Slow readers ask for it: more than all the buffers on the way can take. */
const FLOOD = { events: 200_000, intervalMs: 0, firstTokenMs: 0 };
const FLOOD_MODEL = '"model":"flood"';
/** Events in one write to a stream that is not paced. */
const BURST = 16;

const toChunk = (text: string) => `${text.length.toString(16)}\r\n${text}\r\n`;
let eventChunk = Buffer.from(toChunk(eventText));
const stampAt = eventChunk.indexOf(STAMP_MARK) + STAMP_MARK.length;
let burstChunk = Buffer.concat(new Array<Buffer>(BURST).fill(eventChunk));
let plan: UpstreamPlan = { events: 100, intervalMs: 10, firstTokenMs: 0 };

interface Stream {
  readonly socket: Socket;
  readonly plan: UpstreamPlan;
  readonly ending: string;
  sent: number;
  dueMs: number;
  /** The client's side is full: it goes on when that has drained. */
  isStuck: boolean;
}

// ---- the wheel

const SLOTS = 4096;
const wheel: Stream[][] = Array.from({ length: SLOTS }, () => []);
let wheelMs = Math.floor(performance.now());

function schedule(stream: Stream): void {
  const atMs = Math.max(wheelMs + 1, Math.min(Math.ceil(stream.dueMs), wheelMs + SLOTS - 1));
  wheel[atMs % SLOTS]?.push(stream);
}

function turn(): void {
  for (const untilMs = Math.floor(performance.now()); wheelMs < untilMs; ) {
    wheelMs++;
    const due = wheel[wheelMs % SLOTS];
    if (due === undefined || due.length === 0) continue;
    wheel[wheelMs % SLOTS] = [];
    for (const stream of due) proceed(stream);
  }
  setTimeout(turn, 1);
}

/** Writes what is due by the wheel's time. A stream that is late catches up event by event, each with the time of its own write. */
function proceed(stream: Stream): void {
  const { socket } = stream;
  while (stream.dueMs <= wheelMs && !stream.isStuck && !socket.destroyed) {
    if (stream.sent === stream.plan.events) return void socket.write(stream.ending, 'latin1');
    if (stream.plan.intervalMs === 0 && stream.sent > 0 && stream.plan.events - stream.sent >= BURST) {
      writeBurst(stream);
      // One at a time: the others want their turn.
      return void (stream.isStuck || setImmediate(proceed, stream));
    }
    writeEvent(stream);
    stream.dueMs += stream.plan.intervalMs;
  }
  if (!stream.isStuck && !socket.destroyed) schedule(stream);
}

function writeEvent(stream: Stream): void {
  writeStamp(eventChunk, stampAt, nowNs());
  write(stream, eventChunk);
  stream.sent++;
  // What the kernel has not taken is still in use.
  if (stream.socket.writableLength > 0) eventChunk = Buffer.from(eventChunk);
}

/** What is not paced goes out as a server's buffers do: several events in one write, each with its time. */
function writeBurst(stream: Stream): void {
  const now = nowNs();
  for (let n = 0; n < BURST; n++) writeStamp(burstChunk, n * eventChunk.length + stampAt, now);
  write(stream, burstChunk);
  stream.sent += BURST;
  if (stream.socket.writableLength > 0) burstChunk = Buffer.from(burstChunk);
}

function write(stream: Stream, chunk: Buffer): void {
  if (stream.socket.write(chunk)) return;
  stream.isStuck = true;
  stream.socket.once('drain', () => {
    stream.isStuck = false;
    proceed(stream);
  });
}

// ---- requests

function startStream(socket: Socket, given: UpstreamPlan): void {
  const ending = `${toChunk(`data: {${chunkHead},"choices":[],${usageOf(given.events)}}\n\ndata: [DONE]\n\n`)}0\r\n\r\n`;
  const stream = { socket, plan: given, ending, sent: 0, dueMs: wheelMs + given.firstTokenMs, isStuck: false };
  // Head and first event in one segment, where no time lies between them.
  socket.cork();
  socket.write(streamHead, 'latin1');
  proceed(stream);
  socket.uncork();
}

/** Of a body, its beginning and so much of its end are looked at: there a gateway that writes it anew may have put `stream`. */
const TAIL_BYTES = 256;

/** Reads requests, one after another, of each only what must be known: where it ends, and whether it asks for a stream. */
function serve(socket: Socket): void {
  let head = '';
  let bodyBytes = 0;
  let wantedBytes = -1;
  let start = '';
  let last = '';
  socket.on('error', () => socket.destroy());
  socket.on('data', (data) => {
    if (wantedBytes === -1) {
      head += data.toString('latin1');
      const end = head.indexOf('\r\n\r\n');
      if (end < 0) return;
      start = head.slice(end + 4, end + 1028);
      bodyBytes = head.length - end - 4;
      wantedBytes = Number(/\r\ncontent-length: *(\d+)/i.exec(head.slice(0, end))?.[1] ?? Number.POSITIVE_INFINITY);
      if (/^GET /.test(head)) wantedBytes = 0;
      last = head.slice(-TAIL_BYTES);
    } else {
      if (start.length < 1024) start += data.toString('latin1', 0, 1024);
      bodyBytes += data.length;
      last = (last + data.toString('latin1', Math.max(0, data.length - TAIL_BYTES))).slice(-TAIL_BYTES);
    }
    if (wantedBytes === Number.POSITIVE_INFINITY ? !last.endsWith('0\r\n\r\n') : bodyBytes < wantedBytes) return;
    head = '';
    wantedBytes = -1;
    if (start.includes(FLOOD_MODEL)) startStream(socket, FLOOD);
    else if (/"stream": ?true/.test(start + last)) startStream(socket, plan);
    else socket.write(shortAnswer);
  });
}

async function listen(server: Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen({ port: 0, host: '127.0.0.1', backlog: 4096 }, resolve));
  return (server.address() as AddressInfo).port;
}

const [keyFile = '', certFile = ''] = process.argv.slice(2);
const port = await listen(createServer({ noDelay: true }, serve));
const tlsPort = await listen(createTlsServer({ noDelay: true, key: readFileSync(keyFile), cert: readFileSync(certFile) }, serve));
process.on('message', (next: UpstreamPlan) => {
  plan = next;
  process.send?.('configured');
});
process.once('disconnect', () => process.exit(0));
turn();
process.send?.({ port, tlsPort });

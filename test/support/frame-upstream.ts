// An upstream that writes HTTP/2 frames by hand: node:http2 would not end a stream wrongly, and what it is told to do it does its own way.
import { once } from 'node:events';
import type { AddressInfo, Socket } from 'node:net';
import { createServer, type TlsOptions } from 'node:tls';
import { createWaiting, type Waiting } from './waiting.ts';

/** RFC 9113 6. */
export const FRAME = { data: 0, headers: 1, reset: 3, settings: 4, ping: 6, goaway: 7, windowUpdate: 8 } as const;
/** RFC 9113 7. */
export const CODE = { noError: 0, internal: 2, refused: 7, cancel: 8, calm: 11 } as const;
const END_STREAM = 1;
const ACK = 1;
const END_HEADERS = 4;
const PREFACE = 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n';

export interface FrameStream {
  readonly id: number;
  readonly connection: FrameConnection;
  /** The body so far. */
  readonly body: Buffer;
  /** Until the request is whole. */
  whole(): Promise<void>;
  /** The code that it was reset with so far. */
  readonly resetCode: number | undefined;
  /** Bytes of the answer that went out, and that wait for a window. */
  readonly sentBytes: number;
  readonly unread: number;
  /** Until all of the answer has gone out. */
  flushed(): Promise<void>;
  /** Widens the other side's windows. */
  allow(bytes: number): void;
  head(status?: number, headers?: Record<string, string>, isEnd?: boolean): void;
  /** Goes out as far as the windows allow, the rest as they widen. */
  data(text: string | Buffer, isEnd?: boolean): void;
  reset(code: number): void;
  /** The code that the other side reset it with, once it has. */
  wasReset(): Promise<number>;
}

export interface FrameConnection {
  readonly streams: readonly FrameStream[];
  readonly isClosed: boolean;
  /** How many streams were open at one time. */
  readonly mostAtOnce: number;
  /** What the other side said goodbye with. */
  readonly goawayCode: number | undefined;
  /** Until so many PINGs have come. */
  pinged(times: number): Promise<void>;
  /** Until a PING has been answered. */
  ponged(): Promise<void>;
  send(type: number, flags: number, id: number, payload: Buffer): void;
  goaway(lastStreamId: number, code?: number): void;
  settings(pairs: readonly (readonly [id: number, value: number])[]): void;
  /** Answers nothing more, not even pings, and leaves the connection open. */
  goSilent(): void;
  end(): void;
  destroy(): void;
  closed(): Promise<true>;
}

export interface FrameUpstream {
  readonly port: number;
  readonly url: string;
  readonly connections: readonly FrameConnection[];
  /** The next stream whose HEADERS have come, on any connection. */
  stream(): Promise<FrameStream>;
  connection(): Promise<FrameConnection>;
  close(): Promise<void>;
}

export interface FrameUpstreamOptions {
  readonly tls: TlsOptions;
  /** SETTINGS_MAX_CONCURRENT_STREAMS; none is told if not given. */
  readonly maxStreams?: number;
  /** `false`: says nothing that it is not told to. */
  readonly greets?: boolean;
}

export async function startFrameUpstream({ tls, maxStreams, greets = true }: FrameUpstreamOptions): Promise<FrameUpstream> {
  const waiting = createWaiting();
  const connections: FrameConnection[] = [];
  const streams: FrameStream[] = [];
  const sockets = new Set<Socket>();
  let taken = 0;
  let takenConnections = 0;
  const server = createServer({ ...tls, ALPNProtocols: ['h2'] }, (socket) => {
    sockets.add(socket);
    socket.on('error', () => {}).on('close', () => sockets.delete(socket));
    const connection = serve(socket, waiting, (stream) => streams.push(stream));
    if (!greets) connection.goSilent();
    connections.push(connection);
    if (greets) connection.settings(maxStreams === undefined ? [] : [[3, maxStreams]]);
    waiting.changed();
  });
  server.on('tlsClientError', () => {});
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const seen = () => `${connections.length} connection(s), ${streams.length} stream(s)`;
  return {
    port,
    url: `https://127.0.0.1:${port}/v1`,
    connections,
    stream: () => waiting.wait({ awaited: 'a stream', seen, attempt: () => (taken < streams.length ? streams[taken++] : undefined) }),
    connection: () =>
      waiting.wait({
        awaited: 'a connection',
        seen,
        attempt: () => (takenConnections < connections.length ? connections[takenConnections++] : undefined),
      }),
    async close() {
      const closed = new Promise((resolve) => server.close(resolve));
      for (const socket of sockets) socket.destroy();
      await closed;
      waiting.abandon('the upstream was closed while it waited');
    },
  };
}

function serve(socket: Socket, waiting: Waiting, onStream: (stream: FrameStream) => void): FrameConnection {
  interface Received {
    readonly stream: FrameStream;
    body: Buffer;
    isWhole: boolean;
    resetCode: number | undefined;
    sentBytes: number;
    window: number;
    readonly outgoing: { bytes: Buffer; readonly isEnd: boolean }[];
  }
  const received = new Map<number, Received>();
  let bytes = Buffer.alloc(0);
  let isGreeted = false;
  let isSilent = false;
  let isClosed = false;
  let pongs = 0;
  let pings = 0;
  let goawayCode: number | undefined;
  let openStreams = 0;
  let mostAtOnce = 0;
  /** The other side's: of the connection, and of each new stream (RFC 9113 6.9). */
  let window = 65_535;
  let streamWindow = 65_535;

  const connection: FrameConnection = {
    get streams() {
      return [...received.values()].map(({ stream }) => stream);
    },
    get isClosed() {
      return isClosed;
    },
    get mostAtOnce() {
      return mostAtOnce;
    },
    get goawayCode() {
      return goawayCode;
    },
    pinged: async (times) =>
      void (await waiting.wait({ awaited: `${times} PINGs`, seen: () => `${pings}`, attempt: () => pings >= times || undefined })),
    ponged: async () => void (await waiting.wait({ awaited: 'an answer to PING', seen: () => '', attempt: () => pongs > 0 || undefined })),
    send(type, flags, id, payload) {
      if (!socket.destroyed) socket.write(frame(type, flags, id, payload));
    },
    goaway(lastStreamId, code = CODE.noError) {
      const payload = Buffer.alloc(8);
      payload.writeUInt32BE(lastStreamId, 0);
      payload.writeUInt32BE(code, 4);
      connection.send(FRAME.goaway, 0, 0, payload);
    },
    settings(pairs) {
      const payload = Buffer.alloc(6 * pairs.length);
      for (const [index, [id, value]] of pairs.entries()) {
        payload.writeUInt16BE(id, 6 * index);
        payload.writeUInt32BE(value, 6 * index + 2);
      }
      connection.send(FRAME.settings, 0, 0, payload);
    },
    goSilent() {
      isSilent = true;
    },
    end: () => void socket.end(),
    destroy: () => void socket.destroy(),
    closed: () =>
      waiting.wait({ awaited: 'the connection to close', seen: () => `${received.size} stream(s)`, attempt: () => isClosed || undefined }),
  };

  function open(id: number): Received {
    const stream: FrameStream = {
      id,
      connection,
      get body() {
        return entry.body;
      },
      whole: async () => void (await wait('the whole request', () => entry.isWhole || undefined)),
      head(status = 200, headers = {}, isEnd = false) {
        const block = [[':status', String(status)], ...Object.entries(headers)].map(([name = '', value = '']) => literal(name, value));
        connection.send(FRAME.headers, END_HEADERS | (isEnd ? END_STREAM : 0), id, Buffer.concat(block));
      },
      data(text, isEnd = false) {
        entry.outgoing.push({ bytes: Buffer.from(text), isEnd });
        flush(entry);
      },
      get resetCode() {
        return entry.resetCode;
      },
      get sentBytes() {
        return entry.sentBytes;
      },
      get unread() {
        return entry.outgoing.reduce((sum, { bytes }) => sum + bytes.length, 0);
      },
      flushed: async () => void (await wait('its answer to go out', () => entry.outgoing.length === 0 || undefined)),
      allow(bytes) {
        const payload = Buffer.alloc(4);
        payload.writeUInt32BE(bytes);
        for (const on of [0, id]) connection.send(FRAME.windowUpdate, 0, on, payload);
      },
      reset(code) {
        const payload = Buffer.alloc(4);
        payload.writeUInt32BE(code);
        connection.send(FRAME.reset, 0, id, payload);
      },
      wasReset: () => wait('its reset', () => entry.resetCode),
    };
    const entry: Received = {
      ...{ stream, body: Buffer.alloc(0), isWhole: false, resetCode: undefined },
      ...{ sentBytes: 0, window: streamWindow, outgoing: [] },
    };
    openStreams += 1;
    mostAtOnce = Math.max(mostAtOnce, openStreams);
    const wait = <T>(awaited: string, attempt: () => T | undefined) =>
      waiting.wait({ awaited: `${awaited} of stream ${id}`, seen: () => `${entry.body.length} bytes`, attempt });
    return entry;
  }

  function flush(entry: Received): void {
    for (let next = entry.outgoing[0]; next !== undefined && entry.resetCode === undefined; next = entry.outgoing[0]) {
      const length = Math.min(next.bytes.length, entry.window, window, 16_384);
      if (length <= 0 && next.bytes.length > 0) return;
      const isWhole = length === next.bytes.length;
      connection.send(FRAME.data, next.isEnd && isWhole ? END_STREAM : 0, entry.stream.id, next.bytes.subarray(0, length));
      entry.window -= length;
      window -= length;
      entry.sentBytes += length;
      next.bytes = next.bytes.subarray(length);
      if (!isWhole) continue;
      entry.outgoing.shift();
      if (next.isEnd) openStreams -= 1;
    }
  }

  function onSettings(payload: Buffer): void {
    for (let at = 0; at + 6 <= payload.length; at += 6) if (payload.readUInt16BE(at) === 4) streamWindow = payload.readUInt32BE(at + 2);
  }

  function onFrame(type: number, flags: number, id: number, payload: Buffer): void {
    if (type === FRAME.settings && (flags & ACK) === 0 && !isSilent) connection.send(FRAME.settings, ACK, 0, Buffer.alloc(0));
    if (type === FRAME.ping && (flags & ACK) === 0 && !isSilent) connection.send(FRAME.ping, ACK, 0, payload);
    if (type === FRAME.headers) {
      const entry = open(id);
      received.set(id, entry);
      onStream(entry.stream);
    }
    if (type === FRAME.settings && (flags & ACK) === 0) onSettings(payload);
    if (type === FRAME.ping && (flags & ACK) !== 0) pongs += 1;
    else if (type === FRAME.ping) pings += 1;
    if (type === FRAME.goaway) goawayCode = payload.readUInt32BE(4);
    if (type === FRAME.windowUpdate && id === 0) {
      window += payload.readUInt32BE();
      for (const each of received.values()) flush(each);
    }
    const entry = received.get(id);
    if (entry === undefined) return;
    if (type === FRAME.windowUpdate) {
      entry.window += payload.readUInt32BE();
      flush(entry);
    }
    if (type === FRAME.data) entry.body = Buffer.concat([entry.body, payload]);
    if (type === FRAME.reset) {
      entry.resetCode = payload.readUInt32BE();
      openStreams -= 1;
    }
    if ((type === FRAME.data || type === FRAME.headers) && (flags & END_STREAM) !== 0) entry.isWhole = true;
  }

  socket.on('data', (chunk: Buffer) => {
    bytes = Buffer.concat([bytes, chunk]);
    if (!isGreeted && bytes.length >= PREFACE.length) {
      isGreeted = true;
      bytes = bytes.subarray(PREFACE.length);
    }
    while (isGreeted && bytes.length >= 9 && bytes.length >= 9 + bytes.readUIntBE(0, 3)) {
      const end = 9 + bytes.readUIntBE(0, 3);
      onFrame(bytes[3]!, bytes[4]!, bytes.readUInt32BE(5) & 0x7fffffff, bytes.subarray(9, end));
      bytes = bytes.subarray(end);
    }
    waiting.changed();
  });
  socket.on('close', () => {
    isClosed = true;
    waiting.changed();
  });
  return connection;
}

function frame(type: number, flags: number, id: number, payload: Buffer): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(id, 5);
  return Buffer.concat([head, payload]);
}

/** A literal header field that is not indexed (RFC 7541 6.2.2), of bytes as they are. */
function literal(name: string, value: string): Buffer {
  return Buffer.concat([Buffer.from([0]), text(name), text(value)]);
}

function text(content: string): Buffer {
  const bytes = Buffer.from(content, 'latin1');
  if (bytes.length < 127) return Buffer.concat([Buffer.from([bytes.length]), bytes]);
  const length = [127];
  let rest = bytes.length - 127;
  for (; rest >= 128; rest = Math.floor(rest / 128)) length.push((rest % 128) | 128);
  return Buffer.concat([Buffer.from([...length, rest]), bytes]);
}

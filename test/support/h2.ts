// Clients that speak HTTP/2 over TLS: one that a person would use, and one that sends any frames and shows those that came back.
import { once } from 'node:events';
import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  connect as connectSession,
  constants,
  type IncomingHttpHeaders,
  type OutgoingHttpHeaders,
} from 'node:http2';
import { connect as connectTls, type TLSSocket } from 'node:tls';
import type { Test } from 'tap';
import { startTestGateway, type TestGateway } from './gateway.ts';
import { createCertificate } from './tls.ts';
import { createWaiting } from './waiting.ts';

export interface SecureGateway extends TestGateway {
  readonly cert: string;
  /** The files that the configuration names. */
  readonly files: { readonly cert: string; readonly key: string };
}

/** As `startTestGateway`, with a certificate of its own. */
export async function startSecureGateway(t: Test, upstreamUrl: string, settings: Record<string, object> = {}): Promise<SecureGateway> {
  const { cert, key } = createCertificate();
  const folder = t.testdir({ 'cert.pem': cert, 'key.pem': key });
  const files = { cert: `${folder}/cert.pem`, key: `${folder}/key.pem` };
  const gateway = await startTestGateway(t, upstreamUrl, { ...settings, server: { tls: files, ...settings.server } });
  // Its getters must stay ones.
  return Object.defineProperties({ cert, files }, Object.getOwnPropertyDescriptors(gateway)) as SecureGateway;
}

export interface H2Ending {
  readonly at: number;
  /** NO_ERROR where it ended in order. */
  readonly code: number;
  /** END_STREAM came. */
  readonly isComplete: boolean;
}

export interface H2Call {
  readonly stream: ClientHttp2Stream;
  /** All of the body so far. */
  readonly text: string;
  /** The head of the answer; interim ones are left out. */
  head(): Promise<{ readonly status: number; readonly headers: IncomingHttpHeaders }>;
  /** Until the body has this in what was not yet waited for. */
  until(text: string): Promise<void>;
  /** The whole body; rejects where it was cut. */
  body(): Promise<string>;
  ended(): Promise<H2Ending>;
  /** RST_STREAM, as a client that gives up sends it. */
  cancel(code?: number): void;
}

export interface H2Client {
  readonly session: ClientHttp2Session;
  readonly goaways: readonly number[];
  /** Streams open until `stream.end` unless there is a body, or the method has none. */
  call(headers?: OutgoingHttpHeaders, body?: string | Buffer): H2Call;
  closed(): Promise<void>;
}

const streaming = '{"model":"m","stream":true}';

/** Opens a connection to 127.0.0.1; it closes with the test. Without arguments, a call is a streamed chat. */
export async function connectH2(t: Test, port: number, cert: string, options: object = {}): Promise<H2Client> {
  const session = connectSession(`https://127.0.0.1:${port}`, { ca: cert, ...options });
  const waiting = createWaiting();
  const goaways: number[] = [];
  let isClosed = false;
  session.on('error', () => undefined);
  session.on('goaway', (code) => void goaways.push(code));
  session.on('close', () => {
    isClosed = true;
    waiting.changed();
  });
  t.teardown(() => session.destroy());
  await once(session, 'connect', { signal: AbortSignal.timeout(5000) });
  return {
    session,
    goaways,
    call(headers = { ':method': 'POST', ':path': '/v1/chat/completions', 'content-type': 'application/json' }, body?) {
      const isDefault = headers[':path'] === '/v1/chat/completions' && body === undefined;
      const isBodiless = ['GET', 'HEAD', undefined].includes(headers[':method'] as string | undefined);
      const stream = session.request(headers, { endStream: isBodiless && body === undefined });
      if (isDefault) stream.end(streaming);
      else if (body !== undefined) stream.end(body);
      return watch(stream);
    },
    closed: () =>
      waiting
        .wait({ awaited: 'the session to close', seen: () => `goaways ${goaways}`, attempt: () => isClosed || undefined })
        .then(() => undefined),
  };
}

function watch(stream: ClientHttp2Stream): H2Call {
  const waiting = createWaiting();
  let head: IncomingHttpHeaders | undefined;
  let text = '';
  let seen = 0;
  let isComplete = false;
  let ending: H2Ending | undefined;
  stream.on('response', (headers) => {
    head = headers;
    waiting.changed();
  });
  stream.on('data', (bytes: Buffer) => {
    text += bytes.toString('latin1');
    waiting.changed();
  });
  stream.on('end', () => {
    isComplete = stream.rstCode === constants.NGHTTP2_NO_ERROR && !stream.aborted;
  });
  stream.on('error', () => undefined);
  stream.on('close', () => {
    ending = { at: performance.now(), code: stream.rstCode, isComplete: isComplete && stream.rstCode === constants.NGHTTP2_NO_ERROR };
    waiting.changed();
  });
  const describe = () => `${head?.[':status']}, ${text.length} bytes ending ${JSON.stringify(text.slice(-200))}, ${JSON.stringify(ending)}`;
  const ended = () => waiting.wait({ awaited: 'the end of the stream', seen: describe, attempt: () => ending });

  return {
    stream,
    get text() {
      return text;
    },
    async head() {
      const headers = await waiting.wait({
        awaited: 'a head',
        seen: describe,
        attempt() {
          if (head === undefined && ending !== undefined) throw new Error(`reset with ${ending.code}`);
          return head;
        },
      });
      return { status: Number(headers[':status']), headers };
    },
    async until(wanted) {
      const attempt = () => {
        const at = text.indexOf(wanted, seen);
        if (at >= 0) seen = at + wanted.length;
        else if (ending !== undefined) throw new Error(`ended without ${wanted}: ${describe()}`);
        return at >= 0 || undefined;
      };
      await waiting.wait({ awaited: JSON.stringify(wanted), seen: describe, attempt });
    },
    async body() {
      const { isComplete } = await ended();
      if (!isComplete) throw new Error(`cut: ${describe()}`);
      return text;
    },
    ended,
    cancel: (code = constants.NGHTTP2_CANCEL) => stream.close(code),
  };
}

/** RFC 9113 6. */
export const FRAME = {
  data: 0,
  headers: 1,
  priority: 2,
  rst: 3,
  settings: 4,
  push: 5,
  ping: 6,
  goaway: 7,
  window: 8,
  continuation: 9,
} as const;
export const END_STREAM = 1;
export const END_HEADERS = 4;

/** One frame (RFC 9113 4.1). */
export function frame(type: number, flags: number, stream: number, payload: Buffer = Buffer.alloc(0)): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, payload]);
}

/** A field section of literals without Huffman coding or indexing (RFC 7541 6.2.2). */
export function fields(...pairs: [string, string][]): Buffer {
  return Buffer.concat([...pairs.flatMap(([name, value]) => [Buffer.from([0]), hpackText(name), hpackText(value)])]);
}

function hpackText(text: string): Buffer {
  const bytes = Buffer.from(text, 'latin1');
  if (bytes.length < 127) return Buffer.concat([Buffer.from([bytes.length]), bytes]);
  const length = [127];
  let rest = bytes.length - 127;
  for (; rest >= 128; rest >>= 7) length.push((rest & 127) | 128);
  return Buffer.concat([Buffer.from([...length, rest]), bytes]);
}

/** The usual pseudo-headers, and what is given after them. */
export function head(method: string, path: string, ...more: [string, string][]): Buffer {
  return fields([':method', method], [':scheme', 'https'], [':path', path], [':authority', 'localhost'], ...more);
}

export interface Frame {
  readonly type: number;
  readonly flags: number;
  readonly stream: number;
  readonly payload: Buffer;
}

export interface FrameClient {
  readonly socket: TLSSocket;
  readonly frames: readonly Frame[];
  send(...frames: Buffer[]): void;
  /** The first frame that fits, as soon as it is there. */
  frame(fits: (frame: Frame) => boolean, awaited: string): Promise<Frame>;
  /** The code of the GOAWAY that the connection closed with, undefined where there was none. */
  closed(): Promise<number | undefined>;
}

/** Opens a connection and sends the preface; answers nothing by itself. */
export async function connectFrames(t: Test, port: number): Promise<FrameClient> {
  const socket = connectTls({ port, host: '127.0.0.1', ALPNProtocols: ['h2'], rejectUnauthorized: false });
  const waiting = createWaiting(15_000);
  const frames: Frame[] = [];
  let unread = Buffer.alloc(0);
  let isClosed = false;
  socket.on('error', () => undefined);
  socket.on('data', (bytes) => {
    unread = Buffer.concat([unread, bytes]);
    while (unread.length >= 9 && unread.length >= 9 + unread.readUIntBE(0, 3)) {
      const end = 9 + unread.readUIntBE(0, 3);
      frames.push({ type: unread[3]!, flags: unread[4]!, stream: unread.readUInt32BE(5) & 0x7fffffff, payload: unread.subarray(9, end) });
      unread = unread.subarray(end);
    }
    waiting.changed();
  });
  socket.on('close', () => {
    isClosed = true;
    waiting.changed();
  });
  t.teardown(() => socket.destroy());
  await once(socket, 'secureConnect', { signal: AbortSignal.timeout(5000) });
  socket.write(Buffer.concat([Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'), frame(FRAME.settings, 0, 0)]));
  const seen = () => `frames ${JSON.stringify(frames.slice(-8).map(({ type, stream, flags }) => [type, stream, flags]))}`;
  return {
    socket,
    frames,
    send: (...list) => void socket.write(Buffer.concat(list)),
    frame: (fits, awaited) => waiting.wait({ awaited, seen, attempt: () => frames.find(fits) }),
    async closed() {
      await waiting.wait({ awaited: 'the connection to close', seen, attempt: () => isClosed || undefined });
      return frames.findLast(({ type }) => type === FRAME.goaway)?.payload.readUInt32BE(4);
    },
  };
}

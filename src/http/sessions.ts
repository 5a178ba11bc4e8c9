// HTTP/2 connections of clients: their requests, their clocks, and the bounds of what they may ask (RFC 9113 10.5).
import { constants, createServer, type IncomingHttpHeaders, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2';
import type { Socket } from 'node:net';
import { Roster } from '../roster.ts';
import { reset } from '../stream/reset.ts';
import type { ListenerClocks } from './listener.ts';
import { StreamRequest, StreamResponse } from './stream-message.ts';

export interface SessionsParts {
  readonly clocks: ListenerClocks;
  /** How long a connection without a request is kept. */
  readonly keepAliveMs: number;
  onRequest(request: StreamRequest, response: StreamResponse): void;
  /** The body of a request has not come in time. */
  onLate(request: StreamRequest, response: StreamResponse): void;
  /** Runs what many streams can want at one instant, now or in one of the next turns of the loop. */
  spread(task: () => void): void;
}

export interface Sessions {
  /** Speaks HTTP/2 on a connection. */
  take(socket: Socket): void;
  /** No new streams: GOAWAY. Each connection closes with the last of those that it has. */
  close(): void;
  /** Closes all at once. */
  destroy(): void;
}

interface Standing {
  readonly socket: Socket;
  live: number;
  hasServed: boolean;
  /** Since when no stream is open. */
  quietSinceMs: number;
  /** Pings and settings since the last look. */
  controls: number;
  endingSinceMs: number | undefined;
}

/** Streams of one connection at one time; more than browsers and proxies open by themselves (nginx: 128, Envoy: 100). */
const MAX_STREAMS = 250;
/** A client may cancel all that it has at one instant, twice; a rapid reset (CVE-2023-44487) goes on. */
const RESET_BURST = 2 * MAX_STREAMS;
const RESETS_A_SECOND = 50;
/** Pings and settings between two looks. gRPC's bandwidth probes are a few a round trip. */
const MAX_CONTROLS = 1_000;
/** The bytes of a head are judged with an answer; beyond this, 64 KiB by default, the stream is reset. */
const MAX_HEADER_PAIRS = 2_000;
/** What a client may send before it is read: of one stream, and of all together. */
const STREAM_WINDOW_BYTES = 256 * 1024;
const CONNECTION_WINDOW_BYTES = 1024 * 1024;
/** All that Node holds of one connection, in MB; beyond, it takes no new streams. */
const MAX_SESSION_MB = 32;
/** How long a client may take to read the last of a connection, and to close it. */
const LAST_READ_MS = 5_000;

/** Nothing listens here: connections come from whoever has found out that they speak HTTP/2. */
export function createSessions(parts: SessionsParts): Sessions {
  const { clocks, keepAliveMs } = parts;
  const sessions = new Map<ServerHttp2Session, Standing>();
  /** Requests whose bodies are still to come, and since when. */
  const uploads = new Roster<{ readonly request: StreamRequest; readonly response: StreamResponse; sinceMs: number }>();
  let isClosing = false;
  const server = createServer({
    settings: { maxConcurrentStreams: MAX_STREAMS, initialWindowSize: STREAM_WINDOW_BYTES },
    maxHeaderListPairs: MAX_HEADER_PAIRS,
    maxSessionMemory: MAX_SESSION_MB,
    streamResetBurst: RESET_BURST,
    streamResetRate: RESETS_A_SECOND,
    // An upstream's header that should have one value may have two; that is for the client to judge.
    strictSingleValueFields: false,
  });

  function open(session: ServerHttp2Session, socket: Socket): void {
    const standing: Standing = {
      socket,
      live: 0,
      hasServed: false,
      quietSinceMs: performance.now(),
      controls: 0,
      endingSinceMs: undefined,
    };
    sessions.set(session, standing);
    if (isClosing) session.close();
    session.setLocalWindowSize(CONNECTION_WINDOW_BYTES);
    const onControl = () => {
      standing.controls += 1;
      if (standing.controls === MAX_CONTROLS)
        session.destroy(new Error('too many pings and settings'), constants.NGHTTP2_ENHANCE_YOUR_CALM);
    };
    session.on('ping', onControl).on('remoteSettings', onControl);
    // A FIN is a client that has gone; what is still to be written would hold the connection back.
    socket.once('end', () => session.destroy());
    socket.once('close', () => sessions.delete(session));
  }

  function takeStream(stream: ServerHttp2Stream, headers: IncomingHttpHeaders, rawHeaders: readonly string[]): void {
    const standing = stream.session && sessions.get(stream.session as ServerHttp2Session);
    // It may have been reset before it was taken: nobody has heard of it.
    if (standing === undefined || stream.destroyed || stream.closed) return;
    const request = new StreamRequest(stream, headers, rawHeaders);
    const response = new StreamResponse(stream);
    standing.live += 1;
    standing.hasServed = true;
    const seat = request.isWhole ? undefined : uploads.enter({ request, response, sinceMs: performance.now() });
    response.once('close', () => {
      seat?.leave();
      standing.live -= 1;
      standing.quietSinceMs = performance.now();
    });
    parts.onRequest(request, response);
  }

  function look(): void {
    const nowMs = performance.now();
    if (isClosing && sessions.size === 0) clearInterval(timer);
    for (const [session, standing] of sessions) judge(session, standing, nowMs);
    for (const seat of uploads.seats()) {
      const { request, response, sinceMs } = seat.member;
      response.letGoOfRest();
      if (request.isWhole) seat.leave();
      else if (nowMs - sinceMs > clocks.requestMs) {
        seat.member.sinceMs = Number.POSITIVE_INFINITY;
        parts.spread(() => parts.onLate(request, response));
      }
    }
  }

  function judge(session: ServerHttp2Session, standing: Standing, nowMs: number): void {
    standing.controls = 0;
    if (standing.live > 0 && !session.destroyed) return;
    if (session.closed || session.destroyed) {
      standing.endingSinceMs ??= nowMs;
      if (nowMs - standing.endingSinceMs > LAST_READ_MS) reset(standing.socket);
    } else if (!standing.hasServed && nowMs - standing.quietSinceMs > clocks.headersMs) {
      // A head that never ends is no stream yet, and yet one that a close would wait for.
      session.destroy();
    } else if (nowMs - standing.quietSinceMs > keepAliveMs) {
      session.close();
    }
  }

  server.on('stream', (stream: ServerHttp2Stream, headers, _, rawHeaders: string[]) => {
    // Whatever ends a stream is told to its request and its answer.
    stream.on('error', () => undefined);
    parts.spread(() => takeStream(stream, headers, rawHeaders));
  });
  const timer = setInterval(look, clocks.checkMs).unref();

  return {
    take(socket) {
      // Half-closed, it would stay for ever.
      socket.allowHalfOpen = false;
      server.once('session', (session: ServerHttp2Session) => open(session, socket));
      server.emit('connection', socket);
    },
    close() {
      isClosing = true;
      for (const session of sessions.keys()) session.close();
    },
    destroy() {
      for (const { socket } of sessions.values()) reset(socket);
    },
  };
}

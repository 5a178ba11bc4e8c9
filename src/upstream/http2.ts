// One HTTP/2 connection to an upstream: many calls, each a stream that is reset without disturbing another.
import { type ClientHttp2Session, connect, constants } from 'node:http2';
import type { Socket } from 'node:net';
import type { Carried, Connection, ConnectionListener, GiveBack, UpstreamEvents, UpstreamRequest } from './client.ts';
import { codeOf } from './failure.ts';
import { type Http2Peer, sendOnStream } from './http2-call.ts';

export interface Http2Listener extends ConnectionListener {
  /** The upstream's SETTINGS have come: how many calls it takes is known. */
  onReady(): void;
}

/** Fewer where the upstream says so. What RFC 9113 6.5.2 wants no peer to go below; a connection that breaks takes no more than these with it. */
export const CALLS_PER_CONNECTION = 100;
/** What a paused call holds at most. */
const STREAM_WINDOW_BYTES = 256 * 1024;
/** Node gives it back as bytes come, whoever is paused; 64 KiB, the default, would be all that comes for all calls in a round trip. */
const CONNECTION_WINDOW_BYTES = 16 * 1024 * 1024;
/** As HTTP/1.1 has it: 16 KiB, and RFC 9113 6.5.2 counts 32 bytes more for each. */
const MAX_HEADERS = { bytes: 18 * 1024, pairs: 256 };
const SESSION_MEMORY_MB = 256;
const PROBE_MS = 5_000;
/** Probes without a call after which it is closed, as undici's HTTP/1.1 connections are after some seconds. */
const IDLE_PROBES = 3;
/** Probes without an answer after which it is given up, with all its calls: far more than a busy upstream needs. */
const LOST_PROBES = 6;

/**
 * node:http2, and not undici's client on it: that one tells a stream that was reset with CANCEL or NO_ERROR in the middle of a body as
 * a complete answer, sends refused requests again by itself, aborts with NO_ERROR, and shows neither a stream's close nor the peer's bounds.
 * @param socket connected, with `h2` agreed on
 */
export function createHttp2Connection(origin: string, socket: Socket, probeMs = PROBE_MS, listener: Http2Listener): Connection {
  let calls = 0;
  let maxCalls = 0;
  let isLeaving = false;
  let isOver = false;
  let lostCode: string | undefined;
  let lastProcessedId = Number.POSITIVE_INFINITY;
  let isHeard = true;
  let idleProbes = 0;
  let unansweredProbes = 0;

  const session: ClientHttp2Session = connect(origin, {
    createConnection: () => socket,
    settings: { enablePush: false, initialWindowSize: STREAM_WINDOW_BYTES, maxHeaderListSize: MAX_HEADERS.bytes },
    maxHeaderListPairs: MAX_HEADERS.pairs,
    maxSessionMemory: SESSION_MEMORY_MB,
    peerMaxConcurrentStreams: CALLS_PER_CONNECTION,
  });
  session.once('connect', () => session.destroyed || session.setLocalWindowSize(CONNECTION_WINDOW_BYTES));
  session.on('remoteSettings', ({ maxConcurrentStreams = CALLS_PER_CONNECTION }) => {
    const isFirst = maxCalls === 0;
    // At least one: it is for the upstream to say when it takes that, and for our clocks how long that may last.
    maxCalls = Math.max(1, Math.min(maxConcurrentStreams, CALLS_PER_CONNECTION));
    if (isFirst) listener.onReady();
    else listener.onRoom();
  });
  session.on('goaway', (code, lastStreamId) => {
    isLeaving = true;
    lastProcessedId = Math.min(lastProcessedId, lastStreamId);
    if (code !== constants.NGHTTP2_NO_ERROR) lostCode ??= nameOf(code);
    listener.onRoom();
  });
  session.on('error', (error) => {
    lostCode ??= codeOf(error);
  });
  session.on('close', close);
  const probing = setInterval(probe, probeMs).unref();

  /** A connection that a NAT has forgotten looks like one that is silent. */
  function probe(): void {
    idleProbes = calls === 0 ? idleProbes + 1 : 0;
    if (idleProbes >= IDLE_PROBES) close();
    if (isOver || session.destroyed) return;
    const wasHeard = isHeard;
    isHeard = false;
    if (wasHeard || calls === 0) return;
    if (unansweredProbes++ === 0) session.ping(hear);
    if (unansweredProbes <= LOST_PROBES) return;
    lostCode ??= 'ETIMEDOUT';
    close();
  }

  function hear(error?: Error | null): void {
    if (error) return;
    isHeard = true;
    const wasDoubtful = unansweredProbes > 1;
    unansweredProbes = 0;
    if (wasDoubtful) listener.onRoom();
  }

  function close(): void {
    if (isOver) return;
    isOver = true;
    clearInterval(probing);
    session.destroy();
    // Without calls it ends in order, with GOAWAY; Node would then wait for the upstream to close its end, for ever if need be.
    if (calls === 0) socket.once('finish', () => socket.destroy());
    else socket.destroy();
    listener.onGone(lostCode);
  }

  const peer: Http2Peer = {
    session,
    authority: new URL(origin).host,
    hear,
    isUntouched: (id) => id !== undefined && id > lastProcessedId,
    failureOf: (code) => (isOver || session.destroyed || socket.destroyed ? (lostCode ?? 'ECONNRESET') : nameOf(code)),
    onStreamClosed() {
      calls -= 1;
      if (isLeaving && calls === 0) close();
      else listener.onRoom();
    },
  };

  function send(request: UpstreamRequest, events: UpstreamEvents, giveBack: GiveBack): Carried {
    calls += 1;
    return sendOnStream(peer, request, events, giveBack);
  }

  return {
    get room() {
      const takesCalls = !isLeaving && !isOver && !session.closed && !session.destroyed && unansweredProbes <= 1;
      return takesCalls ? maxCalls - calls : 0;
    },
    get isIdle() {
      return calls === 0;
    },
    send,
    retire() {
      isLeaving = true;
      if (calls === 0) close();
    },
    close,
  };
}

const CODE_NAMES = new Map(
  Object.entries(constants)
    .filter(
      ([name, code]) => typeof code === 'number' && /^NGHTTP2_(?!ERR|FLAG|HCAT|NV|SETTINGS|SESSION|STREAM|DEFAULT)/.test(name) && code < 14,
    )
    .map(([name, code]) => [code, name.replace('NGHTTP2_', 'HTTP2_')]),
);

/** The name that RFC 9113 7 has for an error's code. */
function nameOf(code: number): string {
  return CODE_NAMES.get(code) ?? 'HTTP2_UNKNOWN';
}

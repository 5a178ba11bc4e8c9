// A WebSocket between two connections: bytes go both ways as they come, under back-pressure, and when either side goes, so does the other.
import type { Socket } from 'node:net';
import type { ErrorDetail } from '../errors.ts';
import type { Outcome, Phase } from '../exchange.ts';
import type { Break } from './relay.ts';
import { reset } from './reset.ts';
import type { SessionMeter } from './session.ts';
import { closeFrame, createFrameReader } from './websocket.ts';

/** Bounds in milliseconds; Infinity where there is none. */
export interface ChannelBounds {
  /** How long the client may take nothing of what there is for it. */
  readonly clientStallMs: number;
  /** And the upstream. */
  readonly upstreamStallMs: number;
}

export interface ChannelParts {
  readonly client: Socket;
  readonly upstream: Socket;
  /** Looks at what goes down. */
  readonly meter: SessionMeter;
  readonly bounds: ChannelBounds;
  /** Where bytes are counted. */
  readonly flow: { bytesIn: number; bytesOut: number };
  now(): number;
  /** Runs what thousands of clients that leave at one instant would want at once. */
  spread(task: () => void): void;
  errorOf(code: 'upstream_truncated' | 'upstream_reset' | 'upstream_idle_timeout'): ErrorDetail;
  onPhase(phase: Phase): void;
  /** The client has left; its upstream is about to be closed. */
  onLeft(leftAtMs: number): void;
  /** Called exactly once. `cause` is a word for the log. */
  onOutcome(outcome: Outcome, cause?: string): void;
}

export interface Channel {
  /** Ends it: the client is told why, where between two frames there is room for it. */
  break(why: Break): void;
  /** Waits no longer than a moment for a client that does not take its end. */
  hurry(): void;
  /** Judges stalls; called on every beat of the clock. */
  judge(nowMs: number): void;
}

/** RFC 6455 7.4.1 and IANA's registry: what SDKs go by when they decide whether to open another session. */
const CLOSE_CODES: Readonly<Record<string, number>> = {
  draining: 1012,
  upstream_total_timeout: 1001,
  insufficient_quota: 1008,
  ended_by_operator: 1008,
};
const INTERNAL_ERROR = 1011;
/** What an upstream says that means no trouble: normal, going away, and no code at all. */
const GOOD_CODES = new Set([undefined, 1000, 1001, 1005]);
/** How long a side that has had all may take to close. */
const LINGER_MS = 1000;

/** Both connections speak WebSocket already; `client` holds unread whatever it has sent since. */
export function openChannel(parts: ChannelParts): Channel {
  const { client, upstream, meter, bounds, flow } = parts;
  const down = meter.frames;
  const up = createFrameReader();
  let state: 'open' | 'closing' | 'over' = 'open';
  let ending: Outcome = 'completed';
  let cause: string | undefined;
  /** Who said first that it is over; the other only repeats the code. */
  let saidBy: 'client' | 'upstream' | undefined;

  const toClient = createPipe(upstream, client, {
    onChunk(chunk) {
      flow.bytesOut += chunk.length;
      meter.look(chunk);
      if (down.isClosed) saidBy ??= 'upstream';
    },
    onBlocked: () => parts.onPhase('backpressure'),
    onFree: () => parts.onPhase('stream'),
  });
  const toUpstream = createPipe(client, upstream, {
    onChunk(chunk) {
      flow.bytesIn += chunk.length;
      up.read(chunk);
      if (up.isClosed) saidBy ??= 'client';
    },
  });

  function settle(outcome: Outcome): void {
    if (state === 'over') return;
    state = 'over';
    lingerOn(client);
    lingerOn(upstream);
    parts.onOutcome(outcome, cause);
  }

  /** How a session ends whose end was said: what follows is no failure. */
  function saidOutcome(): Outcome {
    if (saidBy === 'client' || GOOD_CODES.has(down.closeCode)) return 'completed';
    cause = `close_${down.closeCode}`;
    return 'upstream_error_event';
  }

  /** The client gets all that there is for it, then the end of its connection. */
  function endClient(outcome: Outcome, lastWords = ''): void {
    state = 'closing';
    ending = outcome;
    client.once('finish', () => settle(ending));
    client.end(lastWords, 'latin1');
  }

  function breakOff({ detail, outcome }: Break): void {
    if (state !== 'open') return;
    const mayClose = down.isBetweenFrames && !down.isClosed;
    const close = closeFrame(CLOSE_CODES[detail.code] ?? INTERNAL_ERROR, detail.code).toString('latin1');
    endClient(outcome, mayClose ? meter.errorEvent(detail) + close : '');
    upstream.destroy();
  }

  function onUpstreamGone(code: 'upstream_truncated' | 'upstream_reset'): void {
    if (state !== 'open') return;
    if (saidBy !== undefined) {
      endClient(saidOutcome());
      upstream.destroySoon();
    } else {
      breakOff({ detail: parts.errorOf(code), outcome: code });
    }
  }

  function onClientGone(): void {
    const leftAtMs = parts.now();
    parts.spread(() => leave(leftAtMs));
  }

  function leave(leftAtMs: number): void {
    if (state === 'over') return;
    if (state === 'closing' || saidBy !== undefined) {
      // The other side may yet hear that it was said.
      upstream.destroySoon();
      client.destroySoon();
      settle(state === 'closing' ? ending : saidOutcome());
    } else {
      parts.onLeft(leftAtMs);
      upstream.destroy();
      client.destroy();
      settle('client_closed');
    }
  }

  function judge(nowMs: number): void {
    if (toClient.heldMs(nowMs) > bounds.clientStallMs) {
      reset(client);
      upstream.destroy();
      settle('client_stalled');
    } else if (state === 'open' && toUpstream.heldMs(nowMs) > bounds.upstreamStallMs) {
      breakOff({ detail: parts.errorOf('upstream_idle_timeout'), outcome: 'timeout_idle' });
    }
  }

  upstream.on('error', (error: NodeJS.ErrnoException) => {
    if (state === 'open') cause = error.code;
  });
  upstream.once('end', () => onUpstreamGone('upstream_truncated'));
  upstream.once('close', () => onUpstreamGone('upstream_reset'));
  client.once('end', onClientGone);
  client.once('close', onClientGone);
  // They may have gone while the handshake was under way.
  if (client.destroyed || client.readableEnded) onClientGone();
  if (upstream.destroyed) onUpstreamGone('upstream_reset');
  return {
    break: breakOff,
    hurry: () => lingerOn(client),
    judge,
  };
}

interface PipeEvents {
  onChunk(chunk: Buffer): void;
  onBlocked?(): void;
  onFree?(): void;
}

interface Pipe {
  /** How long the receiver has taken nothing of what is held for it. */
  heldMs(nowMs: number): number;
}

/** Of what is read only as much is held as fits into one read and the receiver's buffer, 128 KiB together. */
function createPipe(from: Socket, to: Socket, events: PipeEvents): Pipe {
  let isBlocked = false;
  let heldBytes = 0;
  let takenAtMs = 0;

  function free(): void {
    if (!isBlocked) return;
    isBlocked = false;
    events.onFree?.();
    from.resume();
  }

  from.on('data', (chunk: Buffer) => {
    // What comes behind an end is read, so that the sender's own end is seen, and dropped.
    if (!to.writable) return;
    const wantsMore = to.write(chunk);
    events.onChunk(chunk);
    if (wantsMore) return;
    from.pause();
    if (!isBlocked) events.onBlocked?.();
    isBlocked = true;
  });
  to.on('drain', free);
  // Nobody holds the sender back any more.
  to.once('close', free);
  from.resume();

  return {
    heldMs(nowMs) {
      if (to.writableLength === 0 || to.writableLength !== heldBytes) takenAtMs = nowMs;
      heldBytes = to.writableLength;
      return nowMs - takenAtMs;
    },
  };
}

function lingerOn(socket: Socket): void {
  if (socket.destroyed) return;
  const timer = setTimeout(() => socket.destroy(), LINGER_MS);
  socket.once('close', () => clearTimeout(timer));
}

// One connection of the load: asks, reads the answer from the one shared buffer, asks again.
import { connect, type Socket } from 'node:net';
import { nowNs, readStamp, STAMP_DIGITS, STAMP_MARK } from './clock.ts';

/** What a client tells of its calls. Times are nanoseconds. */
export interface Witness {
  onFirstByte(sinceAskedNs: number): void;
  onFirstEvent(sinceAskedNs: number): void;
  onEvent(sinceSentNs: number): void;
  /** The call has ended; true: another one may follow. */
  onEnd(how: 'whole' | 'aborted' | 'failed', sinceAskedNs: number): boolean;
}

export interface ClientParts {
  readonly port: number;
  readonly request: Buffer;
  /** After how many events the client leaves, drawn for each call; undefined: it stays. */
  drawDeparture(): number | undefined;
  /** Takes a little, then rests so long; 0: takes all at once. */
  readonly restMs: number;
  readonly witness: Witness;
}

const mark = Buffer.from(STAMP_MARK);
const STAMP_BYTES = STAMP_MARK.length + STAMP_DIGITS;
/** So much of what was read last is kept, in front of what is read next: a time or an end may be cut in two. */
const TAIL_BYTES = 64;
/** All connections read into it: what is in it has been looked through before the next read. */
const shared = Buffer.alloc(TAIL_BYTES + 65_536);
/** What a slow reader takes before it rests. */
const SLOW_READ_BYTES = 16_384;
/** A connection that fails is not made anew at once: the contender may be down. */
const RETRY_MS = 20;

/** Connects and begins to ask; returns how to stop. */
export function startClient(parts: ClientParts): () => void {
  const { witness } = parts;
  let socket: Socket;
  let isStopped = false;
  let askedNs = 0;
  let state: 'connecting' | 'asked' | 'ended' = 'connecting';
  let hasEvent = false;
  let events = 0;
  let leavesAfter: number | undefined;
  let departures = 0;
  /** Bytes of a body of known length that are still to come. */
  let missingBytes = -1;
  const tail = Buffer.alloc(TAIL_BYTES);
  let tailBytes = 0;

  function open(): void {
    if (isStopped) return;
    state = 'connecting';
    const readBytes = parts.restMs === 0 ? 65_536 : SLOW_READ_BYTES;
    const onread = { buffer: shared.subarray(TAIL_BYTES, TAIL_BYTES + readBytes), callback: read };
    socket = connect({ port: parts.port, host: '127.0.0.1', noDelay: true, onread }, ask);
    const own = socket;
    socket.on('error', () => undefined);
    socket.once('close', () => {
      if (own !== socket || isStopped) return;
      if (state !== 'ended') end('failed');
      setTimeout(open, RETRY_MS);
    });
  }

  function ask(): void {
    state = 'asked';
    hasEvent = false;
    events = tailBytes = 0;
    missingBytes = -1;
    leavesAfter = parts.drawDeparture();
    askedNs = nowNs();
    socket.write(parts.request);
  }

  function end(how: 'whole' | 'aborted' | 'failed'): void {
    state = 'ended';
    const mayAsk = witness.onEnd(how, nowNs() - askedNs);
    if (!mayAsk) stop();
    else if (how === 'whole') ask();
  }

  /** Leaves the answer in the middle and calls anew from another connection. */
  function leave(): void {
    const left = socket;
    end('aborted');
    if (departures++ % 2 === 0) left.resetAndDestroy();
    else left.destroy();
    open();
  }

  function read(bytes: number): boolean {
    if (state !== 'asked') return true;
    const now = nowNs();
    const from = TAIL_BYTES - tailBytes;
    tail.copy(shared, from, 0, tailBytes);
    const to = TAIL_BYTES + bytes;
    if (missingBytes === -1) {
      if (!readHead(from, to, now)) return true;
    } else if (missingBytes !== Number.POSITIVE_INFINITY) missingBytes -= bytes;
    const rest = readEvents(from, to, now);
    if (leavesAfter !== undefined && events >= leavesAfter) leave();
    else if (missingBytes === 0 || (missingBytes === Number.POSITIVE_INFINITY && isLastChunk(to))) end('whole');
    // At least what tells an end from a beginning, were it cut in two.
    else keep(Math.max(Math.min(rest, to - 6), to - TAIL_BYTES, from), to);
    if (parts.restMs === 0) return true;
    setTimeout(() => socket.resume(), parts.restMs);
    return false;
  }

  function keep(from: number, to: number): void {
    tailBytes = shared.copy(tail, 0, from, to);
  }

  /** Of the head, the status and the body's length. False: it is not whole yet, or is bad. */
  function readHead(from: number, to: number, now: number): boolean {
    if (tailBytes === 0) witness.onFirstByte(now - askedNs);
    const text = shared.toString('latin1', from, Math.min(to, from + 4096));
    const headEnd = text.indexOf('\r\n\r\n');
    if (headEnd < 0 || !text.startsWith('HTTP/1.1 200')) {
      // A head in two pieces is as good as never seen here; it counts as a failure rather than be followed.
      end('failed');
      socket.destroy();
      return false;
    }
    const length = /\r\ncontent-length: *(\d+)/i.exec(text.slice(0, headEnd))?.[1];
    missingBytes = length === undefined ? Number.POSITIVE_INFINITY : Number(length) - (to - from - headEnd - 4);
    return true;
  }

  /** Finds the events' times; returns where the search has to go on. */
  function readEvents(from: number, to: number, now: number): number {
    const known = shared.subarray(0, to);
    let at = from;
    for (;;) {
      const found = known.indexOf(mark, at);
      if (found < 0) return Math.max(at, to - mark.length + 1);
      if (found + STAMP_BYTES > to) return found;
      const sentNs = readStamp(shared, found + STAMP_MARK.length);
      if (!hasEvent) witness.onFirstEvent(now - askedNs);
      hasEvent = true;
      events++;
      witness.onEvent(now - sentNs);
      at = found + STAMP_BYTES;
    }
  }

  function stop(): void {
    isStopped = true;
    socket.destroy();
  }

  open();
  return stop;
}

/** `0`, two line ends, and a line end before: nothing follows it, for the next call has not been asked yet. */
function isLastChunk(to: number): boolean {
  return shared[to - 1] === 10 && shared[to - 3] === 10 && shared[to - 5] === 48 && shared[to - 6] === 10;
}

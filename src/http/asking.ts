// Asking for token usage on a client's behalf: which calls, with what of them held, and what is done where an upstream refuses.
import type { IncomingMessage } from 'node:http';
import type { Readable } from 'node:stream';
import type { Config, Upstream } from '../config.ts';
import { createTopLevelScanner } from '../stream/json.ts';
import { type AskedRequest, createUsageAsk, type UsageAsk } from '../upstream/ask.ts';
import type { HeaderList } from '../upstream/headers.ts';

/** Where `stream_options` is known (OpenAI API reference). */
const ENDPOINTS = new Set(['/v1/chat/completions', '/v1/completions']);
/** Longer than any error that a provider words. */
const MAX_REFUSAL_BYTES = 64 * 1024;

/** One for all requests. */
export interface Asker {
  /** How to ask for this call's usage; undefined where it goes as it is. */
  begin(request: IncomingMessage, endpoint: string, upstream: Upstream): UsageAsk | undefined;
  /** The upstream does not know what it was asked: it is not asked again. */
  remember(upstream: Upstream): void;
  /** Accounts for bytes of bodies held in memory, all requests together; false where they would be too many. */
  hold(bytes: number): boolean;
  release(bytes: number): void;
}

export function createAsker(config: () => Config): Asker {
  const refusing = new WeakSet<Upstream>();
  let heldBytes = 0;
  return {
    begin(request, endpoint, upstream) {
      if (upstream.usage === 'asSent' || refusing.has(upstream) || request.method !== 'POST' || !ENDPOINTS.has(endpoint)) return undefined;
      const { 'content-type': type = '', 'content-encoding': encoding } = request.headers;
      if (encoding !== undefined || !/^application\/json\s*(?:;|$)/i.test(type)) return undefined;
      return createUsageAsk(upstream.usage, createTopLevelScanner);
    },
    remember: (upstream) => void refusing.add(upstream),
    hold(bytes) {
      if (heldBytes + bytes > config().server.maxHeldBodiesBytes) return false;
      heldBytes += bytes;
      return true;
    },
    release(bytes) {
      heldBytes -= bytes;
    },
  };
}

/** A request body in memory, for as long as it may be needed again. */
export interface HeldBody {
  /** As the client sent it, or with what is asked for in its place. */
  bytes(asked?: AskedRequest): Buffer;
  /** Gives its memory back; what still comes is not kept. */
  letGo(): void;
}

/**
 * Holds a body until it is whole: whether a call asks for a stream shows at its end, and its length changes with what is added.
 * @param onWhole told how to ask, undefined where the call goes as it was sent
 * @param onTooMuch called where there is no room for it
 */
export function holdBody(
  body: Readable,
  ask: UsageAsk,
  asker: Asker,
  onWhole: (asked: AskedRequest | undefined) => void,
  onTooMuch: () => void,
): HeldBody {
  const pieces: Buffer[] = [];
  let heldBytes = 0;
  let isLetGo = false;

  function letGo(): void {
    isLetGo = true;
    pieces.length = 0;
    asker.release(heldBytes);
    heldBytes = 0;
  }

  body.on('data', (chunk: Buffer) => {
    if (isLetGo) return;
    if (asker.hold(chunk.length)) {
      heldBytes += chunk.length;
      pieces.push(chunk);
      ask.observe(chunk);
    } else {
      letGo();
      onTooMuch();
    }
  });
  body.once('end', () => {
    if (!isLetGo) onWhole(ask.result());
  });
  return { bytes: (asked) => Buffer.concat(asked?.splice(pieces) ?? pieces), letGo };
}

/** Takes the body of an answer. */
export interface Taker {
  chunk(bytes: Buffer): void;
  end(): void;
}

/** Whether an answer may be a refusal of what Sluicegate added. */
export function mayRefuseAsking(status: number): boolean {
  return status === 400 || status === 422;
}

/**
 * Reads an answer that may refuse `stream_options`.
 * @param retry called where it does
 * @param pass called where it does not: returns who takes the answer instead, from its first byte
 */
export function createRefusalReader(
  status: number,
  headers: HeaderList,
  retry: () => void,
  pass: (status: number, headers: HeaderList) => Taker | undefined,
): Taker {
  const pieces: Buffer[] = [];
  let length = 0;
  let instead: Taker | undefined;

  function passOn(): void {
    instead = pass(status, headers);
    for (const piece of pieces.splice(0)) instead?.chunk(piece);
  }

  return {
    chunk(bytes) {
      if (instead !== undefined) {
        instead.chunk(bytes);
        return;
      }
      pieces.push(Buffer.from(bytes));
      length += bytes.length;
      if (length > MAX_REFUSAL_BYTES) passOn();
    },
    end() {
      if (instead === undefined && Buffer.concat(pieces).includes('stream_options')) {
        retry();
        return;
      }
      if (instead === undefined) passOn();
      instead?.end();
    },
  };
}

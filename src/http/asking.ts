// Asking for token usage on a client's behalf: which calls, with what of them held, and what is done where an upstream refuses.
import type { IncomingMessage } from 'node:http';
import type { Config, Upstream } from '../config.ts';
import { createTopLevelScanner } from '../stream/json.ts';
import { createUsageAsk, type UsageAsk } from '../upstream/ask.ts';
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

// Asking for token usage on a client's behalf: which calls, and what is done where an upstream refuses.
import type { Upstream } from '../config.ts';

/** Where `stream_options` is known (OpenAI API reference). */
const ENDPOINTS = new Set(['/v1/chat/completions', '/v1/completions']);
/** Longer than any error that a provider words. */
const MAX_REFUSAL_BYTES = 64 * 1024;

/** One for all requests. */
export interface Asker {
  /** Whether calls to the endpoint are asked for their usage at this upstream. */
  mayAsk(endpoint: string, upstream: Upstream): boolean;
  /** The upstream does not know what it was asked: it is not asked again. */
  remember(upstream: Upstream): void;
}

export function createAsker(): Asker {
  const refusing = new WeakSet<Upstream>();
  return {
    mayAsk: (endpoint, upstream) => upstream.usage !== 'asSent' && !refusing.has(upstream) && ENDPOINTS.has(endpoint),
    remember: (upstream) => void refusing.add(upstream),
  };
}

/** Takes the body of an answer. */
export interface Taker {
  chunk(bytes: Buffer): void;
  /** So much has come together: what was gathered of it goes on. */
  flush?(): void;
  end(): void;
}

/** Whether an answer may be a refusal of what Sluicegate added. */
export function mayRefuseAsking(status: number): boolean {
  return status === 400 || status === 422;
}

/**
 * Reads an answer that may refuse `stream_options`.
 * @param retry called where it does; false: it is too late for that
 * @param pass called where it does not, or it is too late: returns who takes the answer instead, from its first byte
 */
export function createRefusalReader(retry: () => boolean, pass: () => Taker | undefined): Taker {
  const pieces: Buffer[] = [];
  let length = 0;
  let instead: Taker | undefined;

  function passOn(): void {
    instead = pass();
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
    flush: () => instead?.flush?.(),
    end() {
      if (instead === undefined && Buffer.concat(pieces).includes('stream_options') && retry()) return;
      if (instead === undefined) passOn();
      instead?.end();
    },
  };
}

// An upstream's keys: used in turn, those that it refused rest, and one that stands in a file is read again when it changes.
import { readFileSync, unwatchFile, watchFile } from 'node:fs';
import type { Upstream } from '../config.ts';
import { type HeaderList, headerValue, isKeyInjected } from './headers.ts';

export interface KeyPool {
  /** The next key in turn that does not rest; of those that all do, the one that has rested longest. Undefined where none is sent. */
  take(): string | undefined;
  /** Whether there is a key that does not rest. */
  readonly hasFresh: boolean;
  /** Whether there are keys, and all of them rest. */
  readonly isResting: boolean;
  /** The upstream has answered 429 or 401 to a key: it is not used for a while, as long as others are there. */
  refused(key: string, status: number, headers: HeaderList): void;
  /** Stops looking at the file. */
  close(): void;
}

/** A limit that says nothing of when it ends is most often one of a minute. */
const LIMITED_MS = 30_000;
const SHORTEST_LIMITED_MS = 1_000;
const LONGEST_LIMITED_MS = 10 * 60_000;
/** A key that is not valid becomes so by somebody's doing. */
const INVALID_MS = 5 * 60_000;
const LOOK_MS = 1_000;

interface Key {
  readonly text: string;
  freshAtMs: number;
}

/**
 * @param now monotonic milliseconds
 * @param onFault told when the key's file can no longer be read; the key that was read last stays
 */
export function createKeyPool(upstream: Upstream, now: () => number, onFault: (fault: unknown) => void): KeyPool {
  const { apiKeyFile } = upstream;
  let keys = (isKeyInjected(upstream) ? upstream.apiKeys : []).map((text): Key => ({ text, freshAtMs: 0 }));
  let turn = 0;

  function readAgain(): void {
    try {
      const text = readFileSync(apiKeyFile!, 'utf8').trim();
      // While it is being written it may be empty.
      if (keys.length > 0 && /^[!-~]+$/.test(text) && text !== keys[0]?.text) keys = [{ text, freshAtMs: 0 }];
    } catch (fault) {
      onFault(fault);
    }
  }
  // Looked at, not listened to: secrets are replaced by links (Kubernetes), and a watch would stay with the old file.
  if (apiKeyFile !== undefined) watchFile(apiKeyFile, { interval: LOOK_MS, persistent: false }, readAgain);

  const isFresh = ({ freshAtMs }: Key) => freshAtMs <= now();

  return {
    take() {
      for (let tried = 0; tried < keys.length; tried++) {
        const key = keys[turn++ % keys.length]!;
        if (isFresh(key)) return key.text;
      }
      return keys.toSorted((a, b) => a.freshAtMs - b.freshAtMs)[0]?.text;
    },
    get hasFresh() {
      return keys.some(isFresh);
    },
    get isResting() {
      return keys.length > 0 && !keys.some(isFresh);
    },
    refused(text, status, headers) {
      const key = keys.find((known) => known.text === text);
      if (key !== undefined) key.freshAtMs = now() + (status === 401 ? INVALID_MS : limitedMs(headers));
    },
    close() {
      if (apiKeyFile !== undefined) unwatchFile(apiKeyFile, readAgain);
    },
  };
}

/** How long a 429 says to wait: OpenAI's `retry-after-ms`, or `Retry-After` in seconds (RFC 9110 10.2.3); a date is not worth a clock. */
function limitedMs(headers: HeaderList): number {
  const ms = Number(headerValue(headers, 'retry-after-ms') ?? Number(headerValue(headers, 'retry-after')) * 1000);
  return ms > 0 ? Math.min(Math.max(ms, SHORTEST_LIMITED_MS), LONGEST_LIMITED_MS) : LIMITED_MS;
}

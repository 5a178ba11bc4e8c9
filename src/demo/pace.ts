// Makes the demo as slow as a model: a pause before the first token, then so many tokens a second.
import type { IncomingHttpHeaders } from 'node:http';
import { setImmediate, setTimeout } from 'node:timers/promises';
import { createRefusal } from './refusal.ts';

/** `tokensPerSecond: 0` is as fast as it goes. */
export interface Pace {
  readonly ttftMs: number;
  readonly tokensPerSecond: number;
}

/** What a hosted model does on a good day. */
export const DEFAULT_PACE: Pace = { ttftMs: 250, tokensPerSecond: 40 };

/** setTimeout takes a longer delay for 1 ms. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** The pace one request asks for by `x-demo-ttft-ms` and `x-demo-tokens-per-second`. Throws a 400 refusal if it is no number. */
export function readPace(headers: IncomingHttpHeaders, defaults: Pace): Pace {
  return {
    ttftMs: readAmount(headers, 'x-demo-ttft-ms') ?? defaults.ttftMs,
    tokensPerSecond: readAmount(headers, 'x-demo-tokens-per-second') ?? defaults.tokensPerSecond,
  };
}

function readAmount(headers: IncomingHttpHeaders, name: string): number | undefined {
  const text = headers[name];
  if (text === undefined) return undefined;
  if (typeof text === 'string' && /^\d+(\.\d+)?$/.test(text)) return Number(text);
  throw createRefusal(400, `Header ${name} must be a number, 0 or more.`, { param: name, code: 'invalid_value' });
}

/**
 * A clock that starts now. Await `reach(n)` before the n-th token (from 1). Due times are counted from the start, so a slow
 * client costs no pace: the model talks on meanwhile. Rejects as soon as `gone` aborts.
 */
export function startPacer({ ttftMs, tokensPerSecond }: Pace, gone: AbortSignal): { reach(token: number): Promise<void> } {
  const startMs = performance.now();
  const tokenMs = tokensPerSecond === 0 ? 0 : 1000 / tokensPerSecond;
  return {
    async reach(token) {
      const waitMs = (): number => startMs + ttftMs + Math.max(token - 1, 0) * tokenMs - performance.now();
      // Even when late the loop gets a turn: without one, Node corks all writes into one and a client's leaving goes unseen.
      if (waitMs() <= 0) await setImmediate(undefined, { signal: gone });
      for (let ms = waitMs(); ms > 0; ms = waitMs()) await setTimeout(Math.min(Math.ceil(ms), MAX_TIMER_MS), undefined, { signal: gone });
    },
  };
}

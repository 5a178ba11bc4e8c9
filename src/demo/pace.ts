// Makes the demo as slow as a model: a pause before the first token, then so many tokens a second; and as frail, where a request asks for it.
import type { IncomingHttpHeaders } from 'node:http';
import { setImmediate, setTimeout } from 'node:timers/promises';
import { createRefusal } from './refusal.ts';

/** `tokensPerSecond: 0` is as fast as it goes. */
export interface Pace {
  readonly ttftMs: number;
  readonly tokensPerSecond: number;
  /** The answer breaks off after so many tokens; a whole one, or one without a token yet, is a 500 instead. */
  readonly cutAfter?: number | undefined;
}

/** What a hosted model does on a good day. */
export const DEFAULT_PACE: Pace = { ttftMs: 250, tokensPerSecond: 40 };

/** setTimeout takes a longer delay for 1 ms. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** The pace one request asks for by `x-demo-ttft-ms`, `x-demo-tokens-per-second` and `x-demo-cut-after`. Throws a 400 refusal if it is no number. */
export function readPace(headers: IncomingHttpHeaders, defaults: Pace): Pace {
  return {
    ttftMs: readAmount(headers, 'x-demo-ttft-ms') ?? defaults.ttftMs,
    tokensPerSecond: readAmount(headers, 'x-demo-tokens-per-second') ?? defaults.tokensPerSecond,
    cutAfter: readAmount(headers, 'x-demo-cut-after') ?? defaults.cutAfter,
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
 * client costs no pace: the model talks on meanwhile. Rejects as soon as `gone` aborts, and at the token that is not to come.
 */
export function startPacer(
  { ttftMs, tokensPerSecond, cutAfter = Number.POSITIVE_INFINITY }: Pace,
  gone: AbortSignal,
): { reach(token: number): Promise<void> } {
  const startMs = performance.now();
  const tokenMs = tokensPerSecond === 0 ? 0 : 1000 / tokensPerSecond;
  return {
    async reach(token) {
      if (token > cutAfter) throw new Error('the request asked for an answer that breaks off');
      const waitMs = (): number => startMs + ttftMs + Math.max(token - 1, 0) * tokenMs - performance.now();
      // Even when late the loop gets a turn: without one, Node corks all writes into one and a client's leaving goes unseen.
      if (waitMs() <= 0) await setImmediate(undefined, { signal: gone });
      for (let ms = waitMs(); ms > 0; ms = waitMs()) await setTimeout(Math.min(Math.ceil(ms), MAX_TIMER_MS), undefined, { signal: gone });
    },
  };
}

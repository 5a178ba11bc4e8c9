// Traffic for the demo: calls as an app's users make them, whole and streamed, left early and refused, so that every figure has something to show.
import { setTimeout as delayFor } from 'node:timers/promises';
import { MISSING_MODEL } from './fields.ts';
import { REASONING_MODEL } from './model.ts';
import { DEFAULT_PACE } from './pace.ts';

export interface TrafficOptions {
  /** The gateway's base URL, with its `/v1`. */
  readonly url: string;
  /** Keys of clients, of which each calls less than the one before; none: without a key. */
  readonly keys: readonly string[];
  /** Calls begun a second, on average; they swell and ebb. 2 by default. */
  readonly perSecond?: number;
  /** How many calls in all; without end by default. */
  readonly calls?: number;
  /** So many times as fast as a person would see a model talk. */
  readonly speed?: number;
  /** From 0 to 1, as `Math.random`. */
  readonly random?: () => number;
}

export interface Traffic {
  /** Calls that got an answer, whatever it was, and those that did not get one. Live. */
  readonly stats: { answered: number; failed: number };
  /** Resolves once the last call has ended. */
  readonly done: Promise<void>;
  /** Begins no more calls and leaves those under way. */
  stop(): Promise<void>;
}

/** One call: what is sent, and when its client leaves, if it does. */
interface Visit {
  readonly path: string;
  readonly body: object;
  readonly headers?: Record<string, string>;
  readonly key?: string;
  /** Leaves after so many pieces of the answer; 0: before there is one. */
  readonly leaveAfter?: number;
}

type Dice = (from: number, to: number) => number;

/** Beyond, a call is left out: a gateway that hangs must not make a pile of callers here. */
const MAX_AT_ONCE = 64;
/** From ebb to ebb: a graph of a quarter of an hour shows that there is more and less of it. */
const TIDE_MS = 600_000;
/** The patience of whoever leaves before the answer begins. */
const PATIENCE_MS = 120;
/** Nobody waits longer, whatever happens. */
const VISIT_MS = 60_000;

const ask = (model: string, tokens: number, more: object = {}) => ({
  model,
  messages: [{ role: 'user', content: `Please say ${tokens} tokens.` }],
  ...more,
});
const streamed = { stream: true };
const chat = '/chat/completions';

/** What visitors do, and how often in a hundred calls. */
const habits: readonly (readonly [share: number, visit: (dice: Dice) => Visit])[] = [
  [29, (dice) => ({ path: chat, body: ask('demo-large', dice(40, 240), streamed), headers: pace(dice(300, 1200), dice(25, 45)) })],
  [24, (dice) => ({ path: chat, body: ask('demo-small', dice(20, 160), streamed), headers: pace(dice(80, 400), dice(60, 120)) })],
  [9, (dice) => ({ path: chat, body: ask('demo-small', dice(10, 60)), headers: pace(dice(80, 300), 100) })],
  [8, (dice) => ({ path: chat, body: ask(REASONING_MODEL, dice(20, 80), streamed), headers: pace(dice(600, 2500), 50) })],
  [7, (dice) => ({ path: '/responses', body: { model: 'demo-large', input: `Say ${dice(30, 120)} tokens.`, store: false, ...streamed } })],
  [4, (dice) => ({ path: '/completions', body: { model: 'demo-small', prompt: `Say ${dice(10, 50)} tokens.`, ...streamed } })],
  [5, () => ({ path: '/embeddings', body: { model: 'demo-embedding', input: ['a text to be found again', 'another one'] } })],
  [5, (dice) => ({ path: chat, body: ask('demo-large', 300, streamed), leaveAfter: dice(2, 40) })],
  [2, () => ({ path: chat, body: ask('demo-large', 100, streamed), headers: pace(5000, 40), leaveAfter: 0 })],
  [2, (dice) => ({ path: chat, body: ask('demo-large', 120, streamed), headers: { 'x-demo-cut-after': String(dice(3, 60)) } })],
  [1, () => ({ path: chat, body: ask('demo-small', 20), headers: { 'x-demo-cut-after': '0' } })],
  [1, () => ({ path: chat, body: ask('demo-small', -1, { stream: 'perhaps' }) })],
  [1, () => ({ path: chat, body: ask(MISSING_MODEL, 20, streamed) })],
  [2, () => ({ path: chat, body: ask('demo-small', 20), key: 'sk-demo-nobody' })],
];
const SHARES = habits.reduce((sum, [share]) => sum + share, 0);

function pace(ttftMs: number, tokensPerSecond: number): Record<string, string> {
  return { 'x-demo-ttft-ms': String(ttftMs), 'x-demo-tokens-per-second': String(tokensPerSecond) };
}

/** Starts calling; nothing that answers or does not ends it. */
export function startTraffic(options: TrafficOptions): Traffic {
  const { perSecond = 2, calls = Number.POSITIVE_INFINITY, random = Math.random } = options;
  const dice: Dice = (from, to) => from + Math.floor(random() * (to - from + 1));
  const stats = { answered: 0, failed: 0 };
  const stopping = new AbortController();
  const underWay = new Set<Promise<void>>();

  async function call(visit: Visit): Promise<void> {
    const isAnswered = await pay(visit, options, stopping.signal);
    if (isAnswered) stats.answered += 1;
    else stats.failed += 1;
  }

  async function callOn(): Promise<void> {
    for (let begun = 0; begun < calls && !stopping.signal.aborted; begun += 1) {
      if (underWay.size < MAX_AT_ONCE) {
        const visit = call({ key: chooseKey(options.keys, random), ...choose(random() * SHARES)(dice) });
        underWay.add(visit);
        void visit.finally(() => underWay.delete(visit));
      }
      // Callers know nothing of each other: times between them are exponential.
      const rate = perSecond * (1 + 0.6 * Math.sin((2 * Math.PI * performance.now()) / TIDE_MS));
      await delayFor((-Math.log(1 - random()) / rate) * 1000, undefined, { signal: stopping.signal }).catch(() => undefined);
    }
    await Promise.all(underWay);
  }

  const done = callOn();
  return {
    stats,
    done,
    stop() {
      stopping.abort();
      return done;
    },
  };
}

function choose(at: number): (dice: Dice) => Visit {
  let rest = at;
  for (const [share, visit] of habits) {
    rest -= share;
    if (rest < 0) return visit;
  }
  return habits[0]![1];
}

/** The first key half of the time, the next a quarter of it, and so on. */
function chooseKey(keys: readonly string[], random: () => number): string {
  const at = Math.floor(-Math.log2(1 - random()));
  return keys[Math.min(at, keys.length - 1)] ?? '';
}

/** Makes one call to its end. @returns whether there was an answer, or its client did not wait for one */
async function pay({ path, body, headers, key, leaveAfter }: Visit, options: TrafficOptions, stopped: AbortSignal): Promise<boolean> {
  const leaving = new AbortController();
  const signal = AbortSignal.any([leaving.signal, stopped, AbortSignal.timeout(leaveAfter === 0 ? PATIENCE_MS : VISIT_MS)]);
  try {
    const response = await fetch(options.url + path, {
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        ...(key && { authorization: `Bearer ${key}` }),
        ...hasten(headers, options.speed),
      },
      body: JSON.stringify(body),
      signal,
    });
    let pieces = 0;
    for await (const _ of response.body ?? []) {
      pieces += 1;
      if (pieces === leaveAfter) leaving.abort();
    }
    return true;
  } catch {
    // One that left, or that was cut: both are what was wanted. All else is told by the count.
    return leaveAfter !== undefined || headers?.['x-demo-cut-after'] !== undefined;
  }
}

function hasten(headers: Record<string, string> = {}, speed = 1): Record<string, string> {
  const { 'x-demo-ttft-ms': ttftMs, 'x-demo-tokens-per-second': perSecond } = headers;
  const { ttftMs: usualMs, tokensPerSecond: usual } = DEFAULT_PACE;
  return { ...headers, ...pace(Number(ttftMs ?? usualMs) / speed, Number(perSecond ?? usual) * speed) };
}

// What is under way in this process, and how the last requests ended: looked up from their records when somebody asks, never pushed.
import { randomBytes } from 'node:crypto';
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Exchange } from '../exchange.ts';
import { outputSoFar } from '../spending.ts';
import { MODEL_NAME } from './model-names.ts';
import { type EndingView, MAX_RECENT, MAX_STREAMS, type StreamView, type Totals, type View } from './view.ts';

export type BoardView = Pick<View, 'streamCount' | 'tokensPerSecond' | 'streams' | 'totals' | 'history' | 'recent'>;

export interface Board {
  /** Takes down how a request has ended; once each. */
  record(exchange: Exchange): void;
  view(): BoardView;
  /** The live exchange that was shown under this id. */
  find(id: string): Exchange | undefined;
  close(): void;
}

/** Two seconds a sample, five minutes of them. */
const SAMPLE_MS = 2_000;
const SAMPLES = 150;
const STREAMS_A_TURN = 100;
/** Less says little of a rate. */
const MIN_SPAN_MS = 250;

/** What a stream had written when it was last sampled, and the time before. */
interface Mark {
  tokens: number;
  atMs: number;
  tokensBefore: number;
  beforeMs: number;
}

/**
 * @param live the exchanges under way
 * @param now monotonic milliseconds
 */
export function createBoard(live: () => Iterable<Exchange>, now: () => number, sampleMs: number = SAMPLE_MS): Board {
  const instance = randomBytes(4).toString('hex');
  const ids = new WeakMap<Exchange, string>();
  const marks = new WeakMap<Exchange, Mark>();
  const recent: EndingView[] = [];
  const history = { everyMs: sampleMs, streams: [] as number[], tokensPerSecond: [] as number[] };
  const totals: Totals = { requests: 0, outcomes: {}, inputTokens: 0, outputTokens: 0, costUsd: 0 };
  let lastId = 0;
  let isSampling = false;
  /** All output that has been seen to flow, and how much of it the last sample knew. */
  let flowed = 0;
  let sampledFlow = 0;
  let sampledAtMs = now();

  /** A few streams in each turn of the loop, so that no other one waits for thousands; between samples nothing is done. */
  async function sample(): Promise<void> {
    if (isSampling) return;
    isSampling = true;
    let streams = 0;
    for (const exchange of live()) {
      mark(exchange, now());
      streams += 1;
      if (streams % STREAMS_A_TURN === 0) await nextTurn();
    }
    isSampling = false;
    const nowMs = now();
    keep(history.streams, streams);
    keep(history.tokensPerSecond, ((flowed - sampledFlow) * 1000) / Math.max(1, nowMs - sampledAtMs));
    sampledFlow = flowed;
    sampledAtMs = nowMs;
  }

  function mark(exchange: Exchange, nowMs: number): void {
    const tokens = outputSoFar(exchange.meter);
    let known = marks.get(exchange);
    if (known === undefined) {
      known = { tokens: 0, atMs: firstTokenMs(exchange, nowMs), tokensBefore: 0, beforeMs: 0 };
      marks.set(exchange, known);
    }
    flowed += tokens - known.tokens;
    known.tokensBefore = known.tokens;
    known.beforeMs = known.atMs;
    known.tokens = tokens;
    known.atMs = nowMs;
  }

  function rateOf(exchange: Exchange, tokens: number, nowMs: number): number {
    const { tokensBefore, beforeMs } = marks.get(exchange) ?? { tokensBefore: 0, beforeMs: firstTokenMs(exchange, nowMs) };
    return ((tokens - tokensBefore) * 1000) / Math.max(MIN_SPAN_MS, nowMs - beforeMs);
  }

  function idOf(exchange: Exchange): string {
    const id = ids.get(exchange) ?? `${instance}-${++lastId}`;
    ids.set(exchange, id);
    return id;
  }

  function show(exchange: Exchange, nowMs: number): StreamView {
    const tokens = outputSoFar(exchange.meter);
    const { requestId, client, upstream, endpoint, phase, startedAtMs, ttftMs, bytesOut } = exchange;
    return {
      ...{ id: idOf(exchange), requestId, client, upstream, model: modelOf(exchange), endpoint, phase, ttftMs, tokens, bytesOut },
      isUnheard: exchange.outputHeard !== undefined,
      ageMs: nowMs - startedAtMs,
      tokensPerSecond: rateOf(exchange, tokens, nowMs),
    };
  }

  const timer = setInterval(() => void sample(), sampleMs).unref();

  return {
    record(exchange) {
      const { outcome = 'completed', tokens, costNanoUsd = 0, durationMs = 0, meter } = exchange;
      const { requestId, client, upstream, endpoint, status, phase, ttftMs } = exchange;
      flowed += outputSoFar(meter) - (marks.get(exchange)?.tokens ?? 0);
      const inputTokens = tokens?.inputSource && tokens.input;
      const outputTokens = tokens?.outputSource && tokens.output;
      totals.requests += 1;
      totals.outcomes[outcome] = (totals.outcomes[outcome] ?? 0) + 1;
      totals.inputTokens += inputTokens ?? 0;
      totals.outputTokens += outputTokens ?? 0;
      totals.costUsd += costNanoUsd / 1e9;
      recent.push({
        requestId,
        client,
        upstream,
        model: modelOf(exchange),
        endpoint,
        status,
        outcome,
        phase,
        durationMs,
        ttftMs,
        cause: exchange.rejection ?? exchange.cause,
        endedAt: Date.now(),
        inputTokens,
        outputTokens,
      });
      if (recent.length > 2 * MAX_RECENT) recent.splice(0, MAX_RECENT);
    },

    view() {
      const nowMs = now();
      const oldestFirst = [...live()].sort((one, other) => one.startedAtMs - other.startedAtMs);
      const streamCount = oldestFirst.length;
      const streams = oldestFirst.slice(0, MAX_STREAMS).map((exchange) => show(exchange, nowMs));
      // Thousands are not looked at for one figure: the last sample has it.
      const tokensPerSecond =
        streamCount > MAX_STREAMS
          ? (history.tokensPerSecond.at(-1) ?? 0)
          : streams.reduce((total, stream) => total + stream.tokensPerSecond, 0);
      return { streamCount, tokensPerSecond, streams, totals, history, recent: recent.slice(-MAX_RECENT).reverse() };
    },

    find(id) {
      for (const exchange of live()) if (ids.get(exchange) === id) return exchange;
      return undefined;
    },

    close: () => clearInterval(timer),
  };
}

/** When it began to write. */
function firstTokenMs({ startedAtMs, ttftMs }: Exchange, nowMs: number): number {
  return ttftMs === undefined ? nowMs : startedAtMs + ttftMs;
}

function modelOf({ model, meter }: Exchange): string | undefined {
  const named = meter?.model;
  return model ?? (named !== undefined && MODEL_NAME.test(named) ? named : undefined);
}

function keep(samples: number[], value: number): void {
  samples.push(value);
  if (samples.length > SAMPLES) samples.shift();
}

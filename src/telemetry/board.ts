// What the live page and `sluicegate top` show: looked up from the records of requests when somebody asks, never pushed by a stream.
import { randomBytes } from 'node:crypto';
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Exchange, Outcome, Phase } from '../exchange.ts';
import { outputSoFar } from '../spending.ts';

/** A request under way. Nothing of what it says, and no key. */
export interface StreamView {
  /** Ours, for ending it: request ids are the clients' to choose. */
  readonly id: string;
  readonly requestId: string;
  readonly client: string;
  readonly upstream: string | undefined;
  readonly model: string | undefined;
  readonly endpoint: string;
  readonly phase: Phase;
  /** Its client has left, and the answer is read on without it. */
  readonly isUnheard: boolean;
  readonly ageMs: number;
  readonly ttftMs: number | undefined;
  /** Of output so far, about. */
  readonly tokens: number;
  /** Of the last few seconds. */
  readonly tokensPerSecond: number;
  readonly bytesOut: number;
}

/** A request that has ended. */
export interface EndingView {
  readonly requestId: string;
  readonly client: string;
  readonly upstream: string | undefined;
  readonly model: string | undefined;
  readonly endpoint: string;
  readonly status: number | undefined;
  readonly outcome: Outcome;
  /** Where it stood when it ended. */
  readonly phase: Phase;
  /** The code of a refusal, or of what broke underneath. */
  readonly cause: string | undefined;
  readonly endedAt: number;
  readonly durationMs: number;
  readonly ttftMs: number | undefined;
  readonly inputTokens: number | undefined;
  readonly outputTokens: number | undefined;
}

/** Since the process was started. */
export interface Totals {
  requests: number;
  outcomes: Record<string, number>;
  inputTokens: number;
  outputTokens: number;
  costUsd: number;
}

export interface UpstreamView {
  readonly name: string;
  readonly isUp: boolean;
  readonly active: number;
  readonly idle: number;
  readonly queued: number;
}

/** The last minutes, oldest first. */
export interface History {
  readonly everyMs: number;
  readonly streams: readonly number[];
  readonly tokensPerSecond: readonly number[];
}

/** What `GET /api/streams` answers. Times are Unix milliseconds, or durations in milliseconds. */
export interface View {
  readonly version: string;
  readonly state: string;
  readonly at: number;
  readonly startedAt: number;
  readonly workers: number;
  /** Where clients call, as the gateway itself knows it. */
  readonly url: string;
  readonly isKeyNeeded: boolean;
  readonly streamCount: number;
  readonly tokensPerSecond: number;
  /** The oldest ones, where there are more than are told. */
  readonly streams: readonly StreamView[];
  readonly totals: Totals;
  readonly upstreams: readonly UpstreamView[];
  readonly history: History;
  /** The latest first. */
  readonly recent: readonly EndingView[];
}

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
/** A page that lists more is read by nobody, and costs each look. */
export const MAX_STREAMS = 200;
export const MAX_RECENT = 50;
/** Less says little of a rate. */
const MIN_SPAN_MS = 250;
/** As in metrics: names come from upstreams, and might be anything. */
const MODEL_NAME = /^[\w.:/@-]{1,64}$/;

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

  function show(exchange: Exchange, tokens: number, nowMs: number): StreamView {
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
      add(totals, {
        ...{ requests: 1, outcomes: { [outcome]: 1 }, costUsd: costNanoUsd / 1e9 },
        ...{ inputTokens: inputTokens ?? 0, outputTokens: outputTokens ?? 0 },
      });
      recent.push({
        ...{ requestId, client, upstream, model: modelOf(exchange), endpoint, status, outcome, phase, durationMs, ttftMs },
        ...{ cause: exchange.rejection ?? exchange.cause, endedAt: Date.now(), inputTokens, outputTokens },
      });
      if (recent.length > 2 * MAX_RECENT) recent.splice(0, MAX_RECENT);
    },

    view() {
      const nowMs = now();
      const streams: StreamView[] = [];
      let streamCount = 0;
      let tokensPerSecond = 0;
      for (const exchange of live()) {
        streamCount += 1;
        if (streamCount > MAX_STREAMS) continue;
        const tokens = outputSoFar(exchange.meter);
        tokensPerSecond += rateOf(exchange, tokens, nowMs);
        streams.push(show(exchange, tokens, nowMs));
      }
      // Thousands are not looked at for one figure: the last sample has it.
      if (streamCount > MAX_STREAMS) tokensPerSecond = history.tokensPerSecond.at(-1) ?? 0;
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

/** Adds what another has counted. */
export function add(totals: Totals, more: Readonly<Totals>): void {
  for (const name of ['requests', 'inputTokens', 'outputTokens', 'costUsd'] as const) totals[name] += more[name];
  for (const [outcome, count] of Object.entries(more.outcomes)) totals.outcomes[outcome] = (totals.outcomes[outcome] ?? 0) + count;
}

/**
 * What several processes show, as one gateway's.
 * @param departed what those had counted that are gone
 */
export function joinViews([first, ...others]: readonly [View, ...View[]], departed: Readonly<Totals>): View {
  const all = [first, ...others];
  const totals: Totals = structuredClone(departed);
  for (const view of all) add(totals, view.totals);
  const sum = (name: 'streamCount' | 'tokensPerSecond') => all.reduce((total, view) => total + view[name], 0);
  return {
    ...first,
    totals,
    ...{ workers: all.length, streamCount: sum('streamCount'), tokensPerSecond: sum('tokensPerSecond') },
    startedAt: Math.min(...all.map(({ startedAt }) => startedAt)),
    streams: all
      .flatMap(({ streams }) => streams)
      .sort((one, other) => other.ageMs - one.ageMs)
      .slice(0, MAX_STREAMS),
    upstreams: joinUpstreams(all.flatMap(({ upstreams }) => upstreams)),
    history: {
      everyMs: first.history.everyMs,
      streams: addUp(all.map(({ history }) => history.streams)),
      tokensPerSecond: addUp(all.map(({ history }) => history.tokensPerSecond)),
    },
    recent: all
      .flatMap(({ recent }) => recent)
      .sort((one, other) => other.endedAt - one.endedAt)
      .slice(0, MAX_RECENT),
  };
}

/** As in metrics, an upstream is up where it is for all. */
function joinUpstreams(views: readonly UpstreamView[]): UpstreamView[] {
  const joined = new Map<string, UpstreamView>();
  for (const view of views) {
    const { isUp, active, idle, queued } = joined.get(view.name) ?? { isUp: true, active: 0, idle: 0, queued: 0 };
    const counts = { active: active + view.active, idle: idle + view.idle, queued: queued + view.queued };
    joined.set(view.name, { name: view.name, isUp: isUp && view.isUp, ...counts });
  }
  return [...joined.values()];
}

/** Sample by sample, from the last one back. */
function addUp(rows: readonly (readonly number[])[]): number[] {
  const length = Math.max(...rows.map((row) => row.length));
  return Array.from({ length }, (_, at) => rows.reduce((total, row) => total + (row[row.length - length + at] ?? 0), 0));
}

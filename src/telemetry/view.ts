// What the live page and `sluicegate top` show, and how what several processes show becomes one gateway's.
import type { Outcome, Phase } from '../exchange.ts';
import type { ConnectionCounts } from '../upstream/client.ts';

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

/** A page that lists more is read by nobody, and costs each look. */
export const MAX_STREAMS = 200;
export const MAX_RECENT = 50;

/** The upstreams in use; one that others of the same name were retired for shows their connections too. */
export function viewUpstreams(
  health: Iterable<readonly [name: string, isUp: boolean]>,
  connections: Iterable<readonly [name: string, counts: ConnectionCounts]>,
): UpstreamView[] {
  const counts = new Map<string, ConnectionCounts>();
  for (const [name, { active, idle, queued }] of connections) {
    const before = counts.get(name) ?? { active: 0, idle: 0, queued: 0 };
    counts.set(name, { active: before.active + active, idle: before.idle + idle, queued: before.queued + queued });
  }
  return Array.from(health, ([name, isUp]) => ({ active: 0, idle: 0, queued: 0, ...counts.get(name), name, isUp }));
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

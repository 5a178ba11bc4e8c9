// The list of models: the upstreams' own, put together, without what the client may not call or nobody would get.
import type { Upstream } from '../config.ts';
import type { Exchange } from '../exchange.ts';
import type { HeaderList } from '../upstream/headers.ts';
import type { Taker } from './asking.ts';
import { type Attempt, type AttemptFailure, createAttempt, requestFor } from './attempt.ts';
import type { Entrant } from './plan.ts';
import type { Tries, TriesEvents, TriesParts } from './tries.ts';

/** Some ten thousand models. */
const MAX_LIST_BYTES = 4 * 1024 * 1024;
/** For those that are slower than the others. */
const LATE_MS = 5_000;
const NOTHING = '{"object":"list","data":[]}';

interface Model {
  readonly id: string;
}

/** What a list for all upstreams is made of. */
export interface ModelMerge {
  readonly upstreams: readonly Upstream[];
  /** Models that the configuration names, whether an upstream knows them by that name or not. */
  readonly names: readonly string[];
  /** Whether a call for a model that an upstream lists could go there. */
  serves(upstream: Upstream, model: string): boolean;
}

/**
 * Takes the answer to `GET /v1/models` (OpenAI API reference, "List models"; Anthropic's has the same `data[].id`).
 * What cannot be read shows nothing.
 * @param begin begins the answer to the client
 */
export function createModelList(allows: (model: string) => boolean, headers: HeaderList, begin: (headers: HeaderList) => Taker): Taker {
  return gather((text) => {
    const list = Buffer.from(filterList(text, allows));
    const answer = begin([...withoutLength(headers), 'content-length', String(list.length)]);
    answer.chunk(list);
    answer.end();
  });
}

/** Takes a list that is not longer than lists are; of a longer one, nothing. */
function gather(onText: (text: string) => void): Taker {
  const pieces: Buffer[] = [];
  let bytes = 0;
  return {
    chunk(chunk) {
      bytes += chunk.length;
      if (bytes <= MAX_LIST_BYTES) pieces.push(Buffer.from(chunk));
    },
    end: () => onText(bytes <= MAX_LIST_BYTES ? Buffer.concat(pieces).toString() : NOTHING),
  };
}

function filterList(text: string, allows: (model: string) => boolean): string {
  const list = readList(text);
  if (list === undefined) return NOTHING;
  const data = list.data.filter(({ id }) => allows(id));
  return JSON.stringify({ ...list, data, ...('first_id' in list ? endsOf(data) : {}) });
}

/** Anthropic's words for where a list begins and ends. */
function endsOf(data: readonly Model[]): { first_id: string | null; last_id: string | null } {
  return { first_id: data[0]?.id ?? null, last_id: data.at(-1)?.id ?? null };
}

function readList(text: string): { readonly data: Model[] } | undefined {
  try {
    const list = JSON.parse(text) as { data?: unknown };
    if (!Array.isArray(list.data)) return undefined;
    return { ...list, data: list.data.filter((model: { id?: unknown } | null) => typeof model?.id === 'string') };
  } catch {
    return undefined;
  }
}

/** A body that is made here has neither the length nor the coding nor the validator of the one that came, and is no part of it. */
function withoutLength(headers: HeaderList): HeaderList {
  const dropped = new Set(['content-length', 'content-encoding', 'content-range', 'etag', 'content-md5', 'digest']);
  return headers.filter((_, at) => !dropped.has(headers[at - (at % 2)]!.toLowerCase()));
}

/** An upstream's own answer, should no list come. */
interface Refusal {
  readonly attempt: Attempt;
  readonly status: number;
  readonly headers: HeaderList;
  readonly text: string;
}

/** Asks all upstreams at once. One that fails is left out; where all do, the first one's failure is the answer. */
export function gatherModels(
  journey: Entrant & { readonly exchange: Exchange },
  merge: ModelMerge,
  { clock, metrics, outletOf }: TriesParts,
  events: TriesEvents,
): Tries {
  const { exchange, request, requestTarget } = journey;
  const edit = { requestTarget, model: undefined, splices: [], strip: undefined };
  const live = new Set<Attempt>();
  const lists = new Map<Upstream, readonly Model[]>();
  let server: Attempt | undefined;
  let refusal: Refusal | undefined;
  let failure: (AttemptFailure & { readonly upstream: string }) | undefined;
  let isFirst = true;
  let begunAtMs = Number.POSITIVE_INFINITY;

  function prepare(upstream: Upstream): () => void {
    const outlet = outletOf(upstream);
    const key = outlet.keys.take();
    const attempt = createAttempt(
      { clock, metrics, exchange, outlet, key, edit },
      {
        onStart() {
          if (isFirst) events.onStart();
          isFirst = false;
        },
        onPhase: (_, phase) => events.onPhase(phase),
        onHead: (asked, status, headers) => gather((text) => take(asked, status, headers, text)),
        onFail(asked, why) {
          failure ??= { ...why, upstream: upstream.name };
          leave(asked);
        },
      },
    );
    live.add(attempt);
    return () => attempt.begin(requestFor(request, { outlet, key, edit, body: undefined }));
  }

  function take(attempt: Attempt, status: number, headers: HeaderList, text: string): void {
    attempt.tell(status < 300 ? 'ok' : 'refused');
    if (status < 300) {
      server ??= attempt;
      lists.set(attempt.upstream, readList(text)?.data ?? []);
    } else {
      refusal ??= { attempt, status, headers, text };
    }
    leave(attempt);
  }

  function leave(attempt: Attempt): void {
    if (live.delete(attempt) && live.size === 0) tell();
  }

  function tell(): void {
    for (const late of live) late.abort();
    live.clear();
    if (server !== undefined) answer(server, 200, ['content-type', 'application/json'], JSON.stringify(mergeLists(merge, lists)));
    else if (refusal !== undefined) answer(refusal.attempt, refusal.status, withoutLength(refusal.headers), refusal.text);
    else if (failure !== undefined) failAs(failure);
  }

  function failAs(why: NonNullable<typeof failure>): void {
    exchange.upstream = why.upstream;
    exchange.cause = why.cause;
    events.onFail(why);
  }

  function answer(attempt: Attempt, status: number, headers: HeaderList, text: string): void {
    exchange.upstream = attempt.upstream.name;
    const body = Buffer.from(text);
    const taker = events.onAnswer(attempt, status, [...headers, 'content-length', String(body.length)]);
    taker?.chunk(body);
    taker?.end();
  }

  return {
    begin() {
      begunAtMs = clock.now();
      // One that fails at once is not the last.
      for (const ask of merge.upstreams.map(prepare)) ask();
    },
    get leading() {
      return server ?? live.values().next().value;
    },
    commit: () => undefined,
    judge(nowMs) {
      for (const attempt of live) attempt.judge(nowMs, true);
      if (live.size > 0 && lists.size > 0 && nowMs - begunAtMs > LATE_MS) tell();
    },
    abort(onClosed) {
      const [last, ...others] = live;
      live.clear();
      for (const attempt of others) attempt.abort();
      last?.abort(onClosed);
    },
  };
}

/** The first upstream's entry for each model that would reach it, then what only the configuration names. */
function mergeLists({ upstreams, names, serves }: ModelMerge, lists: ReadonlyMap<Upstream, readonly Model[]>): unknown {
  const models = new Map<string, Model>();
  for (const upstream of upstreams) {
    for (const model of lists.get(upstream) ?? []) if (!models.has(model.id) && serves(upstream, model.id)) models.set(model.id, model);
  }
  for (const id of names) if (!models.has(id)) models.set(id, { id, ...NAMED } as Model);
  const data = [...models.values()];
  // With Anthropic's words for the whole list, which OpenAI's SDKs pass over.
  return { object: 'list', data, has_more: false, ...endsOf(data) };
}

const NAMED = { object: 'model', created: 0, owned_by: 'sluicegate' };

// One call of the openai SDK, made to be run at two places, and all that an app and an upstream can see of it.
import OpenAI, { APIError } from 'openai';
import type { ScriptedUpstream, UpstreamRequest } from './upstream.ts';

/** One run of a case, as its app and its scripted upstream share it. */
export interface Act {
  readonly openai: OpenAI;
  readonly controller: AbortController;
  /** The app's record of an event that it has in hand. */
  hear(event: unknown): void;
  readonly firstHeard: Promise<void>;
}

/** An act with all that its app has heard. */
export interface RecordedAct extends Act {
  readonly events: readonly unknown[];
  /** Says that no event will come any more. */
  over(): void;
}

/** What one run showed, on either side; ids and times that are made anew are numbered and zeroed. */
export interface Observed {
  readonly events: readonly unknown[];
  readonly returned?: unknown;
  readonly thrown?: unknown;
  /** The requests as a scripted upstream saw them, and what its script says of their end. */
  readonly upstream?: unknown;
}

export interface Case {
  readonly app: (act: Act) => Promise<unknown>;
  /** Answers in place of the demo. */
  readonly script?: (request: UpstreamRequest, act: Act) => Promise<unknown> | unknown;
  /** What each way must show at least. */
  readonly expected: object;
  /** What only the way through Sluicegate must show, where the two are meant to differ; else they must be the same. */
  readonly through?: object;
  readonly outcome?: string;
  /** HTTP requests that the app makes; 1 if not given. */
  readonly calls?: number;
}

/** A run of its own: an SDK without retries, pointed at `baseURL`. */
export function createAct(baseURL: string, apiKey: string): RecordedAct {
  const events: unknown[] = [];
  const first = Promise.withResolvers<void>();
  const hear = (event: unknown) => {
    events.push(event);
    first.resolve();
  };
  // Rejected for whoever waits; in most runs nobody does.
  first.promise.catch(() => undefined);
  const over = () => first.reject(new Error('the app ended before it had an event'));
  const openai = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 10_000 });
  return { openai, controller: new AbortController(), hear, firstHeard: first.promise, events, over };
}

/** Headers that an app may act on. */
const telling = /^(retry-after|x-should-retry|x-ratelimit-|content-type$)/;

function describeError(error: unknown): object {
  if (!(error instanceof Error)) return { class: typeof error };
  const { name: _, message } = error;
  if (!(error instanceof APIError)) return { class: error.constructor.name, message };
  const { status, code, type, param, requestID: requestId, error: body, headers } = error;
  const told = Object.fromEntries([...(headers ?? [])].filter(([name]) => telling.test(name)));
  return { class: error.constructor.name, message, status, code, type, param, requestId, error: body, headers: told };
}

/** A request without what differs from one hop to the next, and without the key, which must be the upstream's. */
async function describeRequest(request: UpstreamRequest): Promise<object> {
  const { host: _, connection: __, 'accept-encoding': ___, ...headers } = request.headers;
  return { method: request.method, target: request.target, headers, body: (await request.body()).toString() };
}

/** The same thing as JSON, with ids numbered in the order that they come and times zeroed. */
function settleIds(observed: Observed): Observed {
  const ids = new Map<string, string>();
  const number = (id: string) => {
    if (!ids.has(id)) ids.set(id, `id ${ids.size + 1}`);
    return ids.get(id) ?? '';
  };
  const text = JSON.stringify(observed)
    .replace(/\b(?:chatcmpl|cmpl|resp|msg|fc|call|file|rs)[-_][0-9a-f-]{16,}/g, number)
    .replace(/"(created|created_at|completed_at)":\d{10}/g, '"$1":0');
  return JSON.parse(text);
}

/** Runs a case once, and lets its script answer at `upstream` if it has one. */
export async function play({ app, script }: Case, act: RecordedAct, upstream: ScriptedUpstream): Promise<Observed> {
  const running = app(act).then(
    (returned) => ({ returned }),
    (error: unknown) => ({ thrown: describeError(error) }),
  );
  if (script === undefined) return settleIds({ ...(await running), events: act.events });
  void running.then(act.over);
  const request = await upstream.request();
  const asked = await describeRequest(request);
  const said = await script(request, act);
  return settleIds({ ...(await running), events: act.events, upstream: { asked, said } });
}

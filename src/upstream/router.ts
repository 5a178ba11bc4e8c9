// Which upstreams may serve a call, by the model or the path that it names; and what that costs.
import type { Config, Model, Price, Upstream } from '../config.ts';
import type { RequestTarget } from './target.ts';

/** Where a call may go. */
export interface Target {
  readonly upstream: Upstream;
  /** Its share of first tries; undefined where no target of its route has one. */
  readonly weight: number | undefined;
  /** What the model is called there; undefined: as the client calls it. */
  readonly rewrite: string | undefined;
}

export interface Route {
  /** The pattern that matched: what metrics call the model. Undefined where none did. */
  readonly match: string | undefined;
  /** At least one, in the order of the configuration. */
  readonly targets: readonly Target[];
  readonly balance: Model['balance'];
  /** A larger body goes to one target only. */
  readonly replayBytes: number;
  /** A stream without a first token after so long is asked of the next target too; Infinity: it is not. */
  readonly hedgeMs: number;
  readonly price: Price | undefined;
}

export interface Router {
  /** Whether the way depends on the model, so that a call must be read for it. */
  readonly readsModel: boolean;
  /** Those that calls which name a model can go to. */
  readonly upstreams: readonly Upstream[];
  /** The models that are named without a wildcard: names that clients can be told of. */
  readonly names: readonly string[];
  /** The first row that matches; without one the first upstream, or for a call without a model the first that claims its path. */
  route(model: string | undefined, path: string): Route;
}

/** As the default of `models[].replay`, for calls that no row matches. */
const REPLAY_BYTES = 1024 * 1024;

/** For one configuration, which has at least one upstream. */
export function createRouter({ models, upstreams }: Pick<Config, 'models' | 'upstreams'>): Router {
  const named = new Map(upstreams.map((upstream) => [upstream.name, upstream]));
  const rows = models.map(({ match, targets, balance, replayBytes, hedgeMs, price }) => {
    const known = targets.map(({ upstream, ...how }): Target => ({ upstream: named.get(upstream)!, ...how }));
    return { matches: createPattern(match), route: { match, targets: known, balance, replayBytes, hedgeMs, price } satisfies Route };
  });
  const alone = upstreams.map((upstream): Route => {
    const target = { upstream, weight: undefined, rewrite: undefined };
    return { match: undefined, targets: [target], balance: 'order', replayBytes: REPLAY_BYTES, hedgeMs: Infinity, price: undefined };
  });
  const claims = upstreams.map(({ endpoints }, at) => ({ fits: endpoints.map(createPattern), route: alone[at]! }));

  return {
    readsModel: rows.length > 0,
    upstreams: upstreams.filter(
      (upstream, at) => at === 0 || rows.some(({ route }) => route.targets.some((target) => target.upstream === upstream)),
    ),
    names: models.map(({ match }) => match).filter((match) => !match.includes('*')),
    route(model, path) {
      const route =
        model === undefined
          ? claims.find(({ fits }) => fits.some((isFit) => isFit(path)))?.route
          : rows.find(({ matches }) => matches(model))?.route;
      return route ?? alone[0]!;
    },
  };
}

/** Whether a name fits a pattern, in which `*` stands for any characters. Linear in the name, whatever the pattern. */
export function createPattern(pattern: string): (name: string) => boolean {
  const [head = '', ...parts] = pattern.split('*');
  const tail = parts.pop();
  if (tail === undefined) return (name) => name === pattern;
  return (name) => {
    if (!name.startsWith(head) || name.length < head.length + tail.length || !name.endsWith(tail)) return false;
    const end = name.length - tail.length;
    let at = head.length;
    for (const part of parts) {
      const found = name.indexOf(part, at);
      if (found < 0 || found + part.length > end) return false;
      at = found + part.length;
    }
    return true;
  };
}

/**
 * The model that a path names: after `deployments` (Azure), `engines` (OpenAI's first API) or `model` (Bedrock) one segment, after
 * `models` the rest, in any case, since some servers ignore it. Decoded once, as upstreams do; `''`, which is no model's name,
 * where it cannot be, or where only a server that decodes the whole path would read one.
 */
export function modelOfPath(path: string): string | undefined {
  const name = nameIn(path);
  if (name === undefined) return !path.includes('%') || nameIn(decodeFully(path)) === undefined ? undefined : '';
  try {
    return decodeURIComponent(name);
  } catch {
    return '';
  }
}

/** The same request for another model: in the path, where it names one, and in the query (Realtime). */
export function renameModel({ path, query }: RequestTarget, model: string): RequestTarget {
  const name = encodeURIComponent(model);
  const pattern = NAMED_MODEL.find((known) => known.test(path));
  if (pattern !== undefined) return { path: path.replace(pattern, (_, before: string) => before + name), query };
  return { path, query: query?.replace(/(?<=^|&)model=[^&]*/g, () => `model=${name}`) };
}

/** What stands before the name, and the name. */
const NAMED_MODEL = [/(\/(?:deployments|engines|model)(?:;[^/]*)?\/)([^/]+)/i, /(\/models(?:;[^/]*)?\/)(.+?)(?=\/?$)/i];

function nameIn(path: string): string | undefined {
  return NAMED_MODEL.map((pattern) => pattern.exec(path)?.[2]).find((name) => name !== undefined);
}

/** A path as whoever decodes it as often as can be reads it; a target that needs more than a few turns is not forwarded. */
export function decodeFully(path: string): string {
  if (!path.includes('%')) return path;
  const decoded = path.replace(/%([0-9A-Fa-f]{2})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
  return decoded === path ? path : decodeFully(decoded);
}

// Which upstream serves a call, by the model that it names; and what that costs.
import type { Config, Price, Upstream } from '../config.ts';

export interface Route {
  /** The pattern that matched: what metrics call the model. Undefined where none did. */
  readonly match: string | undefined;
  readonly upstream: Upstream;
  readonly price: Price | undefined;
}

export interface Router {
  /** Whether the way depends on the model, so that a call must be read for it. */
  readonly readsModel: boolean;
  /** The first row that matches, else the first upstream. */
  route(model: string | undefined): Route;
}

/** For one configuration, which has at least one upstream. */
export function createRouter({ models, upstreams }: Pick<Config, 'models' | 'upstreams'>): Router {
  const named = new Map(upstreams.map((upstream) => [upstream.name, upstream]));
  const rows = models.map(({ match, targets: [target], price }) => {
    return { matches: createModelPattern(match), route: { match, upstream: named.get(target!.upstream)!, price } };
  });
  const otherwise: Route = { match: undefined, upstream: upstreams[0]!, price: undefined };
  return {
    readsModel: rows.length > 0,
    route: (model) => (model === undefined ? undefined : rows.find(({ matches }) => matches(model)))?.route ?? otherwise,
  };
}

/** Whether a model's name fits a pattern, in which `*` stands for any characters. Linear in the name, whatever the pattern. */
export function createModelPattern(pattern: string): (model: string) => boolean {
  const [head = '', ...parts] = pattern.split('*');
  const tail = parts.pop();
  if (tail === undefined) return (model) => model === pattern;
  return (model) => {
    if (!model.startsWith(head) || model.length < head.length + tail.length || !model.endsWith(tail)) return false;
    const end = model.length - tail.length;
    let at = head.length;
    for (const part of parts) {
      const found = model.indexOf(part, at);
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
  if (name === undefined) return nameIn(decodeFully(path)) === undefined ? undefined : '';
  try {
    return decodeURIComponent(name);
  } catch {
    return '';
  }
}

function nameIn(path: string): string | undefined {
  const [, name] = /\/(?:deployments|engines|model)(?:;[^/]*)?\/([^/]+)/i.exec(path) ?? /\/models(?:;[^/]*)?\/(.+?)\/?$/i.exec(path) ?? [];
  return name;
}

/** A path as whoever decodes it as often as can be reads it; a target that needs more than a few turns is not forwarded. */
export function decodeFully(path: string): string {
  const decoded = path.replace(/%([0-9A-Fa-f]{2})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
  return decoded === path ? path : decodeFully(decoded);
}

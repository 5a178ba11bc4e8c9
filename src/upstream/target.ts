// The way from a client's request target to the upstream's: strict, and never decoded and encoded again.

/** A request target that will be forwarded: the raw path and the raw query (without its `?`, undefined where there is none). */
export interface RequestTarget {
  readonly path: string;
  readonly query: string | undefined;
}

export type TargetVerdict =
  | { readonly ok: true; readonly target: RequestTarget }
  | { readonly ok: false; readonly code: 'invalid_request' | 'not_found' };

/** Visible ASCII without what no URI may contain (RFC 3986 appendix A) and without `\`, which some servers take for `/`. */
const legalPath = /^[!$-;=@-Z_a-z~%|[\]]*$/;
const legalQuery = /^[!$-;=?-~]*$/;
const malformedEscape = /%(?![0-9A-Fa-f]{2})/;
/** Bytes that begin no character, and longer forms of characters that have a shorter one (RFC 3629 3): a lax decoder reads `.` in E0 80 AE. */
const overlong = /[\xc0\xc1\xf5-\xff]|\xe0[\x80-\x9f]|\xf0[\x80-\x8f]/;
/** Nobody encodes a path so often; 8,000 levels, which fit into a request line, took 150 ms to undo. */
const MAX_DECODINGS = 8;
const INVALID: TargetVerdict = { ok: false, code: 'invalid_request' };

/**
 * Judges a raw request target. Only origin-form (RFC 9112 3.2.1) under `/v1` or `/openai` is forwarded.
 *
 * Upstreams differ in how often they decode a path and what they take for a separator, so whatever some server could
 * read as a dot segment, an empty segment or a NUL is refused: what is authorised here must be what is served there.
 */
export function judgeTarget(rawTarget: string): TargetVerdict {
  if (!rawTarget.startsWith('/')) return INVALID;
  const mark = rawTarget.indexOf('?');
  const path = mark < 0 ? rawTarget : rawTarget.slice(0, mark);
  const query = mark < 0 ? undefined : rawTarget.slice(mark + 1);
  if (!legalPath.test(path) || malformedEscape.test(path) || (query !== undefined && !legalQuery.test(query))) return INVALID;
  if (!isPlainPath(path)) return INVALID;
  if (!/^\/(?:v1|openai)(?:\/|$)/.test(path)) return { ok: false, code: 'not_found' };
  return { ok: true, target: { path, query } };
}

/** What most paths are: there is nothing to decode, and no dot. */
const OBVIOUS_PATH = /^(?:\/[\w-]+)+$/;

/** Whether no reading of the path, however often decoded, leaves the folder that it names. */
function isPlainPath(path: string): boolean {
  if (OBVIOUS_PATH.test(path)) return true;
  let reading = path;
  for (let decodings = 0; decodings <= MAX_DECODINGS; decodings++) {
    if (/[^ -~\u0080-\u00ff]|\\/.test(reading) || reading.includes('//')) return false;
    if (reading.split('/').some((segment) => /^\.{1,2}$/.test(segment.replace(/;.*$/s, '')))) return false;
    const decoded = reading.replace(/%([0-9A-Fa-f]{2})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
    if (decoded === reading) return !overlong.test(reading);
    reading = decoded;
  }
  return false;
}

/**
 * The path and query to ask the upstream for.
 *
 * `/v1/REST` becomes the base URL's path and REST; `/openai/REST` stands at the origin (Azure). Configured query
 * parameters replace the client's of the same name; without any, the query goes on byte for byte.
 */
export function upstreamPath(target: RequestTarget, basePath: string, configuredQuery: Readonly<Record<string, string>>): string {
  const path = target.path.startsWith('/v1') ? basePath + target.path.slice('/v1'.length) : target.path;
  const query = mergeQuery(target.query, configuredQuery);
  return (path === '' ? '/' : path) + (query === undefined ? '' : `?${query}`);
}

function mergeQuery(query: string | undefined, configured: Readonly<Record<string, string>>): string | undefined {
  const names = Object.keys(configured);
  if (names.length === 0) return query;
  const kept = (query ?? '').split('&').filter((pair) => pair !== '' && !names.includes(decodeName(pair)));
  const added = names.map((name) => `${encodeURIComponent(name)}=${encodeURIComponent(configured[name] ?? '')}`);
  return [...kept, ...added].join('&');
}

function decodeName(pair: string): string {
  const name = (pair.split('=', 1)[0] ?? '').replaceAll('+', ' ');
  try {
    return decodeURIComponent(name);
  } catch {
    return name;
  }
}

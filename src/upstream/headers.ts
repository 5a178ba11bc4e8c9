// Which headers go on: from the client to the upstream, and back.
import { hopByHopHeaders, type Upstream } from '../config.ts';

/** A flat list of names and values, as Node's rawHeaders and writeHead and undici all take it. */
export type HeaderList = string[];

/** The headers in which SDKs send a key. */
export const credentialHeaders = ['authorization', 'api-key', 'x-api-key'] as const;

const notForUpstream = new Set([...hopByHopHeaders, 'host', 'expect', 'cookie', 'origin', 'referer', 'forwarded', 'accept-encoding']);
/** `sec-websocket-protocol` may hold a client's key. */
const notForUpstreamPrefixes = /^(?:x-forwarded-|x-accel-|x-sluicegate-|proxy-|sec-websocket-)/;
const notForClient = new Set([...hopByHopHeaders, 'set-cookie', 'alt-svc', 'strict-transport-security']);

/** The names that the message's own `Connection` headers mark as hop-by-hop. */
function connectionNames(headers: readonly string[]): Set<string> | undefined {
  let names: Set<string> | undefined;
  for (let i = 0; i < headers.length; i += 2) {
    if (headers[i]!.length !== 10 || headers[i]!.toLowerCase() !== 'connection') continue;
    names ??= new Set();
    for (const name of headers[i + 1]!.split(',')) names.add(name.trim().toLowerCase());
  }
  return names;
}

/**
 * The headers of the upstream's request: the client's, without hop-by-hop ones, without what identifies the client or
 * its browser, with the upstream's credential in place of the client's. What is added here no `Connection` header can remove.
 * @param key the key to inject, one of the upstream's
 * @param isWhole the body was read, and has the length that it has, whatever the client said
 */
export function requestHeaders(
  clientHeaders: readonly string[],
  upstream: Upstream,
  key: string | undefined,
  isWhole: boolean = false,
): HeaderList {
  const marked = connectionNames(clientHeaders);
  const own = ownHeaders(upstream);
  const out: HeaderList = [];
  for (let i = 0; i < clientHeaders.length; i += 2) {
    const name = clientHeaders[i]!;
    const key = name.toLowerCase();
    if (notForUpstream.has(key) || notForUpstreamPrefixes.test(key) || marked?.has(key) || own.replaced.has(key)) continue;
    if (isWhole && key === 'content-length') continue;
    out.push(name, clientHeaders[i + 1]!);
  }
  // Compression would make the upstream hold bytes back to compress them.
  out.push('accept-encoding', 'identity', ...own.list, ...credential(upstream, key));
  return out;
}

interface OwnHeaders {
  /** What is sent on every request. */
  readonly list: HeaderList;
  /** Lower-case names that a client's header of the same name yields to. */
  readonly replaced: ReadonlySet<string>;
}

const ownHeadersOf = new WeakMap<Upstream, OwnHeaders>();

/** The configured headers; the same for every request, so made once. */
function ownHeaders(upstream: Upstream): OwnHeaders {
  let own = ownHeadersOf.get(upstream);
  if (own === undefined) {
    const list = Object.entries(upstream.headers).flat();
    const replaced = new Set<string>(upstream.auth === 'passthrough' ? [] : credentialHeaders);
    for (let i = 0; i < list.length; i += 2) replaced.add(list[i]!.toLowerCase());
    own = { list, replaced };
    ownHeadersOf.set(upstream, own);
  }
  return own;
}

function credential(upstream: Upstream, key: string | undefined): HeaderList {
  const { auth } = upstream;
  if (key === undefined || auth === 'none' || auth === 'passthrough') return [];
  return auth === 'bearer' ? ['authorization', `Bearer ${key}`] : [auth, key];
}

/** Whether the credential that the upstream sees is Sluicegate's own. */
export function isKeyInjected(upstream: Upstream): boolean {
  return credential(upstream, upstream.apiKeys[0]).length > 0;
}

/** What the way back depends on. */
export interface ResponseTraits {
  readonly status: number;
  readonly upstream: string;
  readonly requestId: string;
  /** The key that was injected, should the upstream quote it; undefined where none was. */
  readonly key?: string | undefined;
  /** Whether the gateway answers for CORS, so that the upstream's word on it does not go on. */
  readonly isCorsOurs: boolean;
  /** Headers made here: CORS, limits. */
  readonly own: HeaderList;
}

/** The upstream's answer as it will go down, and what the relay must know of it. */
export interface ResponseHead {
  readonly headers: HeaderList;
  readonly isEventStream: boolean;
  readonly isJson: boolean;
  /** Whether the body is in a coding that only the client undoes. */
  readonly isEncoded: boolean;
  readonly requestId: string;
}

/**
 * The headers that go down to the client: the upstream's as they are but for hop-by-hop ones and those that speak for an
 * origin that Sluicegate stands in for. An event stream gets what keeps the proxies on its way from holding or changing it.
 */
export function responseHead(receivedHeaders: readonly string[], traits: ResponseTraits): ResponseHead {
  const upstreamHeaders = hideKey(receivedHeaders, traits.key);
  const contentType = headerValue(upstreamHeaders, 'content-type') ?? '';
  const mediaType = contentType.split(';', 1)[0]!.trim().toLowerCase();
  const isEventStream = mediaType === 'text/event-stream';
  const marked = connectionNames(upstreamHeaders);
  const ours = new Set<string>(['x-sluicegate-upstream']);
  for (let i = 0; i < traits.own.length; i += 2) if (traits.own[i] !== 'vary') ours.add(traits.own[i]!);
  if (isEventStream) for (const name of ['content-type', 'content-length', 'cache-control', 'x-accel-buffering']) ours.add(name);

  const headers: HeaderList = [];
  let requestId: string | undefined;
  for (let i = 0; i < upstreamHeaders.length; i += 2) {
    const name = upstreamHeaders[i]!;
    const key = name.toLowerCase();
    if (traits.status === 204 && key === 'content-length') continue; // RFC 9110 8.6
    if (notForClient.has(key) || marked?.has(key) || ours.has(key)) continue;
    if (traits.isCorsOurs && key.startsWith('access-control-')) continue;
    if (key === 'x-request-id') requestId ??= upstreamHeaders[i + 1]!;
    headers.push(name, upstreamHeaders[i + 1]!);
  }
  if (requestId === undefined) headers.push('x-request-id', traits.requestId);
  headers.push('x-sluicegate-upstream', traits.upstream, ...traits.own);
  if (isEventStream) {
    const hasCharset = /;\s*charset\s*=/i.test(contentType);
    headers.push('content-type', hasCharset ? contentType : `${contentType}; charset=utf-8`);
    // no-transform (RFC 9111 5.2.2.6) and nginx's own header: nothing on the way may gather or compress events.
    headers.push('cache-control', 'no-cache, no-transform', 'x-accel-buffering', 'no');
  }
  const encoding = headerValue(upstreamHeaders, 'content-encoding')?.trim().toLowerCase() ?? 'identity';
  return {
    headers,
    isEventStream,
    isJson: mediaType === 'application/json' || mediaType.endsWith('+json'),
    isEncoded: encoding !== 'identity' && encoding !== '',
    requestId: requestId ?? traits.requestId,
  };
}

/** The same headers, with asterisks where one quotes the key. */
function hideKey(headers: readonly string[], key: string | undefined): readonly string[] {
  if (key === undefined || !headers.some((part) => part.includes(key))) return headers;
  return headers.map((part) => part.replaceAll(key, '*'.repeat(key.length)));
}

/** The first value of a header, whatever the case of its name. */
export function headerValue(headers: readonly string[], lowerName: string): string | undefined {
  for (let i = 0; i < headers.length; i += 2) {
    if (headers[i]!.length === lowerName.length && headers[i]!.toLowerCase() === lowerName) return headers[i + 1];
  }
  return undefined;
}

/** How often a header is there, whatever the case of its name. */
export function countHeader(headers: readonly string[], lowerName: string): number {
  let count = 0;
  for (let i = 0; i < headers.length; i += 2) {
    if (headers[i]!.length === lowerName.length && headers[i]!.toLowerCase() === lowerName) count++;
  }
  return count;
}

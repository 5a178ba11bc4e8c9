// Prints a configuration as the YAML that would make it, without its secrets.
import { stringify } from 'yaml';
import type { Client, Config, Limits, Model, Upstream } from '../config.ts';
import { formatAddress, formatDuration, formatSize } from './scalars.ts';

const MASK = '••••';

// Any header or key of a query may be a credential; these are known not to be.
const PLAIN = new Set([
  'anthropic-beta',
  'anthropic-version',
  'api-version',
  'http-referer',
  'openai-beta',
  'openai-organization',
  'openai-project',
  'user-agent',
  'x-title',
]);

/**
 * The effective configuration as YAML, for people: every setting with its value, secrets as `••••`, whatever their length
 * (which no configuration accepts as a key, so that a pasted mask is noticed). Without upstreams a comment says what serves.
 */
export function printConfig(config: Config): string {
  const { server, ops, log, sse, traces, upstreams, models, clients, anonymous, limits } = config;
  const settings = {
    server: printServer(server),
    ops: { listen: formatAddress(ops.listen), token: ops.token === undefined ? 'off' : MASK },
    log,
    sse: { heartbeat: formatDuration(sse.heartbeatMs), earlyHeaders: formatDuration(sse.earlyHeadersMs) },
    traces: traces === undefined ? { endpoint: 'off' } : { ...traces, headers: maskUnknown(traces.headers) },
    ...(upstreams.length > 0 && { upstreams: new Map(upstreams.map((upstream) => [upstream.name, printUpstream(upstream)])) }),
    ...(models.length > 0 && { models: models.map(printModel) }),
    clients: clients.map(printClient),
    anonymous: { limits: printLimits(anonymous.limits) },
    limits: { store: maskPassword(limits.store), onStoreFailure: limits.onStoreFailure },
  };
  const text = stringify(settings, { lineWidth: 0, aliasDuplicateObjects: false });
  return upstreams.length > 0 ? text : `${text}# upstreams: none; the built-in demo upstream serves\n`;
}

function printServer(server: Config['server']) {
  return {
    listen: formatAddress(server.listen),
    allowAnonymous: server.allowAnonymous,
    tls: server.tls === undefined ? 'off' : { cert: server.tls.cert.path, key: server.tls.key.path },
    cors: server.cors ?? 'off',
    trustProxy: server.trustProxy.length > 0 ? server.trustProxy : 'off',
    hostnames: server.hostnames,
    maxRequestBody: formatSize(server.maxRequestBodyBytes),
    maxHeldBodies: formatSize(server.maxHeldBodiesBytes),
    maxConnections: offIfInfinite(server.maxConnections),
    workers: server.workers,
    clientStall: formatDuration(server.clientStallMs),
    drain: formatDuration(server.drainMs),
  };
}

function printUpstream(upstream: Upstream) {
  const { connectMs, firstByteMs, idleMs, totalMs } = upstream.timeouts;
  return {
    baseUrl: upstream.baseUrl,
    ...printKeys(upstream),
    auth: upstream.auth,
    headers: maskUnknown(upstream.headers),
    query: maskUnknown(upstream.query),
    usage: upstream.usage,
    onClientGone: printOnClientGone(upstream),
    endpoints: upstream.endpoints,
    caFile: upstream.ca?.path ?? 'off',
    certFile: upstream.certificate?.cert.path ?? 'off',
    keyFile: upstream.certificate?.key.path ?? 'off',
    proxy: upstream.proxy === undefined ? 'off' : upstream.proxy.replace(/(?<=\/\/)[^@]*(?=@)/, MASK),
    http2: upstream.http2 ? 'on' : 'off',
    eject: printEject(upstream),
    maxConnections: offIfInfinite(upstream.maxConnections),
    timeouts: {
      connect: formatDuration(connectMs),
      firstByte: formatDuration(firstByteMs),
      idle: formatDuration(idleMs),
      total: formatDuration(totalMs),
    },
  };
}

function printOnClientGone({ onClientGone: gone }: Upstream) {
  return gone === undefined ? 'abort' : { drain: formatDuration(gone.drainMs), tokens: offIfInfinite(gone.maxTokens) };
}

function printKeys({ apiKeys, apiKeyFile }: Upstream) {
  if (apiKeyFile !== undefined) return { apiKeyFile };
  return apiKeys.length > 1 ? { apiKeys: apiKeys.map(() => MASK) } : apiKeys.length > 0 && { apiKey: MASK };
}

function printEject({ eject }: Upstream) {
  return eject === undefined ? 'off' : { failures: eject.failures, share: offIfInfinite(eject.share), for: formatDuration(eject.forMs) };
}

function printModel({ match, targets, replayBytes, balance, hedgeMs, price }: Model) {
  const upstreams = targets.map(({ upstream, weight, rewrite }) =>
    weight === undefined && rewrite === undefined
      ? upstream
      : { name: upstream, ...(weight !== undefined && { weight }), ...(rewrite !== undefined && { rewrite }) },
  );
  const way = { replay: formatSize(replayBytes), balance, hedge: formatDuration(hedgeMs) };
  return { match, upstreams, ...way, ...(price !== undefined && { price: JSON.parse(JSON.stringify(price)) }) };
}

function printClient({ name, keySha256, models, endpoints, limits }: Client) {
  return { name, keySha256, ...(models !== undefined && { models, endpoints }), limits: printLimits(limits) };
}

function printLimits({ requestsPerMinute, tokensPerMinute, concurrentStreams, budget, onExhausted }: Limits) {
  return {
    requestsPerMinute: requestsPerMinute ?? 'off',
    tokensPerMinute: tokensPerMinute ?? 'off',
    concurrentStreams: concurrentStreams ?? 'off',
    budget: budget ?? 'off',
    onExhausted,
  };
}

/** `redis://user:password@host` with the password masked, wherever a URL may have one: up to the last @, or in the query. */
function maskPassword(store: string): string {
  return store.replace(/^(\w+:\/\/[^@:/]*:)[^/?#]*(?=@)/, `$1${MASK}`).replace(/([?&]\w*password=)[^&#]*/gi, `$1${MASK}`);
}

function maskUnknown(pairs: Readonly<Record<string, string>>): Record<string, string> {
  return Object.fromEntries(Object.entries(pairs).map(([name, value]) => [name, PLAIN.has(name.toLowerCase()) ? value : MASK]));
}

function offIfInfinite(count: number): number | 'off' {
  return count === Infinity ? 'off' : count;
}

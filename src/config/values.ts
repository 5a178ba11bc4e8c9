// From checked settings to what the gateway runs with: words become numbers or undefined, names of files their texts.
import type { Client, Config, Limits, Model, Price, Upstream } from '../config.ts';
import type { Files, NamedFile } from './files.ts';
import type { Settings } from './schema.ts';

/** @param names of the upstreams, in the order of the file */
export function toConfig(settings: Settings, names: readonly string[], files: Files): Config {
  const { server, ops, log, sse, anonymous, traces } = settings;
  return {
    server: {
      listen: server.listen,
      allowAnonymous: server.allowAnonymous,
      tls: server.tls === null ? undefined : toPair(server.tls.cert, server.tls.key, files),
      cors: server.cors ?? undefined,
      trustProxy: server.trustProxy ?? [],
      hostnames: server.hostnames,
      maxRequestBodyBytes: server.maxRequestBody,
      maxHeldBodiesBytes: server.maxHeldBodies,
      maxConnections: server.maxConnections,
      workers: server.workers,
      clientStallMs: server.clientStall,
      drainMs: server.drain,
    },
    ops: { listen: ops.listen, token: ops.token ?? undefined },
    log: { level: log.level, format: log.format },
    sse: { heartbeatMs: sse.heartbeat, earlyHeadersMs: sse.earlyHeaders },
    traces: traces.endpoint === null ? undefined : { ...traces, endpoint: traces.endpoint },
    upstreams: names.flatMap((name) => toUpstream(name, settings.upstreams[name], files)),
    models: settings.models.map(toModel),
    clients: settings.clients.map(toClient),
    anonymous: { limits: toLimits(anonymous.limits) },
    limits: settings.limits,
  };
}

function toUpstream(name: string, settings: Settings['upstreams'][string] | undefined, files: Files): Upstream[] {
  if (!settings) return [];
  const { baseUrl, apiKey, apiKeys, apiKeyFile, auth, headers, query, usage, endpoints, maxConnections } = settings;
  const { connect: connectMs, firstByte: firstByteMs, idle: idleMs, total: totalMs } = settings.timeouts;
  const { onClientGone: gone, eject } = settings;
  const keyFile = apiKeyFile === undefined ? undefined : files.get(apiKeyFile);
  return [
    {
      ...{ name, baseUrl, auth, headers, query, usage, endpoints, maxConnections },
      apiKeys: keyFile !== undefined ? [keyFile.text.trim()] : (apiKeys ?? (apiKey === undefined ? [] : [apiKey])),
      apiKeyFile: keyFile?.path,
      onClientGone: gone === 'abort' ? undefined : { drainMs: gone.drain, maxTokens: gone.tokens },
      ca: settings.caFile === null ? undefined : files.get(settings.caFile),
      certificate: toPair(settings.certFile, settings.keyFile, files),
      proxy: settings.proxy ?? undefined,
      http2: settings.http2 === 'on',
      eject: eject === null ? undefined : { failures: eject.failures, share: eject.share, forMs: eject.for },
      timeouts: { connectMs, firstByteMs, idleMs, totalMs },
    },
  ];
}

function toPair(certName: string | null, keyName: string | null, files: Files): { cert: NamedFile; key: NamedFile } | undefined {
  const cert = certName === null ? undefined : files.get(certName);
  const key = keyName === null ? undefined : files.get(keyName);
  return cert === undefined || key === undefined ? undefined : { cert, key };
}

function toModel({ match, upstreams, rewrite, balance, replay, hedge, price }: Settings['models'][number]): Model {
  const named = upstreams.map((target) => (typeof target === 'string' ? { name: target } : target));
  const isWeighted = named.some(({ weight }) => weight !== undefined);
  const targets = named.map(({ name, weight = 1, rewrite: own = rewrite }) => {
    return { upstream: name, weight: isWeighted ? weight : undefined, rewrite: own };
  });
  return { match, targets, balance, replayBytes: replay, hedgeMs: hedge, price: price && toPrice(price) };
}

function toPrice(price: NonNullable<Settings['models'][number]['price']>): Price {
  const { input = 0, output = 0, cachedInput, cacheWrite, audioInput, audioOutput } = price;
  return { input, output, cachedInput, cacheWrite, audioInput, audioOutput };
}

function toClient({ name, keySha256, models, endpoints, limits }: Settings['clients'][number]): Client {
  return { name, keySha256: [keySha256].flat(), models, endpoints, limits: toLimits(limits) };
}

function toLimits({ requestsPerMinute, tokensPerMinute, concurrentStreams, budget, onExhausted }: Settings['anonymous']['limits']): Limits {
  return {
    requestsPerMinute: requestsPerMinute ?? undefined,
    tokensPerMinute: tokensPerMinute ?? undefined,
    concurrentStreams: concurrentStreams ?? undefined,
    budget: budget ?? undefined,
    onExhausted,
  };
}

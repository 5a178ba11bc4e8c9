// The composition root: the parts of the gateway, put together in the order of a request's life.
import { METHODS } from 'node:http';
import type { AddressInfo } from 'node:net';
import fastifyCors from '@fastify/cors';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { Config, Upstream } from './config.ts';
import { GatewayError } from './errors.ts';
import { createLedger, type Exchange } from './exchange.ts';
import { admit, type Gates, recordArrival } from './http/admit.ts';
import { createAuthenticator } from './http/auth.ts';
import { forward, type Passage, type Station } from './http/forward.ts';
import { createGuard } from './http/guard.ts';
import { serveHealth } from './http/health.ts';
import { createLimiter } from './http/limits.ts';
import { asGatewayError, createListener } from './http/listener.ts';
import { serveOps } from './http/ops.ts';
import { refuse } from './http/refuse.ts';
import { createClock } from './stream/clock.ts';
import { createTokenizer } from './stream/tokens.ts';
import { type Logger, logExchange } from './telemetry/log.ts';
import { createMetrics } from './telemetry/metrics.ts';
import { createUpstreamClient, type UpstreamClient } from './upstream/client.ts';

export interface Gateway {
  /** Where clients call, e.g. `http://127.0.0.1:8080`. */
  readonly url: string;
  readonly opsUrl: string;
  /** Takes no more requests, lets live ones end for at most `server.drain`, and closes everything. */
  close(): Promise<void>;
}

export interface GatewayParts {
  readonly config: Config;
  readonly log: Logger;
  readonly version: string;
  /** Milliseconds between two looks at the deadlines of live requests. */
  readonly beatMs?: number;
}

/** A client has a second to read the last event of a cut stream; half of another is for the way. */
const CUT_GRACE_MS = 1500;

declare module 'fastify' {
  interface FastifyRequest {
    exchange: Exchange | undefined;
  }
}

/**
 * Starts a gateway: both listeners accept when it resolves.
 * @throws the error of `listen` (EADDRINUSE, EACCES, …) with nothing left open
 */
export async function startGateway({ config, log, version, beatMs }: GatewayParts): Promise<Gateway> {
  const clock = createClock(beatMs);
  const tokenizer = createTokenizer();
  const clients = new Map<Upstream, UpstreamClient>(config.upstreams.map((upstream) => [upstream, createUpstreamClient(upstream)]));
  const passages = new Set<Passage>();
  let isDraining = false;

  const metrics = createMetrics({
    version,
    live: () => ledger.live,
    connections: () => Array.from(clients, ([{ name }, client]) => [name, client.counts()] as const),
  });
  const ledger = createLedger(clock.now, (exchange) => {
    metrics.record(exchange);
    logExchange(log, exchange);
  });
  const onFault = (error: Error) => log.error({ fault: error.name, at: error.stack?.split('\n')[1]?.trim() }, 'a request failed inside');
  const readiness = () => ({ isReady: !isDraining, reason: isDraining ? 'draining' : 'ready' });
  const listenerOptions = { maxConnections: config.server.maxConnections, onUnparsed: metrics.rejectedUnparsed, onFault };

  const app = createListener({ ...listenerOptions, trustProxy: config.server.trustProxy });
  const ops = isSameListener(config) ? app : createListener({ ...listenerOptions, trustProxy: [] });
  serveHealth(app, readiness);
  if (ops !== app) serveHealth(ops, readiness);
  serveOps(ops, config, metrics);
  answerErrors(app);
  if (ops !== app) answerErrors(ops);
  await serveClients();

  /** A refusal ends its exchange; whatever failed, the answer has the form of section 5. */
  function answerErrors(on: FastifyInstance): void {
    on.setErrorHandler((failure, request, reply) => {
      const error = asGatewayError(failure, onFault);
      const { exchange } = request;
      reply.hijack();
      if (exchange !== undefined) {
        exchange.status = error.row.status;
        exchange.rejection = error.code;
        ledger.end(exchange, 'rejected');
      }
      refuse(reply.raw, error, [...(exchange ? ['x-request-id', exchange.requestId] : []), ...pluginHeaders(reply)]);
    });
    on.setNotFoundHandler(async () => {
      throw new GatewayError('not_found');
    });
  }

  async function serveClients(): Promise<void> {
    const { cors, hostnames, listen } = config.server;
    const gates: Gates = {
      config,
      isDraining: () => isDraining,
      authenticate: createAuthenticator(config),
      guard: createGuard({ listen, hostnames, origins: cors?.origins ?? [] }),
      limit: await createLimiter(app, config),
    };
    const station: Station = { config, clock, ledger, metrics, tokenizer, clientOf: (upstream) => clients.get(upstream)! };
    app.decorateRequest('exchange', undefined);
    app.addHook('onRequest', async (request) => {
      if (request.routeOptions.url !== '/*') return;
      request.exchange = recordArrival(request, clock.now());
      ledger.open(request.exchange);
    });
    if (cors !== undefined) await app.register(fastifyCors, corsOptions(cors.origins));
    // With cors on, OPTIONS is the plugin's.
    const methods = cors === undefined ? METHODS : METHODS.filter((method) => method !== 'OPTIONS');
    app.route({ method: methods, url: '/*', handler: (request, reply) => handle(request, reply, gates, station) });
  }

  async function handle(request: FastifyRequest, reply: FastifyReply, gates: Gates, station: Station): Promise<void> {
    const exchange = request.exchange!;
    const admitted = await admit(request, exchange, gates);
    reply.hijack();
    const ownHeaders = [...admitted.headers, ...pluginHeaders(reply)];
    const journey = { exchange, admitted, request: request.raw, response: reply.raw, upstream: config.upstreams[0]!, ownHeaders };
    const passage = forward(journey, station, () => passages.delete(passage));
    if (ledger.live.has(exchange)) passages.add(passage);
  }

  async function drain(): Promise<void> {
    isDraining = true;
    const closed = app.close();
    const { drainMs } = config.server;
    const cutTheRest = () => {
      for (const passage of passages) passage.drain();
    };
    // A timer of Infinity fires at once.
    const deadline = Number.isFinite(drainMs) ? setTimeout(cutTheRest, drainMs) : undefined;
    // Whoever does not even read the end of a stream that was cut is not waited for.
    const lastResort = Number.isFinite(drainMs) ? setTimeout(() => app.server.closeAllConnections(), drainMs + CUT_GRACE_MS) : undefined;
    await closed;
    clearTimeout(deadline);
    clearTimeout(lastResort);
  }

  async function close(): Promise<void> {
    await drain();
    await ledger.settled();
    if (ops !== app) await ops.close();
    await Promise.all(Array.from(clients.values(), (client) => client.close()));
    await tokenizer.close();
    clock.close();
  }

  try {
    await app.listen({ ...config.server.listen });
    if (ops !== app) await ops.listen({ ...config.ops.listen });
  } catch (error) {
    await close();
    throw error;
  }
  return { url: urlOf(app), opsUrl: urlOf(ops), close };
}

function isSameListener({ server, ops }: Config): boolean {
  return server.listen.host === ops.listen.host && server.listen.port === ops.listen.port && ops.listen.port !== 0;
}

/** Headers that plugins have set; Node lists names and values flat. */
function pluginHeaders(reply: FastifyReply): string[] {
  return Object.entries(reply.getHeaders()).flatMap(([name, value]) => [name, String(value)]);
}

function corsOptions(origins: readonly string[]): object {
  return {
    origin: [...origins],
    methods: ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE'],
    exposedHeaders: [
      'x-request-id',
      'x-sluicegate-upstream',
      'retry-after',
      'x-ratelimit-limit-requests',
      'x-ratelimit-remaining-requests',
      'x-ratelimit-reset-requests',
    ],
    maxAge: 600,
    // The plugin gives its 204 a Content-Length, which RFC 9110 8.6 forbids.
    optionsSuccessStatus: 200,
  };
}

function urlOf(app: FastifyInstance): string {
  const { address, port, family } = app.server.address() as AddressInfo;
  return `http://${family === 'IPv6' ? `[${address}]` : address}:${port}`;
}

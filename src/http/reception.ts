// Where requests are received: each gets its record, is judged, and is begun on its way; what is refused ends here.
import { METHODS } from 'node:http';
import fastifyCors from '@fastify/cors';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { Config } from '../config.ts';
import { PROBE_PATH } from '../doctor/probe.ts';
import { GatewayError } from '../errors.ts';
import type { Exchange, Ledger } from '../exchange.ts';
import type { Tracer } from '../telemetry/traces.ts';
import { admit, recordArrival } from './admit.ts';
import { forward } from './forward.ts';
import type { Generation } from './generation.ts';
import type { Limiter } from './limits.ts';
import { asGatewayError, isUpgraded } from './listener.ts';
import { createProbes } from './probe.ts';
import { refuse } from './refuse.ts';
import { tunnel } from './tunnel.ts';

export interface ReceptionParts {
  /** The generation that the next request begins with. */
  current(): Generation;
  readonly ledger: Ledger;
  readonly limiter: Limiter;
  readonly tracer: Pick<Tracer, 'begin'>;
  /** Monotonic milliseconds. */
  now(): number;
}

/** Receives one request. @throws GatewayError where it is refused, which `answerErrors` answers */
export type Receive = (request: FastifyRequest, reply: FastifyReply) => Promise<void>;

declare module 'fastify' {
  interface FastifyRequest {
    exchange: Exchange | undefined;
  }
}

export function createReception({ current, ledger, limiter, tracer, now }: ReceptionParts): Receive {
  const probe = createProbes();

  return async (request, reply) => {
    const { gates, station } = current();
    const exchange = recordArrival(request, now());
    tracer.begin(exchange, request.headers);
    request.exchange = exchange;
    ledger.open(exchange);
    // A second request before the first has its answer would be sent up at once, and its client's going not be noticed.
    if (reply.raw.socket === null) {
      reply.raw.shouldKeepAlive = false;
      throw new GatewayError('invalid_request', 'Pipelined requests are not served: wait for the answer, or open another connection.');
    }
    const { requestTarget, client } = admit(request, exchange, gates);
    reply.hijack();
    const journey = {
      exchange,
      requestTarget,
      client,
      endpoint: exchange.endpoint,
      request: request.raw,
      response: reply.raw,
      ownHeaders: corsHeaders(reply, station.config),
    };
    const begin = requestTarget.path === PROBE_PATH ? probe : isUpgraded(request.raw) ? tunnel : forward;
    begin(journey, station, limiter.admit(request, exchange, client));
  };
}

/** A refusal ends its exchange; whatever failed, the answer has OpenAI's form. */
export function answerErrors(app: FastifyInstance, ledger: Ledger, config: () => Config, onFault: (fault: unknown) => void): void {
  app.decorateRequest('exchange', undefined);
  app.setErrorHandler((failure, request, reply) => {
    const error = asGatewayError(failure, onFault);
    const { exchange } = request;
    reply.hijack();
    if (exchange !== undefined) {
      exchange.status = error.row.status;
      exchange.rejection = error.code;
      ledger.end(exchange, 'rejected');
    }
    refuse(reply.raw, error, [...(exchange ? ['x-request-id', exchange.requestId] : []), ...corsHeaders(reply, config())]);
  });
  app.setNotFoundHandler(async () => {
    throw new GatewayError('not_found');
  });
}

/** Every method and path that nothing else is at. */
export async function serveClients(app: FastifyInstance, receive: Receive, config: () => Config): Promise<void> {
  await app.register(fastifyCors, {
    ...CORS,
    origin: (_: string | undefined, done: (error: null, origins: string[] | false) => void) =>
      done(null, config().server.cors?.origins ?? false),
  });
  app.route({ method: METHODS.filter((method) => method !== 'OPTIONS'), url: '/*', handler: receive });
  // The plugin has a route of its own for every other OPTIONS.
  for (const url of ['/v1', '/v1/*', '/openai/*']) app.route({ method: 'OPTIONS', url, handler: receive });
}

const CORS = {
  methods: ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE'],
  exposedHeaders: [
    ...['x-request-id', 'x-sluicegate-upstream', 'retry-after', 'retry-after-ms', 'x-should-retry'],
    ...['requests', 'tokens'].flatMap((name) => ['limit', 'remaining', 'reset'].map((part) => `x-ratelimit-${part}-${name}`)),
  ],
  maxAge: 600,
  strictPreflight: false,
  // The plugin gives its 204 a Content-Length, which RFC 9110 8.6 forbids.
  optionsSuccessStatus: 200,
};

/** What the plugin has set, flat as Node lists headers. It says `Vary: Origin` even where nothing depends on the origin. */
function corsHeaders(reply: FastifyReply, { server }: Config): string[] {
  if (server.cors === undefined) return [];
  const set = reply.getHeaders();
  const list: string[] = [];
  for (const name in set) list.push(name, String(set[name]));
  return list;
}

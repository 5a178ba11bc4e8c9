// A request's way in: its id and record, its target, its client.
import { randomUUID } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { isIP, isIPv4 } from 'node:net';
import type { FastifyRequest } from 'fastify';
import type { Client, Config } from '../config.ts';
import { GatewayError } from '../errors.ts';
import { createExchange, type Exchange } from '../exchange.ts';
import { routeEndpoint } from '../upstream/endpoints.ts';
import { judgeTarget, type RequestTarget } from '../upstream/target.ts';
import { isUpgraded } from './listener.ts';

/** A request that may go upstream, as far as its head tells. */
export interface Admitted {
  readonly requestTarget: RequestTarget;
  readonly client: Client | undefined;
}

export interface Gates {
  readonly config: Config;
  isDraining(): boolean;
  authenticate(rawHeaders: readonly string[]): Client | undefined;
  guard(request: IncomingMessage): void;
}

const OWN_REQUEST_ID = /^[!-~]{1,128}$/;
/** W3C Trace Context 3.2: version-traceid-parentid-flags. */
const TRACEPARENT = /^[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}/;

/** The record of a request that the parser has just handed over. */
export function recordArrival(request: FastifyRequest, nowMs: number): Exchange {
  const { headers } = request;
  const given = headers['x-request-id'];
  const { traceparent } = headers;
  return createExchange({
    requestId: typeof given === 'string' && OWN_REQUEST_ID.test(given) ? given : randomUUID(),
    startedAtMs: nowMs,
    method: request.method,
    remoteAddress: addressOf(request),
    traceId: typeof traceparent === 'string' ? TRACEPARENT.exec(traceparent)?.[1] : undefined,
  });
}

/** Where a request comes from. What a trusted proxy wrote may have a port, which is not part of an address, or be no address at all. */
function addressOf({ ip: given, raw }: FastifyRequest): string {
  // Against its type, Fastify has none where the client had gone before its connection was taken.
  const ip = given ?? '';
  if (isIPv4(ip)) return ip;
  const address = /^\[(.*)\](?::\d+)?$/.exec(ip)?.[1] ?? (isIPv4(ip.replace(/:\d+$/, '')) ? ip.replace(/:\d+$/, '') : ip);
  const known = isIP(address) ? address : (raw.socket.remoteAddress ?? '');
  // An IPv4 client on a listener for both (RFC 4291 2.5.5.2).
  return known.replace(/^::ffff:(?=\d+\.)/i, '');
}

/**
 * Judges a request, before a byte of its body is read.
 * @throws GatewayError where it is refused
 */
export function admit(request: FastifyRequest, exchange: Exchange, gates: Gates): Admitted {
  const { raw } = request;
  const verdict = judgeTarget(raw.url ?? '');
  if (!verdict.ok) throw new GatewayError(verdict.code, hintFor(raw.url));
  const { path } = verdict.target;
  const { endpoint, operation } = routeEndpoint(request.method, path);
  exchange.endpoint = endpoint;
  exchange.operation = operation;
  // RFC 9112 3.2: exactly one, but for HTTP/1.0.
  if (raw.headers.host === undefined && raw.httpVersion === '1.1') throw new GatewayError('invalid_request', 'The Host header is missing.');
  if (request.method === 'TRACE') throw new GatewayError('method_not_allowed');

  const client = gates.authenticate(raw.rawHeaders);
  if (client === undefined) gates.guard(raw);
  else exchange.client = client.name;
  if (gates.isDraining()) throw new GatewayError('overloaded', 'The gateway is shutting down.');
  if (/\bwebsocket\b/i.test(raw.headers.upgrade ?? '') && !isUpgraded(raw)) {
    throw new GatewayError('invalid_request', 'This is no opening handshake of a WebSocket (RFC 6455 4.2.1).');
  }
  if (Number(raw.headers['content-length'] ?? 0) > gates.config.server.maxRequestBodyBytes) throw new GatewayError('request_too_large');
  return { requestTarget: verdict.target, client };
}

/** What people look for in the wrong place. */
function hintFor(url: string | undefined): string | undefined {
  return url?.startsWith('/metrics')
    ? 'Metrics are on the ops listener (ops.listen, by default http://127.0.0.1:9464/metrics).'
    : undefined;
}

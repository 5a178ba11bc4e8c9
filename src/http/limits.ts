// How much a client may: requests a minute, on @fastify/rate-limit, told in the headers that OpenAI's SDKs read.
import { isIPv6 } from 'node:net';
import fastifyRateLimit from '@fastify/rate-limit';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import type { Client, Config, Limits } from '../config.ts';
import { GatewayError } from '../errors.ts';
import type { HeaderList } from '../upstream/headers.ts';

/** Counts one request against its caller's limits; resolves to the headers that tell what is left. */
export type Admit = () => Promise<HeaderList>;
/** The same for any request. */
export type Limiter = (request: FastifyRequest, client: Client | undefined) => Promise<HeaderList>;

/** Callers counted at a time. The plugin forgets the oldest beyond it, so it is well above what one process serves in a minute. */
const MAX_CALLERS = 100_000;

/**
 * @returns a limiter that throws GatewayError `rate_limit_exceeded` (429) with `retry-after` and the headers of what is left
 */
export async function createLimiter(app: FastifyInstance, config: () => Config): Promise<Limiter> {
  const callers = new WeakMap<FastifyRequest, Client | undefined>();
  const limitsOf = (client: Client | undefined): Limits => (client ?? config().anonymous).limits;

  await app.register(fastifyRateLimit, { global: false, cache: MAX_CALLERS });
  const count = app.createRateLimit({
    timeWindow: '1 minute',
    max: (request) => limitsOf(callers.get(request)).requestsPerMinute ?? 0,
    keyGenerator: (request) => callers.get(request)?.name ?? `network ${networkOf(request.exchange?.remoteAddress ?? '')}`,
  });

  return async (request, client) => {
    const limit = limitsOf(client).requestsPerMinute;
    if (limit === undefined) return [];
    callers.set(request, client);
    const counted = await count(request);
    if (counted.isAllowed) return [];
    const headers = {
      'x-ratelimit-limit-requests': String(limit),
      'x-ratelimit-remaining-requests': String(counted.remaining),
      'x-ratelimit-reset-requests': formatReset(counted.ttl),
    };
    if (!counted.isExceeded) return Object.entries(headers).flat();
    throw new GatewayError('rate_limit_exceeded', undefined, { ...headers, 'retry-after': String(counted.ttlInSeconds) });
  };
}

/** The address itself, or of IPv6 its /64, which is what one subscriber has at the least (RFC 6177). */
function networkOf(address: string): string {
  if (!isIPv6(address)) return address;
  const [left = [], right = []] = address.split('::').map((half) => half.split(':').filter((group) => group !== ''));
  const groups = [...left, ...Array<string>(8 - left.length - right.length).fill('0'), ...right];
  return groups
    .slice(0, 4)
    .map((group) => Number.parseInt(group, 16).toString(16))
    .join(':');
}

/** A time as OpenAI's rate-limit headers write it: `120ms`, `17s`, `6m0s`. */
export function formatReset(ms: number): string {
  if (ms < 1000) return `${Math.max(0, Math.round(ms))}ms`;
  const seconds = Math.ceil(ms / 1000);
  return seconds < 60 ? `${seconds}s` : `${Math.floor(seconds / 60)}m${seconds % 60}s`;
}

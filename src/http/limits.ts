// How much a caller may, in requests, tokens, streams and money: on @fastify/rate-limit, told in the headers that OpenAI's SDKs read.
import { randomUUID } from 'node:crypto';
import { isIPv6 } from 'node:net';
import fastifyRateLimit from '@fastify/rate-limit';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import type { Client, Config, Limits } from '../config.ts';
import { GatewayError } from '../errors.ts';
import type { Exchange, Lease } from '../exchange.ts';
import {
  type Admission,
  type Amount,
  type CallerLimits,
  type LimitStore,
  type Standings,
  StoreFailure,
  type Verdict,
} from '../limits/store.ts';
import { UNFORETOLD_MS } from '../limits/windows.ts';
import type { HeaderList } from '../upstream/headers.ts';
import { createBrake } from './brake.ts';
import type { Leases } from './leases.ts';

/** A request that passed its caller's limits. */
export interface Granted {
  /** For whatever is answered: what is left. */
  readonly headers: HeaderList;
  /** To be ended and settled; undefined where nothing is to be given back. */
  readonly lease: Lease | undefined;
}

/**
 * Counts one request against its caller's limits, all at once or not at all.
 * @param reserve what it may use until it is known what it does use
 * @param cut ends it where the caller's budget is spent
 * @throws GatewayError `rate_limit_exceeded`, `insufficient_quota`, or `overloaded` where the store is away and none may pass uncounted
 */
export type Admit = (reserve: Amount, cut: () => void) => Promise<Granted>;

export interface Limiter {
  /** Whether the caller's limits depend on what a call says of itself. */
  readsCall(client: Client | undefined): boolean;
  admit(request: FastifyRequest, exchange: Exchange, client: Client | undefined): Admit;
  /** What the named clients have left. */
  standings(): Promise<ReadonlyMap<string, Standings>>;
}

export interface LimiterParts {
  config(): Config;
  store(): LimitStore;
  readonly leases: Leases;
  /** Monotonic milliseconds. */
  now(): number;
}

/** A request at the door, with what the store said of it. */
interface Visit {
  readonly store: LimitStore;
  readonly admission: Admission;
  verdict: Verdict | undefined;
}

const NOT_LIMITED: Granted = { headers: [], lease: undefined };

/**
 * The plugin asks its store once for each request; the store that it is given asks ours, which counts everything else in the same step.
 */
export async function createLimiter(app: FastifyInstance, { config, store, leases, now }: LimiterParts): Promise<Limiter> {
  const brake = createBrake(now);
  const visits = new Map<string, Visit>();
  const visitOf = new WeakMap<FastifyRequest, Visit>();
  const settingsOf = (client: Client | undefined): Limits => (client ?? config().anonymous).limits;
  const limitsOf = createCallerLimits();

  class VisitStore {
    child(): VisitStore {
      return this;
    }

    incr(key: string, done: (error: Error | null, counted?: { current: number; ttl: number }) => void): void {
      const visit = visits.get(key)!;
      visit.store.admit(visit.admission).then((verdict) => {
        visit.verdict = verdict;
        const { limit = 0, remaining = 0 } = verdict.standings.requests ?? {};
        const current = verdict.refusedBy === 'requests' ? limit + 1 : limit - remaining;
        done(null, { current, ttl: verdict.retryAfterMs });
      }, done);
    }
  }

  await app.register(fastifyRateLimit, { global: false, store: VisitStore });
  const count = app.createRateLimit({
    timeWindow: '1 minute',
    max: (request) => visitOf.get(request)?.admission.limits.requestsPerMinute ?? Number.MAX_SAFE_INTEGER,
    keyGenerator: (request) => visitOf.get(request)?.admission.lease ?? '',
  });

  async function ask(request: FastifyRequest, visit: Visit): Promise<Verdict> {
    const { lease } = visit.admission;
    visits.set(lease, visit);
    visitOf.set(request, visit);
    try {
      await count(request);
      return visit.verdict!;
    } catch (failure) {
      if (failure instanceof StoreFailure) throw new GatewayError('overloaded', 'Limits cannot be counted for now. Try again shortly.');
      throw failure;
    } finally {
      visits.delete(lease);
    }
  }

  return {
    readsCall: (client) => settingsOf(client).tokensPerMinute !== undefined || settingsOf(client).budget !== undefined,

    admit: (request, exchange, client) => async (reserve, cut) => {
      const settings = settingsOf(client);
      const limits = limitsOf(settings);
      if (limits === undefined) return NOT_LIMITED;
      const caller = client === undefined ? `network ${networkOf(exchange.remoteAddress)}` : `client ${client.name}`;
      const visit: Visit = { store: store(), admission: { caller, limits, lease: randomUUID(), reserve }, verdict: undefined };
      const verdict = await ask(request, visit);
      const headers = standingHeaders(verdict.standings);
      if (verdict.refusedBy !== undefined) {
        await brake(caller);
        throw refusalOf(verdict, headers);
      }
      const grant = { store: visit.store, caller, limits, lease: visit.admission.lease, exchange };
      return { headers: headers.flat(), lease: leases.open({ ...grant, cut: settings.onExhausted === 'cut' ? cut : undefined }) };
    },

    async standings() {
      const limited = config().clients.flatMap(({ name, limits }) => {
        const own = limitsOf(limits);
        return own === undefined ? [] : [[`client ${name}`, own] as const];
      });
      const standings = limited.length === 0 ? new Map<string, Standings>() : await store().standings(new Map(limited));
      return new Map([...standings].map(([caller, standing]) => [caller.slice('client '.length), standing]));
    },
  };
}

/** The store's form of a configuration's limits, made once; undefined where there are none. */
function createCallerLimits(): (limits: Limits) => CallerLimits | undefined {
  const known = new WeakMap<Limits, CallerLimits | 'none'>();
  const make = ({ requestsPerMinute, tokensPerMinute, concurrentStreams, budget }: Limits): CallerLimits | 'none' => {
    const bounds = [requestsPerMinute, tokensPerMinute, concurrentStreams, budget];
    if (bounds.every((bound) => bound === undefined)) return 'none';
    const money = budget && { nanoUsd: Math.round(budget.usd * 1e9), per: budget.per };
    return { requestsPerMinute, tokensPerMinute, concurrentStreams, budget: money };
  };
  return (limits) => {
    const made = known.get(limits) ?? make(limits);
    known.set(limits, made);
    return made === 'none' ? undefined : made;
  };
}

type HeaderPair = [name: string, value: string];

/** OpenAI's headers (API reference, "Rate limits in headers"). */
function standingHeaders(standings: Standings): HeaderPair[] {
  return (['requests', 'tokens'] as const).flatMap((name) => {
    const standing = standings[name];
    if (standing === undefined) return [];
    return [
      [`x-ratelimit-limit-${name}`, String(standing.limit)],
      [`x-ratelimit-remaining-${name}`, String(Math.floor(standing.remaining))],
      [`x-ratelimit-reset-${name}`, formatReset(standing.resetMs)],
    ];
  });
}

const REFUSALS = {
  requests: 'requests per minute',
  tokens: 'tokens per minute',
  streams: 'concurrent streams',
} as const;

function refusalOf({ refusedBy, retryAfterMs, standings }: Verdict, headers: readonly HeaderPair[]): GatewayError {
  const own = Object.fromEntries(headers);
  // In milliseconds too, as OpenAI has it: its SDKs then wait no longer than they must.
  const retry = { 'retry-after': String(Math.ceil(retryAfterMs / 1000)), 'retry-after-ms': String(Math.ceil(retryAfterMs)) };
  if (refusedBy === 'budget' || refusedBy === undefined) {
    // Calls under way may give back what they have reserved, or the next period begins: SDKs shall try again.
    const isNear = retryAfterMs <= UNFORETOLD_MS;
    const message = isNear
      ? 'What is left of the budget of this key is reserved by calls that are under way. Try again shortly.'
      : undefined;
    return new GatewayError('insufficient_quota', message, { ...own, ...retry, ...(isNear && { 'x-should-retry': 'true' }) });
  }
  const message = `Rate limit reached on ${REFUSALS[refusedBy]}: limit ${standings[refusedBy]?.limit}. Try again in ${formatReset(retryAfterMs)}.`;
  return new GatewayError('rate_limit_exceeded', message, { ...own, ...retry }, refusedBy);
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

/** A time as OpenAI's rate-limit headers write it: `120ms`, `17s`, `6m0s`, `2h0m0s`. */
export function formatReset(ms: number): string {
  if (ms < 1000) return `${Math.max(0, Math.round(ms))}ms`;
  // A sum of times may be some billionth more than it is.
  const seconds = Math.ceil(ms / 1000 - 1e-6);
  const minutes = Math.floor(seconds / 60);
  if (minutes === 0) return `${seconds}s`;
  const hours = Math.floor(minutes / 60);
  return hours === 0 ? `${minutes}m${seconds % 60}s` : `${hours}h${minutes % 60}m${seconds % 60}s`;
}

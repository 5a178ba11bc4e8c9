// The composition root: the parts of the gateway, put together in the order of a request's life.
import { METHODS } from 'node:http';
import { type AddressInfo, BlockList, isIPv6 } from 'node:net';
import { setTimeout as delayFor } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import fastifyCors from '@fastify/cors';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { Config, Upstream } from './config.ts';
import { PROBE_PATH } from './doctor/probe.ts';
import { GatewayError } from './errors.ts';
import { createLedger, type Exchange } from './exchange.ts';
import { admit, type Gates, recordArrival } from './http/admit.ts';
import { createAsker } from './http/asking.ts';
import { createAuthenticator } from './http/auth.ts';
import { forward, type Passage, type Station } from './http/forward.ts';
import { createGuard } from './http/guard.ts';
import { serveHealth } from './http/health.ts';
import { createRoom } from './http/held.ts';
import { createLeases } from './http/leases.ts';
import { createLimiter } from './http/limits.ts';
import { asGatewayError, createListener, isUpgraded } from './http/listener.ts';
import { createNotice, type Notice } from './http/notice.ts';
import { serveOps } from './http/ops.ts';
import { createPlanner } from './http/plan.ts';
import { createProbes } from './http/probe.ts';
import { refuse } from './http/refuse.ts';
import { type Credentials, changeCertificate } from './http/secure.ts';
import { tunnel } from './http/tunnel.ts';
import { openLimitStore } from './limits/open.ts';
import type { LimitStore } from './limits/store.ts';
import { createClock } from './stream/clock.ts';
import { createTokenizer, type Tokenizer } from './stream/tokens.ts';
import { createBoard, type View } from './telemetry/board.ts';
import { faultFacts, type Logger, logExchange } from './telemetry/log.ts';
import { createMetrics } from './telemetry/metrics.ts';
import type { Extent, Page, Snapshot } from './telemetry/registry.ts';
import { openTraces, type Tracer } from './telemetry/traces.ts';
import { createBalance } from './upstream/balance.ts';
import type { ConnectionCounts } from './upstream/client.ts';
import { createOutlet, type Outlet } from './upstream/outlet.ts';

/** What serves: one process, or several that are one to everybody outside. */
export interface Served {
  /** Where clients call, e.g. `http://127.0.0.1:8080`. */
  readonly url: string;
  readonly opsUrl: string;
  /** Serves new requests by another configuration, at once; live ones keep theirs. `listen` and `workers` wait for a restart. */
  reload(config: Config): Promise<void>;
  /** Tells the metrics that a configuration was not taken. */
  reloadFailed(): void;
  /** Drains, and closes everything. */
  close(drainMs?: number): Promise<void>;
}

/** A gateway in this process. */
export interface Gateway extends Served {
  /**
   * Says on `/readyz` that it is leaving, and where a load balancer asks for that, serves on until it has heard. Then takes no
   * more requests and lets live ones end for at most `drainMs`, by default `server.drain`. The ops listener stays.
   */
  drain(drainMs?: number): Promise<void>;
  /** What this process has counted, for whoever adds several up. */
  read(extent: Extent): Promise<Snapshot>;
  /** What is under way in this process, and how the last requests ended. */
  look(): View;
  /** Ends the request that was shown under this id; whether it is one of this process. */
  endStream(id: string): boolean;
}

/** What the processes of one gateway have in common. */
export interface Common {
  /** Of the end of all; `/readyz` is asked now of this process, now of another. */
  readonly notice: Notice;
  /** The one count in memory of what callers use. */
  countInMemory(): LimitStore;
  /** The metrics of all. */
  scrape(accept: string): Promise<Page>;
  /** What is under way in all. */
  look(): Promise<View>;
  endStream(id: string): Promise<boolean>;
}

export interface GatewayParts {
  readonly config: Config;
  readonly log: Logger;
  readonly version: string;
  /** Milliseconds between two looks at the deadlines of live requests. */
  readonly beatMs?: number;
  /** Milliseconds between two renewals of what live requests hold of their limits. */
  readonly renewMs?: number;
  /** Counts tokens; one of its own if absent. One that is given may serve several gateways, and is not closed with this one. */
  readonly tokenizer?: Tokenizer;
  /** Where this process is one of several. */
  readonly common?: Common;
}

/** Beyond so much of all prompts together, the next ones' tokens are not counted. */
const MAX_PROMPTS_BYTES = 128 * 1024 * 1024;
/** Between two looks whether the leases of a store that is no longer used are all settled. */
const STORE_REST_MS = 1_000;
/** Between two looks, in a drain, whether the answers that nobody hears have all been read. */
const PASSAGE_REST_MS = 20;
/** A client has a second to read the last event of a cut stream; the rest is for the way. */
const CUT_GRACE_MS = 1200;

declare module 'fastify' {
  interface FastifyRequest {
    exchange: Exchange | undefined;
  }
}

/** What a reload swaps, whole: a request keeps the generation that it began with. */
interface Generation {
  readonly config: Config;
  readonly gates: Gates;
  readonly station: Station;
  readonly outlets: ReadonlyMap<Upstream, Outlet>;
  readonly trusted: BlockList;
}

/**
 * Starts a gateway: both listeners accept when it resolves.
 * @throws the error of `listen` (EADDRINUSE, EACCES, …) with nothing left open
 */
export async function startGateway(parts: GatewayParts): Promise<Gateway> {
  const { config: initial, log, version, beatMs, renewMs, tokenizer: given, common } = parts;
  const clock = createClock(beatMs, (fault) => onFault(fault));
  const tokenizer = given ?? createTokenizer();
  const passages = new Set<Passage>();
  const retired = new Set<Outlet>();
  const notice = common?.notice ?? createNotice(clock.now);
  let state: 'ready' | 'leaving' | 'draining' = 'ready';

  const metrics = createMetrics({
    ...{ version, connections, health },
    live: () => ledger.live,
    standings: () => limiter.standings(),
    isLimitStoreUp: () => store.isUp,
  });
  const board = createBoard(underWay, clock.now);
  const startedAt = Date.now();
  const ledger = createLedger(clock.now, (exchange) => clock.spread(() => tell(exchange)));
  const onFault = (error: unknown) => log.error(faultFacts(error), 'a request failed inside');
  const readiness = () => ({ isReady: state === 'ready', reason: state });

  const isLeaving = () => state !== 'ready';
  const isTrusted = (address: string) => current.trusted.check(address, isIPv6(address) ? 'ipv6' : 'ipv4');
  const listening = { isLeaving, onUnparsed: metrics.rejectedUnparsed, onFault, spread: clock.spread, takeIn: clock.takeIn };
  const app = createListener({ ...listening, isTrusted, credentials: credentialsOf(initial) });
  const ops = isSameListener(initial) ? app : createListener({ ...listening, isTrusted: () => false });
  const probe = createProbes();
  const asker = createAsker();
  const room = createRoom(() => current.config.server.maxHeldBodiesBytes);
  const promptRoom = createRoom(() => MAX_PROMPTS_BYTES);
  const leases = createLeases(onFault, renewMs);
  let store = await openLimitStore(initial.limits, tellStore, common?.countInMemory);
  let storeChange: Promise<void> = Promise.resolve();
  const limiter = await createLimiter(app, { config: () => current.config, store: () => store, leases, now: clock.now });
  let tracer = await openTracer(initial);
  let current = createGeneration(initial, outletsFor(initial));

  function tell(exchange: Exchange): void {
    try {
      metrics.record(exchange);
      board.record(exchange);
      logExchange(log, exchange);
      tracer?.record(exchange);
    } catch (fault) {
      onFault(fault);
    }
  }

  /** It is not to see its predecessor: what closures here close over lives as long as they do, and so would every generation. */
  function createGeneration(config: Config, outlets: Generation['outlets']): Generation {
    const { listen, hostnames, cors, trustProxy } = config.server;
    const trusted = new BlockList();
    const outletOf = (upstream: Upstream) => outlets.get(upstream)!;
    for (const network of trustProxy) addNetwork(trusted, network);
    return {
      config,
      outlets,
      trusted,
      gates: {
        config,
        isDraining: () => state === 'draining',
        authenticate: createAuthenticator(config),
        guard: createGuard({ listen, hostnames, origins: cors?.origins ?? [] }),
      },
      station: {
        ...{ config, clock, ledger, passages, metrics, tokenizer, onFault },
        ...{ asker, limiter, room, promptRoom, planner: createPlanner(config, asker), outletOf, balance: createBalance(outletOf) },
      },
    };
  }

  function tellStore(isUp: boolean, code: string | undefined): void {
    if (isUp) log.info('the limit store is back');
    else log.error({ code }, 'the limit store is away');
  }

  async function openTracer({ traces }: Config): Promise<Tracer | undefined> {
    return traces && openTraces(traces, version, { onSpans: metrics.spans, onCollector: tellCollector });
  }

  function tellCollector(isUp: boolean, code: string | undefined): void {
    if (isUp) log.info('the collector of traces is back');
    else log.error({ code }, 'the collector of traces is away: spans are dropped');
  }

  /** What is under way may send its spans to the next one. */
  async function changeTracer(config: Config): Promise<void> {
    const before = tracer;
    tracer = await openTracer(config);
    void before?.close().catch(onFault);
  }

  /**
   * Another store begins with nothing counted; leases are settled with the one that granted them. One change after the other:
   * a store that is away takes a second to open, and must not come after the one that a later reload asked for.
   */
  function changeStore(settings: Config['limits']): void {
    storeChange = storeChange.then(async () => {
      const before = store;
      store = await openLimitStore(settings, tellStore, common?.countInMemory);
      void closeStore(before).catch(onFault);
    });
    storeChange = storeChange.catch(onFault);
  }

  async function closeStore(unused: LimitStore): Promise<void> {
    while (leases.has(unused)) await delayFor(STORE_REST_MS);
    await unused.close();
  }

  /** An upstream whose settings stay keeps its connections, and what is known of its health. */
  function outletsFor(config: Config, before: Generation['outlets'] = new Map()): Generation['outlets'] {
    const kept = (upstream: Upstream) => [...before].find(([known]) => isDeepStrictEqual(known, upstream))?.[1];
    return new Map(config.upstreams.map((upstream) => [upstream, kept(upstream) ?? createOutlet(upstream, clock.now, onFault)]));
  }

  function forgetRetired(): void {
    for (const outlet of retired) if (outlet.client.counts().active === 0) retired.delete(outlet);
  }

  function* connections(): Iterable<readonly [string, ConnectionCounts]> {
    forgetRetired();
    for (const { upstream, client } of [...current.outlets.values(), ...retired]) yield [upstream.name, client.counts()];
  }

  function* health(): Iterable<readonly [string, boolean]> {
    for (const { upstream, health } of current.outlets.values()) yield [upstream.name, health.isUp];
  }

  function* underWay(): Iterable<Exchange> {
    for (const { exchange } of passages) yield exchange;
  }

  function look(): View {
    const counts = new Map<string, ConnectionCounts>();
    for (const [name, { active, idle, queued }] of connections()) {
      const before = counts.get(name) ?? { active: 0, idle: 0, queued: 0 };
      counts.set(name, { active: before.active + active, idle: before.idle + idle, queued: before.queued + queued });
    }
    return {
      ...{ version, state, startedAt, at: Date.now(), workers: 1 },
      ...{ url: urlOf(app, initial), isKeyNeeded: current.config.clients.length > 0 },
      ...board.view(),
      upstreams: Array.from(health(), ([name, isUp]) => ({ active: 0, idle: 0, queued: 0, ...counts.get(name), name, isUp })),
    };
  }

  function endStream(id: string): boolean {
    const exchange = board.find(id);
    for (const passage of passages) if (passage.exchange === exchange) passage.end();
    return exchange !== undefined;
  }

  async function reload(config: Config): Promise<void> {
    const before = current;
    current = createGeneration(config, outletsFor(config, before.outlets));
    const kept = new Set(current.outlets.values());
    for (const outlet of before.outlets.values()) {
      if (kept.has(outlet)) continue;
      outlet.retire();
      retired.add(outlet);
    }
    forgetRetired();
    applyProcessSettings();
    reloadCertificate(config);
    if (!isDeepStrictEqual(config.limits, before.config.limits)) changeStore(config.limits);
    if (!isDeepStrictEqual(config.traces, before.config.traces)) await changeTracer(config);
    metrics.reloaded(true);
  }

  /** Live connections stay; whether there is TLS at all is the listener's, which stays too. */
  function reloadCertificate(config: Config): void {
    const credentials = credentialsOf(config);
    if (credentials !== undefined && initial.server.tls !== undefined) changeCertificate(app.server, credentials);
  }

  function applyProcessSettings(): void {
    const { server, log: logSettings } = current.config;
    log.level = logSettings.level;
    for (const on of new Set([app, ops])) {
      on.server.maxConnections = server.maxConnections;
      // Or one of several processes, with its share of connections, would have the next one handed to another; and where all
      // have theirs, it would go round for ever.
      Object.assign(on.server, { dropMaxConnection: true });
    }
  }

  /** A refusal ends its exchange; whatever failed, the answer has the form of section 5. */
  function answerErrors(on: FastifyInstance): void {
    on.decorateRequest('exchange', undefined);
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

  async function handle(request: FastifyRequest, reply: FastifyReply): Promise<void> {
    const { gates, station } = current;
    const exchange = recordArrival(request, clock.now());
    tracer?.begin(exchange, request.headers);
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
      ...{ exchange, requestTarget, client, endpoint: exchange.endpoint },
      ...{ request: request.raw, response: reply.raw, ownHeaders: pluginHeaders(reply) },
    };
    const begin = requestTarget.path === PROBE_PATH ? probe : isUpgraded(request.raw) ? tunnel : forward;
    begin(journey, station, limiter.admit(request, exchange, client));
  }

  async function serveClients(): Promise<void> {
    await app.register(fastifyCors, {
      ...CORS,
      origin: (_: string | undefined, done: (error: null, origins: string[] | false) => void) =>
        done(null, current.config.server.cors?.origins ?? false),
    });
    app.route({ method: METHODS.filter((method) => method !== 'OPTIONS'), url: '/*', handler: handle });
    // The plugin has a route of its own for every other OPTIONS.
    for (const url of ['/v1', '/v1/*', '/openai/*']) app.route({ method: 'OPTIONS', url, handler: handle });
  }

  /** First it says that it is leaving, and serves on; then the listener closes, and what is live may finish. */
  async function drain(drainMs: number = current.config.server.drainMs): Promise<void> {
    state = 'leaving';
    await notice.given();
    state = 'draining';
    const closed = app.close();
    const cutTheRest = () => {
      for (const passage of passages) passage.drain();
    };
    // A timer of Infinity fires at once.
    const deadline = Number.isFinite(drainMs) ? setTimeout(cutTheRest, drainMs) : undefined;
    // Whoever does not even read the end of a stream that was cut is not waited for.
    const lastResort = Number.isFinite(drainMs) ? setTimeout(() => app.server.closeAllConnections(), drainMs + CUT_GRACE_MS) : undefined;
    await closed;
    // Answers that are read on without their clients have no connection here that the listener would wait for.
    while (passages.size > 0) await delayFor(PASSAGE_REST_MS);
    clearTimeout(deadline);
    clearTimeout(lastResort);
  }

  async function close(drainMs?: number): Promise<void> {
    await drain(drainMs);
    await ledger.settled();
    await tracer?.close();
    if (ops !== app) await ops.close();
    for (const outlet of [...current.outlets.values(), ...retired]) outlet.close();
    leases.close();
    board.close();
    await storeChange;
    await store.close();
    if (given === undefined) await tokenizer.close();
    clock.close();
  }

  serveHealth(app, readiness, notice.asked);
  if (ops !== app) serveHealth(ops, readiness, () => undefined);
  for (const on of new Set([app, ops])) answerErrors(on);
  serveOps(ops, {
    ...{ config: () => current.config, listen: initial.ops.listen, isShared: ops === app, handle },
    scrape: (accept) => (common ?? metrics).scrape(accept),
    look: async () => common?.look() ?? look(),
    endStream: async (id) => common?.endStream(id) ?? endStream(id),
  });
  await serveClients();
  applyProcessSettings();
  try {
    await app.listen({ ...initial.server.listen });
    if (ops !== app) await ops.listen({ ...initial.ops.listen });
  } catch (error) {
    await close();
    throw error;
  }
  return {
    ...{ url: urlOf(app, initial), opsUrl: urlOf(ops, ops === app ? initial : undefined) },
    ...{ reload, reloadFailed: () => metrics.reloaded(false), drain, close, read: metrics.read, look, endStream },
  };
}

/** Adds `ADDRESS` or `ADDRESS/BITS`. */
function addNetwork(list: BlockList, network: string): void {
  const [address = '', bits] = network.split('/');
  const family = isIPv6(address) ? 'ipv6' : 'ipv4';
  if (bits === undefined) list.addAddress(address, family);
  else list.addSubnet(address, Number(bits), family);
}

function isSameListener({ server, ops }: Config): boolean {
  return server.listen.host === ops.listen.host && server.listen.port === ops.listen.port && ops.listen.port !== 0;
}

/** Headers that plugins have set; Node lists names and values flat. */
function pluginHeaders(reply: FastifyReply): string[] {
  return Object.entries(reply.getHeaders()).flatMap(([name, value]) => [name, String(value)]);
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

function credentialsOf({ server: { tls } }: Config): Credentials | undefined {
  return tls && { cert: tls.cert.text, key: tls.key.text };
}

/** @param config of a listener that may be under TLS */
function urlOf(app: FastifyInstance, config: Config | undefined): string {
  const { address, port, family } = app.server.address() as AddressInfo;
  const scheme = config?.server.tls === undefined ? 'http' : 'https';
  return `${scheme}://${family === 'IPv6' ? `[${address}]` : address}:${port}`;
}

// The composition root: the parts of the gateway, put together in the order of a request's life.
import { isDeepStrictEqual } from 'node:util';
import type { Config } from './config.ts';
import { createLedger, type Exchange } from './exchange.ts';
import { createAsker } from './http/asking.ts';
import { createDrain } from './http/drain.ts';
import type { Passage } from './http/forward.ts';
import { createGeneration } from './http/generation.ts';
import { serveHealth } from './http/health.ts';
import { createRoom } from './http/held.ts';
import { createLeases } from './http/leases.ts';
import { createLimiter } from './http/limits.ts';
import { createListeners } from './http/listeners.ts';
import { createNotice, type Notice } from './http/notice.ts';
import { serveOps } from './http/ops.ts';
import { answerErrors, createReception, serveClients } from './http/reception.ts';
import type { LimitStore } from './limits/store.ts';
import { openStoreSwitch } from './limits/switch.ts';
import { Roster } from './roster.ts';
import { createClock } from './stream/clock.ts';
import { createTokenizer, type Tokenizer } from './stream/tokens.ts';
import { createBoard } from './telemetry/board.ts';
import { faultFacts, type Logger, logExchange } from './telemetry/log.ts';
import { createMetrics } from './telemetry/metrics.ts';
import { createRecorder } from './telemetry/recorder.ts';
import type { Extent, Page, Snapshot } from './telemetry/registry.ts';
import { openTracing } from './telemetry/tracing.ts';
import { type View, viewUpstreams } from './telemetry/view.ts';
import { createOutlets } from './upstream/outlets.ts';

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

/**
 * Starts a gateway: both listeners accept when it resolves.
 * @throws the error of `listen` (EADDRINUSE, EACCES, …) with nothing left open
 */
export async function startGateway(parts: GatewayParts): Promise<Gateway> {
  const { config: initial, log, version, beatMs, renewMs, tokenizer: given, common } = parts;
  const startedAt = Date.now();
  const onFault = (error: unknown) => log.error(faultFacts(error), 'a request failed inside');
  log.level = initial.log.level;

  // Who is under way, and what is told of them.
  const clock = createClock(beatMs, onFault);
  const passages = new Roster<Passage>();
  const notice = common?.notice ?? createNotice(clock.now);
  const drain = createDrain(notice, passages);
  const outlets = createOutlets(clock.now, onFault);
  const metrics = createMetrics({
    ...{ version, connections: outlets.connections, health: outlets.health },
    live: () => ledger.live,
    standings: () => limiter.standings(),
    isLimitStoreUp: () => stores.store.isUp,
  });
  const board = createBoard(underWay, clock.now);
  const recorder = createRecorder((ended) => clock.spread(() => ended.forEach(tell)));
  const ledger = createLedger(clock.now, recorder.take);

  // Where they come in, and what they may use.
  const listeners = createListeners(initial, {
    ...{ onUnparsed: metrics.rejectedUnparsed, onFault, spread: clock.spread },
    isTrusted: (address) => current.isTrusted(address),
    isLeaving: () => drain.state !== 'ready',
  });
  const { app, ops, isShared } = listeners;
  const leases = createLeases(onFault, renewMs);
  const stores = await openStoreSwitch(initial.limits, {
    ...{ isLeased: leases.has, onChange: tellStore, onFault, countInMemory: common?.countInMemory },
  });
  const limiter = await createLimiter(app, { config, store: () => stores.store, leases, now: clock.now });
  const tracing = await openTracing(initial.traces, { version, log, onSpans: metrics.spans, onFault });

  // What they meet on their way.
  const tokenizer = given ?? createTokenizer();
  const commons = {
    ...{ clock, ledger, passages, metrics, tokenizer, onFault, limiter, asker: createAsker() },
    room: createRoom(() => config().server.maxHeldBodiesBytes),
    promptRoom: createRoom(() => MAX_PROMPTS_BYTES),
    isDraining: () => drain.state === 'draining',
  };
  let current = createGeneration(initial, outlets.use(initial.upstreams), commons);
  const receive = createReception({ current: () => current, ledger, limiter, tracer: tracing, now: clock.now });

  function config(): Config {
    return current.config;
  }

  function tell(exchange: Exchange): void {
    try {
      metrics.record(exchange);
      board.record(exchange);
      logExchange(log, exchange);
      tracing.record(exchange);
    } catch (fault) {
      onFault(fault);
    }
  }

  function tellStore(isUp: boolean, code: string | undefined): void {
    if (isUp) log.info('the limit store is back');
    else log.error({ code }, 'the limit store is away');
  }

  function* underWay(): Iterable<Exchange> {
    for (const { exchange } of passages) yield exchange;
  }

  function read(extent: Extent): Promise<Snapshot> {
    recorder.flush();
    return metrics.read(extent);
  }

  function scrape(accept: string): Promise<Page> {
    recorder.flush();
    return (common ?? metrics).scrape(accept);
  }

  function look(): View {
    recorder.flush();
    return {
      ...{ version, state: drain.state, startedAt, at: Date.now(), workers: 1 },
      ...{ url: listeners.urls.url, isKeyNeeded: config().clients.length > 0 },
      ...board.view(),
      upstreams: viewUpstreams(outlets.health(), outlets.connections()),
    };
  }

  function endStream(id: string): boolean {
    const exchange = board.find(id);
    for (const passage of passages) if (passage.exchange === exchange) passage.end();
    return exchange !== undefined;
  }

  async function reload(next: Config): Promise<void> {
    const before = config();
    current = createGeneration(next, outlets.use(next.upstreams), commons);
    log.level = next.log.level;
    listeners.reload(next);
    if (!isDeepStrictEqual(next.limits, before.limits)) stores.change(next.limits);
    if (!isDeepStrictEqual(next.traces, before.traces)) await tracing.change(next.traces);
    metrics.reloaded(true);
  }

  async function close(drainMs: number = config().server.drainMs): Promise<void> {
    await drain.begin(app, drainMs);
    await ledger.settled();
    recorder.flush();
    await tracing.close();
    if (!isShared) await ops.close();
    outlets.close();
    leases.close();
    board.close();
    await stores.close();
    if (given === undefined) await tokenizer.close();
    clock.close();
  }

  async function serve(): Promise<void> {
    const readiness = () => ({ isReady: drain.state === 'ready', reason: drain.state });
    serveHealth(app, readiness, notice.asked);
    if (!isShared) serveHealth(ops, readiness, () => undefined);
    for (const on of listeners.all) answerErrors(on, ledger, config, onFault);
    serveOps(ops, {
      ...{ config, listen: initial.ops.listen, isShared, handle: receive },
      scrape,
      look: async () => common?.look() ?? look(),
      endStream: async (id) => common?.endStream(id) ?? endStream(id),
    });
    await serveClients(app, receive, config);
    await listeners.listen();
  }

  try {
    await serve();
  } catch (error) {
    await close();
    throw error;
  }
  return {
    ...listeners.urls,
    ...{ reload, reloadFailed: () => metrics.reloaded(false), close, read, look, endStream },
    drain: (drainMs = config().server.drainMs) => drain.begin(app, drainMs),
  };
}

// What ops teams scrape: the instruments, written from the exchanges, and nowhere else.
import type { Exchange, Phase } from '../exchange.ts';
import type { Standings } from '../limits/store.ts';
import { outputSoFar } from '../spending.ts';
import type { ConnectionCounts } from '../upstream/client.ts';
import { createModelLabel, createSeriesBound, type Labels } from './bounds.ts';
import { addInstruments } from './instruments.ts';
import { type Counter, createInstruments, type Extent, type Page, type Snapshot, writePage } from './registry.ts';

export interface Metrics {
  /** Writes an ended exchange; once each. */
  record(exchange: Exchange): void;
  /** From a client's going to its upstream socket's close. */
  upstreamClosed(phase: Phase, seconds: number): void;
  /** Time that Sluicegate itself took. */
  overhead(part: 'request' | 'chunk', seconds: number): void;
  /** One try at an upstream: `ok` is an answer, whatever its status. */
  attempt(upstream: string, result: string): void;
  response(upstream: string, status: number): void;
  /** A request refused before the parser made it one, such as one with malformed headers. */
  rejectedUnparsed(reason: string): void;
  /** Spans that went to the collector, or were given up. */
  spans(result: 'exported' | 'dropped', count: number): void;
  /** A configuration was loaded, or refused. */
  reloaded(isSuccessful: boolean): void;
  /** What the instruments say now. */
  read(extent: Extent): Promise<Snapshot>;
  /** The metrics in the format that `accept` asks for: Prometheus text, or OpenMetrics. */
  scrape(accept: string): Promise<Page>;
}

export interface MetricsParts {
  readonly version: string;
  /** The exchanges now under way. */
  live(): Iterable<Exchange>;
  /** Whether each upstream is up: not put aside. */
  health(): Iterable<readonly [upstream: string, isUp: boolean]>;
  /** Connections by upstream name. */
  connections(): Iterable<readonly [upstream: string, counts: ConnectionCounts]>;
  /** What the clients with limits have left, by client. */
  standings(): Promise<ReadonlyMap<string, Standings>>;
  isLimitStoreUp(): boolean;
}

/** What of a live exchange has been added to counters already. */
interface Told {
  bytesIn: number;
  bytesOut: number;
  events: number;
  tokens: number;
}

/** All instruments on a registry of their own. */
export function createMetrics(parts: MetricsParts): Metrics {
  const registry = createInstruments();
  const our = addInstruments(registry);
  our.buildInfo.set({ version: parts.version, node: process.versions.node }, 1);

  const modelLabel = createModelLabel();
  const bounded = createSeriesBound();
  /** The pattern that matched; without one, what the upstream itself named. */
  const modelOf = ({ model, meter }: Exchange) => model ?? modelLabel(meter?.model);
  const toldOf = new WeakMap<Exchange, Told>();

  /** Adds what a stream has relayed since it was last looked at: on each scrape and at its end, so that nothing is counted per event. */
  function tellFlow(exchange: Exchange): void {
    const { upstream, meter } = exchange;
    if (upstream === undefined) return;
    const told = toldOf.get(exchange) ?? { bytesIn: 0, bytesOut: 0, events: 0, tokens: 0 };
    const now = {
      bytesIn: exchange.bytesIn,
      bytesOut: exchange.bytesOut,
      events: meter?.eventCount ?? 0,
      tokens: outputSoFar(meter),
    };
    add(our.bytes, { upstream, direction: 'in' }, now.bytesIn - told.bytesIn);
    add(our.bytes, { upstream, direction: 'out' }, now.bytesOut - told.bytesOut);
    add(our.events, { upstream }, now.events - told.events);
    add(our.relayedTokens, { upstream, model: modelOf(exchange) }, now.tokens - told.tokens);
    toldOf.set(exchange, now);
  }

  function recordTokens(exchange: Exchange, labels: Labels): void {
    const { tokens: used, costNanoUsd = 0, outputHeard, meter } = exchange;
    add(our.cost, bounded('cost', labels), costNanoUsd / 1e9);
    if (outputHeard !== undefined)
      add(our.unheardTokens, { upstream: labels.upstream!, model: labels.model! }, outputSoFar(meter) - outputHeard);
    if (used === undefined) return;
    for (const kind of ['input', 'output'] as const) {
      const source = used[`${kind}Source`];
      if (source !== undefined) add(our.tokens, bounded('tokens', { ...labels, kind, source }), used[kind]);
    }
    const parts = {
      cached_input: used.cachedInput,
      cache_write: used.cacheWrite,
      reasoning: used.reasoning,
      audio_input: used.audioInput,
      audio_output: used.audioOutput,
    };
    for (const [kind, count] of Object.entries(parts)) add(our.details, bounded('details', { ...labels, kind }), count);
  }

  function recordRivals({ rivals }: Exchange, model: string): void {
    for (const { upstream, tokens: used } of rivals) {
      if (used === undefined) continue;
      for (const kind of ['input', 'output'] as const)
        add(our.rivalTokens, { upstream, model, kind }, used[`${kind}Source`] === undefined ? 0 : used[kind]);
    }
  }

  function recordTimes(exchange: Exchange, upstream: string, model: string): void {
    const { ttfbMs, ttftMs, durationMs = 0, tokens: used } = exchange;
    if (ttfbMs !== undefined) our.ttfb.observe(bounded('times', { upstream, model }), ttfbMs / 1000);
    if (ttftMs === undefined) return;
    our.ttft.observe(bounded('times', { upstream, model }), ttftMs / 1000);
    if (used?.outputSource !== undefined && used.output > 1) {
      our.perToken.observe(bounded('times', { upstream, model }), (durationMs - ttftMs) / 1000 / (used.output - 1));
    }
  }

  function recordGenAi(exchange: Exchange, upstream: string, model: string): void {
    const { operation, ttftMs, durationMs = 0, meter, tokens: used, outcome } = exchange;
    if (operation === undefined) return;
    const labels = bounded('genAi', { gen_ai_operation_name: operation, gen_ai_provider_name: upstream, gen_ai_response_model: model });
    our.genAiDuration.observe({ ...labels, error_type: outcome === 'completed' ? '' : (outcome ?? '') }, durationMs / 1000);
    for (const kind of ['input', 'output'] as const) {
      if (used?.[`${kind}Source`] !== undefined) our.genAiTokens.observe({ ...labels, gen_ai_token_type: kind }, used[kind]);
    }
    if (ttftMs === undefined || meter === undefined) return;
    our.genAiFirst.observe(labels, ttftMs / 1000);
    if (meter.contentCount > 1) our.genAiPer.observe(labels, (durationMs - ttftMs) / 1000 / (meter.contentCount - 1));
  }

  function collectGauges(): void {
    our.active.reset();
    for (const exchange of parts.live()) {
      tellFlow(exchange);
      const { client, upstream } = exchange;
      if (upstream !== undefined) our.active.inc(bounded('active', { client, upstream, model: modelOf(exchange) }));
    }
    our.upstreamUp.reset();
    for (const [upstream, isUp] of parts.health()) our.upstreamUp.set({ upstream }, isUp ? 1 : 0);
    our.connections.reset();
    for (const [upstream, counts] of parts.connections()) {
      for (const [state, count] of Object.entries(counts)) our.connections.inc({ upstream, state }, count);
    }
  }

  /** A store that is away says nothing: then there is no series, rather than an old one. */
  async function collectLimits(): Promise<void> {
    our.storeUp.set(parts.isLimitStoreUp() ? 1 : 0);
    const standings = await parts.standings().catch(() => new Map<string, Standings>());
    our.remaining.reset();
    our.configured.reset();
    for (const [client, standing] of standings) {
      for (const [name, { limit: most, remaining: left }] of Object.entries(standing)) {
        const unit = name === 'budget' ? 1e9 : 1;
        our.remaining.set({ client, limit: name }, left / unit);
        our.configured.set({ client, limit: name }, most / unit);
      }
    }
  }

  /** Nobody looks at gauges where counts are read for safety, each second: a shared store is not asked then. */
  async function read(extent: Extent): Promise<Snapshot> {
    collectGauges();
    if (extent === 'all') await collectLimits();
    return registry.read(extent);
  }

  function reloaded(isSuccessful: boolean): void {
    our.reloadSuccessful.set(isSuccessful ? 1 : 0);
    if (isSuccessful) our.reloadTime.setToCurrentTime();
  }
  reloaded(true);

  return {
    reloaded,
    record(exchange) {
      const { client, endpoint, outcome = 'completed', upstream = 'none', durationMs = 0 } = exchange;
      const model = modelOf(exchange);
      our.requests.inc(bounded('requests', { client, upstream, model, endpoint, outcome }));
      our.duration.observe(bounded('duration', { upstream, endpoint, outcome }), durationMs / 1000);
      if (exchange.rejection !== undefined) our.rejections.inc(bounded('rejections', { client, reason: exchange.rejection }));
      tellFlow(exchange);
      if (exchange.upstream === undefined) return;
      if (exchange.meter?.fault !== undefined) our.meterFaults.inc({ upstream, fault: exchange.meter.fault });
      recordRivals(exchange, model);
      recordTokens(exchange, { client, upstream, model });
      recordTimes(exchange, upstream, model);
      recordGenAi(exchange, upstream, model);
    },
    upstreamClosed: (phase, seconds) => our.close.observe({ phase }, seconds),
    overhead: (part, seconds) => our.overhead.observe({ part }, seconds),
    attempt: (upstream, result) => our.attempts.inc({ upstream, result }),
    response: (upstream, status) => our.responses.inc({ upstream, status: String(status) }),
    spans: (result, count) => our.spans.inc({ result }, count),
    rejectedUnparsed: (reason) => our.rejections.inc({ client: 'anonymous', reason }),
    read,
    scrape: async (accept) => writePage(await read('all'), accept),
  };
}

function add(counter: Counter, labels: Labels, count: number): void {
  if (count > 0) counter.inc(labels, count);
}

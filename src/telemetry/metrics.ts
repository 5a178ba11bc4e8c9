// What ops teams scrape: the instruments, written from the exchanges, and nowhere else.
import type { Exchange, Phase } from '../exchange.ts';
import type { Standings } from '../limits/store.ts';
import { outputSoFar } from '../spending.ts';
import type { ConnectionCounts } from '../upstream/client.ts';
import { addInstruments } from './instruments.ts';
import { createModelLabel } from './model-names.ts';
import { createInstruments, type Extent, type Page, type Snapshot, writePage } from './registry.ts';
import type { Counter } from './series.ts';

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
  our.buildInfo.set(1, parts.version, process.versions.node);

  const modelLabel = createModelLabel();
  /** The pattern that matched; without one, what the upstream itself named. */
  const modelOf = ({ model, meter }: Exchange) => model ?? modelLabel(meter?.model);
  const toldOf = new WeakMap<Exchange, Told>();

  /**
   * Adds what a stream has relayed since it was last looked at: on each scrape and at its end, so that nothing is counted per event.
   * @returns what has been added by now, for whoever will look again
   */
  function tellFlow(exchange: Exchange): Told {
    const { upstream, meter } = exchange;
    const told = toldOf.get(exchange) ?? { bytesIn: 0, bytesOut: 0, events: 0, tokens: 0 };
    if (upstream === undefined) return told;
    const now = {
      bytesIn: exchange.bytesIn,
      bytesOut: exchange.bytesOut,
      events: meter?.eventCount ?? 0,
      tokens: outputSoFar(meter),
    };
    add(our.bytes, now.bytesIn - told.bytesIn, upstream, 'in');
    add(our.bytes, now.bytesOut - told.bytesOut, upstream, 'out');
    add(our.events, now.events - told.events, upstream);
    add(our.relayedTokens, now.tokens - told.tokens, upstream, modelOf(exchange));
    return now;
  }

  function recordTokens(exchange: Exchange, upstream: string, model: string): void {
    const { client, tokens: used, costNanoUsd = 0, outputHeard, meter } = exchange;
    add(our.cost, costNanoUsd / 1e9, client, upstream, model);
    if (outputHeard !== undefined) add(our.unheardTokens, outputSoFar(meter) - outputHeard, upstream, model);
    if (used === undefined) return;
    const { inputSource, outputSource } = used;
    if (inputSource !== undefined) add(our.tokens, used.input, client, upstream, model, 'input', inputSource);
    if (outputSource !== undefined) add(our.tokens, used.output, client, upstream, model, 'output', outputSource);
    add(our.details, used.cachedInput, client, upstream, model, 'cached_input');
    add(our.details, used.cacheWrite, client, upstream, model, 'cache_write');
    add(our.details, used.reasoning, client, upstream, model, 'reasoning');
    add(our.details, used.audioInput, client, upstream, model, 'audio_input');
    add(our.details, used.audioOutput, client, upstream, model, 'audio_output');
  }

  function recordRivals({ rivals }: Exchange, model: string): void {
    for (const { upstream, tokens: used } of rivals) {
      if (used === undefined) continue;
      if (used.inputSource !== undefined) add(our.rivalTokens, used.input, upstream, model, 'input');
      if (used.outputSource !== undefined) add(our.rivalTokens, used.output, upstream, model, 'output');
    }
  }

  function recordTimes(exchange: Exchange, upstream: string, model: string): void {
    const { ttfbMs, ttftMs, durationMs = 0, tokens: used } = exchange;
    if (ttfbMs !== undefined) our.ttfb.observe(ttfbMs / 1000, upstream, model);
    if (ttftMs === undefined) return;
    our.ttft.observe(ttftMs / 1000, upstream, model);
    if (used?.outputSource !== undefined && used.output > 1)
      our.perToken.observe((durationMs - ttftMs) / 1000 / (used.output - 1), upstream, model);
  }

  function recordGenAi(exchange: Exchange, upstream: string, model: string): void {
    const { operation, ttftMs, durationMs = 0, meter, tokens: used, outcome = 'completed' } = exchange;
    if (operation === undefined) return;
    our.genAiDuration.observe(durationMs / 1000, operation, upstream, model, outcome === 'completed' ? '' : outcome);
    if (used?.inputSource !== undefined) our.genAiTokens.observe(used.input, operation, upstream, model, 'input');
    if (used?.outputSource !== undefined) our.genAiTokens.observe(used.output, operation, upstream, model, 'output');
    if (ttftMs === undefined || meter === undefined) return;
    our.genAiFirst.observe(ttftMs / 1000, operation, upstream, model);
    if (meter.contentCount > 1) our.genAiPer.observe((durationMs - ttftMs) / 1000 / (meter.contentCount - 1), operation, upstream, model);
  }

  function collectGauges(): void {
    our.active.reset();
    for (const exchange of parts.live()) {
      toldOf.set(exchange, tellFlow(exchange));
      const { client, upstream } = exchange;
      if (upstream !== undefined) our.active.add(1, client, upstream, modelOf(exchange));
    }
    our.upstreamUp.reset();
    for (const [upstream, isUp] of parts.health()) our.upstreamUp.set(isUp ? 1 : 0, upstream);
    our.connections.reset();
    for (const [upstream, counts] of parts.connections()) {
      for (const [state, count] of Object.entries(counts)) our.connections.add(count, upstream, state);
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
        our.remaining.set(left / unit, client, name);
        our.configured.set(most / unit, client, name);
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
    if (isSuccessful) our.reloadTime.set(Date.now() / 1000);
  }
  reloaded(true);

  return {
    reloaded,
    record(exchange) {
      const { client, endpoint, outcome = 'completed', upstream = 'none', durationMs = 0 } = exchange;
      const model = modelOf(exchange);
      our.requests.add(1, client, upstream, model, endpoint, outcome);
      our.duration.observe(durationMs / 1000, upstream, endpoint, outcome);
      if (exchange.rejection !== undefined) our.rejections.add(1, client, exchange.rejection);
      tellFlow(exchange);
      if (exchange.upstream === undefined) return;
      if (exchange.meter?.fault !== undefined) our.meterFaults.add(1, upstream, exchange.meter.fault);
      recordRivals(exchange, model);
      recordTokens(exchange, upstream, model);
      recordTimes(exchange, upstream, model);
      recordGenAi(exchange, upstream, model);
    },
    upstreamClosed: (phase, seconds) => our.close.observe(seconds, phase),
    overhead: (part, seconds) => our.overhead.observe(seconds, part),
    attempt: (upstream, result) => our.attempts.add(1, upstream, result),
    response: (upstream, status) => our.responses.add(1, upstream, String(status)),
    spans: (result, count) => our.spans.add(count, result),
    rejectedUnparsed: (reason) => our.rejections.add(1, 'anonymous', reason),
    read,
    scrape: async (accept) => writePage(await read('all'), accept),
  };
}

/** A series with nothing in it would say that there was something to count. */
function add(counter: Counter, count: number, ...labels: string[]): void {
  if (count > 0) counter.add(count, ...labels);
}

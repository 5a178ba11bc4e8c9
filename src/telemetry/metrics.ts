// What ops teams scrape: every instrument, written from the exchanges, and nowhere else.
import type { Exchange, Phase } from '../exchange.ts';
import type { Standings } from '../limits/store.ts';
import { outputSoFar } from '../spending.ts';
import type { ConnectionCounts } from '../upstream/client.ts';
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
  /** Connections by upstream name. */
  /** Whether each upstream is up: not put aside. */
  health(): Iterable<readonly [upstream: string, isUp: boolean]>;
  connections(): Iterable<readonly [upstream: string, counts: ConnectionCounts]>;
  /** What the clients with limits have left, by client. */
  standings(): Promise<ReadonlyMap<string, Standings>>;
  isLimitStoreUp(): boolean;
}

const MODEL_NAME = /^[\w.:/@-]{1,64}$/;
/** Bounds what a registry of clients' texts could grow to: a series costs memory for ever, and time on each scrape. */
const MAX_MODELS = 100;
const MAX_SERIES = 10_000;

/** From a fast answer on loopback to minutes of thinking. */
const LATENCY_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300];
const TOKEN_TIME_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5];
const CLOSE_BUCKETS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1];
const OVERHEAD_BUCKETS = [0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05];
const DURATION_BUCKETS = [0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600];
/** Advised by the OpenTelemetry GenAI semantic conventions, "Generative AI client metrics". */
const GEN_AI_SECONDS = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
const GEN_AI_CHUNK_SECONDS = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.2, 0.5, 1, 2, 5, 10];
const GEN_AI_TOKENS = [1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864];

type Labels = Record<string, string>;

/** What of a live exchange has been added to counters already. */
interface Told {
  bytesIn: number;
  bytesOut: number;
  events: number;
  tokens: number;
}

/** All instruments on a registry of their own. */
export function createMetrics(parts: MetricsParts): Metrics {
  const { counter, gauge, histogram, read: readAll } = createInstruments();
  const requests = counter('sluicegate_requests_total', 'Requests ended.', 'client', 'upstream', 'model', 'endpoint', 'outcome');
  const responses = counter('sluicegate_responses_total', 'Answers of upstreams, by status.', 'upstream', 'status');
  const active = gauge('sluicegate_streams_active', 'Requests under way at an upstream.', 'client', 'upstream', 'model');
  const tokens = counter(
    'sluicegate_tokens_total',
    'Tokens, written once at the end of a request.',
    'client',
    'upstream',
    'model',
    'kind',
    'source',
  );
  const details = counter(
    'sluicegate_token_details_total',
    'Tokens that are part of input or output.',
    'client',
    'upstream',
    'model',
    'kind',
  );
  const cost = counter('sluicegate_cost_usd_total', 'What the tokens cost, by the configured prices.', 'client', 'upstream', 'model');
  const unheardTokens = counter(
    'sluicegate_unheard_tokens_total',
    'Output tokens of answers that were read on after their client had left, about.',
    'upstream',
    'model',
  );
  const rivalTokens = counter(
    'sluicegate_hedge_lost_tokens_total',
    'Tokens of answers that another upstream was faster than.',
    'upstream',
    'model',
    'kind',
  );
  const meterFaults = counter(
    'sluicegate_meter_faults_total',
    'Answers whose metering failed; their bytes were relayed all the same.',
    'upstream',
    'fault',
  );
  const relayedTokens = counter('sluicegate_relayed_tokens_total', 'Output tokens as they flow, approximate.', 'upstream', 'model');
  const ttfb = histogram(
    'sluicegate_time_to_first_byte_seconds',
    "From a request's arrival to the upstream's first byte.",
    LATENCY_BUCKETS,
    'upstream',
    'model',
  );
  const ttft = histogram(
    'sluicegate_time_to_first_token_seconds',
    "From a request's arrival to the first event with content.",
    LATENCY_BUCKETS,
    'upstream',
    'model',
  );
  const perToken = histogram(
    'sluicegate_time_per_output_token_seconds',
    'Mean time per output token after the first.',
    TOKEN_TIME_BUCKETS,
    'upstream',
    'model',
  );
  const duration = histogram(
    'sluicegate_request_duration_seconds',
    'Duration of requests.',
    DURATION_BUCKETS,
    'upstream',
    'endpoint',
    'outcome',
  );
  const close = histogram(
    'sluicegate_upstream_close_seconds',
    "From the client's going to the close of its upstream socket.",
    CLOSE_BUCKETS,
    'phase',
  );
  const overhead = histogram(
    'sluicegate_overhead_seconds',
    "Sluicegate's own time: per request until it is sent upstream, and per chunk (sampled).",
    OVERHEAD_BUCKETS,
    'part',
  );
  const bytes = counter('sluicegate_relayed_bytes_total', 'Bytes of bodies relayed.', 'upstream', 'direction');
  const events = counter('sluicegate_relayed_events_total', 'Events of streams relayed.', 'upstream');
  const rejections = counter('sluicegate_rejections_total', 'Requests refused here.', 'client', 'reason');
  const attempts = counter('sluicegate_upstream_attempts_total', 'Tries at an upstream, by result.', 'upstream', 'result');
  const connections = gauge('sluicegate_upstream_connections', 'Connections to upstreams, and calls waiting for one.', 'upstream', 'state');
  const upstreamUp = gauge('sluicegate_upstream_up', 'Whether an upstream is asked: 0 while it is put aside for its failures.', 'upstream');
  const storeUp = gauge('sluicegate_limit_store_up', 'Whether limits are counted where they should be.');
  const remaining = gauge(
    'sluicegate_limit_remaining',
    'What a client has left: requests and tokens of a minute, streams, and USD of its budget.',
    'client',
    'limit',
  );
  const configured = gauge('sluicegate_limit_configured', 'What a client may, in the same units.', 'client', 'limit');
  const genAi = ['gen_ai_operation_name', 'gen_ai_provider_name', 'gen_ai_response_model'];
  const genAiDuration = histogram(
    'gen_ai_client_operation_duration_seconds',
    'GenAI operation duration.',
    GEN_AI_SECONDS,
    ...genAi,
    'error_type',
  );
  const genAiTokens = histogram('gen_ai_client_token_usage', 'Input and output tokens used.', GEN_AI_TOKENS, ...genAi, 'gen_ai_token_type');
  const genAiFirst = histogram(
    'gen_ai_client_operation_time_to_first_chunk_seconds',
    'Time to the first chunk of a streamed answer.',
    GEN_AI_SECONDS,
    ...genAi,
  );
  const genAiPer = histogram(
    'gen_ai_client_operation_time_per_output_chunk_seconds',
    'Time per output chunk after the first.',
    GEN_AI_CHUNK_SECONDS,
    ...genAi,
  );
  gauge('sluicegate_build_info', 'The version that runs.', 'version', 'node').set(
    { version: parts.version, node: process.versions.node },
    1,
  );

  const spans = counter(
    'sluicegate_spans_total',
    'Spans of traces: exported, or dropped because the collector did not take them.',
    'result',
  );
  const reloadSuccessful = gauge('sluicegate_config_last_reload_successful', 'Whether the last configuration was taken.');
  const reloadTime = gauge('sluicegate_config_last_reload_success_timestamp_seconds', 'When a configuration was last taken.');

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
    add(bytes, { upstream, direction: 'in' }, now.bytesIn - told.bytesIn);
    add(bytes, { upstream, direction: 'out' }, now.bytesOut - told.bytesOut);
    add(events, { upstream }, now.events - told.events);
    add(relayedTokens, { upstream, model: modelOf(exchange) }, now.tokens - told.tokens);
    toldOf.set(exchange, now);
  }

  function recordTokens(exchange: Exchange, labels: Labels): void {
    const { tokens: used, costNanoUsd = 0, outputHeard, meter } = exchange;
    add(cost, bounded('cost', labels), costNanoUsd / 1e9);
    if (outputHeard !== undefined)
      add(unheardTokens, { upstream: labels.upstream!, model: labels.model! }, outputSoFar(meter) - outputHeard);
    if (used === undefined) return;
    for (const kind of ['input', 'output'] as const) {
      const source = used[`${kind}Source`];
      if (source !== undefined) add(tokens, bounded('tokens', { ...labels, kind, source }), used[kind]);
    }
    const parts = {
      cached_input: used.cachedInput,
      cache_write: used.cacheWrite,
      reasoning: used.reasoning,
      audio_input: used.audioInput,
      audio_output: used.audioOutput,
    };
    for (const [kind, count] of Object.entries(parts)) add(details, bounded('details', { ...labels, kind }), count);
  }

  function recordRivals({ rivals }: Exchange, model: string): void {
    for (const { upstream, tokens: used } of rivals) {
      if (used === undefined) continue;
      for (const kind of ['input', 'output'] as const)
        add(rivalTokens, { upstream, model, kind }, used[`${kind}Source`] === undefined ? 0 : used[kind]);
    }
  }

  function recordTimes(exchange: Exchange, upstream: string, model: string): void {
    const { ttfbMs, ttftMs, durationMs = 0, tokens: used } = exchange;
    if (ttfbMs !== undefined) ttfb.observe(bounded('times', { upstream, model }), ttfbMs / 1000);
    if (ttftMs === undefined) return;
    ttft.observe(bounded('times', { upstream, model }), ttftMs / 1000);
    if (used?.outputSource !== undefined && used.output > 1) {
      perToken.observe(bounded('times', { upstream, model }), (durationMs - ttftMs) / 1000 / (used.output - 1));
    }
  }

  function recordGenAi(exchange: Exchange, upstream: string, model: string): void {
    const { operation, ttftMs, durationMs = 0, meter, tokens: used, outcome } = exchange;
    if (operation === undefined) return;
    const labels = bounded('genAi', { gen_ai_operation_name: operation, gen_ai_provider_name: upstream, gen_ai_response_model: model });
    genAiDuration.observe({ ...labels, error_type: outcome === 'completed' ? '' : (outcome ?? '') }, durationMs / 1000);
    for (const kind of ['input', 'output'] as const) {
      if (used?.[`${kind}Source`] !== undefined) genAiTokens.observe({ ...labels, gen_ai_token_type: kind }, used[kind]);
    }
    if (ttftMs === undefined || meter === undefined) return;
    genAiFirst.observe(labels, ttftMs / 1000);
    if (meter.contentCount > 1) genAiPer.observe(labels, (durationMs - ttftMs) / 1000 / (meter.contentCount - 1));
  }

  function collectGauges(): void {
    active.reset();
    for (const exchange of parts.live()) {
      tellFlow(exchange);
      const { client, upstream } = exchange;
      if (upstream !== undefined) active.inc(bounded('active', { client, upstream, model: modelOf(exchange) }));
    }
    upstreamUp.reset();
    for (const [upstream, isUp] of parts.health()) upstreamUp.set({ upstream }, isUp ? 1 : 0);
    connections.reset();
    for (const [upstream, counts] of parts.connections()) {
      for (const [state, count] of Object.entries(counts)) connections.inc({ upstream, state }, count);
    }
  }

  /** A store that is away says nothing: then there is no series, rather than an old one. */
  async function collectLimits(): Promise<void> {
    storeUp.set(parts.isLimitStoreUp() ? 1 : 0);
    const standings = await parts.standings().catch(() => new Map<string, Standings>());
    remaining.reset();
    configured.reset();
    for (const [client, standing] of standings) {
      for (const [name, { limit: most, remaining: left }] of Object.entries(standing)) {
        const unit = name === 'budget' ? 1e9 : 1;
        remaining.set({ client, limit: name }, left / unit);
        configured.set({ client, limit: name }, most / unit);
      }
    }
  }

  /** Nobody looks at gauges where counts are read for safety, each second: a shared store is not asked then. */
  async function read(extent: Extent): Promise<Snapshot> {
    collectGauges();
    if (extent === 'all') await collectLimits();
    return readAll(extent);
  }

  function reloaded(isSuccessful: boolean): void {
    reloadSuccessful.set(isSuccessful ? 1 : 0);
    if (isSuccessful) reloadTime.setToCurrentTime();
  }
  reloaded(true);

  return {
    reloaded,
    record(exchange) {
      const { client, endpoint, outcome = 'completed', upstream = 'none', durationMs = 0 } = exchange;
      const model = modelOf(exchange);
      requests.inc(bounded('requests', { client, upstream, model, endpoint, outcome }));
      duration.observe(bounded('duration', { upstream, endpoint, outcome }), durationMs / 1000);
      if (exchange.rejection !== undefined) rejections.inc(bounded('rejections', { client, reason: exchange.rejection }));
      tellFlow(exchange);
      if (exchange.upstream === undefined) return;
      if (exchange.meter?.fault !== undefined) meterFaults.inc({ upstream, fault: exchange.meter.fault });
      recordRivals(exchange, model);
      recordTokens(exchange, { client, upstream, model });
      recordTimes(exchange, upstream, model);
      recordGenAi(exchange, upstream, model);
    },
    upstreamClosed: (phase, seconds) => close.observe({ phase }, seconds),
    overhead: (part, seconds) => overhead.observe({ part }, seconds),
    attempt: (upstream, result) => attempts.inc({ upstream, result }),
    response: (upstream, status) => responses.inc({ upstream, status: String(status) }),
    spans: (result, count) => spans.inc({ result }, count),
    rejectedUnparsed: (reason) => rejections.inc({ client: 'anonymous', reason }),
    read,
    scrape: async (accept) => writePage(await read('all'), accept),
  };
}

function add(counter: Counter, labels: Labels, count: number): void {
  if (count > 0) counter.inc(labels, count);
}

/** Labels for model names, which come from outside: well-formed ones only, the first hundred, else `other`. */
function createModelLabel(): (model: string | undefined) => string {
  const known = new Set<string>();
  return (model) => {
    if (model === undefined || !MODEL_NAME.test(model)) return 'other';
    if (!known.has(model) && known.size >= MAX_MODELS) return 'other';
    known.add(model);
    return model;
  };
}

/** Keeps the sets of labels of each metric within bounds: what comes beyond is gathered under `other`. */
function createSeriesBound(): (metric: string, labels: Labels) => Labels {
  const seen = new Map<string, Set<string>>();
  return (metric, labels) => {
    const known = seen.get(metric) ?? new Set();
    seen.set(metric, known);
    const key = Object.values(labels).join('\0');
    if (known.has(key)) return labels;
    // Kept a little below the bound, for the gathering series themselves.
    if (known.size < MAX_SERIES - 100) {
      known.add(key);
      return labels;
    }
    return Object.fromEntries(
      Object.entries(labels).map(([name, value]) => [name, name === 'client' || name === 'model' ? 'other' : value]),
    );
  };
}

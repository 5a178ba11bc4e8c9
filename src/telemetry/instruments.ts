// Every metric of ours, a row each: its name, what it says, its buckets, its labels.
import type { Instruments } from './registry.ts';

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

const MODEL = ['upstream', 'model'];
const CALL = ['client', ...MODEL];
const GEN_AI = ['gen_ai_operation_name', 'gen_ai_provider_name', 'gen_ai_response_model'];

/** Puts them on a registry. */
export function addInstruments({ counter, gauge, histogram }: Pick<Instruments, 'counter' | 'gauge' | 'histogram'>) {
  return {
    requests: counter('sluicegate_requests_total', 'Requests ended.', ...CALL, 'endpoint', 'outcome'),
    responses: counter('sluicegate_responses_total', 'Answers of upstreams, by status.', 'upstream', 'status'),
    active: gauge('sluicegate_streams_active', 'Requests under way at an upstream.', ...CALL),
    tokens: counter('sluicegate_tokens_total', 'Tokens, written once at the end of a request.', ...CALL, 'kind', 'source'),
    details: counter('sluicegate_token_details_total', 'Tokens that are part of input or output.', ...CALL, 'kind'),
    cost: counter('sluicegate_cost_usd_total', 'What the tokens cost, by the configured prices.', ...CALL),
    unheardTokens: counter(
      'sluicegate_unheard_tokens_total',
      'Output tokens of answers that were read on after their client had left, about.',
      ...MODEL,
    ),
    rivalTokens: counter(
      'sluicegate_hedge_lost_tokens_total',
      'Tokens of answers that another upstream was faster than.',
      ...MODEL,
      'kind',
    ),
    meterFaults: counter(
      'sluicegate_meter_faults_total',
      'Answers whose metering failed; their bytes were relayed all the same.',
      'upstream',
      'fault',
    ),
    relayedTokens: counter('sluicegate_relayed_tokens_total', 'Output tokens as they flow, approximate.', ...MODEL),
    ttfb: histogram(
      'sluicegate_time_to_first_byte_seconds',
      "From a request's arrival to the upstream's first byte.",
      LATENCY_BUCKETS,
      ...MODEL,
    ),
    ttft: histogram(
      'sluicegate_time_to_first_token_seconds',
      "From a request's arrival to the first event with content.",
      LATENCY_BUCKETS,
      ...MODEL,
    ),
    perToken: histogram(
      'sluicegate_time_per_output_token_seconds',
      'Mean time per output token after the first.',
      TOKEN_TIME_BUCKETS,
      ...MODEL,
    ),
    duration: histogram(
      'sluicegate_request_duration_seconds',
      'Duration of requests.',
      DURATION_BUCKETS,
      'upstream',
      'endpoint',
      'outcome',
    ),
    close: histogram(
      'sluicegate_upstream_close_seconds',
      "From the client's going to the close of its upstream socket.",
      CLOSE_BUCKETS,
      'phase',
    ),
    overhead: histogram(
      'sluicegate_overhead_seconds',
      "Sluicegate's own time: per request until it is sent upstream, and per chunk (sampled).",
      OVERHEAD_BUCKETS,
      'part',
    ),
    bytes: counter('sluicegate_relayed_bytes_total', 'Bytes of bodies relayed.', 'upstream', 'direction'),
    events: counter('sluicegate_relayed_events_total', 'Events of streams relayed.', 'upstream'),
    rejections: counter('sluicegate_rejections_total', 'Requests refused here.', 'client', 'reason'),
    attempts: counter('sluicegate_upstream_attempts_total', 'Tries at an upstream, by result.', 'upstream', 'result'),
    connections: gauge('sluicegate_upstream_connections', 'Connections to upstreams, and calls waiting for one.', 'upstream', 'state'),
    upstreamUp: gauge('sluicegate_upstream_up', 'Whether an upstream is asked: 0 while it is put aside for its failures.', 'upstream'),
    storeUp: gauge('sluicegate_limit_store_up', 'Whether limits are counted where they should be.'),
    remaining: gauge(
      'sluicegate_limit_remaining',
      'What a client has left: requests and tokens of a minute, streams, and USD of its budget.',
      'client',
      'limit',
    ),
    configured: gauge('sluicegate_limit_configured', 'What a client may, in the same units.', 'client', 'limit'),
    genAiDuration: histogram(
      'gen_ai_client_operation_duration_seconds',
      'GenAI operation duration.',
      GEN_AI_SECONDS,
      ...GEN_AI,
      'error_type',
    ),
    genAiTokens: histogram('gen_ai_client_token_usage', 'Input and output tokens used.', GEN_AI_TOKENS, ...GEN_AI, 'gen_ai_token_type'),
    genAiFirst: histogram(
      'gen_ai_client_operation_time_to_first_chunk_seconds',
      'Time to the first chunk of a streamed answer.',
      GEN_AI_SECONDS,
      ...GEN_AI,
    ),
    genAiPer: histogram(
      'gen_ai_client_operation_time_per_output_chunk_seconds',
      'Time per output chunk after the first.',
      GEN_AI_CHUNK_SECONDS,
      ...GEN_AI,
    ),
    buildInfo: gauge('sluicegate_build_info', 'The version that runs.', 'version', 'node'),
    spans: counter('sluicegate_spans_total', 'Spans of traces: exported, or dropped because the collector did not take them.', 'result'),
    reloadSuccessful: gauge('sluicegate_config_last_reload_successful', 'Whether the last configuration was taken.'),
    reloadTime: gauge('sluicegate_config_last_reload_success_timestamp_seconds', 'When a configuration was last taken.'),
  };
}

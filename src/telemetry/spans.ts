// The spans of a request, made from its record at its end: one of the request itself, and one of each try at an upstream.
import type { Exchange } from '../exchange.ts';
import type { Metered } from '../stream/meter.ts';
import type { Trace, TracedTry } from './traces.ts';

/** A span in plain values. */
export interface Span {
  readonly spanId: string;
  readonly parentId: string | undefined;
  readonly name: string;
  readonly kind: 'server' | 'client';
  /** Milliseconds since the epoch. */
  readonly startMs: number;
  readonly endMs: number;
  readonly isError: boolean;
  readonly attributes: Attributes;
}

/** What is undefined is left out. */
export type Attributes = Record<string, string | number | boolean | undefined>;

/** Results of tries that somebody else has brought about: another one was faster, or the client left. */
const NO_FAULT = new Set(['lost', 'aborted']);

/**
 * By OpenTelemetry's conventions for HTTP and, of the tries, for GenAI; what they have no word for begins with `sluicegate.`. An upstream
 * is known by its configured name, never by its address.
 * @param epochMs when the monotonic clock was at zero
 */
export function spansOf(exchange: Exchange, trace: Trace, epochMs: number): Span[] {
  const endedAtMs = exchange.startedAtMs + (exchange.durationMs ?? 0);
  const isGenAi = isOfModel(exchange, trace);
  const winner = trace.tries.findLast(({ result, upstream }) => result === 'ok' && upstream === exchange.upstream);
  const tries = trace.tries.map((one, index): Span => {
    const isWinner = one === winner;
    const fault = faultOf(exchange, one, isWinner);
    const model = one.model ?? trace.model;
    return {
      ...{ spanId: one.spanId, parentId: trace.spanId, kind: 'client' },
      name: [exchange.operation ?? exchange.method, exchange.operation === undefined ? exchange.endpoint : model].filter(Boolean).join(' '),
      startMs: epochMs + one.startedAtMs,
      endMs: epochMs + (isWinner ? endedAtMs : (one.endedAtMs ?? endedAtMs)),
      isError: fault !== undefined && fault !== 'client_closed',
      attributes: {
        'gen_ai.operation.name': exchange.operation,
        'gen_ai.provider.name': isGenAi ? one.upstream : undefined,
        'gen_ai.request.model': isGenAi ? model : undefined,
        'gen_ai.request.stream': trace.isStream || undefined,
        'server.address': one.upstream,
        'http.request.method': exchange.method,
        'http.request.resend_count': index || undefined,
        'http.response.status_code': one.status,
        'error.type': fault,
        'sluicegate.result': one.result,
        ...(isWinner ? answerOf(exchange, one, isGenAi) : rivalOf(exchange, one)),
      },
    };
  });
  return [requestSpan(exchange, trace, epochMs, endedAtMs), ...tries];
}

function requestSpan(exchange: Exchange, trace: Trace, epochMs: number, endedAtMs: number): Span {
  const { method, endpoint, status = 0, outcome, costNanoUsd } = exchange;
  const hasRoute = endpoint !== 'other';
  const isFault = outcome !== 'completed';
  // A server's span is no error where the client's request was (HTTP conventions), or where the client left.
  const isClients = outcome === 'client_closed' || ((outcome === 'rejected' || outcome === 'upstream_error') && status < 500);
  return {
    ...{ spanId: trace.spanId, parentId: trace.parentId, kind: 'server' },
    name: hasRoute ? `${method} ${endpoint}` : method,
    startMs: epochMs + exchange.startedAtMs,
    endMs: epochMs + endedAtMs,
    isError: isFault && !isClients,
    attributes: {
      'http.request.method': method,
      'http.route': hasRoute ? endpoint : undefined,
      'http.response.status_code': exchange.status,
      'client.address': exchange.remoteAddress || undefined,
      'error.type': isFault ? outcome : undefined,
      'sluicegate.request_id': exchange.requestId,
      'sluicegate.client': exchange.client,
      'sluicegate.upstream': exchange.upstream,
      'sluicegate.model': exchange.model,
      'sluicegate.outcome': outcome,
      'sluicegate.rejection': exchange.rejection,
      'sluicegate.cause': exchange.cause,
      'sluicegate.attempts': exchange.attempts,
      'sluicegate.cost_usd': costNanoUsd === undefined ? undefined : costNanoUsd / 1e9,
    },
  };
}

/** Whether a model is asked for something: by a call with a name for that, or in a session, for which the conventions have none yet. */
function isOfModel({ operation }: Exchange, { isSession }: Trace): boolean {
  return operation !== undefined || isSession;
}

/** What a try ended as, where that is not well: its own result, or, where its answer went down, the outcome of the request. */
function faultOf({ outcome }: Exchange, { result, status }: TracedTry, isWinner: boolean): string | undefined {
  if (isWinner) return outcome === 'completed' ? undefined : outcome;
  if (result === 'ok' || result === 'lost') return undefined;
  if (result === undefined || NO_FAULT.has(result)) return outcome === 'completed' ? undefined : outcome;
  return result === 'refused' && status !== undefined ? String(status) : result;
}

/** Of the answer that went down. Times are the try's: from when it was called. */
function answerOf(exchange: Exchange, { startedAtMs: calledAtMs }: TracedTry, isGenAi: boolean): Attributes {
  const { meter, tokens, startedAtMs, ttfbMs, ttftMs } = exchange;
  const secondsFrom = (ms: number | undefined) => (ms === undefined ? undefined : (startedAtMs + ms - calledAtMs) / 1000);
  return {
    'gen_ai.response.model': isGenAi ? meter?.model : undefined,
    'gen_ai.response.time_to_first_chunk': secondsFrom(ttftMs),
    'sluicegate.time_to_first_byte': secondsFrom(ttfbMs),
    ...(isGenAi && usageOf(tokens)),
  };
}

/** An answer that another one was faster than is paid for too. */
function rivalOf({ operation, rivals }: Exchange, { upstream, result }: TracedTry): Attributes {
  const rival = result === 'lost' ? rivals.find((one) => one.upstream === upstream) : undefined;
  return rival === undefined || operation === undefined ? {} : { 'gen_ai.response.model': rival.meter.model, ...usageOf(rival.tokens) };
}

function usageOf(tokens: Metered | undefined): Attributes {
  if (tokens === undefined) return {};
  const { inputSource, outputSource } = tokens;
  return {
    'gen_ai.usage.input_tokens': inputSource && tokens.input,
    'gen_ai.usage.output_tokens': outputSource && tokens.output,
    'gen_ai.usage.cache_read.input_tokens': tokens.cachedInput || undefined,
    'gen_ai.usage.cache_write.input_tokens': tokens.cacheWrite || undefined,
    'gen_ai.usage.reasoning.output_tokens': tokens.reasoning || undefined,
    'gen_ai.usage.audio.input_tokens': tokens.audioInput || undefined,
    'gen_ai.usage.audio.output_tokens': tokens.audioOutput || undefined,
    'sluicegate.usage.source': outputSource ?? inputSource,
  };
}

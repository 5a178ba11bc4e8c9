// The way out for spans: OpenTelemetry's exporter, loaded only where there is a collector, and held so that one that is down hurts nobody.
import { randomUUID } from 'node:crypto';
import { SpanKind, SpanStatusCode, TraceFlags } from '@opentelemetry/api';
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-proto';
import { resourceFromAttributes } from '@opentelemetry/resources';
import { BatchSpanProcessor, type ReadableSpan, type SpanExporter } from '@opentelemetry/sdk-trace';
import type { Traces } from '../config.ts';
import type { Attributes, Span } from './spans.ts';

export interface Outbox {
  send(traceId: string, spans: readonly Span[]): void;
  /** Sends what is held, if that takes no more than a moment. */
  close(): Promise<void>;
}

export interface OutboxEvents {
  /** So many spans have gone out, or were given up. */
  onSpans(result: 'exported' | 'dropped', count: number): void;
  /** Told on each change; the code is the system's or HTTP's. */
  onCollector(isUp: boolean, code: string | undefined): void;
}

/** Spans on their way, at most: some 4 MB. */
const MAX_HELD_SPANS = 4096;
const MAX_BATCH_SPANS = 512;
const DELAY_MS = 2_000;
/** A process that ends waits no longer for its collector. */
const CLOSE_MS = 1_500;

const KINDS = { server: SpanKind.SERVER, client: SpanKind.CLIENT };

/** @param version of the gateway */
export function openOutbox({ endpoint, headers, service, resource: further }: Traces, version: string, events: OutboxEvents): Outbox {
  const resource = resourceFromAttributes({
    'service.name': service,
    'service.version': version,
    'service.instance.id': randomUUID(),
    ...further,
  });
  const scope = { name: 'sluicegate', version };
  let heldCount = 0;
  let isUp = true;

  function told(count: number, error: Error | undefined): void {
    heldCount -= count;
    events.onSpans(error === undefined ? 'exported' : 'dropped', count);
    if (isUp === (error === undefined)) return;
    isUp = error === undefined;
    events.onCollector(isUp, error && codeOf(error));
  }

  const processor = new BatchSpanProcessor({
    exporter: tellingExporter(new OTLPTraceExporter({ url: endpoint, headers }), told),
    // The bound is ours, which counts what it drops, and what is under way as well.
    maxQueueSize: MAX_HELD_SPANS,
    maxExportBatchSize: MAX_BATCH_SPANS,
    scheduledDelayMillis: DELAY_MS,
  });

  function toReadable(traceId: string, span: Span): ReadableSpan {
    const { parentId, startMs, endMs } = span;
    const contextOf = (spanId: string) => ({ traceId, spanId, traceFlags: TraceFlags.SAMPLED });
    const context = contextOf(span.spanId);
    return {
      ...{
        name: span.name,
        kind: KINDS[span.kind],
        attributes: given(span.attributes),
        resource,
        instrumentationScope: scope,
        ended: true,
      },
      spanContext: () => context,
      ...(parentId !== undefined && { parentSpanContext: contextOf(parentId) }),
      ...{ startTime: toHrTime(startMs), endTime: toHrTime(endMs), duration: toHrTime(endMs - startMs) },
      status: { code: span.isError ? SpanStatusCode.ERROR : SpanStatusCode.UNSET },
      ...{ links: [], events: [], droppedAttributesCount: 0, droppedEventsCount: 0, droppedLinksCount: 0 },
    };
  }

  return {
    send(traceId, spans) {
      if (heldCount + spans.length > MAX_HELD_SPANS) {
        events.onSpans('dropped', spans.length);
        return;
      }
      heldCount += spans.length;
      for (const span of spans) processor.onEnd(toReadable(traceId, span));
    },
    async close() {
      const { promise: late, resolve } = Promise.withResolvers<void>();
      const timer = setTimeout(resolve, CLOSE_MS);
      // What could not be sent has been told already.
      await Promise.race([processor.shutdown().catch(() => undefined), late]);
      clearTimeout(timer);
      if (heldCount > 0) events.onSpans('dropped', heldCount);
    },
  };
}

/** The processor tells nobody what becomes of its spans. */
function tellingExporter(exporter: SpanExporter, told: (count: number, error: Error | undefined) => void): SpanExporter {
  return {
    export: (spans, onResult) =>
      exporter.export(spans, (result) => {
        told(spans.length, result.code === 0 ? undefined : (result.error ?? new Error('not exported')));
        onResult(result);
      }),
    shutdown: () => exporter.shutdown(),
  };
}

/** A code, never a message, which may quote anything. */
function codeOf(error: Error): string {
  const { code } = error as { code?: string | number };
  return code === undefined ? error.name : String(code);
}

/** An attribute without a value would go out all the same, empty. */
function given(attributes: Attributes): Record<string, string | number | boolean> {
  const kept: Record<string, string | number | boolean> = {};
  for (const name in attributes) {
    const value = attributes[name];
    if (value !== undefined) kept[name] = value;
  }
  return kept;
}

function toHrTime(ms: number): [seconds: number, nanoseconds: number] {
  const seconds = Math.floor(ms / 1000);
  return [seconds, Math.floor((ms - seconds * 1000) * 1e6)];
}

// A collector of traces on a real socket: takes OTLP over HTTP, and reads it by the code that protobuf's own compiler made of the protocol's definition.
import { once } from 'node:events';
import { createServer, type IncomingHttpHeaders, type ServerResponse } from 'node:http';
import { createRequire } from 'node:module';
import type { AddressInfo } from 'node:net';
import type { Test } from 'tap';
import { createWaiting } from './waiting.ts';

type Value = string | number | boolean | undefined;

export interface CollectedSpan {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId: string;
  readonly name: string;
  /** The protocol's numbers: 2 is a server's, 3 a client's. */
  readonly kind: number;
  readonly startMs: number;
  readonly endMs: number;
  /** The protocol's number: 0 unset, 2 error. */
  readonly status: number;
  readonly attributes: Record<string, Value>;
  readonly resource: Record<string, Value>;
}

export interface Delivery {
  readonly path: string | undefined;
  readonly headers: IncomingHttpHeaders;
  readonly body: Buffer;
}

export interface Collector {
  readonly url: string;
  readonly deliveries: readonly Delivery[];
  readonly spans: readonly CollectedSpan[];
  /** Resolves with all spans once there are so many. */
  arrived(count: number): Promise<readonly CollectedSpan[]>;
  close(): Promise<void>;
}

interface KeyValue {
  readonly key: string;
  readonly value: {
    readonly stringValue?: string;
    readonly boolValue?: boolean;
    readonly intValue?: unknown;
    readonly doubleValue?: number;
  };
}

interface RawSpan {
  readonly traceId: Uint8Array;
  readonly spanId: Uint8Array;
  /** Absent for a root. */
  readonly parentSpanId: Uint8Array | null;
  readonly name: string;
  readonly kind: number;
  readonly startTimeUnixNano: unknown;
  readonly endTimeUnixNano: unknown;
  readonly status: { readonly code: number };
  readonly attributes: readonly KeyValue[];
}

interface RawRequest {
  readonly resourceSpans: readonly {
    readonly resource: { readonly attributes: readonly KeyValue[] };
    readonly scopeSpans: readonly { readonly spans: readonly RawSpan[] }[];
  }[];
}

const generated = createRequire(import.meta.url)('@opentelemetry/otlp-proto-exporter-base/build/src/generated/root.js');
const request: { decode(bytes: Uint8Array): RawRequest } = generated.opentelemetry.proto.collector.trace.v1.ExportTraceServiceRequest;

/** @param answer for each delivery; 200 if absent */
export async function startCollector(
  t: Test,
  answer: (response: ServerResponse) => void = (response) => void response.writeHead(200).end(),
  port = 0,
): Promise<Collector> {
  const deliveries: Delivery[] = [];
  const spans: CollectedSpan[] = [];
  const waiting = createWaiting(15_000);
  const server = createServer(async (incoming, response) => {
    const pieces: Buffer[] = [];
    for await (const piece of incoming) pieces.push(piece as Buffer);
    const body = Buffer.concat(pieces);
    deliveries.push({ path: incoming.url, headers: incoming.headers, body });
    spans.push(...readSpans(body));
    answer(response);
    waiting.changed();
  });
  server.listen(port, '127.0.0.1');
  await once(server, 'listening');
  const close = async () => {
    if (!server.listening) return;
    server.close();
    server.closeAllConnections();
    await once(server, 'close');
  };
  t.teardown(close);
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    ...{ deliveries, spans, close },
    arrived: (count) =>
      waiting.wait({
        awaited: `${count} spans`,
        seen: () => spans.map(({ name }) => name).join(', '),
        attempt: () => (spans.length >= count ? spans : undefined),
      }),
  };
}

function readSpans(body: Buffer): CollectedSpan[] {
  return request
    .decode(body)
    .resourceSpans.flatMap(({ resource, scopeSpans }) =>
      scopeSpans.flatMap((scope) => scope.spans.map((span) => toSpan(span, toRecord(resource.attributes)))),
    );
}

function toSpan(span: RawSpan, resource: Record<string, Value>): CollectedSpan {
  const hex = (bytes: Uint8Array | null) => Buffer.from(bytes ?? []).toString('hex');
  const ms = (nanoseconds: unknown) => Number(String(nanoseconds)) / 1e6;
  return {
    ...{ traceId: hex(span.traceId), spanId: hex(span.spanId), parentSpanId: hex(span.parentSpanId) },
    ...{ name: span.name, kind: span.kind, status: span.status.code },
    ...{ startMs: ms(span.startTimeUnixNano), endMs: ms(span.endTimeUnixNano) },
    ...{ attributes: toRecord(span.attributes), resource },
  };
}

function toRecord(pairs: readonly KeyValue[]): Record<string, Value> {
  return Object.fromEntries(
    pairs.map(({ key, value }) => [
      key,
      // What a message has not is on its prototype, as a default.
      Object.hasOwn(value, 'intValue')
        ? Number(String(value.intValue))
        : (Object.values({ ...value }) as Value[]).find((one) => one !== null && one !== undefined),
    ]),
  );
}

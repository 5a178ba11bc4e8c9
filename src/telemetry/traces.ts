// Traces: which requests are traced, what their upstreams are told of it (W3C Trace Context), and the spans that go out at their ends.
import { randomBytes } from 'node:crypto';
import type { Traces } from '../config.ts';
import type { Exchange } from '../exchange.ts';
import type { HeaderList } from '../upstream/headers.ts';
import type { Outbox, OutboxEvents } from './otlp.ts';
import { spansOf } from './spans.ts';

/** What a traced request keeps until its end. */
export interface Trace {
  readonly traceId: string;
  /** Of the span of the request itself. */
  readonly spanId: string;
  /** The client's span, which it is a part of; undefined for a root. */
  readonly parentId: string | undefined;
  readonly isSampled: boolean;
  readonly tries: readonly TracedTry[];
  /** What the call asks for, as far as it was read. */
  readonly model: string | undefined;
  readonly isStream: boolean;
  /** Whether it asks for a session over a WebSocket. */
  readonly isSession: boolean;
  asked(model: string | undefined, isStream: boolean): void;
  askedSession(model: string | undefined): void;
  /** A try at an upstream begins, perhaps for another model than the client's. */
  begin(upstream: string, model: string | undefined, nowMs: number): TracedTry;
}

/** One try at one upstream. */
export interface TracedTry {
  readonly spanId: string;
  readonly upstream: string;
  readonly model: string | undefined;
  readonly startedAtMs: number;
  readonly endedAtMs: number | undefined;
  readonly status: number | undefined;
  readonly result: string | undefined;
  /** The headers for its upstream, with this try as the parent of what happens there. */
  carry(headers: HeaderList): HeaderList;
  answered(status: number): void;
  /** What has become of it; an answer that goes down (`ok`) ends with its request. */
  end(result: string, nowMs: number): void;
}

export interface Tracer {
  /** Gives a request that has just arrived its trace, where it is to have one. */
  begin(exchange: Exchange, headers: NodeJS.Dict<string | string[]>): void;
  /** Sends the spans of an ended exchange. */
  record(exchange: Exchange): void;
  /** Sends what is still held, for a moment at most. */
  close(): Promise<void>;
}

/** What a valid traceparent says. */
interface Parent {
  readonly traceId: string;
  readonly parentId: string;
  readonly flags: number;
}

/** W3C Trace Context 3.2: version ff and ids of zeros only are invalid; a later version may have more behind its flags. */
const TRACEPARENT = /^(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/;
const SAMPLED = 1;
/** Level 2, 3.2.2.3.2: the trace id was made at random; it is handed on as it came. */
const RANDOM = 2;
/** The last seven bytes of a trace id are what is random in it (level 2, 3.2.2.3.2). */
const RANDOM_DIGITS = 14;

/** Loads OpenTelemetry's exporter, which costs nothing where it is not asked for. */
export async function openTraces(settings: Traces, version: string, events: OutboxEvents): Promise<Tracer> {
  const { openOutbox } = await import('./otlp.ts');
  return createTracer(settings, openOutbox(settings, version, events));
}

/** @param outbox takes the spans */
export function createTracer(settings: Traces, outbox: Outbox): Tracer {
  const isSampled = createSampler(settings);
  return {
    begin(exchange, { traceparent }) {
      const parent = typeof traceparent === 'string' ? parseTraceparent(traceparent) : undefined;
      const traceId = parent?.traceId ?? randomBytes(16).toString('hex');
      const isTaken = isSampled(traceId, parent);
      exchange.traceId = traceId;
      // What somebody else has decided not to trace goes through as it came.
      if (isTaken || parent === undefined) exchange.trace = createTrace(traceId, parent, isTaken);
    },
    record(exchange) {
      const { trace } = exchange;
      if (trace?.isSampled) outbox.send(trace.traceId, spansOf(exchange, trace, Date.now() - performance.now()));
    },
    close: outbox.close,
  };
}

export function parseTraceparent(text: string): Parent | undefined {
  const [, version, traceId = '', parentId = '', flags = '', more] = TRACEPARENT.exec(text) ?? [];
  if (version === undefined || (version === '00' && more !== undefined)) return undefined;
  return { traceId, parentId, flags: Number.parseInt(flags, 16) };
}

/** Decides by OpenTelemetry's rules. Of a trace id every sampler with the same share decides the same, so that no trace has holes. */
function createSampler({ sampler, sample }: Traces): (traceId: string, parent: Parent | undefined) => boolean {
  const [, heedsParent, rule] = /^(parentbased_)?(.*)$/.exec(sampler) ?? [];
  const threshold = (1 - sample) * 16 ** RANDOM_DIGITS;
  const ofRoot = (traceId: string) =>
    rule === 'always_on' || (rule === 'traceidratio' && sample > 0 && Number.parseInt(traceId.slice(-RANDOM_DIGITS), 16) >= threshold);
  return (traceId, parent) => (heedsParent && parent !== undefined ? (parent.flags & SAMPLED) !== 0 : ofRoot(traceId));
}

function createTrace(traceId: string, parent: Parent | undefined, isSampled: boolean): Trace {
  const tries: TracedTry[] = [];
  const flags = ((parent?.flags ?? RANDOM) & RANDOM) | (isSampled ? SAMPLED : 0);
  let model: string | undefined;
  let isStream = false;
  let isSession = false;
  return {
    ...{ traceId, spanId: createSpanId(), parentId: parent?.parentId, isSampled, tries },
    get model() {
      return model;
    },
    get isStream() {
      return isStream;
    },
    get isSession() {
      return isSession;
    },
    asked(asked, isStreamed) {
      model = asked;
      isStream = isStreamed;
    },
    askedSession(asked) {
      model = asked;
      isSession = true;
    },
    begin(upstream, rewritten, nowMs) {
      const spanId = createSpanId();
      const traceparent = `00-${traceId}-${spanId}-0${flags}`;
      const begun = createTry(spanId, upstream, rewritten, nowMs, (headers) => carry(headers, traceparent, parent !== undefined));
      if (isSampled) tries.push(begun);
      return begun;
    },
  };
}

function createTry(
  spanId: string,
  upstream: string,
  model: string | undefined,
  startedAtMs: number,
  carryAlong: TracedTry['carry'],
): TracedTry {
  const begun = {
    ...{ spanId, upstream, model, startedAtMs },
    endedAtMs: undefined as number | undefined,
    status: undefined as number | undefined,
    result: undefined as string | undefined,
    carry: carryAlong,
    answered(status: number) {
      begun.status = status;
    },
    end(result: string, nowMs: number) {
      begun.result = result;
      begun.endedAtMs = nowMs;
    },
  };
  return begun;
}

/** A tracestate belongs to the traceparent that it came with (W3C Trace Context 3.3): without a valid one it is dropped. */
function carry(headers: HeaderList, traceparent: string, keepsState: boolean): HeaderList {
  const carried: HeaderList = [];
  for (let i = 0; i < headers.length; i += 2) {
    const name = headers[i]!.toLowerCase();
    if (name !== 'traceparent' && (keepsState || name !== 'tracestate')) carried.push(headers[i]!, headers[i + 1]!);
  }
  carried.push('traceparent', traceparent);
  return carried;
}

function createSpanId(): string {
  return randomBytes(8).toString('hex');
}

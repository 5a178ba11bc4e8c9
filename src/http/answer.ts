// An upstream's answer on its way down: its head is sent as it comes, and its body handed to a relay.
import type { ServerResponse } from 'node:http';
import type { Config, Upstream } from '../config.ts';
import type { GatewayError } from '../errors.ts';
import type { Exchange, Outcome, Phase } from '../exchange.ts';
import { createBatchedMeter } from '../stream/batch.ts';
import type { Clock } from '../stream/clock.ts';
import { createInflatingMeter } from '../stream/inflate.ts';
import { createBodyMeter, createStreamMeter, type Meter } from '../stream/meter.ts';
import { createRelay, type Relay, type RelayEvents, type Source } from '../stream/relay.ts';
import { createUsageStrip } from '../stream/strip.ts';
import type { Tokenizer } from '../stream/tokens.ts';
import type { Metrics } from '../telemetry/metrics.ts';
import type { Strip } from '../upstream/ask.ts';
import { createChoiceBook } from '../upstream/dialects/choice-book.ts';
import { routeEndpoint } from '../upstream/endpoints.ts';
import { type HeaderList, headerValue, type ResponseHead, responseHead } from '../upstream/headers.ts';
import { createKeyMask } from '../upstream/mask.ts';
import type { Taker } from './asking.ts';
import type { Entrant } from './plan.ts';
import { refuse } from './refuse.ts';
import { createSink } from './sink.ts';

/** What answers need; one for all requests. */
export interface AnswerParts {
  readonly config: Config;
  readonly clock: Clock;
  readonly metrics: Metrics;
  readonly tokenizer: Tokenizer;
  /** Told of a fault of ours that ended one stream. */
  onFault(fault: unknown): void;
}

/** One request and where it goes. */
export interface Journey extends Entrant {
  readonly exchange: Exchange;
  readonly response: ServerResponse;
  /** Headers made here for whatever is answered: CORS, limits. */
  readonly ownHeaders: HeaderList;
}

/** Whose answer it is: it stands for the upstream's side, and is told how the answer ended. */
export interface AnswerOwner extends Source {
  onOutcome(outcome: Outcome): void;
}

/** An answer as it came from an upstream. */
export interface Received {
  readonly status: number;
  readonly headers: HeaderList;
  readonly upstream: Upstream;
  /** The key that went up; undefined where it was none of ours. */
  readonly key: string | undefined;
  /** When the last byte of the request had gone up. */
  readonly sentAtMs: number;
  /** What must come out of the answer again. */
  readonly strip: Strip | undefined;
}

export interface Answer {
  readonly relay: Relay;
  /** Of the upstream's body. */
  readonly taker: Taker;
}

/** Sends the head down, at once, and makes ready for the body. */
export function beginAnswer(received: Received, journey: Journey, parts: AnswerParts, owner: AnswerOwner): Answer {
  const { exchange, response, ownHeaders } = journey;
  const { status, headers, upstream, key } = received;
  const isCorsOurs = parts.config.server.cors !== undefined;
  const head = responseHead(headers, { status, upstream: upstream.name, requestId: exchange.requestId, isCorsOurs, own: ownHeaders, key });
  exchange.status = status;
  exchange.phase = 'stream';
  exchange.requestId = head.requestId;
  exchange.meter = meterFor(head, status, journey, parts.tokenizer);
  response.writeHead(status, head.headers);
  const relay = startRelay(head, received, journey, parts, owner);
  return { relay, taker: status >= 400 && key !== undefined ? createMaskedTaker(relay, key) : relay };
}

/** Sends an error made here as the whole answer. */
export function answerError({ exchange, response, ownHeaders }: Journey, error: GatewayError): void {
  exchange.status = error.row.status;
  const served = exchange.upstream === undefined ? [] : ['x-sluicegate-upstream', exchange.upstream];
  refuse(response, error, ['x-request-id', exchange.requestId, ...served, ...ownHeaders]);
}

/** Takes an answer that nobody hears any more, for its usage only. */
export function beginUnheard(status: number, headers: HeaderList, journey: Journey, tokenizer: Tokenizer, onEnd: () => void): Taker {
  const { exchange } = journey;
  const head = responseHead(headers, { status, upstream: '', requestId: exchange.requestId, isCorsOurs: false, own: [] });
  exchange.status = status;
  const meter = meterFor(head, status, journey, tokenizer);
  exchange.meter = meter;
  return { chunk: (bytes) => meter?.observe(bytes.toString('latin1')), end: onEnd };
}

/** Bodies that can be read here are metered, compressed ones by a copy; errors and binary ones are only relayed. */
function meterFor(head: ResponseHead, status: number, { request, requestTarget }: Journey, tokenizer: Tokenizer): Meter | undefined {
  if (status >= 300 || !(head.isEventStream || head.isJson)) return undefined;
  const { dialect } = routeEndpoint(request.method ?? '', requestTarget.path);
  const meter = head.isEventStream ? createBatchedMeter(createStreamMeter(dialect, tokenizer)) : createBodyMeter(dialect, tokenizer);
  return head.isEncoded ? createInflatingMeter(headerValue(head.headers, 'content-encoding') ?? '', meter) : meter;
}

function startRelay(head: ResponseHead, received: Received, journey: Journey, parts: AnswerParts, owner: AnswerOwner): Relay {
  const { exchange, response } = journey;
  const { isEventStream, isEncoded } = head;
  const { clientStallMs } = parts.config.server;
  const { firstByteMs, idleMs } = received.upstream.timeouts;
  const hasLength = headerValue(head.headers, 'content-length') !== undefined;
  const isStripped = isEventStream && !isEncoded && exchange.meter !== undefined;
  // A listener that is called once only, as `close` and `finish` call theirs, need not be one of `once`, which makes five objects.
  response.on('finish', () => relay.flushed());
  const relay = createRelay({
    sink: createSink(response, { hasLength, graceMs: clientStallMs, onDrain: () => relay.drained() }),
    source: owner,
    meter: exchange.meter,
    strip: received.strip !== undefined && isStripped ? createUsageStrip(received.strip, createChoiceBook()) : undefined,
    isEventStream,
    isEncoded,
    goodEnd: received.status >= 400 ? 'upstream_error' : 'completed',
    bounds: { firstByteMs, idleMs, clientStallMs, heartbeatMs: parts.config.sse.heartbeatMs },
    sentAtMs: received.sentAtMs,
    clock: parts.clock,
    flow: exchange,
    events: new AnswerRecord(exchange, parts, owner),
  });
  return relay;
}

/** Writes into the exchange what the relay sees. */
class AnswerRecord implements RelayEvents {
  private readonly exchange: Exchange;
  private readonly parts: AnswerParts;
  private readonly owner: AnswerOwner;

  constructor(exchange: Exchange, parts: AnswerParts, owner: AnswerOwner) {
    this.exchange = exchange;
    this.parts = parts;
    this.owner = owner;
  }

  onPhase(phase: Phase): void {
    this.exchange.phase = phase;
  }

  onFirstToken(): void {
    this.exchange.ttftMs = this.parts.clock.now() - this.exchange.startedAtMs;
  }

  onChunkOverhead(ms: number): void {
    this.parts.metrics.overhead('chunk', ms / 1000);
  }

  onFault(fault: unknown): void {
    this.parts.onFault(fault);
  }

  onOutcome(outcome: Outcome): void {
    this.owner.onOutcome(outcome);
  }
}

/** Bytes of an error answer pass through a mask, should they quote the key that was injected. */
function createMaskedTaker(relay: Relay, key: string): Taker {
  const mask = createKeyMask(key);
  return {
    chunk: (bytes) => relay.chunk(mask.next(bytes)),
    flush: () => relay.flush(),
    end() {
      relay.chunk(mask.rest());
      relay.end();
    },
  };
}

// A request's way to its upstream: read where it has to be, planned, and held against its caller's limits. What comes out may be sent.
import type { IncomingMessage } from 'node:http';
import type { Readable } from 'node:stream';
import type { Config } from '../config.ts';
import { GatewayError } from '../errors.ts';
import { reserveFor } from '../spending.ts';
import { modelOfPath } from '../upstream/router.ts';
import { applySplices, type Splice } from '../upstream/splice.ts';
import type { Journey } from './answer.ts';
import { createCall } from './call.ts';
import { holdBody, type Room } from './held.ts';
import type { Admit, Limiter } from './limits.ts';
import type { Plan, Planner } from './plan.ts';
import { openUpload } from './upload.ts';

/** What entering needs; one for all requests. */
export interface EntranceParts {
  readonly config: Config;
  readonly planner: Planner;
  readonly limiter: Limiter;
  /** For bodies that must be whole before they are sent. */
  readonly room: Room;
  /** For bodies that are kept to have their tokens counted. */
  readonly promptRoom: Room;
}

export interface EntranceEvents {
  /** The request may be sent. */
  onReady(plan: Plan): void;
  /** It may not, or no further. */
  onRefused(failure: unknown): void;
  /** The caller's budget is spent, and its running requests are to end. */
  onExhausted(): void;
}

export interface Entrance {
  begin(): void;
  /** Whether the call, read to its end, asks for a stream. */
  isStream(): boolean;
  /** Whether the body was read to its end before it was sent. */
  readonly isRead: boolean;
  /** Whether the request can be sent more than once: its body was read, or it has none. */
  readonly canRepeat: boolean;
  /** Of the body that was read. */
  readonly bodyBytes: number;
  /** What to send: the body as it comes, or, where it was read, the whole of it with these changes. */
  body(splices: readonly Splice[]): Readable | Buffer | undefined;
  /** The body will not be sent again: it stays only as long as there is room for what may have to be counted. */
  keepForCounting(): void;
  /** The request is over: what still comes is read and dropped. */
  close(): void;
}

/** A body that is longer is not kept for its tokens to be counted. */
const MAX_PROMPT_BYTES = 4 * 1024 * 1024;
const NOTHING = { tokens: 0, nanoUsd: 0 };

/** @param admit counts the request against its caller's limits */
export function createEntrance(journey: Journey, parts: EntranceParts, admit: Admit, events: EntranceEvents): Entrance {
  const { exchange, request, response } = journey;
  const { config, planner, limiter } = parts;
  const call = createCall(request);
  let held = holdBody(parts.promptRoom, MAX_PROMPT_BYTES);
  let plan: Plan | undefined;
  let isRead = false;
  let isClosed = false;
  const upload = openUpload(request, {
    flow: exchange,
    maxBytes: config.server.maxRequestBodyBytes,
    onTooLarge: () => events.onRefused(new GatewayError('request_too_large')),
    observe: call === undefined ? undefined : observe,
  });

  /** A call is read as it passes, where anything depends on it; its bytes are kept for another try, and for their tokens to be counted. */
  function observe(chunk: Buffer): void {
    if (isRead || Number.isFinite(config.sse.earlyHeadersMs) || exchange.trace !== undefined) call?.observe(chunk);
    if (!held.add(chunk) && isRead) events.onRefused(new GatewayError('overloaded'));
  }

  async function enter(): Promise<void> {
    const mustRead = upload.body !== undefined && planner.mustRead(journey, call);
    // Who waits with its body is judged without it.
    const isWeighed = call !== undefined && upload.body !== undefined && !isWaiting(request) && limiter.readsCall(journey.client);
    isRead = mustRead || isWeighed;
    if (isRead) held = holdBody(parts.room, config.server.maxRequestBodyBytes);
    else if (exchange.operation === undefined) held.letGo();
    exchange.prompt = held;
    if (!isRead) plan = takePlan();
    if (!isWeighed) await pass(Number(request.headers['content-length'] ?? 0), 0);
    if (isClosed || response.destroyed) return;
    // The client waits with its body until here: for its key and its limits to have been judged (RFC 9110 10.1.1).
    if (isWaiting(request)) response.writeContinue();
    if (plan === undefined) read(isWeighed);
    else events.onReady(plan);
  }

  function read(isWeighed: boolean): void {
    exchange.phase = 'upload';
    upload.body?.resume();
    upload.body?.once('end', () => void finish(isWeighed).catch(refuse));
  }

  async function finish(isWeighed: boolean): Promise<void> {
    if (isClosed) return;
    plan = takePlan();
    if (isWeighed) await pass(held.bytes, call?.maxOutputTokens() ?? 0);
    // Of a crowd that leaves, not all have been settled yet.
    if (!isClosed && !response.destroyed) events.onReady(plan);
  }

  function takePlan(): Plan {
    const taken = planner.plan(journey, isRead ? call : undefined);
    exchange.model = taken.route.match;
    exchange.price = taken.route.price;
    return taken;
  }

  /** Passes the caller's limits. Whoever leaves meanwhile has used nothing. */
  async function pass(promptBytes: number, maxOutputTokens: number): Promise<void> {
    const { headers, lease } = await admit(reserveFor(promptBytes, maxOutputTokens, exchange.price), events.onExhausted);
    if (isClosed) lease?.settle(NOTHING);
    else exchange.lease = lease;
    journey.ownHeaders.push(...headers);
  }

  const refuse = (failure: unknown) => {
    if (!isClosed) events.onRefused(failure);
  };

  return {
    begin: () => void enter().catch(refuse),
    isStream: () => call?.isStream() ?? false,
    get isRead() {
      return isRead;
    },
    get canRepeat() {
      return isRead || upload.body === undefined;
    },
    get bodyBytes() {
      return held.bytes;
    },
    body: (splices) => (isRead ? Buffer.concat(applySplices(held.pieces, splices)) : upload.body),
    keepForCounting: () => held.moveTo(parts.promptRoom, MAX_PROMPT_BYTES),
    close() {
      isClosed = true;
      exchange.trace?.asked(modelOfPath(journey.requestTarget.path) ?? call?.seemsFor(), call?.isStream() ?? false);
      upload.close();
    },
  };
}

/** RFC 9110 10.1.1: the client sends its body once it is told to go on. */
function isWaiting({ headers }: IncomingMessage): boolean {
  return headers.expect !== undefined;
}

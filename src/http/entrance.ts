// A request's way to its upstream: read where it has to be, planned, and held against its caller's limits. What comes out may be sent.
import type { IncomingMessage } from 'node:http';
import type { Readable } from 'node:stream';
import type { Config } from '../config.ts';
import { GatewayError } from '../errors.ts';
import { reserveFor } from '../spending.ts';
import { modelOfPath } from '../upstream/router.ts';
import { applySplices, type Splice } from '../upstream/splice.ts';
import type { Journey } from './answer.ts';
import { type Call, createCall } from './call.ts';
import { type HeldBody, holdBody, type Room } from './held.ts';
import type { Admit, Limiter } from './limits.ts';
import type { Plan, Planner } from './plan.ts';
import { openUpload, type Upload, type UploadEvents } from './upload.ts';

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
  return new RequestEntrance(journey, parts, admit, events);
}

class RequestEntrance implements Entrance, UploadEvents {
  private readonly journey: Journey;
  private readonly parts: EntranceParts;
  private readonly admit: Admit;
  private readonly events: EntranceEvents;
  private readonly call: Call | undefined;
  private readonly upload: Upload;
  private held: HeldBody;
  private plan: Plan | undefined;
  isRead = false;
  private isClosed = false;

  constructor(journey: Journey, parts: EntranceParts, admit: Admit, events: EntranceEvents) {
    const { request, exchange } = journey;
    this.journey = journey;
    this.parts = parts;
    this.admit = admit;
    this.events = events;
    this.call = createCall(request);
    this.held = holdBody(parts.promptRoom, MAX_PROMPT_BYTES);
    this.upload = openUpload(request, exchange, parts.config.server.maxRequestBodyBytes, this);
  }

  onTooLarge(): void {
    this.events.onRefused(new GatewayError('request_too_large'));
  }

  /** A call is read as it passes, where anything depends on it; its bytes are kept for another try, and for their tokens to be counted. */
  onBytes(chunk: Buffer): void {
    if (this.call === undefined) return;
    const isObserved = this.isRead || Number.isFinite(this.parts.config.sse.earlyHeadersMs) || this.journey.exchange.trace !== undefined;
    if (isObserved) this.call.observe(chunk);
    if (!this.held.add(chunk) && this.isRead) this.events.onRefused(new GatewayError('overloaded'));
  }

  private async enter(): Promise<void> {
    const { config, planner, limiter, room } = this.parts;
    const { exchange, request, response, client } = this.journey;
    const mustRead = this.upload.hasBody && planner.mustRead(this.journey, this.call);
    // Who waits with its body is judged without it.
    const isWeighed = this.call !== undefined && this.upload.hasBody && !isWaiting(request) && limiter.readsCall(client);
    this.isRead = mustRead || isWeighed;
    if (this.isRead) this.held = holdBody(room, config.server.maxRequestBodyBytes);
    else if (exchange.operation === undefined) this.held.letGo();
    exchange.prompt = this.held;
    if (!this.isRead) this.plan = this.takePlan();
    if (!isWeighed) await this.pass(Number(request.headers['content-length'] ?? 0), 0);
    if (this.isClosed || response.destroyed) return;
    // The client waits with its body until here: for its key and its limits to have been judged (RFC 9110 10.1.1).
    if (isWaiting(request)) response.writeContinue();
    if (this.plan === undefined) this.read(isWeighed);
    else this.events.onReady(this.plan);
  }

  private read(isWeighed: boolean): void {
    this.journey.exchange.phase = 'upload';
    this.upload.read(() => void this.finish(isWeighed).catch((failure) => this.refuse(failure)));
  }

  private async finish(isWeighed: boolean): Promise<void> {
    if (this.isClosed) return;
    const plan = this.takePlan();
    if (isWeighed) await this.pass(this.held.bytes, this.call?.maxOutputTokens() ?? 0);
    // Of a crowd that leaves, not all have been settled yet.
    if (!this.isClosed && !this.journey.response.destroyed) this.events.onReady(plan);
  }

  private refuse(failure: unknown): void {
    if (!this.isClosed) this.events.onRefused(failure);
  }

  private takePlan(): Plan {
    const { exchange } = this.journey;
    const taken = this.parts.planner.plan(this.journey, this.isRead ? this.call : undefined);
    exchange.model = taken.route.match;
    exchange.price = taken.route.price;
    return taken;
  }

  /** Passes the caller's limits. Whoever leaves meanwhile has used nothing. */
  private async pass(promptBytes: number, maxOutputTokens: number): Promise<void> {
    const { events } = this;
    const { exchange, ownHeaders } = this.journey;
    const { headers, lease } = await this.admit(reserveFor(promptBytes, maxOutputTokens, exchange.price), () => events.onExhausted());
    if (this.isClosed) lease?.settle(NOTHING);
    else exchange.lease = lease;
    ownHeaders.push(...headers);
  }

  begin(): void {
    this.enter().catch((failure) => this.refuse(failure));
  }

  isStream(): boolean {
    return this.call?.isStream() ?? false;
  }

  get canRepeat(): boolean {
    return this.isRead || !this.upload.hasBody;
  }

  get bodyBytes(): number {
    return this.held.bytes;
  }

  body(splices: readonly Splice[]): Readable | Buffer | undefined {
    return this.isRead ? Buffer.concat(applySplices(this.held.pieces, splices)) : this.upload.stream();
  }

  keepForCounting(): void {
    this.held.moveTo(this.parts.promptRoom, MAX_PROMPT_BYTES);
  }

  close(): void {
    this.isClosed = true;
    const { exchange, requestTarget } = this.journey;
    exchange.trace?.asked(modelOfPath(requestTarget.path) ?? this.call?.seemsFor(), this.isStream());
    this.upload.close();
  }
}

/** RFC 9110 10.1.1: the client sends its body once it is told to go on. */
function isWaiting({ headers }: IncomingMessage): boolean {
  return headers.expect !== undefined;
}

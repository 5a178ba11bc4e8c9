// What the observed probes say of the way: pure, from when each event was sent and when it arrived.
import type { Answer, Arrival, NoAnswer } from './ask.ts';
import { ACCEPT_ENCODING, OWN_HEADERS } from './ask.ts';
import type { ProbeFacts, ProbePlan } from './probe.ts';

/** Events that were sent apart and arrived together. */
export interface Buffered {
  readonly kind: 'buffered';
  /** The longest that an event was held, beyond what the one held least took. */
  readonly longestMs: number;
  /** Of the largest part that arrived at one time: about the size of the buffer. */
  readonly bytes: number;
  readonly events: number;
  readonly held: number;
  readonly of: number;
  /** Nothing arrived before all had been sent. */
  readonly isWhole: boolean;
}

export interface Compressed {
  readonly kind: 'compressed';
  readonly coding: string;
}

/** The connection ended before the answer did. */
export interface Cut {
  readonly kind: 'cut';
  /** Undefined where it was cut while events flowed. */
  readonly silenceMs: number | undefined;
  readonly afterMs: number;
  /** The status that a hop answered with in the place of the gateway. */
  readonly status: number | undefined;
}

export type Finding = Buffered | Compressed | Cut;

/** A header that is not what was sent. */
export interface HeaderChange {
  readonly name: string;
  /** Undefined where a hop put it in. */
  readonly sent: string | undefined;
  /** Undefined where a hop took it out. */
  readonly arrived: string | undefined;
}

/** What a hop leaves behind. */
export interface Traces {
  /** Of the answer, as it arrived. */
  readonly arrived: ReadonlyMap<string, string>;
  /** Headers of the request that reached the gateway and that the doctor did not send. */
  readonly added: ReadonlySet<string>;
  readonly via: string | undefined;
}

/** What was asked for, and what came. */
export interface Observed {
  readonly plan: ProbePlan;
  readonly answer: Answer;
}

/** An event that is behind by so much of the pace arrived with a later one. */
const HELD_SHARE = 0.8;
/** A network loses a packet now and then; a buffer holds most of what passes. */
const HELD_EVENTS_SHARE = 0.25;
/** Written by Node or for one connection only. */
const NOT_COMPARED = new Set(['date', 'connection', 'keep-alive', 'transfer-encoding']);

/** Whether it is the gateway's probe that came, as far as its head tells. */
export function isProbe({ status, arrivals, headers }: Answer): boolean {
  const type = headerOf(headers, 'content-type') ?? '';
  return status === 200 && (arrivals.length > 0 || /^text\/event-stream/i.test(type));
}

export function factsOf({ arrivals }: Answer): ProbeFacts | undefined {
  return arrivals.find(({ event }) => event.facts !== undefined)?.event.facts;
}

/** What the way does to events at a pace. */
export function judgePace({ plan, answer }: Observed): Finding[] {
  const findings: Finding[] = [];
  const buffered = findBuffering(answer.arrivals, plan);
  if (buffered !== undefined) findings.push(buffered);
  if (!answer.isWhole) findings.push({ kind: 'cut', silenceMs: undefined, afterMs: answer.endAtMs, status: undefined });
  const coding = headerOf(answer.headers, 'content-encoding')?.toLowerCase();
  if (coding !== undefined && coding !== 'identity') findings.push({ kind: 'compressed', coding });
  return findings;
}

/**
 * Only differences count, so that the clocks of both ends may be off by anything: the event that took least sets the measure.
 * A hop that holds each event for the same time cannot be told from a long way.
 */
export function findBuffering(arrivals: readonly Arrival[], { everyMs, events }: ProbePlan): Buffered | undefined {
  const delays = arrivals.map(({ event, atMs }) => atMs - event.atMs);
  const least = Math.min(...delays);
  const holds = delays.map((delay) => delay - least);
  const held = holds.filter((ms) => ms > everyMs * HELD_SHARE).length;
  if (arrivals.length < 2 || held < arrivals.length * HELD_EVENTS_SHARE) return undefined;
  const largest = burstsOf(arrivals, everyMs / 4).reduce((most, burst) => (burst.bytes > most.bytes ? burst : most));
  const longestMs = Math.max(...holds);
  return { kind: 'buffered', longestMs, ...largest, held, of: arrivals.length, isWhole: largest.events === events };
}

/** What arrived at one time. */
function burstsOf(arrivals: readonly Arrival[], gapMs: number): { bytes: number; events: number }[] {
  const bursts: { bytes: number; events: number }[] = [];
  let before = Number.NEGATIVE_INFINITY;
  for (const { atMs, bytes } of arrivals) {
    const current = bursts.at(-1);
    if (current === undefined || atMs - before > gapMs) bursts.push({ bytes, events: 1 });
    else Object.assign(current, { bytes: current.bytes + bytes, events: current.events + 1 });
    before = atMs;
  }
  return bursts;
}

/** What the way does to silence: whoever has lost patience has cut the answer, or given one of its own. */
export function judgeSilence(plan: ProbePlan, result: Answer | NoAnswer): Cut | undefined {
  if ('code' in result) return { kind: 'cut', silenceMs: result.atMs, afterMs: result.atMs, status: undefined };
  if (result.isWhole) return undefined;
  // Where nothing had arrived, the hop held it back, and the silence began after the last event before it.
  const lastSpokeAtMs = result.arrivals.at(-1)?.atMs ?? (plan.events - 2) * plan.everyMs;
  const isAnother = !isProbe(result);
  const afterMs = isAnother ? result.headAtMs : result.endAtMs;
  return { kind: 'cut', silenceMs: Math.max(0, afterMs - lastSpokeAtMs), afterMs, status: isAnother ? result.status : undefined };
}

/** What became of the head that the gateway sent, as it told in the stream itself. */
export function compareHeaders({ headers }: Answer, { sent }: ProbeFacts): HeaderChange[] {
  const [before, after] = [tableOf(sent), tableOf(headers)];
  const names = [...new Set([...before.keys(), ...after.keys()])].filter((name) => !NOT_COMPARED.has(name));
  return names.map((name) => ({ name, sent: before.get(name), arrived: after.get(name) })).filter(({ sent, arrived }) => sent !== arrived);
}

/** What became of the request: what hops put in, and whether they asked for another coding. */
export function compareRequest({ acceptEncoding }: ProbeFacts): HeaderChange[] {
  return acceptEncoding === ACCEPT_ENCODING ? [] : [{ name: 'accept-encoding', sent: ACCEPT_ENCODING, arrived: acceptEncoding }];
}

export function tracesOf({ headers }: Answer, facts: ProbeFacts | undefined): Traces {
  const sent = tableOf(facts?.sent ?? []);
  const arrived = new Map([...tableOf(headers)].filter(([name, value]) => sent.get(name) !== value));
  return { arrived, added: new Set(facts?.seen.filter((name) => !OWN_HEADERS.includes(name))), via: facts?.via };
}

/** Several headers of one name are one (RFC 9110 5.3). */
function tableOf(headers: readonly string[]): Map<string, string> {
  const table = new Map<string, string>();
  for (let at = 0; at + 1 < headers.length; at += 2) {
    const [name, value] = [headers[at]!, headers[at + 1]!];
    table.set(name, table.has(name) ? `${table.get(name)}, ${value}` : value);
  }
  return table;
}

export function headerOf(headers: readonly string[], name: string): string | undefined {
  return tableOf(headers).get(name);
}

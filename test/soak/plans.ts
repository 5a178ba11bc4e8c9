// What one request of the soak shall be, on both sides, and what may come of it.
import { randomBytes } from 'node:crypto';

export const DIALECTS = {
  chat: '/v1/chat/completions',
  completions: '/v1/completions',
  responses: '/v1/responses',
  anthropic: '/v1/messages',
} as const;
export type Dialect = keyof typeof DIALECTS;

/** What the upstream does, and the outcomes that a client which stays may find. */
export const FAULTS = {
  none: ['completed'],
  resetBeforeHead: ['upstream_reset'],
  finBeforeHead: ['upstream_reset'],
  malformedHead: ['upstream_reset'],
  silentHead: ['timeout_first_byte'],
  status500: ['upstream_error'],
  status429: ['upstream_error'],
  status401: ['upstream_error'],
  resetInside: ['upstream_reset'],
  resetBetween: ['upstream_reset'],
  finInside: ['upstream_reset'],
  finBetween: ['upstream_reset', 'upstream_truncated'],
  truncated: ['upstream_truncated'],
  errorEvent: ['upstream_error_event'],
  silence: ['timeout_idle'],
} as const satisfies Record<string, readonly string[]>;
export type Fault = keyof typeof FAULTS;

/** Where the client leaves; `stall`: it stays, and reads nothing. */
export const DEPARTURES = ['upload', 'headers', 'stream', 'backpressure', 'stall'] as const;
export type Departure = (typeof DEPARTURES)[number];

export interface Plan {
  /** The request's id, in the log and on both sides. */
  readonly id: string;
  readonly kind: 'stream' | 'json' | 'upload' | 'refused';
  readonly dialect: Dialect;
  readonly fault: Fault;
  readonly departure: Departure | undefined;
  /** Events of a stream as the upstream is to send them, the terminal ones last. */
  readonly events: readonly string[];
  /** Whether the client itself asks for usage; else it is the gateway that asks, and keeps the answer. */
  readonly asksUsage: boolean;
  /** After how many of them the fault or the departure comes. */
  readonly cutAfter: number;
  readonly gapMs: number;
  readonly isSlowReader: boolean;
  readonly upload: Buffer;
  readonly outcomes: readonly string[];
  /** What the upstream reports, in a chat that completes. */
  readonly tokens: { readonly input: number; readonly output: number };
}

type Random = (n: number) => number;

const pick = <T>(random: Random, from: readonly T[]): T => from[random(from.length)]!;
const FLOOD_EVENTS = 400;

/** The next request; the same seed makes the same ones. */
export function makePlan(id: string, random: Random): Plan {
  const chance = random(100);
  const kind = chance < 3 ? 'refused' : chance < 12 ? 'json' : chance < 20 ? 'upload' : 'stream';
  const dialect = pick(random, Object.keys(DIALECTS) as Dialect[]);
  const departure = kind === 'stream' || kind === 'upload' ? pickDeparture(random, kind) : undefined;
  const fault = kind === 'stream' && departure === undefined && random(100) < 40 ? pickFault(random) : 'none';
  const isFlood = departure === 'backpressure' || departure === 'stall';
  const count = isFlood ? FLOOD_EVENTS : 2 + random(40);
  const length = isFlood ? 60_000 : pick(random, [5, 40, 300, 3000]);
  const tokens = { input: 1 + random(5000), output: 1 + random(5000) };
  const texts = Array.from({ length: count }, (_, n) => `${n} ${'word '.repeat(length / 5)}`);
  const outcomes = outcomesOf(kind, fault, departure);
  return {
    id,
    kind,
    dialect,
    fault,
    departure,
    outcomes,
    tokens,
    asksUsage: random(2) === 0,
    events: kind === 'stream' ? eventsOf(dialect, texts, tokens) : [],
    cutAfter: 1 + random(count - 1),
    gapMs: isFlood ? 0 : pick(random, [0, 0, 2, 20]),
    isSlowReader: fault === 'none' && random(10) === 0,
    upload: kind === 'upload' ? randomBytes(pick(random, [10, 20_000, 700_000])) : Buffer.alloc(0),
  };
}

function pickDeparture(random: Random, kind: 'stream' | 'upload'): Departure | undefined {
  if (random(100) >= 40) return undefined;
  if (kind === 'upload') return 'upload';
  const chance = random(100);
  if (chance < 2) return 'stall';
  return chance < 6 ? 'backpressure' : chance < 40 ? 'headers' : 'stream';
}

/** Those that need their time come seldom: they would be most of what is under way. */
function pickFault(random: Random): Fault {
  const fault = pick(random, Object.keys(FAULTS) as Fault[]);
  return (fault === 'silence' || fault === 'silentHead') && random(5) > 0 ? 'none' : fault;
}

function outcomesOf(kind: Plan['kind'], fault: Fault, departure: Departure | undefined): readonly string[] {
  if (kind === 'refused') return ['rejected'];
  if (departure === 'stall') return ['client_stalled'];
  return departure === undefined ? FAULTS[fault] : ['client_closed'];
}

const named = (body: { type: string }) => `event: ${body.type}\ndata: ${JSON.stringify(body)}\n\n`;
const unnamed = (body: object) => `data: ${JSON.stringify(body)}\n\n`;

/** One stream of a dialect, whole (WIRE: chat, completions, Responses, Anthropic). */
function eventsOf(dialect: Dialect, texts: string[], { input, output }: Plan['tokens']): string[] {
  const model = 'soak';
  if (dialect === 'anthropic') {
    const deltas = texts.map((text) => named({ type: 'content_block_delta', index: 0, delta: { type: 'text_delta', text } } as never));
    const start = named({ type: 'message_start', message: { model, usage: { input_tokens: input, output_tokens: 1 } } } as never);
    const end = named({ type: 'message_delta', delta: { stop_reason: 'end_turn' }, usage: { output_tokens: output } } as never);
    return [start, ...deltas, end, named({ type: 'message_stop' })];
  }
  if (dialect === 'responses') {
    const deltas = texts.map((delta, n) => named({ type: 'response.output_text.delta', sequence_number: n + 1, delta } as never));
    const usage = { input_tokens: input, output_tokens: output, total_tokens: input + output };
    const start = named({ type: 'response.created', sequence_number: 0, response: { model, usage: null } } as never);
    return [
      start,
      ...deltas,
      named({ type: 'response.completed', sequence_number: deltas.length + 1, response: { model, usage } } as never),
    ];
  }
  const choice = (text: string) => (dialect === 'chat' ? { index: 0, delta: { content: text } } : { index: 0, text });
  const usage = { prompt_tokens: input, completion_tokens: output, total_tokens: input + output };
  return [
    ...texts.map((text) => unnamed({ model, choices: [choice(text)] })),
    unnamed({ model, choices: [{ ...choice(''), finish_reason: 'stop' }] }),
    unnamed({ model, choices: [], usage }),
    'data: [DONE]\n\n',
  ];
}

/** How many events of a plan come before the end is told by one: a cut behind it is none. */
export function contentCount({ dialect, events }: Plan): number {
  return events.length - { chat: 3, completions: 3, responses: 1, anthropic: 2 }[dialect];
}

/** The events that the client is to get. */
export function eventsForClient({ dialect, events, asksUsage }: Plan): readonly string[] {
  const isAskedFor = dialect === 'chat' || dialect === 'completions';
  return isAskedFor && !asksUsage ? events.filter((event) => !event.includes('"usage"')) : events;
}

/** What an upstream says that fails in mid-stream. */
export function errorEvent(dialect: Plan['dialect']): string {
  const error = { type: 'server_error', message: 'the model fell over' };
  const isNamed = dialect === 'anthropic' || dialect === 'responses';
  return isNamed ? `event: error\ndata: ${JSON.stringify({ type: 'error', error })}\n\n` : `data: ${JSON.stringify({ error })}\n\n`;
}

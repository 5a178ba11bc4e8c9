// What the probe says: which events are sent when, and how they are written. The gateway and the doctor have it in common.

/** Where the probe is, behind whatever stands for the gateway's origin. */
export const PROBE_PATH = '/v1/sluicegate/probe';

/** What a probe is asked to send. */
export interface ProbePlan {
  /** Events of about 330 bytes, which is what a token takes in a chat stream. */
  readonly events: number;
  /** Between two events. */
  readonly everyMs: number;
  /** Before the last event, with nothing at all sent meanwhile, no heartbeat either. */
  readonly silenceMs: number;
  /** Told again in the first event: an answer out of somebody's cache has another one. */
  readonly nonce: string;
}

/** A probe is bounded, so that it can hold nothing for long: at most 100 s of events, and a silence that is longer than any common timeout. */
export const PROBE_BOUNDS = { events: [1, 100], everyMs: [10, 1000], silenceMs: [0, 600_000] } as const;
const DEFAULTS = { events: 30, everyMs: 100, silenceMs: 0 };

/** What the first event tells besides its time. */
export interface ProbeFacts {
  readonly nonce: string;
  /** The head as the gateway sent it: names in lower case and values, flat. */
  readonly sent: readonly string[];
  /** What reached the gateway of the request: names only, since hops write secrets into values. */
  readonly seen: readonly string[];
  readonly httpVersion: string;
  /** `via` and `accept-encoding` as they arrived. */
  readonly via: string | undefined;
  readonly acceptEncoding: string | undefined;
  /** How long real streams are silent at most; undefined where no heart beats. */
  readonly heartbeatMs: number | undefined;
  readonly earlyHeadersMs: number | undefined;
  /** How long a model may take before its first byte. */
  readonly firstByteMs: number | undefined;
}

/** One event of the probe. */
export interface ProbeEvent {
  readonly n: number;
  /** Milliseconds since the first one, on the gateway's monotonic clock. */
  readonly atMs: number;
  readonly facts?: ProbeFacts;
  readonly last?: true;
}

/** Compresses about as well as the chunks of a chat stream do. */
const PADDING = `chatcmpl-${'0123456789abcdef'.repeat(2)} chat.completion.chunk choices delta content finish_reason null `.repeat(2);

/**
 * Reads a plan from a query, with defaults for what it leaves out.
 * @returns undefined where it has anything else, or is out of bounds
 */
export function readPlan(query: string): ProbePlan | undefined {
  const given = new URLSearchParams(query);
  const plan = { ...DEFAULTS, nonce: given.get('nonce') ?? '' };
  if (!/^[\w-]{0,64}$/.test(plan.nonce)) return undefined;
  given.delete('nonce');
  for (const [name, text] of given) {
    if (!isBounded(name)) return undefined;
    const [least, most] = PROBE_BOUNDS[name];
    const value = Number(text);
    if (!/^\d{1,6}$/.test(text) || value < least || value > most) return undefined;
    plan[name] = value;
  }
  return plan;
}

function isBounded(name: string): name is keyof typeof PROBE_BOUNDS {
  return Object.hasOwn(PROBE_BOUNDS, name);
}

/** The query that asks for a plan. */
export function planQuery({ events, everyMs, silenceMs, nonce }: ProbePlan): string {
  return `events=${events}&everyMs=${everyMs}&silenceMs=${silenceMs}&nonce=${nonce}`;
}

/** The longest that a plan can take. */
export function planMs({ events, everyMs, silenceMs }: ProbePlan): number {
  return events * everyMs + silenceMs;
}

/** How long the gateway waits before event `n`; the last one comes after the silence. */
export function pauseBefore(n: number, { events, everyMs, silenceMs }: ProbePlan): number {
  return n === events - 1 && silenceMs > 0 ? silenceMs : everyMs;
}

/** An event as it goes down; all of it is ASCII, so that characters are bytes. */
export function formatEvent(event: ProbeEvent): string {
  const text = JSON.stringify({ ...event, padding: PADDING });
  return `data: ${text.replace(/[^ -~]/g, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`)}\n\n`;
}

/** The event in the text of one, or undefined where it is none of ours: a comment, or what a hop put in. */
export function parseEvent(text: string): ProbeEvent | undefined {
  if (!text.startsWith('data: {')) return undefined;
  try {
    const event: Partial<ProbeEvent> = JSON.parse(text.slice('data: '.length));
    return typeof event.n === 'number' && typeof event.atMs === 'number' ? (event as ProbeEvent) : undefined;
  } catch {
    return undefined;
  }
}

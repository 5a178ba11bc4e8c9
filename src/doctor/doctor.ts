// The doctor: asks for two probes, one at a pace and one with a silence, and makes a diagnosis of what came.
import { randomBytes } from 'node:crypto';
import { type Answer, type Asking, askProbe, type NoAnswer, probeUrl } from './ask.ts';
import { type Hop, recognise } from './hops.ts';
import { PROBE_BOUNDS, type ProbeFacts, type ProbePlan } from './probe.ts';
import { explainAnswer, explainNoAnswer, type Trouble } from './trouble.ts';
import {
  compareHeaders,
  compareRequest,
  type Finding,
  factsOf,
  type HeaderChange,
  isProbe,
  judgePace,
  judgeSilence,
  tracesOf,
} from './verdict.ts';

export interface DoctorOptions {
  readonly base: URL;
  readonly key: string | undefined;
  /** Undefined: as long as real streams are silent; 0: none. */
  readonly silenceMs: number | undefined;
  readonly version: string;
  /** Told what is about to be waited for. */
  onStep(step: string): void;
}

/** What was found; without findings it streams. */
export interface Diagnosis {
  readonly url: string;
  readonly findings: readonly Finding[];
  readonly hops: readonly Hop[];
  /** Of the answer, then of the request. */
  readonly changes: readonly HeaderChange[];
  readonly requestChanges: readonly HeaderChange[];
  readonly facts: ProbeFacts;
  /** From the request to the first event: the way there and back, and what hops take for themselves. */
  readonly firstEventMs: number;
  readonly events: number;
  /** The silence that was tried. */
  readonly silenceMs: number;
}

/** Real streams are never silent for longer than the heartbeat; a little more is asked for. */
const BEYOND_HEARTBEAT_MS = 2_000;
/** Where no heart beats: what most hops have as their default, and a little more. */
const COMMON_TIMEOUT_MS = 65_000;
const PACE = { events: 30, everyMs: 100, silenceMs: 0 };
const SILENCE = { events: 3, everyMs: 100 };

/** Examines the way to a gateway. */
export async function examine(options: DoctorOptions): Promise<Diagnosis | Trouble> {
  const { base, key, version, onStep } = options;
  const nonce = randomBytes(9).toString('base64url');
  const pace: ProbePlan = { ...PACE, nonce };
  const circumstances = { base, plan: pace, hasKey: key !== undefined };
  const ask = (plan: ProbePlan, credential: Asking['credential']) =>
    askProbe({ base, plan, credential, userAgent: `sluicegate-doctor/${version}` });

  onStep(`${PACE.events} events, one every ${PACE.everyMs} ms`);
  let credential: Asking['credential'] = key === undefined ? undefined : ['authorization', `Bearer ${key}`];
  let answer = await ask(pace, credential);
  if (key !== undefined && isRefusedKey(answer)) {
    // Where a client's own credential goes upstream (auth: passthrough), its Sluicegate key has a header of its own.
    credential = ['x-sluicegate-key', key];
    const second = await ask(pace, credential);
    if (!isRefusedKey(second)) answer = second;
  }
  if ('code' in answer) return explainNoAnswer(answer, circumstances);
  if (!isProbe(answer)) return explainAnswer(answer, circumstances);
  const facts = factsOf(answer);
  if (facts === undefined)
    return answer.isWhole || answer.cause === undefined ? explainAnswer(answer, circumstances) : explainEarlyCut(answer);
  if (facts.nonce !== nonce) return CACHED;

  const silenceMs = Math.min(options.silenceMs ?? defaultSilence(facts), PROBE_BOUNDS.silenceMs[1]);
  const findings = judgePace({ plan: pace, answer });
  if (silenceMs > 0 && !findings.some(({ kind }) => kind === 'cut')) {
    onStep(`${formatSeconds(silenceMs)} of silence`);
    const plan: ProbePlan = { ...SILENCE, silenceMs, nonce };
    const cut = judgeSilence(plan, await ask(plan, credential));
    if (cut !== undefined) findings.push(cut);
  }
  return {
    url: `${probeUrl(base, pace).origin}${probeUrl(base, pace).pathname.replace('/sluicegate/probe', '')}`,
    ...{ findings, facts, silenceMs, events: answer.arrivals.length, firstEventMs: answer.arrivals[0]?.atMs ?? 0 },
    hops: recognise(tracesOf(answer, facts)),
    changes: compareHeaders(answer, facts),
    requestChanges: compareRequest(facts),
  };
}

const CACHED: Trouble = {
  kind: 'noProbe',
  what: 'the answer came out of a cache on the way',
  advice: 'Switch caching off for /v1/: a cached answer is another caller’s.',
};

function explainEarlyCut({ endAtMs }: Answer): Trouble {
  return {
    kind: 'unreachable',
    what: `the connection was cut after ${formatSeconds(endAtMs)}, before the first event had come`,
    advice: 'A hop holds the answer back and gives up, or the gateway was stopped. Its log tells which.',
  };
}

function isRefusedKey(answer: Answer | NoAnswer): boolean {
  return !('code' in answer) && answer.status === 401;
}

function defaultSilence({ heartbeatMs }: ProbeFacts): number {
  return Math.min(heartbeatMs === undefined ? COMMON_TIMEOUT_MS : heartbeatMs + BEYOND_HEARTBEAT_MS, COMMON_TIMEOUT_MS);
}

/** As people say it: `340 ms`, `2.1 s`, `65 s`. */
export function formatSeconds(ms: number): string {
  if (Math.round(ms) < 1000) return `${Math.round(ms)} ms`;
  return ms < 10_000 ? `${(ms / 1000).toFixed(1).replace(/\.0$/, '')} s` : `${Math.round(ms / 1000)} s`;
}

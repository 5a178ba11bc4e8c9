// Asks for one probe as an SDK asks for a stream, and notes what came of it, and when.
import { type IncomingMessage, request as requestHttp } from 'node:http';
import { request as requestHttps } from 'node:https';
import type { Readable } from 'node:stream';
import { constants, createBrotliDecompress, createGunzip, createInflate } from 'node:zlib';
import { PROBE_PATH, type ProbeEvent, type ProbePlan, parseEvent, planMs, planQuery } from './probe.ts';

/** An event, when it arrived and how long it is. */
export interface Arrival {
  readonly event: ProbeEvent;
  /** Since the request began, on the doctor's monotonic clock. */
  readonly atMs: number;
  readonly bytes: number;
}

/** An answer, whatever it is. */
export interface Answer {
  readonly status: number;
  readonly httpVersion: string;
  /** Names in lower case and values, flat. */
  readonly headers: readonly string[];
  readonly headAtMs: number;
  readonly arrivals: readonly Arrival[];
  /** Whether the probe's last event came. */
  readonly isWhole: boolean;
  readonly endAtMs: number;
  /** How the connection ended early, as a code; undefined where it ended properly. */
  readonly cause: string | undefined;
  /** The beginning of the body, decoded. */
  readonly text: string;
}

/** No answer at all. */
export interface NoAnswer {
  readonly code: string;
  readonly message: string;
  readonly atMs: number;
}

export interface Asking {
  readonly base: URL;
  readonly plan: ProbePlan;
  /** The header that the client's key goes in, and the key. */
  readonly credential: readonly [name: string, key: string] | undefined;
  readonly userAgent: string;
}

/** What the doctor sends itself: anything else that reaches the gateway was put in on the way. */
export const OWN_HEADERS = ['host', 'connection', 'accept', 'accept-encoding', 'user-agent', 'authorization', 'x-sluicegate-key'];
/** Node's `fetch` and httpx offer these, and so the official SDKs do: what compresses for them must compress for the doctor. */
export const ACCEPT_ENCODING = 'gzip, deflate, br';
/** Beyond what the plan takes, for the way and for whoever is slow. */
const PATIENCE_MS = 20_000;
const MAX_TEXT = 2048;
/** The probe is less than 64 KiB; a page that never ends is not read to its end. */
const MAX_BYTES = 256 * 1024;

/** The URL of the probe that belongs to an API's base URL, given with or without `/v1`, or to one of its endpoints. */
export function probeUrl(base: URL, plan: ProbePlan): URL {
  const prefix = base.pathname.replace(/\/v1(?:\/.*)?$/, '').replace(/\/+$/, '');
  return new URL(`${prefix}${PROBE_PATH}?${planQuery(plan)}`, base);
}

/** Resolves when the answer is over, or none will come. */
export function askProbe({ base, plan, credential, userAgent }: Asking): Promise<Answer | NoAnswer> {
  const url = probeUrl(base, plan);
  const startedAtMs = performance.now();
  const sinceStart = () => performance.now() - startedAtMs;
  const headers = { accept: 'application/json', 'accept-encoding': ACCEPT_ENCODING, 'user-agent': userAgent };
  const own = credential === undefined ? {} : { [credential[0]]: credential[1] };
  const send = url.protocol === 'https:' ? requestHttps : requestHttp;

  return new Promise((resolve) => {
    const request = send(url, { headers: { ...headers, ...own }, agent: false });
    const timer = setTimeout(
      () => request.destroy(Object.assign(new Error('nothing came'), { code: 'TIMEOUT' })),
      planMs(plan) + PATIENCE_MS,
    );
    const finish = (result: Answer | NoAnswer) => {
      clearTimeout(timer);
      resolve(result);
      request.destroy();
    };
    request.on('error', (error: NodeJS.ErrnoException) => {
      finish({ code: error.code ?? 'UNKNOWN', message: error.message, atMs: sinceStart() });
    });
    request.on('response', (response) => void readAnswer(response, sinceStart).then(finish));
    request.end();
  });
}

async function readAnswer(response: IncomingMessage, sinceStart: () => number): Promise<Answer> {
  const headAtMs = sinceStart();
  const arrivals: Arrival[] = [];
  let [text, rest, cause, bytes]: [string, string, string | undefined, number] = ['', '', undefined, 0];
  try {
    for await (const chunk of decode(response)) {
      const atMs = sinceStart();
      const piece = (chunk as Buffer).toString('latin1');
      bytes += piece.length;
      if (text.length < MAX_TEXT) text += piece.slice(0, MAX_TEXT - text.length);
      const events = (rest + piece).split(/\r?\n\r?\n/);
      rest = events.pop() ?? '';
      for (const of of events) {
        const event = parseEvent(of);
        if (event !== undefined) arrivals.push({ event, atMs, bytes: of.length + 2 });
      }
      if (bytes > MAX_BYTES) break;
    }
  } catch (error) {
    cause = (error as NodeJS.ErrnoException).code ?? 'UNKNOWN';
  }
  return {
    status: response.statusCode ?? 0,
    httpVersion: response.httpVersion,
    headers: response.rawHeaders.map((part, at) => (at % 2 === 0 ? part.toLowerCase() : part)),
    ...{ headAtMs, arrivals, text, cause },
    isWhole: arrivals.at(-1)?.event.last === true,
    endAtMs: sinceStart(),
  };
}

/** Undone as SDKs undo it: what a compressor has sent is seen at once. */
function decode(response: IncomingMessage): Readable {
  const coding = response.headers['content-encoding']?.trim().toLowerCase();
  const undo = createDecoder(coding);
  if (undo === undefined) return response;
  response.on('error', (error) => undo.destroy(error));
  return response.pipe(undo);
}

function createDecoder(coding: string | undefined) {
  if (coding === 'br') return createBrotliDecompress();
  const options = { flush: constants.Z_SYNC_FLUSH };
  if (coding === 'gzip' || coding === 'x-gzip') return createGunzip(options);
  return coding === 'deflate' ? createInflate(options) : undefined;
}

// The soak's clients: each makes the call of a plan, behaves as planned, and judges what it got.
import { setTimeout } from 'node:timers/promises';
import { connect, type IncompleteError, type WireClient } from '../support/wire.ts';
import { DIALECTS, errorEvent, eventsForClient, type Plan } from './plans.ts';

export interface Call {
  readonly plan: Plan;
  readonly port: number;
  readonly key: string;
  /** Resolves when the upstream has the request. */
  readonly arrived: Promise<void>;
  /** The client leaves now; performance.now(). */
  onLeave(atMs: number): void;
}

/** What a client got of its body, and whether its end was said to be one. */
export interface Got {
  readonly status: number;
  readonly body: Buffer;
  readonly isComplete: boolean;
}

/** Longer than every bound that the gateway has been given. */
const WAIT_MS = 60_000;

/** Makes the call; undefined where the client was to leave, or found nobody. */
export async function makeCall(call: Call): Promise<Got | undefined> {
  const client = await connect(call.port, '127.0.0.1', WAIT_MS);
  try {
    return await behave(client, call);
  } finally {
    client.destroy();
  }
}

async function behave(client: WireClient, call: Call): Promise<Got | undefined> {
  const { plan } = call;
  const headers = { 'x-request-id': plan.id, authorization: `Bearer ${call.key}`, 'content-type': 'application/json' };
  if (plan.departure === 'upload') {
    client.request({
      method: 'POST',
      target: '/v1/files',
      headers: { ...headers, 'content-length': String(plan.upload.length + 10) },
      body: plan.upload,
    });
    await call.arrived;
    return leave(client, call);
  }
  if (plan.departure === 'backpressure' || plan.departure === 'stall') client.pause();
  client.request({
    method: 'POST',
    target: targetOf(plan),
    headers,
    body: plan.kind === 'upload' ? plan.upload : bodyOf(plan),
  });
  if (plan.departure === undefined) return read(client, plan);
  await call.arrived;
  if (plan.departure === 'stream') await client.until('\n\n');
  // So long that the kernel's buffers are full, and for a stall that the gateway has lost its patience.
  if (plan.departure === 'backpressure') await setTimeout(1000);
  if (plan.departure === 'stall') await setTimeout(8000);
  return leave(client, call);
}

function bodyOf({ kind, dialect, asksUsage }: Plan): string {
  const hasOption = kind === 'stream' && asksUsage && (dialect === 'chat' || dialect === 'completions');
  return JSON.stringify({ model: 'soak', stream: true, ...(hasOption && { stream_options: { include_usage: true } }) });
}

function targetOf({ kind, dialect }: Plan): string {
  if (kind === 'refused') return '/v1/../secrets';
  if (kind === 'upload') return '/v1/files';
  return kind === 'json' ? '/v1/embeddings' : DIALECTS[dialect];
}

/** Half of them politely. */
function leave(client: WireClient, { plan, onLeave }: Call): undefined {
  onLeave(performance.now());
  if (plan.cutAfter % 2 === 0) client.reset();
  else client.destroy();
}

async function read(client: WireClient, plan: Plan): Promise<Got> {
  const { status } = await client.head();
  for (let n = 0; plan.isSlowReader && n < 5; n++) {
    client.pause();
    await setTimeout(50);
    client.resume();
  }
  try {
    return { status, body: await client.body(), isComplete: true };
  } catch (error) {
    const { code, received } = error as IncompleteError;
    if (code !== 'incomplete') throw error;
    return { status, body: received, isComplete: false };
  }
}

const ERROR_EVENT = /^(?:event: error\n)?data: \{(?:"type":"error"|"error")[^\n]*$/;

/** What is wrong with what a client of an event stream got, if anything: it is a prefix of what was sent, then at most one error event; heartbeats apart. */
export function faultOfStream({ body, isComplete }: Got, plan: Plan): string | undefined {
  const parts = body
    .toString('latin1')
    .split('\n\n')
    .filter((part) => part !== ':');
  const sent = eventsForClient(plan).map((event) => event.slice(0, -2));
  const rest = parts.pop() ?? '';
  const foreign = parts.findIndex((part, n) => part !== sent[n]);
  const isErrorLast = foreign >= 0 && foreign === parts.length - 1 && ERROR_EVENT.test(parts[foreign] ?? '');
  if (foreign >= 0 && !isErrorLast) return `event ${foreign} is not what was sent: ${JSON.stringify(parts[foreign]?.slice(0, 200))}`;
  // A body can be cut between the two line feeds of a blank line as well.
  const mayFollow = [`${sent[parts.length]}\n\n`, plan.fault === 'errorEvent' ? errorEvent(plan.dialect) : ''];
  if (rest !== '' && (isErrorLast || !mayFollow.some((event) => event.startsWith(rest))))
    return `after ${parts.length} events comes ${JSON.stringify(rest.slice(0, 200))}`;
  const isWhole = parts.length === sent.length && foreign < 0;
  if (isComplete && !isWhole && plan.fault !== 'errorEvent') return `a proper end after ${parts.length} of ${sent.length} events`;
  if (!isComplete && isWhole) return 'whole, and yet cut';
  return undefined;
}

// `sluicegate top`: the live page in a terminal, once a second; one look where nobody watches.
import { once } from 'node:events';
import type { ReadStream, WriteStream } from 'node:tty';
import type { View } from '../telemetry/view.ts';
import { drawScreen, formatSpan } from './screen.ts';

export interface TopOptions {
  /** Of an ops listener; `http://` may be left out. */
  readonly url: string;
  readonly token: string | undefined;
  readonly isOnce: boolean;
  /** Aborted when the process is told to end. */
  readonly ended: AbortSignal;
}

/** Where it is shown, and who may press a key. */
export interface Terminal {
  readonly input: ReadStream;
  readonly output: WriteStream;
  readonly errors: WriteStream;
}

const LOOK_MS = 1_000;
const ANSWER_MS = 5_000;
/** Another screen than the one with the person's own lines, and no cursor on it; and back. */
const ENTER = '\x1b[?1049h\x1b[?25l';
const LEAVE = '\x1b[?25h\x1b[?1049l';
const HOME = '\x1b[H';
const TO_END_OF_LINE = '\x1b[K';
const TO_END_OF_SCREEN = '\x1b[J';
/** q, Ctrl-C and Ctrl-D, as a raw terminal sends them. */
const QUIT = ['q', 'Q', '\x03', '\x04'];

/** Shows what a gateway is doing. @returns whether it could be shown; if not, why has been said */
export async function runTop({ url, token, isOnce, ended }: TopOptions, { input, output, errors }: Terminal): Promise<boolean> {
  const base = baseOf(url);
  if (base === undefined) return complain(errors, `"${url}" is no URL of an ops listener, such as http://127.0.0.1:9464`);
  const look = () => fetchView(base, token);
  let view: View;
  try {
    view = await look();
  } catch (failure) {
    return complain(errors, (failure as Error).message);
  }
  if (isOnce || !output.isTTY) {
    output.write(
      `${drawScreen(view, { columns: output.columns ?? Number.POSITIVE_INFINITY, rows: Number.POSITIVE_INFINITY }).join('\n')}\n`,
    );
  } else {
    await watch(view, look, ended, { input, output });
  }
  return true;
}

function complain(errors: WriteStream, message: string): false {
  errors.write(`sluicegate top: ${message}\n`);
  return false;
}

/** @returns undefined where it is no URL */
function baseOf(url: string): string | undefined {
  const whole = /^https?:\/\//.test(url) ? url : `http://${url}`;
  return URL.canParse(whole) ? whole.replace(/\/*$/, '') : undefined;
}

/** @throws Error with what a person can do about it */
async function fetchView(base: string, token: string | undefined): Promise<View> {
  const headers: Record<string, string> = token === undefined ? {} : { authorization: `Bearer ${token}` };
  let response: Response;
  try {
    response = await fetch(`${base}/api/streams`, { headers, signal: AbortSignal.timeout(ANSWER_MS) });
  } catch (failure) {
    throw new Error(unreached(base, failure as Error));
  }
  if (response.status === 401) {
    const what = token === undefined ? 'asks for its ops token' : 'does not take this token';
    throw new Error(`${base} ${what}: give the one in ops.token with --token, or in SLUICEGATE_OPS_TOKEN`);
  }
  const body = (await response.json().catch(() => undefined)) as (Partial<View> & { error?: { message?: string } }) | undefined;
  if (!response.ok)
    throw new Error(`${base} answered ${response.status}: ${body?.error?.message ?? 'is that the ops listener (ops.listen)?'}`);
  if (!Array.isArray(body?.streams)) throw new Error(`${base} does not answer like the ops listener of Sluicegate (ops.listen)`);
  return body as View;
}

function unreached(base: string, { name, cause }: Error): string {
  if (name === 'TimeoutError') return `${base} has not answered within ${ANSWER_MS / 1000} s`;
  const { code = name } = (cause ?? {}) as { code?: string };
  if (code === 'ECONNREFUSED') return `nothing listens at ${base} (${code}): does the gateway run, and is that its ops.listen?`;
  return `${base} cannot be reached (${code})`;
}

/** Until a key or a signal ends it, whatever becomes of the gateway; the terminal is left as it was. */
async function watch(
  first: View,
  look: () => Promise<View>,
  ended: AbortSignal,
  { input, output }: Omit<Terminal, 'errors'>,
): Promise<void> {
  const isOver = new AbortController();
  const end = () => isOver.abort();
  let view = first;
  let seenAtMs = performance.now();
  let trouble: string | undefined;

  function draw(): void {
    const age = `${trouble}; the figures are ${formatSpan(performance.now() - seenAtMs)} old`;
    const room = { columns: output.columns || 80, rows: (output.rows || 24) - 1 };
    const lines = drawScreen(view, room, trouble === undefined ? undefined : age);
    // Written over what was there, which flickers less than an empty screen in between.
    output.write(`${HOME}${[...lines, 'q ends'].map((line) => line + TO_END_OF_LINE).join('\r\n')}${TO_END_OF_SCREEN}`);
  }
  const onKey = (keys: Buffer) => QUIT.some((key) => keys.includes(key)) && end();

  ended.addEventListener('abort', end);
  input.on('data', onKey).once('end', end);
  output.on('resize', draw).once('error', end);
  if (input.isTTY) input.setRawMode(true);
  output.write(ENTER);
  try {
    draw();
    while (!isOver.signal.aborted) {
      await pause(isOver.signal);
      if (isOver.signal.aborted) break;
      try {
        view = await look();
        seenAtMs = performance.now();
        trouble = undefined;
      } catch (failure) {
        trouble = (failure as Error).message;
      }
      draw();
    }
  } finally {
    if (input.isTTY) input.setRawMode(false);
    input.off('data', onKey).pause();
    output.off('resize', draw);
    output.write(LEAVE);
  }
}

/** Until the next look is due, or none is wanted. */
async function pause(over: AbortSignal): Promise<void> {
  await once(over, 'abort', { signal: AbortSignal.timeout(LOOK_MS) }).catch(() => undefined);
}

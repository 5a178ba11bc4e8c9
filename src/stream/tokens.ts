// Counts tokens in a worker thread: loading a vocabulary takes 240 ms, which no stream shall wait for.
import { Worker } from 'node:worker_threads';

/** Beyond so much text waiting, counts are estimates: a queue that only grows would be a leak. */
const MAX_WAITING_CHARS = 4_194_304;
const MAX_TEXT_CHARS = 1_048_576;
/**
 * A longer body is images for the most part, as no model reads so much text: a figure made from its bytes would be wrong many
 * times over, so there is none.
 */
const MAX_PROMPT_BYTES = 4_194_304;
const MAX_WAITING_PROMPT_BYTES = 33_554_432;

export type Encoding = 'o200k_base' | 'cl100k_base';

export interface Tokenizer {
  /** Tokens of `text` for the model, as near as OpenAI's encodings come. Never rejects: without a worker it is an estimate. */
  count(model: string | undefined, text: string): Promise<number>;
  /**
   * Tokens that the prompt in a request's JSON `body` is billed as; undefined where it cannot be read or is too long. Never rejects.
   * The bytes are given away: where they fill their memory they go to the worker uncopied, and are gone here.
   * @param model names the encoding; the body's own model where it is undefined
   * @param isChat whether the endpoint makes messages of its input
   */
  countPrompt(model: string | undefined, body: Uint8Array, isChat: boolean): Promise<number | undefined>;
  /** Tokens of the output in the JSON `body` of an answer, likewise. */
  countAnswer(model: string | undefined, body: Uint8Array): Promise<number | undefined>;
  /** Stops the worker; what still waits is estimated. */
  close(): Promise<void>;
}

export type CountRequest = { id: number; model: string | undefined } & (
  | { kind: 'text'; text: string }
  | { kind: 'prompt'; body: Uint8Array<ArrayBuffer>; isChat: boolean }
  | { kind: 'answer'; body: Uint8Array<ArrayBuffer> }
);

export interface CountReply {
  id: number;
  /** Undefined where it could not be counted. */
  tokens: number | undefined;
}

interface Waiting {
  chars: number;
  promptBytes: number;
  resolve(tokens: number | undefined): void;
}

/** `worker` names another file to run, for tests. The worker starts with the first count and keeps the process alive only while it counts. */
export function createTokenizer(worker = workerUrl()): Tokenizer {
  const waiting = new Map<number, Waiting>();
  let thread: Worker | undefined;
  let waitingChars = 0;
  let waitingPromptBytes = 0;
  let lastId = 0;

  function start(): Worker {
    // Neither the process's flags nor its environment, where keys are, are the worker's business.
    const started = new Worker(worker, { name: 'tokenizer', execArgv: [], env: {} });
    started.on('message', (reply: CountReply) => settle(reply.id, reply.tokens));
    started.on('error', () => lose(started));
    started.on('exit', () => lose(started));
    return started;
  }

  function settle(id: number, tokens: number | undefined): void {
    const request = waiting.get(id);
    if (request === undefined) return;
    waiting.delete(id);
    waitingChars -= request.chars;
    waitingPromptBytes -= request.promptBytes;
    if (waiting.size === 0) thread?.unref();
    request.resolve(tokens);
  }

  /** The next count starts another one. */
  function lose(lost: Worker): void {
    if (thread !== lost) return;
    thread = undefined;
    for (const id of [...waiting.keys()]) settle(id, undefined);
  }

  /** Undefined where there is no thread to be had, or it cannot count this. */
  async function ask(request: CountRequest): Promise<number | undefined> {
    const isText = request.kind === 'text';
    const chars = isText ? request.text.length : 0;
    const promptBytes = isText ? 0 : request.body.length;
    try {
      thread ??= start();
      thread.ref();
      thread.postMessage(request, isText ? [] : [request.body.buffer]);
    } catch {
      if (waiting.size === 0) thread?.unref();
      return undefined;
    }
    waitingChars += chars;
    waitingPromptBytes += promptBytes;
    return await new Promise((resolve) => waiting.set(request.id, { chars, promptBytes, resolve }));
  }

  function hasRoomFor({ length }: Uint8Array): boolean {
    return length > 0 && length <= MAX_PROMPT_BYTES && waitingPromptBytes + length <= MAX_WAITING_PROMPT_BYTES;
  }

  return {
    async count(model, text) {
      if (text === '') return 0;
      if (text.length > MAX_TEXT_CHARS || waitingChars + text.length > MAX_WAITING_CHARS) return estimateTokens(text);
      return (await ask({ id: ++lastId, model, kind: 'text', text })) ?? estimateTokens(text);
    },
    async countPrompt(model, body, isChat) {
      return hasRoomFor(body) ? await ask({ id: ++lastId, model, kind: 'prompt', body: ownBytes(body), isChat }) : undefined;
    },
    async countAnswer(model, body) {
      return hasRoomFor(body) ? await ask({ id: ++lastId, model, kind: 'answer', body: ownBytes(body) }) : undefined;
    },
    async close() {
      const closing = thread;
      if (closing === undefined) return;
      lose(closing);
      await closing.terminate();
    },
  };
}

/** Bytes that may be handed to another thread: those of a small Buffer share their memory with others, and are copied. */
function ownBytes(body: Uint8Array): Uint8Array<ArrayBuffer> {
  const { buffer } = body;
  const isAlone = buffer instanceof ArrayBuffer && buffer.byteLength === body.byteLength && buffer.byteLength > Buffer.poolSize;
  return isAlone ? new Uint8Array(buffer) : new Uint8Array(body);
}

/** The models before GPT-4o have cl100k; for all others, OpenAI's or not, o200k is the nearest there is. */
export function encodingOf(model: string | undefined): Encoding {
  return /(^|[/:])(gpt-4(?![.o\d])|gpt-3\.?5|text-embedding-)/.test(model ?? '') ? 'cl100k_base' : 'o200k_base';
}

/** A token is four characters of English: nothing better without a vocabulary. */
export function estimateTokens(text: string): number {
  return Math.ceil(text.length / 4);
}

/** The worker stands beside this file, as source or built. */
function workerUrl(): URL {
  return new URL(import.meta.url.endsWith('.ts') ? './tokens.worker.ts' : './tokens.worker.js', import.meta.url);
}

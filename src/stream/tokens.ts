// Counts tokens in a worker thread: loading a vocabulary takes 240 ms, which no stream shall wait for.
import { Worker } from 'node:worker_threads';

/** Beyond so much text waiting, counts are estimates: a queue that only grows would be a leak. */
const MAX_WAITING_CHARS = 4_194_304;
const MAX_TEXT_CHARS = 1_048_576;

export type Encoding = 'o200k_base' | 'cl100k_base';

export interface Tokenizer {
  /** Tokens of `text` for the model, as near as OpenAI's encodings come. Never rejects: without a worker it is an estimate. */
  count(model: string | undefined, text: string): Promise<number>;
  /** Stops the worker; what still waits is estimated. */
  close(): Promise<void>;
}

export interface CountRequest {
  id: number;
  encoding: Encoding;
  text: string;
}

export interface CountReply {
  id: number;
  /** Undefined where the text could not be counted. */
  tokens: number | undefined;
}

interface Waiting {
  text: string;
  resolve(tokens: number): void;
}

/** `worker` names another file to run, for tests. The worker starts with the first count and keeps the process alive only while it counts. */
export function createTokenizer(worker = workerUrl()): Tokenizer {
  const waiting = new Map<number, Waiting>();
  let thread: Worker | undefined;
  let waitingChars = 0;
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
    waitingChars -= request.text.length;
    if (waiting.size === 0) thread?.unref();
    request.resolve(tokens ?? estimateTokens(request.text));
  }

  /** The next count starts another one. */
  function lose(lost: Worker): void {
    if (thread !== lost) return;
    thread = undefined;
    for (const id of [...waiting.keys()]) settle(id, undefined);
  }

  function ask(encoding: Encoding, text: string): Promise<number> {
    thread ??= start();
    thread.ref();
    const id = ++lastId;
    waitingChars += text.length;
    const counted = new Promise<number>((resolve) => waiting.set(id, { text, resolve }));
    thread.postMessage({ id, encoding, text } satisfies CountRequest);
    return counted;
  }

  return {
    async count(model, text) {
      if (text === '') return 0;
      if (text.length > MAX_TEXT_CHARS || waitingChars + text.length > MAX_WAITING_CHARS) return estimateTokens(text);
      try {
        return await ask(encodingOf(model), text);
      } catch {
        return estimateTokens(text); // no thread to be had
      }
    },
    async close() {
      const closing = thread;
      if (closing === undefined) return;
      lose(closing);
      await closing.terminate();
    },
  };
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

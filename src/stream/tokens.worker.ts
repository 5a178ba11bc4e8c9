// The thread that holds the vocabularies, and counts.
import { setImmediate } from 'node:timers/promises';
import { parentPort } from 'node:worker_threads';
import { gatherAnswer, gatherPrompt } from './prompt.ts';
import { cutLongWords, lastCut } from './slices.ts';
import { type CountReply, type CountRequest, type Encoding, encodingOf } from './tokens.ts';

type Count = (text: string) => number;

const counters = new Map<Encoding, Promise<Count>>();
/** Text as a user writes it may name special tokens: here they are text. */
const options = { disallowedSpecial: new Set<string>() };

/** Nobody's text holds up another's for longer than such a slice takes: 3 ms, and 60 where no two letters go together. */
const SLICE_CHARS = 8192;
/** Words already encoded; each may have 512 characters, and the 100,000 of the library would then be half a gigabyte. */
const MAX_CACHED_WORDS = 20_000;

parentPort?.on('message', async (request: CountRequest) => {
  const tokens = await answer(request).catch(() => undefined);
  parentPort?.postMessage({ id: request.id, tokens } satisfies CountReply);
});

async function answer(request: CountRequest): Promise<number | undefined> {
  if (request.kind === 'text') return await countTexts(encodingOf(request.model), [request.text]);
  const body: unknown = JSON.parse(Buffer.from(request.body.buffer).toString('utf8'));
  const prompt = request.kind === 'answer' ? gatherAnswer(body) : gatherPrompt(body, request.isChat);
  if (prompt === undefined) return undefined;
  return prompt.tokens + (await countTexts(encodingOf(request.model ?? prompt.model), prompt.texts));
}

/** Lets others in between two slices of so much text, however many texts it is made of. */
async function countTexts(encoding: Encoding, texts: readonly string[]): Promise<number> {
  if (!counters.has(encoding)) counters.set(encoding, load(encoding));
  const count = await counters.get(encoding)!;
  let tokens = 0;
  let charsInTurn = 0;
  for (const text of texts) {
    for (let at = 0; at < text.length; ) {
      const end = text.length - at <= SLICE_CHARS ? text.length : lastCut(text, at + SLICE_CHARS);
      charsInTurn += end - at;
      if (charsInTurn > SLICE_CHARS) {
        charsInTurn = end - at;
        await setImmediate();
      }
      for (const slice of cutLongWords(text.slice(at, end))) tokens += count(slice);
      at = end;
    }
  }
  return tokens;
}

async function load(encoding: Encoding): Promise<Count> {
  const { countTokens, setMergeCacheSize } = await (encoding === 'cl100k_base'
    ? import('gpt-tokenizer/encoding/cl100k_base')
    : import('gpt-tokenizer/encoding/o200k_base'));
  setMergeCacheSize(MAX_CACHED_WORDS);
  return (text) => countTokens(text, options);
}

// The thread that holds the vocabularies, and counts.
import { parentPort } from 'node:worker_threads';
import type { CountReply, CountRequest, Encoding } from './tokens.ts';

type Count = (text: string) => number;

const counters = new Map<Encoding, Promise<Count>>();
/** Text as a user writes it may name special tokens: here they are text. */
const options = { disallowedSpecial: new Set<string>() };

/** Byte pair encoding is quadratic in the length of a run (50,000 characters: 2 s): cut at so many. */
const LONG_RUN = /\S{513}|\s{513}/;
const RUN = /\S{1,512}|\s{1,512}/gu;

parentPort?.on('message', async ({ id, encoding, text }: CountRequest) => {
  const tokens = await countTokens(encoding, text).catch(() => undefined);
  parentPort?.postMessage({ id, tokens } satisfies CountReply);
});

async function countTokens(encoding: Encoding, text: string): Promise<number> {
  if (!counters.has(encoding)) counters.set(encoding, load(encoding));
  const count = await counters.get(encoding)!;
  return cutRuns(text).reduce((sum, slice) => sum + count(slice), 0);
}

async function load(encoding: Encoding): Promise<Count> {
  const { countTokens } = await (encoding === 'cl100k_base'
    ? import('gpt-tokenizer/encoding/cl100k_base')
    : import('gpt-tokenizer/encoding/o200k_base'));
  return (text) => countTokens(text, options);
}

/** The text in slices that are cut only where a run would be too long: where words and blanks alternate, it stays whole. */
function cutRuns(text: string): string[] {
  if (!LONG_RUN.test(text)) return [text];
  const slices: string[] = [];
  let slice = '';
  let wasBlank: boolean | undefined;
  for (const [run] of text.matchAll(RUN)) {
    const isBlank = run.trim() === '';
    if (isBlank === wasBlank) {
      slices.push(slice);
      slice = '';
    }
    slice += run;
    wasBlank = isBlank;
  }
  return [...slices, slice];
}

// Asks for token usage in a streamed request where its sender did not, by one insertion into bytes that otherwise stay as they are.
import type { createTopLevelScanner, TopLevelScanner } from '../stream/json.ts';
import type { JsonBody } from '../stream/json-body.ts';
import { insertAt, type Splice } from './splice.ts';

/** `continuous` asks for running totals as well (vLLM). */
export type Asking = 'ask' | 'continuous';

/** What must come out of the answer again, because only our asking put it in. */
export interface Strip {
  /** The added usage chunk, and `"usage":null` on the others. */
  readonly final: boolean;
  /** Usage objects on ordinary chunks. */
  readonly running: boolean;
}

export interface AskedRequest {
  readonly strip: Strip;
  /** What makes the body ask; its offsets are those of the whole body. */
  readonly splice: Splice;
}

/** Which members are missing, and what that adds to the answer. */
interface Missing {
  readonly members: readonly string[];
  readonly strip: Strip;
}

/** The members of a body that asking depends on. */
export const askedMembers = ['stream', 'stream_options'] as const;
/** Options longer than this are nobody's. */
export const MAX_OPTIONS_BYTES = 64 * 1024;
/** Of the options, what asking depends on. */
const OPTIONS = ['include_usage', 'continuous_usage_stats'];
const INCLUDE = '"include_usage":true';
const CONTINUOUS = '"continuous_usage_stats":true';

/**
 * How to ask in the whole body of one chat or completions call (OpenAI's `stream_options.include_usage`, vLLM's
 * `continuous_usage_stats`); undefined where it must go as it is. The body must be an object with `"stream": true`; whatever parsers
 * could read in two ways (a key that occurs twice, options over 64 KiB or of another type) goes as it is. Nested values are not
 * checked: a body that is malformed there is so with the insertion too, and its 400 the upstream's.
 *
 * `createScanner` is `createTopLevelScanner`: the upstream side knows it by type only.
 */
export function askForUsage(
  { members, bomBytes }: JsonBody,
  asking: Asking,
  createScanner: typeof createTopLevelScanner,
): AskedRequest | undefined {
  const stream = members.member('stream');
  if (!members.isComplete || stream?.raw !== 'true' || stream.occurrences > 1) return undefined;
  const asked = ask(members, asking, createScanner);
  if (asked === undefined) return undefined;
  const { start, end, text } = asked.splice;
  return { strip: asked.strip, splice: { start: start + bomBytes, end: end + bomBytes, text } };
}

function ask(scanner: TopLevelScanner, asking: Asking, createScanner: typeof createTopLevelScanner): AskedRequest | undefined {
  const options = scanner.member('stream_options');
  if (options === undefined) {
    const { members, strip } = missingFrom(undefined, undefined, asking)!;
    return { strip, splice: insertAt(scanner.bodyStart, `"stream_options":{${members.join()}},`) }; // `stream` always follows
  }
  if (options.raw === undefined || options.occurrences > 1) return undefined;
  if (options.raw === 'null') {
    const { members, strip } = missingFrom(undefined, undefined, asking)!;
    return { strip, splice: { start: options.valueStart, end: options.valueEnd, text: `{${members.join()}}` } };
  }
  const inner = createScanner(OPTIONS, MAX_OPTIONS_BYTES);
  inner.scan(options.raw);
  const missing = inner.isComplete && !isDoubled(inner) ? missingFrom(...flags(inner), asking) : undefined;
  if (missing === undefined) return undefined;
  const comma = inner.isEmpty ? '' : ',';
  return { strip: missing.strip, splice: insertAt(options.valueStart + inner.bodyStart, missing.members.join() + comma) };
}

function isDoubled(options: TopLevelScanner): boolean {
  return OPTIONS.some((key) => (options.member(key)?.occurrences ?? 0) > 1);
}

function flags(options: TopLevelScanner): [include: string | undefined, continuous: string | undefined] {
  return [options.value('include_usage'), options.value('continuous_usage_stats')];
}

/**
 * What to add to the options that the client set (raw JSON, undefined where absent), or undefined where they must stay so. Running
 * totals without `include_usage` are such a case: vLLM takes the missing one for true, SGLang sends them without it, others
 * send nothing, so that nobody could tell what of the answer would have come anyway.
 */
function missingFrom(include: string | undefined, continuous: string | undefined, asking: Asking): Missing | undefined {
  const addsContinuous = asking === 'continuous' && continuous === undefined;
  if (include === 'true') return addsContinuous ? { members: [CONTINUOUS], strip: { final: false, running: true } } : undefined;
  if (include !== undefined || continuous === 'true') return undefined;
  return { members: addsContinuous ? [INCLUDE, CONTINUOUS] : [INCLUDE], strip: { final: true, running: addsContinuous } };
}

// Asks for token usage in a streamed request where its sender did not, by one insertion into bytes that otherwise stay as they are.
import type { createTopLevelScanner, TopLevelScanner } from '../stream/json.ts';

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
  /** The body with the insertion, in the pieces that it came in: the one that it falls into becomes two views of itself. */
  splice(body: readonly Buffer[]): Buffer[];
  /** By how much the body grows. */
  readonly addedBytes: number;
}

export interface UsageAsk {
  /** Looks at the next bytes of the body, cut anywhere. */
  observe(chunk: Buffer): void;
  /** After the last piece: how to ask, or undefined where the request must go as it is. */
  result(): AskedRequest | undefined;
}

/** Replaces the bytes [start, end) of the body. */
interface Splice {
  readonly start: number;
  readonly end: number;
  readonly text: string;
}

/** Which members are missing, and what that adds to the answer. */
interface Missing {
  readonly members: readonly string[];
  readonly strip: Strip;
}

const MAX_OPTIONS_BYTES = 64 * 1024;
const BOM = '\xef\xbb\xbf';
const INCLUDE = '"include_usage":true';
const CONTINUOUS = '"continuous_usage_stats":true';

/**
 * For the body of one chat or completions call (OpenAI's `stream_options.include_usage`, vLLM's `continuous_usage_stats`). The body must be an object with
 * `"stream": true`; whatever parsers could read in two ways (a key that occurs twice, options over 64 KiB or of another type)
 * goes as it is. Nested values are not checked: a body that is malformed there is so with the insertion too, and its 400 the upstream's.
 *
 * `createScanner` is `createTopLevelScanner`: the upstream side knows it by type only.
 */
export function createUsageAsk(asking: Asking, createScanner: typeof createTopLevelScanner): UsageAsk {
  const scanner = createScanner(['stream', 'stream_options'], MAX_OPTIONS_BYTES);
  let head: string | undefined = ''; // the first bytes, while they may be a byte order mark
  let bomBytes = 0;

  function scanHead(bytes: string): void {
    head += bytes;
    if (head === undefined || (head.length < BOM.length && BOM.startsWith(head))) return;
    if (head.startsWith(BOM)) bomBytes = BOM.length;
    scanner.scan(head.slice(bomBytes));
    head = undefined;
  }

  return {
    observe(chunk) {
      if (scanner.isMalformed) return;
      const bytes = chunk.toString('latin1');
      if (head === undefined) scanner.scan(bytes);
      else scanHead(bytes);
    },
    result() {
      const stream = scanner.member('stream');
      if (!scanner.isComplete || stream?.raw !== 'true' || stream.occurrences > 1) return undefined;
      const asked = ask(scanner, asking, createScanner);
      return asked && { strip: asked.strip, ...createSplice(asked.splice, bomBytes) };
    },
  };
}

function ask(
  scanner: TopLevelScanner,
  asking: Asking,
  createScanner: typeof createTopLevelScanner,
): { strip: Strip; splice: Splice } | undefined {
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
  const inner = createScanner(['include_usage', 'continuous_usage_stats'], MAX_OPTIONS_BYTES);
  inner.scan(options.raw);
  const missing = inner.isComplete && !isDoubled(inner) ? missingFrom(...flags(inner), asking) : undefined;
  if (missing === undefined) return undefined;
  const comma = inner.isEmpty ? '' : ',';
  return { strip: missing.strip, splice: insertAt(options.valueStart + inner.bodyStart, missing.members.join() + comma) };
}

function insertAt(start: number, text: string): Splice {
  return { start, end: start, text };
}

function isDoubled(options: TopLevelScanner): boolean {
  return ['include_usage', 'continuous_usage_stats'].some((key) => (options.member(key)?.occurrences ?? 0) > 1);
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

function createSplice({ start, end, text }: Splice, bomBytes: number): Pick<AskedRequest, 'splice' | 'addedBytes'> {
  return {
    addedBytes: text.length - (end - start),
    splice(body) {
      const before = cut(body, 0, bomBytes + start);
      return [...before, Buffer.from(text, 'latin1'), ...cut(body, bomBytes + end, Number.POSITIVE_INFINITY)];
    },
  };
}

/** Views of the bytes [start, end) of a body in pieces. */
function cut(body: readonly Buffer[], start: number, end: number): Buffer[] {
  const views: Buffer[] = [];
  let base = 0;
  for (const piece of body) {
    const view = piece.subarray(Math.max(0, start - base), Math.max(0, end - base));
    if (view.length > 0) views.push(view);
    base += piece.length;
  }
  return views;
}

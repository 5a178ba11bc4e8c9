// The recorded streams of real providers, where they lie beside the repository.

import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { JsonObject, Usage } from '../../src/upstream/dialects/dialect.ts';

export interface RecordedStream {
  /** Its name, ending `.sse`. */
  readonly file: string;
  readonly dialect: 'chat' | 'completions' | 'responses' | 'anthropic';
  readonly provider: string;
  /** How many SSE events it holds, a closing `[DONE]` not counted. */
  readonly events: number;
  /** The usage that the provider reported last; for Anthropic, its events merged. */
  readonly usage: Record<string, unknown>;
  /** As it travelled. */
  readonly bytes: Buffer;
}

const folder = join(import.meta.dirname, '../../../shared/streams');

/** Every stream that `index.json` lists; undefined where the folder is missing, so that a test can skip by name. */
export function recordedStreams(): RecordedStream[] | undefined {
  const index = join(folder, 'index.json');
  if (!existsSync(index)) return undefined;
  const entries: Omit<RecordedStream, 'bytes'>[] = JSON.parse(readFileSync(index, 'utf8'));
  return entries.map((entry) => ({ ...entry, bytes: readFileSync(join(folder, entry.file)) }));
}

/** INTERFACE, section 6, in the plainest way. */
export function expectedUsage(reported: JsonObject, dialect: string): Usage {
  const number = (...path: string[]): number =>
    Number(path.reduce<unknown>((at, key) => (at as JsonObject | undefined)?.[key], reported) ?? 0);
  const none = { cacheWrite: 0, reasoning: 0, audioInput: 0, audioOutput: 0 };
  if (dialect === 'anthropic') {
    const cachedInput = number('cache_read_input_tokens');
    const cacheWrite = number('cache_creation_input_tokens');
    return { ...none, input: number('input_tokens') + cachedInput + cacheWrite, output: number('output_tokens'), cachedInput, cacheWrite };
  }
  if (dialect === 'responses') {
    const cachedInput = number('input_tokens_details', 'cached_tokens');
    const reasoning = number('output_tokens_details', 'reasoning_tokens');
    return { ...none, input: number('input_tokens'), output: number('output_tokens'), cachedInput, reasoning };
  }
  const input = number('prompt_tokens');
  const reasoning = number('completion_tokens_details', 'reasoning_tokens');
  const cachedInput = number('prompt_tokens_details', 'cached_tokens');
  // In all recordings the total is right, so what is not input is output.
  return { ...none, input, output: number('total_tokens') - input, cachedInput, reasoning };
}

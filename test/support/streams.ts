// The recorded streams of real providers, where they lie beside the repository.

import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

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

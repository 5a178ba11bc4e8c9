// Brings the providers' ways of reporting tokens into one.
import { isObject, type JsonObject, type Usage } from './dialect.ts';

/**
 * OpenAI's usage in all its forms: `prompt_tokens`/`completion_tokens` (chat, completions, embeddings) and `input_tokens`/`output_tokens`
 * (Responses, images, audio). Undefined for null, for seconds of audio (`type: "duration"`), and for objects without tokens.
 */
export function readOpenaiUsage(usage: unknown): Usage | undefined {
  if (!isObject(usage)) return undefined;
  const input = tokens(usage, 'input_tokens', 'prompt_tokens');
  const output = tokens(usage, 'output_tokens', 'completion_tokens');
  if (input === undefined && output === undefined) return undefined;
  const inputs = details(usage, 'input_tokens_details', 'prompt_tokens_details', 'input_token_details');
  const outputs = details(usage, 'output_tokens_details', 'completion_tokens_details', 'output_token_details');
  const reasoning = tokens(outputs, 'reasoning_tokens') ?? 0;
  return {
    input: input ?? 0,
    output: (output ?? 0) + reasoningOnTop(usage, (input ?? 0) + (output ?? 0), reasoning),
    cachedInput: tokens(inputs, 'cached_tokens') ?? tokens(usage, 'prompt_cache_hit_tokens', 'cache_read_input_tokens') ?? 0,
    cacheWrite: tokens(inputs, 'cache_write_tokens') ?? tokens(usage, 'cache_creation_input_tokens') ?? 0,
    reasoning,
    audioInput: tokens(inputs, 'audio_tokens') ?? 0,
    audioOutput: tokens(outputs, 'audio_tokens') ?? 0,
  };
}

/**
 * Anthropic's `input_tokens` leave out what was read from and written to the cache, and its totals what it took to compact the
 * context on the way (`iterations` of type `compaction`): here all of it is in.
 */
export function readAnthropicUsage(usage: unknown): Usage | undefined {
  const total = readAnthropicTokens(usage);
  if (total === undefined || !isObject(usage) || !Array.isArray(usage.iterations)) return total;
  for (const iteration of usage.iterations) {
    const more = isObject(iteration) && iteration.type === 'compaction' ? readAnthropicTokens(iteration) : undefined;
    if (more !== undefined) for (const key of Object.keys(total) as (keyof Usage)[]) total[key] = (total[key] ?? 0) + (more[key] ?? 0);
  }
  return total;
}

function readAnthropicTokens(usage: unknown): Usage | undefined {
  if (!isObject(usage)) return undefined;
  const input = tokens(usage, 'input_tokens');
  const output = tokens(usage, 'output_tokens');
  if (input === undefined && output === undefined) return undefined;
  const cachedInput = tokens(usage, 'cache_read_input_tokens') ?? 0;
  const cacheWrite = tokens(usage, 'cache_creation_input_tokens') ?? 0;
  return {
    input: (input ?? 0) + cachedInput + cacheWrite,
    output: output ?? 0,
    cachedInput,
    cacheWrite,
    reasoning: tokens(details(usage, 'output_tokens_details'), 'thinking_tokens') ?? 0,
    audioInput: 0,
    audioOutput: 0,
  };
}

/** xAI counts reasoning in `total_tokens` but not in `completion_tokens`; everybody else has it in both. */
function reasoningOnTop(usage: JsonObject, sum: number, reasoning: number): number {
  return reasoning > 0 && tokens(usage, 'total_tokens') === sum + reasoning ? reasoning : 0;
}

function tokens(source: JsonObject, ...keys: string[]): number | undefined {
  for (const key of keys) {
    const value = source[key];
    if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0) return value;
  }
  return undefined;
}

function details(usage: JsonObject, ...keys: string[]): JsonObject {
  for (const key of keys) if (isObject(usage[key])) return usage[key];
  return {};
}

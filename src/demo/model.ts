// The demo's model: decides what is said to a prompt, in tokens of its own, so that every count it reports is exact.
import type { ToolCall } from './tools.ts';
import { AFTER_TOOL, PARAGRAPHS, REASONING } from './words.ts';

/** The model that thinks aloud first. */
export const REASONING_MODEL = 'demo-reasoning';

/** The models it lists; it answers to any name but one. */
export const MODELS: readonly string[] = ['demo', REASONING_MODEL];

/** It says no more than this, whatever it is told to say or repeat: a prompt may have millions of words. */
const MAX_SAID_TOKENS = 100_000;

/** Up to twelve characters of a word, with the white space before it. */
const TOKEN = /\s*\S{1,12}/gu;

/** What a request asks for, whichever endpoint it came by. */
export interface Ask {
  readonly model: string;
  /** System and user texts in their order; the last one is answered. */
  readonly texts: readonly string[];
  /** The result of a tool, where the conversation ends with one. */
  readonly toolResult?: string | undefined;
  readonly call?: ToolCall | undefined;
  readonly stop: readonly string[];
  /** Reasoning counts towards it. */
  readonly maxTokens?: number | undefined;
}

/** An answer, settled before its first word is sent: one entry a token. With `call`, `said` is the fragments of its arguments. */
export interface Reply {
  readonly reasoning: readonly string[];
  readonly said: readonly string[];
  readonly call: ToolCall | undefined;
  readonly finish: 'stop' | 'length' | 'tool_calls';
}

/** Cuts a text into its first 100,000 tokens at most; joined they are the text again, without white space at its end. */
export function splitTokens(text: string): string[] {
  const tokens: string[] = [];
  for (const [token] of text.trimEnd().matchAll(TOKEN)) {
    if (tokens.length === MAX_SAID_TOKENS) break;
    tokens.push(token);
  }
  return tokens;
}

/** How many tokens a text has; nothing is kept of it, since a prompt may be of any size. */
export function countTokens(text: string): number {
  const trimmed = text.trimEnd();
  const token = new RegExp(TOKEN);
  let count = 0;
  while (token.test(trimmed)) count += 1;
  return count;
}

/** FNV-1a, 32 bits: the same text gets the same answer and the same vector everywhere. */
export function hashText(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i += 1) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return hash >>> 0;
}

/** Decides what is said. `variant` tells the choices of one request apart (`n`). */
export function composeReply(ask: Ask, variant = 0): Reply {
  const thought = ask.model === REASONING_MODEL ? splitTokens(REASONING) : [];
  const whole = ask.call?.fragments ?? stopBefore(chooseWords(ask, variant), ask.stop);
  const room = ask.maxTokens ?? Number.POSITIVE_INFINITY;
  const reasoning = thought.slice(0, room);
  const said = whole.slice(0, room - reasoning.length);
  const isCut = reasoning.length < thought.length || said.length < whole.length;
  return { reasoning, said, call: ask.call, finish: isCut ? 'length' : ask.call ? 'tool_calls' : 'stop' };
}

/** All tokens of a reply, reasoning among them. */
export function countReply(reply: Reply): number {
  return reply.reasoning.length + reply.said.length;
}

function chooseWords(ask: Ask, variant: number): string[] {
  for (const text of ask.texts.toReversed()) {
    const repeat = /repeat after me:\s*(\S[\s\S]*)/i.exec(text);
    if (repeat?.[1]) return splitTokens(repeat[1]);
    const say = /\bsay\s+(\d+)\s+tokens?\b/i.exec(text);
    if (say) return sayTokens(Math.min(Number(say[1]), MAX_SAID_TOKENS));
  }
  if (ask.toolResult !== undefined) return splitTokens(`${ask.toolResult.trim()}\n\n${AFTER_TOOL}`.trimStart());
  return splitTokens(PARAGRAPHS[(hashText(ask.texts.at(-1) ?? '') + variant) % PARAGRAPHS.length]!);
}

/** So many tokens: the paragraphs in turn, from the start again when they end. */
function sayTokens(count: number): string[] {
  const words = splitTokens(PARAGRAPHS.join('\n\n'));
  return Array.from({ length: count }, (_, i) => (i > 0 && i % words.length === 0 ? `\n\n${words[0]}` : words[i % words.length]!));
}

/** The tokens before the first stop sequence, which is not said; the token it begins in is cut short. */
function stopBefore(tokens: string[], stop: readonly string[]): string[] {
  if (stop.length === 0) return tokens;
  const text = tokens.join('');
  const ends = stop.map((one) => text.indexOf(one)).filter((at) => at >= 0);
  return ends.length === 0 ? tokens : cutAt(tokens, Math.min(...ends));
}

function cutAt(tokens: string[], end: number): string[] {
  const kept: string[] = [];
  let length = 0;
  for (const token of tokens) {
    if (length >= end) break;
    kept.push(token.slice(0, end - length));
    length += token.length;
  }
  return kept;
}

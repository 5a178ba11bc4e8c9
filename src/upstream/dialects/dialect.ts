// What a dialect is: how one endpoint's answers name their text, their usage, their end and their errors.
import type { Lane } from './lanes.ts';

/** Tokens in one way of counting, whatever the provider's own: the details are part of `input` and `output`. */
export interface Usage {
  input: number;
  output: number;
  cachedInput: number;
  cacheWrite: number;
  reasoning: number;
  audioInput: number;
  audioOutput: number;
  /** What of `cachedInput` is of `audioInput` too. */
  cachedAudioInput?: number;
}

/** An error made here, to be written as a stream's last event. */
export interface StreamError {
  code: string;
  type: string;
  message: string;
}

/** Reads the events of one stream. Strings come in as latin1, one character per byte, and go out decoded. */
export interface EventReader {
  /** Reads one event; broken JSON is an event like any other, without content. `data` is `''` where the event was too long to read. */
  read(name: string, data: string): void;
  /** The first name that the upstream gave its model. */
  readonly model: string | undefined;
  /** The last usage that was not null. */
  readonly usage: Usage | undefined;
  /** The usage is that of the whole answer; false for running totals and for what Anthropic says at the start. */
  readonly isUsageFinal: boolean;
  /** The usage's output is that of the content so far; false where content came after it, and for a placeholder. */
  readonly isOutputKnown: boolean;
  /** The terminal event came, or every choice seen has its finish_reason, or nobody has defined an end. */
  readonly isComplete: boolean;
  /** The terminal event came. */
  readonly isTerminated: boolean;
  /** The upstream said that it failed. */
  readonly hasError: boolean;
  /** The last `sequence_number`, -1 before the first. */
  readonly sequenceNumber: number;
  /** Events with text, reasoning, tool-call arguments, refusal, audio or image. */
  readonly contentCount: number;
  /** Events that show the upstream to be alive and working: all but pings and empty deltas. */
  readonly meaningCount: number;
  /** The texts of the output so far, each apart, in the order in which they began; a bounded number. */
  readonly lanes: readonly Lane[];
  /** UTF-8 bytes of all output text so far, as they travelled: escapes count as written. */
  readonly textLength: number;
}

export interface Dialect {
  readonly name: string;
  /** What a model writes here: messages, whose prompts have tokens of their own between them, or text. Undefined: nothing that can be counted. */
  readonly writes: 'messages' | 'text' | undefined;
  createReader(): EventReader;
  /** The tokens of the parsed `usage` of an answer that is not streamed; undefined where it holds none. */
  usageOf(usage: unknown): Usage | undefined;
  /** The event that tells a client, in this dialect, why its stream ends here; framed, ASCII only. */
  errorEvent(error: StreamError, reader: EventReader): string;
}

export type JsonObject = Record<string, unknown>;

/** An index as a provider gives it, for a lane's key: a missing one is the first. */
export function indexOf(value: unknown): number {
  return typeof value === 'number' ? value : 0;
}

export function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** One event, framed. What is not ASCII is escaped, so that it may be written as latin1 or UTF-8 alike. */
export function formatEvent(name: string | undefined, body: JsonObject): string {
  const json = JSON.stringify(body).replace(/[\u007f-\uffff]/g, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`);
  return `${name === undefined ? '' : `event: ${name}\n`}data: ${json}\n\n`;
}

/** The error as OpenAI writes it, in a JSON answer and in an event alike. */
export function openaiError(error: StreamError): JsonObject {
  return { message: error.message, type: error.type, param: null, code: error.code };
}

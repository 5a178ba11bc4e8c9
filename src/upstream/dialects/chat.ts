// Chat completions as OpenAI defines them and as two dozen providers bend them; completions.ts shares the frame.
import { createChoiceBook } from './choice-book.ts';
import { type Dialect, formatEvent, indexOf, isObject, type JsonObject, openaiError, type Usage } from './dialect.ts';
import { createReader, type Findings, type Interpreter } from './reader.ts';
import { readOpenaiUsage } from './usage.ts';

/** Adds what one choice of an event holds; returns whether it holds anything at all but a role. */
export type ChoiceReader = (choice: JsonObject, findings: Findings) => boolean;

/** A dialect of events with `choices`, a `usage` in one of the last, and `[DONE]`. */
export function createChoicesDialect(name: string, writes: Dialect['writes'], readChoice: ChoiceReader): Dialect {
  return {
    name,
    writes,
    createReader: () => createReader(new ChoicesInterpreter(readChoice)),
    usageOf: readOpenaiUsage,
    errorEvent: (error) => formatEvent(undefined, { error: openaiError(error) }),
  };
}

/** https://platform.openai.com/docs/api-reference/chat-streaming */
export const chat: Dialect = createChoicesDialect('chat', 'messages', (choice, findings) => {
  if (!isObject(choice.delta)) return false;
  readDelta(choice.delta, indexOf(choice.index), findings);
  return Object.entries(choice.delta).some(([key, value]) => key !== 'role' && hasSomething(value));
});

class ChoicesInterpreter implements Interpreter {
  private readonly readChoice: ChoiceReader;
  private readonly book = createChoiceBook();

  constructor(readChoice: ChoiceReader) {
    this.readChoice = readChoice;
  }

  interpret(event: JsonObject, name: string, findings: Findings): boolean {
    const isError = Boolean(event.error) || name === 'error';
    if (isError) findings.setError();
    findings.setModel(event.model);
    const hasFinish = this.readChoices(event.choices, findings);
    const usage = readUsage(event);
    findings.setUsage(usage, this.isComplete());
    if (event.prompt_filter_results || event.prompt_progress) findings.addMeaning(); // Azure's first event; llama.cpp at a long prompt
    return !isError && !hasFinish && usage === undefined;
  }

  isComplete(): boolean {
    return this.book.areEnded;
  }

  private readChoices(choices: unknown, findings: Findings): boolean {
    let hasFinish = false;
    for (const choice of Array.isArray(choices) ? choices : []) {
      if (!isObject(choice)) continue;
      const index = choice.index ?? 0;
      if (this.book.begin(index)) findings.addMeaning();
      if (this.readChoice(choice, findings)) findings.addMeaning();
      if (!choice.finish_reason) continue;
      hasFinish = true;
      this.book.end(index);
      findings.addMeaning();
      if (choice.finish_reason === 'error') findings.setError(); // OpenRouter
    }
    return hasFinish;
  }
}

/** Ollama puts zeros on every chunk until the last: no answer has cost nothing, so zeros say nothing. */
function readUsage(event: JsonObject): Usage | undefined {
  const nested = isObject(event.x_groq) ? event.x_groq.usage : undefined;
  const usage = readOpenaiUsage(event.usage ?? nested);
  return usage && usage.input + usage.output > 0 ? usage : undefined;
}

function readDelta(delta: JsonObject, choice: number, findings: Findings): void {
  readContent(delta.content, choice, findings);
  findings.addText(delta.reasoning_content || delta.reasoning, `${choice} reasoning`); // vLLM gives the same text under both names
  findings.addText(delta.refusal, `${choice} refusal`);
  for (const call of Array.isArray(delta.tool_calls) ? delta.tool_calls : []) readToolCall(call, choice, findings);
  if (isObject(delta.function_call)) readCalled(delta.function_call, undefined, `${choice} function`, findings);
  if (isObject(delta.audio)) {
    findings.addOpaque(delta.audio.data);
    findings.addText(delta.audio.transcript, `${choice} audio`);
  }
  findings.addOpaque(Array.isArray(delta.images) && delta.images.length > 0);
}

/** A string, or Mistral's list of parts: text, and thinking with parts of its own. */
function readContent(content: unknown, choice: number, findings: Findings): void {
  findings.addText(content, `${choice}`);
  for (const part of Array.isArray(content) ? content : []) {
    if (!isObject(part)) continue;
    findings.addText(part.text, `${choice}`);
    for (const thought of Array.isArray(part.thinking) ? part.thinking : []) {
      if (isObject(thought)) findings.addText(thought.text, `${choice} reasoning`);
    }
  }
}

function readToolCall(call: unknown, choice: number, findings: Findings): void {
  if (!isObject(call)) return;
  const lane = `${choice} tool ${indexOf(call.index)}`;
  if (isObject(call.function)) readCalled(call.function, call.id, lane, findings);
  if (isObject(call.custom)) readCalled(call.custom, call.id, lane, findings);
}

/** A function with its arguments, or a custom tool with its input. */
function readCalled(called: JsonObject, id: unknown, lane: string, findings: Findings): void {
  findings.addName(called.name, `${lane} name`, id);
  findings.addText(called.arguments, lane);
  findings.addText(called.input, lane);
}

/** Not null, not '', not [] and not {}. */
function hasSomething(value: unknown): boolean {
  return typeof value === 'object' && value !== null ? Object.keys(value).length > 0 : Boolean(value);
}

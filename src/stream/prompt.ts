// Gathers from JSON bodies what an upstream bills: a request's input, an answer's output. For the worker, since they may be megabytes.
//
// Text is exact; the frame around it is OpenAI's, as its cookbook documents it for chat. Definitions of tools and schemas are
// rewritten by each provider in its own way, so that their compact JSON is an approximation (10 to 20 % above OpenAI's).

/** Texts that are tokenised apart, and tokens that are no text. */
export interface Prompt {
  readonly model: string | undefined;
  readonly texts: string[];
  tokens: number;
}

type JsonObject = Record<string, unknown>;

/** "How to count tokens with tiktoken": every message is framed by three tokens, a name takes one more, and three begin the reply. */
const MESSAGE_TOKENS = 3;
const NAME_TOKENS = 1;
const REPLY_TOKENS = 3;

/**
 * The prompt of a parsed body; undefined where there is none, or where part of it lies upstream (a stored conversation).
 * Images, audio and files are not text and are passed over: what they cost is the provider's own arithmetic.
 * @param isChat messages are framed, and a lone `input` is one: not so for embeddings and speech
 */
export function gatherPrompt(body: unknown, isChat: boolean): Prompt | undefined {
  if (!isObject(body) || body.previous_response_id || body.conversation || isObject(body.prompt)) return undefined;
  const prompt: Prompt = { model: typeof body.model === 'string' ? body.model : undefined, texts: [], tokens: 0 };
  const add = (text: unknown) => void (typeof text === 'string' && text !== '' && prompt.texts.push(text));
  if (isChat) addConversation(body, prompt, add);
  else {
    addTokensOrTexts(body.input ?? body.prompt, prompt, add);
    add(body.instructions);
    add(body.suffix);
  }
  return prompt.texts.length > 0 || (!isChat && prompt.tokens > 0) ? prompt : undefined;
}

/**
 * The output of a parsed answer that was not streamed (chat, completions, Responses, Anthropic's messages): all texts of all choices.
 * Undefined where there is none.
 */
export function gatherAnswer(body: unknown): Prompt | undefined {
  if (!isObject(body)) return undefined;
  const answer: Prompt = { model: undefined, texts: [], tokens: 0 };
  const add = (text: unknown) => void (typeof text === 'string' && text !== '' && answer.texts.push(text));
  for (const choice of listOf(body.choices)) {
    if (!isObject(choice)) continue;
    add(choice.text);
    if (isObject(choice.message)) addWritten(choice.message, add);
  }
  for (const item of listOf(body.output)) if (isObject(item)) addWritten(item, add);
  addContent(body.content, add);
  return answer.texts.length > 0 ? answer : undefined;
}

/** What a model wrote of a message or item, without its frame. */
function addWritten(message: JsonObject, add: Add): void {
  addContent(message.content, add);
  addContent(message.summary, add);
  for (const text of [message.reasoning_content ?? message.reasoning, message.refusal, message.name, message.arguments, message.input])
    add(text);
  for (const call of [...listOf(message.tool_calls), { function: message.function_call }]) addCall(call, add);
}

type Add = (text: unknown) => void;

/** Chat's `messages`, Responses' `input` and `instructions`, Anthropic's `system` and `messages`, and the tools of all three. */
function addConversation(body: JsonObject, prompt: Prompt, add: Add): void {
  for (const own of [body.instructions, body.system]) if (own) addMessage({ role: 'system', content: own }, prompt, add);
  if (typeof body.input === 'string') addMessage({ role: 'user', content: body.input }, prompt, add);
  for (const message of [...listOf(body.messages), ...listOf(body.input)]) addMessage(message, prompt, add);
  for (const tool of [...listOf(body.tools), ...listOf(body.functions)])
    add(JSON.stringify(isObject(tool) ? (tool.function ?? tool) : tool));
  for (const format of [body.response_format, isObject(body.text) ? body.text.format : undefined]) addSchema(format, add);
  if (prompt.texts.length > 0) prompt.tokens += REPLY_TOKENS;
}

/** A message, or one of Responses' items: calls, their outputs, and what is none of these. */
function addMessage(message: unknown, prompt: Prompt, add: Add): void {
  if (!isObject(message)) return;
  prompt.tokens += MESSAGE_TOKENS;
  add(message.role);
  addContent(message.content, add);
  if (typeof message.name === 'string' && message.name !== '') {
    add(message.name);
    if (message.role) prompt.tokens += NAME_TOKENS; // else it is that of a function
  }
  for (const text of [message.arguments, message.refusal]) add(text);
  addContent(message.output, add);
  if (typeof message.input === 'string') add(message.input); // of a custom tool
  for (const call of [...listOf(message.tool_calls), { function: message.function_call }]) addCall(call, add);
}

function addCall(call: unknown, add: Add): void {
  if (!isObject(call)) return;
  for (const called of [call.function, call.custom]) {
    if (!isObject(called)) continue;
    for (const text of [called.name, called.arguments, called.input]) add(text);
  }
}

/** A string, or parts of which only those with text count; Anthropic's calls and their results are parts as well. */
function addContent(content: unknown, add: Add): void {
  add(content);
  for (const part of listOf(content)) {
    if (typeof part === 'string') add(part);
    if (!isObject(part)) continue;
    for (const text of [part.text, part.refusal, part.thinking]) add(text);
    if (part.type === 'tool_use') {
      add(part.name);
      add(JSON.stringify(part.input));
    } else if (part.type === 'tool_result') addContent(part.content, add);
    else if (part.type === 'document' && isObject(part.source) && part.source.type === 'text') add(part.source.data);
  }
}

function addSchema(format: unknown, add: Add): void {
  if (!isObject(format)) return;
  const schema = isObject(format.json_schema) ? format.json_schema.schema : format.schema;
  if (isObject(schema)) add(JSON.stringify(schema));
}

/** A text, texts, tokens, or lists of tokens: `prompt` and embeddings' `input` may be any of these. */
function addTokensOrTexts(input: unknown, prompt: Prompt, add: Add): void {
  add(input);
  for (const item of listOf(input)) {
    if (typeof item === 'number') prompt.tokens++;
    else if (Array.isArray(item)) prompt.tokens += item.length;
    else if (isObject(item))
      add(item.text); // moderations
    else add(item);
  }
}

function listOf(value: unknown): unknown[] {
  return Array.isArray(value) ? value : [];
}

function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

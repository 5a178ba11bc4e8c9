// The Responses API: POST /v1/responses, and GET /v1/responses/ID to read a stored answer or to hear it again from any event on.
import { randomUUID } from 'node:crypto';
import { type Call, type Fields, isFields, openEvents, readFields, sendEvent, sendJson } from './call.ts';
import { MAX_TOKENS, readContent } from './chat.ts';
import { readFlag, readInteger, readModel, readRequired, readStreaming, wrongValue } from './fields.ts';
import { type Ask, composeReply, countReply, countTokens } from './model.ts';
import { type Answer, finalResponse, narrate } from './narrate.ts';
import { startPacer } from './pace.ts';
import { createRefusal } from './refusal.ts';
import { chooseCall } from './tools.ts';

/** How many answers are kept, and of how many request bytes altogether; the oldest goes first. */
const MAX_STORED = 100;
const MAX_STORED_BYTES = 64 * 1024 * 1024;

interface Turn {
  readonly role: string;
  readonly text: string;
}

/** The two endpoints, over one memory of past answers. An answer is kept from its first event on, unless `store` is false. */
export function createResponses(): { create(call: Call): Promise<void>; retrieve(call: Call, id: string): Promise<void> } {
  const shelf = createShelf();
  return {
    async create(call) {
      const { fields, bytes } = await readFields(call);
      const { isStream } = readStreaming(fields);
      const answer = composeAnswer(fields);
      if (fields.store !== false) shelf.put(answer, bytes);
      if (isStream) return streamAnswer(call, answer, -1);
      await startPacer(call.pace, call.gone).reach(countReply(answer.reply));
      sendJson(call.res, 200, finalResponse(answer));
    },
    async retrieve(call, id) {
      const answer = shelf.get(id);
      if (!answer) throw createRefusal(404, `Response with id '${id}' not found.`, { param: 'id' });
      const after = call.query.get('starting_after') ?? '-1';
      if (!/^(-1|\d{1,9})$/.test(after)) throw wrongValue('starting_after', 'the sequence number of an event');
      if (call.query.get('stream') === 'true') return streamAnswer(call, answer, Number(after));
      sendJson(call.res, 200, finalResponse(answer));
    },
  };
}

function createShelf(): { put(answer: Answer, bytes: number): void; get(id: string): Answer | undefined } {
  const stored = new Map<string, { answer: Answer; bytes: number }>();
  let storedBytes = 0;
  return {
    put(answer, bytes) {
      stored.set(answer.id, { answer, bytes });
      storedBytes += bytes;
      for (const [id, oldest] of stored) {
        if (stored.size <= MAX_STORED && storedBytes <= MAX_STORED_BYTES) break;
        stored.delete(id);
        storedBytes -= oldest.bytes;
      }
    },
    get: (id) => stored.get(id)?.answer,
  };
}

/** Sends the events after number `after` at the call's own pace. No `[DONE]`: the terminal event ends it, as at OpenAI. */
async function streamAnswer(call: Call, answer: Answer, after: number): Promise<void> {
  openEvents(call);
  const pacer = startPacer(call.pace, call.gone);
  let tokens = 0;
  for (const { isToken, payload } of narrate(answer)) {
    if (payload.sequence_number <= after) continue;
    if (isToken) tokens += 1;
    if (isToken) await pacer.reach(tokens);
    await sendEvent(call, payload, payload.type);
  }
  call.res.end();
}

function composeAnswer(fields: Fields): Answer {
  const model = readModel(fields);
  const turns = readInput(fields);
  const last = turns.at(-1)!;
  const ask: Ask = {
    model,
    texts: turns.filter(({ role }) => role !== 'assistant' && role !== 'tool').map(({ text }) => text),
    toolResult: last.role === 'tool' ? last.text : undefined,
    call: last.role === 'user' ? chooseCall(fields) : undefined,
    stop: [],
    maxTokens: readInteger(fields, 'max_output_tokens', 1, MAX_TOKENS),
  };
  const id = `resp_${randomUUID().replaceAll('-', '')}`;
  const inputTokens = turns.reduce((sum, { text }) => sum + countTokens(text), 0);
  return { id, head: headOf(id, model, fields), reply: composeReply(ask), inputTokens };
}

/** `instructions`, then `input`: a string, or messages and the results of calls. Other items (calls, reasoning) say nothing. */
function readInput(fields: Fields): Turn[] {
  const input = readRequired(fields, 'input');
  const instructions = readContent(fields.instructions, 'instructions');
  const before = instructions === '' ? [] : [{ role: 'system', text: instructions }];
  if (typeof input === 'string') return [...before, { role: 'user', text: input }];
  if (!Array.isArray(input) || input.length === 0) throw wrongValue('input', 'a string or an array of one item or more');
  return before.concat(input.map(readTurn));
}

function readTurn(item: unknown, index: number): Turn {
  if (!isFields(item)) throw wrongValue(`input[${index}]`, 'an object');
  if (item.type === 'function_call_output') return { role: 'tool', text: readContent(item.output, `input[${index}].output`) };
  const role = typeof item.role === 'string' ? item.role : 'assistant';
  return { role, text: readContent(item.content, `input[${index}].content`) };
}

function headOf(id: string, model: string, fields: Fields): Fields {
  return {
    id,
    object: 'response',
    created_at: Math.floor(Date.now() / 1000),
    background: readFlag(fields, 'background'),
    error: null,
    instructions: fields.instructions ?? null,
    max_output_tokens: fields.max_output_tokens ?? null,
    metadata: fields.metadata ?? {},
    model,
    parallel_tool_calls: fields.parallel_tool_calls ?? true,
    previous_response_id: fields.previous_response_id ?? null,
    reasoning: { effort: null, summary: null },
    store: fields.store ?? true,
    temperature: fields.temperature ?? 1,
    text: fields.text ?? { format: { type: 'text' } },
    tool_choice: fields.tool_choice ?? 'auto',
    tools: fields.tools ?? [],
    top_p: fields.top_p ?? 1,
    truncation: 'disabled',
  };
}

// POST /v1/chat/completions: text and tool calls, whole and streamed, as OpenAI's chat API shapes them.
import { randomUUID } from 'node:crypto';
import { type Call, type Fields, isFields, openEvents, readFields, sendEvent, sendJson } from './call.ts';
import { missing, readInteger, readModel, readRequired, readStop, readStreaming, wrongValue } from './fields.ts';
import { type Ask, composeReply, countReply, countTokens, type Reply } from './model.ts';
import { startPacer } from './pace.ts';
import { chooseCall } from './tools.ts';

/** OpenAI allows 128; a demo need not hold so many answers at a time. */
export const MAX_CHOICES = 16;

/** Far beyond what it ever says, so that any limit a real model takes is taken here. */
export const MAX_TOKENS = 10_000_000;

interface Message {
  readonly role: string;
  readonly text: string;
}

/** Answers one chat request; throws refusals, and rejects when the client leaves. */
export async function completeChat(call: Call): Promise<void> {
  const { fields } = await readFields(call);
  const model = readModel(fields);
  const messages = readMessages(fields);
  const { isStream, hasUsage } = readStreaming(fields);
  const ask = askOf(fields, model, messages);
  const replies = Array.from({ length: readInteger(fields, 'n', 1, MAX_CHOICES) ?? 1 }, (_, variant) => composeReply(ask, variant));
  const usage = usageOf(messages, replies);
  const head = { id: `chatcmpl-${randomUUID()}`, created: Math.floor(Date.now() / 1000), model, system_fingerprint: 'fp_demo' };
  if (isStream) return streamChat(call, { ...head, object: 'chat.completion.chunk' }, replies, hasUsage ? usage : undefined);
  await startPacer(call.pace, call.gone).reach(Math.max(...replies.map(countReply)));
  sendJson(call.res, 200, { ...head, object: 'chat.completion', choices: replies.map(choiceOf), usage });
}

function askOf(fields: Fields, model: string, messages: Message[]): Ask {
  const last = messages.at(-1)!;
  return {
    model,
    texts: messages.filter(({ role }) => role !== 'assistant' && role !== 'tool').map(({ text }) => text),
    toolResult: last.role === 'tool' ? last.text : undefined,
    call: last.role === 'user' ? chooseCall(fields) : undefined,
    stop: readStop(fields),
    maxTokens: readInteger(fields, 'max_completion_tokens', 1, MAX_TOKENS) ?? readInteger(fields, 'max_tokens', 1, MAX_TOKENS),
  };
}

function readMessages(fields: Fields): Message[] {
  const list = readRequired(fields, 'messages');
  if (!Array.isArray(list) || list.length === 0) throw wrongValue('messages', 'an array of one message or more');
  return list.map((message: unknown, i) => {
    if (!isFields(message)) throw wrongValue(`messages[${i}]`, 'an object');
    if (typeof message.role !== 'string') throw missing(`messages[${i}].role`);
    return { role: message.role, text: readContent(message.content, `messages[${i}].content`) };
  });
}

/** The text of a message: a string, or the text parts of an array; of images and sounds it takes no notice. */
export function readContent(content: unknown, param: string): string {
  if (typeof content === 'string') return content;
  if (content === null || content === undefined) return '';
  if (!Array.isArray(content)) throw wrongValue(param, 'a string or an array of parts');
  return content.map((part: unknown) => (isFields(part) && typeof part.text === 'string' ? part.text : '')).join('\n');
}

function usageOf(messages: Message[], replies: Reply[]): Fields {
  const prompt = messages.reduce((sum, { text }) => sum + countTokens(text), 0);
  const completion = replies.reduce((sum, reply) => sum + countReply(reply), 0);
  const reasoning = replies.reduce((sum, reply) => sum + reply.reasoning.length, 0);
  return {
    prompt_tokens: prompt,
    completion_tokens: completion,
    total_tokens: prompt + completion,
    prompt_tokens_details: { cached_tokens: 0, audio_tokens: 0 },
    completion_tokens_details: {
      reasoning_tokens: reasoning,
      audio_tokens: 0,
      accepted_prediction_tokens: 0,
      rejected_prediction_tokens: 0,
    },
  };
}

function choiceOf({ reasoning, said, call, finish }: Reply, index: number): Fields {
  const message = {
    role: 'assistant',
    content: call ? null : said.join(''),
    refusal: null,
    ...(reasoning.length > 0 && { reasoning_content: reasoning.join('') }),
    ...(call && { tool_calls: [{ id: newCallId(), type: 'function', function: { name: call.name, arguments: said.join('') } }] }),
  };
  return { index, message, logprobs: null, finish_reason: finish };
}

function newCallId(): string {
  return `call_${randomUUID().replaceAll('-', '').slice(0, 24)}`;
}

/**
 * One delta, one token; the choices in turn. With `usage`, one more chunk without choices carries it at the end, and all
 * others say `"usage":null`, as OpenAI does with `stream_options.include_usage`.
 */
async function streamChat(call: Call, head: Fields, replies: Reply[], usage: Fields | undefined): Promise<void> {
  const tail = usage && { usage: null };
  const sendDelta = (index: number, delta: Fields, finish: string | null = null): Promise<void> =>
    sendEvent(call, { ...head, choices: [{ index, delta, logprobs: null, finish_reason: finish }], ...tail });
  openEvents(call);
  const pacer = startPacer(call.pace, call.gone);
  const rounds = Math.max(1, ...replies.map(countReply));
  for (let round = 0; round < rounds; round += 1) {
    await pacer.reach(round + 1);
    for (const [index, reply] of replies.entries()) {
      if (round === 0) await sendDelta(index, openingOf(reply));
      if (round < countReply(reply)) await sendDelta(index, deltaAt(reply, round));
      if (round === Math.max(countReply(reply), 1) - 1) await sendDelta(index, {}, reply.finish);
    }
  }
  if (usage) await sendEvent(call, { ...head, choices: [], usage });
  await sendEvent(call, '[DONE]');
  call.res.end();
}

function openingOf({ call }: Reply): Fields {
  const role = { role: 'assistant', content: call ? null : '', refusal: null };
  if (!call) return role;
  return { ...role, tool_calls: [{ index: 0, id: newCallId(), type: 'function', function: { name: call.name, arguments: '' } }] };
}

function deltaAt({ reasoning, said, call }: Reply, round: number): Fields {
  if (round < reasoning.length) return { reasoning_content: reasoning[round] };
  const token = said[round - reasoning.length];
  return call ? { tool_calls: [{ index: 0, function: { arguments: token } }] } : { content: token };
}

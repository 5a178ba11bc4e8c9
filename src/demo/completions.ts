// POST /v1/completions: the legacy shape of the same answers.
import { randomUUID } from 'node:crypto';
import { type Call, type Fields, openEvents, readFields, sendEvent, sendJson } from './call.ts';
import { MAX_CHOICES, MAX_TOKENS } from './chat.ts';
import { readInteger, readModel, readStop, readStreaming, readTexts, wrongValue } from './fields.ts';
import { composeReply, countTokens, type Reply } from './model.ts';
import { startPacer } from './pace.ts';

/** Answers one legacy completion; throws refusals, and rejects when the client leaves. Without `max_tokens` it says all it has. */
export async function completeText(call: Call): Promise<void> {
  const { fields } = await readFields(call);
  const model = readModel(fields);
  const prompts = readTexts(fields, 'prompt', MAX_CHOICES);
  const { isStream, hasUsage } = readStreaming(fields);
  const replies = composeReplies(fields, prompts);
  const usage = usageOf(prompts, replies);
  const head = { id: `cmpl-${randomUUID()}`, object: 'text_completion', created: Math.floor(Date.now() / 1000), model };
  if (isStream) return streamText(call, head, replies, hasUsage ? usage : undefined);
  await startPacer(call.pace, call.gone).reach(Math.max(...replies.map(({ said }) => said.length)));
  const choices = replies.map(({ said, finish }, index) => choiceOf(index, said.join(''), finish));
  sendJson(call.res, 200, { ...head, choices, usage });
}

/** `n` answers to each prompt. This shape has no place for reasoning, so no model reasons here. */
function composeReplies(fields: Fields, prompts: string[]): Reply[] {
  const n = readInteger(fields, 'n', 1, MAX_CHOICES) ?? 1;
  if (n * prompts.length > MAX_CHOICES) throw wrongValue('n', `such that there are ${MAX_CHOICES} choices at most`);
  const stop = readStop(fields);
  const maxTokens = readInteger(fields, 'max_tokens', 1, MAX_TOKENS);
  return prompts.flatMap((prompt) =>
    Array.from({ length: n }, (_, variant) => composeReply({ model: '', texts: [prompt], stop, maxTokens }, variant)),
  );
}

function usageOf(prompts: string[], replies: Reply[]): Fields {
  const prompt = prompts.reduce((sum, text) => sum + countTokens(text), 0);
  const completion = replies.reduce((sum, { said }) => sum + said.length, 0);
  return { prompt_tokens: prompt, completion_tokens: completion, total_tokens: prompt + completion };
}

function choiceOf(index: number, text: string, finish: string | null): Fields {
  return { text, index, logprobs: null, finish_reason: finish };
}

async function streamText(call: Call, head: Fields, replies: Reply[], usage: Fields | undefined): Promise<void> {
  const tail = usage && { usage: null };
  openEvents(call);
  const pacer = startPacer(call.pace, call.gone);
  const rounds = Math.max(1, ...replies.map(({ said }) => said.length));
  for (let round = 0; round < rounds; round += 1) {
    await pacer.reach(round + 1);
    for (const [index, { said, finish }] of replies.entries()) {
      const isLast = round === Math.max(said.length, 1) - 1;
      if (round >= said.length && !isLast) continue;
      await sendEvent(call, { ...head, choices: [choiceOf(index, said[round] ?? '', isLast ? finish : null)], ...tail });
    }
  }
  if (usage) await sendEvent(call, { ...head, choices: [], usage });
  await sendEvent(call, '[DONE]');
  call.res.end();
}

// Tells an answer in the events of the Responses API, in their order and numbered, and as the one object they add up to.
import type { Fields } from './call.ts';
import { countReply, type Reply } from './model.ts';

/** An answer, settled before its first event. `head` is what every copy of the response object begins with. */
export interface Answer {
  readonly id: string;
  readonly head: Fields;
  readonly reply: Reply;
  readonly inputTokens: number;
}

/** One event. `isToken` marks the deltas, which are what is paced. */
export interface Told {
  readonly isToken: boolean;
  readonly payload: Fields & { readonly type: string; readonly sequence_number: number };
}

/** One output item: how its object looks with so much text in it, and what its events are called. */
interface Item {
  readonly id: string;
  readonly tokens: readonly string[];
  /** Whether `max_output_tokens` ended it. */
  readonly isCut: boolean;
  /** The prefix of its delta and done events. */
  readonly voice: string;
  /** The prefix of the events about its one part, where it has parts, and that part's index. */
  readonly part?: string;
  readonly place: Fields;
  /** How the done event names the text. */
  readonly whole: 'text' | 'arguments';
  partOf(text: string): Fields;
  objectOf(status: string, text?: string): Fields;
}

/** The response object once it is complete, or incomplete at `max_output_tokens`. */
export function finalResponse(answer: Answer): Fields {
  const { head, reply, inputTokens } = answer;
  const isCut = reply.finish === 'length';
  const output = itemsOf(answer).map((item) => item.objectOf(endOf(item), item.tokens.join('')));
  return {
    ...head,
    status: isCut ? 'incomplete' : 'completed',
    incomplete_details: isCut ? { reason: 'max_output_tokens' } : null,
    output,
    usage: {
      input_tokens: inputTokens,
      input_tokens_details: { cached_tokens: 0, cache_write_tokens: 0 },
      output_tokens: countReply(reply),
      output_tokens_details: { reasoning_tokens: reply.reasoning.length },
      total_tokens: inputTokens + countReply(reply),
    },
  };
}

/** All events of an answer; the same ones, with the same numbers, however often it is told. */
export function* narrate(answer: Answer): Generator<Told> {
  let sequence = 0;
  const tell = (type: string, rest: Fields, isToken = false): Told => {
    const payload = { type, sequence_number: sequence, ...rest };
    sequence += 1;
    return { isToken, payload };
  };
  const response = { ...answer.head, status: 'in_progress', incomplete_details: null, output: [], usage: null };
  yield tell('response.created', { response });
  yield tell('response.in_progress', { response });
  for (const [index, item] of itemsOf(answer).entries()) yield* narrateItem(item, index, tell);
  const final = finalResponse(answer);
  yield tell(`response.${final.status}`, { response: final });
}

function* narrateItem(item: Item, index: number, tell: (type: string, rest: Fields, isToken?: boolean) => Told): Generator<Told> {
  const at = { item_id: item.id, output_index: index, ...item.place };
  const text = item.tokens.join('');
  yield tell('response.output_item.added', { output_index: index, item: item.objectOf('in_progress') });
  if (item.part) yield tell(`${item.part}.added`, { ...at, part: item.partOf('') });
  for (const delta of item.tokens) yield tell(`${item.voice}.delta`, { ...at, delta }, true);
  yield tell(`${item.voice}.done`, { ...at, [item.whole]: text });
  if (item.part) yield tell(`${item.part}.done`, { ...at, part: item.partOf(text) });
  yield tell('response.output_item.done', { output_index: index, item: item.objectOf(endOf(item), text) });
}

function endOf(item: Item): string {
  return item.isCut ? 'incomplete' : 'completed';
}

/** What was thought, then what was said or called; an answer cut off while it thought says nothing. */
function itemsOf({ id, reply }: Answer): Item[] {
  const { reasoning, said, call, finish } = reply;
  const isCut = finish === 'length';
  const items: Item[] = [];
  if (reasoning.length > 0) items.push(reasoningItem(id, reasoning, isCut && said.length === 0));
  if (said.length === 0 && isCut) return items;
  items.push(call ? callItem(id, call.name, said, isCut) : messageItem(id, said, isCut));
  return items;
}

function reasoningItem(responseId: string, tokens: readonly string[], isCut: boolean): Item {
  const id = responseId.replace('resp_', 'rs_');
  const partOf = (text: string): Fields => ({ type: 'summary_text', text });
  const objectOf = (status: string, text?: string): Fields => ({
    id,
    type: 'reasoning',
    status,
    summary: text === undefined ? [] : [partOf(text)],
  });
  const names = { voice: 'response.reasoning_summary_text', part: 'response.reasoning_summary_part', whole: 'text' } as const;
  return { id, tokens, isCut, ...names, place: { summary_index: 0 }, partOf, objectOf };
}

function messageItem(responseId: string, tokens: readonly string[], isCut: boolean): Item {
  const id = responseId.replace('resp_', 'msg_');
  const partOf = (text: string): Fields => ({ type: 'output_text', annotations: [], logprobs: [], text });
  const objectOf = (status: string, text?: string): Fields => ({
    id,
    type: 'message',
    status,
    role: 'assistant',
    content: text === undefined ? [] : [partOf(text)],
  });
  const names = { voice: 'response.output_text', part: 'response.content_part', whole: 'text' } as const;
  return { id, tokens, isCut, ...names, place: { content_index: 0 }, partOf, objectOf };
}

function callItem(responseId: string, name: string, tokens: readonly string[], isCut: boolean): Item {
  const id = responseId.replace('resp_', 'fc_');
  const partOf = (): Fields => ({});
  const objectOf = (status: string, text = ''): Fields => ({
    id,
    type: 'function_call',
    status,
    call_id: responseId.replace('resp_', 'call_'),
    name,
    arguments: text,
  });
  const names = { voice: 'response.function_call_arguments', whole: 'arguments' } as const;
  return { id, tokens, isCut, ...names, place: {}, partOf, objectOf };
}

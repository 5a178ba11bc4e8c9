// The Responses API: named events, numbered, with the usage in whichever of three ends the stream.
import { type Dialect, formatEvent, indexOf, isObject, type JsonObject, openaiError } from './dialect.ts';
import { createNamedDialect, type NamedEvents } from './named.ts';
import type { Findings } from './reader.ts';

const TERMINAL = new Set(['response.completed', 'response.incomplete', 'response.failed']);
const CALLS = new Set<unknown>(['function_call', 'custom_tool_call', 'mcp_call']);
const ACTIONS = new Set<unknown>(['local_shell_call', 'shell_call', 'computer_call', 'apply_patch_call']);

/** https://platform.openai.com/docs/api-reference/responses-streaming; an error must carry both forms, openai-python raises on the nested one only. */
export const responses: Dialect = {
  ...createNamedDialect('responses', responsesEvents),
  writes: 'messages',
  errorEvent: (error, reader) =>
    formatEvent('error', {
      type: 'error',
      sequence_number: reader.sequenceNumber + 1,
      code: error.code,
      message: error.message,
      param: null,
      error: openaiError(error),
    }),
};

function responsesEvents(): NamedEvents {
  const inDeltas = new Set<unknown>(); // output_index of the items that came in deltas

  function readContent(type: string, event: JsonObject, findings: Findings): boolean {
    const item = indexOf(event.output_index);
    if (type === 'response.output_item.added') readName(event.item, item, findings);
    else if (type === 'response.output_item.done') {
      readName(event.item, item, findings);
      if (!inDeltas.has(event.output_index)) readWholeCall(event.item, item, findings);
    } else if (type === 'response.image_generation_call.partial_image') findings.addOpaque(event.partial_image_b64);
    else if (type.endsWith('.delta') && typeof event.delta === 'string') {
      inDeltas.add(event.output_index);
      if (type.endsWith('audio.delta')) findings.addOpaque(event.delta);
      else findings.addText(event.delta, `${item} ${indexOf(event.content_index ?? event.summary_index)} ${type}`);
      return true;
    }
    return false;
  }
  return { readContent, terminal: TERMINAL, envelope: 'response', failed: 'response.failed' };
}

/** The item names the tool when it begins, and once more when it is done. */
function readName(item: unknown, index: number, findings: Findings): void {
  if (isObject(item) && CALLS.has(item.type)) findings.addName(item.name, `${index} name`, item.call_id);
}

/**
 * Some give a call's arguments in one piece, without deltas (xAI); and nobody has deltas for what the model tells a client's shell
 * or computer to do, which it wrote as JSON of some such form. A server's own tool calls are not the client's text.
 */
function readWholeCall(item: unknown, index: number, findings: Findings): void {
  if (!isObject(item)) return;
  if (item.type === 'function_call') findings.addText(item.arguments, `${index} call`);
  else if (item.type === 'custom_tool_call') findings.addText(item.input, `${index} call`);
  else if (ACTIONS.has(item.type)) findings.addText(JSON.stringify(item.action ?? item.operation), `${index} call`);
}

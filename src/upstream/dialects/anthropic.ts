// Anthropic's Messages: usage in two events, the second replacing what the first said; pings; message_stop.
import { type Dialect, type EventReader, formatEvent, indexOf, isObject, type JsonObject } from './dialect.ts';
import { createReader, type Findings } from './reader.ts';
import { readAnthropicUsage } from './usage.ts';

/** https://docs.anthropic.com/en/docs/build-with-claude/streaming */
export const anthropic: Dialect = {
  name: 'anthropic',
  writes: 'messages',
  createReader: createMessagesReader,
  usageOf: readAnthropicUsage,
  errorEvent: (error) => formatEvent('error', { type: 'error', error: { type: error.type, message: error.message, code: error.code } }),
};

function createMessagesReader(): EventReader {
  let usage: JsonObject = {};

  function merge(more: unknown): JsonObject {
    if (!isObject(more)) return usage;
    usage = { ...usage };
    for (const [key, value] of Object.entries(more)) if (value !== null) usage[key] = value;
    return usage;
  }

  function begin(message: unknown, findings: Findings): void {
    findings.setTerminated(false);
    if (!isObject(message)) return;
    findings.setModel(message.model);
    if (isObject(message.usage)) findings.setUsage(readAnthropicUsage(merge(message.usage)), false, false); // its output is a placeholder
  }

  return createReader({
    interpret(event, name, findings) {
      const type = typeof event.type === 'string' ? event.type : name;
      if (type === 'ping') return false;
      if (type === 'content_block_delta') return readDelta(event.delta, indexOf(event.index), findings);
      findings.addMeaning();
      if (type === 'message_start') begin(event.message, findings);
      else if (type === 'content_block_start') readBlock(event.content_block, indexOf(event.index), findings);
      else if (type === 'message_delta' && isObject(event.usage)) findings.setUsage(readAnthropicUsage(merge(event.usage)), true);
      else if (type === 'message_stop') findings.setTerminated(true);
      else if (type === 'error' || name === 'error') findings.setError();
      return false;
    },
    interpretOther(name, _data, findings) {
      if (name === 'message_stop') findings.setTerminated(true);
    },
  });
}

function readDelta(delta: unknown, block: number, findings: Findings): boolean {
  if (!isObject(delta)) return false;
  findings.addText(delta.text, `${block}`);
  findings.addText(delta.thinking, `${block}`);
  findings.addText(delta.partial_json, `${block}`);
  findings.addText(delta.content, `${block}`); // of a compaction
  if (Object.entries(delta).some(([key, value]) => key !== 'type' && value)) findings.addMeaning(); // signatures, citations, what is new
  return true;
}

/** Blocks begin empty, as a rule; those that call a tool begin with its name. */
function readBlock(block: unknown, index: number, findings: Findings): void {
  if (!isObject(block)) return;
  if (block.type === 'text') findings.addText(block.text, `${index}`);
  else if (block.type === 'thinking') findings.addText(block.thinking, `${index}`);
  else if (block.type === 'tool_use' || block.type === 'server_tool_use') findings.addName(block.name, `${index} name`, block.id);
}

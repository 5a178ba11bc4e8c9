// What a client may have heard of an answer that may be malformed, by a strict reading of it.
import { createMessageReader, EXTENDED_CHUNK_LINE, frameResponse, type Message, statusOf } from './framing.ts';

/** How the upstream left the connection behind its answer. */
export type Ending = 'fin' | 'reset' | 'stay';

export interface Heard {
  readonly status: number;
  readonly body: Buffer;
  /** Whether the body's framing said that it was complete. */
  readonly isWhole: boolean;
}

/** Holds what the client heard against a strict reading of what the upstream said. */
export function judgeAnswer(bytes: Buffer, ending: Ending, heard: Heard, finding: (what: string) => void): void {
  const said = readAnswer(bytes, ending === 'fin');
  const body = heard.body.toString('latin1');
  const trimmed = body.replace(/(?:event: error\n)?data: \{[^\n]*"code":"upstream_\w+"[^\n]*\}\n\n$/, '');
  if (said === undefined) {
    if (!isSubsequence(trimmed, bytes.toString('latin1'))) finding(`heard what was not said: ${JSON.stringify(body)}`);
    return;
  }
  const text = said.body.view().toString('latin1');
  if (heard.status !== statusOf(said.head)) finding(`status ${statusOf(said.head)} came as ${heard.status}`);
  if (!text.startsWith(body) && !text.startsWith(trimmed))
    finding(`heard ${JSON.stringify(body)}, not a prefix of ${JSON.stringify(text)}`);
  // Whoever has said its last word in an event stream has ended it; what breaks behind that is nobody's any more.
  const hasLastWord = /data: ?\[DONE\]|"error":|^event: ?error$/m.test(text) && /event-stream/i.test(said.head.text);
  if (heard.isWhole && !said.isComplete && !hasLastWord) finding('a body was completed that the upstream had not completed');
  if (heard.isWhole && body.length < text.length) finding(`${text.length} bytes came as ${body.length}, complete`);
}

/** The first final answer as far as it is well-formed; undefined where its head is not. */
function readAnswer(bytes: Buffer, isFinished: boolean): Message | undefined {
  const reader = createMessageReader((head) => frameResponse(head, 'POST'), undefined, EXTENDED_CHUNK_LINE);
  try {
    reader.push(bytes);
  } catch {
    // What is malformed behind the head shows in what was read of the body.
  }
  if (isFinished) reader.finish();
  return reader.messages.find(({ head }) => statusOf(head) >= 200);
}

function isSubsequence(text: string, whole: string): boolean {
  let at = 0;
  for (const char of text) {
    at = whole.indexOf(char, at) + 1;
    if (at === 0) return false;
  }
  return true;
}

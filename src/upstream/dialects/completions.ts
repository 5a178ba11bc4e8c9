// Legacy completions: the frame of chat, with the text in the choice itself.
import { createChoicesDialect } from './chat.ts';
import type { Dialect } from './dialect.ts';

/** https://platform.openai.com/docs/api-reference/completions/object */
export const completions: Dialect = createChoicesDialect('completions', (choice, findings) => {
  findings.addText(choice.text);
  findings.addText(choice.reasoning_content || choice.reasoning);
  return Boolean(choice.text);
});

// Legacy completions: the frame of chat, with the text in the choice itself.
import { createChoicesDialect } from './chat.ts';
import { type Dialect, indexOf } from './dialect.ts';

/** https://platform.openai.com/docs/api-reference/completions/object */
export const completions: Dialect = createChoicesDialect('completions', 'text', (choice, findings) => {
  const index = indexOf(choice.index);
  findings.addText(choice.text, `${index}`);
  findings.addText(choice.reasoning_content || choice.reasoning, `${index} reasoning`);
  return Boolean(choice.text);
});

// Endpoints whose terminal event nobody defined: every proper end is complete, and every event but a ping has content.
import { type Dialect, type EventReader, formatEvent, openaiError } from './dialect.ts';
import { createReader } from './reader.ts';
import { readOpenaiUsage } from './usage.ts';

export const plain: Dialect = {
  name: 'plain',
  writes: undefined,
  createReader: createPlainReader,
  usageOf: readOpenaiUsage,
  errorEvent: (error) => formatEvent(undefined, { error: openaiError(error) }),
};

function createPlainReader(): EventReader {
  return createReader({
    interpret(event, name, findings) {
      if (name === 'ping' || event.type === 'ping') return false;
      findings.setModel(event.model);
      findings.setUsage(readOpenaiUsage(event.usage), true);
      if (name === 'error' || event.type === 'error' || event.error) findings.setError();
      else findings.addOpaque(true);
      return false;
    },
    isComplete: () => true,
  });
}

// The frame of OpenAI's newer streams: every event has a type, one of them ends the stream, an error is an event of its own.
import { type Dialect, type EventReader, formatEvent, isObject, type JsonObject, openaiError } from './dialect.ts';
import { createReader, type Findings } from './reader.ts';
import { readOpenaiUsage } from './usage.ts';

export interface NamedEvents {
  /** Adds what the event holds, if it is one of those with content; returns whether it is. */
  readContent(type: string, event: JsonObject, findings: Findings): boolean;
  /** Types of the events that end the stream and carry the usage. */
  terminal: ReadonlySet<string>;
  /** Where usage and model stand, if not in the event itself. */
  envelope?: string;
  /** Ends the stream, and says that it failed. */
  failed?: string;
}

export function createNamedReader(events: NamedEvents): EventReader {
  return createReader({
    interpret(event, name, findings) {
      const type = typeof event.type === 'string' ? event.type : name;
      if (type === 'ping' || type === 'keepalive') return false;
      if (events.readContent(type, event, findings)) return true;
      findings.addMeaning();
      const inner = events.envelope === undefined ? event : event[events.envelope];
      if (isObject(inner)) findings.setModel(inner.model);
      readEnd(type, events, findings);
      if (isObject(inner) && events.terminal.has(type)) findings.setUsage(readOpenaiUsage(inner.usage), true);
      if (name === 'error' || type === 'error' || event.error) findings.setError();
      return false;
    },
    interpretOther: (name, _data, findings) => readEnd(name, events, findings),
  });
}

function readEnd(type: string, events: NamedEvents, findings: Findings): void {
  if (events.terminal.has(type)) findings.setTerminated(true);
  if (type === events.failed) findings.setError();
}

/** A dialect of named events with `error` events as the SDKs raise them. */
export function createNamedDialect(name: string, events: () => NamedEvents): Dialect {
  return {
    name,
    writes: undefined,
    createReader: () => createNamedReader(events()),
    usageOf: readOpenaiUsage,
    errorEvent: (error) => formatEvent('error', { type: 'error', error: openaiError(error) }),
  };
}

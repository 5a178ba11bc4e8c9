// Reads an event that is too long to be held: of its megabytes, almost always one image, only what a dialect looks at is kept.
import { createTopLevelScanner, type TopLevelScanner } from './json.ts';

const MAX_VALUE_BYTES = 65_536;
/** Responses' last event repeats the whole answer, images and all, in `response`. */
const ENVELOPE = 'response';
const IN_ENVELOPE = ['model', 'usage'];
const AT_TOP = ['type', 'sequence_number', 'model', 'usage', 'error', ENVELOPE];
/** Where images and audio stand. That they are there is what counts. */
const OPAQUE = ['b64_json', 'partial_image_b64', 'audio'];
const IN_EVENT = [...AT_TOP, ...OPAQUE];

export interface Excerpt {
  /** The next bytes of the event's data (latin1), cut anywhere. */
  scan(bytes: string): void;
  /** The event without what was too long, as JSON; `''` where it is no JSON object. */
  text(): string;
  /** It says what kind of event it is. */
  readonly hasType: boolean;
}

export function createExcerpt(): Excerpt {
  const envelope = createTopLevelScanner(IN_ENVELOPE, MAX_VALUE_BYTES);
  const event = createTopLevelScanner(IN_EVENT, MAX_VALUE_BYTES, { key: ENVELOPE, scan: (bytes) => envelope.scan(bytes) });

  function text(): string {
    if (!event.isComplete) return '';
    const members = membersOf(event, IN_EVENT);
    if (event.member(ENVELOPE) !== undefined && event.value(ENVELOPE) === undefined) {
      members.push(`"${ENVELOPE}":{${membersOf(envelope, IN_ENVELOPE).join()}}`);
    }
    for (const key of OPAQUE) if (event.member(key) !== undefined && event.value(key) === undefined) members.push(`"${key}":"..."`);
    return `{${members.join()}}`;
  }

  return {
    scan: (bytes) => event.scan(bytes),
    text,
    get hasType() {
      return event.value('type') !== undefined;
    },
  };
}

function membersOf(scanner: TopLevelScanner, keys: readonly string[]): string[] {
  return keys.flatMap((key) => {
    const value = scanner.value(key);
    return value === undefined ? [] : [`"${key}":${value}`];
  });
}

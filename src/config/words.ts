// The kinds of words that a configuration is written in: how each is read, what to say when it cannot be, and its JSON Schema.
import * as z from 'zod';
import {
  isCredential,
  isFieldValue,
  isHost,
  isName,
  isNetwork,
  parseAddress,
  parseBaseUrl,
  parseCollector,
  parseCount,
  parseDuration,
  parseOrigin,
  parseSize,
} from './scalars.ts';

export interface Word<T> {
  readonly read: (text: string) => T | undefined;
  /** What would be right, as it ends a sentence. */
  readonly expected: string;
  /** The same for editors, which see the file before variables are filled in. */
  readonly json: readonly Record<string, unknown>[];
}

/** A setting of one word. All scalars of a file come as text, so that `4`, `"4"` and `${N}` mean the same; defaults come as they are. */
export function word<T>({ read, expected, json }: Word<T>) {
  return z
    .unknown()
    .transform((value, context): T => {
      const isWord = typeof value === 'string' || typeof value === 'number' || typeof value === 'boolean';
      const result = isWord ? read(String(value)) : undefined;
      if (result === undefined) context.addIssue({ code: 'custom', message: `${faultOf(value)}; ${expected}` });
      return result as T;
    })
    .meta({ anyOf: [...json, { $ref: '#/$defs/variable' }] });
}

/** What is wrong with a value that no word could be read from. */
export function faultOf(value: unknown): string {
  if (value === undefined) return 'is missing';
  if (value === null) return 'has no value';
  return value === '' ? 'is empty' : 'is not valid';
}

function where(holds: (text: string) => boolean): (text: string) => string | undefined {
  return (text) => (holds(text) ? text : undefined);
}

export const OFF = { const: 'off' };

/** The same word, or `off`, which is read as the value that stands for it. */
export function orOff<T, O>(of: Word<T>, off: O): Word<T | O> {
  return {
    read: (text) => (text === 'off' ? off : of.read(text)),
    expected: `${of.expected}, or off`,
    json: [OFF, ...of.json],
  };
}

export function oneOf<const T extends string>(...choices: T[]) {
  return word({
    read: (text) => choices.find((choice) => choice === text),
    expected: `write one of ${choices.join(', ')}`,
    json: [{ enum: choices }],
  });
}

export const duration: Word<number> = {
  read: (text) => parseDuration(text) || undefined,
  expected: 'write a duration as 250ms, 15s, 5m or 1h, more than zero and at most 24 days',
  json: [{ type: 'string', pattern: '^[0-9]+(ms|s|m|h)$' }],
};
export const durationOrZero: Word<number> = {
  ...duration,
  read: parseDuration,
  expected: 'write a duration as 250ms, 15s, 5m or 1h, at most 24 days',
};
export const size: Word<number> = {
  read: parseSize,
  expected: 'write a size as 64KiB, 1MiB, 1GiB or a plain number of bytes',
  json: [
    { type: 'string', pattern: '^[0-9]+(KiB|MiB|GiB)$' },
    { type: 'integer', minimum: 1 },
  ],
};
export const count: Word<number> = {
  read: parseCount,
  expected: 'write a whole number, 1 or more',
  json: [{ type: 'integer', minimum: 1 }],
};
export const price: Word<number> = {
  read: (text) => (/^\d+(\.\d+)?$/.test(text) ? Number(text) : undefined),
  expected: 'write a number such as 2.50',
  json: [{ type: 'number', minimum: 0 }],
};
export const share: Word<number> = {
  read: (text) => (/^0?\.\d+$|^1$/.test(text) && Number(text) > 0 ? Number(text) : undefined),
  expected: 'write a share, more than 0 and at most 1, as 0.5',
  json: [{ type: 'number', exclusiveMinimum: 0, maximum: 1 }],
};
export const ratio: Word<number> = {
  read: (text) => (/^(?:0?\.\d+|0|1(?:\.0+)?)$/.test(text) ? Number(text) : undefined),
  expected: 'write a share from 0 to 1, as 0.1',
  json: [{ type: 'number', minimum: 0, maximum: 1 }],
};
export const someText: Word<string> = {
  read: (text) => text || undefined,
  expected: 'write some text',
  json: [{ type: 'string', minLength: 1 }],
};
export const credential: Word<string> = {
  read: where(isCredential),
  expected: `write visible ASCII without blanks or line breaks, best from the environment as \${NAME}`,
  json: [{ type: 'string', pattern: '^[\\x21-\\x7e]+$' }],
};
export const baseUrl: Word<string> = {
  read: parseBaseUrl,
  expected:
    'write it as https://api.openai.com/v1: http or https, without credentials, query or fragment (keys go into apiKey, keys of a query into query)',
  json: [{ type: 'string', pattern: '^https?://[^\\s?#@]+$' }],
};
export const collector: Word<string> = {
  read: parseCollector,
  expected: 'write it as http://127.0.0.1:4318/v1/traces: http or https, without credentials, query or fragment (keys go into headers)',
  json: [{ type: 'string', pattern: '^https?://[^\\s?#@]+$' }],
};
export const keyHash: Word<string> = {
  read: (text) => (/^[0-9a-f]{64}$/i.test(text) ? text.toLowerCase() : undefined),
  expected: 'write the 64 hex digits that `sluicegate key NAME` prints',
  json: [{ type: 'string', pattern: '^[0-9a-fA-F]{64}$' }],
};
export const pathPattern: Word<string> = {
  read: where((text) => /^\/(?:v1|openai)\/[!-~]*$/.test(text)),
  expected: 'write a path under /v1 or /openai, as /v1/files*',
  json: [{ type: 'string', pattern: '^/(v1|openai)/' }],
};
export const limitStore: Word<string> = {
  read: where((text) => text === 'memory' || (/^rediss?:\/\/[^\s]+$/.test(text) && URL.canParse(text))),
  expected: 'write memory, or the URL of a Redis, as redis://127.0.0.1:6379/0',
  json: [{ enum: ['memory'] }, { type: 'string', pattern: '^rediss?://' }],
};
export const proxyUrl: Word<string> = {
  read: (text) => (/^https?:\/\/[^\s/?#]+\/?$/.test(text) && URL.canParse(text) ? new URL(text).href : undefined),
  expected: 'write the URL of an HTTP proxy, as http://proxy.example:3128',
  json: [{ type: 'string', pattern: '^https?://' }],
};
export const hostname: Word<string> = {
  read: (text) => (isHost(text) ? text.toLowerCase() : undefined),
  expected: 'write a host name without scheme, port or wildcard, as gateway.example',
  json: [{ type: 'string', pattern: '^[A-Za-z0-9.:-]+$' }],
};
export const network: Word<string> = {
  read: where(isNetwork),
  expected: 'write an address or a range, as 10.0.0.0/8 (not /0: that would believe everyone)',
  json: [{ type: 'string', pattern: '^[0-9A-Fa-f.:]+(/[0-9]+)?$' }],
};
export const origin: Word<string> = {
  read: parseOrigin,
  expected: 'write one origin without a path or wildcard, as https://app.example',
  json: [{ type: 'string', pattern: '^[a-z][a-z0-9+.-]*://[^\\s/?#@*]+$' }],
};
export const address = (example: string) =>
  word({
    read: parseAddress,
    expected: `write it as ${example}, localhost:8080 or [::1]:8080, the port from 0 (any free one) to 65535`,
    json: [{ type: 'string', pattern: '^(\\[[0-9a-fA-F:.]+\\]|[A-Za-z0-9.-]+):[0-9]{1,5}$' }],
  });
export const flag = word<boolean>({
  read: (text) => (text === 'true' ? true : text === 'false' ? false : undefined),
  expected: 'write true or false',
  json: [{ type: 'boolean' }],
});
export const fieldValue: Word<string> = {
  read: where(isFieldValue),
  expected: 'the value of a header is one line of text, with no blank at either end',
  json: [{ type: ['string', 'number', 'boolean'] }],
};
export const queryValue: Word<string> = {
  read: (text) => text,
  expected: 'write some text',
  json: [{ type: ['string', 'number', 'boolean'] }],
};
export const clientName: Word<string> = {
  read: (text) => (isName(text) && text !== 'anonymous' ? text : undefined),
  expected: 'write 1 to 64 of A-Z a-z 0-9 _ . - (not anonymous, which is the label of calls without a key)',
  json: [{ type: 'string', pattern: '^[A-Za-z0-9_.-]{1,64}$' }],
};

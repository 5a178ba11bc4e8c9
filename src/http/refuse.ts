// Answers made here: the error form that every OpenAI SDK raises.
import type { ServerResponse } from 'node:http';
import { detailOf, errorBody, type GatewayError } from '../errors.ts';
import type { HeaderList } from '../upstream/headers.ts';

/** Sends an error as the whole answer. `headers` are those that any answer of this request would have. */
export function refuse(response: ServerResponse, error: GatewayError, headers: HeaderList = []): void {
  const body = errorBody(detailOf(error.code, error.message));
  const own = Object.entries({ ...error.row.headers, ...error.headers });
  const replaced = new Set(own.map(([name]) => name));
  const kept = headers.filter((_, at) => !replaced.has(headers[at - (at % 2)]!));
  response.writeHead(error.row.status, [
    ...kept,
    ...own.flat(),
    'content-type',
    'application/json',
    'content-length',
    String(Buffer.byteLength(body)),
  ]);
  response.end(body);
}

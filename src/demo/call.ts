// One request at the demo and the ways to answer it: JSON, events, bytes, each under the socket's back-pressure.
import { once } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Pace } from './pace.ts';
import { createRefusal } from './refusal.ts';

/** 64 MiB: a larger request body is refused with 413. */
export const MAX_BODY_BYTES = 64 * 1024 * 1024;

/** A JSON object of the client's, not looked at yet. */
export type Fields = Record<string, unknown>;

/** A request in hand. `gone` aborts when the client leaves before its answer is whole; whatever waits, waits with it. */
export interface Call {
  readonly req: IncomingMessage;
  readonly res: ServerResponse;
  readonly query: URLSearchParams;
  readonly pace: Pace;
  readonly gone: AbortSignal;
}

/** Yields the request body as it arrives. Throws a 413 refusal past MAX_BODY_BYTES, as soon as that is known. */
export async function* readChunks({ req }: Call): AsyncGenerator<Buffer> {
  const refusal = createRefusal(413, `Request body is larger than ${MAX_BODY_BYTES} bytes.`, { code: 'request_too_large' });
  if (Number(req.headers['content-length'] ?? 0) > MAX_BODY_BYTES) throw refusal;
  let bytes = 0;
  // Not destroyed on the way out: that would take the socket, and the 413, with it. Node discards the rest by itself.
  for await (const chunk of req.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > MAX_BODY_BYTES) throw refusal;
    yield chunk;
  }
}

/** Reads a body that must be one JSON object, and says how many bytes it had. Throws 400 and 413 refusals. */
export async function readFields(call: Call): Promise<{ fields: Fields; bytes: number }> {
  const chunks: Buffer[] = [];
  for await (const chunk of readChunks(call)) chunks.push(chunk);
  const body = Buffer.concat(chunks);
  let parsed: unknown;
  try {
    parsed = JSON.parse(body.toString());
  } catch {
    throw createRefusal(400, 'We could not parse the JSON body of your request.');
  }
  if (!isFields(parsed)) throw createRefusal(400, 'The JSON body of your request must be an object.');
  return { fields: parsed, bytes: body.length };
}

/** Tells a JSON object from everything else that JSON can be. */
export function isFields(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Answers with one JSON document. */
export function sendJson(res: ServerResponse, status: number, body: unknown, headers: Record<string, string> = {}): void {
  const bytes = Buffer.from(JSON.stringify(body));
  res.writeHead(status, { 'content-type': 'application/json', 'content-length': bytes.length, ...headers }).end(bytes);
}

/** One `write` on the response; resolves when it wants more. Rejects when the client is gone. */
export async function writePiece({ res, gone }: Call, piece: string | Uint8Array): Promise<void> {
  gone.throwIfAborted();
  if (!res.write(piece)) await once(res, 'drain', { signal: gone });
}

/** Sends the headers of an event stream at once, so that a client sees 200 while the model still thinks. */
export function openEvents({ res }: Call): void {
  res.writeHead(200, { 'content-type': 'text/event-stream; charset=utf-8', 'cache-control': 'no-cache' }).flushHeaders();
}

/** One event, one `write` (WHATWG HTML 9.2). Only the Responses API names its events. */
export function sendEvent(call: Call, data: unknown, name?: string): Promise<void> {
  const text = typeof data === 'string' ? data : JSON.stringify(data);
  return writePiece(call, `${name === undefined ? '' : `event: ${name}\n`}data: ${text}\n\n`);
}

// Headers before the upstream has given any, for proxies that do not wait, and what becomes of a late answer.
import type { ErrorDetail } from '../errors.ts';
import { type HeaderList, responseHead } from '../upstream/headers.ts';
import { createKeyMask } from '../upstream/mask.ts';
import type { Taker } from './asking.ts';

/** What an event stream begins with where nothing is known of it yet. */
export const EARLY_HEADERS: HeaderList = ['content-type', 'text/event-stream; charset=utf-8'];

/** Longer than any error that a provider words; of what is longer, only the status is told. */
const MAX_ERROR_BYTES = 64 * 1024;

/** Whether an answer is the stream whose headers have gone down already. */
export function isPlainStream(status: number, headers: HeaderList): boolean {
  const { isEventStream, isEncoded } = responseHead(headers, { status, upstream: '', requestId: '', isCorsOurs: false, own: [] });
  return status < 300 && isEventStream && !isEncoded;
}

/**
 * Gathers an answer that can only be told as an error event.
 * @param key the key that went up, should the answer quote it
 * @param fail is told what the answer said, once it has ended
 */
export function createLateAnswer(status: number, key: string | undefined, fail: (detail: ErrorDetail, status: number) => void): Taker {
  const mask = createKeyMask(key ?? '');
  let body = '';
  const take = (bytes: Buffer) => {
    if (body.length <= MAX_ERROR_BYTES) body += bytes.toString('latin1');
  };
  return {
    chunk: (bytes) => take(mask.next(bytes)),
    end() {
      take(mask.rest());
      fail(detailFrom(Buffer.from(body, 'latin1').toString('utf8'), status), status);
    },
  };
}

/** The upstream's own words where they have the form of OpenAI's errors, else its status. */
function detailFrom(body: string, status: number): ErrorDetail {
  const plain = { message: `The upstream answered ${status}, and not with a stream.`, type: 'upstream_error', code: 'upstream_error' };
  try {
    const { error } = JSON.parse(body) as { error?: { message?: unknown; type?: unknown; code?: unknown } };
    if (typeof error?.message !== 'string') return plain;
    return { message: error.message, type: String(error.type ?? plain.type), code: String(error.code ?? plain.code) };
  } catch {
    return plain;
  }
}

// The list of models as a client with a permit may see it: the upstream's own, without what the client may not call.
import type { HeaderList } from '../upstream/headers.ts';
import type { Taker } from './asking.ts';

/** Some ten thousand models. */
const MAX_LIST_BYTES = 4 * 1024 * 1024;
const NOTHING = '{"object":"list","data":[]}';

/**
 * Takes the answer to `GET /v1/models` (OpenAI API reference, "List models"; Anthropic's has the same `data[].id`).
 * What cannot be read shows nothing.
 * @param begin begins the answer to the client
 */
export function createModelList(allows: (model: string) => boolean, headers: HeaderList, begin: (headers: HeaderList) => Taker): Taker {
  const pieces: Buffer[] = [];
  let bytes = 0;
  return {
    chunk(chunk) {
      bytes += chunk.length;
      if (bytes <= MAX_LIST_BYTES) pieces.push(Buffer.from(chunk));
    },
    end() {
      const list = Buffer.from(bytes <= MAX_LIST_BYTES ? filterList(Buffer.concat(pieces).toString(), allows) : NOTHING);
      const answer = begin([...withoutLength(headers), 'content-length', String(list.length)]);
      answer.chunk(list);
      answer.end();
    },
  };
}

function filterList(text: string, allows: (model: string) => boolean): string {
  try {
    const list = JSON.parse(text) as { data?: unknown };
    if (!Array.isArray(list.data)) return NOTHING;
    const data = list.data.filter((model: { id?: unknown } | null) => typeof model?.id === 'string' && allows(model.id));
    return JSON.stringify({ ...list, data });
  } catch {
    return NOTHING;
  }
}

/** A body that is made here has neither the length nor the coding nor the validator of the one that came, and is no part of it. */
function withoutLength(headers: HeaderList): HeaderList {
  const dropped = new Set(['content-length', 'content-encoding', 'content-range', 'etag', 'content-md5', 'digest']);
  return headers.filter((_, at) => !dropped.has(headers[at - (at % 2)]!.toLowerCase()));
}

// Reads multipart/form-data as it streams past, and keeps only what the demo answers with: names, sizes, one short value.
import { createRefusal, type Refusal } from './refusal.ts';

/** What a form held. `bytes` is the size of the part's content. */
export interface Part {
  readonly name: string;
  readonly filename: string | undefined;
  /** The content, as long as it fits 256 bytes and is not a file. */
  readonly value: string;
  readonly bytes: number;
}

const MAX_PART_HEAD_BYTES = 16 * 1024;
const MAX_VALUE_BYTES = 256;
const MAX_PARTS = 100;

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

/** The boundary that a content type names (RFC 2046, 5.1.1: up to 70 characters). Throws a 400 refusal if it names none. */
export function readBoundary(contentType = ''): string {
  const found = /^multipart\/form-data\s*;.*?\bboundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))/i.exec(contentType);
  const boundary = found?.[1] ?? found?.[2];
  if (boundary !== undefined) return boundary;
  throw createRefusal(400, 'The body must be multipart/form-data, with its boundary in the content-type header.');
}

/**
 * A reader of one form: push its bytes in any pieces, then ask for the parts. It holds one piece and less than a delimiter, or
 * the head of a part. Throws 400 refusals for what is not a form.
 */
export function createFormReader(boundary: string): { push(piece: Buffer): void; end(): Part[] } {
  const delimiter = Buffer.from(`\r\n--${boundary}`);
  const parts: Mutable<Part>[] = [];
  let state: 'content' | 'delimiter' | 'head' | 'end' = 'content';
  // The first delimiter may stand without its line break; what comes before it belongs to no part.
  let held: Buffer = Buffer.from('\r\n');

  const takeContent = (end: number): void => {
    const part = parts.at(-1);
    if (part) addContent(part, held.subarray(0, end));
    held = held.subarray(end);
  };
  const steps = {
    content(): boolean {
      const at = held.indexOf(delimiter);
      takeContent(at >= 0 ? at : Math.max(held.length - delimiter.length + 1, 0));
      if (at >= 0) held = held.subarray(delimiter.length);
      if (at >= 0) state = 'delimiter';
      return at >= 0;
    },
    delimiter(): boolean {
      if (held.length < 2) return false;
      state = held.toString('latin1', 0, 2) === '--' ? 'end' : 'head';
      return true;
    },
    head(): boolean {
      const at = held.indexOf('\r\n\r\n');
      if (at > MAX_PART_HEAD_BYTES || (at < 0 && held.length > MAX_PART_HEAD_BYTES)) throw notForm('a part has too large a head');
      if (at < 0) return false;
      if (parts.length === MAX_PARTS) throw notForm(`it has more than ${MAX_PARTS} parts`);
      parts.push(readHead(held.toString('utf8', 0, at)));
      held = held.subarray(at + 4);
      state = 'content';
      return true;
    },
    end: (): boolean => false,
  };

  return {
    push(piece) {
      held = state === 'end' ? Buffer.alloc(0) : Buffer.concat([held, piece]);
      while (steps[state]());
    },
    end() {
      if (state !== 'end') throw notForm('it ends before its last boundary');
      return parts;
    },
  };
}

function addContent(part: Mutable<Part>, bytes: Buffer): void {
  part.bytes += bytes.length;
  if (part.filename === undefined && part.bytes <= MAX_VALUE_BYTES) part.value += bytes.toString('latin1');
}

/** RFC 7578, 4.2, with the escapes that browsers use (WHATWG HTML 4.10.22.7). */
function readHead(head: string): Part {
  const disposition = /^content-disposition:\s*form-data(.*)$/im.exec(head)?.[1] ?? '';
  const name = /;\s*name="([^"]*)"/i.exec(disposition)?.[1] ?? /;\s*name=([^\s;"]+)/i.exec(disposition)?.[1];
  if (name === undefined) throw notForm('a part has no name');
  const filename = /;\s*filename="((?:[^"\\]|\\.)*)"/i.exec(disposition)?.[1];
  return { name, filename: filename?.replaceAll('%22', '"').replaceAll('%0D', '\r').replaceAll('%0A', '\n'), value: '', bytes: 0 };
}

function notForm(why: string): Refusal {
  return createRefusal(400, `The multipart body cannot be read: ${why}.`);
}

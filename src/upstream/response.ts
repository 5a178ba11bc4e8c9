// Reads HTTP/1.1 responses from a connection's bytes, in one pass and without a copy, and takes nothing that could be read in two ways.
import type { HeaderList } from './headers.ts';

/** What a response is made of, in this order. */
export interface ResponseEvents {
  /** The final status and its raw headers; interim responses (1xx) are not told. */
  onHead(status: number, headers: HeaderList): void;
  /** The next bytes of the body, without framing: a view that is valid during the call only. */
  onChunk(bytes: Buffer): void;
}

export interface ResponseReader {
  /**
   * Reads on.
   * @param length how many of the bytes have come; what stands behind them is of an earlier read
   * @returns why it is malformed, as a code; undefined while it is well-formed
   */
  read(bytes: Buffer, length?: number): ResponseFault | undefined;
  /** The connection has ended. @returns why that is no end of the response; undefined where it is, or was over before */
  end(): ResponseFault | undefined;
  /** It has been read to its end. */
  readonly isComplete: boolean;
  /** Whether the connection can take another request: both sides agree where this response ended, and that there may be a next one. */
  readonly isReusable: boolean;
  /** For how long an idle connection is kept by the other side, as it says (`Keep-Alive: timeout=N`); undefined where it does not. */
  readonly keepAliveMs: number | undefined;
  /** Nothing more is told. */
  stop(): void;
}

export type ResponseFault =
  | 'HEAD_TOO_LARGE'
  | 'MALFORMED_HEAD'
  | 'UNWANTED_UPGRADE'
  | 'AMBIGUOUS_LENGTH'
  | 'UNKNOWN_CODING'
  | 'MALFORMED_CHUNK'
  | 'MALFORMED_TRAILER'
  | 'CUT_SHORT';

/** INTERFACE section 5 and CASES B9: 16 KiB of headers are fine. Trailers have as much room. */
const MAX_HEAD_BYTES = 16 * 1024;
const MAX_HEADERS = 1000;
/** RFC 9112 7.1.1: a recipient should bound what it takes of extensions that it does not know. */
const MAX_EXTENSION_BYTES = 4 * 1024;
/** Of a size of so many hex digits the number is exact. */
const MAX_SIZE_DIGITS = 13;

/** RFC 9112 4; without a reason the blank before it may be missing, as with many servers. */
const STATUS_LINE = /^HTTP\/1\.([01]) ([1-9]\d\d)(?: [\t -~\x80-\xff]*)?$/;
/** RFC 9110 5.6.2 and 5.5, with no blank before the colon and no folding (RFC 9112 5.1, 5.2). */
const FIELD_NAME = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;
/** What is neither part of a value nor the end of its line. */
const NO_FIELD_LINE = /[^\t\r\n -~\x80-\xff]|\r(?!\n)|(?<!\r)\n/;

/** Of a chunk that is in one read. */
const MAX_QUICK_DIGITS = 6;

const CR = 13;
const LF = 10;
const SEMICOLON = 59;

type Place =
  | 'head'
  | 'length'
  | 'untilEnd'
  | 'size'
  | 'extension'
  | 'sizeLf'
  | 'chunk'
  | 'chunkCr'
  | 'chunkLf'
  | 'trailer'
  | 'complete'
  | 'broken';

/** @param method of the request: an answer to HEAD has no body, whatever its headers say (RFC 9112 6.3) */
export function createResponseReader(method: string, events: ResponseEvents): ResponseReader {
  return new StrictReader(method, events);
}

class StrictReader implements ResponseReader {
  private readonly method: string;
  private readonly events: ResponseEvents;
  private place: Place = 'head';
  private text = ''; // of a head or trailer that is not whole yet
  private leftBytes = 0; // of a body with a length, or of a chunk
  private digits = 0;
  private extensionBytes = 0;
  private limit = 0; // of what is being read
  private isStopped = false;
  private isPersistent = false;
  private hasExcess = false;
  keepAliveMs: number | undefined;

  constructor(method: string, events: ResponseEvents) {
    this.method = method;
    this.events = events;
  }

  /** Reads as far as these bytes go. Returns where it stopped, or a fault. */
  read(bytes: Buffer, length = bytes.length): ResponseFault | undefined {
    this.limit = length;
    let at = 0;
    while (at < length && !this.isStopped) {
      if (this.place === 'complete') {
        this.hasExcess = true;
        return undefined;
      }
      const next = this.step(bytes, at);
      if (typeof next === 'string') {
        this.place = 'broken';
        return next;
      }
      at = next;
    }
    return undefined;
  }

  private step(bytes: Buffer, at: number): number | ResponseFault {
    if (this.place === 'size' && this.digits === 0) {
      const next = this.readWholeChunk(bytes, at);
      if (next > at) return next;
    }
    if (this.place === 'chunk' || this.place === 'length') return this.readCounted(bytes, at);
    if (this.place === 'head' || this.place === 'trailer') return this.readFields(bytes, at);
    if (this.place === 'untilEnd') {
      this.events.onChunk(bytes.subarray(at, this.limit));
      return this.limit;
    }
    return this.readChunkFraming(bytes, at);
  }

  /** A chunk that is here from its size to its end, as those of events are. Returns `at` where it is not, or is the last: then it is read byte by byte. */
  private readWholeChunk(bytes: Buffer, at: number): number {
    let start = at;
    let size = 0;
    for (let digit = hexOf(bytes[start]!); digit >= 0 && start < at + MAX_QUICK_DIGITS; digit = hexOf(bytes[++start]!))
      size = size * 16 + digit;
    if (size === 0 || bytes[start] !== CR || bytes[start + 1] !== LF) return at;
    start += 2;
    const end = start + size;
    // Before these bytes are told, all that frames them has come.
    if (end + 2 > this.limit || bytes[end] !== CR || bytes[end + 1] !== LF) return at;
    this.events.onChunk(bytes.subarray(start, end));
    return end + 2;
  }

  private readCounted(bytes: Buffer, at: number): number {
    const end = Math.min(this.limit, at + this.leftBytes);
    this.leftBytes -= end - at;
    this.events.onChunk(bytes.subarray(at, end));
    if (this.leftBytes === 0) {
      if (this.place === 'chunk') this.place = 'chunkCr';
      else this.place = 'complete';
    }
    return end;
  }

  /** RFC 9112 7.1: `SIZE [;EXTENSION] CRLF BYTES CRLF`. Line ends are CRLF and nothing else: who takes a bare LF reads another body. */
  private readChunkFraming(bytes: Buffer, at: number): number | ResponseFault {
    const byte = bytes[at]!;
    if (this.place === 'size') {
      const digit = hexOf(byte);
      if (digit >= 0) {
        this.leftBytes = this.leftBytes * 16 + digit;
        return ++this.digits > MAX_SIZE_DIGITS ? 'MALFORMED_CHUNK' : at + 1;
      }
      if (this.digits === 0 || (byte !== CR && byte !== SEMICOLON)) return 'MALFORMED_CHUNK';
      this.place = byte === CR ? 'sizeLf' : 'extension';
    } else if (this.place === 'extension') {
      if (byte === CR) this.place = 'sizeLf';
      else if (++this.extensionBytes > MAX_EXTENSION_BYTES || !isFieldByte(byte)) return 'MALFORMED_CHUNK';
    } else if (this.place === 'sizeLf') {
      if (byte !== LF) return 'MALFORMED_CHUNK';
      this.place = this.leftBytes === 0 ? 'trailer' : 'chunk';
      this.text = '';
    } else {
      if (byte !== (this.place === 'chunkCr' ? CR : LF)) return 'MALFORMED_CHUNK';
      if (this.place === 'chunkLf') this.digits = this.leftBytes = this.extensionBytes = 0;
      this.place = this.place === 'chunkCr' ? 'chunkLf' : 'size';
    }
    return at + 1;
  }

  /** Lines up to an empty one: a head, or a trailer, of which nothing is told. */
  private readFields(bytes: Buffer, at: number): number | ResponseFault {
    const seen = this.text.length;
    this.text += bytes.toString('latin1', at, Math.min(this.limit, at + MAX_HEAD_BYTES + 4 - seen));
    const isEmpty = this.place === 'trailer' && this.text.startsWith('\r\n');
    const end = isEmpty ? 0 : this.text.indexOf('\r\n\r\n', Math.max(0, seen - 3));
    if (end < 0) {
      if (this.text.length >= MAX_HEAD_BYTES + 4) return this.place === 'head' ? 'HEAD_TOO_LARGE' : 'MALFORMED_TRAILER';
      // A bare LF never becomes a line's end: it is not waited for.
      return this.limit;
    }
    const fields = this.text.slice(0, end);
    this.text = '';
    const taken = end + (isEmpty ? 2 : 4) - seen;
    const fault = this.place === 'head' ? this.readHead(fields) : this.readTrailer(fields);
    return fault ?? at + taken;
  }

  private readHead(fields: string): ResponseFault | undefined {
    const statusEnd = endOfLine(fields, 0);
    const [, minor, code] = STATUS_LINE.exec(fields.slice(0, statusEnd)) ?? [];
    const headers = readLines(fields, statusEnd + 2);
    if (code === undefined || headers === undefined) return 'MALFORMED_HEAD';
    const status = Number(code);
    if (status === 101) return 'UNWANTED_UPGRADE';
    if (status < 200) return minor === '1' && isInterim(headers) ? undefined : 'MALFORMED_HEAD';
    const fault = this.frame(status, minor === '1', headers);
    if (fault !== undefined) return fault;
    this.events.onHead(status, headers);
    if (this.place === 'length' && this.leftBytes === 0) this.place = 'complete';
    return undefined;
  }

  /** How the body is delimited (RFC 9112 6.3), and whether the connection lasts (9.3). */
  private frame(status: number, isHttp11: boolean, headers: HeaderList): ResponseFault | undefined {
    const lengths: string[] = [];
    const codings: string[] = [];
    let options = '';
    for (let i = 0; i < headers.length; i += 2) {
      const { length: size } = headers[i]!;
      if (size !== 14 && size !== 17 && size !== 10) continue; // as long as none of the names below
      const name = headers[i]!.toLowerCase();
      if (name === 'content-length') lengths.push(headers[i + 1]!);
      else if (name === 'transfer-encoding') codings.push(headers[i + 1]!);
      else if (name === 'connection') options += `,${headers[i + 1]!.toLowerCase()}`;
      else if (name === 'keep-alive') this.keepAliveMs = keepAliveOf(headers[i + 1]!);
    }
    const has = (option: string) => options.split(',').some((given) => given.trim() === option);
    // A server that answers HEAD with a body after all would have it taken for the next answer.
    this.isPersistent = this.method !== 'HEAD' && (isHttp11 || has('keep-alive')) && !has('close');
    const length = Number(lengths[0]);
    if (lengths.length + codings.length > 1 || (lengths.length === 1 && !(/^\d+$/.test(lengths[0]!) && Number.isSafeInteger(length)))) {
      return 'AMBIGUOUS_LENGTH';
    }
    if (codings.length === 1 && (codings[0]!.toLowerCase() !== 'chunked' || !isHttp11)) return 'UNKNOWN_CODING';
    if (this.method === 'HEAD' || status === 204 || status === 304) {
      this.place = 'length';
      this.leftBytes = 0;
    } else if (codings.length === 1) {
      this.place = 'size';
      this.digits = this.leftBytes = this.extensionBytes = 0;
    } else if (lengths.length === 1) {
      this.place = 'length';
      this.leftBytes = length;
    } else {
      this.place = 'untilEnd';
      this.isPersistent = false;
    }
    return undefined;
  }

  private readTrailer(fields: string): ResponseFault | undefined {
    if (readLines(fields, 0) === undefined) return 'MALFORMED_TRAILER';
    this.place = 'complete';
    return undefined;
  }

  end(): 'CUT_SHORT' | undefined {
    if (this.place === 'complete' || this.isStopped) return undefined;
    if (this.place !== 'untilEnd') return 'CUT_SHORT';
    this.place = 'complete';
    return undefined;
  }

  get isComplete(): boolean {
    return this.place === 'complete';
  }

  get isReusable(): boolean {
    return this.place === 'complete' && this.isPersistent && !this.hasExcess;
  }

  stop(): void {
    this.isStopped = true;
  }
}

/** Names and values, flat, of the lines from `at` on; undefined where one is no field. */
function readLines(text: string, at: number): HeaderList | undefined {
  const headers: HeaderList = [];
  if (NO_FIELD_LINE.test(text)) return undefined;
  for (let start = at; start < text.length; ) {
    const end = endOfLine(text, start);
    const colon = text.indexOf(':', start);
    const name = text.slice(start, colon);
    if (colon < 0 || colon > end || !FIELD_NAME.test(name) || headers.length === 2 * MAX_HEADERS) return undefined;
    headers.push(name, withoutBlanks(text, colon + 1, end));
    start = end + 2;
  }
  return headers;
}

function endOfLine(text: string, start: number): number {
  const end = text.indexOf('\r\n', start);
  return end < 0 ? text.length : end;
}

/** Without blanks and tabs at either end (RFC 9110 5.6.3), and without any other character that some would call a blank. */
function withoutBlanks(text: string, from: number, to: number): string {
  let start = from;
  let end = to;
  while (start < end && isBlank(text.charCodeAt(start))) start++;
  while (end > start && isBlank(text.charCodeAt(end - 1))) end--;
  return text.slice(start, end);
}

function isBlank(code: number): boolean {
  return code === 32 || code === 9;
}

/** An interim response has no body and ends no connection (RFC 9110 8.6, 15.2): what says otherwise is somebody's attempt at something. */
function isInterim(headers: HeaderList): boolean {
  return headers.every((name, at) => at % 2 === 1 || !/^(?:content-length|transfer-encoding|connection)$/i.test(name));
}

function keepAliveOf(value: string): number | undefined {
  const [, seconds] = /(?:^|[,;\s])timeout=(\d{1,6})/i.exec(value) ?? [];
  return seconds === undefined ? undefined : Number(seconds) * 1000;
}

function hexOf(byte: number): number {
  if (byte >= 48 && byte <= 57) return byte - 48;
  const letter = byte | 32;
  return letter >= 97 && letter <= 102 ? letter - 87 : -1;
}

/** What a field's value may have in it. */
function isFieldByte(byte: number): boolean {
  return byte === 9 || (byte >= 32 && byte !== 127);
}

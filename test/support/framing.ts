// HTTP/1.1 message framing as strictly as RFC 9112 allows, for both ends of the gateway: what is malformed throws.

import { type ByteStore, createByteStore } from './byte-store.ts';

export type Field = readonly [name: string, value: string];

export interface Head {
  readonly startLine: string;
  readonly rawHeaders: readonly Field[];
  /** Lower-case names, several values joined by ', '. */
  readonly headers: Record<string, string>;
  /** The head as it came, with the blank line. */
  readonly text: string;
}

/** Where a body ends: after so many bytes, after the final chunk, or with the connection (a tunnel's bytes too). */
export type Framing = number | 'chunked' | 'untilClose';

export interface Message {
  readonly head: Head;
  /** The body, de-chunked, as far as it has come. */
  readonly body: ByteStore;
  isComplete: boolean;
}

function demand(isSo: boolean, what: string): asserts isSo {
  if (!isSo) throw new Error(`malformed message: ${what}`);
}

const token = /^[!#$%&'*+.^_`|~\w-]+$/;

function parseField(line: string): Field {
  const colon = line.indexOf(':');
  const name = line.slice(0, Math.max(colon, 0));
  const value = line.slice(colon + 1).replace(/^[ \t]+|[ \t]+$/g, '');
  demand(token.test(name), `header line ${JSON.stringify(line)}`);
  demand(/^[\t\x20-\x7e\x80-\xff]*$/.test(value), `value of ${name}: ${JSON.stringify(value)}`);
  return [name, value];
}

function parseHead(text: string): Head {
  const [startLine = '', ...lines] = text.slice(0, -4).split('\r\n');
  const rawHeaders = lines.map(parseField);
  const headers = new Map<string, string>();
  for (const [name, value] of rawHeaders) {
    const earlier = headers.get(name.toLowerCase());
    headers.set(name.toLowerCase(), earlier === undefined ? value : `${earlier}, ${value}`);
  }
  return { startLine, rawHeaders, headers: Object.fromEntries(headers), text };
}

/** RFC 9112 section 6, without its tolerances: a length once and in digits, or `chunked` and nothing else. */
function declaredFraming({ headers }: Head): Framing | undefined {
  const { 'content-length': length, 'transfer-encoding': coding } = headers;
  demand(length === undefined || coding === undefined, 'both Content-Length and Transfer-Encoding');
  demand(coding === undefined || coding === 'chunked', `Transfer-Encoding: ${coding}`);
  demand(length === undefined || /^\d{1,20}$/.test(length), `Content-Length: ${length}`);
  if (coding !== undefined) return 'chunked';
  return length === undefined ? undefined : Number(length);
}

/** What follows a request's head; after an `Upgrade` all further bytes count as its body. Throws on what a gateway must never send. */
export function frameRequest(head: Head): Framing {
  demand(/^[!#$%&'*+.^_`|~\w-]+ [\x21-\x7e]+ HTTP\/1\.1$/.test(head.startLine), `request line ${JSON.stringify(head.startLine)}`);
  demand(
    head.rawHeaders.filter(([name]) => name.toLowerCase() === 'host').length === 1,
    `not exactly one Host in ${JSON.stringify(head.text)}`,
  );
  const declared = declaredFraming(head);
  return head.headers.upgrade === undefined ? (declared ?? 0) : 'untilClose';
}

export function statusOf(head: Head): number {
  const status = /^HTTP\/1\.[01] ([1-9]\d\d) [\t\x20-\x7e\x80-\xff]*$/.exec(head.startLine)?.[1];
  demand(status !== undefined, `status line ${JSON.stringify(head.startLine)}`);
  return Number(status);
}

/** What follows a response's head (RFC 9112 section 6.3), which depends on the method that it answers. */
export function frameResponse(head: Head, method: string): Framing {
  const status = statusOf(head);
  const declared = declaredFraming(head);
  if (status === 101) return 'untilClose';
  const isBodiless = status < 200 || status === 204;
  demand(!isBodiless || declared === undefined, `a body announced with status ${status}`);
  if (isBodiless || status === 304 || method === 'HEAD') return 0;
  return declared ?? 'untilClose';
}

export interface MessageReader {
  /** Every byte that came, parsed or not. */
  readonly bytes: ByteStore;
  readonly messages: readonly Message[];
  /** Bytes of a head that is not whole. */
  readonly strayBytes: number;
  /** Takes what has come; throws at the first malformed byte, and parses no further then. */
  push(bytes: Buffer): void;
  /** The peer's FIN: what lasts until the connection's end is complete now. */
  finish(): void;
}

/** RFC 9112 7.1: a gateway sends no extensions on; an upstream may. */
const CHUNK_LINE = /^[\da-f]{1,20}\r\n$/i;
export const EXTENDED_CHUNK_LINE = /^[\da-f]{1,20}(?:;[^\r\n]*)?\r\n$/i;

/** Cuts a connection's bytes into messages, telling of each as its head has come; without `frame` it only keeps them. */
export function createMessageReader(
  frame?: (head: Head) => Framing,
  onHead: (message: Message) => void = () => {},
  chunkLine: RegExp = CHUNK_LINE,
): MessageReader {
  const bytes = createByteStore();
  const messages: Message[] = [];
  let position = 0;
  let lastFraming: Framing = 0;

  const rest = () => bytes.view().subarray(position);

  function* readLines(terminator: string, maxBytes: number): Generator<void, string> {
    let found = rest().indexOf(terminator);
    for (; found < 0; found = rest().indexOf(terminator)) {
      demand(rest().length <= maxBytes, `no ${JSON.stringify(terminator)} in ${maxBytes} bytes`);
      demand(!/(?<!\r)\n/.test(rest().toString('latin1')), `bare LF in ${JSON.stringify(rest().toString('latin1'))}`);
      yield;
    }
    const lines = rest().toString('latin1', 0, found + terminator.length);
    position += lines.length;
    return lines;
  }

  function* readBytes(count: number, body: ByteStore): Generator<void, void> {
    for (let missing = count; missing > 0; ) {
      if (rest().length === 0) yield;
      const piece = rest().subarray(0, missing);
      body.append(piece);
      position += piece.length;
      missing -= piece.length;
    }
  }

  function* readChunks(body: ByteStore): Generator<void, void> {
    for (;;) {
      const line = yield* readLines('\r\n', 64);
      demand(chunkLine.test(line), `chunk size ${JSON.stringify(line)}`);
      const size = Number.parseInt(line, 16);
      if (size === 0) break;
      yield* readBytes(size, body);
      demand((yield* readLines('\r\n', 2)) === '\r\n', `chunk longer than its size of ${size}`);
    }
    for (let line = ''; line !== '\r\n'; line = yield* readLines('\r\n', 65536)) if (line !== '') parseField(line.slice(0, -2));
  }

  function* readMessages(frameOf: (head: Head) => Framing): Generator<void, void> {
    for (;;) {
      const head = parseHead(yield* readLines('\r\n\r\n', 1 << 20));
      const framing = frameOf(head);
      const message: Message = { head, body: createByteStore(), isComplete: false };
      messages.push(message);
      lastFraming = framing;
      onHead(message);
      if (framing === 'chunked') yield* readChunks(message.body);
      else yield* readBytes(framing === 'untilClose' ? Number.POSITIVE_INFINITY : framing, message.body);
      message.isComplete = true;
    }
  }

  const parser = frame && readMessages(frame);
  return {
    bytes,
    messages,
    get strayBytes() {
      return parser && (messages.at(-1)?.isComplete ?? true) ? rest().length : 0;
    },
    push(piece) {
      bytes.append(piece);
      parser?.next();
    },
    finish() {
      const last = messages.at(-1);
      if (last && lastFraming === 'untilClose') last.isComplete = true;
    },
  };
}

// One call as an HTTP/2 stream: complete only where the upstream ended it (END_STREAM), and over for both sides once it is closed.
import { type ClientHttp2Session, type ClientHttp2Stream, constants, type OutgoingHttpHeaders, sensitiveHeaders } from 'node:http2';
import { Readable } from 'node:stream';
import type { Carried, GiveBack, UpstreamEvents, UpstreamRequest } from './client.ts';
import { codeOf } from './failure.ts';
import { credentialHeaders, type HeaderList } from './headers.ts';
import { createReadEnd } from './read-end.ts';

/** What a call needs of its connection. */
export interface Http2Peer {
  readonly session: ClientHttp2Session;
  readonly authority: string;
  /** The upstream has given a sign of life. */
  hear(): void;
  /** Whether the upstream has said, leaving, that it did not look at this stream (RFC 9113 6.8). */
  isUntouched(id: number | undefined): boolean;
  /** Why a stream with this code failed: the code's name, or what broke the connection beneath. */
  failureOf(code: number): string;
  onStreamClosed(): void;
}

const HEADERS_FRAME = 1;
const OVER: Carried = { abort: () => {}, pause: () => {}, resume: () => {} };

export function sendOnStream(peer: Http2Peer, request: UpstreamRequest, events: UpstreamEvents, giveBack: GiveBack): Carried {
  const { body } = request;
  let stream: ClientHttp2Stream;
  try {
    stream = peer.session.request(requestFields(request, peer.authority), { endStream: body === undefined });
  } catch (error) {
    // A header that cannot be sent: the connection is as it was.
    peer.onStreamClosed();
    events.onFail({ kind: 'unreachable', detail: codeOf(error) });
    return OVER;
  }
  /** Nothing more is told. */
  let isOver = false;
  let hasHead = false;
  let isUnsent = false;
  let isPaused = false;
  const isEnded = watchEnd(stream);
  /** What had come whole, and had not been read when the connection broke. */
  let rest: Buffer | undefined;

  const endRead = createReadEnd(() => isOver || events.onReadEnd());

  function finish(): void {
    isOver = true;
    if (!(body instanceof Readable) || body.readableEnded) return;
    body.unpipe(stream);
    body.destroy();
  }

  function complete(): void {
    if (isOver) return;
    finish();
    // An answer before the whole request: the rest of that is for nobody (RFC 9113 8.1).
    if (!stream.closed && !stream.writableEnded) stream.close(constants.NGHTTP2_NO_ERROR);
    events.onEnd();
  }

  function fail(): void {
    const isUntouched = isUnsent || stream.rstCode === constants.NGHTTP2_REFUSED_STREAM || peer.isUntouched(stream.id);
    finish();
    if (!hasHead && isUntouched && !(body instanceof Readable)) giveBack('refused');
    else events.onFail({ kind: 'reset', detail: peer.failureOf(stream.rstCode) });
  }

  function tellRest(): void {
    if (rest === undefined || isPaused || isOver) return;
    const bytes = rest;
    rest = Buffer.alloc(0);
    if (bytes.length > 0) events.onChunk(bytes);
    if (isPaused) events.onReadEnd();
    else complete();
  }

  stream.on('response', (_, __, raw?: string[]) => {
    peer.hear();
    if (isOver) return;
    hasHead = true;
    const headers = raw ?? [];
    events.onHead(Number(headers[headers.indexOf(':status') + 1]), withoutPseudo(headers));
    // Before the head nobody must hear of bytes that came with it.
    stream.on('data', (chunk: Buffer) => {
      peer.hear();
      if (isOver) return;
      events.onChunk(chunk);
      endRead();
    });
    if (isPaused) stream.pause();
  });
  stream.on('headers', () => peer.hear()); // 1xx
  stream.on('end', () => {
    if (hasHead && isEnded()) complete();
  });
  stream.on('frameError', (type) => (isUnsent ||= type === HEADERS_FRAME));
  stream.on('error', () => {}); // 'close' follows, and knows as much
  stream.on('close', () => {
    peer.onStreamClosed();
    if (isOver) return;
    if (!hasHead || !isEnded()) return fail();
    rest = stream.read() ?? Buffer.alloc(0);
    tellRest();
  });

  events.onStart();
  if (body === undefined) events.onSent();
  else {
    stream.on('finish', () => isOver || stream.closed || events.onSent());
    if (Buffer.isBuffer(body)) stream.end(body);
    else body.once('error', () => stream.close(constants.NGHTTP2_CANCEL)).pipe(stream);
  }

  return {
    abort(onClosed) {
      if (isOver) return;
      finish();
      if (stream.destroyed) return onClosed?.();
      if (onClosed !== undefined) stream.once('close', onClosed);
      stream.close(constants.NGHTTP2_CANCEL);
      // RST_STREAM is on its way; what the stream still held is for nobody.
      stream.destroy();
    },
    pause() {
      isPaused = true;
      if (hasHead) stream.pause();
    },
    resume() {
      isPaused = false;
      if (rest !== undefined) tellRest();
      else if (hasHead) stream.resume();
    },
  };
}

/**
 * Tells whether END_STREAM has come. Node ends a stream's bytes also where it was reset with NO_ERROR or CANCEL or its connection
 * closed; but then it is `closed` first, and only at END_STREAM its bytes end before that.
 */
function watchEnd(stream: ClientHttp2Stream): () => boolean {
  const push = stream.push.bind(stream);
  let isEnded = false;
  stream.push = (chunk: unknown, encoding?: BufferEncoding) => {
    if (chunk === null && !stream.closed) isEnded = true;
    return push(chunk, encoding);
  };
  return () => isEnded;
}

/** Names in lower case, a name once: repeated fields are one list (RFC 9110 5.3), which for some names Node insists on. */
function requestFields({ method, path, headers, body }: UpstreamRequest, authority: string): OutgoingHttpHeaders {
  const fields: Record<string, string> = { ':method': method, ':path': path, ':scheme': 'https', ':authority': authority };
  for (let i = 0; i < headers.length; i += 2) {
    const name = headers[i]!.toLowerCase();
    fields[name] = Object.hasOwn(fields, name) ? `${fields[name]}, ${headers[i + 1]}` : headers[i + 1]!;
  }
  if (Buffer.isBuffer(body)) fields['content-length'] = String(body.length);
  // Not into the compression's table, which all clients' calls share (RFC 7541 7.1.3).
  return { ...fields, [sensitiveHeaders]: [...credentialHeaders] };
}

function withoutPseudo(headers: readonly string[]): HeaderList {
  return headers.filter((_, at) => !headers[at - (at % 2)]!.startsWith(':'));
}

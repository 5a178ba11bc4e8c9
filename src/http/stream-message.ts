// A request on an HTTP/2 stream and its answer, in the shape that they have over HTTP/1.1: whoever forwards need not know which it is.
import { EventEmitter } from 'node:events';
import type { IncomingMessage, OutgoingHttpHeaders, ServerResponse } from 'node:http';
import { constants, Http2ServerRequest, Http2ServerResponse, type IncomingHttpHeaders, type ServerHttp2Stream } from 'node:http2';
import type { Socket } from 'node:net';
import type { HeaderList } from '../upstream/headers.ts';

const { NGHTTP2_NO_ERROR } = constants;

/** What Node would refuse to send (RFC 9113 8.2.2), and HTTP/1.1 adds by itself. */
const notOnStreams = new Set(['connection', 'keep-alive', 'proxy-connection', 'transfer-encoding', 'upgrade', 'http2-settings']);

/**
 * What stands for the client's connection: it lives as long as the stream, and never half-closes. The connection itself is
 * other streams' as well.
 */
class StreamSocket extends EventEmitter {
  readonly encrypted = true;
  readonly readableEnded = false;
  readonly remoteAddress: string | undefined;
  readonly remotePort: number | undefined;
  readonly localAddress: string | undefined;
  readonly #stream: ServerHttp2Stream;

  constructor(stream: ServerHttp2Stream) {
    super();
    this.#stream = stream;
    // Absent once the session is gone.
    const { remoteAddress, remotePort, localAddress } = stream.session?.socket ?? {};
    Object.assign(this, { remoteAddress, remotePort, localAddress });
  }

  get destroyed(): boolean {
    return this.#stream.destroyed || this.#stream.closed;
  }
}

/** The request, without pseudo-headers: `:authority` is its Host (RFC 9113 8.3.1). */
export class StreamRequest extends Http2ServerRequest {
  override readonly rawHeaders: HeaderList = [];
  override readonly socket: Socket;
  /** Whether `:authority` and Host, or two of either, name different servers. */
  readonly isAmbiguous: boolean;
  /** As the lines of an HTTP/1.1 head would take. */
  readonly headerBytes: number;

  constructor(stream: ServerHttp2Stream, headers: IncomingHttpHeaders, rawHeaders: readonly string[]) {
    super(stream, headers, {}, [...rawHeaders]);
    const hosts = new Set<string>();
    let headerBytes = 0;
    for (let at = 0; at < rawHeaders.length; at += 2) {
      const [name, value] = [rawHeaders[at]!, rawHeaders[at + 1]!];
      headerBytes += name.length + value.length + ': \r\n'.length;
      if (name === ':authority' || name === 'host') hosts.add(value);
      else if (!name.startsWith(':')) this.rawHeaders.push(name, value);
    }
    const [host] = hosts;
    if (host !== undefined) {
      headers.host = host;
      this.rawHeaders.unshift('host', host);
    }
    this.isAmbiguous = hosts.size > 1;
    this.headerBytes = headerBytes;
    this.socket = new StreamSocket(stream) as unknown as Socket;
    // What ends a request shows in its answer, which closes.
    this.on('error', () => undefined);
  }

  /** Whether the end of the body has come, read or not. */
  get isWhole(): boolean {
    return this.stream.endAfterHeaders || this.stream.readableEnded || this.stream.state.remoteClose === 1;
  }

  /** Node's own asserts, and so ends the process, where a request is read on behind its stream's close. */
  override _read(size: number): void {
    if (!this.stream.destroyed) super._read(size);
  }

  /** Node ends the body of a stream that was reset as if it had come whole; it must not go up as that. */
  override push(chunk: unknown, encoding?: BufferEncoding): boolean {
    if (chunk === null && (this.stream.aborted || this.stream.rstCode !== NGHTTP2_NO_ERROR)) return false;
    return super.push(chunk, encoding);
  }
}

/** The answer. What is cut ends with RST_STREAM, never with END_STREAM. */
export class StreamResponse extends Http2ServerResponse<StreamRequest> {
  readonly chunkedEncoding = false;
  override readonly socket: Socket;
  #isFinished = false;

  constructor(stream: ServerHttp2Stream) {
    super(stream);
    this.socket = this.req.socket;
    // Node's own has none, whatever its type says.
    Object.defineProperty(this, 'destroyed', { get: () => this.socket.destroyed });
    stream.once('finish', () => {
      // For an answer without a body Node ends the stream before the head has gone.
      this.emit('finish');
      setImmediate(() => this.letGoOfRest());
    });
    // A stream that is reset without an error would otherwise close only once its body has been read.
    stream.once('aborted', () => setImmediate(() => stream.destroy()));
  }

  get shouldKeepAlive(): boolean {
    return this.stream.session?.closed === false;
  }

  /** The connection takes no further request: GOAWAY. The streams that it has go on. */
  set shouldKeepAlive(isKept: boolean) {
    if (!isKept) this.stream.session?.close();
  }

  /** Node's own tells of a finish wherever the stream closes, and so of an answer that was cut. */
  override emit(event: string | symbol, ...args: unknown[]): boolean {
    if (event === 'finish') {
      if (this.#isFinished || !this.writableEnded || !this.stream.writableFinished || this.stream.rstCode !== NGHTTP2_NO_ERROR)
        return false;
      this.#isFinished = true;
    }
    return super.emit(event, ...args);
  }

  override writeHead(status: number, given?: OutgoingHttpHeaders | readonly string[] | string): this {
    if (this.destroyed) return this;
    const own = Object.entries({ ...this.getHeaders(), ...(isList(given) ? {} : (given as OutgoingHttpHeaders)) });
    const pairs = own.flatMap(([name, value]) => [value ?? []].flat().flatMap((one) => [name, String(one)]));
    if (isList(given)) pairs.push(...given);
    const list: string[] = [':status', String(status)];
    for (let at = 0; at < pairs.length; at += 2) {
      const name = pairs[at]!.toLowerCase();
      if (!notOnStreams.has(name)) list.push(name, pairs[at + 1]!);
    }
    this.statusCode = status;
    this.stream.respond(list);
    return this;
  }

  /** Who is answered need not send the rest of its body (RFC 9113 8.1): once the end of the answer is out, and not before it. */
  letGoOfRest(): void {
    if (this.writableEnded && !this.destroyed && this.stream.state.localClose === 1) this.stream.close(NGHTTP2_NO_ERROR);
  }

  /** RST_STREAM with INTERNAL_ERROR. Node's `close` would send END_STREAM first, and make a cut answer look whole. */
  override destroy(): this {
    this.stream.destroy(new Error('cut'));
    return this;
  }
}

function isList(headers: OutgoingHttpHeaders | readonly string[] | string | undefined): headers is readonly string[] {
  return Array.isArray(headers);
}

/** The answer as what it is, where it is on a stream. */
export function onStream(response: ServerResponse): StreamResponse | undefined {
  return (response as unknown) instanceof StreamResponse ? (response as unknown as StreamResponse) : undefined;
}

/** RFC 9112 6.3: a request has a body if it says so. On a stream it has one if that does not end with its headers (RFC 9113 8.1). */
export function hasBody(request: IncomingMessage): boolean {
  const { headers } = request;
  if (headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0) return true;
  return (
    (request as unknown) instanceof StreamRequest &&
    headers['content-length'] === undefined &&
    !(request as unknown as StreamRequest).stream.endAfterHeaders
  );
}

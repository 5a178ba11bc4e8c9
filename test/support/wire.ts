// A raw-socket HTTP/1.1 client: sends any bytes, shows every byte that came back, and knows whether an answer truly ended.

import { once } from 'node:events';
import { connect as connectSocket, isIPv6 } from 'node:net';
import { reset } from '../../src/stream/reset.ts';
import { createMessageReader, type Field, frameResponse, type Message, statusOf } from './framing.ts';
import { createPeer, type Ending } from './peer.ts';
import { createWaiting, defaultWaitMs } from './waiting.ts';

export interface WireRequest {
  /** POST with a body, else GET. */
  readonly method?: string;
  /** As it stands in the request line; `/` if not given. */
  readonly target?: string;
  /** `Host` and the body's framing are added where they are not given. */
  readonly headers?: Record<string, string> | readonly Field[];
  readonly body?: string | Buffer;
  /** Sends the body as one chunk and the final one; without a body the head only, and chunks are left to `send`. */
  readonly chunked?: boolean;
}

export interface WireHead {
  readonly status: number;
  readonly rawHeaders: readonly Field[];
  /** Lower-case names, several values joined by ', '. */
  readonly headers: Record<string, string>;
}

/** The connection ended before the framing said that the body had; `received` is what came of it. */
export type IncompleteError = Error & { readonly code: 'incomplete'; readonly received: Buffer };

/** `isComplete`: some answer came, and the last one to its proper end. */
export type WireEnding = Ending & { readonly isComplete: boolean };

/** Answers are spoken of in order: `head` goes on to the next one; the others stay with that one, or begin it if there is none. */
export interface WireClient {
  send(bytes: string | Buffer): void;
  /** Writes a well-formed request. */
  request(request: WireRequest): void;
  /** The next answer's head; interim ones (1xx) count. */
  head(): Promise<WireHead>;
  /** The whole body from its first byte, whatever was consumed, and with it the end of this answer. Rejects with `IncompleteError`. */
  body(): Promise<Buffer>;
  /** The next n body bytes. */
  read(n: number): Promise<Buffer>;
  /** The body from what was consumed last up to the end of `text`, as soon as that is there; returns what it consumed. */
  until(text: string): Promise<string>;
  /** All that was received, framing included. */
  raw(): Buffer;
  /** When and how the connection closed; the bound of the wait begins as this is read. Unseen while reading is paused. */
  readonly closed: Promise<WireEnding>;
  /** FIN; goes on reading. */
  end(): void;
  /** RST. */
  reset(): void;
  destroy(): void;
  /** Stops reading; Node and the kernel still take what fits into their buffers. */
  pause(): void;
  resume(): void;
}

function formatRequest(request: WireRequest, authority: string): Buffer {
  const { target = '/', headers = {}, body, chunked = false } = request;
  const content = Buffer.from(body ?? '');
  const { method = body === undefined && !chunked ? 'GET' : 'POST' } = request;
  const defaults: Field[] = [['Host', authority]];
  if (chunked) defaults.push(['Transfer-Encoding', 'chunked']);
  else if (method !== 'GET' && method !== 'HEAD') defaults.push(['Content-Length', String(content.length)]);
  const given: readonly Field[] = Array.isArray(headers) ? headers : Object.entries(headers);
  const names = new Set(given.map(([name]) => name.toLowerCase()));
  const fields = [...defaults.filter(([name]) => !names.has(name.toLowerCase())), ...given];
  const head = `${method} ${target} HTTP/1.1\r\n${fields.map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n`;
  const size = chunked && content.length > 0 ? `${content.length.toString(16)}\r\n` : '';
  const tail = chunked && body !== undefined ? `${size && '\r\n'}0\r\n\r\n` : '';
  return Buffer.concat([Buffer.from(head + size, 'latin1'), content, Buffer.from(tail)]);
}

const isInterim = ({ head }: Message) => statusOf(head) < 200 && statusOf(head) !== 101;

/** Opens a connection, to 127.0.0.1 if no host is given; each wait on it is bounded by `waitMs` (5 s). Answers a FIN with its own. */
export async function connect(port: number, host = '127.0.0.1', waitMs = defaultWaitMs): Promise<WireClient> {
  const socket = connectSocket({ port, host });
  try {
    await once(socket, 'connect', { signal: AbortSignal.timeout(waitMs) });
  } catch (cause) {
    socket.destroy();
    throw new Error(`no connection to ${host}:${port}`, { cause });
  }
  const waiting = createWaiting(waitMs);
  const methods: string[] = [];
  const reader = createMessageReader((head) => {
    const isFinal = statusOf(head) >= 200;
    return frameResponse(head, (isFinal ? methods.shift() : methods[0]) ?? '');
  });
  const peer = createPeer({ socket, reader, waiting, sendReset: () => reset(socket) });
  let begun = 0;
  let current: Message | undefined;
  let consumed = 0;

  async function next(): Promise<Message> {
    current = await peer.wait('a response head', () => (begun < reader.messages.length ? reader.messages[begun++] : undefined));
    consumed = 0;
    return current;
  }
  async function answer(): Promise<Message> {
    let message = current ?? (await next());
    while (isInterim(message)) message = await next();
    return message;
  }
  /** Waits for something of this body; rejects once the body or the connection has ended without it. */
  function waitInBody<T>(message: Message, awaited: string, attempt: () => T | undefined): Promise<T> {
    const incomplete = () =>
      Object.assign(new Error(`incomplete: the connection ended before ${awaited}; seen: ${peer.describe()}`), {
        code: 'incomplete',
        received: message.body.view(),
      });
    const attemptOrFail = () => {
      const result = attempt();
      if (result === undefined && message.isComplete) throw new Error(`the body ended without ${awaited}; seen: ${peer.describe()}`);
      return result;
    };
    return peer.wait(awaited, attemptOrFail, incomplete);
  }
  function consume({ body }: Message, end: number): Buffer {
    const piece = body.view().subarray(consumed, end);
    consumed = end;
    return piece;
  }

  return {
    send: (bytes) => void socket.write(bytes),
    request(request) {
      const bytes = formatRequest(request, `${isIPv6(host) ? `[${host}]` : host}:${port}`);
      methods.push(bytes.toString('latin1', 0, bytes.indexOf(' ')));
      socket.write(bytes);
    },
    async head() {
      const { head } = await next();
      return { status: statusOf(head), rawHeaders: head.rawHeaders, headers: head.headers };
    },
    async body() {
      const message = await answer();
      const whole = await waitInBody(message, 'the end of the body', () => (message.isComplete ? message.body.view() : undefined));
      current = undefined;
      return whole;
    },
    async read(n) {
      const message = await answer();
      const attempt = () => (message.body.length >= consumed + n ? consume(message, consumed + n) : undefined);
      return waitInBody(message, `${n} more body bytes`, attempt);
    },
    async until(text) {
      const message = await answer();
      const wanted = Buffer.from(text);
      const attempt = () => {
        const found = message.body.view().indexOf(wanted, consumed);
        return found < 0 ? undefined : consume(message, found + wanted.length).toString();
      };
      return waitInBody(message, JSON.stringify(text), attempt);
    },
    raw: () => reader.bytes.view(),
    get closed() {
      return peer
        .closed()
        .then((ending) => ({ ...ending, isComplete: reader.strayBytes === 0 && (reader.messages.at(-1)?.isComplete ?? false) }));
    },
    end: () => void socket.end(),
    reset: () => peer.reset(),
    destroy: () => void socket.destroy(),
    pause: () => void socket.pause(),
    resume: () => void socket.resume(),
  };
}

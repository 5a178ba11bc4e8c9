// Opens sockets to an upstream, straight or through a proxy's tunnel, each known from its first SYN on.
import { isIP, type OnReadOpts, connect as openTcp, type Socket } from 'node:net';
import { type ConnectionOptions, createSecureContext, connect as openTls, type SecureContext } from 'node:tls';
import type { Upstream } from '../config.ts';

/** What opening a socket depends on. */
export type Way = Pick<Upstream, 'baseUrl' | 'ca' | 'certificate' | 'proxy'>;

/** A socket on its way up: TCP, then perhaps the proxy's tunnel, then TLS. */
export interface Opening {
  /** The outermost so far. */
  readonly socket: Socket;
  /** Closes it in whatever phase; the callback of `open` is not called any more. */
  destroy(): void;
}

/** Called once: with the socket that the request can be written to, or with why there is none. */
export type Opened = (error: Error | null, socket: Socket | null) => void;

/**
 * Opens a socket to the upstream, offering these protocols by ALPN (RFC 7301) where it speaks TLS. Where nothing is in between, its
 * bytes go where `onread` says (node:net).
 */
export type Connector = (protocols: readonly string[], onOpened: Opened, onread?: OnReadOpts) => Opening;

/** A proxy's answer to CONNECT beyond this is no answer. */
const MAX_TUNNEL_HEAD_BYTES = 16 * 1024;
/** As undici's own connector has it. */
const KEEP_ALIVE_AFTER_MS = 60_000;

export function createConnector({ baseUrl, ca, certificate, proxy }: Way): Connector {
  const upstream = new URL(baseUrl);
  // Parsing certificates takes milliseconds, so once. A private CA takes the place of the public ones.
  const secureContext =
    upstream.protocol === 'https:'
      ? createSecureContext({
          ...(ca !== undefined && { ca: ca.text }),
          ...(certificate !== undefined && { cert: certificate.cert.text, key: certificate.key.text }),
        })
      : undefined;
  const through = proxy === undefined ? undefined : new URL(proxy);
  /** The last session of the upstream's, which spares the next connection half its handshake (RFC 8446 2.2). */
  let session: Buffer | undefined;

  return (protocols, onOpened, onread) => {
    let isOver = false;
    const sockets: Socket[] = [];

    /** Every socket has a listener for its errors from the beginning to its end. */
    function watch(socket: Socket): Socket {
      sockets.push(socket);
      return socket.setNoDelay(true).setKeepAlive(true, KEEP_ALIVE_AFTER_MS).on('error', fail);
    }

    function fail(error: Error): void {
      if (isOver) return;
      destroy();
      onOpened(error, null);
    }

    function succeed(): void {
      if (isOver) return;
      isOver = true;
      onOpened(null, sockets.at(-1)!);
    }

    function destroy(): void {
      isOver = true;
      for (const socket of sockets) socket.destroy();
    }

    function secure(url: URL, under: Socket | undefined, context: SecureContext | undefined, offered: readonly string[]): Socket {
      const host = hostOf(url);
      return openTls({
        host, // what the certificate must be for, whatever is beneath
        port: portOf(url),
        ...(isIP(host) === 0 && { servername: host }), // RFC 6066 3: no addresses
        ...(under !== undefined && { socket: under }),
        ...(context !== undefined && { secureContext: context }),
        ...(context !== undefined && session !== undefined && { session }),
        ALPNProtocols: [...offered],
        ...(under === undefined && through === undefined && onread !== undefined && { onread }),
      } as ConnectionOptions);
    }

    function open(url: URL, context: SecureContext | undefined, offered: readonly string[]): Socket {
      if (url.protocol === 'https:') return watch(secure(url, undefined, context, offered));
      return watch(openTcp({ host: hostOf(url), port: portOf(url), ...(through === undefined && onread !== undefined && { onread }) }));
    }

    function finish(socket: Socket): void {
      if (upstream.protocol !== 'https:') succeed();
      else socket.on('session', (next: Buffer) => (session = next)).once('secureConnect', succeed);
    }

    if (through === undefined) {
      const socket = open(upstream, secureContext, protocols);
      if (upstream.protocol === 'https:') finish(socket);
      else socket.once('connect', succeed);
    } else {
      const toProxy = open(through, undefined, ['http/1.1']);
      toProxy.once(through.protocol === 'https:' ? 'secureConnect' : 'connect', () => {
        if (!isOver) dig(toProxy, upstream, through, (error) => (error === undefined ? tunnel(toProxy) : fail(error)));
      });
    }

    function tunnel(socket: Socket): void {
      if (isOver) return;
      finish(upstream.protocol === 'https:' ? watch(secure(upstream, socket, secureContext, protocols)) : socket);
    }

    return {
      get socket() {
        return sockets.at(-1)!;
      },
      destroy,
    };
  };
}

/** Asks a proxy for a tunnel to the upstream (RFC 9110 9.3.6). What the upstream is asked then, and with what key, it does not see of https. */
function dig(socket: Socket, upstream: URL, proxy: URL, onDug: (error?: Error) => void): void {
  let head = '';
  const authority = `${upstream.hostname}:${portOf(upstream)}`;
  const credentials = `${decode(proxy.username)}:${decode(proxy.password)}`;
  const authorization = credentials === ':' ? '' : `Proxy-Authorization: Basic ${Buffer.from(credentials).toString('base64')}\r\n`;

  function end(code?: string): void {
    socket.off('readable', onReadable).off('end', onEnd).off('close', onEnd);
    onDug(code === undefined ? undefined : Object.assign(new Error('no tunnel'), { code }));
  }
  const onEnd = () => end('PROXY_CLOSED');

  function onReadable(): void {
    for (let chunk: Buffer | null = socket.read(); chunk !== null; chunk = socket.read()) head += chunk.toString('latin1');
    const length = head.indexOf('\r\n\r\n') + 4;
    if (length < 4) {
      if (head.length > MAX_TUNNEL_HEAD_BYTES) end('PROXY_MALFORMED');
      return;
    }
    const [, status = ''] = /^HTTP\/1\.[01] (\d{3})[ \r]/.exec(head) ?? [];
    if (status.startsWith('2'))
      end(head.length === length ? undefined : 'PROXY_MALFORMED'); // the upstream speaks after us
    else end(status === '' ? 'PROXY_MALFORMED' : `PROXY_${status}`);
  }

  socket.on('readable', onReadable).on('end', onEnd).on('close', onEnd);
  socket.write(`CONNECT ${authority} HTTP/1.1\r\nHost: ${authority}\r\n${authorization}\r\n`, 'latin1');
}

/** Without the brackets of an IPv6 address. */
function hostOf({ hostname }: URL): string {
  return hostname.replace(/^\[|\]$/g, '');
}

/** Of a URL's user or password; one with a percent sign that escapes nothing is taken as it is. */
function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function portOf({ port, protocol }: URL): number {
  return port !== '' ? Number(port) : protocol === 'https:' ? 443 : 80;
}

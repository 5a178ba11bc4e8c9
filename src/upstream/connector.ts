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
  const ends: Ends = {
    upstream,
    isTls: upstream.protocol === 'https:',
    through: proxy === undefined ? undefined : new URL(proxy),
    // Parsing certificates takes milliseconds, so once. A private CA takes the place of the public ones.
    secureContext:
      upstream.protocol === 'https:'
        ? createSecureContext({
            ...(ca !== undefined && { ca: ca.text }),
            ...(certificate !== undefined && { cert: certificate.cert.text, key: certificate.key.text }),
          })
        : undefined,
    session: undefined,
  };
  return (protocols, onOpened, onread) => new SocketOpening(ends, protocols, onOpened, onread);
}

/** Where connections go, and by which way. */
interface Ends {
  readonly upstream: URL;
  readonly isTls: boolean;
  readonly through: URL | undefined;
  readonly secureContext: SecureContext | undefined;
  /** The last session of the upstream's, which spares the next connection half its handshake (RFC 8446 2.2). */
  session: Buffer | undefined;
}

class SocketOpening implements Opening {
  private readonly ends: Ends;
  private readonly protocols: readonly string[];
  private readonly onOpened: Opened;
  private isOver = false;
  private sockets: readonly Socket[] = [];

  constructor(ends: Ends, protocols: readonly string[], onOpened: Opened, onread: OnReadOpts | undefined) {
    this.ends = ends;
    this.protocols = protocols;
    this.onOpened = onOpened;
    if (ends.through === undefined) this.openStraight(onread);
    else this.openTunnel(ends.through);
  }

  get socket(): Socket {
    return this.sockets.at(-1)!;
  }

  destroy(): void {
    this.isOver = true;
    for (const socket of this.sockets) socket.destroy();
  }

  private openStraight(onread: OnReadOpts | undefined): void {
    const { upstream, isTls, secureContext } = this.ends;
    if (isTls) this.finish(this.watch(this.secure(upstream, this.protocols, { context: secureContext, onread })));
    else this.finish(this.watch(openTcp({ host: hostOf(upstream), port: portOf(upstream), ...(onread !== undefined && { onread }) })));
  }

  private openTunnel(through: URL): void {
    const isSecure = through.protocol === 'https:';
    const toProxy = this.watch(
      isSecure ? this.secure(through, ['http/1.1'], {}) : openTcp({ host: hostOf(through), port: portOf(through) }),
    );
    toProxy.once(isSecure ? 'secureConnect' : 'connect', () => {
      if (!this.isOver) dig(toProxy, this.ends.upstream, through, (error) => this.onDug(toProxy, error));
    });
  }

  private onDug(toProxy: Socket, error: Error | undefined): void {
    const { upstream, isTls, secureContext } = this.ends;
    if (error !== undefined) this.fail(error);
    else if (this.isOver) return;
    else if (isTls) this.finish(this.watch(this.secure(upstream, this.protocols, { under: toProxy, context: secureContext })));
    else this.succeed();
  }

  /** Every socket has a listener for its errors from the beginning to its end. */
  private watch(socket: Socket): Socket {
    this.sockets = this.sockets.concat(socket);
    return socket
      .setNoDelay(true)
      .setKeepAlive(true, KEEP_ALIVE_AFTER_MS)
      .on('error', (error) => this.fail(error));
  }

  private fail(error: Error): void {
    if (this.isOver) return;
    this.destroy();
    this.onOpened(error, null);
  }

  /** The outermost socket is on its way to the upstream itself. */
  private finish(socket: Socket): void {
    const { ends } = this;
    if (ends.isTls) socket.on('session', (next: Buffer) => (ends.session = next));
    socket.once(ends.isTls ? 'secureConnect' : 'connect', () => this.succeed());
  }

  private succeed(): void {
    if (this.isOver) return;
    this.isOver = true;
    this.onOpened(null, this.socket);
  }

  private secure(url: URL, offered: readonly string[], { under, context, onread }: Beneath): Socket {
    const host = hostOf(url);
    const { session } = this.ends;
    return openTls({
      host, // what the certificate must be for, whatever is beneath
      port: portOf(url),
      ...(isIP(host) === 0 && { servername: host }), // RFC 6066 3: no addresses
      ...(under !== undefined && { socket: under }),
      ...(context !== undefined && { secureContext: context }),
      ...(context !== undefined && session !== undefined && { session }),
      ALPNProtocols: [...offered],
      ...(onread !== undefined && { onread }),
    } as ConnectionOptions);
  }
}

/** What TLS is spoken over, and as whom; without a context it is not the upstream that is spoken to. */
interface Beneath {
  readonly under?: Socket;
  readonly context?: SecureContext | undefined;
  readonly onread?: OnReadOpts | undefined;
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

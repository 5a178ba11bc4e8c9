// Keeps web pages from reaching, through a browser, a gateway that is meant for this machine.
import type { IncomingMessage } from 'node:http';
import { type Address, isLoopback } from '../config.ts';
import { GatewayError } from '../errors.ts';

export interface GuardOptions {
  readonly listen: Address;
  readonly hostnames: readonly string[];
  /** Origins whose pages may call. */
  readonly origins: readonly string[];
}

/**
 * Makes the check of `Host` and `Origin` for callers without a key.
 *
 * A rebound DNS name shows in `Host` (it is not one of ours), a simple cross-site request in `Origin`. An address
 * as host cannot be rebound, so the one that the connection came in on is as good as the configured one.
 * @throws GatewayError `forbidden_origin` from the returned function
 */
export function createGuard({ listen, hostnames, origins }: GuardOptions): (request: IncomingMessage) => void {
  const ours = new Set([...hostnames.map((name) => name.toLowerCase()), listen.host.toLowerCase()]);
  return (request) => {
    const { host, origin, 'sec-fetch-site': site } = request.headers;
    // Browsers always send Host; who does not (HTTP/1.0) is none.
    if (host !== undefined) {
      const name = hostName(host);
      if (!ours.has(name) && !isLoopback(name) && name !== addressOf(request)) throw new GatewayError('forbidden_origin');
    }
    // What a page embeds, an image say, comes without Origin; browsers say where it is from (W3C Fetch Metadata).
    if (origin === undefined && site === 'cross-site') throw new GatewayError('forbidden_origin');
    if (origin === undefined || origins.includes(origin)) return;
    if (origin !== `http://${host}` && origin !== `https://${host}`) throw new GatewayError('forbidden_origin');
  };
}

/** The name in a `Host` header (RFC 9110 7.2), without port and brackets. */
function hostName(host: string): string {
  const name = host.startsWith('[') ? host.slice(1, host.indexOf(']')) : host.replace(/:\d*$/, '');
  return name.toLowerCase().replace(/\.$/, '');
}

function addressOf({ socket }: IncomingMessage): string | undefined {
  return socket.localAddress?.toLowerCase().replace(/^::ffff:/, '');
}

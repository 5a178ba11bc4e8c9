// Who calls: a client's key, known only by its SHA-256, becomes the client.
import { hash, timingSafeEqual } from 'node:crypto';
import type { Client, Config } from '../config.ts';
import { GatewayError } from '../errors.ts';
import { KEY_SUBPROTOCOL } from '../upstream/handshake.ts';
import { credentialHeaders } from '../upstream/headers.ts';

/** Longer than any key that a provider or `sluicegate key` makes; nothing longer is hashed. */
const MAX_KEY_LENGTH = 512;

/** The SHA-256 of a key, as `keySha256` in the configuration holds it: 64 lower-case hexadecimal digits. */
export function hashKey(key: string): string {
  return hash('sha256', Buffer.from(key, 'latin1'), 'hex');
}

/**
 * Makes the check of client keys.
 * @returns a function from a request's raw headers to its client; undefined where there are no clients and all are anonymous
 * @throws GatewayError `invalid_api_key` from that function: no key, an unknown one, or more than one
 */
export function createAuthenticator(config: Config): (rawHeaders: readonly string[]) => Client | undefined {
  const { clients } = config;
  if (clients.length === 0) return () => undefined;
  const isPassthrough = config.upstreams.some(({ auth }) => auth === 'passthrough');
  const headers: readonly string[] = isPassthrough ? ['x-sluicegate-key'] : [...credentialHeaders, 'sec-websocket-protocol'];
  const known = clients.flatMap((client) => client.keySha256.map((sha256) => ({ client, digest: Buffer.from(sha256, 'hex') })));

  /**
   * The keys that were right, for as long as this configuration serves: a hash and a comparison with each known one are made once and
   * not for every call. A Map goes by hashes with a seed of this process, so that its time, too, tells nothing of a key that is near.
   */
  const proven = new Map<string, Client>();

  return (rawHeaders) => {
    const key = presentedKey(rawHeaders, headers);
    const caller = proven.get(key);
    if (caller !== undefined) return caller;
    const presented = Buffer.from(hashKey(key), 'hex');
    let found: Client | undefined;
    // All are compared, whole: how long it takes tells nothing about any of them.
    for (const { client, digest } of known) if (timingSafeEqual(digest, presented)) found = client;
    if (found === undefined) throw new GatewayError('invalid_api_key');
    proven.set(key, found);
    return found;
  };
}

/** The one key of a request. Two of them, even in different headers, would leave open which was meant. */
function presentedKey(rawHeaders: readonly string[], accepted: readonly string[]): string {
  const keys: (string | undefined)[] = [];
  for (let at = 0; at < rawHeaders.length; at += 2) {
    const name = rawHeaders[at]!.toLowerCase();
    const value = rawHeaders[at + 1]!;
    if (!accepted.includes(name)) continue;
    if (name === 'sec-websocket-protocol') keys.push(...keysOfSubprotocols(value));
    else keys.push(name === 'authorization' ? /^Bearer +(\S+)$/i.exec(value)?.[1] : value);
  }
  const [key] = keys;
  if (!key || keys.length > 1 || key.length > MAX_KEY_LENGTH) throw new GatewayError('invalid_api_key');
  return key;
}

function keysOfSubprotocols(value: string): string[] {
  const protocols = value.split(',').map((protocol) => protocol.trim());
  return protocols.filter((protocol) => protocol.startsWith(KEY_SUBPROTOCOL)).map((protocol) => protocol.slice(KEY_SUBPROTOCOL.length));
}

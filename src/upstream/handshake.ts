// The opening handshake of a WebSocket (RFC 6455 4), as it goes up.
import type { Upstream } from '../config.ts';
import { type HeaderList, requestHeaders } from './headers.ts';

/** Browsers can set no header on a WebSocket: a key comes as one of the subprotocols (OpenAI, "Realtime API with WebSocket"). */
export const KEY_SUBPROTOCOL = 'openai-insecure-api-key.';

/**
 * The headers of the upstream's handshake: those of any request, and the client's own part of the handshake, to which the
 * upstream's answer has to fit. Extensions are not offered: a compressed frame could not be read in passing, and would
 * be held by whoever compresses it.
 */
export function handshakeHeaders(clientHeaders: readonly string[], upstream: Upstream, key: string | undefined): HeaderList {
  const out = requestHeaders(clientHeaders, upstream, key);
  for (let at = 0; at < clientHeaders.length; at += 2) {
    const name = clientHeaders[at]!;
    const value = clientHeaders[at + 1]!;
    if (/^sec-websocket-(?:key|version)$/i.test(name)) out.push(name, value);
    if (!/^sec-websocket-protocol$/i.test(name)) continue;
    const protocols = upstream.auth === 'passthrough' ? value : withoutKeys(value);
    if (protocols !== '') out.push(name, protocols);
  }
  return out;
}

/** The client's credential stays here. */
function withoutKeys(protocols: string): string {
  const offered = protocols.split(',').map((protocol) => protocol.trim());
  return offered.filter((protocol) => !protocol.startsWith(KEY_SUBPROTOCOL)).join(', ');
}

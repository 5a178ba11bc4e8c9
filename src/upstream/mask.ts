// Keeps the injected key from coming back: an upstream's error that quotes it goes down with asterisks in its place.

/** Passes bytes through, with every occurrence of the key overwritten. Call `rest` at the end for what was held. */
export interface KeyMask {
  next(bytes: Buffer): Buffer;
  rest(): Buffer;
}

/** Only bytes that may be the beginning of the key are held, until the next ones tell. An empty key masks nothing. */
export function createKeyMask(key: string): KeyMask {
  const secret = Buffer.from(key, 'latin1');
  let held: Buffer = Buffer.alloc(0);
  if (secret.length === 0) return { next: (bytes) => bytes, rest: () => held };
  return {
    next(bytes) {
      const all = held.length === 0 ? Buffer.from(bytes) : Buffer.concat([held, bytes]);
      for (let at = all.indexOf(secret); at >= 0; at = all.indexOf(secret, at)) all.fill('*', at, at + secret.length);
      const free = all.length - heldLength(all, secret);
      held = all.subarray(free);
      return all.subarray(0, free);
    },
    rest: () => held,
  };
}

/** How many of the last bytes are a beginning of the secret. */
function heldLength(bytes: Buffer, secret: Buffer): number {
  for (let length = Math.min(bytes.length, secret.length - 1); length > 0; length--) {
    if (bytes.subarray(bytes.length - length).equals(secret.subarray(0, length))) return length;
  }
  return 0;
}

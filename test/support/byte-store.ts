// Bytes that grow at one end, for what a socket brings.

export interface ByteStore {
  readonly length: number;
  append(bytes: Buffer): void;
  /** All of it, without a copy. */
  view(): Buffer;
}

/** An empty store; doubling keeps a flood from costing its square. */
export function createByteStore(): ByteStore {
  let store = Buffer.alloc(1024);
  let length = 0;
  return {
    get length() {
      return length;
    },
    append(bytes) {
      if (length + bytes.length > store.length) {
        const grown = Buffer.alloc(Math.max(store.length * 2, length + bytes.length));
        store.copy(grown, 0, 0, length);
        store = grown;
      }
      length += bytes.copy(store, length);
    },
    view: () => store.subarray(0, length),
  };
}

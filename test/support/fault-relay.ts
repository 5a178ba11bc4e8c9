// A TCP relay that does to connections what networks do: slow, sliced, cut, reset, or silent without a packet.
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { reset } from '../../src/stream/reset.ts';
import { createRandom } from './random.ts';

/** `up` is from whoever connected to the target, `down` the way back. */
export type Direction = 'up' | 'down';

/** The vocabulary of toxiproxy (Shopify/toxiproxy, README "Toxics"); times in milliseconds. */
export type Toxic = { readonly direction?: Direction } & (
  | { readonly type: 'latency'; readonly latencyMs: number; readonly jitterMs?: number }
  | { readonly type: 'bandwidth'; readonly bytesPerSecond: number }
  /** The FIN comes so much later than it was sent. */
  | { readonly type: 'slow_close'; readonly delayMs: number }
  /** What comes is dropped; both sides are closed after so long, never if 0. */
  | { readonly type: 'timeout'; readonly timeoutMs: number }
  /** Both sides get an RST, after so long. */
  | { readonly type: 'reset_peer'; readonly timeoutMs: number }
  /** Pieces of at most so many bytes, with so long between two of them. */
  | { readonly type: 'slicer'; readonly maxBytes: number; readonly delayMs?: number }
  /** Both sides are closed once so many bytes of a connection have passed. */
  | { readonly type: 'limit_data'; readonly bytes: number }
  /** The cable is out: nothing passes, not even an end, and nobody is told. */
  | { readonly type: 'down' }
);

export interface FaultRelay {
  readonly port: number;
  /** Connections that are open on either side. */
  readonly liveCount: number;
  /** Works on connections that are there and on those that come, one way or (without a direction) both; returns what removes it. */
  add(toxic: Toxic): () => void;
  /** Destroys what is open and stops listening. */
  close(): Promise<void>;
}

/** What waits in one direction; beyond it the sender is not read, as with a full window. */
const MAX_HELD_BYTES = 1_048_576;

/** Listens on 127.0.0.1, any port, and relays to `targetPort` there. `seed` is for jitter. */
export async function startFaultRelay(targetPort: number, seed = 1): Promise<FaultRelay> {
  const random = createRandom(seed);
  const toxics = new Set<Toxic>();
  const changes = new Set<() => void>();
  const live = new Set<Socket>();
  const server = createServer({ allowHalfOpen: true }, (client) => {
    const target = connect({ port: targetPort, host: '127.0.0.1', allowHalfOpen: true });
    const sockets = [client, target];
    for (const socket of sockets) {
      socket.setNoDelay(true).on('error', () => {});
      live.add(socket);
      socket.once('close', () => live.delete(socket));
    }
    const surroundings = { random, changes, end: (how: 'fin' | 'reset') => endAll(sockets, how) };
    startLink(client, target, { ...surroundings, toxics: () => [...toxics].filter(({ direction }) => direction !== 'down') });
    startLink(target, client, { ...surroundings, toxics: () => [...toxics].filter(({ direction }) => direction !== 'up') });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const changed = () => {
    for (const look of [...changes]) look();
  };
  return {
    port: (server.address() as AddressInfo).port,
    get liveCount() {
      return live.size;
    },
    add(toxic) {
      toxics.add(toxic);
      changed();
      return () => {
        toxics.delete(toxic);
        changed();
      };
    },
    async close() {
      const closed = once(server, 'close');
      server.close();
      for (const socket of live) socket.destroy();
      await closed;
    },
  };
}

function endAll(sockets: Socket[], how: 'fin' | 'reset'): void {
  for (const socket of sockets) {
    if (how === 'reset') reset(socket);
    else socket.destroySoon();
  }
}

interface Surroundings {
  toxics(): Toxic[];
  readonly random: (n: number) => number;
  /** Called whenever toxics come or go. */
  readonly changes: Set<() => void>;
  /** Ends both sides of the connection. */
  end(how: 'fin' | 'reset'): void;
}

/** One piece of what was read, or the FIN; `null` is the FIN. */
type Parcel = { readonly bytes: Buffer | null; readonly cameAtMs: number };

/** Carries one direction: what is read is kept in order, and goes out when every toxic has had its way with it. */
function startLink(from: Socket, to: Socket, around: Surroundings): void {
  const parcels: Parcel[] = [];
  let heldBytes = 0;
  let passedBytes = 0;
  let isCarrying = false;
  let doom: NodeJS.Timeout | undefined;

  const find = <T extends Toxic['type']>(type: T) => around.toxics().find((toxic): toxic is Toxic & { type: T } => toxic.type === type);

  function take(bytes: Buffer | null): void {
    parcels.push({ bytes, cameAtMs: performance.now() });
    heldBytes += bytes?.length ?? 0;
    if (heldBytes > MAX_HELD_BYTES) from.pause();
    if (!isCarrying) void carryAll();
  }

  async function carryAll(): Promise<void> {
    isCarrying = true;
    for (let parcel = parcels.shift(); parcel !== undefined && !to.destroyed; parcel = parcels.shift()) {
      await hold(parcel);
      if (parcel.bytes === null) to.end();
      else await carry(parcel.bytes);
      heldBytes -= parcel.bytes?.length ?? 0;
      if (heldBytes <= MAX_HELD_BYTES && find('down') === undefined) from.resume();
    }
    isCarrying = false;
  }

  /** Until it may go on, by the toxics as they are by then. */
  async function hold({ bytes, cameAtMs }: Parcel): Promise<void> {
    const { latencyMs = 0, jitterMs = 0 } = find('latency') ?? {};
    const lateMs = latencyMs + (jitterMs > 0 ? around.random(2 * jitterMs) - jitterMs : 0);
    const closeMs = bytes === null ? (find('slow_close')?.delayMs ?? 0) : 0;
    await wait(cameAtMs + lateMs + closeMs - performance.now());
    while (find('down') !== undefined && !to.destroyed) await change();
  }

  async function carry(bytes: Buffer): Promise<void> {
    for (let at = 0; at < bytes.length && !to.destroyed; ) {
      if (find('timeout') !== undefined) return;
      const { maxBytes = Number.POSITIVE_INFINITY, delayMs = 0 } = find('slicer') ?? {};
      const { bytesPerSecond = Number.POSITIVE_INFINITY } = find('bandwidth') ?? {};
      // A tenth of a second's worth at a time, so that a change is felt soon.
      const size = Math.min(maxBytes, Math.max(1, Math.ceil(bytesPerSecond / 10)), (find('limit_data')?.bytes ?? Infinity) - passedBytes);
      const piece = bytes.subarray(at, at + Math.max(size, 0));
      at += piece.length;
      passedBytes += piece.length;
      if (!to.write(piece)) await drained();
      if (passedBytes >= (find('limit_data')?.bytes ?? Infinity)) return around.end('fin');
      await wait(delayMs + (piece.length / bytesPerSecond) * 1000);
    }
  }

  const wait = (ms: number) => new Promise<void>((resolve) => (ms > 0 ? void setTimeout(resolve, ms) : resolve()));
  const drained = () =>
    new Promise<void>((resolve) => {
      const done = () => {
        to.off('drain', done).off('close', done);
        resolve();
      };
      to.on('drain', done).on('close', done);
    });
  const change = () =>
    new Promise<void>((resolve) => {
      const done = () => {
        around.changes.delete(done);
        to.off('close', done);
        resolve();
      };
      around.changes.add(done);
      to.once('close', done);
    });

  /** What ends a connection by the clock, and whether its sender is read. */
  function look(): void {
    clearTimeout(doom);
    const { timeoutMs = 0 } = find('timeout') ?? {};
    const reset = find('reset_peer');
    if (reset !== undefined) doom = setTimeout(() => around.end('reset'), reset.timeoutMs);
    else if (timeoutMs > 0) doom = setTimeout(() => around.end('fin'), timeoutMs);
    if (find('down') !== undefined) from.pause();
    else if (heldBytes <= MAX_HELD_BYTES) from.resume();
  }

  /** A side that broke takes the other with it, unless the cable is out. */
  async function lose(): Promise<void> {
    clearTimeout(doom);
    around.changes.delete(look);
    while (find('down') !== undefined && !to.destroyed) await change();
    if (!to.writableEnded) reset(to);
  }

  from.on('data', take);
  from.once('end', () => take(null));
  from.once('close', (hadError) => (hadError || !from.readableEnded ? void lose() : around.changes.delete(look)));
  around.changes.add(look);
  look();
}

// A connection that may turn out to be HTTP/2 or HTTP/1.1: the upstream chooses as TLS is set up, and calls wait for that on it.
import type { Socket } from 'node:net';
import type { Carried, Connection, ConnectionListener, GiveBack, UpstreamEvents, UpstreamRequest } from './client.ts';
import type { Connector, Opened, Opening } from './connector.ts';
import { codeOf } from './failure.ts';
import { createHttp1Connection } from './http1.ts';
import { createHttp2Connection } from './http2.ts';

export interface AlpnParts {
  readonly origin: string;
  readonly connect: Connector;
  /** How many calls may wait on it until it is known how many it takes. */
  readonly expectedRoom: number;
  readonly probeMs: number | undefined;
  /** Called once, with how many calls it takes. */
  onRoomKnown(room: number): void;
}

interface Waiter {
  begin(connection: Connection): void;
  readonly giveBack: GiveBack;
  readonly events: UpstreamEvents;
}

/** One that takes longer to be made gets no more calls: they would share its fate, which may be to wait for nothing. */
const SLOW_OPENING_MS = 1_000;

/** Opens its socket at once, and closes it when nobody waits for it any more. */
export function createAlpnConnection(parts: AlpnParts, { onRoom, onGone }: ConnectionListener): Connection {
  const waiting = new Set<Waiter>();
  /** What it turned out to be. */
  let inner: Connection | undefined;
  let isRetired = false;
  let isOver = false;
  const openedAtMs = performance.now();

  const opening = parts.connect(['h2', 'http/1.1'], (error, socket) => {
    if (error !== null) end(codeOf(error));
    else if ('alpnProtocol' in socket! && socket.alpnProtocol === 'h2') greet(socket);
    else settle(createHttp1Connection(parts.origin, (onOpened) => handOver(opening, onOpened), { onRoom, onGone: end }));
  });

  /** Until the upstream's SETTINGS have come nobody knows how many calls it takes, nor whether it is there at all. */
  function greet(socket: Socket): void {
    const connection = createHttp2Connection(parts.origin, socket, parts.probeMs, {
      ...{ onRoom, onGone: end },
      onReady: () => isOver || settle(connection),
    });
  }

  /** What it cannot take goes to other connections. */
  function settle(connection: Connection): void {
    inner = connection;
    parts.onRoomKnown(connection.room);
    const waiters = [...waiting];
    waiting.clear();
    for (const waiter of waiters.splice(0, connection.room)) waiter.begin(connection);
    if (isRetired) connection.retire();
    for (const { giveBack } of waiters) giveBack('unsent');
    onRoom();
  }

  /** Whoever still waits has not been sent. */
  function end(detail = 'ECONNRESET'): void {
    if (isOver) return;
    isOver = true;
    if (inner === undefined) opening.destroy();
    const left = [...waiting];
    waiting.clear();
    onGone();
    for (const { events } of left) events.onFail({ kind: 'unreachable', detail });
  }

  function close(): void {
    if (inner === undefined) end();
    else inner.close();
  }

  function wait(request: UpstreamRequest, events: UpstreamEvents, giveBack: GiveBack): Carried {
    let carried: Carried | undefined;
    const waiter: Waiter = {
      ...{ events, giveBack },
      begin(connection) {
        carried = connection.send(request, events, giveBack);
      },
    };
    waiting.add(waiter);
    return {
      abort(onClosed) {
        if (!waiting.delete(waiter)) {
          carried?.abort(onClosed);
        } else if (waiting.size > 0) {
          onClosed?.();
        } else {
          // It is held open for nobody.
          if (onClosed !== undefined) opening.socket.once('close', onClosed);
          close();
        }
      },
      pause: () => carried?.pause(),
      resume: () => carried?.resume(),
    };
  }

  return {
    get room() {
      if (isOver || isRetired) return 0;
      if (inner !== undefined) return inner.room;
      return performance.now() - openedAtMs > SLOW_OPENING_MS ? 0 : parts.expectedRoom - waiting.size;
    },
    get isIdle() {
      return inner === undefined ? isOver : inner.isIdle;
    },
    send: (request, events, giveBack) => (inner === undefined ? wait : inner.send)(request, events, giveBack),
    retire() {
      isRetired = true;
      inner?.retire();
    },
    close,
  };
}

/** A socket that is connected already, for undici, which goes on to write only after a turn. */
function handOver(opening: Opening, onOpened: Opened): Opening {
  queueMicrotask(() => onOpened(null, opening.socket));
  return opening;
}

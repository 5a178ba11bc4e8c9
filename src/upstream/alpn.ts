// A connection that may turn out to be HTTP/2 or HTTP/1.1: the upstream chooses as TLS is set up, and calls wait for that on it.
import type { Carried, Connection, ConnectionListener, GiveBack, UpstreamEvents, UpstreamRequest } from './client.ts';
import type { Connector } from './connector.ts';
import { codeOf } from './failure.ts';
import { createHttp1Connection } from './http1.ts';
import { createHttp2Connection, type Http2Connection } from './http2.ts';

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

/** Opens its socket at once, and closes it when nobody waits for it any more. */
export function createAlpnConnection(parts: AlpnParts, { onRoom, onGone }: ConnectionListener): Connection {
  const waiting = new Set<Waiter>();
  let inner: Connection | undefined;
  let isRoomKnown = false;
  let isRetired = false;
  let isOver = false;

  const opening = parts.connect(['h2', 'http/1.1'], (error, socket) => {
    if (error !== null) return end(codeOf(error));
    const listener = { onRoom: onInnerRoom, onGone: () => end('ECONNRESET') };
    const isHttp2 = 'alpnProtocol' in socket! && socket.alpnProtocol === 'h2';
    const ready = { socket: socket!, destroy: () => void socket!.destroy() };
    if (isHttp2) {
      const session = createHttp2Connection(parts.origin, ready.socket, parts.probeMs, { ...listener, onReady: () => know(session) });
      inner = session;
    } else {
      const open = (onOpened: (error: null, socket: typeof ready.socket) => void) => {
        onOpened(null, ready.socket);
        return ready;
      };
      inner = createHttp1Connection(parts.origin, open, listener);
    }
    if (isRetired) inner.retire();
    if (isHttp2) serve();
    else know(inner);
  });

  /** What it cannot take goes to other connections. */
  function know(connection: Connection | Http2Connection): void {
    if (isOver) return;
    isRoomKnown = true;
    parts.onRoomKnown('maxCalls' in connection ? connection.maxCalls : 1);
    serve();
    const surplus = [...waiting];
    waiting.clear();
    for (const { giveBack } of surplus) giveBack('unsent');
    onRoom();
  }

  function serve(): void {
    for (const waiter of waiting) {
      if (inner === undefined || inner.room <= 0) return;
      waiting.delete(waiter);
      waiter.begin(inner);
    }
  }

  function onInnerRoom(): void {
    serve();
    if (isRoomKnown) onRoom();
  }

  /** Whoever still waits has not been sent. */
  function end(detail: string): void {
    if (isOver) return;
    isOver = true;
    opening.destroy();
    const left = [...waiting];
    waiting.clear();
    onGone();
    for (const { events } of left) events.onFail({ kind: 'unreachable', detail });
  }

  function close(): void {
    if (inner === undefined) end('closed');
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
        if (!waiting.delete(waiter)) return carried?.abort(onClosed);
        if (inner !== undefined || waiting.size > 0) return onClosed?.();
        // It is held open for nobody.
        if (onClosed !== undefined) opening.socket.once('close', onClosed);
        close();
      },
      pause: () => carried?.pause(),
      resume: () => carried?.resume(),
    };
  }

  return {
    get room() {
      if (isOver || isRetired) return 0;
      return isRoomKnown && inner !== undefined
        ? inner.room
        : parts.expectedRoom - waiting.size - (inner === undefined || inner.isIdle ? 0 : 1);
    },
    get isIdle() {
      return waiting.size === 0 && (inner?.isIdle ?? isOver);
    },
    send(request, events, giveBack) {
      return isRoomKnown && inner !== undefined ? inner.send(request, events, giveBack) : wait(request, events, giveBack);
    },
    retire() {
      isRetired = true;
      inner?.retire();
    },
    close,
  };
}

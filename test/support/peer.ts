// One end of a raw TCP or TLS connection in a test: keeps what comes, knows when and how it ended, and bounds every wait for it.

import type { Socket } from 'node:net';
import type { MessageReader } from './framing.ts';
import type { Waiting } from './waiting.ts';

export interface Ending {
  /** performance.now() */
  readonly at: number;
  /** `fin`: the other side ended it in order, or we closed it ourselves. `reset`: RST, from either side. */
  readonly how: 'fin' | 'reset';
}

export interface Peer {
  readonly ending: Ending | undefined;
  /** The first malformed thing that came. */
  readonly fault: Error | undefined;
  /** One line for messages: how much came, its last bytes, and the state of the connection. */
  describe(): string;
  /** Resolves with the end of the connection; a FIN counts once all before it has been read, so not while reading is paused. */
  closed(): Promise<Ending>;
  /** Waits for a result that only this connection can bring: rejects at a fault, and with `onEnd`'s error once it is over. */
  wait<T>(awaited: string, attempt: () => T | undefined, onEnd?: () => Error): Promise<T>;
  reset(): void;
}

interface PeerParts {
  readonly socket: Socket;
  readonly reader: MessageReader;
  readonly waiting: Waiting;
  /** Sends the RST; under TLS the socket below has to. */
  readonly sendReset: () => void;
}

export function createPeer({ socket, reader, waiting, sendReset }: PeerParts): Peer {
  let ending: Ending | undefined;
  let fault: Error | undefined;
  let isReset = false;

  function end(how: Ending['how']): void {
    ending ??= { at: performance.now(), how };
    waiting.changed();
  }
  socket.setNoDelay(true);
  socket.on('data', (bytes) => {
    try {
      reader.push(bytes);
    } catch (error) {
      fault ??= error instanceof Error ? error : new Error(String(error));
    }
    waiting.changed();
  });
  socket.on('end', () => {
    reader.finish();
    end('fin');
  });
  socket.on('error', () => end('reset'));
  socket.on('close', () => end(isReset ? 'reset' : 'fin'));

  function describe(): string {
    const state = ending ? `closed by ${ending.how}` : socket.isPaused() ? 'open, reading paused' : 'open';
    const tail = reader.bytes.view().subarray(-300).toString('latin1');
    return `connection ${state}, ${reader.messages.length} message(s), ${reader.bytes.length} bytes ending ${JSON.stringify(tail)}`;
  }

  return {
    get ending() {
      return ending;
    },
    get fault() {
      return fault;
    },
    describe,
    closed: () => waiting.wait({ awaited: 'the connection to close', seen: describe, attempt: () => ending }),
    wait(awaited, attempt, onEnd = () => new Error(`the connection ended before ${awaited}; seen: ${describe()}`)) {
      const attemptOrFail = () => {
        const result = attempt();
        if (result !== undefined) return result;
        if (fault) throw fault;
        if (ending) throw onEnd();
        return undefined;
      };
      return waiting.wait({ awaited, seen: describe, attempt: attemptOrFail });
    },
    reset() {
      isReset = true;
      sendReset();
    },
  };
}

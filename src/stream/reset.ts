// Closes a TCP connection with a reset, at once.
import type { Socket } from 'node:net';

/**
 * Resets the connection (RST): behind a FIN the kernel would keep what the other side does not take, up to 4 MB of it, for minutes.
 *
 * Where a FIN is on its way out, libuv refuses the reset, and Node takes the socket for closed all the same: its descriptor would
 * stay open for the process's life, and the process could not end. Nothing is held then, and so it is closed in the common way.
 */
export function reset(socket: Socket): void {
  const isEnding = socket.writableEnded && !socket.writableFinished && socket.writableLength === 0;
  if (isEnding) socket.destroy();
  else socket.resetAndDestroy();
}

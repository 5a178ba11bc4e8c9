// Request bodies that are kept in memory: for reading before they are sent, for sending again, for counting their tokens at the end.

/** The room for all of one kind together. */
export interface Room {
  /** Takes room; false where there is not so much left, and nothing was taken. */
  take(bytes: number): boolean;
  giveBack(bytes: number): void;
}

/** @param maxBytes the bound as it is now, which a reload may change */
export function createRoom(maxBytes: () => number): Room {
  let takenBytes = 0;
  return {
    take(bytes) {
      if (takenBytes + bytes > maxBytes()) return false;
      takenBytes += bytes;
      return true;
    },
    giveBack(bytes) {
      takenBytes -= bytes;
    },
  };
}

export interface HeldBody {
  /** Keeps the next bytes; false where there is no room: then all is let go, and nothing more kept. */
  add(chunk: Buffer): boolean;
  /** What is kept, in the pieces that it came in; empty once it is let go. */
  readonly pieces: readonly Buffer[];
  readonly bytes: number;
  /** Takes its room elsewhere from now on; where there is none, it is let go. */
  moveTo(room: Room, maxBytes: number): void;
  /** Gives its room back; what still comes is not kept. */
  letGo(): void;
}

/** For one body, of at most so many bytes. */
export function holdBody(initialRoom: Room, initialMaxBytes: number): HeldBody {
  let room = initialRoom;
  let maxBytes = initialMaxBytes;
  let pieces: Buffer[] = [];
  let bytes = 0;
  let isLetGo = false;

  function letGo(): void {
    isLetGo = true;
    pieces = [];
    room.giveBack(bytes);
    bytes = 0;
  }

  return {
    add(chunk) {
      if (isLetGo) return false;
      if (bytes + chunk.length > maxBytes || !room.take(chunk.length)) {
        letGo();
        return false;
      }
      bytes += chunk.length;
      pieces.push(chunk);
      return true;
    },
    moveTo(other, otherMaxBytes) {
      if (isLetGo || other === room) return;
      if (bytes > otherMaxBytes || !other.take(bytes)) {
        letGo();
        return;
      }
      room.giveBack(bytes);
      room = other;
      maxBytes = otherMaxBytes;
    },
    get pieces() {
      return pieces;
    },
    get bytes() {
      return bytes;
    },
    letGo,
  };
}

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
  return new RoomedBody(initialRoom, initialMaxBytes);
}

class RoomedBody implements HeldBody {
  private room: Room;
  private maxBytes: number;
  pieces: Buffer[] = [];
  bytes = 0;
  private isLetGo = false;

  constructor(initialRoom: Room, initialMaxBytes: number) {
    this.room = initialRoom;
    this.maxBytes = initialMaxBytes;
  }

  letGo(): void {
    this.isLetGo = true;
    this.pieces = [];
    this.room.giveBack(this.bytes);
    this.bytes = 0;
  }

  add(chunk: Buffer): boolean {
    if (this.isLetGo) return false;
    if (this.bytes + chunk.length > this.maxBytes || !this.room.take(chunk.length)) {
      this.letGo();
      return false;
    }
    this.bytes += chunk.length;
    this.pieces.push(chunk);
    return true;
  }

  moveTo(other: Room, otherMaxBytes: number): void {
    if (this.isLetGo || other === this.room) return;
    if (this.bytes > otherMaxBytes || !other.take(this.bytes)) {
      this.letGo();
      return;
    }
    this.room.giveBack(this.bytes);
    this.room = other;
    // Of what has grown, a third or more is room to grow.
    this.pieces = [...this.pieces];
    this.maxBytes = otherMaxBytes;
  }
}

// The frames of a WebSocket (RFC 6455 5), read as their bytes pass by, and the few that are written here.

/** Follows the frames of one direction. Never throws: what is no frame ends the reading, for this connection. */
export interface FrameReader {
  /** Looks at the next bytes; nothing of them is kept but texts that are not whole yet. */
  read(chunk: Buffer): void;
  /** A frame of one's own may be written here: control frames may stand inside a message (5.4). */
  readonly isBetweenFrames: boolean;
  /** A message of one's own may be written here. */
  readonly isBetweenMessages: boolean;
  /** A Close frame has passed. */
  readonly isClosed: boolean;
  /** Its status code; undefined where it had none, or is masked. */
  readonly closeCode: number | undefined;
  /** What came is no frame, or one of an extension: where the next one begins is not known any more. */
  readonly isLost: boolean;
  readonly messageCount: number;
}

const CONTINUATION = 0;
const TEXT = 1;
const CLOSE = 8;
/** RFC 6455 5.5: of control frames. */
const MAX_CONTROL_BYTES = 125;

interface Frame {
  readonly isFinal: boolean;
  readonly opcode: number;
  readonly isMasked: boolean;
  /** Of its payload, still to come. */
  leftBytes: number;
}

/**
 * @param onText told of each text that is whole (latin1, one character a byte); masked ones, which are a client's, are not read
 * @param maxTextBytes a longer one is passed over
 */
export function createFrameReader(onText: (text: string) => void = () => undefined, maxTextBytes = 0): FrameReader {
  const head = Buffer.alloc(14);
  let headBytes = 0;
  let frame: Frame | undefined;
  let isMessageOpen = false;
  /** The pieces of the text that is passing; undefined where it is not to be read. */
  let text: Buffer[] | undefined;
  let textBytes = 0;
  let closePayload = Buffer.alloc(0);
  let isClosed = false;
  let isLost = false;
  let messageCount = 0;

  /** Takes bytes of a frame's head, and opens the frame once that is whole. */
  function readHead(chunk: Buffer, from: number): number {
    let at = from;
    while (at < chunk.length) {
      head[headBytes++] = chunk[at++]!;
      if (headBytes < 2 || headBytes < headLength(head)) continue;
      headBytes = 0;
      open();
      break;
    }
    return at;
  }

  function open(): void {
    const opened = frameOf(head);
    isLost = opened === undefined || (opened.opcode < CLOSE && (opened.opcode === CONTINUATION) !== isMessageOpen);
    if (opened === undefined || isLost) return;
    frame = opened;
    if (opened.opcode === TEXT) {
      text = opened.isMasked ? undefined : [];
      textBytes = 0;
    }
    if (opened.opcode < CLOSE) isMessageOpen = true;
    if (opened.leftBytes === 0) end(opened);
  }

  function readPayload(of: Frame, payload: Buffer): void {
    of.leftBytes -= payload.length;
    if (of.opcode === CLOSE && !of.isMasked) closePayload = Buffer.concat([closePayload, payload]);
    if (of.opcode < CLOSE) keep(payload);
    if (of.leftBytes === 0) end(of);
  }

  function keep(payload: Buffer): void {
    textBytes += payload.length;
    if (textBytes > maxTextBytes) text = undefined;
    text?.push(payload);
  }

  function end({ opcode, isFinal }: Frame): void {
    frame = undefined;
    if (opcode === CLOSE) isClosed = true;
    if (opcode >= CLOSE || !isFinal) return;
    isMessageOpen = false;
    messageCount += 1;
    if (text !== undefined) onText(Buffer.concat(text).toString('latin1'));
    text = undefined;
  }

  return {
    read(chunk) {
      let at = 0;
      while (at < chunk.length && !isLost) {
        if (frame === undefined) {
          at = readHead(chunk, at);
        } else {
          const piece = chunk.subarray(at, at + frame.leftBytes);
          at += piece.length;
          readPayload(frame, piece);
        }
      }
    },
    get isBetweenFrames() {
      return !isLost && frame === undefined && headBytes === 0;
    },
    get isBetweenMessages() {
      return !isLost && frame === undefined && headBytes === 0 && !isMessageOpen;
    },
    get isClosed() {
      return isClosed;
    },
    get closeCode() {
      return closePayload.length >= 2 ? closePayload.readUInt16BE() : undefined;
    },
    get isLost() {
      return isLost;
    },
    get messageCount() {
      return messageCount;
    },
  };
}

/** How long a head is whose first two bytes are known: with a length of its own, and a mask. */
function headLength(head: Buffer): number {
  const length = head[1]! & 0x7f;
  return 2 + (length === 127 ? 8 : length === 126 ? 2 : 0) + (head[1]! & 0x80 ? 4 : 0);
}

/** The frame that a head opens; undefined where it breaks a rule, or has a bit of an extension, none of which was agreed on (5.2, 5.5). */
function frameOf(head: Buffer): Frame | undefined {
  const opcode = head[0]! & 0x0f;
  const isFinal = (head[0]! & 0x80) !== 0;
  const short = head[1]! & 0x7f;
  const leftBytes = short === 127 ? Number(head.readBigUInt64BE(2)) : short === 126 ? head.readUInt16BE(2) : short;
  const isKnown = opcode <= 2 || (opcode >= CLOSE && opcode <= 10);
  if ((head[0]! & 0x70) !== 0 || !isKnown || leftBytes > Number.MAX_SAFE_INTEGER) return undefined;
  if (opcode >= CLOSE && (!isFinal || leftBytes > MAX_CONTROL_BYTES)) return undefined;
  return { isFinal, opcode, isMasked: (head[1]! & 0x80) !== 0, leftBytes };
}

/** A text as a server sends it, in one frame. */
export function textFrame(text: string): Buffer {
  const payload = Buffer.from(text);
  const head =
    payload.length < 126 ? Buffer.from([0x81, payload.length]) : Buffer.from([0x81, 126, payload.length >> 8, payload.length & 0xff]);
  return Buffer.concat([head, payload]);
}

/** A Close frame as a server sends it; `reason` is ASCII, of at most 123 characters. */
export function closeFrame(code: number, reason: string): Buffer {
  return Buffer.concat([Buffer.from([0x88, 2 + reason.length, code >> 8, code & 0xff]), Buffer.from(reason, 'latin1')]);
}

// Keeps the texts of one answer apart: what one choice says, its reasoning, and each tool call's arguments are tokenised apart.
// Glued together as they come, pieces of two choices in turn would make words that nobody wrote.

/** Beyond, texts share one: whoever invents indexes shall not fill the memory. */
const MAX_LANES = 64;
const MAX_KEY_CHARS = 96;
/** So many pieces are decoded together. */
const MAX_PIECES = 4;
const MAX_RAW_BYTES = 1024;
const QUOTE = '"';

/** One text of an answer. */
export interface Lane {
  /** The text since the last call. */
  takeText(): string;
}

/** A lane as its writer sees it. */
export interface OpenLane extends Lane {
  /** Text as JSON writes it: latin1, with escapes. */
  addRaw(piece: string): void;
  addDecoded(text: string): void;
  /** The last name that was added here, so that one which is repeated is not taken for another. */
  lastName: string;
  lastCall: string;
}

export interface Lanes {
  /** The lane of this key; keys are words and indexes that the dialect puts together. */
  of(key: string): OpenLane;
  /** So far, in the order in which their texts began. */
  readonly all: readonly Lane[];
  /** UTF-8 bytes of all texts so far, as they travelled: escapes count as written. */
  readonly textLength: number;
}

export function createLanes(): Lanes {
  return new TextLanes();
}

class TextLanes implements Lanes {
  all: readonly TextLane[] = [];
  textLength = 0;
  private pieces = 0; // raw ones, not yet settled
  private rawBytes = 0;

  of(key: string): OpenLane {
    for (const lane of this.all) if (lane.key === key) return lane;
    const isOne = this.all.length < MAX_LANES && key.length <= MAX_KEY_CHARS;
    if (!isOne && key !== '') return this.of(''); // the shared one
    const lane = new TextLane(key, this);
    this.all = this.all.concat(lane);
    return lane;
  }

  /** A raw piece was added to one of them. */
  grow(bytes: number): void {
    this.textLength += bytes;
    this.rawBytes += bytes;
    if (++this.pieces < MAX_PIECES && this.rawBytes < MAX_RAW_BYTES) return;
    for (const lane of this.all) lane.settle();
    this.pieces = this.rawBytes = 0;
  }
}

class TextLane implements OpenLane {
  readonly key: string;
  lastName = '';
  lastCall = '';
  private readonly lanes: TextLanes;
  /** A JSON string whose closing quote has not come: with the opening one, so that it is never a piece itself. */
  private raw = QUOTE;
  private hasEscapes = false;
  private text = '';

  constructor(key: string, lanes: TextLanes) {
    this.key = key;
    this.lanes = lanes;
  }

  addRaw(piece: string): void {
    this.raw += piece;
    // To look through it, V8 makes one text of the pieces, which as slices would keep their chunks alive. The answer has to be used:
    // compiled code leaves out a look that nobody needs.
    this.hasEscapes = this.raw.includes('\\');
    this.lanes.grow(piece.length);
  }

  addDecoded(more: string): void {
    this.settle();
    this.text += more;
    this.lanes.textLength += Buffer.byteLength(more);
  }

  takeText(): string {
    this.settle();
    const taken = this.text;
    this.text = '';
    return taken;
  }

  settle(): void {
    if (this.raw === QUOTE) return;
    this.text += this.hasEscapes ? decodeEscaped(this.raw) : Buffer.from(this.raw, 'latin1').toString('utf8', QUOTE.length);
    this.raw = QUOTE;
    this.hasEscapes = false;
  }
}

/** Text of JSON strings in a row, behind one quote. Should it not be what a JSON string may hold, it counts as it stands. */
function decodeEscaped(raw: string): string {
  const text = Buffer.from(raw, 'latin1').toString('utf8');
  try {
    return JSON.parse(text + QUOTE);
  } catch {
    return text.slice(QUOTE.length);
  }
}

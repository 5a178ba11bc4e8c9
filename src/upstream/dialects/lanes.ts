// Keeps the texts of one answer apart: what one choice says, its reasoning, and each tool call's arguments are tokenised apart.
// Glued together as they come, pieces of two choices in turn would make words that nobody wrote.

/** Beyond, texts share one: whoever invents indexes shall not fill the memory. */
const MAX_LANES = 64;
const MAX_KEY_CHARS = 96;
/** Pieces of text are slices that keep their chunks alive: so many at most, in all lanes together. */
const MAX_PIECES = 16;
const MAX_RAW_BYTES = 1024;

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
  /** In the order in which their texts began. */
  readonly all: readonly Lane[];
  /** UTF-8 bytes of all texts so far, as they travelled: escapes count as written. */
  readonly textLength: number;
}

export function createLanes(): Lanes {
  const all: OpenLane[] = [];
  const byKey = new Map<string, OpenLane>();
  const settlers: (() => void)[] = [];
  let textLength = 0;
  let pieces = 0; // raw ones, not yet settled
  let rawBytes = 0;

  function settle(): void {
    for (const settleLane of settlers) settleLane();
    pieces = rawBytes = 0;
  }

  function open(): OpenLane {
    let raw = '';
    let text = '';

    function settleLane(): void {
      if (raw === '') return;
      text += decodeRaw(raw);
      raw = '';
    }
    settlers.push(settleLane);

    return {
      lastName: '',
      lastCall: '',
      addRaw(piece) {
        raw += piece;
        textLength += piece.length;
        rawBytes += piece.length;
        if (++pieces >= MAX_PIECES || rawBytes >= MAX_RAW_BYTES) settle();
      },
      addDecoded(more) {
        settleLane();
        text += more;
        textLength += Buffer.byteLength(more);
      },
      takeText() {
        settleLane();
        const taken = text;
        text = '';
        return taken;
      },
    };
  }

  function of(key: string): OpenLane {
    const known = byKey.get(key);
    if (known !== undefined) return known;
    const isOne = all.length < MAX_LANES && key.length <= MAX_KEY_CHARS;
    if (!isOne && key !== '') return of(''); // the shared one
    const lane = open();
    byKey.set(key, lane);
    all.push(lane);
    return lane;
  }

  return {
    of,
    all,
    get textLength() {
      return textLength;
    },
  };
}

/** Text of JSON strings in a row. Should it not be what a JSON string may hold, it counts as it stands. */
function decodeRaw(raw: string): string {
  const text = Buffer.from(raw, 'latin1').toString('utf8');
  if (!text.includes('\\')) return text;
  try {
    return JSON.parse(`"${text}"`);
  } catch {
    return text;
  }
}

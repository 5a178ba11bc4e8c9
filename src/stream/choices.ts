// Walks through the nested values of a chunk, and notes in its `choices` which of them have their `finish_reason`.
// RFC 8259; works on binary strings: one latin1 character per byte.

/** Beyond, indexes of choices are not believed. */
const MAX_CHOICES = 1024;

export interface ChoicesWalk {
  /** Behind the opening bracket of an object or array; whether it is the array of choices. */
  begin(isChoices: boolean): void;
  /** Reads on in `text[start, limit)`; returns where it stopped: behind the closing bracket, or at `limit`. */
  read(text: string, start: number, limit: number): number;
  /** The closing bracket has not come. */
  readonly isOpen: boolean;
  readonly isInString: boolean;
  /** There were choices, and each has had its reason. */
  readonly areFinished: boolean;
}

/** For the chunks of one stream, one nested value after the other. */
export function createChoicesWalk(): ChoicesWalk {
  const open = new Set<number>();
  const finished = new Set<number>();
  let text = '';
  let at = 0;
  let limit = 0;
  let depth = 0;
  let choiceDepth = 0; // of a choice's members; 0 outside of choices
  let isQuoted = false;
  let isInKey = false;
  let isEscaped = false;
  let expectsKey = false;
  let key = ''; // of a choice
  let isAwaited = false; // the key's value, where it counts
  let index = 0;
  let hasFinish = false;

  function begin(isChoices: boolean): void {
    depth = 1;
    choiceDepth = isChoices ? 2 : 0;
    isQuoted = isInKey = isEscaped = expectsKey = isAwaited = false;
  }

  function read(bytes: string, start: number, end: number): number {
    text = bytes;
    at = start;
    limit = end;
    while (at < limit && depth > 0) {
      if (isQuoted) passString();
      else passTokens();
    }
    text = '';
    return at;
  }

  function passString(): void {
    const start = at;
    const quote = closingQuote(text, isEscaped ? at + 1 : at, limit);
    isEscaped = quote > limit;
    isQuoted = quote >= limit;
    at = Math.min(quote + 1, limit);
    if (isInKey) readKey(start, Math.min(quote, limit));
    else if (isAwaited) endReason(quote > start);
  }

  function readKey(start: number, end: number): void {
    const length = key.length + end - start;
    if (isQuoted ? length <= 13 : length === 5 || length === 13) key += text.slice(start, end);
    else key = '-';
    if (isQuoted) return;
    isInKey = false;
    isAwaited = key === 'index' || key === 'finish_reason';
  }

  /** Up to the next string, or the end of the value. */
  function passTokens(): void {
    while (at < limit) {
      const code = text.charCodeAt(at++);
      if (isAwaited) readValue(code);
      if (code === 34) {
        beginString();
        return;
      }
      if (code === 44) expectsKey = depth === choiceDepth;
      else if (code === 123 || code === 91) {
        if (++depth === choiceDepth) beginChoice(code);
      } else if (code === 125 || code === 93) {
        if (depth === choiceDepth) endChoice();
        if (--depth === 0) return;
      }
    }
  }

  function beginString(): void {
    isQuoted = true;
    isInKey = expectsKey;
    expectsKey = false;
    if (isInKey) key = '';
  }

  function beginChoice(code: number): void {
    expectsKey = code === 123;
    index = 0;
    hasFinish = false;
  }

  /** Takes a byte behind a key; forgets the key where its value is none that counts. */
  function readValue(code: number): void {
    if (code === 58 || code === 32 || code === 9) return;
    if (key === 'index' && code >= 48 && code <= 57) index = index * 10 + code - 48;
    else if (key !== 'finish_reason' || code !== 34) isAwaited = false;
  }

  function endReason(hasBytes: boolean): void {
    hasFinish = hasBytes; // '' is none
    isAwaited = false;
  }

  function endChoice(): void {
    expectsKey = isAwaited = false;
    if (hasFinish) {
      open.delete(index);
      if (finished.size < MAX_CHOICES) finished.add(index);
    } else if (!open.has(index) && !finished.has(index) && open.size < MAX_CHOICES) open.add(index);
  }

  return {
    begin,
    read,
    get isOpen() {
      return depth > 0;
    },
    get isInString() {
      return isQuoted;
    },
    get areFinished() {
      return finished.size > 0 && open.size === 0;
    },
  };
}

/** Where a string ends that `start` is in; `limit` where it does not, and `limit + 1` where the first byte behind is escaped. */
export function closingQuote(text: string, start: number, limit: number): number {
  let at = start;
  for (; at < limit; at++) {
    const code = text.charCodeAt(at);
    if (code === 34) return at;
    if (code === 92) at++;
  }
  return at;
}

// Edits of a body that is held in pieces: bytes are replaced at offsets, and all others stay as they are.

/** Replaces the bytes [start, end) of a body. */
export interface Splice {
  readonly start: number;
  readonly end: number;
  /** ASCII. */
  readonly text: string;
}

/** A splice that only adds. */
export function insertAt(start: number, text: string): Splice {
  return { start, end: start, text };
}

/** The body with the splice, in the pieces that it came in: the one that it falls into becomes two views of itself. */
export function applySplice(body: readonly Buffer[], { start, end, text }: Splice): Buffer[] {
  return [...cut(body, 0, start), Buffer.from(text, 'latin1'), ...cut(body, end, Number.POSITIVE_INFINITY)];
}

/** Views of the bytes [start, end) of a body in pieces. */
function cut(body: readonly Buffer[], start: number, end: number): Buffer[] {
  const views: Buffer[] = [];
  let base = 0;
  for (const piece of body) {
    const view = piece.subarray(Math.max(0, start - base), Math.max(0, end - base));
    if (view.length > 0) views.push(view);
    base += piece.length;
  }
  return views;
}

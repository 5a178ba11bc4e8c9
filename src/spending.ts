// What a request uses and what that costs: tokens as they are known so far, and money in billionths of a dollar.
import type { Price } from './config.ts';
import type { Usage } from './upstream/dialects/dialect.ts';

/** USD per million tokens are so many 10^-9 USD a token. */
const NANO_PER_TOKEN = 1000;

/** What a meter has seen go by. */
export interface Seen {
  /** Events with content. */
  readonly contentCount: number;
  /** UTF-8 bytes of output text. */
  readonly textLength: number;
}

/** Output tokens while they flow, about: a token is some four characters, and each event with content brings at least one. */
export function outputSoFar(seen: Seen | undefined): number {
  return seen === undefined ? 0 : Math.max(seen.contentCount, Math.round(seen.textLength / 4));
}

/** Tokens of a prompt by its bytes, about; for a reservation, before anything is known. */
export function promptEstimate(bytes: number): number {
  return Math.ceil(bytes / 4);
}

/**
 * The cost of what was used, in whole 10^-9 USD. A part without a price of its own costs what the whole does; reasoning is
 * output like any other (all providers' price lists).
 */
export function costOf(usage: Usage, price: Price): number {
  const { input, output, cachedInput, cacheWrite, audioInput, audioOutput } = usage;
  const plainInput = Math.max(0, input - cachedInput - cacheWrite - audioInput);
  const cost =
    plainInput * price.input +
    cachedInput * (price.cachedInput ?? price.input) +
    cacheWrite * (price.cacheWrite ?? price.input) +
    audioInput * (price.audioInput ?? price.input) +
    Math.max(0, output - audioOutput) * price.output +
    audioOutput * (price.audioOutput ?? price.output);
  return Math.round(cost * NANO_PER_TOKEN);
}

/** The cost of so many tokens of text. */
export function costOfText(input: number, output: number, price: Price): number {
  return costOf({ input, output, cachedInput: 0, cacheWrite: 0, reasoning: 0, audioInput: 0, audioOutput: 0 }, price);
}

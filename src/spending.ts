// What a request uses and what that costs: tokens as they are known so far, and money in billionths of a dollar.
import type { Price } from './config.ts';
import type { Amount } from './limits/store.ts';
import type { Usage } from './upstream/dialects/dialect.ts';

/** USD per million tokens are so many 10^-9 USD a token. */
const NANO_PER_TOKEN = 1000;

/** What a meter has seen go by. */
export interface Seen {
  /** Events with content. */
  readonly contentCount: number;
  /** UTF-8 bytes of output text. */
  readonly textLength: number;
  /** Of a session of several responses: what those used that are over, and what has been seen of the one under way. */
  readonly session?: { readonly finished: Usage | undefined; readonly underWay: Seen };
}

/** A request that is under way. */
export interface Running {
  readonly meter: Seen | undefined;
  readonly bytesIn: number;
  readonly price: Price | undefined;
}

/** A request whose tokens are known, as far as they can be. */
export interface Ended {
  readonly tokens: Usage | undefined;
  readonly costNanoUsd: number | undefined;
}

/** Output tokens while they flow, about: a token is some four characters, and each event with content brings at least one. */
export function outputSoFar(seen: Seen | undefined): number {
  return seen === undefined ? 0 : Math.max(seen.contentCount, Math.round(seen.textLength / 4));
}

/** Most of a body that is larger than this is images in base64, of which few tokens come. */
const MOST_PROMPT_TOKENS = 25_000;

/** More than any answer has, all its choices together. What a call says of itself may be 10^18, beside which sums lose their last digits. */
const MOST_OUTPUT_TOKENS = 10_000_000;

/** Tokens of a prompt by its bytes, about; for a reservation, before anything is known. */
export function promptEstimate(bytes: number): number {
  return Math.min(Math.ceil(bytes / 4), MOST_PROMPT_TOKENS);
}

/** What a request may use, by what it says of itself. */
export function reserveFor(promptBytes: number, maxOutputTokens: number, price: Price | undefined): Amount {
  const input = promptEstimate(promptBytes);
  const output = Math.min(maxOutputTokens, MOST_OUTPUT_TOKENS);
  return { tokens: input + output, nanoUsd: price === undefined ? 0 : costOfText(input, output, price) };
}

/** What a request has used so far, about: nothing before its answer has begun. */
export function spentSoFar({ meter, bytesIn, price }: Running): Amount {
  if (meter?.session !== undefined) return spentInSession(meter.session, price);
  return meter === undefined ? NOTHING_SPENT : reserveFor(bytesIn, outputSoFar(meter), price);
}

/** Its input is audio, of whose bytes no tokens can be told: it counts once a response has told of it. */
function spentInSession({ finished, underWay }: NonNullable<Seen['session']>, price: Price | undefined): Amount {
  const { tokens, nanoUsd } = reserveFor(0, outputSoFar(underWay), price);
  if (finished === undefined) return { tokens, nanoUsd };
  const cost = price === undefined ? 0 : costOf(finished, price);
  return { tokens: tokens + finished.input + finished.output, nanoUsd: nanoUsd + cost };
}

/** What a request has used in all, once its tokens are known. */
export function spentInAll({ tokens, costNanoUsd = 0 }: Ended): Amount {
  return tokens === undefined ? NOTHING_SPENT : { tokens: tokens.input + tokens.output, nanoUsd: costNanoUsd };
}

const NOTHING_SPENT: Amount = { tokens: 0, nanoUsd: 0 };

/**
 * The cost of what was used, in whole 10^-9 USD. A part without a price of its own costs what the whole does; reasoning is
 * output like any other (all providers' price lists).
 */
export function costOf(usage: Usage, price: Price): number {
  const { input, output, cachedInput, cacheWrite, audioOutput, cachedAudioInput = 0 } = usage;
  const audioInput = Math.max(0, usage.audioInput - cachedAudioInput);
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

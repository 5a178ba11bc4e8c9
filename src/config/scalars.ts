// Reads and writes the single words of a configuration: durations, sizes, addresses, names and what may stand in a header.
import { BlockList, isIP, isIPv6 } from 'node:net';
import type { Address } from '../config.ts';

const MS_BY_UNIT = { h: 3_600_000, m: 60_000, s: 1000, ms: 1 } as const;
const BYTES_BY_UNIT = { GiB: 2 ** 30, MiB: 2 ** 20, KiB: 2 ** 10 } as const;
// Beyond a signed 32-bit number of milliseconds setTimeout fires at once instead of late.
const LONGEST_MS = 2 ** 31 - 1;

/** Milliseconds of `250ms`, `15s`, `5m` or `1h`, 0 to 24 days; undefined for any other text. */
export function parseDuration(text: string): number | undefined {
  const [, count, unit] = /^(\d+)(ms|s|m|h)$/.exec(text) ?? [];
  const durationMs = Number(count) * MS_BY_UNIT[unit as keyof typeof MS_BY_UNIT];
  return durationMs <= LONGEST_MS ? durationMs : undefined;
}

/** Bytes of `64KiB`, `1MiB`, `1GiB` or a plain number, at least 1; undefined for any other text. */
export function parseSize(text: string): number | undefined {
  const [, count, unit] = /^(\d+)(KiB|MiB|GiB)?$/.exec(text) ?? [];
  const bytes = Number(count) * (unit === undefined ? 1 : BYTES_BY_UNIT[unit as keyof typeof BYTES_BY_UNIT]);
  return bytes >= 1 && Number.isSafeInteger(bytes) ? bytes : undefined;
}

/** A whole number from 1 up; undefined for any other text. */
export function parseCount(text: string): number | undefined {
  const count = /^\d{1,15}$/.test(text) ? Number(text) : 0;
  return count >= 1 ? count : undefined;
}

/** The host and port of `127.0.0.1:8080`, `[::1]:8080` or `localhost:8080`; undefined for any other text. */
export function parseAddress(text: string): Address | undefined {
  const [, v6, name, digits] = /^(?:\[([^\]]+)\]|([A-Za-z0-9.-]+)):(\d{1,5})$/.exec(text) ?? [];
  const port = Number(digits);
  if (!(port <= 65_535)) return undefined;
  if (v6 !== undefined) return isIPv6(v6) ? { host: v6, port } : undefined;
  return name !== undefined && isHostname(name) ? { host: name.toLowerCase(), port } : undefined;
}

/** Whether text is a host name or an IPv4 address (RFC 1123 2.1: what ends in a number must be an address), without a port. */
export function isHostname(text: string): boolean {
  if (/(^|\.)\d+$/.test(text)) return isIP(text) === 4;
  return text.length <= 253 && /^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$/.test(text);
}

/** Whether text is a host name or an IP address, an IPv6 one without brackets. */
export function isHost(text: string): boolean {
  return isHostname(text) || isIP(text) !== 0;
}

/** Whether text is an IP address or a range of them, `10.0.0.0/8`; not `/0`, which would believe everyone. */
export function isNetwork(text: string): boolean {
  const [, address = '', bits] = /^([0-9A-Fa-f.:]+)(?:\/(\d{1,3}))?$/.exec(text) ?? [];
  const version = isIP(address);
  return version !== 0 && (bits === undefined || (Number(bits) >= 1 && Number(bits) <= (version === 4 ? 32 : 128)));
}

/** What a browser would send as `Origin` (RFC 6454 6.1), lower case and without a default port; undefined for any other text. */
export function parseOrigin(text: string): string | undefined {
  if (!/^[a-z][a-z0-9+.-]*:\/\/[^\s/?#@*]+$/i.test(text)) return undefined;
  // Apps have origins of their own (tauri://localhost), of which WHATWG's URL only says "null".
  if (!/^https?:/i.test(text)) return text.toLowerCase();
  return URL.canParse(text) ? new URL(text).origin : undefined;
}

/** The base URL without a slash at its end; undefined for what is not http(s), or has credentials, a query or a fragment. */
export function parseBaseUrl(text: string): string | undefined {
  if (!/^https?:\/\/[^\s?#\\]+$/i.test(text) || hasCredentials(text) || !URL.canParse(text)) return undefined;
  const url = new URL(text);
  return (url.origin + url.pathname).replace(/\/+$/, '');
}

/** Where OTLP over HTTP takes spans: a URL as it is, or, where it has no path, the one that every collector has. */
export function parseCollector(text: string): string | undefined {
  const url = parseBaseUrl(text);
  return url !== undefined && url === new URL(url).origin ? `${url}/v1/traces` : url;
}

/** Whether a URL has a user or password before its host, even an empty one. */
export function hasCredentials(url: string): boolean {
  return /^[a-z][a-z0-9+.-]*:[/\\]*[^/\\?#]*@/i.test(url);
}

/** Whether text may name an upstream or a client: it becomes a metric's label and a header's value. */
export function isName(text: string): boolean {
  return /^[A-Za-z0-9_.-]{1,64}$/.test(text);
}

/** Whether text can be a credential in a header: visible ASCII, without blanks or line breaks. */
export function isCredential(text: string): boolean {
  return /^[\x21-\x7e]+$/.test(text);
}

/** Whether text is a field name (a token, RFC 9110 5.6.2). */
export function isFieldName(text: string): boolean {
  return /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/.test(text);
}

/** Whether text is a field value (RFC 9110 5.5): one line, no blank at either end; may be empty. */
export function isFieldValue(text: string): boolean {
  return /^([\x21-\x7e\x80-\xff]([\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?$/.test(text);
}

const loopback = new BlockList();
loopback.addSubnet('127.0.0.0', 8, 'ipv4');
loopback.addAddress('::1', 'ipv6');

// RFC 1918, RFC 3927, RFC 4193, RFC 4291 2.5.6
const privateRanges = new BlockList();
privateRanges.addSubnet('10.0.0.0', 8, 'ipv4');
privateRanges.addSubnet('172.16.0.0', 12, 'ipv4');
privateRanges.addSubnet('192.168.0.0', 16, 'ipv4');
privateRanges.addSubnet('169.254.0.0', 16, 'ipv4');
privateRanges.addSubnet('fc00::', 7, 'ipv6');
privateRanges.addSubnet('fe80::', 10, 'ipv6');

function isListed(list: BlockList, host: string): boolean {
  const version = isIP(host);
  return version !== 0 && list.check(host, version === 4 ? 'ipv4' : 'ipv6');
}

/** Whether only this machine can reach a listener on host. A name other than localhost may resolve to anything. */
export function isLoopback(host: string): boolean {
  return host === 'localhost' || isListed(loopback, host);
}

/** Whether a URL's host is this machine, in a private range, or named as only private networks name theirs. */
export function isNearby(hostname: string): boolean {
  const host = hostname.toLowerCase().replace(/^\[|\]$/g, '');
  if (isIP(host) !== 0) return isLoopback(host) || isListed(privateRanges, host);
  return !host.includes('.') || /\.(localhost|local|internal)\.?$/.test(host);
}

/** A duration as the loader reads it, in the largest unit that leaves it whole. */
export function formatDuration(durationMs: number): string {
  if (durationMs === Infinity) return 'off';
  const [unit, unitMs] = Object.entries(MS_BY_UNIT).find(([, ms]) => durationMs >= ms && durationMs % ms === 0) ?? ['s', 1000];
  return `${durationMs / unitMs}${unit}`;
}

/** A size as the loader reads it, in the largest unit that leaves it whole. */
export function formatSize(bytes: number): string | number {
  if (bytes === Infinity) return 'off';
  const [unit, unitBytes] = Object.entries(BYTES_BY_UNIT).find(([, size]) => bytes % size === 0) ?? [];
  return unitBytes === undefined ? bytes : `${bytes / unitBytes}${unit}`;
}

/** An address as the loader reads it. */
export function formatAddress(address: Address): string {
  return `${isIPv6(address.host) ? `[${address.host}]` : address.host}:${address.port}`;
}

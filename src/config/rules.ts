// The rules between settings: what each of them alone allows and all of them together do not, or only with a warning.
import { keysOf, type Report, valueAt } from './check.ts';
import type { Path } from './load.ts';
import { isFieldName, isLoopback, isName, isNearby, parseAddress, parseBaseUrl } from './scalars.ts';

/**
 * Checks a tree that may have other problems: what is not readable is left to the schema, so that all problems show at once.
 * `needsUpstream` is false where the built-in demo upstream stands in.
 */
export function checkRules(tree: unknown, needsUpstream: boolean, report: Report): void {
  const names = keysOf(valueAt(tree, ['upstreams'])).map(String);
  if (needsUpstream) checkUpstreamsExist(tree, names, report);
  for (const name of names) {
    checkUpstreamName(name, report);
    checkBaseUrl(tree, ['upstreams', name, 'baseUrl'], report);
    checkCredential(tree, ['upstreams', name], report);
    checkEncryption(tree, ['upstreams', name], report);
    checkHeaders(tree, ['upstreams', name, 'headers'], report);
  }
  checkHeaders(tree, ['traces', 'headers'], report);
  checkPassthrough(tree, names, report);
  checkModels(tree, names, report);
  checkBudgets(tree, report);
  checkUnique(tree, report);
  checkExposure(tree, report);
  checkSharedListener(tree, report);
}

/** The text of a setting, or its default; undefined where it is there but is not text. */
function textAt(tree: unknown, path: Path, fallback = ''): string | undefined {
  const value = valueAt(tree, path) ?? fallback;
  return typeof value === 'string' ? value : undefined;
}

function checkUpstreamsExist(tree: unknown, names: string[], report: Report): void {
  const upstreams = valueAt(tree, ['upstreams']);
  const right = `write at least one, as "upstreams: { openai: { baseUrl: https://api.openai.com/v1, apiKey: '\${OPENAI_API_KEY}' } }"`;
  if (upstreams === undefined) report(['upstreams'], `is missing; ${right}`);
  else if (typeof upstreams === 'object' && upstreams !== null && names.length === 0) report(['upstreams'], `is empty; ${right}`);
}

function checkUpstreamName(name: string, report: Report): void {
  if (!isName(name)) report(['upstreams', name], 'is not a name; write 1 to 64 of A-Z a-z 0-9 _ . -', { part: 'key' });
}

function checkBaseUrl(tree: unknown, path: Path, report: Report): void {
  const url = parseBaseUrl(textAt(tree, path) ?? '');
  if (url === undefined || new URL(url).protocol === 'https:' || isNearby(new URL(url).hostname)) return;
  report(path, 'is plain http to a host beyond this machine and its private network: the key and every prompt travel in clear; use https', {
    isWarning: true,
  });
}

const SENDS_KEY = ['bearer', 'api-key', 'x-api-key'];

function checkCredential(tree: unknown, path: Path, report: Report): void {
  const auth = textAt(tree, [...path, 'auth'], 'bearer') ?? '';
  const has = (key: string) => valueAt(tree, [...path, key]) !== undefined;
  const upstream = valueAt(tree, path);
  if (typeof upstream !== 'object' || upstream === null) return;
  const [key, ...further] = ['apiKey', 'apiKeyFile', 'apiKeys'].filter(has);
  if (SENDS_KEY.includes(auth) && key === undefined) {
    report([...path, 'apiKey'], `is missing, and auth: ${auth} sends one; set apiKey, or auth: none`);
  }
  for (const second of further) report([...path, second], `is a second way to say which key is sent, beside ${key}; keep one of them`);
  if (key === undefined) return;
  if (auth === 'passthrough') report([...path, key], "is never sent with auth: passthrough, which sends the client's; remove one of them");
  if (auth === 'none') report([...path, key], 'is never sent with auth: none; remove one of them', { isWarning: true });
}

function checkEncryption(tree: unknown, path: Path, report: Report): void {
  if (!/^http:/i.test(textAt(tree, [...path, 'baseUrl']) ?? '')) return;
  for (const key of ['caFile', 'certFile', 'keyFile', 'http2']) {
    if (!['', 'off'].includes(textAt(tree, [...path, key]) ?? ''))
      report([...path, key], 'is for https only, and baseUrl is plain http; remove one of them');
  }
}

/** Headers that are about one connection only: RFC 9110 7.6.1, with the historical ones of RFC 2616 13.5.1. */
export const hopByHopHeaders: readonly string[] = [
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
  'http2-settings',
];

// And what the gateway itself must say for a request to be framed right.
const NOT_TO_SET = new Set([...hopByHopHeaders, 'content-length', 'expect', 'host']);

function checkHeaders(tree: unknown, path: Path, report: Report): void {
  const seen = new Set<string>();
  for (const key of keysOf(valueAt(tree, path)).map(String)) {
    const name = key.toLowerCase();
    const complain = (message: string) => report([...path, key], message, { part: 'key' });
    if (!isFieldName(key)) complain("is not a header's name; write letters, digits and -, as OpenAI-Organization");
    else if (NOT_TO_SET.has(name)) complain('is set by the gateway for each connection; remove it');
    else if (seen.has(name)) complain('is there twice, in different case; keep one of them');
    seen.add(name);
  }
}

function checkPassthrough(tree: unknown, names: string[], report: Report): void {
  const isPassing = (name: string) => textAt(tree, ['upstreams', name, 'auth']) === 'passthrough';
  if (keysOf(valueAt(tree, ['clients'])).length === 0 || names.every(isPassing)) return;
  for (const name of names.filter(isPassing)) {
    report(
      ['upstreams', name, 'auth'],
      "is passthrough, other upstreams are not, and there are clients: Authorization would hold a client's own credential for one and its " +
        'Sluicegate key for another, and could be sent to the wrong one; make all upstreams passthrough (the Sluicegate key then comes in x-sluicegate-key) or none',
    );
  }
}

function checkModels(tree: unknown, names: string[], report: Report): void {
  for (const row of keysOf(valueAt(tree, ['models']))) {
    const targets = ['models', row, 'upstreams'];
    for (const index of keysOf(valueAt(tree, targets))) {
      const path = [...targets, index];
      const name = textAt(tree, typeof valueAt(tree, path) === 'object' ? [...path, 'name'] : path);
      if (name && !names.includes(name)) report(path, `is no upstream; known are ${names.filter(isName).join(', ') || 'none'}`);
    }
    checkHedge(tree, row, report);
  }
}

function checkHedge(tree: unknown, row: PropertyKey, report: Report): void {
  const path = ['models', row, 'hedge'];
  if (textAt(tree, path, 'off') === 'off' || keysOf(valueAt(tree, ['models', row, 'upstreams'])).length > 1) return;
  report(path, 'needs a second upstream to ask; add one to upstreams, or leave hedge out');
}

/** A budget that no price ever touches would be a promise that nobody keeps. */
function checkBudgets(tree: unknown, report: Report): void {
  const priced = keysOf(valueAt(tree, ['models'])).filter((row) => valueAt(tree, ['models', row, 'price']) !== undefined);
  if (priced.some((row) => textAt(tree, ['models', row, 'match']) === '*')) return;
  const all: Path[] = [['anonymous', 'limits'], ...keysOf(valueAt(tree, ['clients'])).map((index) => ['clients', index, 'limits'])];
  for (const limits of all) {
    const path = [...limits, 'budget'];
    if (typeof valueAt(tree, path) === 'object' && valueAt(tree, path) !== null) {
      const row = 'models: [{ match: "*", upstreams: [NAME], price: { input: 2.50, output: 10 } }]';
      if (priced.length === 0) report(path, `needs prices, and no row of models has one; add ${row}`);
      else report(path, `counts nothing for models that no row with a price matches; add as the last row of ${row}`, { isWarning: true });
    }
  }
}

function checkUnique(tree: unknown, report: Report): void {
  const names = new Set<string>();
  const owners = new Map<string, PropertyKey>();
  for (const index of keysOf(valueAt(tree, ['clients']))) {
    const name = textAt(tree, ['clients', index, 'name']);
    if (name && names.has(name)) report(['clients', index, 'name'], 'repeats the name of another client; give each client its own');
    if (name) names.add(name);
    for (const path of hashPaths(tree, index)) {
      const hash = textAt(tree, path)?.toLowerCase();
      if (!hash) continue;
      if ((owners.get(hash) ?? index) !== index)
        report(path, 'repeats the key of another client; make each client its own: sluicegate key NAME');
      else owners.set(hash, index);
    }
  }
}

function hashPaths(tree: unknown, client: PropertyKey): Path[] {
  const path = ['clients', client, 'keySha256'];
  const value = valueAt(tree, path);
  return Array.isArray(value) ? keysOf(value).map((index) => [...path, index]) : [path];
}

function checkExposure(tree: unknown, report: Report): void {
  const path = ['server', 'listen'];
  const listen = parseAddress(textAt(tree, path, '127.0.0.1:8080') ?? '');
  const clients = valueAt(tree, ['clients']) ?? [];
  const hasNoClients = Array.isArray(clients) && clients.length === 0;
  if (!listen || isLoopback(listen.host) || !hasNoClients || textAt(tree, ['server', 'allowAnonymous'], 'false') !== 'false') return;
  report(
    path,
    'is an address beyond this machine, and no clients are configured: anyone who reaches it could spend your keys; add a client ' +
      '(`sluicegate key NAME` prints one, or set SLUICEGATE_KEY), or listen on 127.0.0.1, or set allowAnonymous: true ' +
      '(SLUICEGATE_ALLOW_ANONYMOUS=true)',
  );
}

function checkSharedListener(tree: unknown, report: Report): void {
  const listen = parseAddress(textAt(tree, ['server', 'listen'], '127.0.0.1:8080') ?? '');
  const ops = parseAddress(textAt(tree, ['ops', 'listen'], '127.0.0.1:9464') ?? '');
  if (!listen || !ops || listen.port === 0 || listen.port !== ops.port || listen.host !== ops.host) return;
  if (textAt(tree, ['ops', 'token'], 'off') !== 'off') return;
  report(['ops', 'listen'], 'is the address of clients too, who could then read the metrics; set ops.token, or give it a port of its own');
}

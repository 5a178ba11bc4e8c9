// Loads the configuration whole or not at all: from YAML and the environment to frozen, typed values, or to every problem at once.
import { checkSchema, checkSupport, type Report } from './config/check.ts';
import { layEnvironment } from './config/environment.ts';
import { BROKEN, type Path, readYaml, type Source } from './config/load.ts';
import { checkRules } from './config/rules.ts';
import { isName } from './config/scalars.ts';
import type { Settings } from './config/schema.ts';

export { printConfig } from './config/print.ts';
export { hopByHopHeaders } from './config/rules.ts';
export { isLoopback, isName, parseAddress } from './config/scalars.ts';
export { configJsonSchema } from './config/schema.ts';

/** Where to listen: a host name or an IP address (IPv6 without brackets), and a port, 0 for any free one. */
export interface Address {
  readonly host: string;
  readonly port: number;
}

export interface Upstream {
  name: string;
  /** http(s), without a slash at the end, credentials, query or fragment. */
  baseUrl: string;
  apiKey: string | undefined;
  auth: 'bearer' | 'api-key' | 'x-api-key' | 'none' | 'passthrough';
  /** Names as the file has them, no two the same but for case. */
  headers: Record<string, string>;
  query: Record<string, string>;
  usage: 'ask' | 'continuous' | 'asSent';
  /** How long, and for how many more tokens, an answer is read on that nobody hears; undefined: not at all. */
  onClientGone: { drainMs: number; maxTokens: number } | undefined;
  maxConnections: number;
  timeouts: { connectMs: number; firstByteMs: number; idleMs: number; totalMs: number };
}

/** USD per million tokens. A part without a price costs what the whole does: cached input as input, audio output as output. */
export interface Price {
  input: number;
  output: number;
  cachedInput: number | undefined;
  cacheWrite: number | undefined;
  audioInput: number | undefined;
  audioOutput: number | undefined;
}

export interface Model {
  /** On the model's name; `*` is the only wildcard. */
  match: string;
  /** Names of upstreams, all of them known. */
  upstreams: string[];
  price: Price | undefined;
}

export interface Limits {
  requestsPerMinute: number | undefined;
  tokensPerMinute: number | undefined;
  concurrentStreams: number | undefined;
  budget: { usd: number; per: 'hour' | 'day' | 'week' | 'month' } | undefined;
  /** What becomes of the answers that are under way when the budget is spent. */
  onExhausted: 'finish' | 'cut';
}

export interface Client {
  name: string;
  /** SHA-256 of each of its keys, lower-case hex. */
  keySha256: string[];
  /** Patterns of the models that it may call; undefined: all. */
  models: string[] | undefined;
  /** Patterns of further paths that a client with a list of models may call. */
  endpoints: string[];
  limits: Limits;
}

/** Deeply frozen. A bound that is `off` is Infinity (which no timer takes), a feature that is `off` is undefined or empty. */
export interface Config {
  server: {
    listen: Address;
    allowAnonymous: boolean;
    cors: { origins: string[] } | undefined;
    trustProxy: string[];
    hostnames: string[];
    maxRequestBodyBytes: number;
    maxHeldBodiesBytes: number;
    maxConnections: number;
    clientStallMs: number;
    drainMs: number;
  };
  ops: { listen: Address; token: string | undefined };
  log: { level: 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'silent'; format: 'auto' | 'json' | 'pretty' };
  sse: { heartbeatMs: number; earlyHeadersMs: number };
  /** In the order of the file. Empty only where neither a file nor the environment names one: then the caller starts the demo upstream. */
  upstreams: Upstream[];
  /** In the order of the file: the first match wins. */
  models: Model[];
  clients: Client[];
  anonymous: { limits: Limits };
  /** `store` is `memory`, or the URL of a Redis, which may hold a password. */
  limits: { store: string; onStoreFailure: 'allow' | 'deny' };
}

/** What is wrong and what would be right, and where: line and column from 1; line 0 where it is about no place in a file. */
export interface Problem {
  file: string;
  line: number;
  column: number;
  message: string;
}

export type LoadResult = { ok: true; config: Config; warnings: Problem[] } | { ok: false; problems: Problem[]; warnings: Problem[] };

const ENVIRONMENT = { file: 'environment', line: 0, column: 0 } as const;

/**
 * Loads a configuration file's text under an environment (INTERFACE sections 1 and 3); without a file, the built-in defaults.
 * Never throws and reads nothing else. No message repeats a value, which might be a secret: a place and a setting's name do.
 */
export function loadConfig(source: { file: string; text: string } | undefined, env: Record<string, string | undefined>): LoadResult {
  const hasFile = source !== undefined;
  const read: Source = hasFile ? readYaml(source.file, source.text, env) : BUILT_IN;
  const { tree, faults, variableOf } = layEnvironment(read.tree ?? {}, env, hasFile);
  const problems: Problem[] = [...read.problems, ...faults.map(([name, fault]) => ({ ...ENVIRONMENT, message: `${name} ${fault}` }))];
  const warnings: Problem[] = [];
  const report: Report = (path, message, { part = 'value', isWarning = false } = {}) => {
    const variable = variableOf(path);
    const place = variable === undefined ? read.place(path, part) : ENVIRONMENT;
    (isWarning ? warnings : problems).push({ ...place, message: `${variable ?? formatPath(path)} ${message}` });
  };
  const settings = checkSchema(tree, report);
  if (tree !== BROKEN) {
    checkSupport(tree, report);
    checkRules(tree, hasFile, report);
  }
  if (problems.length > 0 || !settings) return { ok: false, problems: inOrder(problems), warnings: inOrder(warnings) };
  return { ok: true, config: deepFreeze(toConfig(settings, read)), warnings: inOrder(warnings) };
}

const BUILT_IN: Source = { tree: {}, problems: [], place: () => ENVIRONMENT, namesAt: () => [] };

/** A problem as `file:line:column: message`, or as `environment: message`. */
export function formatProblem({ file, line, column, message }: Problem): string {
  return line === 0 ? `${file}: ${message}` : `${file}:${line}:${column}: ${message}`;
}

/** `upstreams.openai.baseUrl`, `clients[0].name`. What is not a name is left out: it could be a secret in the wrong place. */
function formatPath(path: Path): string {
  const parts = path.map((segment) =>
    typeof segment === 'number' ? `[${segment}]` : `.${isShowable(String(segment)) ? String(segment) : '…'}`,
  );
  return parts.join('').replace(/^\./, '') || 'the configuration';
}

function isShowable(key: string): boolean {
  return isName(key) && key.length <= 32;
}

function inOrder(problems: Problem[]): Problem[] {
  const unique = new Map(problems.map((problem) => [formatProblem(problem), problem]));
  return [...unique.values()].sort((a, b) => a.line - b.line || a.column - b.column);
}

function toConfig(settings: Settings, read: Source): Config {
  const { server, ops, log, sse, anonymous } = settings;
  const names = [...new Set([...read.namesAt(['upstreams']), ...Object.keys(settings.upstreams)])];
  return {
    server: {
      listen: server.listen,
      allowAnonymous: server.allowAnonymous,
      cors: server.cors ?? undefined,
      trustProxy: server.trustProxy ?? [],
      hostnames: server.hostnames,
      maxRequestBodyBytes: server.maxRequestBody,
      maxHeldBodiesBytes: server.maxHeldBodies,
      maxConnections: server.maxConnections,
      clientStallMs: server.clientStall,
      drainMs: server.drain,
    },
    ops: { listen: ops.listen, token: ops.token ?? undefined },
    log: { level: log.level, format: log.format },
    sse: { heartbeatMs: sse.heartbeat, earlyHeadersMs: sse.earlyHeaders },
    upstreams: names.flatMap((name) => toUpstream(name, settings.upstreams[name])),
    models: settings.models.map(({ match, upstreams, price }) => ({
      match,
      upstreams: upstreams.map(nameOf),
      price: price && toPrice(price),
    })),
    clients: settings.clients.map(toClient),
    anonymous: { limits: toLimits(anonymous.limits) },
    limits: settings.limits,
  };
}

function toUpstream(name: string, settings: Settings['upstreams'][string] | undefined): Upstream[] {
  if (!settings) return [];
  const { baseUrl, apiKey, auth, headers, query, usage, maxConnections } = settings;
  const { connect: connectMs, firstByte: firstByteMs, idle: idleMs, total: totalMs } = settings.timeouts;
  const { onClientGone: gone } = settings;
  const onClientGone = gone === 'abort' ? undefined : { drainMs: gone.drain, maxTokens: gone.tokens };
  const timeouts = { connectMs, firstByteMs, idleMs, totalMs };
  return [{ name, baseUrl, apiKey, auth, headers, query, usage, onClientGone, maxConnections, timeouts }];
}

function nameOf(target: Settings['models'][number]['upstreams'][number]): string {
  return typeof target === 'string' ? target : target.name;
}

function toPrice(price: NonNullable<Settings['models'][number]['price']>): Price {
  const { input = 0, output = 0, cachedInput, cacheWrite, audioInput, audioOutput } = price;
  return { input, output, cachedInput, cacheWrite, audioInput, audioOutput };
}

function toClient({ name, keySha256, models, endpoints, limits }: Settings['clients'][number]): Client {
  return { name, keySha256: [keySha256].flat(), models, endpoints, limits: toLimits(limits) };
}

function toLimits({ requestsPerMinute, tokensPerMinute, concurrentStreams, budget, onExhausted }: Settings['anonymous']['limits']): Limits {
  return {
    requestsPerMinute: requestsPerMinute ?? undefined,
    tokensPerMinute: tokensPerMinute ?? undefined,
    concurrentStreams: concurrentStreams ?? undefined,
    budget: budget ?? undefined,
    onExhausted,
  };
}

function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null) for (const inner of Object.values(Object.freeze(value))) deepFreeze(inner);
  return value;
}

// Loads the configuration whole or not at all: from YAML and the environment to frozen, typed values, or to every problem at once.
import { dirname } from 'node:path';
import { checkSchema, type Report } from './config/check.ts';
import { layEnvironment } from './config/environment.ts';
import { checkFiles, type NamedFile, openFiles, type ReadFile } from './config/files.ts';
import { BROKEN, type Path, readYaml, type Source } from './config/load.ts';
import { checkRules } from './config/rules.ts';
import { isName } from './config/scalars.ts';
import { toConfig } from './config/values.ts';

export { editDistance } from './config/check.ts';
export type { NamedFile } from './config/files.ts';
export { printConfig } from './config/print.ts';
export { hopByHopHeaders } from './config/rules.ts';
export { isLoopback, isName, parseAddress, parseDuration } from './config/scalars.ts';
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
  /** Used in turn; none: no key is sent. The one of `apiKeyFile` as it was when the configuration was loaded. */
  apiKeys: string[];
  /** The file that holds the key, read again when it changes. */
  apiKeyFile: string | undefined;
  auth: 'bearer' | 'api-key' | 'x-api-key' | 'none' | 'passthrough';
  /** Names as the file has them, no two the same but for case. */
  headers: Record<string, string>;
  query: Record<string, string>;
  usage: 'ask' | 'continuous' | 'asSent';
  /** How long, and for how many more tokens, an answer is read on that nobody hears; undefined: not at all. */
  onClientGone: { drainMs: number; maxTokens: number } | undefined;
  /** Patterns of paths: calls that name no model go to the first upstream that has theirs. */
  endpoints: string[];
  ca: NamedFile | undefined;
  certificate: { cert: NamedFile; key: NamedFile } | undefined;
  /** The URL of the HTTP proxy that connections go through, which may hold a password. */
  proxy: string | undefined;
  http2: boolean;
  /** When it is put aside: after so many failures in a row, or this share of those of half a minute. */
  eject: { failures: number; share: number; forMs: number } | undefined;
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

/** Where calls for a model may go. */
export interface ModelTarget {
  /** The name of a known upstream. */
  upstream: string;
  /** Its share of first tries; undefined for all targets of a row where none has a weight. */
  weight: number | undefined;
  /** The model's name there; undefined: as the client wrote it. */
  rewrite: string | undefined;
}

export interface Model {
  /** On the model's name; `*` is the only wildcard. */
  match: string;
  /** At least one, in the order of the file. */
  targets: ModelTarget[];
  balance: 'order' | 'leastBusy';
  /** A larger body goes to one target only. */
  replayBytes: number;
  /** Streams without a first token after so long are asked of the next target too; Infinity: none is. */
  hedgeMs: number;
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

/** Where spans go, of what. */
export interface Traces {
  /** Where OTLP over HTTP takes spans, as it is. */
  endpoint: string;
  headers: Record<string, string>;
  service: string;
  /** Attributes of the resource besides the service's. */
  resource: Record<string, string>;
  sampler: `${'' | 'parentbased_'}${'always_on' | 'always_off' | 'traceidratio'}`;
  /** The share of traces that are taken, where the sampler goes by one. */
  sample: number;
}

/** Deeply frozen. A bound that is `off` is Infinity (which no timer takes), a feature that is `off` is undefined or empty. */
export interface Config {
  server: {
    listen: Address;
    allowAnonymous: boolean;
    tls: { cert: NamedFile; key: NamedFile } | undefined;
    cors: { origins: string[] } | undefined;
    trustProxy: string[];
    hostnames: string[];
    maxRequestBodyBytes: number;
    maxHeldBodiesBytes: number;
    maxConnections: number;
    workers: number | 'auto';
    clientStallMs: number;
    drainMs: number;
  };
  ops: { listen: Address; token: string | undefined };
  log: { level: 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'silent'; format: 'auto' | 'json' | 'pretty' };
  sse: { heartbeatMs: number; earlyHeadersMs: number };
  /** Undefined: nothing is traced. */
  traces: Traces | undefined;
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
 * Never throws, and reads nothing else but the files that it names. No message repeats a value, which might be a secret: a place and
 * a setting's name do.
 */
export function loadConfig(
  source: { file: string; text: string } | undefined,
  env: Record<string, string | undefined>,
  readFile?: ReadFile,
): LoadResult {
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
  const files = openFiles(dirname(source?.file ?? ''), readFile);
  if (tree !== BROKEN) {
    checkRules(tree, hasFile, report);
    checkFiles(tree, files, report);
  }
  if (problems.length > 0 || !settings) return { ok: false, problems: inOrder(problems), warnings: inOrder(warnings) };
  const upstreamNames = [...new Set([...read.namesAt(['upstreams']), ...Object.keys(settings.upstreams)])];
  return { ok: true, config: deepFreeze(toConfig(settings, upstreamNames, files)), warnings: inOrder(warnings) };
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

function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null) for (const inner of Object.values(Object.freeze(value))) deepFreeze(inner);
  return value;
}

#!/usr/bin/env node
// The process's edge: commands, environment, signals and exit codes. Nothing else touches the process.
import { randomBytes } from 'node:crypto';
import { existsSync, readFileSync, watchFile } from 'node:fs';
import { availableParallelism } from 'node:os';
import { setTimeout as delayFor } from 'node:timers/promises';
import { isDeepStrictEqual, parseArgs } from 'node:util';
import closeWithGrace from 'close-with-grace';
import {
  type Address,
  type Config,
  formatProblem,
  isLoopback,
  isName,
  type LoadResult,
  loadConfig,
  parseAddress,
  parseDuration,
  printConfig,
  type Upstream,
} from './config.ts';
import { type Demo, startDemo } from './demo/server.ts';
import type { Served } from './gateway.ts';
import { commands, nearestCommand, writeCommandHelp, writeHelp } from './help.ts';
import { hashKey } from './http/auth.ts';
import { MAX_NOTICE_MS } from './http/notice.ts';
import { createLogger, faultFacts, type Logger } from './telemetry/log.ts';
import { runTop } from './top/top.ts';

const EXIT = { clean: 0, badConfiguration: 1, couldNotStart: 2 } as const;
const DEFAULT_FILE = 'config/sluicegate.yaml';

type Flags = {
  config?: string;
  listen?: string;
  watch?: boolean;
  key?: string;
  silence?: string;
  json?: boolean;
  token?: string;
  once?: boolean;
};

/** Which flags mean something to which command; a flag that would not be heeded is an error. */
const FLAGS_OF: Record<string, readonly (keyof Flags)[]> = {
  serve: ['config', 'watch'],
  check: ['config'],
  demo: ['listen'],
  doctor: ['key', 'silence', 'json'],
  top: ['token', 'once'],
};

/** Names of clients in the start-up lines. */
const MAX_SHOWN_CLIENTS = 5;
const WATCH_MS = 500;
/** The longest silence that the probe can be asked for. */
const MAX_SILENCE_MS = 600_000;
/** How long live streams may finish after a fault of the process itself. */
const FAULT_DRAIN_MS = 3000;
/** How the primary calls this program where it is to be a worker, which no person does. */
const WORKER = 'worker';
/** They reach every process of a terminal's or a service's group; the primary tells its workers what to do. */
const SIGNALS_OF_PRIMARY = ['SIGHUP', 'SIGINT', 'SIGQUIT', 'SIGTERM'] as const;
/** For what comes after the drain: the last events read, the last tokens counted, the last spans sent. */
const OVERTIME_MS = 3500;

async function main(argv: string[]): Promise<number | undefined> {
  const { values, positionals } = readArguments(argv);
  if (values.version) return print(`${readVersion()}\n`);
  const [command = 'serve', ...rest] = positionals;
  if (values.help || command === 'help') return help(command === 'help' ? rest[0] : positionals[0]);
  if (command === WORKER && process.connected) return work();
  if (!Object.hasOwn(commands, command)) return refuseCommand(command);
  const unheeded = Object.keys(values).find((flag) => !FLAGS_OF[command]?.includes(flag as keyof Flags));
  if (unheeded !== undefined) return refuseUsage(`${command} does not take --${unheeded}`, command);
  if (command === 'key') return makeKey(rest);
  if (command === 'doctor') return doctor(rest, values);
  if (command === 'top') return top(rest, values);
  if (command === 'traffic') return traffic(rest);
  if (rest.length > 0) return refuseUsage(`unexpected argument "${rest[0]}"`, command);
  if (command === 'check') return check(values);
  if (command === 'demo') return demo(values);
  return serve(values);
}

function help(command: string | undefined): number {
  if (command === undefined) return print(writeHelp());
  const page = writeCommandHelp(command);
  return page === undefined ? refuseCommand(command) : print(page);
}

function refuseCommand(command: string): number {
  const nearest = nearestCommand(command);
  return refuseUsage(`there is no command "${command}"${nearest === undefined ? '' : `; did you mean "${nearest}"?`}`);
}

function readArguments(argv: string[]) {
  const options = {
    config: { type: 'string', short: 'c' },
    listen: { type: 'string' },
    watch: { type: 'boolean' },
    key: { type: 'string' },
    silence: { type: 'string' },
    json: { type: 'boolean' },
    token: { type: 'string' },
    once: { type: 'boolean' },
    help: { type: 'boolean', short: 'h' },
    version: { type: 'boolean', short: 'v' },
  } as const;
  try {
    return parseArgs({ args: argv, options, allowPositionals: true });
  } catch (error) {
    // Node goes on to say how to pass a value that begins with a dash.
    process.exit(
      refuseUsage((error as Error).message.replace(/\.? To specify.*$/s, '').replace(/^\p{Lu}/u, (first) => first.toLowerCase())),
    );
  }
}

function print(text: string): number {
  process.stdout.write(text);
  return EXIT.clean;
}

function refuseUsage(message: string, command?: string): number {
  process.stderr.write(`sluicegate: ${message}\nsluicegate ${command === undefined ? '' : `${command} `}--help tells how to call it.\n`);
  return EXIT.badConfiguration;
}

function readVersion(): string {
  const { version }: { version: string } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
  return version;
}

interface Loaded {
  readonly config: Config;
  /** Undefined where it comes from the environment alone. */
  readonly file: string | undefined;
}

/** Loads the configuration, telling problems and warnings on standard error; undefined where it cannot be used. */
function load(flags: Flags): Loaded | undefined {
  const file = flags.config ?? process.env.SLUICEGATE_CONFIG ?? (existsSync(DEFAULT_FILE) ? DEFAULT_FILE : undefined);
  let text: string | undefined;
  try {
    if (file !== undefined) text = readFileSync(file, 'utf8');
  } catch (error) {
    process.stderr.write(`${file}:1:1: cannot be read (${(error as NodeJS.ErrnoException).code}); name a file that can with -c FILE\n`);
    return undefined;
  }
  const result: LoadResult = loadConfig(file === undefined || text === undefined ? undefined : { file, text }, process.env);
  for (const warning of result.warnings) process.stderr.write(`warning: ${formatProblem(warning)}\n`);
  if (process.env.NODE_TLS_REJECT_UNAUTHORIZED === '0') {
    process.stderr.write(
      'warning: NODE_TLS_REJECT_UNAUTHORIZED=0 turns off the check of upstreams’ certificates: anyone on the way can read your keys\n',
    );
  }
  if (result.ok) return { config: result.config, file };
  for (const problem of result.problems) process.stderr.write(`${formatProblem(problem)}\n`);
  return undefined;
}

function check(flags: Flags): number {
  const loaded = load(flags);
  if (loaded === undefined) return EXIT.badConfiguration;
  return print(`# ${loaded.file ?? 'built-in defaults and the environment'}: valid. In effect:\n${printConfig(loaded.config)}`);
}

function makeKey([name, ...rest]: string[]): number {
  if (name === undefined || rest.length > 0) return refuseUsage('key takes one argument, the name of the client', 'key');
  if (!isName(name)) return refuseUsage('a client’s name has 1 to 64 letters, digits, ".", "_" or "-"', 'key');
  const key = `sk-sluicegate-${randomBytes(24).toString('base64url')}`;
  return print(
    `Key of ${name}, shown only now:\n\n  ${key}\n\nFor the configuration:\n\nclients:\n  - name: ${name}\n    keySha256: ${hashKey(key)}\n`,
  );
}

/** Tells on standard output whether the way to a gateway streams; steps only to a person, who waits. */
async function doctor([url, ...rest]: string[], flags: Flags): Promise<number> {
  if (url === undefined || rest.length > 0) return refuseUsage('doctor takes one argument, the base URL that apps are given', 'doctor');
  if (!/^https?:\/\//i.test(url) || !URL.canParse(url)) {
    return refuseUsage(`"${url}" is no URL that begins with http:// or https://, such as http://127.0.0.1:8080/v1`, 'doctor');
  }
  const silenceMs = flags.silence === 'off' ? 0 : flags.silence === undefined ? undefined : parseDuration(flags.silence);
  if (flags.silence !== undefined && (silenceMs === undefined || silenceMs > MAX_SILENCE_MS)) {
    return refuseUsage(`--silence takes a time up to 10m, such as 30s, or off, not "${flags.silence}"`, 'doctor');
  }
  const key = flags.key ?? process.env.SLUICEGATE_KEY;
  if (key !== undefined && !/^[!-~]+$/.test(key)) return refuseUsage('a key has visible ASCII characters only', 'doctor');
  // What serves needs none of this.
  const { examine } = await import('./doctor/doctor.ts');
  const { exitCodeOf, writeJson, writeReport } = await import('./doctor/report.ts');
  const isWatched = process.stderr.isTTY === true && flags.json !== true;
  const onStep = (step: string) => void (isWatched && process.stderr.write(`... ${step}\n`));
  const result = await examine({ base: new URL(url), key: key || undefined, silenceMs, version: readVersion(), onStep });
  process.stdout.write(flags.json ? writeJson(result) : writeReport(result));
  return exitCodeOf(result);
}

async function top([url, ...rest]: string[], flags: Flags): Promise<number> {
  if (rest.length > 0) return refuseUsage(`unexpected argument "${rest[0]}"`, 'top');
  const { SLUICEGATE_OPS_LISTEN = '127.0.0.1:9464', SLUICEGATE_OPS_TOKEN } = process.env;
  const ended = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, () => ended.abort());
  const how = {
    url: url ?? reachable(`http://${SLUICEGATE_OPS_LISTEN}`),
    token: flags.token ?? SLUICEGATE_OPS_TOKEN,
    isOnce: flags.once === true,
    ended: ended.signal,
  };
  const isWell = await runTop(how, { input: process.stdin, output: process.stdout, errors: process.stderr });
  return isWell ? EXIT.clean : EXIT.couldNotStart;
}

async function demo(flags: Flags): Promise<number | undefined> {
  const listen = parseAddress(flags.listen ?? '127.0.0.1:8081');
  if (listen === undefined) return refuseUsage(`--listen takes HOST:PORT, not "${flags.listen}"`, 'demo');
  try {
    const server = await startDemo(listen);
    print(`The demo upstream listens at ${server.url}\n`);
    closeWithGrace({ delay: 5000, logger: false }, () => server.close());
    return undefined;
  } catch (error) {
    return tellStartFailure(error, listen);
  }
}

/** Calls until it is told to stop. Other models than the demo's it never names, so that it costs nothing wherever it is pointed. */
async function traffic([url, ...keys]: string[]): Promise<number | undefined> {
  if (url === undefined || !/^https?:/.test(url) || !URL.canParse(url))
    return refuseUsage('traffic takes the base URL of a gateway, as http://127.0.0.1:8080/v1, and the keys to call it with', 'traffic');
  const { startTraffic } = await import('./demo/traffic.ts');
  const calls = startTraffic({ url: url.replace(/\/+$/, ''), keys });
  print(`Calling ${url}\n`);
  closeWithGrace({ delay: 5000, logger: false }, () => calls.stop());
  return undefined;
}

async function serve(flags: Flags): Promise<number | undefined> {
  const loaded = load(flags);
  if (loaded === undefined) return EXIT.badConfiguration;
  const isTerminal = process.stdout.isTTY === true;
  const log = createLogger(loaded.config.log, isTerminal);
  let demoUpstream: Demo | undefined;
  try {
    if (loaded.config.upstreams.length === 0) demoUpstream = await startDemo({ host: '127.0.0.1', port: 0 });
    const config = withDemo(loaded.config, demoUpstream);
    const gateway = await start(config, log);
    // Lines for a person go where they cannot break a stream of JSON lines.
    const lines = config.log.format === 'json' || !isTerminal ? process.stderr : process.stdout;
    lines.write(startLines(gateway, { config, file: loaded.file }, demoUpstream !== undefined));
    log.info({ url: gateway.url, opsUrl: gateway.opsUrl, upstreams: config.upstreams.map(({ name }) => name) }, 'listening');
    reloadOnDemand(gateway, flags, { ...loaded, config }, demoUpstream, log);
    endWithGrace(gateway, demoUpstream, config, log);
    return undefined;
  } catch (error) {
    await demoUpstream?.close();
    return tellStartFailure(error, loaded.config.server.listen);
  }
}

/** In this process, or in so many others behind one port. */
async function start(config: Config, log: Logger): Promise<Served> {
  const { workers } = config.server;
  const count = workers === 'auto' ? availableParallelism() : workers;
  // Whoever only looks after workers needs none of what they serve with: some 15 MB.
  if (count > 1) return (await import('./workers/supervisor.ts')).startWorkers({ config, log, count, args: [WORKER] });
  return (await import('./gateway.ts')).startGateway({ config, log, version: readVersion() });
}

/** A worker: serves as the primary says, and ends when it says so, or with it. */
async function work(): Promise<number | undefined> {
  for (const signal of SIGNALS_OF_PRIMARY) process.on(signal, () => undefined);
  // One line a write: those of all processes share the pipe, which keeps a write whole up to 4 KiB (PIPE_BUF).
  Object.assign(process.stdout, { _writev: null });
  const { startWorker } = await import('./workers/worker.ts');
  const worker = await startWorker(readVersion(), process.stdout.isTTY === true);
  if (worker === undefined) return EXIT.couldNotStart;
  const tellFault = (failure: unknown) => worker.log.fatal(faultFacts(failure), 'the process failed inside');
  closeWithGrace({ delay: false, logger: false, skip: [...SIGNALS_OF_PRIMARY], onSecondError: tellFault }, async ({ err }) => {
    if (err) tellFault(err);
    await Promise.race([worker.fault(FAULT_DRAIN_MS), delayFor(FAULT_DRAIN_MS + OVERTIME_MS)]);
  });
  await worker.closed;
  process.exit(EXIT.clean);
}

function withDemo(config: Config, demoUpstream: Demo | undefined): Config {
  return config.upstreams.length > 0 || demoUpstream === undefined ? config : { ...config, upstreams: upstreamOf(demoUpstream) };
}

/** Loads the file again on SIGHUP, and with --watch whenever it changes: whole, or not at all. */
function reloadOnDemand(gateway: Served, flags: Flags, loaded: Loaded, demoUpstream: Demo | undefined, log: Logger): void {
  const { file } = loaded;
  let current = loaded.config;
  const reload = async () => {
    const again = load(flags);
    if (again === undefined) {
      gateway.reloadFailed();
      log.error('the new configuration was not taken; the old one stays');
      return;
    }
    const before = current;
    current = withDemo(again.config, demoUpstream);
    await gateway.reload(current);
    tellReload(log, before, current);
  };
  process.on('SIGHUP', reload);
  // Looked at, not listened to: editors and Kubernetes replace the file, and a watch would stay with the old one.
  if (flags.watch && file !== undefined) watchFile(file, { interval: WATCH_MS }, reload);
}

/** Logs that another configuration is in effect, and what of it is not. */
function tellReload(log: Logger, before: Config, { server, ops, upstreams }: Config): void {
  if (!isDeepStrictEqual(server.listen, before.server.listen)) log.warn('server.listen changes only with a restart');
  if (!isDeepStrictEqual(ops.listen, before.ops.listen)) log.warn('ops.listen changes only with a restart');
  if ((server.tls === undefined) !== (before.server.tls === undefined)) log.warn('server.tls changes only with a restart');
  if (server.workers !== before.server.workers) log.warn('server.workers changes only with a restart');
  log.info({ upstreams: upstreams.map(({ name }) => name) }, 'configuration reloaded');
}

/** Signals drain; a second one, or a drain that does not come to its end, is an end at once with a code of failure. */
function endWithGrace(gateway: Served, demoUpstream: Demo | undefined, { server }: Config, log: Logger): void {
  const delay = Number.isFinite(server.drainMs) ? MAX_NOTICE_MS + server.drainMs + OVERTIME_MS : false;
  const tellFault = (failure: unknown) => log.fatal(faultFacts(failure), 'the process failed inside');
  closeWithGrace({ delay, logger: false, skip: ['SIGHUP'], onSecondError: tellFault }, async ({ signal, err }) => {
    if (err) {
      tellFault(err);
      // Nobody knows what a fault has left behind: what ends soon may end well, and nothing new begins.
      await Promise.race([gateway.close(FAULT_DRAIN_MS), delayFor(FAULT_DRAIN_MS + OVERTIME_MS)]);
      return;
    }
    log.info({ signal }, 'draining');
    await gateway.close();
    await demoUpstream?.close();
    log.info('closed');
  });
}

/** The demo, with the settings that any upstream from the environment has. */
function upstreamOf({ url }: Demo): Upstream[] {
  const loaded = loadConfig(undefined, { SLUICEGATE_UPSTREAM: url });
  return loaded.ok ? loaded.config.upstreams.map((upstream) => ({ ...upstream, name: 'demo' })) : [];
}

/** What a person needs first: where to point an app, who may call, who answers, where the numbers are, and a line to try it with. */
function startLines(gateway: Served, { config, file }: Loaded, isDemo: boolean): string {
  const [url, opsUrl] = [gateway.url, gateway.opsUrl].map(reachable);
  const key = config.clients.length > 0 ? ' -H "authorization: Bearer $SLUICEGATE_KEY"' : '';
  const body = `{"model":"${isDemo ? 'demo' : likelyModel(config)}","stream":true,"messages":[{"role":"user","content":"Hello!"}]}`;
  const upstream = isDemo
    ? 'the built-in demo (no key is set; OPENAI_API_KEY or SLUICEGATE_UPSTREAM choose a real one)'
    : config.upstreams.map(({ name, baseUrl }) => `${name} at ${baseUrl}`).join(', ');
  return `
Sluicegate ${readVersion()}

  API       ${url}/v1   the base URL for your app
  Clients   ${describeClients(config)}
  Upstream  ${upstream}
  Metrics   ${opsUrl}/metrics
${hasLivePage(config) ? `  Live page ${opsUrl}/\n` : ''}  Settings  ${file ?? 'built-in defaults and the environment'}

Try it:

  curl -N ${url}/v1/chat/completions${key} -H 'content-type: application/json' -d '${body}'

Behind nginx, a CDN or a load balancer, "sluicegate doctor URL" tells whether streams come through.

`;
}

/** As ops has it: for this machine, or for whoever has the token. */
function hasLivePage({ ops, server }: Config): boolean {
  return ops.token !== undefined || (isLoopback(ops.listen.host) && !isDeepStrictEqual(ops.listen, server.listen));
}

/** Who may call; of many only some, and how many more. */
function describeClients({ clients, server }: Config): string {
  if (clients.length === 0)
    return isLoopback(server.listen.host) ? 'anyone on this machine, without a key' : 'anyone who reaches it, without a key';
  const names = clients.slice(0, MAX_SHOWN_CLIENTS).map(({ name }) => name);
  const more = clients.length - names.length;
  return `${names.join(', ')}${more > 0 ? ` and ${more} more` : ''}, each with its key`;
}

/** A model to paste: one that the configuration names, else one that OpenAI has; of other upstreams nobody knows. */
function likelyModel({ models, upstreams }: Config): string {
  const named = models.find(({ match }) => !match.includes('*'))?.match;
  const isOpenAi = upstreams[0]?.baseUrl.startsWith('https://api.openai.com') ?? false;
  return named ?? (isOpenAi ? 'gpt-4o-mini' : 'MODEL');
}

/** An address that means all addresses is none to paste. */
function reachable(url: string): string {
  return url.replace('//0.0.0.0:', '//127.0.0.1:').replace('//[::]:', '//[::1]:');
}

function tellStartFailure(error: unknown, { host, port }: Address): number {
  const { code, address = host, port: busyPort = port, message } = error as NodeJS.ErrnoException & { address?: string; port?: number };
  const reasons: Record<string, string> = {
    EADDRINUSE: 'something listens there already',
    EACCES: 'this user may not listen there; ports below 1024 need root or CAP_NET_BIND_SERVICE',
    EADDRNOTAVAIL: 'this machine does not have that address',
  };
  const what = code === undefined ? `could not start: ${message}` : `could not listen at ${address}:${busyPort}: ${reasons[code] ?? code}`;
  process.stderr.write(`sluicegate: ${what}\n`);
  return EXIT.couldNotStart;
}

const exitCode = await main(process.argv.slice(2));
if (exitCode !== undefined) process.exitCode = exitCode;

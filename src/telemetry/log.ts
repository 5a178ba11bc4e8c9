// The log: one line a request at its end, from an allow-list of facts; bodies, keys and messages of others never.
import { stdout } from 'node:process';
import type { Writable } from 'node:stream';
import { type DestinationStream, type Logger, pino } from 'pino';
import { type PrettyOptions, prettyFactory } from 'pino-pretty';
import type { Config } from '../config.ts';
import type { Exchange } from '../exchange.ts';

export type { Logger };

/** What of the log is held for a reader that does not read; some ten thousand lines. */
const MAX_HELD_BYTES = 4 * 1024 * 1024;
/** The longest request id, and longer than any model's name. */
const MAX_TEXT_LENGTH = 128;
const PRINTABLE = /^[ -~]*$/;

/** Where loggers write that write JSON. */
const jsonLines = new WeakMap<Logger, DestinationStream>();

/**
 * The process's logger. `auto` writes lines for a person on a terminal and JSON elsewhere.
 * @param destination where lines go; standard output if absent
 */
export function createLogger(config: Config['log'], isTerminal: boolean, destination?: DestinationStream): Logger {
  const isPretty = config.format === 'pretty' || (config.format === 'auto' && isTerminal);
  const options = { level: config.level, base: null, timestamp: pino.stdTimeFunctions.isoTime };
  // Node writes to a terminal synchronously: one that is held with Ctrl-S would hold every stream.
  const lines = destination ?? (isTerminal ? pino.destination({ dest: stdout.fd, sync: false }) : createBoundedLines(stdout));
  if (!isPretty) {
    const log = pino(options, lines);
    jsonLines.set(log, lines);
    return log;
  }
  const format = prettyFactory({ ...prettyOptions, colorize: isTerminal });
  return pino(options, { write: (line) => lines.write(format(line)) });
}

/**
 * Lines on their way to a stream whose reader may be slow or gone. Beyond the bound they are dropped, and the next line
 * that gets through says how many. The bound is to be above the stream's own highWaterMark, or no `drain` would come.
 *
 * Not pino's own destination: it holds without bound, and with a pipe that nobody reads the process can no longer exit.
 */
export function createBoundedLines(stream: Writable, maxHeldBytes: number = MAX_HELD_BYTES): DestinationStream {
  /** Of this turn of the loop: a write for each line would wake the reader as often. */
  let gathered = '';
  let dropped = 0;
  // A reader that is gone (EPIPE) is no reason to end streams; what is written to it then is lost.
  stream.on('error', () => undefined);

  function send(): void {
    stream.write(gathered);
    gathered = '';
  }
  process.on('exit', () => gathered === '' || send());

  function tellDropped(): void {
    const line = { level: 40, time: new Date().toISOString(), dropped, msg: 'log lines were dropped: nobody read them in time' };
    dropped = 0;
    stream.write(`${JSON.stringify(line)}\n`);
  }

  return {
    write(line) {
      if (stream.writableLength + gathered.length + line.length <= maxHeldBytes) {
        if (gathered === '') setImmediate(send);
        gathered += line;
      } else {
        if (dropped === 0) stream.once('drain', tellDropped);
        dropped += 1;
      }
    },
  };
}

const prettyOptions: PrettyOptions = {
  translateTime: 'SYS:HH:MM:ss',
  ignore:
    'requestId,client,upstream,model,endpoint,method,status,outcome,rejection,cause,phase,ttfbMs,ttftMs,durationMs,tokens,costUsd,bytesIn,bytesOut,attempts,tried,remoteAddress,traceId',
  messageFormat: (line, messageKey) => (line.outcome === undefined ? String(line[messageKey]) : prettyRequest(line)),
};

function prettyRequest(line: Record<string, unknown>): string {
  const tokens = line.tokens as Record<string, unknown> | undefined;
  const facts = [
    `${line.status ?? '---'} ${line.outcome}`,
    `${line.method} ${line.endpoint}`,
    line.model ?? '',
    line.ttftMs === undefined ? '' : `first token ${line.ttftMs} ms`,
    `${line.durationMs} ms`,
    tokens === undefined ? '' : `${tokens.input ?? '?'} → ${tokens.output ?? '?'} tokens`,
    line.costUsd === undefined ? '' : `$${Number(line.costUsd).toFixed(6)}`,
    line.rejection ?? line.cause ?? '',
    Array.isArray(line.tried) ? `(${line.tried.join(', ')})` : '',
  ];
  return facts.filter((fact) => fact !== '').join('  ');
}

/** Writes the line of an ended exchange (INTERFACE: Logs): an allow-list, so that nothing gets in by accident. Times are milliseconds. */
export function logExchange(log: Logger, exchange: Exchange): void {
  const { requestId, method, client, upstream, endpoint, status, outcome, rejection, cause, phase, meter } = exchange;
  const { bytesIn, bytesOut, attempts, remoteAddress, traceId, tokens, costNanoUsd } = exchange;
  const tried = attempts > 1 ? exchange.tried : undefined;
  const facts = {
    requestId: printable(requestId),
    client,
    upstream,
    model: printable(meter?.model),
    method,
    endpoint,
    status,
    outcome,
    rejection,
    cause,
    phase,
    ttfbMs: rounded(exchange.ttfbMs),
    ttftMs: rounded(exchange.ttftMs),
    durationMs: rounded(exchange.durationMs),
    tokens: tokens && tokenFacts(tokens),
    bytesIn,
    bytesOut,
    costUsd: costNanoUsd === undefined ? undefined : costNanoUsd / 1e9,
    attempts,
    tried,
    remoteAddress: printable(remoteAddress),
    traceId,
  };
  const lines = jsonLines.get(log);
  if (lines === undefined) log.info(facts, 'request');
  else if (log.isLevelEnabled('info')) lines.write(requestLine(facts));
}

/** The line that pino would write; it takes three times as long, for it looks for a serializer of each fact. */
function requestLine(facts: object): string {
  return `{"level":30,"time":"${new Date().toISOString()}",${JSON.stringify(facts).slice(1, -1)},"msg":"request"}\n`;
}

/** A text of others, so that no terminal and no line-splitter takes a part of it for its own. */
function printable(text: string | undefined): string | undefined {
  if (text === undefined || (text.length <= MAX_TEXT_LENGTH && PRINTABLE.test(text))) return text;
  return text.slice(0, MAX_TEXT_LENGTH).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, '\ufffd');
}

/** What may be logged of a failure: its kind and where it was made; its message, which may have several lines, may quote anything. */
export function faultFacts(failure: unknown): { fault: string; at?: string } {
  if (!(failure instanceof Error)) return { fault: typeof failure };
  const [place] = /^ +at .*$/m.exec(failure.stack ?? '') ?? [];
  return place === undefined ? { fault: failure.name } : { fault: failure.name, at: place.trim() };
}

function tokenFacts(used: NonNullable<Exchange['tokens']>): Record<string, unknown> {
  const { input, output, inputSource, outputSource } = used;
  const facts: Record<string, unknown> = { input: inputSource && input, output: outputSource && output, inputSource, outputSource };
  for (const part of PARTS) if (used[part]) facts[part] = used[part];
  return facts;
}

/** Of input and output; told where there are any. */
const PARTS = ['cachedInput', 'cacheWrite', 'reasoning', 'audioInput', 'audioOutput', 'cachedAudioInput'] as const;

function rounded(ms: number | undefined): number | undefined {
  return ms === undefined ? undefined : Math.round(ms * 10) / 10;
}

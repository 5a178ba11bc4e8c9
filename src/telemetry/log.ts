// The log: one line a request at its end, from an allow-list of facts; bodies, keys and messages of others never.
import { type DestinationStream, type Logger, pino } from 'pino';
import { build as buildPretty, type PrettyOptions } from 'pino-pretty';
import type { Config } from '../config.ts';
import type { Exchange } from '../exchange.ts';

export type { Logger };

/**
 * The process's logger. `auto` writes lines for a person on a terminal and JSON elsewhere.
 * @param destination where lines go; standard output if absent
 */
export function createLogger(config: Config['log'], isTerminal: boolean, destination?: DestinationStream): Logger {
  const isPretty = config.format === 'pretty' || (config.format === 'auto' && isTerminal);
  const options = { level: config.level, base: null, timestamp: pino.stdTimeFunctions.isoTime };
  if (isPretty)
    return pino(
      options,
      buildPretty({ ...prettyOptions, colorize: isTerminal, ...(destination && { destination: destination as never }) }),
    );
  return destination === undefined ? pino(options) : pino(options, destination);
}

const prettyOptions: PrettyOptions = {
  translateTime: 'SYS:HH:MM:ss',
  ignore:
    'requestId,client,upstream,model,endpoint,method,status,outcome,rejection,cause,phase,ttfbMs,ttftMs,durationMs,tokens,bytesIn,bytesOut,attempts,remoteAddress,traceId',
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
    line.rejection ?? line.cause ?? '',
  ];
  return facts.filter((fact) => fact !== '').join('  ');
}

/** Writes the line of an ended exchange (INTERFACE: Logs): an allow-list, so that nothing gets in by accident. Times are milliseconds. */
export function logExchange(log: Logger, exchange: Exchange): void {
  const { requestId, method, client, upstream, endpoint, status, outcome, rejection, cause, phase, meter } = exchange;
  const { bytesIn, bytesOut, attempts, remoteAddress, traceId, tokens } = exchange;
  const times = { ttfbMs: rounded(exchange.ttfbMs), ttftMs: rounded(exchange.ttftMs), durationMs: rounded(exchange.durationMs) };
  const facts = { requestId, client, upstream, model: meter?.model, method, endpoint, status, outcome, rejection, cause, phase, ...times };
  log.info({ ...facts, tokens: tokens && tokenFacts(tokens), bytesIn, bytesOut, attempts, remoteAddress, traceId }, 'request');
}

function tokenFacts({ input, output, inputSource, outputSource, ...details }: NonNullable<Exchange['tokens']>): Record<string, unknown> {
  const given = Object.entries(details).filter(([, count]) => count !== 0);
  return { input: inputSource && input, output: outputSource && output, ...Object.fromEntries(given), inputSource, outputSource };
}

function rounded(ms: number | undefined): number | undefined {
  return ms === undefined ? undefined : Math.round(ms * 10) / 10;
}

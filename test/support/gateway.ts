// A gateway for a test: started in this process from a configuration as a file would hold it, its log kept, its metrics parsed.
import type { Test } from 'tap';
import { stringify } from 'yaml';
import { formatProblem, loadConfig } from '../../src/config.ts';
import { type Gateway, startGateway } from '../../src/gateway.ts';
import { createTokenizer, type Tokenizer } from '../../src/stream/tokens.ts';
import { createLogger } from '../../src/telemetry/log.ts';
import { type Metrics, parseMetrics } from './metrics.ts';
import { createWaiting } from './waiting.ts';

/** The key that gateways under test inject, and that no client may ever see. */
export const UPSTREAM_KEY = 'sk-upstream-canary-0123456789abcdef';

/** One for all gateways of a test file: each would load its own vocabulary. Its worker keeps no process alive. */
const sharedTokenizer = createTokenizer();

export type LogLine = Record<string, unknown> & { readonly tokens?: Record<string, unknown> };

export interface TestGateway extends Gateway {
  readonly port: number;
  readonly opsPort: number;
  /** The base URL for clients. */
  readonly baseUrl: string;
  /** Everything logged so far, as written. */
  readonly output: string;
  /** The log line of the next request that ended and was not yet handed out. */
  ended(): Promise<LogLine>;
  metrics(): Promise<Metrics>;
  /** Begins to shut the clients' listener down; metrics stay until the test's end. */
  drain(): Promise<void>;
}

/**
 * Starts a gateway before `upstreamUrl` on free ports of 127.0.0.1; it closes with the test.
 * @param settings laid over the defaults, section by section, in the shape of the configuration file; `upstream` is `main`, `upstreams` are further ones
 */
export async function startTestGateway(
  t: Test,
  upstreamUrl: string,
  settings: Record<string, object> = {},
  tokenizer: Tokenizer = sharedTokenizer,
): Promise<TestGateway> {
  const upstream = { baseUrl: upstreamUrl, apiKey: UPSTREAM_KEY, usage: 'asSent', ...(settings.upstream ?? {}) };
  const { upstream: _, upstreams = {}, server = {}, ops = {}, ...rest } = settings;
  const text = stringify({
    server: { listen: '127.0.0.1:0', drain: '100ms', ...server },
    ops: { listen: '127.0.0.1:0', ...ops },
    upstreams: { main: upstream, ...upstreams },
    ...rest,
  });
  const loaded = loadConfig({ file: 'test.yaml', text }, {});
  if (!loaded.ok) throw new Error(loaded.problems.map(formatProblem).join('\n'));

  const waiting = createWaiting();
  const ended: LogLine[] = [];
  let output = '';
  let handedOut = 0;
  const destination = {
    write(text: string) {
      output += text;
      for (const line of text.split('\n').filter((part) => part !== '')) {
        const parsed = JSON.parse(line) as LogLine;
        if (parsed.outcome !== undefined) ended.push(parsed);
      }
      waiting.changed();
    },
  };
  const log = createLogger({ level: 'info', format: 'json' }, false, destination);
  const gateway = await startGateway({ config: loaded.config, log, version: '0.0.0', beatMs: 5, renewMs: 20, tokenizer });
  t.teardown(() => gateway.close());
  return {
    ...gateway,
    port: Number(new URL(gateway.url).port),
    opsPort: Number(new URL(gateway.opsUrl).port),
    baseUrl: `${gateway.url}/v1`,
    get output() {
      return output;
    },
    ended: () =>
      waiting.wait({
        awaited: 'the log line of a request that ended',
        seen: () => output.slice(-500),
        attempt: () => (handedOut < ended.length ? ended[handedOut++] : undefined),
      }),
    metrics: async () => parseMetrics(await (await fetch(`${gateway.opsUrl}/metrics`)).text()),
  };
}

// Calls at a steady rate through a gateway with two upstreams, one of which is killed: what became of each call, and how long it took.
import { Agent, request } from 'node:http';
import { setTimeout } from 'node:timers/promises';

export interface Call {
  readonly sentAtMs: number;
  readonly ms: number;
  /** The answer's status; 0 where none came. */
  readonly status: number;
  /** Whether a byte of the body came. */
  readonly hasBegun: boolean;
  readonly isComplete: boolean;
  readonly upstream: string;
}

/** One chat call of a demo upstream; every other one streams. */
function callOnce(url: string, agent: Agent, isStream: boolean): Promise<Call> {
  const sentAtMs = performance.now();
  const body = JSON.stringify({ model: 'demo', stream: isStream, max_tokens: 20, messages: [{ role: 'user', content: 'Hello' }] });
  const headers = { 'content-type': 'application/json', 'x-demo-ttft-ms': '20', 'x-demo-tokens-per-second': '400' };
  return new Promise((resolve) => {
    let text = '';
    let status = 0;
    let upstream = '';
    const settle = (isEnded: boolean) => {
      const isComplete = isEnded && status === 200 && (!isStream || text.endsWith('data: [DONE]\n\n'));
      resolve({ sentAtMs, ms: performance.now() - sentAtMs, status, hasBegun: text !== '', isComplete, upstream });
    };
    request(`${url}/chat/completions`, { method: 'POST', agent, headers }, (response) => {
      status = response.statusCode ?? 0;
      upstream = String(response.headers['x-sluicegate-upstream']);
      response.setEncoding('utf8').on('data', (chunk: string) => {
        text += chunk;
      });
      response.once('end', () => settle(true)).once('error', () => settle(false));
    })
      .once('error', () => settle(false))
      .end(body);
  });
}

/**
 * @param url the gateway's base URL
 * @param kill called in the middle of it
 * @returns every call, and when the upstream was killed
 */
export async function callWhileKilling(
  url: string,
  { seconds, ratePerSecond }: { readonly seconds: number; readonly ratePerSecond: number },
  kill: () => void,
): Promise<{ readonly calls: Call[]; readonly killedAtMs: number }> {
  const agent = new Agent({ keepAlive: true, maxSockets: 500 });
  const calls: Promise<Call>[] = [];
  const startedAtMs = performance.now();
  let killedAtMs = Number.POSITIVE_INFINITY;
  for (let n = 0; n < seconds * ratePerSecond; n++) {
    await setTimeout(Math.max(0, startedAtMs + (n * 1000) / ratePerSecond - performance.now()));
    if (n === Math.floor((seconds * ratePerSecond) / 2)) {
      kill();
      killedAtMs = performance.now();
    }
    calls.push(callOnce(url, agent, n % 2 === 0));
  }
  const ended = await Promise.all(calls);
  agent.destroy();
  return { calls: ended, killedAtMs };
}

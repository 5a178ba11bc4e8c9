// A soak's scenario: at 200 calls a second one of two upstreams is killed; what is lost, and how long calls take before, during and after.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { callWhileKilling } from '../support/killed-upstream.ts';
import { quantiles } from './figures.ts';
import { startGatewayProcess } from './gateway-process.ts';
import { minutes } from './options.ts';
import { conclude, find, print } from './report.ts';

const RATE_A_SECOND = 200;
const BLIP_MS = 2_000;
const mainFile = fileURLToPath(new URL('../../src/main.ts', import.meta.url));

async function startDemo(): Promise<{ child: ChildProcess; url: string }> {
  const child = spawn(process.execPath, [mainFile, 'demo', '--listen', '127.0.0.1:0'], { stdio: ['ignore', 'pipe', 'inherit'] });
  process.once('exit', () => child.kill('SIGKILL'));
  const [line] = await once(createInterface({ input: child.stdout }), 'line');
  return { child, url: /http:\S+/.exec(line)?.[0] ?? '' };
}

const [first, second] = [await startDemo(), await startDemo()];
const gateway = await startGatewayProcess({
  configuration: {
    upstreams: { first: { baseUrl: first.url, auth: 'none' }, second: { baseUrl: second.url, auth: 'none' } },
    models: [{ match: '*', upstreams: ['first', 'second'], balance: 'leastBusy' }],
  },
});
const run = { seconds: minutes(0.5) * 60, ratePerSecond: RATE_A_SECOND };
const { calls, killedAtMs } = await callWhileKilling(`http://127.0.0.1:${gateway.port}/v1`, run, () => first.child.kill('SIGKILL'));

const within = (fromMs: number, toMs: number) =>
  quantiles(calls.filter(({ sentAtMs }) => sentAtMs >= fromMs && sentAtMs < toMs).map(({ ms }) => ms));
print('before', within(0, killedAtMs - 100));
print('within 2 s of the kill', within(killedAtMs - 100, killedAtMs + BLIP_MS));
print('after', within(killedAtMs + BLIP_MS, Number.POSITIVE_INFINITY));
print('cut in their stream', calls.filter(({ hasBegun, isComplete }) => hasBegun && !isComplete).length);
const lost = calls.filter(({ hasBegun, isComplete }) => !hasBegun && !isComplete);
print('lost before they had begun', lost.length);
for (const call of lost) find(JSON.stringify(call));
print(
  'tries',
  (await gateway.metrics())
    .series('sluicegate_upstream_attempts_total')
    .map(({ labels, value }) => `${labels.upstream} ${labels.result} ${value}`),
);
const code = await gateway.stop();
if (code !== 0) find(`exit code ${code} after SIGTERM`);
second.child.kill('SIGKILL');
conclude();

// npm run test:compose: brings up what docker-compose.yml says, with callers, and finds data for every panel and every alert. As root with
// podman in containers of the real Dockerfile, elsewhere (or with --processes) as plain processes of the same programs.
import { spawnSync } from 'node:child_process';
import { startContainers } from './containers.ts';
import { judgeAlerts, judgePanels, type Verdict } from './judge.ts';
import { startProcesses } from './processes.ts';
import { panelQueries, ruleQueries } from './queries.ts';

export interface Stack {
  readonly prometheusUrl: string;
  /** Through nginx. */
  readonly edgeUrl: string;
  readonly gatewayUrl: string;
  /** What holds of this way to start it alone. */
  check(): Promise<Verdict[]>;
  /** Asks the gateway to end, as whoever deploys a new one does, with callers at it. */
  end(): Promise<Verdict>;
  stop(): Promise<void>;
}

const NEEDED = { containers: ['podman', 'podman-compose', 'runc', 'debootstrap'], processes: ['prometheus', 'nginx', 'redis-server'] };

function missing(kind: keyof typeof NEEDED): string[] {
  const env = { PATH: `${process.env.PATH}:/usr/sbin:/sbin` };
  return NEEDED[kind].filter((command) => spawnSync('which', [command], { env }).status !== 0);
}

/** Containers where they can be had; why not is said. */
function chooseWay(): 'containers' | 'processes' {
  if (process.argv.includes('--processes')) return 'processes';
  const lacking = process.getuid?.() === 0 ? missing('containers') : ['root'];
  if (lacking.length === 0) return 'containers';
  console.log(`skipped: containers of the real Dockerfile (missing: ${lacking.join(', ')})`);
  if (process.argv.includes('--containers')) process.exit(1);
  return 'processes';
}

/** One stream from the outside to its end. */
async function callThrough(name: string, url: string): Promise<Verdict> {
  const body = JSON.stringify({ model: 'demo-small', stream: true, messages: [{ role: 'user', content: 'say 5 tokens' }] });
  const headers = { 'content-type': 'application/json', authorization: 'Bearer anything' };
  const answer = await fetch(`${url}/v1/chat/completions`, { method: 'POST', headers, body, signal: AbortSignal.timeout(10_000) });
  const text = await answer.text();
  return { name, fault: answer.status === 200 && text.endsWith('data: [DONE]\n\n') ? undefined : `${answer.status} ${text.slice(0, 200)}` };
}

const began = performance.now();
const way = chooseWay();
if (way === 'processes' && missing('processes').length > 0) {
  console.log(`skipped: everything (missing: ${missing('processes').join(', ')})\n0 passed, 0 failed, 1 skipped`);
  process.exit(0);
}
const stack = await (way === 'containers' ? startContainers() : startProcesses());
let verdicts: Verdict[] = [];
try {
  verdicts = [
    await callThrough('a stream from the gateway', stack.gatewayUrl),
    await callThrough('a stream through nginx', stack.edgeUrl),
    ...(await stack.check()),
    ...(await judgePanels(stack.prometheusUrl, [
      ...panelQueries(),
      { name: 'that limits are counted in the store', expr: 'sluicegate_limit_store_up == 1' },
    ])),
    ...(await judgeAlerts(stack.prometheusUrl, ruleQueries())),
    await stack.end(),
  ];
} catch (error) {
  verdicts.push({ name: 'the proof ran to its end', fault: String(error) });
} finally {
  await stack.stop();
}
for (const { name, fault } of verdicts) console.log(fault === undefined ? `ok ${name}` : `not ok ${name}: ${fault}`);
const failed = verdicts.filter(({ fault }) => fault !== undefined).length;
console.log(`in ${way}, ${((performance.now() - began) / 1000).toFixed(0)} s`);
console.log(`${verdicts.length - failed} passed, ${failed} failed`);
process.exitCode = failed > 0 ? 1 : 0;

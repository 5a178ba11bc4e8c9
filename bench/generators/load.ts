// The load of the bench, a process of its own: holds calls open against a contender, and tells what arrived when and what it cost.
import { setTimeout as delay } from 'node:timers/promises';
import { createRandom } from '../../test/support/random.ts';
import { readMachine, readUsage } from './accounting.ts';
import { startClient } from './client.ts';
import { nowNs } from './clock.ts';
import { createHistogram } from './histogram.ts';
import type { LoadPlan, LoadResult } from './plan.ts';

const LATE_US = 50_000;
/** By so much may the two processes' clocks differ. */
const CLOCK_ERROR_NS = 20_000;
const SLOW_REST_MS = 100;

function toRequest(plan: LoadPlan, isSlow: boolean): Buffer {
  const stream = plan.isStreamed ? '"stream":true,' : '';
  const body = `{"model":"${isSlow ? 'flood' : plan.model}",${stream}"messages":[{"role":"user","content":"${'p'.repeat(plan.promptBytes)}"}]}`;
  const head = [
    `POST ${plan.path} HTTP/1.1`,
    'Host: 127.0.0.1',
    'Content-Type: application/json',
    `Accept: ${plan.isStreamed ? 'text/event-stream' : 'application/json'}`,
    `Content-Length: ${body.length}`,
    ...plan.headers,
  ];
  return Buffer.from(`${head.join('\r\n')}\r\n\r\n${body}`);
}

async function run(plan: LoadPlan): Promise<LoadResult> {
  const [event, firstByte, firstEvent, call] = [createHistogram(), createHistogram(), createHistogram(), createHistogram()];
  const counts = { events: 0, whole: 0, aborted: 0, failed: 0 };
  let ended = 0;
  let isMeasured = false;
  let earliestNs = 0;
  const done = Promise.withResolvers<void>();
  const random = createRandom(7);
  const witness = {
    onFirstByte: (ns: number) => isMeasured && firstByte.record(ns),
    onFirstEvent: (ns: number) => isMeasured && firstEvent.record(ns),
    onEvent(ns: number) {
      counts.events++;
      if (ns < earliestNs) earliestNs = ns;
      if (isMeasured) event.record(ns);
    },
    onEnd(how: 'whole' | 'aborted' | 'failed', ns: number) {
      counts[how]++;
      if (isMeasured && how === 'whole') call.record(ns);
      if (++ended >= plan.maxCalls) done.resolve();
      return ended + plan.connections <= plan.maxCalls;
    },
  };
  // Slow readers are not asked about their events' times: they are late on purpose.
  const slowWitness = { ...witness, onFirstByte() {}, onFirstEvent() {}, onEvent() {} };

  const rssBeforeKb = readUsage(plan.pids).rssKb;
  const stops: (() => void)[] = [];
  const request = toRequest(plan, false);
  const slowRequest = toRequest(plan, true);
  const slowCount = Math.round(plan.connections * plan.slowShare);
  const startOne = (n: number) => {
    const isSlow = n < slowCount;
    const drawDeparture = () => (random(1000) < 1000 * plan.abortShare ? random(20) : undefined);
    const own = isSlow ? { request: slowRequest, restMs: SLOW_REST_MS, witness: slowWitness } : { request, restMs: 0, witness };
    stops.push(startClient({ port: plan.port, drawDeparture, ...own }));
  };
  const timers = Array.from({ length: plan.connections }, (_, n) => setTimeout(startOne, (n * plan.spreadMs) / plan.connections, n));

  const sum = () => ({
    atNs: nowNs(),
    ...counts,
    contender: readUsage(plan.pids),
    upstream: readUsage([plan.upstreamPid]),
    load: readUsage([process.pid]),
    machine: readMachine(),
  });
  // Without a warm-up nothing has begun yet: a turn of the loop here would let first events pass uncounted.
  if (plan.warmupMs > 0) await Promise.race([delay(plan.warmupMs), done.promise]);
  isMeasured = true;
  const before = sum();
  await Promise.race([delay(plan.measureMs), done.promise]);
  const after = sum();
  isMeasured = false;
  if (earliestNs < -CLOCK_ERROR_NS) throw new Error(`an event arrived ${-earliestNs} ns before it was sent: the clocks differ`);
  for (const timer of timers) clearTimeout(timer);
  for (const stop of stops) stop();

  const seconds = (after.atNs - before.atNs) / 1e9;
  const used = (who: 'contender' | 'upstream' | 'load') => after[who].userS + after[who].kernelS - before[who].userS - before[who].kernelS;
  const machineS = after.machine.busyS + after.machine.stolenS - before.machine.busyS - before.machine.stolenS;
  return {
    seconds,
    events: after.events - before.events,
    calls: after.whole - before.whole,
    aborted: after.aborted - before.aborted,
    failed: after.failed - before.failed,
    event: event.quantiles(),
    lateEvents: event.countAbove(LATE_US),
    firstByte: firstByte.quantiles(),
    firstEvent: firstEvent.quantiles(),
    call: call.quantiles(),
    contender: {
      userS: after.contender.userS - before.contender.userS,
      kernelS: after.contender.kernelS - before.contender.kernelS,
      rssKb: after.contender.rssKb,
    },
    rssBeforeKb,
    upstreamCores: used('upstream') / seconds,
    loadCores: used('load') / seconds,
    foreignCores: Math.max(0, machineS - used('contender') - used('upstream') - used('load')) / seconds,
  };
}

process.on('message', async (plan: LoadPlan) => process.send?.(await run(plan)));
process.once('disconnect', () => process.exit(0));
process.send?.('ready');

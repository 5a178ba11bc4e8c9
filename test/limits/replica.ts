// One replica's share of a shared store, in a process of its own that a test can kill.
import { randomUUID } from 'node:crypto';
import { createRedisStore } from '../../src/limits/redis.ts';
import type { Amount, CallerLimits, Running } from '../../src/limits/store.ts';

export interface Order {
  readonly id: number;
  readonly caller: string;
  readonly limits: CallerLimits;
  /** load: asks as fast as it can for so long. hold: asks so often, keeps what it gets and renews it. settle: ends what it holds. */
  readonly kind: 'load' | 'hold' | 'settle';
  readonly forMs?: number;
  readonly count?: number;
  /** What each that is held is renewed with (three times as much is reserved), or settled with. */
  readonly amount?: Amount;
}

/** Of each request when it was sent, when it was answered, and whether it was admitted. */
export type Asked = readonly [sentMs: number, answeredMs: number, isAdmitted: boolean];

export interface Report {
  readonly id: number;
  readonly asked: readonly Asked[];
}

const NOTHING: Amount = { tokens: 0, nanoUsd: 0 };
const PARALLEL = 8;

const [, , url = '', windowMs = '', leaseMs = ''] = process.argv;
const store = createRedisStore({ url, windowMs: Number(windowMs), leaseMs: Number(leaseMs) });
const wallNow = () => performance.timeOrigin + performance.now();
let held: Running[] = [];

async function ask({ caller, limits, kind, amount = NOTHING }: Order): Promise<Asked> {
  const lease = randomUUID();
  const sentMs = wallNow();
  const { refusedBy } = await store.admit({ caller, limits, lease, reserve: { tokens: 3 * amount.tokens, nanoUsd: 3 * amount.nanoUsd } });
  if (refusedBy === undefined && kind === 'hold') held.push({ caller, limits, lease, spent: amount });
  return [sentMs, wallNow(), refusedBy === undefined];
}

async function obey(order: Order): Promise<Asked[]> {
  if (order.kind === 'settle') {
    const ending = held;
    held = [];
    await Promise.all(ending.map((running) => store.settle({ ...running, spent: order.amount ?? NOTHING })));
    return [];
  }
  const asked: Asked[] = [];
  const endMs = performance.now() + (order.forMs ?? 0);
  const isOver = () => (order.count === undefined ? performance.now() >= endMs : asked.length + PARALLEL > order.count);
  await Promise.all(
    Array.from({ length: PARALLEL }, async () => {
      while (!isOver()) asked.push(await ask(order));
    }),
  );
  if (order.kind === 'hold') await store.renew(held);
  return asked;
}

process.on('message', async (order: Order) => process.send?.({ id: order.id, asked: await obey(order) }));
process.once('disconnect', () => process.exit());
setInterval(() => store.renew(held).catch(() => undefined), 200);
await store.connected();
process.send?.({ id: 0, asked: [] });

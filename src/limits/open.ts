// The store that a configuration asks for.
import type { Config } from '../config.ts';
import { createFailoverStore } from './failover.ts';
import { createMemoryStore } from './memory.ts';
import { createRedisStore } from './redis.ts';
import type { LimitStore } from './store.ts';

export interface OpenStore extends LimitStore {
  /** Whether it counts where it should; a store in memory always does. */
  readonly isUp: boolean;
}

/**
 * Resolves at the latest a second later, whatever becomes of a shared store: one that is away at the start is like one that dies later.
 * @param onChange told when a shared store goes away, with a code, and when it is back
 * @param countInMemory makes the store in memory, which is this process's own if absent
 */
export async function openLimitStore(
  { store, onStoreFailure }: Config['limits'],
  onChange: (isUp: boolean, code: string | undefined) => void,
  countInMemory: () => LimitStore = createMemoryStore,
): Promise<OpenStore> {
  if (store === 'memory') return Object.assign(countInMemory(), { isUp: true });
  const local = onStoreFailure === 'allow' ? countInMemory() : undefined;
  return createFailoverStore({ shared: createRedisStore({ url: store }), local, onChange });
}

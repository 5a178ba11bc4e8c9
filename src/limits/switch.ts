// The store in use, and the change to another one when a reload asks for it.
import { setTimeout as delayFor } from 'node:timers/promises';
import type { Config } from '../config.ts';
import { type OpenStore, openLimitStore } from './open.ts';
import type { LimitStore } from './store.ts';

export interface StoreSwitch {
  readonly store: OpenStore;
  /** Another store begins with nothing counted; leases are settled with the one that granted them. */
  change(settings: Config['limits']): void;
  /** Once nothing is leased any more. */
  close(): Promise<void>;
}

export interface StoreSwitchParts {
  /** Whether something that a store granted is still to be settled with it. */
  isLeased(store: LimitStore): boolean;
  /** Told when a shared store goes away, with a code, and when it is back. */
  onChange(isUp: boolean, code: string | undefined): void;
  onFault(fault: unknown): void;
  /** Makes the store in memory; undefined: this process's own. */
  readonly countInMemory: (() => LimitStore) | undefined;
}

/** Between two looks whether the leases of a store that is no longer used are all settled. */
const REST_MS = 1_000;

export async function openStoreSwitch(initial: Config['limits'], parts: StoreSwitchParts): Promise<StoreSwitch> {
  const { isLeased, onChange, onFault, countInMemory } = parts;
  const open = (settings: Config['limits']) => openLimitStore(settings, onChange, countInMemory);
  let store = await open(initial);
  let changed: Promise<void> = Promise.resolve();

  async function replace(settings: Config['limits']): Promise<void> {
    const before = store;
    store = await open(settings);
    void closeUnused(before).catch(onFault);
  }

  async function closeUnused(unused: LimitStore): Promise<void> {
    while (isLeased(unused)) await delayFor(REST_MS);
    await unused.close();
  }

  return {
    get store() {
      return store;
    },
    // One after the other: a store that is away takes a second to open, and must not come after the one that a later reload asked for.
    change(settings) {
      changed = changed.then(() => replace(settings)).catch(onFault);
    },
    async close() {
      await changed;
      await store.close();
    },
  };
}

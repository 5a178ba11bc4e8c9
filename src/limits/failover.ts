// The shared store, and what stands in while it is away: nobody waits for it twice, and what it was not told it is told later.
import { Roster } from '../roster.ts';
import type { SharedStore } from './redis.ts';
import { hasLease } from './standings.ts';
import { type Admission, type Amount, type LimitStore, type Running, type Standings, StoreFailure, type Verdict } from './store.ts';

export interface FailoverOptions {
  readonly shared: SharedStore;
  /** Decides while the shared store is away; undefined: nobody is admitted then. */
  readonly local: LimitStore | undefined;
  /** Told of each change, with the code of what went wrong. */
  readonly onChange?: (isUp: boolean, code: string | undefined) => void;
  /** The longest that a caller waits, once; afterwards the store is taken to be away. */
  readonly timeoutMs?: number;
  readonly probeMs?: number;
  /** The longest that the start waits. */
  readonly startMs?: number;
  /** Settlements kept for the store's return. */
  readonly maxUntold?: number;
}

export interface FailoverStore extends LimitStore {
  readonly isUp: boolean;
  /** Settlements that wait for the store's return. */
  readonly untold: number;
  /** Settlements that found no room among them. */
  readonly lost: number;
}

/** A lease that the shared store granted. */
interface Granted {
  running: Running;
  /** What the shared store has been told of; while it is away, only what came after is debited here. */
  told: Amount;
  isFree: boolean;
}

/** What is to be told: the final amount, or of a running stream that its slot is free. */
type Word = { readonly kind: 'free' | 'settle'; readonly running: Running };

const TIMEOUT_MS = 100;
const PROBE_MS = 250;
const START_MS = 1_000;
const MAX_UNTOLD = 100_000;
/** How many leases, callers or settlements one wait is for: what the server does in a few milliseconds. */
const SLICE = 100;
/** What nobody waits for (renewals, settlements, a scrape) may take so much longer: only callers judge a store as slow. */
const PATIENCE = 10;
const NOTHING: Amount = { tokens: 0, nanoUsd: 0 };

/** Resolves once the shared store has answered, has failed to, or has had its time. */
export async function createFailoverStore(options: FailoverOptions): Promise<FailoverStore> {
  const { shared, local, onChange, timeoutMs = TIMEOUT_MS, probeMs = PROBE_MS, maxUntold = MAX_UNTOLD } = options;
  const granted = new Map<string, Granted>();
  const waiting = new Roster<(failure: StoreFailure) => void>();
  const untold = createBoundedQueue<Word>(maxUntold);
  let isUp = true;
  let isClosed = false;
  let isTelling = false;
  let onTold: (() => void) | undefined;
  let probeTimer: NodeJS.Timeout | undefined;

  /** The answer, unless it takes too long or the store turns out to be away meanwhile. A failure marks the store as away. */
  function within<T>(answer: Promise<T>, limitMs: number): Promise<T> {
    return new Promise((resolve, reject) => {
      const seat = waiting.enter((failure) => {
        clearTimeout(timer);
        seat.leave();
        reject(failure);
      });
      // Judged after the loop has polled its sockets: the answer may have come while the process was busy.
      const timer = setTimeout(() => setImmediate(() => seat.isTaken && goDown('TIMEOUT')), limitMs);
      answer.then(
        (value) => {
          clearTimeout(timer);
          if (seat.leave()) resolve(value);
        },
        (failure) => seat.isTaken && goDown(failure instanceof StoreFailure ? failure.code : 'FAULT'),
      );
    });
  }

  function goDown(code: string): void {
    const wasUp = isUp;
    isUp = false;
    for (const giveUp of waiting) giveUp(new StoreFailure(code));
    if (!wasUp || isClosed) return;
    // The streams that run hold their slots here too from now on.
    void renewHere([...granted.values()]);
    onChange?.(false, code);
    probeLater();
  }

  function probeLater(): void {
    probeTimer = setTimeout(probe, probeMs).unref();
  }

  /** One at a time: the next is not sent before this one has been answered or its connection given up. Who answers late is not back. */
  async function probe(): Promise<void> {
    const startedAtMs = performance.now();
    const isBack = await shared.probe().then(
      () => performance.now() - startedAtMs <= timeoutMs,
      () => false,
    );
    if (isClosed) return;
    if (isBack) await goUp();
    else probeLater();
  }

  async function goUp(): Promise<void> {
    isUp = true;
    onChange?.(true, undefined);
    const leases = [...granted.values()];
    void tellAll();
    try {
      await renewThere(leases);
      // A store that lost its memory has taken these for streams.
      for (const { running, isFree } of leases) if (isFree && granted.has(running.lease)) tell({ kind: 'free', running });
    } catch {
      // Away again: the next return is another chance.
    }
  }

  /** A slice at a time, so that admissions can come between. */
  async function renewThere(leases: readonly Granted[]): Promise<ReadonlySet<string>> {
    const spent = new Set<string>();
    for (const some of slice(leases)) {
      const sent = some.map(({ running }) => running);
      for (const caller of await within(shared.renew(sent), timeoutMs * PATIENCE)) spent.add(caller);
      for (const [at, lease] of some.entries()) lease.told = sent[at]?.spent ?? lease.told;
    }
    return spent;
  }

  async function renewHere(leases: readonly Granted[], others: readonly Running[] = []): Promise<ReadonlySet<string>> {
    if (local === undefined) return new Set();
    const spent = await local.renew([...others, ...leases.map(sinceTold)]);
    for (const { running, isFree } of leases) if (isFree) local.free(running);
    return spent;
  }

  /** Tells the shared store, as soon as it is there. */
  function tell(word: Word): void {
    untold.push(word);
    void tellAll();
  }

  /** A slice at a time: a thousand streams that end at one instant shall not make admissions wait until they look like an outage. */
  async function tellAll(): Promise<void> {
    if (isTelling) return;
    isTelling = true;
    while (isUp && untold.size > 0) {
      const words = untold.take(SLICE);
      const answers = await Promise.allSettled(words.map((word) => within(shared[word.kind](word.running), timeoutMs * PATIENCE)));
      for (const [at, word] of words.entries()) if (answers[at]?.status === 'rejected') untold.push(word);
    }
    isTelling = false;
    onTold?.();
  }

  function decideAlone(admission: Admission, failure: StoreFailure): Promise<Verdict> {
    return local === undefined ? Promise.reject(failure) : local.admit(admission);
  }

  try {
    await within(
      shared.connected().then(() => shared.probe()),
      options.startMs ?? START_MS,
    );
  } catch {
    // Away at the start is like away later.
  }

  shared.onDisconnect((code) => goDown(code));

  return {
    get isUp() {
      return isUp;
    },
    get untold() {
      return untold.size;
    },
    get lost() {
      return untold.lost;
    },
    async admit(admission) {
      if (!isUp) return decideAlone(admission, new StoreFailure('DOWN'));
      const { caller, limits, lease } = admission;
      const running = { caller, limits, lease, spent: NOTHING };
      try {
        const verdict = await within(shared.admit(admission), timeoutMs);
        if (verdict.refusedBy === undefined && hasLease(limits)) granted.set(lease, { running, told: NOTHING, isFree: false });
        return verdict;
      } catch (failure) {
        // It may yet be admitted there, with nobody to use it.
        if (hasLease(limits)) untold.push({ kind: 'settle', running });
        return decideAlone(admission, failure as StoreFailure);
      }
    },
    async renew(running) {
      const there: Granted[] = [];
      const here: Running[] = [];
      for (const one of running) {
        const lease = granted.get(one.lease);
        if (lease === undefined) here.push(one);
        else {
          lease.running = one;
          there.push(lease);
        }
      }
      // At once: by the time that the shared store has answered, some may have ended.
      const spent = renewHere(isUp ? [] : there, here);
      if (!isUp) return spent;
      try {
        return union(await renewThere(there), await spent);
      } catch {
        // Away since just now: what was to be renewed there is renewed here.
        const running = there.filter((lease) => granted.has(lease.running.lease));
        return union(await renewHere(running), await spent);
      }
    },
    free(running) {
      const lease = granted.get(running.lease);
      if (lease === undefined || !isUp) local?.free(running);
      if (lease === undefined) return;
      lease.isFree = true;
      tell({ kind: 'free', running: lease.running });
    },
    settle(running) {
      const lease = granted.get(running.lease);
      if (lease === undefined) return local?.settle(running);
      granted.delete(running.lease);
      lease.running = running;
      if (!isUp) local?.settle(sinceTold(lease));
      tell({ kind: 'settle', running });
    },
    async standings(callers) {
      try {
        const standings = new Map<string, Standings>();
        if (isUp) {
          for (const some of slice([...callers])) {
            for (const [caller, of] of await within(shared.standings(new Map(some)), timeoutMs * PATIENCE)) standings.set(caller, of);
          }
          return standings;
        }
      } catch {
        // Away since just now.
      }
      return local === undefined ? new Map() : local.standings(callers);
    },
    async close() {
      clearTimeout(probeTimer);
      const told = new Promise<void>((resolve) => {
        onTold = resolve;
      });
      if (isTelling) await told;
      isClosed = true;
      await Promise.all([shared.close(), local?.close()]);
    },
  };
}

/** A lease as the local store shall see it: without what the shared one has debited. */
function sinceTold({ running, told }: Granted): Running {
  const { tokens, nanoUsd } = running.spent;
  return { ...running, spent: { tokens: Math.max(0, tokens - told.tokens), nanoUsd: Math.max(0, nanoUsd - told.nanoUsd) } };
}

function slice<T>(all: readonly T[]): T[][] {
  return Array.from({ length: Math.ceil(all.length / SLICE) }, (_, at) => all.slice(at * SLICE, (at + 1) * SLICE));
}

function union<T>(one: ReadonlySet<T>, other: ReadonlySet<T>): ReadonlySet<T> {
  return other.size === 0 ? one : new Set([...one, ...other]);
}

/** First in, first out; the oldest is lost where there is no room. */
function createBoundedQueue<T>(most: number) {
  let items: T[] = [];
  let from = 0;
  let lost = 0;

  function take(count: number): T[] {
    const taken = items.slice(from, from + count);
    from += taken.length;
    if (from * 2 > items.length) {
      items = items.slice(from);
      from = 0;
    }
    return taken;
  }

  return {
    take,
    get size() {
      return items.length - from;
    },
    get lost() {
      return lost;
    },
    push(item: T): void {
      items.push(item);
      if (items.length - from > most) lost += take(1).length;
    },
  };
}

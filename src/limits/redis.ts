// What callers use, counted in Redis or Valkey for any number of replicas. Owns ioredis; every failure comes out as a StoreFailure.
import { Redis, type Result } from 'ioredis';
import { ADMIT, FREE, PROBE, RENEW, SETTLE, STAND } from './scripts.ts';
import { hasLease, standingsOf, toWhole, type Used } from './standings.ts';
import {
  type Admission,
  type Amount,
  type CallerLimits,
  type LimitName,
  type Running,
  type Standings,
  StoreFailure,
  type Verdict,
} from './store.ts';
import { TIMING, type Timing } from './windows.ts';

export interface RedisOptions extends Partial<Timing> {
  /** redis://user:password@host:port/db, or rediss://. */
  readonly url: string;
  /** For tests: calendar milliseconds, instead of the server's clock. */
  readonly now?: () => number;
}

/** A store that answers every call, or rejects it with a StoreFailure. Nothing here waits for a connection, and nothing is tried twice. */
export interface SharedStore {
  admit(admission: Admission): Promise<Verdict>;
  /** One script a caller for up to a hundred of its leases, all sent at once. */
  renew(running: readonly Running[]): Promise<ReadonlySet<string>>;
  free(running: Pick<Running, 'caller' | 'lease' | 'limits'>): Promise<void>;
  /** A settlement told twice counts once. */
  settle(running: Running): Promise<void>;
  standings(callers: ReadonlyMap<string, CallerLimits>): Promise<ReadonlyMap<string, Standings>>;
  /** Resolves where the store can be written to. */
  probe(): Promise<void>;
  /** Resolves at the first connection, or rejects with why there was none. */
  connected(): Promise<void>;
  /** Calls back whenever the connection is lost, with why. */
  onDisconnect(listener: (code: string) => void): void;
  close(): Promise<void>;
}

/** As the scripts tell it. */
type Counts = readonly [
  requests: number,
  requestsUs: number,
  tokens: number,
  tokensUs: number,
  slots: number,
  nanoUsd: number,
  budgetUs: number,
];

declare module 'ioredis' {
  interface RedisCommander<Context> {
    sluicegateAdmit(...args: string[]): Result<[LimitName | '', number, Counts], Context>;
    sluicegateRenew(...args: string[]): Result<number, Context>;
    sluicegateFree(...args: string[]): Result<null, Context>;
    sluicegateSettle(...args: string[]): Result<null, Context>;
    sluicegateStand(...args: string[]): Result<Counts, Context>;
    sluicegateProbe(key: string): Result<string, Context>;
  }
}

/** Leases in one script: a hundred take the server about two milliseconds, for which it serves no one else. */
const LEASES_AT_ONCE = 100;
/** A settlement is told again within seconds of the store's return; only one whose answer was lost at the outage's very start is older. */
const KEEP_SETTLED_MS = 600_000;
const CONNECT_TIMEOUT_MS = 1_000;
/** A server that owes an answer for so long is given up: the connection may lead nowhere any more. */
const SOCKET_TIMEOUT_MS = 1_000;
const RECONNECT_MS = { step: 50, most: 500 };

/** Connects in the background, for ever. */
export function createRedisStore(options: RedisOptions): SharedStore {
  const { windowMs, leaseMs, keepMs }: Timing = { ...TIMING, ...options };
  const times = [windowMs, leaseMs, keepMs, KEEP_SETTLED_MS].map((ms) => String(ms * 1000));
  const redis = connect(options.url);
  const clock = () => (options.now ? (options.now() * 1000).toFixed(0) : '');

  /** The arguments that all scripts begin with. */
  function argumentsFor(caller: string, limits: CallerLimits): string[] {
    const keys = ['sums', 'log', 'steps', 'live'].map((name) => `sluicegate:{${caller}}:${name}`);
    return [...keys, clock(), ...times, ...writeLimits(limits)];
  }

  return {
    async admit({ caller, limits, lease, reserve }) {
      const own = [lease, ...writeAmount(reserve)];
      const [refusedBy, waitUs, used] = await orFail(redis.sluicegateAdmit(...argumentsFor(caller, limits), ...own));
      return { refusedBy: refusedBy || undefined, retryAfterMs: waitUs / 1000, standings: standingsOf(limits, toUsed(used)) };
    },
    async renew(running) {
      const answers = gather(running).map(async ({ caller, limits, own }) => {
        const isSpent = await orFail(redis.sluicegateRenew(...argumentsFor(caller, limits), ...own));
        return isSpent === 1 ? caller : undefined;
      });
      const spent = await Promise.all(answers);
      return new Set(spent.filter((caller) => caller !== undefined));
    },
    async free({ caller, limits, lease }) {
      if (hasLease(limits)) await orFail(redis.sluicegateFree(...argumentsFor(caller, limits), lease));
    },
    async settle({ caller, limits, lease, spent }) {
      if (!hasLease(limits)) return;
      const own = [lease, ...writeAmount(spent)];
      await orFail(redis.sluicegateSettle(...argumentsFor(caller, limits), ...own));
    },
    async standings(callers) {
      const answers = Array.from(callers, async ([caller, limits]) => {
        const used = await orFail(redis.sluicegateStand(...argumentsFor(caller, limits)));
        return [caller, standingsOf(limits, toUsed(used))] as const;
      });
      return new Map(await Promise.all(answers));
    },
    async probe() {
      await orFail(redis.sluicegateProbe('sluicegate:probe'));
    },
    connected: () => firstOf(redis),
    onDisconnect: (listener) => void redis.on('close', () => listener('DISCONNECTED')),
    async close() {
      // What was written goes out first.
      redis.disconnect();
    },
  };
}

function connect(url: string): Redis {
  const redis = new Redis(url, {
    connectionName: 'sluicegate',
    disableClientInfo: true,
    // A command that cannot be sent now fails now; one that was sent is not sent again by anyone but its owner.
    enableOfflineQueue: false,
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 0,
    enableReadyCheck: false,
    connectTimeout: CONNECT_TIMEOUT_MS,
    disconnectTimeout: 250,
    socketTimeout: SOCKET_TIMEOUT_MS,
    keepAlive: 10_000,
    retryStrategy: (times) => Math.min(times * RECONNECT_MS.step, RECONNECT_MS.most),
    // After a failover the name may lead to the new master.
    reconnectOnError: (error) => error.message.startsWith('READONLY'),
  });
  // Told by what each command's failure says; without a listener ioredis would print it, address and all.
  redis.on('error', () => undefined);
  const commands = { Admit: ADMIT, Renew: RENEW, Free: FREE, Settle: SETTLE, Stand: STAND };
  for (const [name, lua] of Object.entries(commands)) redis.defineCommand(`sluicegate${name}`, { lua, numberOfKeys: 4 });
  redis.defineCommand('sluicegateProbe', { lua: PROBE, numberOfKeys: 1 });
  return redis;
}

function firstOf(redis: Redis): Promise<void> {
  if (redis.status === 'ready') return Promise.resolve();
  return new Promise((resolve, reject) => {
    const onReady = () => {
      redis.off('error', onError);
      resolve();
    };
    const onError = (error: unknown) => {
      redis.off('ready', onReady);
      reject(toFailure(error));
    };
    redis.once('ready', onReady);
    redis.once('error', onError);
  });
}

function writeAmount(amount: Amount): [string, string] {
  const { tokens, nanoUsd } = toWhole(amount);
  return [String(tokens), String(nanoUsd)];
}

function writeLimits({ requestsPerMinute, tokensPerMinute, concurrentStreams, budget }: CallerLimits): string[] {
  const counts = [requestsPerMinute, tokensPerMinute, concurrentStreams, budget?.nanoUsd].map((limit) => String(limit ?? ''));
  return [...counts, budget?.per ?? ''];
}

/** Leases of one caller under the same limits, so many at a time. */
function gather(running: readonly Running[]) {
  const batches: { caller: string; limits: CallerLimits; own: string[] }[] = [];
  const open = new Map<string, (typeof batches)[number]>();
  for (const { caller, limits, lease, spent } of running) {
    if (!hasLease(limits)) continue;
    const key = [caller, ...writeLimits(limits)].join(' ');
    let batch = open.get(key);
    if (batch === undefined || batch.own.length >= LEASES_AT_ONCE * 3) {
      batch = { caller, limits, own: [] };
      batches.push(batch);
      open.set(key, batch);
    }
    batch.own.push(lease, ...writeAmount(spent));
  }
  return batches;
}

function toUsed([requests, requestsUs, tokens, tokensUs, slots, nanoUsd, budgetUs]: Counts): Used {
  return {
    requests,
    requestsResetMs: requestsUs / 1000,
    tokens,
    tokensResetMs: tokensUs / 1000,
    slots,
    nanoUsd,
    budgetResetMs: budgetUs / 1000,
  };
}

async function orFail<T>(answer: Promise<T>): Promise<T> {
  try {
    return await answer;
  } catch (error) {
    throw toFailure(error);
  }
}

/** The code of a system's error, or the first word of a server's: never its text, which may quote a command or an address. */
function toFailure(error: unknown): StoreFailure {
  const { code, message } = error as { code?: unknown; message?: unknown };
  if (typeof code === 'string' && /^[A-Z_]+$/.test(code)) return new StoreFailure(code);
  return new StoreFailure(/^[A-Z]{3,}(?= )/.exec(String(message))?.[0] ?? 'DISCONNECTED');
}

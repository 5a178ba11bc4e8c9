// The primary: starts workers, puts others in the place of those that die, and keeps what all have in common. It serves no request.
import cluster, { type Worker } from 'node:cluster';
import { once } from 'node:events';
import { setTimeout as delayFor } from 'node:timers/promises';
import type { Config } from '../config.ts';
import type { Served } from '../gateway.ts';
import { createNotice } from '../http/notice.ts';
import { createMemoryStore } from '../limits/memory.ts';
import { answerFrom } from '../limits/remote.ts';
import { faultFacts, type Logger } from '../telemetry/log.ts';
import { createInstruments, type Extent } from '../telemetry/registry.ts';
import { catchAcceptor } from './acceptor.ts';
import type { PrimaryCalls, Urls, WorkerCalls } from './calls.ts';
import { gatherMetrics } from './gather.ts';
import { type Call, channelOf, createLine, errorOf } from './line.ts';
import { createPauses } from './pauses.ts';
import { choosePorts } from './ports.ts';
import { shareOf } from './share.ts';
import { gatherViews } from './views.ts';

export interface WorkersParts {
  readonly config: Config;
  readonly log: Logger;
  /** How many; at least two, or there would be no need. */
  readonly count: number;
  /** The arguments with which this program becomes a worker. */
  readonly args: readonly string[];
}

interface Member {
  readonly seat: number;
  readonly worker: Worker;
  readonly call: Call<WorkerCalls>;
  read(extent: Extent): ReturnType<WorkerCalls['read']>;
  look(): ReturnType<WorkerCalls['look']>;
  endStream(id: string): ReturnType<WorkerCalls['endStream']>;
}

/** A worker that takes longer to say that it leaves is not waited for. */
const LEAVING_MS = 1_000;
/** For connections that were taken just before to have reached their worker. */
const HAND_OVER_MS = 50;
/** How often other free ports are tried where somebody took one in the milliseconds since it was found. */
const PORT_TRIES = 3;

/**
 * Starts workers: all listen when it resolves.
 * @throws what kept the first of them from serving (EADDRINUSE, EACCES, …) with none left
 */
export async function startWorkers(parts: WorkersParts): Promise<Served> {
  const { server, ops } = parts.config;
  const given = [server.listen.port, ops.listen.port].filter((port) => port !== 0);
  for (let tries = 1; ; tries++) {
    try {
      return await supervise({ ...parts, config: await choosePorts(parts.config) });
    } catch (error) {
      const { code, port = 0 } = error as NodeJS.ErrnoException & { port?: number };
      if (code !== 'EADDRINUSE' || given.includes(port) || tries === PORT_TRIES) throw error;
    }
  }
}

async function supervise({ config: initial, log, count, args }: WorkersParts): Promise<Served> {
  const { listen } = initial.server;
  const opsListen = initial.ops.listen;
  const notice = createNotice(() => performance.now());
  const memory = createMemoryStore();
  const metrics = gatherMetrics(createInstruments());
  const views = gatherViews();
  const acceptor = catchAcceptor();
  const members = new Set<Member>();
  /** Those of them that have begun to serve. */
  const serving = new WeakSet<Member>();
  /** Who has each seat; nobody for a moment where one has died. */
  const seats: (Member | undefined)[] = [];
  const pauses = Array.from({ length: count }, createPauses);
  const timers = new Set<NodeJS.Timeout>();
  const started = Promise.withResolvers<Urls>();
  let servingCount = 0;
  let config = initial;
  let isReloadFailed = false;
  let state: 'starting' | 'serving' | 'closing' = 'starting';
  /** Who says on `/readyz` that all are leaving. */
  const leaving = new Set<Member>();
  const allLeave = Promise.withResolvers<void>();
  let noticed: Promise<void> | undefined;

  // Each connection to the next worker: streams are long, and whoever wakes first (SCHED_NONE) would soon have most of them.
  // With SO_REUSEPORT, a second gateway on the port would be no error but take half of the connections.
  cluster.schedulingPolicy = cluster.SCHED_RR;
  cluster.setupPrimary({ args: [...args], serialization: 'advanced' });

  /** @throws where the system has no room for another process */
  function fork(seat: number): void {
    const worker = cluster.fork();
    const call: Call<WorkerCalls> = createLine<WorkerCalls>(
      channelOf(worker),
      callsOf(() => member),
    );
    const member: Member = {
      ...{ seat, worker, call },
      read: (extent) => call('read', extent),
      look: () => call('look'),
      endStream: (id) => call('endStream', id),
    };
    members.add(member);
    seats[seat] = member;
    worker.once('exit', (code: number | null, signal: string | null) => onExit(member, signal ?? code));
    // It could not be started, or not be reached.
    worker.on('error', ({ code }: NodeJS.ErrnoException) => {
      worker.process.kill('SIGKILL');
      onExit(member, code ?? 'unknown');
    });
  }

  function callsOf(member: () => Member): PrimaryCalls {
    return {
      hello: () => ({ config: shareOf(config, count, member().seat), isReloadFailed }),
      serving(urls) {
        metrics.add(member());
        views.add(member());
        serving.add(member());
        servingCount += 1;
        if (servingCount === count) started.resolve(urls);
        else if (state === 'serving') log.info({ pid: member().worker.process.pid }, 'another worker serves');
      },
      failed(failure) {
        started.reject(errorOf(failure));
        if (state === 'serving') log.error({ code: failure.code }, 'a worker could not serve');
      },
      faulted: () => replace(member()),
      farewell: (counts) => metrics.farewell(member(), counts),
      count: (questions) => answerFrom(memory, questions),
      asked: notice.asked,
      async noticed() {
        if (state !== 'closing') return;
        leaving.add(member());
        lookWhoLeaves();
        noticed ??= Promise.race([allLeave.promise, delayFor(LEAVING_MS, undefined, { ref: false })])
          .then(notice.given)
          .then(() => acceptor.close(config.server.listen.port))
          .then(() => delayFor(HAND_OVER_MS, undefined, { ref: false }));
        await noticed;
      },
      scrape: metrics.scrape,
      look: views.look,
      endStream: views.endStream,
    };
  }

  /** Until all do, an answer on `/readyz` may be one that nobody is to count. */
  function lookWhoLeaves(): void {
    if (members.size > 0 && leaving.size >= members.size) allLeave.resolve();
  }

  function onExit(member: Member, end: string | number | null): void {
    if (!members.delete(member)) return;
    metrics.bury(member);
    views.bury(member);
    leaving.delete(member);
    lookWhoLeaves();
    started.reject(new Error(`a worker ended (${end}) before it served`));
    if (state === 'starting') return;
    const { pid } = member.worker.process;
    if (state === 'serving' && seats[member.seat] === member) log.error({ pid, end }, 'a worker died; another takes its place');
    else if (end !== 0) log.error({ pid, end }, 'a worker died');
    replace(member);
  }

  /** Once for each; a worker in doubt is replaced before it has ended. */
  function replace(member: Member): void {
    if (seats[member.seat] !== member) return;
    seats[member.seat] = undefined;
    if (state === 'serving') fill(member.seat);
  }

  function fill(seat: number): void {
    const pause = pauses[seat]?.(performance.now());
    if (pause?.isLoop) log.fatal({ seat }, 'workers die again and again in this place; the next ones come ever later');
    const timer = setTimeout(() => {
      timers.delete(timer);
      try {
        fork(seat);
      } catch (error) {
        log.error(faultFacts(error), 'no worker could be started');
        fill(seat);
      }
    }, pause?.forMs);
    timers.add(timer);
  }

  async function killAll(doomed: readonly Member[]): Promise<void> {
    for (const member of doomed) members.delete(member);
    const gone = doomed.map(({ worker }) => once(worker, 'exit'));
    for (const { worker } of doomed) worker.process.kill('SIGKILL');
    await Promise.all(gone);
  }

  async function closeMember({ worker, call }: Member, drainMs: number | undefined): Promise<void> {
    const gone = once(worker, 'exit');
    call('close', drainMs).catch(() => undefined);
    const [code, signal]: unknown[] = await gone;
    if (code !== 0) throw new Error(`a worker ended (${String(signal ?? code)}) while it drained`);
  }

  function endSupervision(): void {
    for (const timer of timers) clearTimeout(timer);
    metrics.close();
  }

  for (let seat = 0; seat < count; seat += 1) fork(seat);
  const urls = await started.promise.catch(async (error) => {
    state = 'closing';
    await killAll([...members]);
    endSupervision();
    throw error;
  });
  state = 'serving';

  return {
    ...urls,
    async reload(next) {
      // Listeners stay where they are, for those too that start later.
      config = { ...next, server: { ...next.server, listen }, ops: { ...next.ops, listen: opsListen } };
      isReloadFailed = false;
      log.level = config.log.level;
      const take = async ({ seat, worker, call }: Member) => {
        // One that does not take it is none of ours any more; its successor begins with it.
        await call('reload', shareOf(config, count, seat)).catch(() => worker.process.kill('SIGKILL'));
      };
      await Promise.all([...members].map(take));
    },
    reloadFailed() {
      isReloadFailed = true;
      for (const { call } of members) call('reloadFailed').catch(() => undefined);
    },
    async close(drainMs) {
      state = 'closing';
      for (const timer of timers) clearTimeout(timer);
      // One that is still to serve might wait for ever for the port that those who leave give up; it has nothing to lose.
      await killAll([...members].filter((member) => !serving.has(member)));
      const ends = await Promise.allSettled([...members].map((member) => closeMember(member, drainMs)));
      endSupervision();
      for (const end of ends) if (end.status === 'rejected') throw end.reason;
    },
  };
}

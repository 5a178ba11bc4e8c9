// Monotonic time, one coarse beat on which all live streams judge their deadlines, and turns of the loop that stay short.
import { performance } from 'node:perf_hooks';
import { Roster, type Seat } from '../roster.ts';

/** What has deadlines. */
export interface Judged {
  judge(nowMs: number): void;
}

export interface Clock {
  /** Monotonic milliseconds: a jump of the wall clock changes no duration and no deadline. */
  now(): number;
  /** Has it judged on every beat, until it leaves its seat. */
  onBeat(judged: Judged): Seat<Judged>;
  /**
   * The same; but where there are more of these than a beat has turns, they are judged in turn. For answers that flow, whose deadlines
   * are many beats long: to touch each of thousands ten times a second costs more than a twentieth of all that is done for them.
   */
  inTurn(judged: Judged): Seat<Judged>;
  /**
   * Runs a task: at once, or, where this turn of the loop has had its share of such tasks, in one of the next turns, in
   * their order. For what thousands of requests can want at one instant.
   */
  spread(task: () => void): void;
  /** Stops the beat, and runs what is still spread. */
  close(): void;
}

/** Deadlines are seconds to minutes; ten beats a second judge them finely enough at next to no cost. */
const BEAT_MS = 100;
/** So many of those that are judged in turn: over 5,000 streams, each is looked at twice a second. */
const MAX_IN_TURN = 1000;
/** What a beat takes of one turn of the loop: of thousands of streams all would delay everybody's next event by milliseconds. */
const BEAT_SHARE_MS = 0.3;
/** The share of one turn. 2,000 clients that leave at one instant cost 0.2 s of work, which no other stream shall wait for. */
const SHARE_MS = 2;

/**
 * The process's clock. A beat is judged after the loop has polled its sockets: what arrived while the process was
 * stopped or busy is read before anyone is found to have been silent.
 */
export function createClock(beatMs: number = BEAT_MS, onFault: (fault: unknown) => void = () => undefined): Clock {
  const always = new Roster<Judged>();
  const flowing = new Roster<Judged>();
  let round: Iterator<Seat<Judged>> | undefined; // through those that flow; over several beats, where they are many
  const now = () => performance.now();
  const spread = createSpread(now);

  let isJudging = false;

  /** Whom a beat judges. */
  function* due(): Generator<Seat<Judged>> {
    yield* always.seats();
    round ??= flowing.seats();
    for (let judged = 0; judged < MAX_IN_TURN; judged++) {
      const next = round.next();
      if (next.done) {
        round = undefined;
        return;
      }
      yield next.value;
    }
  }

  /** A few in each turn, all by the time at which the beat began: what has come by then has been read. */
  function beat(nowMs: number, waiting: Iterator<Seat<Judged>>): void {
    const untilMs = now() + BEAT_SHARE_MS;
    for (let next = waiting.next(); !next.done; next = waiting.next()) {
      judge(next.value, nowMs);
      if (now() < untilMs) continue;
      setImmediate(beat, nowMs, waiting);
      return;
    }
    isJudging = false;
  }

  function judge(seat: Seat<Judged>, nowMs: number): void {
    try {
      seat.member.judge(nowMs);
    } catch (fault) {
      // One stream's fault is not the others': it is judged no more.
      seat.leave();
      onFault(fault);
    }
  }

  const timer = setInterval(() => {
    if (isJudging) return;
    // A round that is not through holds on to whoever was there as it began.
    if (flowing.size === 0) round = undefined;
    if (always.size + flowing.size === 0) return;
    isJudging = true;
    setImmediate(beat, now(), due());
  }, beatMs);
  timer.unref();

  return {
    now,
    onBeat: (judged) => always.enter(judged),
    inTurn: (judged) => flowing.enter(judged),
    spread: spread.run,
    close() {
      clearInterval(timer);
      spread.finish();
    },
  };
}

/** A queue from which each turn of the loop takes no more than its share. */
function createSpread(now: () => number) {
  const waiting: (() => void)[] = [];
  let spentMs = 0;
  let isTurnMarked = false;

  function work(task: () => void): void {
    const startedAtMs = now();
    try {
      task();
    } finally {
      spentMs += now() - startedAtMs;
    }
  }

  function markTurn(): void {
    if (isTurnMarked) return;
    isTurnMarked = true;
    setImmediate(nextTurn);
  }

  function nextTurn(): void {
    isTurnMarked = false;
    spentMs = 0;
    // Marked first: a task that throws takes no other with it.
    if (waiting.length > 0) markTurn();
    while (waiting.length > 0 && spentMs < SHARE_MS) work(waiting.shift()!);
  }

  return {
    run(task: () => void): void {
      markTurn();
      if (waiting.length > 0 || spentMs >= SHARE_MS) waiting.push(task);
      else work(task);
    },
    finish(): void {
      while (waiting.length > 0) work(waiting.shift()!);
    },
  };
}

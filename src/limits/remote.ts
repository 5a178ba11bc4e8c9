// The count that another process keeps: a store like any other, whose questions go there, all those of a turn of the loop at once.
import type { Admission, CallerLimits, LimitStore, Running, Standings, Verdict } from './store.ts';

/** One call of a store, as it travels. */
export type Question =
  | { readonly kind: 'admit'; readonly about: Admission }
  | { readonly kind: 'renew'; readonly about: readonly Running[] }
  | { readonly kind: 'free'; readonly about: Pick<Running, 'caller' | 'lease' | 'limits'> }
  | { readonly kind: 'settle'; readonly about: Running }
  | { readonly kind: 'standings'; readonly about: ReadonlyMap<string, CallerLimits> };

/** Undefined to what is told and not asked. */
export type Answer = Verdict | ReadonlySet<string> | ReadonlyMap<string, Standings> | undefined;

/** How many leases are renewed at once, so that admissions come between: 5,000 took the other process some 15 ms. */
const SLICE = 500;

interface Asked {
  readonly question: Question;
  resolve(answer: Answer): void;
  reject(failure: Error): void;
}

/**
 * A store whose count is kept elsewhere. What is asked and told there is counted in that order.
 * @param ask carries questions there, and the answers, in the same order, back
 */
export function createRemoteStore(ask: (questions: readonly Question[]) => Promise<readonly Answer[]>): LimitStore {
  let asked: Asked[] = [];

  function put(question: Question): Promise<Answer> {
    // After all sockets that have something to say have been read: what each of them asks travels together.
    if (asked.length === 0) setImmediate(send);
    return new Promise((resolve, reject) => asked.push({ question, resolve, reject }));
  }

  function send(): void {
    const batch = asked;
    asked = [];
    ask(batch.map(({ question }) => question)).then(
      (answers) => {
        for (const [at, { resolve }] of batch.entries()) resolve(answers[at]);
      },
      (failure: Error) => {
        for (const { reject } of batch) reject(failure);
      },
    );
  }

  /** Who cannot be told has died, and this process with it. */
  function tell(question: Question): void {
    put(question).catch(() => undefined);
  }

  // Only what is named travels: whoever calls may know more, such as an exchange with its sockets.
  return {
    admit: ({ caller, limits, lease, reserve }) => put({ kind: 'admit', about: { caller, limits, lease, reserve } }) as Promise<Verdict>,
    async renew(running) {
      const spent = new Set<string>();
      for (let at = 0; at < running.length; at += SLICE) {
        const about = running.slice(at, at + SLICE).map(pickRunning);
        for (const caller of (await put({ kind: 'renew', about })) as ReadonlySet<string>) spent.add(caller);
      }
      return spent;
    },
    free: ({ caller, lease, limits }) => tell({ kind: 'free', about: { caller, lease, limits } }),
    settle: (running) => tell({ kind: 'settle', about: pickRunning(running) }),
    standings: (callers) => put({ kind: 'standings', about: callers }) as Promise<ReadonlyMap<string, Standings>>,
    async close() {},
  };
}

function pickRunning({ caller, limits, lease, spent }: Running): Running {
  return { caller, limits, lease, spent };
}

/** The other side: puts the questions to the store that counts, in their order. */
export function answerFrom(store: LimitStore, questions: readonly Question[]): Promise<Answer[]> {
  return Promise.all(questions.map((question) => answer(store, question)));
}

function answer(store: LimitStore, { kind, about }: Question): Promise<Answer> | undefined {
  if (kind === 'admit') return store.admit(about);
  if (kind === 'renew') return store.renew(about);
  if (kind === 'standings') return store.standings(about);
  if (kind === 'free') store.free(about);
  else store.settle(about);
  return undefined;
}

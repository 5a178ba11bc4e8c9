// What all processes show of what is under way, as one gateway's; and an end to a stream, whichever of them has it.
import { add, joinViews, type Totals, type View } from '../telemetry/view.ts';
import { inTime } from './line.ts';

/** A process that has streams. */
export interface Watched {
  look(): Promise<View>;
  endStream(id: string): Promise<boolean>;
}

export interface Views {
  add(process: Watched): void;
  /** It is gone; what it had counted when it was last looked at stays. */
  bury(process: Watched): void;
  /** @throws where none answers */
  look(): Promise<View>;
  endStream(id: string): Promise<boolean>;
}

/** A process that does not answer in this time is busy; it is shown as it was, and asked for nothing more. */
const ANSWER_MS = 2_000;

export function gatherViews(): Views {
  const seen = new Map<Watched, View | undefined>();
  const departed: Totals = { requests: 0, outcomes: {}, inputTokens: 0, outputTokens: 0, costUsd: 0 };

  async function look(process: Watched): Promise<void> {
    const view = await inTime(process.look(), ANSWER_MS);
    if (view !== undefined && seen.has(process)) seen.set(process, view);
  }

  return {
    add: (process) => void seen.set(process, undefined),
    bury(process) {
      const last = seen.get(process);
      if (last !== undefined) add(departed, last.totals);
      seen.delete(process);
    },
    async look() {
      await Promise.all([...seen.keys()].map(look));
      const [first, ...others] = [...seen.values()].filter((view) => view !== undefined);
      if (first === undefined) throw new Error('no worker answers');
      return joinViews([first, ...others], departed);
    },
    async endStream(id) {
      const ends = await Promise.all([...seen.keys()].map((process) => inTime(process.endStream(id), ANSWER_MS)));
      return ends.includes(true);
    },
  };
}

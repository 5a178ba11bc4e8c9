// What the primary and its workers serve each other.
import type { Config } from '../config.ts';
import type { Answer, Question } from '../limits/remote.ts';
import type { Extent, Page, Snapshot } from '../telemetry/registry.ts';
import type { View } from '../telemetry/view.ts';
import type { Failure } from './line.ts';

/** What a new worker needs to know. */
export interface Welcome {
  /** Its share of the configuration. */
  readonly config: Config;
  /** Whether the last configuration was not taken. */
  readonly isReloadFailed: boolean;
}

/** Where a worker listens, which is where all do. */
export interface Urls {
  readonly url: string;
  readonly opsUrl: string;
}

export type PrimaryCalls = {
  /** A worker runs, and asks what to do. */
  hello(): Welcome;
  serving(urls: Urls): void;
  /** It cannot serve. */
  failed(failure: Failure): void;
  /** A fault leaves it in doubt: another is to take its place, and it drains. */
  faulted(): void;
  /** It is about to end; these are its last counts. */
  farewell(counts: Snapshot): void;
  /** Puts questions to the one count of limits. */
  count(questions: readonly Question[]): Promise<Answer[]>;
  /** `/readyz` was asked. */
  asked(): void;
  /** Resolves when whoever asks that has heard that all are leaving. */
  noticed(): Promise<void>;
  scrape(accept: string): Promise<Page>;
  look(): Promise<View>;
  endStream(id: string): Promise<boolean>;
};

export type WorkerCalls = {
  reload(config: Config): Promise<void>;
  reloadFailed(): Promise<void>;
  read(extent: Extent): Promise<Snapshot>;
  look(): Promise<View>;
  endStream(id: string): Promise<boolean>;
  /** Drains, by default for `server.drain`, and ends the process. */
  close(drainMs?: number): Promise<void>;
};

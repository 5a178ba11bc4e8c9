// What the two generators are asked to do, and what the load tells when it is done.
import type { Usage } from './accounting.ts';
import type { Quantiles } from './histogram.ts';

/** How the upstream answers streamed calls from now on. */
export interface UpstreamPlan {
  /** Events of one stream; the usage, `[DONE]` and the end follow the last one at its place in time. */
  readonly events: number;
  /** Between events of one stream; 0: as fast as the socket takes them. */
  readonly intervalMs: number;
  /** From the request to the first event; the head goes out at once. */
  readonly firstTokenMs: number;
}

export interface LoadPlan {
  readonly port: number;
  /** What a contender wants said beyond a plain call. */
  readonly headers: readonly string[];
  readonly path: string;
  readonly model: string;
  /** false: short calls, answered at once in one piece. */
  readonly isStreamed: boolean;
  /** Connections, each with one call at a time; a new call follows the last one's end on the same connection. */
  readonly connections: number;
  /** Over so long the first calls are spread; 0: all at one instant, and then in step. */
  readonly spreadMs: number;
  readonly promptBytes: number;
  readonly warmupMs: number;
  /** Figures are of this time only. */
  readonly measureMs: number;
  /** The run ends early when so many calls have ended, one way or the other. */
  readonly maxCalls: number;
  /** Of the calls, so many are left by their client in the middle, by reset or by FIN in turn. */
  readonly abortShare: number;
  /** Of the connections, so many ask for a flood and take 16 KiB of it ten times a second. */
  readonly slowShare: number;
  /** The contender's processes. */
  readonly pids: readonly number[];
  readonly upstreamPid: number;
}

export interface LoadResult {
  readonly seconds: number;
  readonly events: number;
  /** Calls that ended whole. */
  readonly calls: number;
  readonly aborted: number;
  /** Calls that went wrong: another status than 200, a connection refused, or ended before the answer's end. */
  readonly failed: number;
  /** From the write of an event at the upstream to its read at the client. */
  readonly event: Quantiles;
  /** Events that took longer than 50 ms. */
  readonly lateEvents: number;
  /** From the write of the request to the first byte of the answer. */
  readonly firstByte: Quantiles;
  /** From the write of the request to the first event. */
  readonly firstEvent: Quantiles;
  /** From the write of the request to the answer's last byte. */
  readonly call: Quantiles;
  /** CPU of the contender in the measured time; memory at its end. */
  readonly contender: Usage;
  /** Memory of the contender before the first connection. */
  readonly rssBeforeKb: number;
  /** CPU of the generators in the measured time, in cores: near 1 on one core, they are what is measured. */
  readonly upstreamCores: number;
  readonly loadCores: number;
  /** What other processes of the machine used, and what the hypervisor took, in cores. */
  readonly foreignCores: number;
}

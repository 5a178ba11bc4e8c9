// Traces as the configuration in effect wants them: to this collector, to another one after a reload, or none.
import type { Traces } from '../config.ts';
import type { Logger } from './log.ts';
import type { OutboxEvents } from './otlp.ts';
import { openTraces, type Tracer } from './traces.ts';

export interface Tracing extends Tracer {
  /** What is under way may send its spans to the next collector. */
  change(settings: Traces | undefined): Promise<void>;
}

export interface TracingParts {
  readonly version: string;
  readonly log: Logger;
  readonly onSpans: OutboxEvents['onSpans'];
  onFault(fault: unknown): void;
}

/** @param initial undefined: nothing is traced */
export async function openTracing(initial: Traces | undefined, { version, log, onSpans, onFault }: TracingParts): Promise<Tracing> {
  let tracer = await open(initial);

  async function open(settings: Traces | undefined): Promise<Tracer | undefined> {
    return settings && openTraces(settings, version, { onSpans, onCollector: tellCollector });
  }

  function tellCollector(isUp: boolean, code: string | undefined): void {
    if (isUp) log.info('the collector of traces is back');
    else log.error({ code }, 'the collector of traces is away: spans are dropped');
  }

  return {
    begin: (exchange, headers) => tracer?.begin(exchange, headers),
    record: (exchange) => tracer?.record(exchange),
    async change(settings) {
      const before = tracer;
      tracer = await open(settings);
      void before?.close().catch(onFault);
    },
    close: async () => tracer?.close(),
  };
}

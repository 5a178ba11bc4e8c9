// Sessions over a WebSocket: the Realtime API, and the Responses API where it is spoken so. Each of their responses has a usage of its own.
import { indexOf, isObject, type JsonObject, openaiError, type StreamError, type Usage } from './dialect.ts';
import { createLanes, type Lane } from './lanes.ts';
import { readOpenaiUsage } from './usage.ts';

/** The text of what is not finished yet: without a usage, it may have to be counted. */
export interface Unfinished {
  readonly contentCount: number;
  readonly textLength: number;
  readonly lanes: readonly Lane[];
  readonly model: string | undefined;
}

/** Reads the events of one session. Strings come in as latin1. */
export interface SessionReader {
  read(data: string): void;
  /** The sum of what finished responses, and transcriptions of what was heard, were reported to have used. */
  readonly finished: Usage | undefined;
  /** Another object for each response. */
  readonly underWay: Unfinished;
  /** In all. */
  readonly contentCount: number;
  readonly textLength: number;
  readonly model: string | undefined;
  /** Whether messages are events at all. */
  readonly hasEvents: boolean;
  /** The event that tells a client why its session ends here. */
  errorEvent(error: StreamError): string;
}

/** https://platform.openai.com/docs/api-reference/realtime-server-events, and the terminal events of Responses. */
const TERMINAL = new Set(['response.done', 'response.completed', 'response.incomplete', 'response.failed']);
const HEARD = 'conversation.item.input_audio_transcription.completed';

export function createSessionReader(): SessionReader {
  let finished: Usage | undefined;
  let underWay = createUnfinished();
  let model: string | undefined;
  let contentBefore = 0;
  let lengthBefore = 0;
  let hasEvents = false;

  /** A response without a usage stays what it was: its text may have to be counted. */
  function finish(reported: unknown): void {
    if (!add(reported)) return;
    contentBefore += underWay.contentCount;
    lengthBefore += underWay.textLength;
    underWay = createUnfinished(model);
  }

  function add(reported: unknown): boolean {
    const usage = readSessionUsage(reported);
    if (usage !== undefined) finished = finished === undefined ? usage : sumOf(finished, usage);
    return usage !== undefined;
  }

  function interpret(event: JsonObject, type: string): void {
    const { session, response } = event;
    const named = isObject(session) ? session.model : isObject(response) ? response.model : undefined;
    if (model === undefined && typeof named === 'string') model = underWay.model = named;
    if (TERMINAL.has(type)) finish(isObject(response) ? response.usage : undefined);
    else if (type === HEARD) add(event.usage);
    else if (type.startsWith('response.')) underWay.read(type, event);
  }

  return {
    read(data) {
      const event = parse(data);
      if (event === undefined || typeof event.type !== 'string') return;
      hasEvents = true;
      interpret(event, event.type);
    },
    errorEvent: (error) =>
      JSON.stringify({ type: 'error', event_id: `event_${error.code}`, error: { ...openaiError(error), event_id: null } }),
    get finished() {
      return finished;
    },
    get underWay() {
      return underWay;
    },
    get contentCount() {
      return contentBefore + underWay.contentCount;
    },
    get textLength() {
      return lengthBefore + underWay.textLength;
    },
    get model() {
      return model;
    },
    get hasEvents() {
      return hasEvents;
    },
  };
}

function createUnfinished(named?: string) {
  const lanes = createLanes();
  return {
    contentCount: 0,
    model: named,
    get lanes() {
      return lanes.all;
    },
    get textLength() {
      return lanes.textLength;
    },
    read(type: string, event: JsonObject): void {
      const { delta, item } = event;
      const key = `${event.response_id} ${indexOf(event.output_index)} ${indexOf(event.content_index)} ${type}`;
      if (type.endsWith('.delta') && typeof delta === 'string') {
        this.contentCount += 1;
        if (!type.endsWith('audio.delta')) lanes.of(key).addDecoded(delta);
      } else if (type === 'response.output_item.added' && isObject(item) && typeof item.name === 'string') {
        lanes.of(key).addDecoded(item.name);
      }
    },
  };
}

/** Undefined for seconds of audio, which some transcriptions are billed by. */
function readSessionUsage(reported: unknown): Usage | undefined {
  const usage = readOpenaiUsage(reported);
  const { input_token_details: details } = isObject(reported) ? reported : {};
  const cached = isObject(details) && isObject(details.cached_tokens_details) ? details.cached_tokens_details.audio_tokens : 0;
  if (usage !== undefined && typeof cached === 'number' && cached > 0) usage.cachedAudioInput = cached;
  return usage;
}

function sumOf(one: Usage, other: Usage): Usage {
  const sum = { ...one };
  for (const [kind, tokens] of Object.entries(other) as [keyof Usage, number][]) sum[kind] = (sum[kind] ?? 0) + tokens;
  return sum;
}

function parse(data: string): JsonObject | undefined {
  try {
    const event: unknown = JSON.parse(Buffer.from(data, 'latin1').toString('utf8'));
    return isObject(event) ? event : undefined;
  } catch {
    return undefined;
  }
}

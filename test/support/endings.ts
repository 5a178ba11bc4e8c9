// The table of endings: what ends a request, in which phase, and what each side then sees. Played by a test, and written out as docs/endings.md.
import type { UpstreamRequest } from './upstream.ts';
import type { WireClient } from './wire.ts';

/** How the answer ends for the client. */
export type ClientSees =
  | { readonly status: number; readonly code: string }
  | { readonly event: string }
  | 'the answer, complete'
  | 'a cut: what came, and no proper end'
  | 'nothing: it has left'
  | 'its connection closed';

/** How the connection ends for the upstream. */
export type UpstreamSees = 'nothing' | 'its connection closed' | 'its own doing' | 'a call that ended';

export interface Scene {
  readonly client: WireClient;
  /** The request as the upstream has it; absent where the upstream never hears of it. */
  readonly request: UpstreamRequest;
  /** Shuts the gateway down. */
  drain(): void;
  /** Ends the request as an operator does, from the ops listener. */
  end(): Promise<void>;
}

export interface Ending {
  /** The cases of the catalogue that it stands for. */
  readonly ids: string;
  readonly phase: 'connect' | 'upload' | 'headers' | 'stream' | 'backpressure';
  readonly cause: string;
  readonly client: ClientSees;
  readonly upstream: UpstreamSees;
  readonly outcome: string;
  /** What is asked for; a chat stream if absent. */
  readonly call?: { readonly target: string; readonly body?: string };
  readonly settings?: Record<string, object>;
  /** What stands at the upstream's address, where that is no upstream: something that accepts and stays mute, nothing, or not even an address. */
  readonly instead?: 'mute' | 'refused' | 'nowhere';
  /** What brings the end about, from where the phase has been reached. */
  act(scene: Scene): void | Promise<void>;
}

const event = (data: object) => `data: ${JSON.stringify(data)}\n\n`;
export const FIRST_EVENT = event({ choices: [{ index: 0, delta: { content: 'Hello' } }] });
const short = (name: string, value: string) => ({ upstream: { timeouts: { [name]: value } } });
const embeddings = { target: '/v1/embeddings', body: '{"input":"x"}' };
/** Heads of answers that a scripted upstream writes itself. */
const streamHead = (framing: string) => `HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n${framing}\r\n\r\n`;
const chunked = (bytes: string) => `${Buffer.byteLength(bytes).toString(16)}\r\n${bytes}\r\n`;

const CUT = 'a cut: what came, and no proper end';
const LEFT = 'nothing: it has left';
const OWN = 'its own doing';
const CLOSED = 'its connection closed';

/** Begins a stream of one event and waits until the client has it. */
async function begin({ request, client }: Scene): Promise<void> {
  request.startSse();
  request.chunk(FIRST_EVENT);
  await client.until('Hello');
}

const inStream = (act: (scene: Scene) => void | Promise<void>) => async (scene: Scene) => {
  await begin(scene);
  await act(scene);
};

const inEvent = (act: (scene: Scene) => void) => async (scene: Scene) => {
  await begin(scene);
  scene.request.chunk('data: {"choi');
  await scene.client.until('choi');
  act(scene);
};

/** Begins an answer with this head and bytes, written raw, and waits until the client has the first event. */
const raw = (head: string, bytes: string, act: (scene: Scene) => void) => async (scene: Scene) => {
  scene.request.connection.write(streamHead(head) + bytes);
  await scene.client.until('Hello');
  act(scene);
};

export const endings: readonly Ending[] = [
  {
    ids: 'B1',
    phase: 'connect',
    cause: 'the connection is refused',
    instead: 'refused',
    client: { status: 502, code: 'upstream_unreachable' },
    upstream: 'nothing',
    outcome: 'upstream_unreachable',
    act: () => undefined,
  },
  {
    ids: 'G1',
    phase: 'connect',
    cause: 'the name does not resolve',
    instead: 'nowhere',
    client: { status: 502, code: 'upstream_unreachable' },
    upstream: 'nothing',
    outcome: 'upstream_unreachable',
    act: () => undefined,
  },
  {
    ids: 'B2',
    phase: 'connect',
    cause: 'no connection (TLS included) within `connect`',
    instead: 'mute',
    client: { status: 504, code: 'upstream_timeout' },
    upstream: CLOSED,
    outcome: 'timeout_connect',
    settings: short('connect', '40ms'),
    act: () => undefined,
  },
  {
    ids: 'A5',
    phase: 'connect',
    cause: 'the client resets',
    instead: 'mute',
    client: LEFT,
    upstream: CLOSED,
    outcome: 'client_closed',
    act: ({ client }) => client.reset(),
  },
  {
    ids: 'F2',
    phase: 'connect',
    cause: 'shutdown, and `drain` is over',
    instead: 'mute',
    client: { status: 503, code: 'draining' },
    upstream: CLOSED,
    outcome: 'drained',
    act: ({ drain }) => drain(),
  },
  {
    ids: 'operator',
    phase: 'connect',
    cause: 'its operator ends it (live page)',
    instead: 'mute',
    client: { status: 503, code: 'ended_by_operator' },
    upstream: CLOSED,
    outcome: 'rejected',
    act: ({ end }) => end(),
  },
  {
    ids: 'B3',
    phase: 'headers',
    cause: 'no headers within `firstByte`',
    client: { status: 504, code: 'upstream_timeout' },
    upstream: CLOSED,
    outcome: 'timeout_first_byte',
    settings: short('firstByte', '40ms'),
    act: () => undefined,
  },
  {
    ids: 'B4',
    phase: 'headers',
    cause: '103s for ever: they put no clock off',
    client: { status: 504, code: 'upstream_timeout' },
    upstream: CLOSED,
    outcome: 'timeout_first_byte',
    settings: short('firstByte', '60ms'),
    act: ({ request }) => drip(request, 'HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n'),
  },
  {
    ids: 'B5',
    phase: 'headers',
    cause: 'headers a byte at a time, too slowly',
    client: { status: 504, code: 'upstream_timeout' },
    upstream: CLOSED,
    outcome: 'timeout_first_byte',
    settings: short('firstByte', '60ms'),
    act({ request }) {
      request.connection.write('HTTP/1.1 200 OK\r\nx: ');
      drip(request, 'y');
    },
  },
  {
    ids: 'B3',
    phase: 'headers',
    cause: 'no headers within `total`',
    client: { status: 504, code: 'upstream_timeout' },
    upstream: CLOSED,
    outcome: 'timeout_total',
    settings: short('total', '40ms'),
    act: () => undefined,
  },
  {
    ids: 'B37',
    phase: 'headers',
    cause: 'the upstream resets before its headers: never asked a second time',
    client: { status: 502, code: 'upstream_reset' },
    upstream: OWN,
    outcome: 'upstream_reset',
    act: ({ request }) => request.connection.reset(),
  },
  {
    ids: 'B8',
    phase: 'headers',
    cause: '101, and nobody asked',
    client: { status: 502, code: 'upstream_reset' },
    upstream: CLOSED,
    outcome: 'upstream_reset',
    act: ({ request }) => request.connection.write('HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n'),
  },
  {
    ids: 'B9',
    phase: 'headers',
    cause: 'headers of 20 KiB',
    client: { status: 502, code: 'upstream_reset' },
    upstream: CLOSED,
    outcome: 'upstream_reset',
    act: ({ request }) => request.connection.write(`HTTP/1.1 200 OK\r\nx: ${'y'.repeat(20_000)}\r\n\r\n`),
  },
  {
    ids: 'B9',
    phase: 'headers',
    cause: 'a NUL in a header, or no HTTP at all',
    client: { status: 502, code: 'upstream_reset' },
    upstream: CLOSED,
    outcome: 'upstream_reset',
    act: ({ request }) => request.connection.write('HTTP/1.1 200 OK\r\nbad\x00: 1\r\n\r\n'),
  },
  {
    ids: 'B11',
    phase: 'headers',
    cause: '401 to the injected key',
    client: { status: 502, code: 'upstream_auth' },
    upstream: CLOSED,
    outcome: 'upstream_error',
    act: ({ request }) => request.respond(401, {}, 'Incorrect API key'),
  },
  {
    ids: 'B12',
    phase: 'headers',
    cause: 'an error status of the upstream’s',
    client: 'the answer, complete',
    upstream: 'a call that ended',
    outcome: 'upstream_error',
    act: ({ request }) => request.respond(429, { 'retry-after': '7' }, '{"error":{"message":"slow down"}}'),
  },
  {
    ids: 'A3',
    phase: 'headers',
    cause: 'the client resets',
    client: LEFT,
    upstream: CLOSED,
    outcome: 'client_closed',
    act: ({ client }) => client.reset(),
  },
  {
    ids: 'A6',
    phase: 'headers',
    cause: 'the client half-closes: that counts as leaving',
    client: CLOSED,
    upstream: CLOSED,
    outcome: 'client_closed',
    act: ({ client }) => client.end(),
  },
  {
    ids: 'F2',
    phase: 'headers',
    cause: 'shutdown, and `drain` is over',
    client: { status: 503, code: 'draining' },
    upstream: CLOSED,
    outcome: 'drained',
    act: ({ drain }) => drain(),
  },
  {
    ids: 'operator',
    phase: 'headers',
    cause: 'its operator ends it (live page)',
    client: { status: 503, code: 'ended_by_operator' },
    upstream: CLOSED,
    outcome: 'rejected',
    act: ({ end }) => end(),
  },

  {
    ids: 'B16',
    phase: 'stream',
    cause: 'FIN without the final chunk, between two events',
    client: { event: 'upstream_reset' },
    upstream: OWN,
    outcome: 'upstream_reset',
    act: inStream(({ request }) => request.connection.end()),
  },
  {
    ids: 'B16',
    phase: 'stream',
    cause: 'FIN inside a chunk',
    client: CUT,
    upstream: OWN,
    outcome: 'upstream_reset',
    act: inStream(({ request }) => {
      request.connection.write('40\r\ndata: {"choices"');
      request.connection.end();
    }),
  },
  {
    ids: 'B17',
    phase: 'stream',
    cause: 'RST between two events',
    client: { event: 'upstream_reset' },
    upstream: OWN,
    outcome: 'upstream_reset',
    act: inStream(({ request }) => request.connection.reset()),
  },
  {
    ids: 'B18',
    phase: 'stream',
    cause: 'RST inside an event: nothing is added to half an event',
    client: CUT,
    upstream: OWN,
    outcome: 'upstream_reset',
    act: inEvent(({ request }) => request.connection.reset()),
  },
  {
    ids: 'B19',
    phase: 'stream',
    cause: 'chunked with `Connection: close`, and an early FIN',
    client: { event: 'upstream_reset' },
    upstream: OWN,
    outcome: 'upstream_reset',
    act: raw('connection: close\r\ntransfer-encoding: chunked', chunked(FIRST_EVENT), ({ request }) => request.connection.end()),
  },
  {
    ids: 'B20',
    phase: 'stream',
    cause: 'fewer bytes than `Content-Length` says',
    client: { event: 'upstream_reset' },
    upstream: OWN,
    outcome: 'upstream_reset',
    act: raw('content-length: 500', FIRST_EVENT, ({ request }) => request.connection.end()),
  },
  {
    ids: 'B21',
    phase: 'stream',
    cause: 'a body that ends with the connection, before the terminal event',
    client: { event: 'upstream_truncated' },
    upstream: OWN,
    outcome: 'upstream_truncated',
    act: raw('connection: close', FIRST_EVENT, ({ request }) => request.connection.end()),
  },
  {
    ids: 'B21',
    phase: 'stream',
    cause: 'a proper end before the terminal event',
    client: { event: 'upstream_truncated' },
    upstream: 'a call that ended',
    outcome: 'upstream_truncated',
    act: inStream(({ request }) => request.endChunks()),
  },
  {
    ids: 'B21',
    phase: 'stream',
    cause: 'a proper end inside an event',
    client: CUT,
    upstream: 'a call that ended',
    outcome: 'upstream_truncated',
    act: inEvent(({ request }) => request.endChunks()),
  },
  {
    ids: 'B22',
    phase: 'stream',
    cause: 'silence for longer than `idle`',
    client: { event: 'upstream_idle_timeout' },
    upstream: CLOSED,
    outcome: 'timeout_idle',
    settings: short('idle', '40ms'),
    act: inStream(() => undefined),
  },
  {
    ids: 'B22',
    phase: 'stream',
    cause: 'silence inside an event',
    client: CUT,
    upstream: CLOSED,
    outcome: 'timeout_idle',
    settings: short('idle', '40ms'),
    act: inEvent(() => undefined),
  },
  {
    ids: 'B23',
    phase: 'stream',
    cause: 'comments and pings, but no event with meaning',
    client: { event: 'upstream_idle_timeout' },
    upstream: CLOSED,
    outcome: 'timeout_idle',
    settings: short('idle', '60ms'),
    act: inStream(({ request }) => drip(request, chunked(': ping\n\n'))),
  },
  {
    ids: 'B22',
    phase: 'stream',
    cause: 'headers, and then no first event within `firstByte`',
    client: { event: 'upstream_timeout' },
    upstream: CLOSED,
    outcome: 'timeout_first_byte',
    settings: short('firstByte', '300ms'),
    act: ({ request }) => request.startSse(),
  },
  {
    ids: 'A9',
    phase: 'stream',
    cause: 'a stream longer than `total`',
    client: { event: 'upstream_total_timeout' },
    upstream: CLOSED,
    outcome: 'timeout_total',
    settings: short('total', '600ms'),
    act: inStream(() => undefined),
  },
  {
    ids: 'F2',
    phase: 'stream',
    cause: 'shutdown, and `drain` is over',
    client: { event: 'draining' },
    upstream: CLOSED,
    outcome: 'drained',
    act: inStream(({ drain }) => drain()),
  },
  {
    ids: 'operator',
    phase: 'stream',
    cause: 'its operator ends it (live page)',
    client: { event: 'ended_by_operator' },
    upstream: CLOSED,
    outcome: 'rejected',
    act: inStream(({ end }) => end()),
  },
  {
    ids: 'onExhausted',
    phase: 'stream',
    cause: 'the client’s budget is spent, and `onExhausted` is `cut`',
    client: { event: 'insufficient_quota' },
    upstream: CLOSED,
    outcome: 'rejected',
    settings: {
      models: [{ match: '*', upstreams: ['main'], price: { output: 10 } }],
      anonymous: { limits: { budget: { usd: 0.000001, per: 'month' }, onExhausted: 'cut' } },
    },
    call: { target: '/openai/deployments/m/chat/completions', body: '{}' },
    act: inStream(() => undefined),
  },
  {
    ids: 'B34',
    phase: 'stream',
    cause: 'an error event of the upstream’s',
    client: 'the answer, complete',
    upstream: 'a call that ended',
    outcome: 'upstream_error_event',
    act: inStream(({ request }) => {
      request.chunk(event({ error: { message: 'overloaded' } }));
      request.endChunks();
    }),
  },
  {
    ids: 'B33',
    phase: 'stream',
    cause: 'the terminal event, and a proper end',
    client: 'the answer, complete',
    upstream: 'a call that ended',
    outcome: 'completed',
    act: inStream(({ request }) => {
      request.chunk('data: [DONE]\n\n');
      request.endChunks();
    }),
  },
  {
    ids: 'B33',
    phase: 'stream',
    cause: 'every choice finished, a proper end, no `[DONE]`',
    client: 'the answer, complete',
    upstream: 'a call that ended',
    outcome: 'completed',
    act: inStream(({ request }) => {
      request.chunk(event({ choices: [{ index: 0, delta: {}, finish_reason: 'stop' }] }));
      request.endChunks();
    }),
  },
  {
    ids: 'B16',
    phase: 'stream',
    cause: 'the terminal event, and then a reset: all was said',
    client: 'the answer, complete',
    upstream: OWN,
    outcome: 'completed',
    act: inStream(({ request, client }) => {
      request.chunk('data: [DONE]\n\n');
      client.until('[DONE]').then(
        () => request.connection.reset(),
        () => undefined,
      );
    }),
  },
  {
    ids: 'A1',
    phase: 'stream',
    cause: 'the client resets in a silence',
    client: LEFT,
    upstream: CLOSED,
    outcome: 'client_closed',
    act: inStream(({ client }) => client.reset()),
  },
  {
    ids: 'A2',
    phase: 'stream',
    cause: 'the client closes inside an event',
    client: LEFT,
    upstream: CLOSED,
    outcome: 'client_closed',
    act: inEvent(({ client }) => client.destroy()),
  },
  {
    ids: 'A6',
    phase: 'stream',
    cause: 'the client half-closes and reads on: that counts as leaving',
    client: CLOSED,
    upstream: CLOSED,
    outcome: 'client_closed',
    act: inStream(({ client }) => client.end()),
  },
  {
    ids: 'A24',
    phase: 'stream',
    cause: 'the client leaves a call that does not stream',
    client: LEFT,
    upstream: CLOSED,
    outcome: 'client_closed',
    call: embeddings,
    act: async ({ request, client }) => {
      request.connection.write('HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 90\r\n\r\n{"data":');
      await client.read(8);
      client.reset();
    },
  },
  {
    ids: 'B20',
    phase: 'stream',
    cause: 'a body that is no event stream breaks off',
    client: CUT,
    upstream: OWN,
    outcome: 'upstream_reset',
    call: embeddings,
    act: async ({ request, client }) => {
      request.connection.write('HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 90\r\n\r\n{"data":');
      await client.read(8);
      request.connection.end();
    },
  },

  {
    ids: 'A7',
    phase: 'backpressure',
    cause: 'the client takes nothing for `clientStall`',
    client: CLOSED,
    upstream: CLOSED,
    outcome: 'client_stalled',
    settings: { server: { clientStall: '60ms' } },
    // It reads on only then: to see that its connection was closed.
    act: async ({ request }) => {
      await request.connection.closed;
    },
  },
  {
    ids: 'A7',
    phase: 'backpressure',
    cause: 'the client resets',
    client: LEFT,
    upstream: CLOSED,
    outcome: 'client_closed',
    act: ({ client }) => client.reset(),
  },
  {
    ids: 'A6',
    phase: 'backpressure',
    cause: 'the client half-closes, without reading',
    client: CLOSED,
    upstream: CLOSED,
    outcome: 'client_closed',
    // Before the client reads again: what flows then would hide that nobody had noticed.
    act: async ({ client, request }) => {
      client.end();
      await request.connection.closed;
    },
  },
  {
    ids: 'A10',
    phase: 'backpressure',
    cause: 'the client catches up',
    client: 'the answer, complete',
    upstream: 'a call that ended',
    outcome: 'completed',
    act: ({ client, request }) => {
      request.chunk('data: [DONE]\n\n');
      request.endChunks();
      client.resume();
    },
  },
  {
    ids: 'B35',
    phase: 'backpressure',
    cause: 'the upstream ends early; the client gets all that came',
    client: { event: 'upstream_reset' },
    upstream: OWN,
    outcome: 'upstream_reset',
    act: ({ client, request }) => {
      request.connection.end();
      client.resume();
    },
  },

  {
    ids: 'A16',
    phase: 'upload',
    cause: 'the client resets',
    client: LEFT,
    upstream: CLOSED,
    outcome: 'client_closed',
    act: ({ client }) => client.reset(),
  },
  {
    ids: 'B37',
    phase: 'upload',
    cause: 'the upstream resets',
    client: { status: 502, code: 'upstream_reset' },
    upstream: OWN,
    outcome: 'upstream_reset',
    act: ({ request }) => request.connection.reset(),
  },
  {
    ids: 'E10',
    phase: 'upload',
    cause: 'the body goes beyond `maxRequestBody`',
    client: { status: 413, code: 'request_too_large' },
    upstream: CLOSED,
    outcome: 'rejected',
    settings: { server: { maxRequestBody: 100 } },
    act: ({ client }) => client.send(chunked('x'.repeat(100))),
  },
  {
    ids: 'F2',
    phase: 'upload',
    cause: 'shutdown, and `drain` is over',
    client: { status: 503, code: 'draining' },
    upstream: CLOSED,
    outcome: 'drained',
    act: ({ drain }) => drain(),
  },
  {
    ids: 'operator',
    phase: 'upload',
    cause: 'its operator ends it (live page)',
    client: { status: 503, code: 'ended_by_operator' },
    upstream: CLOSED,
    outcome: 'rejected',
    act: ({ end }) => end(),
  },
];

/** Goes on writing the same bytes, a piece every turn of a short timer, until the connection is gone; bounded. */
function drip({ connection }: UpstreamRequest, bytes: string): void {
  let left = 400;
  const timer = setInterval(() => {
    if (connection.isClosed || left-- === 0) clearInterval(timer);
    else connection.write(bytes);
  }, 5);
}

/** The words of the table for what a client sees. */
export function describeClient(client: ClientSees): string {
  if (typeof client === 'string') return client;
  return 'event' in client ? `an error event \`${client.event}\`, then no proper end` : `${client.status} \`${client.code}\``;
}

/** The table as Markdown. */
export function renderEndings(rows: readonly Ending[]): string {
  const lines = rows.map(
    ({ ids, phase, cause, client, upstream, outcome }) =>
      `| ${phase} | ${cause} | ${describeClient(client)} | ${upstream} | \`${outcome}\` | ${ids} |`,
  );
  return ['| phase | cause | the client sees | the upstream sees | outcome | case |', '|---|---|---|---|---|---|', ...lines].join('\n');
}

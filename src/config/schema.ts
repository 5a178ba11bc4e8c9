// The schema of a configuration: every setting with its words, its default and what it means; also written out for editors.
import * as z from 'zod';
import {
  address,
  baseUrl,
  clientName,
  collector,
  count,
  credential,
  duration,
  durationOrZero,
  fieldValue,
  flag,
  hostname,
  keyHash,
  limitStore,
  network,
  OFF,
  oneOf,
  origin,
  orOff,
  pathPattern,
  price,
  proxyUrl,
  queryValue,
  ratio,
  share,
  size,
  someText,
  word,
} from './words.ts';

/** A mapping of known keys. Its complaint about unknown keys is the list of the known ones, from which the nearest is named. */
function section<T extends z.core.$ZodLooseShape>(shape: T) {
  return z.strictObject(shape, { error: (issue) => (issue.code === 'unrecognized_keys' ? Object.keys(shape).join(' ') : undefined) });
}

/** A choice of two forms; `expected` is what to say of a value that is neither. */
function either<A extends z.ZodType, B extends z.ZodType>(first: A, second: B, expected: string) {
  return z.union([first, second], { error: () => expected });
}

const off = word({ read: (text) => (text === 'off' ? null : undefined), expected: 'write off', json: [OFF] });
const someWord = word(someText);
const fileOrOff = word(orOff(someText, null));

const server = section({
  listen: address('127.0.0.1:8080').prefault('127.0.0.1:8080').describe('Where clients call; port 0 takes any free one.'),
  allowAnonymous: flag.prefault(false).describe('Whether an address beyond loopback may serve without any clients configured.'),
  tls: either(off, section({ cert: someWord, key: someWord }), 'write off, or cert and key')
    .prefault('off')
    .describe('Certificate (with its chain) and key, PEM files, for HTTPS with HTTP/2 and 1.1; read again on SIGHUP.'),
  cors: either(off, section({ origins: z.array(word(origin)).min(1) }), 'write off, or origins: [https://app.example]')
    .prefault('off')
    .describe('Web pages that may call from a browser.'),
  trustProxy: either(off, z.array(word(network)), 'write off, or a list as [10.0.0.0/8]')
    .prefault('off')
    .describe('Addresses from which X-Forwarded-For is believed.'),
  hostnames: z.array(word(hostname)).prefault([]).describe('Names by which this gateway is called, besides its address.'),
  maxRequestBody: word(orOff(size, Infinity)).prefault('64MiB').describe('A larger request body is answered 413.'),
  maxHeldBodies: word(orOff(size, Infinity)).prefault('512MiB').describe('Request bodies held at one time, all together; beyond, 503.'),
  maxConnections: word(orOff(count, Infinity)).prefault(10_000).describe('Connections of clients at one time.'),
  workers: either(word(count), oneOf('auto'), 'write a whole number, or auto')
    .prefault(1)
    .describe('Processes behind the one port; auto: one a core.'),
  clientStall: word(orOff(duration, Infinity)).prefault('60s').describe('A client that takes nothing for so long is closed.'),
  drain: word(orOff(durationOrZero, Infinity)).prefault('60s').describe('How long live streams may finish after SIGTERM.'),
});

const ops = section({
  listen: address('127.0.0.1:9464').prefault('127.0.0.1:9464').describe('Where metrics, health and the live page are served.'),
  token: word(orOff(credential, null)).prefault('off').describe('Asked for everything on this listener but the health checks.'),
});

const log = section({
  level: oneOf('trace', 'debug', 'info', 'warn', 'error', 'silent').prefault('info'),
  format: oneOf('auto', 'json', 'pretty').prefault('auto').describe('auto: pretty on a terminal, JSON lines elsewhere.'),
});

const sse = section({
  heartbeat: word(orOff(duration, Infinity)).prefault('15s').describe('A comment after so much silence towards the client.'),
  earlyHeaders: word(orOff(duration, Infinity))
    .prefault('off')
    .describe('On calls with stream: true, 200 and heartbeats where the upstream has not answered by then.'),
});

const timeouts = section({
  connect: word(duration).prefault('5s').describe('To connect, and to wait for a free connection.'),
  firstByte: word(orOff(duration, Infinity)).prefault('10m').describe('From the last request byte to the first event with meaning.'),
  idle: word(orOff(duration, Infinity)).prefault('10m').describe('Between events with meaning.'),
  total: word(orOff(duration, Infinity)).prefault('1h').describe('For a whole request.'),
});

const upstream = section({
  baseUrl: word(baseUrl).describe('What stands in front of /chat/completions, for example https://api.openai.com/v1.'),
  apiKey: word(credential).optional().describe(`The key sent upstream, best as \${NAME} from the environment.`),
  apiKeyFile: someWord.optional().describe('A file that holds the key; read again when it changes.'),
  apiKeys: z.array(word(credential)).min(1).optional().describe('Several keys, used in turn; one that got 429 or 401 rests.'),
  auth: oneOf('bearer', 'api-key', 'x-api-key', 'none', 'passthrough')
    .prefault('bearer')
    .describe("How the key is sent; none sends no key, passthrough sends on the client's own credential."),
  headers: z.record(z.string(), word(fieldValue)).prefault({}).describe('Set on every request.'),
  query: z.record(z.string(), word(queryValue)).prefault({}).describe('Added to every request, for example api-version.'),
  usage: oneOf('ask', 'continuous', 'asSent')
    .prefault('ask')
    .describe(
      'ask: streamed calls are asked for their usage, unseen; continuous: for running totals too (vLLM); asSent: nothing is touched.',
    ),
  onClientGone: either(
    oneOf('abort'),
    section({
      drain: word(duration).describe('Read on for at most so long.'),
      tokens: word(orOff(count, Infinity)).prefault(16_384).describe('Read on for at most so many more tokens of output.'),
    }),
    'write abort, or drain: 30s',
  )
    .prefault('abort')
    .describe('abort: an answer that nobody hears is closed at once; drain: it is read on, unsent, for exact usage.'),
  endpoints: z
    .array(word(pathPattern))
    .prefault([])
    .describe('Calls that name no model go to the first upstream that has their path here, for example /v1/files*; else to the first.'),
  caFile: fileOrOff.prefault('off').describe('The certificates of a private CA, PEM, in place of the public ones.'),
  certFile: fileOrOff.prefault('off').describe('A client certificate, PEM, with keyFile.'),
  keyFile: fileOrOff.prefault('off').describe('The key of certFile, PEM.'),
  proxy: word(orOff(proxyUrl, null))
    .prefault('off')
    .describe(`An HTTP proxy that connections go through, for example \${HTTPS_PROXY:-off}.`),
  maxConnections: word(orOff(count, Infinity)).prefault(1024).describe('Beyond, a request waits at most timeouts.connect, then 503.'),
  eject: either(
    off,
    section({
      failures: word(count).prefault(5).describe('So many failures one after the other.'),
      share: word(orOff(share, Infinity)).prefault(0.5).describe('Or this share of at least 20 calls within 30 s.'),
      for: word(duration).prefault('10s').describe('Grows to ten times as long.'),
    }),
    'write off, or failures: 5 and for: 10s',
  )
    .prefault({})
    .describe('An upstream that fails is put aside while others can serve; one request probes it.'),
  timeouts: timeouts.prefault({}),
  http2: oneOf('off', 'on').prefault('off').describe('on: many calls share a connection, where the upstream takes HTTP/2.'),
});

const target = either(
  someWord,
  section({
    name: someWord,
    weight: word(count).optional().describe('Its share of first tries, where any target has a weight.'),
    rewrite: someWord.optional().describe('The name of the model at this upstream.'),
  }),
  'write a name, or name and weight',
);
const model = section({
  match: someWord.describe('The "model" of a call, with * for any characters; the first row that matches serves.'),
  upstreams: z.array(target).min(1).describe('Names of upstreams: tried in order, before the first byte only.'),
  replay: word(size).prefault('1MiB').describe('A larger body goes to one target only.'),
  rewrite: someWord.optional().describe('The name of the model that is sent upstream.'),
  balance: oneOf('order', 'leastBusy').prefault('order').describe('leastBusy: the one with the fewest calls under way, by weight, first.'),
  hedge: word(orOff(duration, Infinity))
    .prefault('off')
    .describe('Streams without a first token after so long are asked of the next target too.'),
  price: section({
    input: word(price).optional(),
    cachedInput: word(price).optional().describe('Part of the input; without a price of its own it costs what input does.'),
    cacheWrite: word(price).optional().describe('Likewise.'),
    output: word(price).optional(),
    audioInput: word(price).optional().describe('Part of the input, likewise.'),
    audioOutput: word(price).optional().describe('Part of the output, likewise.'),
  })
    .optional()
    .describe('USD per million tokens.'),
});

const limits = section({
  requestsPerMinute: word(orOff(count, null)).optional().describe('Requests in any minute.'),
  tokensPerMinute: word(orOff(count, null)).optional().describe('Tokens of input and output in any minute, as they flow.'),
  concurrentStreams: word(orOff(count, null)).optional().describe('Requests under way at one time.'),
  budget: either(off, section({ usd: word(price), per: oneOf('hour', 'day', 'week', 'month') }), 'write off, or usd: 20 and per: day')
    .optional()
    .describe('Money, by the prices of models; the periods are those of the calendar, in UTC, weeks from Monday.'),
  onExhausted: oneOf('finish', 'cut').prefault('finish').describe('What becomes of answers that are under way when the budget is spent.'),
});

const client = section({
  name: word(clientName),
  keySha256: either(word(keyHash), z.array(word(keyHash)).min(1), `${keyHash.expected}, or a list of such`).describe(
    'SHA-256 of the key; several while a key is being changed.',
  ),
  models: z
    .array(someWord)
    .optional()
    .describe('Models that it may call, with * for any characters; then only calls that name one of them pass, and GET /v1/models.'),
  endpoints: z.array(word(pathPattern)).prefault([]).describe('Further paths for a client with models, for example /v1/files*.'),
  limits: limits.prefault({}),
});

const traces = section({
  endpoint: word(orOff(collector, null))
    .prefault('off')
    .describe('Where spans go by OTLP over HTTP (protobuf), for example http://127.0.0.1:4318/v1/traces.'),
  headers: z.record(z.string(), word(fieldValue)).prefault({}).describe('Sent to the collector, for example its key.'),
  service: someWord.prefault('sluicegate').describe('service.name'),
  resource: z.record(z.string(), word(queryValue)).prefault({}).describe('Further attributes of the resource.'),
  sampler: oneOf('parentbased_always_on', 'parentbased_always_off', 'parentbased_traceidratio', 'always_on', 'always_off', 'traceidratio')
    .prefault('parentbased_always_on')
    .describe("Which requests are traced, by OpenTelemetry's names; parentbased: as the client's traceparent says, where it sends one."),
  sample: word(ratio).prefault(1).describe('The share of traces that a sampler with traceidratio takes.'),
});

/** The whole of a configuration file, after variables: from a tree of text to typed values, `off` as Infinity, null or []. */
export const schema = section({
  server: server.prefault({}),
  ops: ops.prefault({}),
  log: log.prefault({}),
  sse: sse.prefault({}),
  traces: traces.prefault({}).describe('OpenTelemetry spans of each request and each try.'),
  upstreams: z.record(z.string(), upstream).prefault({}).describe('Providers by name; the first one serves.'),
  models: z.array(model).prefault([]).describe('Which upstream serves which model, and what its tokens cost.'),
  clients: z.array(client).prefault([]).describe('Who may call; none: anyone who reaches the listener.'),
  anonymous: section({ limits: limits.prefault({}) })
    .prefault({})
    .describe('Limits per address, where there are no clients.'),
  limits: section({
    store: word(limitStore).prefault('memory').describe('memory, or redis://HOST:PORT/DB: shared by all replicas.'),
    onStoreFailure: oneOf('allow', 'deny')
      .prefault('allow')
      .describe('While the store is away: allow counts in each replica for itself, deny answers 503 to whoever has limits.'),
  })
    .prefault({})
    .describe('Where limits are counted.'),
});

export type Settings = z.output<typeof schema>;

/** The schema as JSON Schema (draft 2020-12) for editors: the content of config/sluicegate.schema.json. */
export function configJsonSchema(): unknown {
  return {
    ...z.toJSONSchema(schema, { io: 'input' }),
    title: 'Sluicegate configuration',
    required: ['upstreams'],
    $defs: { variable: { type: 'string', pattern: '\\$\\{', description: `From the environment: \${NAME} or \${NAME:-default}.` } },
  };
}

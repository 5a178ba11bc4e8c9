// Holds the configuration to its promises: every problem at once and in its place, no secret in any of them, nothing that throws.
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import t from 'tap';
import { type Config, configJsonSchema, formatProblem, type LoadResult, loadConfig, type Problem, printConfig } from '../src/config.ts';
import { createCertificate } from './support/tls.ts';

const EXAMPLE = readFileSync(new URL('../config/sluicegate.example.yaml', import.meta.url), 'utf8');
const HASH = '5e88'.padEnd(64, 'a');
const OPENAI = 'openai: { baseUrl: https://api.openai.com/v1, apiKey: key-of-openai }';

type Environment = Record<string, string | undefined>;

function load(text: string, env: Environment = {}): LoadResult {
  return loadConfig({ file: 'gate.yaml', text }, env);
}

function configOf(result: LoadResult): Config {
  if (!result.ok) throw new Error(result.problems.map(formatProblem).join('\n'));
  return result.config;
}

function problemsOf(result: LoadResult): string[] {
  return result.ok ? [] : result.problems.map(formatProblem);
}

/** Matches a list of this one problem, and no other. */
function only(problem: RegExp) {
  return { 0: problem, length: 1 };
}

/** The problems of a file with these lines around one good upstream, so that what is tested stands alone. */
function problemsWith(yaml: string, env: Environment = {}): string[] {
  return problemsOf(load(`upstreams: { ${OPENAI} }\n${yaml}\n`, env));
}

/** The problems of one upstream, written in flow style, which stands in line 2. */
function problemsOfUpstream(settings: string): string[] {
  return problemsOf(load(`upstreams:\n  one: { ${settings} }\n`));
}

const NO_LIMITS = {
  requestsPerMinute: undefined,
  tokensPerMinute: undefined,
  concurrentStreams: undefined,
  budget: undefined,
  onExhausted: 'finish',
};

t.test('a file with an upstream only gets the documented defaults, deeply frozen', async (t) => {
  const config = configOf(load(`upstreams: { ${OPENAI} }`));
  t.strictSame(config, {
    server: {
      listen: { host: '127.0.0.1', port: 8080 },
      allowAnonymous: false,
      tls: undefined,
      cors: undefined,
      trustProxy: [],
      hostnames: [],
      maxRequestBodyBytes: 64 * 2 ** 20,
      maxHeldBodiesBytes: 512 * 2 ** 20,
      maxConnections: 10_000,
      workers: 1,
      clientStallMs: 60_000,
      drainMs: 60_000,
    },
    ops: { listen: { host: '127.0.0.1', port: 9464 }, token: undefined },
    log: { level: 'info', format: 'auto' },
    traces: undefined,
    sse: { heartbeatMs: 15_000, earlyHeadersMs: Infinity },
    upstreams: [
      {
        name: 'openai',
        baseUrl: 'https://api.openai.com/v1',
        auth: 'bearer',
        headers: {},
        query: {},
        usage: 'ask',
        endpoints: [],
        apiKeys: ['key-of-openai'],
        apiKeyFile: undefined,
        onClientGone: undefined,
        ca: undefined,
        certificate: undefined,
        proxy: undefined,
        http2: false,
        eject: { failures: 5, share: 0.5, forMs: 10_000 },
        maxConnections: 1024,
        timeouts: { connectMs: 5000, firstByteMs: 600_000, idleMs: 600_000, totalMs: 3_600_000 },
      },
    ],
    models: [],
    clients: [],
    anonymous: { limits: NO_LIMITS },
    limits: { store: 'memory', onStoreFailure: 'allow' },
  });
  const isFrozen = (value: unknown): boolean =>
    typeof value !== 'object' || value === null || (Object.isFrozen(value) && Object.values(value).every(isFrozen));
  t.ok(isFrozen(config));
});

t.test('every supported setting is read, off is no bound or no feature, and the order of upstreams is that of the file', async (t) => {
  const config = configOf(
    load(`
server:
  listen: "[::1]:0"
  allowAnonymous: true
  cors: { origins: ["HTTPS://App.Example:443", "tauri://localhost"] }
  trustProxy: [10.0.0.0/8, "fd00::/8", 192.0.2.1]
  hostnames: [Gateway.Example]
  maxRequestBody: off
  maxHeldBodies: off
  maxConnections: off
  clientStall: off
  drain: 0s
ops: { listen: localhost:9000, token: t0ken }
log: { level: debug, format: json }
upstreams:
  zeta: { baseUrl: http://127.0.0.1:9000/base//, auth: none, usage: continuous, onClientGone: { drain: 30s, tokens: off }, maxConnections: off, eject: off, timeouts: { connect: 250ms, firstByte: off, idle: off, total: off } }
  "7": { baseUrl: https://seven.example, apiKey: k7, auth: x-api-key, endpoints: ["/v1/files*"], eject: { failures: 3, share: off }, headers: { X-A: 1, X-B: "" }, query: { api-version: 2024-10-21 } }
clients:
  - { name: a, keySha256: ${HASH.toUpperCase()}, limits: { requestsPerMinute: 600 } }
  - { name: b, keySha256: [${'1'.repeat(64)}, "${'2'.repeat(64)}"], models: ["gpt-4o*"], endpoints: [/v1/files*] }
anonymous: { limits: { requestsPerMinute: 5, tokensPerMinute: 6, concurrentStreams: 7, budget: { usd: 0.5, per: week }, onExhausted: cut } }
limits: { store: "redis://user:pw@127.0.0.1:6379/1", onStoreFailure: deny }
models:
  - match: "gpt-4o*"
    upstreams: [{ name: zeta, weight: 3 }, { name: "7", rewrite: four }]
    rewrite: gpt-4o-2024-08-06
    balance: leastBusy
    hedge: 800ms
    price: { input: 2.50, cachedInput: 1.25, cacheWrite: 0, output: 10.00, audioInput: 40, audioOutput: 80 }
  - { match: "*", upstreams: ["7"], price: { output: 1 } }
`),
  );
  t.strictSame(config.server, {
    listen: { host: '::1', port: 0 },
    allowAnonymous: true,
    tls: undefined,
    cors: { origins: ['https://app.example', 'tauri://localhost'] },
    trustProxy: ['10.0.0.0/8', 'fd00::/8', '192.0.2.1'],
    hostnames: ['gateway.example'],
    maxRequestBodyBytes: Infinity,
    maxHeldBodiesBytes: Infinity,
    maxConnections: Infinity,
    workers: 1,
    clientStallMs: Infinity,
    drainMs: 0,
  });
  t.strictSame(config.ops, { listen: { host: 'localhost', port: 9000 }, token: 't0ken' });
  t.strictSame(config.log, { level: 'debug', format: 'json' });
  const [zeta, seven] = config.upstreams;
  t.equal(zeta?.baseUrl, 'http://127.0.0.1:9000/base');
  t.equal(zeta?.maxConnections, Infinity);
  t.equal(zeta?.usage, 'continuous');
  t.strictSame(zeta?.onClientGone, { drainMs: 30_000, maxTokens: Infinity });
  t.strictSame(zeta?.timeouts, { connectMs: 250, firstByteMs: Infinity, idleMs: Infinity, totalMs: Infinity });
  t.equal(zeta?.eject, undefined);
  t.strictSame(seven?.eject, { failures: 3, share: Infinity, forMs: 10_000 });
  t.strictSame(seven?.endpoints, ['/v1/files*']);
  t.equal(seven?.name, '7', 'an object would put a number first');
  t.strictSame(seven?.headers, { 'X-A': '1', 'X-B': '' });
  t.strictSame(seven?.query, { 'api-version': '2024-10-21' });
  t.strictSame(config.clients, [
    { name: 'a', keySha256: [HASH], models: undefined, endpoints: [], limits: { ...NO_LIMITS, requestsPerMinute: 600 } },
    { name: 'b', keySha256: ['1'.repeat(64), '2'.repeat(64)], models: ['gpt-4o*'], endpoints: ['/v1/files*'], limits: NO_LIMITS },
  ]);
  t.strictSame(config.anonymous.limits, {
    requestsPerMinute: 5,
    tokensPerMinute: 6,
    concurrentStreams: 7,
    budget: { usd: 0.5, per: 'week' },
    onExhausted: 'cut',
  });
  t.strictSame(config.limits, { store: 'redis://user:pw@127.0.0.1:6379/1', onStoreFailure: 'deny' });
  const price = { input: 2.5, cachedInput: 1.25, cacheWrite: 0, output: 10, audioInput: 40, audioOutput: 80 };
  const outputOnly = { input: 0, cachedInput: undefined, cacheWrite: undefined, output: 1, audioInput: undefined, audioOutput: undefined };
  t.strictSame(config.models, [
    {
      match: 'gpt-4o*',
      targets: [
        { upstream: 'zeta', weight: 3, rewrite: 'gpt-4o-2024-08-06' },
        { upstream: '7', weight: 1, rewrite: 'four' },
      ],
      ...{ balance: 'leastBusy', replayBytes: 2 ** 20, hedgeMs: 800 },
      price,
    },
    {
      match: '*',
      targets: [{ upstream: '7', weight: undefined, rewrite: undefined }],
      ...{ balance: 'order', replayBytes: 2 ** 20, hedgeMs: Infinity },
      price: outputOnly,
    },
  ]);
});

t.test('one file with many faults gives every problem at once, in the order and at the place of each', async (t) => {
  const text = `server:
  listen: 8080
  allowAnonymus: true
  clientStall: 60
upstreams:
  one:
    base_url: https://api.example
    apiKey: \${NOT_SET}
    timeouts: { idle: 5 minutes }
    http2: on
  one: {}
clients:
  - name: anonymous
    keySha256: 5e88
log: { level: loud }
limits: { store: "http://x" }
`;
  const starts = [
    'gate.yaml:2:11: server.listen is not valid; write it as',
    'gate.yaml:3:3: server.allowAnonymus is not a setting; did you mean allowAnonymous?',
    'gate.yaml:4:16: server.clientStall is not valid; write a duration as 250ms, 15s, 5m or 1h',
    `gate.yaml:8:13: the environment variable NOT_SET is not set; set it, or write \${NOT_SET:-default}`,
    'gate.yaml:11:3: this key is there twice',
    'gate.yaml:11:3: upstreams.one.baseUrl is missing; write it as https://',
    'gate.yaml:11:3: upstreams.one.apiKey is missing, and auth: bearer sends one; set apiKey, or auth: none',
    'gate.yaml:13:11: clients[0].name is not valid; write 1 to 64 of',
    'gate.yaml:14:16: clients[0].keySha256 is not valid; write the 64 hex digits',
    'gate.yaml:15:15: log.level is not valid; write one of trace, debug,',
    'gate.yaml:16:18: limits.store is not valid; write memory, or the URL of a Redis, as',
  ];
  const problems = problemsOf(load(text));
  t.strictSame(
    problems.map((problem, index) => problem.slice(0, starts[index]?.length)),
    starts,
  );
});

t.test('a budget that some models do not touch is a warning', async (t) => {
  const budget = 'anonymous: { limits: { budget: { usd: 1, per: day } } }';
  const row = (match: string) => `{ match: "${match}", upstreams: [openai], price: { input: 1 } }`;
  const warningsOf = (rows: string) => load(`upstreams: { ${OPENAI} }\nmodels: [${rows}]\n${budget}\n`).warnings;
  t.match(warningsOf(row('gpt*')), [
    { line: 3, message: /^anonymous.limits.budget counts nothing for models that no row with a price matches/ },
  ]);
  t.strictSame(warningsOf(`${row('gpt*')}, ${row('*')}`), []);
});

t.test('what is no setting, no YAML or no value is told in words that help, and quote nothing', async (t) => {
  const cases: [yaml: string, problem: RegExp][] = [
    ['upstreams: { a: { base_url: x } }', /^gate.yaml:1:19: upstreams.a.base_url is not a setting; did you mean baseUrl\?$/],
    ['frobnicate: 1', /^gate.yaml:1:1: frobnicate is not a setting; the nearest is \w+; known here are server, ops, log,/],
    ['server: { cors: { orgins: [] } }', /:19: server.cors.orgins is not a setting; did you mean origins\?/],
    ['upstreams:', /^gate.yaml:1:11: upstreams has no value; write its keys/],
    ['upstreams: {}', /:12: upstreams is empty; write at least one/],
    ['', /^gate.yaml:1:1: upstreams is missing; write at least one/],
    ['# nothing', /^gate.yaml:\d+:\d+: upstreams is missing/],
    ['- a', /^gate.yaml:1:1: the configuration is not a mapping/],
    ['clients: { a: b }', /^gate.yaml:1:10: clients is not a list; write a list, as \[one, two\]$/],
    ['server: { cors: { origins: [] } }', /:28: server.cors.origins is empty/],
    ['server: { cors: {} }', /:11: server.cors.origins is missing; write a list/],
    ['clients: [{ name: a }]', /:11: clients\[0\].keySha256 is missing; write the 64 hex digits/],
    ['models: [{ match: "*", upstreams: [two] }]', /^gate.yaml:1:36: models\[0\].upstreams\[0\] is no upstream; known are none$/],
    ['anonymous: { limits: { budget: { usd: 1, per: day } } }', /:32: anonymous.limits.budget needs prices, and no row of models has one/],
    ['clients: [{ name: a, keySha256: x, endpoints: [files] }]', /endpoints\[0\] is not valid; write a path under \/v1/],
    ['ops: { token: "" }', /:15: ops.token is empty; /],
    ['ops: { listen: }', /:16: ops.listen has no value; /],
    ['a: [', /^gate.yaml:1:5: /],
    ['a: "b', /^gate.yaml:1:6: something is missing here: a closing quote/],
    ['a:\n\tb: 1', /^gate.yaml:2:1: /],
    ['a: 1\n---\nb: 1', /^gate.yaml:2:1: a second document begins here/],
    ['a: !tag b', /^gate.yaml:1:4: tags \(!name\) are not used here/],
    ['a: *nowhere', /^gate.yaml:1:4: nothing above has this name/],
    ['? [a]\n: b', /^gate.yaml:1:3: a key must be plain text/],
    ['upstreams: { __proto__: {} }', /^gate.yaml:1:14: this name cannot be used/],
    [`a: \${B`, /^gate.yaml:1:4: a variable is not well formed; write \$\{NAME\} or/],
    [`a: { b: \${C} }`, /^gate.yaml:1:10: within \{ \} and \[ \] a variable needs quotes: "\$\{NAME\}"$/],
    [`a: \${1}`, /^gate.yaml:1:4: a variable is not well formed/],
    ['['.repeat(5000), /nested too deeply/],
    [
      `a: &a [x, x, x, x, x, x, x, x]\nb: &b [${'*a, '.repeat(30)}]\nc: &c [${'*b, '.repeat(30)}]\nd: [${'*c, '.repeat(30)}]`,
      /unfold to too much/,
    ],
  ];
  for (const [yaml, problem] of cases) {
    const problems = problemsOf(load(yaml));
    t.ok(
      problems.some((text) => problem.test(text)),
      `${JSON.stringify(yaml.slice(0, 40))} → ${problem}`,
      { problems },
    );
  }
});

t.test('a variable without quotes within brackets is one problem, not one on every line after it', async (t) => {
  const text = `upstreams:\n  one: { baseUrl: https://a.example, apiKey: \${KEY} }\n  two: { baseUrl: https://b.example, auth: none }\nclients: []\n`;
  t.match(problemsOf(load(text)), only(/^gate.yaml:2:47: within { } and \[ \] a variable needs quotes/));
});

t.test('words are refused that look right and are not', async (t) => {
  const refused: [yaml: string, where: string][] = [
    ...['1.5s', '5', '5 s', '-1s', '0s', '25d', '600h', '1H'].map((word): [string, string] => [
      `server: { clientStall: ${word} }`,
      'server.clientStall',
    ]),
    ...['64MB', '64kib', '0', '1.5MiB', '-1', '9007199254740993'].map((word): [string, string] => [
      `server: { maxRequestBody: ${word} }`,
      'maxRequestBody',
    ]),
    ...['8080', ':8080', '"*:8080"', '1.2.3.256:80', '127.0.0.1:65536', '"::1:80"', '"[::1]"', 'http://localhost:80', '1.2.3:80'].map(
      (word): [string, string] => [`server: { listen: ${word} }`, 'server.listen'],
    ),
    ...['0.0.0.0/0', '10.0.0.0/33', 'loopback', '"::/0"'].map((word): [string, string] => [
      `server: { trustProxy: [${word}] }`,
      'trustProxy[0]',
    ]),
    ...['"*"', 'https://a.example/', 'a.example', 'null', 'https://u@a.example'].map((word): [string, string] => [
      `server: { cors: { origins: [${word}] } }`,
      'origins[0]',
    ]),
    ...['https://a', 'a:80', '"*.a"', '-a'].map((word): [string, string] => [`server: { hostnames: [${word}] }`, 'hostnames[0]']),
    ...['0', '1e3', '1.0', 'many'].map((word): [string, string] => [`server: { maxConnections: ${word} }`, 'maxConnections']),
    ['server: { allowAnonymous: yes }', 'allowAnonymous'],
    ['ops: { token: "a b" }', 'ops.token'],
    ['ops: { token: "••••" }', 'ops.token'],
    ['log: { format: xml }', 'log.format'],
    [`clients: [{ name: a b, keySha256: ${HASH} }]`, 'clients[0].name'],
    [`clients: [{ name: ${'a'.repeat(65)}, keySha256: ${HASH} }]`, 'clients[0].name'],
    [`clients: [{ name: a, keySha256: [${HASH}, ${HASH}0] }]`, 'clients[0].keySha256[1]'],
    ['anonymous: { limits: { requestsPerMinute: 0 } }', 'requestsPerMinute'],
  ];
  for (const [yaml, where] of refused) {
    const problems = problemsWith(yaml);
    t.match(problems, { length: 1 }, yaml, { problems });
    t.match(problems[0], where, yaml);
  }
});

t.test('files that are named are read with the configuration, from its folder, and each must be what it should', async (t) => {
  const { cert, key } = createCertificate();
  const other = createCertificate();
  const files: Record<string, string> = {
    'cert.pem': cert,
    'key.pem': key,
    'other.pem': other.key,
    'key.txt': ' sk-in-a-file\n',
    'empty.txt': ' ',
  };
  const asked: string[] = [];
  const read = (path: string) => {
    asked.push(path);
    const text = files[path.replace('/etc/gate/', '')];
    if (text === undefined) throw Object.assign(new Error(path), { code: 'ENOENT' });
    return text;
  };
  const loadFrom = (upstream: string) =>
    loadConfig({ file: '/etc/gate/gate.yaml', text: `upstreams:\n  one: { baseUrl: https://a.example, ${upstream} }\n` }, {}, read);
  const [one] = configOf(loadFrom('apiKeyFile: key.txt')).upstreams;
  t.strictSame([one?.apiKeys, one?.apiKeyFile], [['sk-in-a-file'], '/etc/gate/key.txt']);
  t.strictSame(asked, ['/etc/gate/key.txt'], 'once, and nothing else');
  const problems = (upstream: string) => problemsOf(loadFrom(upstream));
  t.match(problems('apiKeyFile: none.txt'), only(/gate\.yaml:2:\d+: upstreams\.one\.apiKeyFile cannot be read \(ENOENT\)/));
  t.match(problems('apiKeyFile: empty.txt'), only(/apiKeyFile holds no key/));
  t.match(problems('apiKey: a, apiKeyFile: key.txt'), only(/apiKeyFile is a second way to say which key is sent, beside apiKey/));
  t.match(problems('apiKeys: []'), only(/apiKeys is empty/));
  t.strictSame(configOf(loadFrom('apiKeys: [a, b]')).upstreams[0]?.apiKeys, ['a', 'b']);
  t.notMatch(printConfig(configOf(loadFrom('apiKeys: [aa1, bb2]'))), /aa1|bb2/);

  const pair = 'apiKey: k, certFile: cert.pem, keyFile: key.pem, caFile: cert.pem';
  t.match(configOf(loadFrom(pair)).upstreams, [{ ca: { text: cert }, certificate: { cert: { text: cert }, key: { text: key } } }]);
  t.notMatch(printConfig(configOf(loadFrom(pair))), /BEGIN/);
  t.match(problems('apiKey: k, certFile: cert.pem'), only(/keyFile is missing; a certificate and its key go together/));
  t.match(problems('apiKey: k, certFile: cert.pem, keyFile: other.pem'), only(/keyFile is not the key of the certificate/));
  t.match(problems('apiKey: k, caFile: key.txt'), only(/caFile holds no certificate/));
  const tls = (text: string) =>
    loadConfig({ file: '/etc/gate/gate.yaml', text: `upstreams: { ${OPENAI} }\nserver: { tls: ${text} }` }, {}, read);
  t.match(configOf(tls('{ cert: cert.pem, key: key.pem }')).server.tls, { cert: { path: '/etc/gate/cert.pem' }, key: { text: key } });
  t.match(problemsOf(tls('{ cert: cert.pem, key: cert.pem }')), only(/server\.tls\.key holds no private key/));
});

t.test('variables fill in text after parsing: positions stay, nothing is injected, numbers and truths may come from them', async (t) => {
  const text = `
server: { maxConnections: "\${N}", allowAnonymous: "\${YES}", listen: "\${HOST:-127.0.0.1}:\${PORT_OF_IT:-80}\${NOTHING:-}" }
upstreams:
  one: { baseUrl: "https://\${HOST_OF_ONE}/v1", apiKey: "\${KEY}", headers: { x-a: "\${INJECTED}" } }
`;
  const env = { N: '7', YES: 'true', HOST_OF_ONE: 'one.example', KEY: 'sk-1#:{', INJECTED: `"} , \${KEY}: [&x` };
  const config = configOf(load(text, env));
  t.equal(config.server.maxConnections, 7);
  t.equal(configOf(load(text, { ...env, PORT_OF_IT: '81' })).server.listen.port, 81, 'a default stands back');
  t.equal(configOf(load(text, { ...env, PORT_OF_IT: '' })).server.listen.port, 80, 'as in a shell');
  t.equal(config.server.allowAnonymous, true);
  t.strictSame(config.server.listen, { host: '127.0.0.1', port: 80 });
  t.equal(config.upstreams[0]?.baseUrl, 'https://one.example/v1');
  t.equal(config.upstreams[0]?.apiKeys[0], 'sk-1#:{');
  t.strictSame(config.upstreams[0]?.headers, { 'x-a': `"} , \${KEY}: [&x` }, 'a value is not looked at for variables');
  t.match(problemsOf(load(text, { ...env, N: 'seven' })), only(/^gate\.yaml:2:27: server\.maxConnections is not valid/));
  t.match(problemsOf(load(text, { ...env, KEY: undefined })), only(/^gate\.yaml:4:56: the environment variable KEY is not set/));
  t.match(problemsOf(load(text, { ...env, KEY: '' })), only(/^gate\.yaml:4:56: upstreams\.one\.apiKey is empty/));
  const injected = load(text, { ...env, HOST_OF_ONE: 'a\nauth: none' });
  t.match(problemsOf(injected), only(/^gate\.yaml:4:19: upstreams\.one\.baseUrl is not valid/));
});

t.test('D7 an upstream is refused that could not work, or not safely', async (t) => {
  const refused: [settings: string, problem: RegExp][] = [
    ['baseUrl: https://a.example', /apiKey is missing, and auth: bearer sends one; set apiKey, or auth: none$/],
    ['baseUrl: https://a.example, auth: api-key', /apiKey is missing, and auth: api-key sends one/],
    ['baseUrl: https://a.example, auth: x-api-key', /apiKey is missing, and auth: x-api-key sends one/],
    ['baseUrl: https://a.example, auth: passthrough, apiKey: k', /^gate.yaml:2:65: .*apiKey is never sent with auth: passthrough/],
    ['auth: none', /baseUrl is missing/],
    ...[
      'file:///etc/passwd',
      'a.example/v1',
      'localhost:8080',
      'https://',
      'https://a?b=c',
      '"https://a#b"',
      'https:/a',
      'https://a:99999',
      'ws://a',
    ].map((url): [string, RegExp] => [
      `auth: none, baseUrl: ${url}`,
      /^gate.yaml:2:31: upstreams.one.baseUrl is not valid; write it as https:/,
    ]),
    ...['https://user:s3cret@a', 'https://s3cret@a', 'https://@a'].map((url): [string, RegExp] => [
      `auth: none, baseUrl: ${url}`,
      /^gate.yaml:2:31: .* without credentials/,
    ]),
    ...['Host', 'connection', 'Transfer-Encoding', 'content-length', 'TE', 'Upgrade', 'Keep-Alive'].map((name): [string, RegExp] => [
      `baseUrl: https://a.example, auth: none, headers: { ${name}: x }`,
      /^gate.yaml:2:61: .* is set by the gateway for each connection; remove it$/,
    ]),
    ['baseUrl: https://a.example, auth: none, headers: { "a b": x }', /is not a header's name/],
    ['baseUrl: https://a.example, auth: none, headers: { "": x }', /is not a header's name/],
    ['baseUrl: https://a.example, auth: none, headers: { a: "x\\r\\ny: z" }', /:64: .* the value of a header is one line/],
    ['baseUrl: https://a.example, auth: none, headers: { a: " x" }', /no blank at either end$/],
    ['baseUrl: https://a.example, auth: none, headers: { x-a: x, X-A: y }', /X-A is there twice, in different case/],
    ['baseUrl: https://a.example, apiKey: "k\\n"', /:46: upstreams.one.apiKey is not valid; write visible ASCII/],
    ['baseUrl: https://a.example, apiKey: ••••', /:46: upstreams.one.apiKey is not valid/],
    ['baseUrl: https://a.example, auth: basic', /auth is not valid; write one of bearer, api-key,/],
    ['baseUrl: https://a.example, auth: none, timeouts: { connect: off }', /timeouts.connect is not valid/],
  ];
  for (const [settings, problem] of refused) t.match(problemsOfUpstream(settings), only(problem), settings);
  t.match(
    problemsOf(load('upstreams: { a b: { baseUrl: https://a.example, auth: none } }')),
    only(/^gate.yaml:1:14: upstreams.… is not a name/),
  );
});

t.test('D7 plain http is a warning beyond this machine and private networks, and only there', async (t) => {
  const warningsOf = (host: string) => load(`upstreams: { a: { auth: none, baseUrl: "http://${host}/v1" } }`).warnings.map(formatProblem);
  for (const host of ['api.example.com', '8.8.8.8', '172.32.0.1', '[2001:db8::1]', 'internal.example']) {
    t.match(warningsOf(host), only(/^gate.yaml:1:40: upstreams.a.baseUrl is plain http .* travel in clear; use https$/), host);
  }
  for (const host of [
    '127.0.0.1:9',
    'localhost',
    '[::1]',
    '10.1.2.3',
    '172.16.0.1',
    '192.168.1.1',
    '[fd00::1]',
    'vllm',
    'a.local',
    'a.internal',
  ]) {
    t.strictSame(warningsOf(host), [], host);
  }
  t.strictSame(load('upstreams: { a: { auth: none, baseUrl: "https://api.example.com" } }').warnings, []);
  t.match(load('upstreams: { a: { auth: none, apiKey: k, baseUrl: "https://a" } }').warnings, [
    { line: 1, message: /apiKey is never sent/ },
  ]);
});

t.test('settings that contradict each other are refused, with the ways out', async (t) => {
  const client = (name: string, hash: string) => `{ name: ${name}, keySha256: ${hash} }`;
  const open = problemsWith('server: { listen: 0.0.0.0:80 }');
  t.match(
    open,
    only(/^gate.yaml:2:19: server.listen is an address beyond this machine.*sluicegate key NAME.*127\.0\.0\.1.*allowAnonymous: true/),
  );
  t.match(problemsWith('server: { listen: gateway.example:80 }'), only(/no clients are configured/));
  t.strictSame(problemsWith('server: { listen: 0.0.0.0:80, allowAnonymous: true }'), []);
  t.strictSame(problemsWith(`server: { listen: 0.0.0.0:80 }\nclients: [${client('a', HASH)}]`), []);
  for (const host of ['127.0.0.2', 'localhost', '"[::1]']) {
    t.strictSame(problemsWith(`server: { listen: ${host}:80${host.startsWith('"') ? '"' : ''} }`), [], host);
  }

  const shared = 'server: { listen: 127.0.0.1:80 }\nops: { listen: 127.0.0.1:80';
  t.match(problemsWith(`${shared} }`), only(/^gate.yaml:3:16: ops.listen is the address of clients too.*set ops.token/));
  t.strictSame(problemsWith(`${shared}, token: t }`), []);
  t.strictSame(problemsWith('server: { listen: 127.0.0.1:0 }\nops: { listen: 127.0.0.1:0 }'), [], 'two free ports are two');

  const other = '2'.repeat(64);
  t.match(problemsWith(`clients: [${client('a', HASH)}, ${client('a', other)}]`), only(/clients\[1\].name repeats the name/));
  t.match(
    problemsWith(`clients: [${client('a', HASH)}, ${client('b', `[${other}, ${HASH.toUpperCase()}]`)}]`),
    only(/clients\[1\].keySha256\[1\] repeats the key/),
  );

  const passing = 'p: { baseUrl: https://p.example, auth: passthrough }';
  const mixed = `upstreams: { ${passing}, ${OPENAI} }`;
  t.match(
    problemsOf(load(`${mixed}\nclients: [${client('a', HASH)}]`)),
    only(/^gate.yaml:1:53: upstreams.p.auth is passthrough, other upstreams are not/),
  );
  t.strictSame(problemsOf(load(mixed)), []);
  t.strictSame(problemsOf(load(`upstreams: { ${passing} }\nclients: [${client('a', HASH)}]`)), []);
});

t.test('without a file the built-in defaults hold, and the environment says the rest', async (t) => {
  const built = (env: Environment) => configOf(loadConfig(undefined, env));
  const faults = (env: Environment) => problemsOf(loadConfig(undefined, env));
  t.strictSame(built({}).upstreams, [], 'the caller starts the demo upstream');
  t.match(built({ OPENAI_API_KEY: 'k' }).upstreams, [
    { name: 'openai', baseUrl: 'https://api.openai.com/v1', apiKeys: ['k'], auth: 'bearer' },
  ]);
  const own = { OPENAI_API_KEY: 'k', SLUICEGATE_UPSTREAM: 'http://localhost:9/v1/' };
  t.match(built(own).upstreams, [{ name: 'upstream', baseUrl: 'http://localhost:9/v1', apiKeys: [], auth: 'none' }]);
  t.equal(built(own).upstreams.length, 1);
  t.match(built({ ...own, SLUICEGATE_UPSTREAM_KEY: 'u' }).upstreams, [{ apiKeys: ['u'], auth: 'bearer' }]);
  t.strictSame(built({ PORT: '', SLUICEGATE_LISTEN: '', SLUICEGATE_KEY: '' }), built({}), 'set to nothing is not set');

  const sha256 = createHash('sha256').update('sk-client').digest('hex');
  const hosted = built({ PORT: '3000', SLUICEGATE_KEY: 'sk-client', SLUICEGATE_OPS_LISTEN: '[::1]:1' });
  t.strictSame(hosted.server.listen, { host: '0.0.0.0', port: 3000 });
  t.strictSame(hosted.ops.listen, { host: '::1', port: 1 });
  t.strictSame(hosted.clients, [{ name: 'default', keySha256: [sha256], models: undefined, endpoints: [], limits: NO_LIMITS }]);
  t.equal(built({ PORT: '3000', SLUICEGATE_LISTEN: '127.0.0.1:1' }).server.listen.port, 1);
  t.equal(built({ PORT: '3000', SLUICEGATE_ALLOW_ANONYMOUS: 'true' }).server.allowAnonymous, true);

  t.match(faults({ PORT: '3000' }), only(/^environment: PORT is an address beyond this machine, and no clients.*SLUICEGATE_KEY/));
  t.match(faults({ SLUICEGATE_LISTEN: '0.0.0.0:1' }), only(/^environment: SLUICEGATE_LISTEN is an address beyond/));
  t.match(faults({ PORT: '65536' }), only(/^environment: PORT is not a port/));
  t.match(faults({ SLUICEGATE_LISTEN: '1' }), only(/^environment: SLUICEGATE_LISTEN is not valid; write it as/));
  t.match(faults({ SLUICEGATE_ALLOW_ANONYMOUS: '1' }), only(/^environment: SLUICEGATE_ALLOW_ANONYMOUS is not valid; write true or false$/));
  t.match(faults({ SLUICEGATE_UPSTREAM: 'file:///x' }), only(/^environment: SLUICEGATE_UPSTREAM is not valid/));
  t.match(faults({ OPENAI_API_KEY: 'a\n' }), only(/^environment: OPENAI_API_KEY is not valid/));
  t.match(faults({ SLUICEGATE_KEY: 'a b' }), only(/^environment: SLUICEGATE_KEY is not a key/));
  t.match(
    faults({ SLUICEGATE_LISTEN: '[::1]:1', SLUICEGATE_OPS_LISTEN: '[::1]:1' }),
    only(/^environment: SLUICEGATE_OPS_LISTEN is the address of clients/),
  );
  t.match(loadConfig(undefined, { SLUICEGATE_UPSTREAM: 'http://a.example' }).warnings, [
    { file: 'environment', line: 0, message: /^SLUICEGATE_UPSTREAM/ },
  ]);
});

t.test('without a file HTTPS_PROXY and NO_PROXY hold for the upstream, as they do for curl', async (t) => {
  const proxyOf = (env: Environment) => configOf(loadConfig(undefined, env)).upstreams[0]?.proxy;
  const HTTPS_PROXY = 'http://proxy.example:3128';
  const openai = { OPENAI_API_KEY: 'k', HTTPS_PROXY };
  t.equal(proxyOf(openai), 'http://proxy.example:3128/');
  t.equal(proxyOf({ OPENAI_API_KEY: 'k', https_proxy: 'u:p@proxy.example:3128' }), 'http://u:p@proxy.example:3128/');
  t.equal(proxyOf({ OPENAI_API_KEY: 'k' }), undefined);
  for (const NO_PROXY of ['*', 'openai.com', '.openai.com', '*.openai.com', 'a.example, api.openai.com', 'API.OpenAI.com:443']) {
    t.equal(proxyOf({ ...openai, NO_PROXY }), undefined, NO_PROXY);
    t.equal(proxyOf({ ...openai, no_proxy: NO_PROXY }), undefined, NO_PROXY);
  }
  for (const NO_PROXY of ['', ',', 'penai.com', 'api.openai.com:8443', 'api.openai.com.example', '10.0.0.0/8', '.', '*.'])
    t.ok(proxyOf({ ...openai, NO_PROXY }), NO_PROXY);
  const own = (url: string, NO_PROXY = '') => proxyOf({ SLUICEGATE_UPSTREAM: url, HTTPS_PROXY, NO_PROXY });
  t.ok(own('https://10.1.2.3/v1'));
  for (const noProxy of ['10.0.0.0/8', '10.1.2.3', '10.1.2.3:443']) t.equal(own('https://10.1.2.3/v1', noProxy), undefined, noProxy);
  t.ok(own('https://10.1.2.3/v1', '2.3'), 'addresses have no domains');
  for (const noProxy of ['fd00::/8', 'fd00::1', '[fd00::1]:443']) t.equal(own('https://[fd00::1]/v1', noProxy), undefined, noProxy);
  t.ok(own('https://[fd00::1]/v1', 'fd00::2,10.0.0.0/8'));
  for (const url of ['http://a.internal/v1', 'https://localhost/v1', 'https://127.0.0.1/v1', 'https://[::1]/v1'])
    t.equal(own(url), undefined, url);
  const malformed = problemsOf(loadConfig(undefined, { ...openai, HTTPS_PROXY: 'socks5://p.example:1080' }));
  t.match(malformed, only(/^environment: HTTPS_PROXY is not valid; write the URL of an HTTP proxy/));
  const file = load('upstreams: { u: { baseUrl: https://api.example/v1, auth: none } }', { HTTPS_PROXY });
  t.equal(configOf(file).upstreams[0]?.proxy, undefined, 'a file says it itself');
});

t.test('with a file the environment changes listeners and adds a client, and its upstreams are left to the file', async (t) => {
  const text = `# shared by an alias\nserver: &both { listen: 127.0.0.1:1 }\nops: *both\nupstreams: { ${OPENAI} }\nclients: [{ name: a, keySha256: ${HASH} }]\n`;
  const env = { SLUICEGATE_LISTEN: '127.0.0.1:2', SLUICEGATE_KEY: 'k', SLUICEGATE_UPSTREAM: 'http://localhost:9', OPENAI_API_KEY: 'x' };
  const config = configOf(load(text, env));
  t.equal(config.server.listen.port, 2);
  t.equal(config.ops.listen.port, 1, 'an alias is a copy');
  t.match(config.upstreams, [{ name: 'openai', apiKeys: ['key-of-openai'] }]);
  t.equal(config.upstreams.length, 1);
  t.strictSame(
    config.clients.map(({ name }) => name),
    ['a', 'default'],
  );
  t.equal(configOf(load(text, { PORT: '3' })).server.listen.host, '0.0.0.0');
  t.match(
    problemsOf(load(text.replace('name: a', 'name: default'), env)),
    only(/^environment: SLUICEGATE_KEY repeats the name of another client/),
  );
});

t.test("OpenTelemetry's variables say where traces go, what the file leaves open of it", async (t) => {
  const traces = (yaml: string, env: Environment) => configOf(load(`upstreams: { ${OPENAI} }\n${yaml}`, env)).traces;
  const defaults = { headers: {}, service: 'sluicegate', resource: {}, sampler: 'parentbased_always_on', sample: 1 };
  const endpoint = { OTEL_EXPORTER_OTLP_ENDPOINT: 'http://otel:4318' };
  t.strictSame(traces('', endpoint), { ...defaults, endpoint: 'http://otel:4318/v1/traces' });
  t.strictSame(traces('traces: { endpoint: "http://otel:4318" }', {}), { ...defaults, endpoint: 'http://otel:4318/v1/traces' });
  t.equal(traces('', { ...endpoint, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: 'https://t/in' })?.endpoint, 'https://t/in');
  const off = [{ OTEL_SDK_DISABLED: 'true' }, { OTEL_TRACES_EXPORTER: 'none' }, { OTEL_EXPORTER_OTLP_ENDPOINT: '' }];
  for (const variables of off) t.equal(traces('', { ...endpoint, ...variables }), undefined);
  t.equal(traces('traces: { endpoint: off }', endpoint), undefined, 'the file is about this one');
  t.equal(traces('', { OTEL_SERVICE_NAME: 'x', OTEL_TRACES_SAMPLER: 'nonsense' }), undefined, 'nothing else turns them on');
  const all = {
    ...{ ...endpoint, OTEL_SERVICE_NAME: 'gate', OTEL_RESOURCE_ATTRIBUTES: 'service.name=other,a.b=c%20d' },
    ...{ OTEL_EXPORTER_OTLP_HEADERS: 'x-a=1,x-b=2', OTEL_EXPORTER_OTLP_TRACES_HEADERS: 'x-b=3' },
    ...{ OTEL_TRACES_SAMPLER: 'parentbased_traceidratio', OTEL_TRACES_SAMPLER_ARG: '0.25' },
  };
  t.strictSame(traces('', all), {
    ...{ endpoint: 'http://otel:4318/v1/traces', headers: { 'x-a': '1', 'x-b': '3' }, service: 'gate', resource: { 'a.b': 'c d' } },
    ...{ sampler: 'parentbased_traceidratio', sample: 0.25 },
  });
  t.equal(traces('traces: { service: mine }', all)?.service, 'mine');
  t.match(problemsWith('', { ...endpoint, OTEL_TRACES_SAMPLER: 'xray' }), only(/^environment: OTEL_TRACES_SAMPLER .* write one of/));
  t.match(problemsWith('', { ...endpoint, OTEL_RESOURCE_ATTRIBUTES: 'a' }), only(/^environment: OTEL_RESOURCE_ATTRIBUTES is not a list/));
  t.match(
    problemsWith('', { ...endpoint, OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc' }),
    only(/^environment: OTEL_EXPORTER_OTLP_PROTOCOL asks for/),
  );
  t.match(problemsWith('traces: { endpoint: otel }'), only(/^gate.yaml:2:\d+: traces\.endpoint .*http:\/\/127/));
  t.match(problemsWith('traces: { headers: { host: a } }'), only(/traces\.headers\.host is set by the gateway/));
  const printed = printConfig(configOf(load(`upstreams: { ${OPENAI} }`, all)));
  t.match(printed, /headers:\n {4}x-a: ••••/);
  t.match(printed, /sampler: parentbased_traceidratio/);
});

t.test('what is printed loads again as the same configuration, and has no secret in it', async (t) => {
  const text = `
server: { listen: "[::]:80", cors: { origins: [https://a.example] }, trustProxy: [10.0.0.0/8], maxRequestBody: 1000, drain: 0s, clientStall: 90s }
ops: { token: CANARY-token }
upstreams:
  b: { baseUrl: https://b.example, apiKey: CANARY-key, headers: { X-Own: CANARY-header, OpenAI-Project: p }, query: { sig: CANARY-query, api-version: v1 } }
  "1": { baseUrl: https://c.example, auth: none, maxConnections: off, timeouts: { idle: off, total: 90m } }
clients: [{ name: a, keySha256: ${HASH}, models: ["m*"], endpoints: [/v1/files*], limits: { requestsPerMinute: 9, budget: { usd: 1.5, per: day } } }]
models: [{ match: "m*", upstreams: [b], price: { input: 1, output: 2.5, audioInput: 3 } }]
limits: { store: "redis://user:CANARY-password@127.0.0.1:6379/1" }
`;
  const config = configOf(load(text));
  const printed = printConfig(config);
  t.notMatch(printed, /CANARY/);
  t.match(printed, 'OpenAI-Project: p');
  t.match(
    problemsOf(load(printed)),
    [/ops.token is not valid/, /b.apiKey is not valid/, /X-Own is not valid/],
    'a mask that is pasted is noticed',
  );
  const secrets = ['token', 'key', 'header', 'query', 'password'].map((name) => `CANARY-${name}`);
  t.strictSame(configOf(load(printed.replace(/••••/g, () => secrets.shift() ?? ''))), config);
  for (const store of ['redis://user:a@CANARY@h/1', 'rediss://:CANARY@h', 'redis://h/1?password=CANARY&db=2']) {
    t.notMatch(
      printConfig(configOf(load(`upstreams: { a: { baseUrl: https://a.example, auth: none } }\nlimits: { store: "${store}" }`))),
      /CANARY/,
    );
  }
  t.match(printConfig(configOf(loadConfig(undefined, {}))), /^# upstreams: none; the built-in demo upstream serves$/m);
});

t.test('the example shows every supported setting with its default', async (t) => {
  const example = load(EXAMPLE, { OPENAI_API_KEY: 'key-of-openai' });
  t.strictSame(example.warnings, []);
  t.strictSame(configOf(example), configOf(load(`upstreams: { ${OPENAI} }`)));
  const withClient = EXAMPLE.replace('clients: []', 'clients:')
    .replace('models: []', 'models:')
    .replace(
      /^# (- match| {2}upstreams| {2}replay| {2}rewrite| {2}balance| {2}hedge| {2}price|- name| {2}keySha256| {2}models| {2}endpoints| {2}limits| {4})/gm,
      '$1',
    );
  t.match(configOf(load(withClient, { OPENAI_API_KEY: 'k' })).clients, [
    { name: 'web-app', limits: { requestsPerMinute: 600, budget: { usd: 20, per: 'day' } } },
  ]);
  for (const key of settingsOf(configOf(load(withClient, { OPENAI_API_KEY: 'k' })))) t.match(EXAMPLE, new RegExp(`\\b${key}:`), key);
  t.match(problemsOf(load(EXAMPLE)), only(/the environment variable OPENAI_API_KEY is not set/));
});

t.test('the further examples, and what the page on moving over shows, are valid and give no warning', async (t) => {
  const root = new URL('..', import.meta.url);
  const folder = new URL('config/examples/', root);
  const files = readdirSync(folder).map((file) => ({ file, text: readFileSync(new URL(file, folder), 'utf8') }));
  const page = readFileSync(new URL('docs/moving-over.md', root), 'utf8');
  const blocks = [...page.matchAll(/^```yaml\n# Sluicegate\n([\s\S]*?)^```$/gm)].map(([, text = ''], index) => ({
    file: `block ${index}`,
    text,
  }));
  t.strictSame([files.length, blocks.length], [4, 2]);
  for (const { file, text } of [...files, ...blocks]) {
    const variables = [...text.replace(/#.*$/gm, '').matchAll(/\$\{(\w+)\}/g)].map(([, name = '']) => name);
    const result = load(text, Object.fromEntries(variables.map((name) => [name, `key-${name}`])));
    t.strictSame([...problemsOf(result), ...result.warnings.map(formatProblem)], [], file);
    if (!file.endsWith('.yaml')) continue;
    const [head = ''] = text.split(/^[^#]/m);
    for (const name of variables) t.match(head, `${name}=`, `${file} says at its top that it wants ${name}`);
    t.match(head, 'yaml-language-server: $schema=../sluicegate.schema.json');
    t.match(head, `-c config/examples/${file}`);
  }
});

/** The names of all settings that are printed. */
function settingsOf(config: Config): string[] {
  return [...printConfig(config).matchAll(/^[ -]*(\w+):/gm)].map(([, key]) => key ?? '');
}

t.test('the JSON Schema in the repository is the one that the schema makes', async (t) => {
  const file = readFileSync(new URL('../config/sluicegate.schema.json', import.meta.url), 'utf8');
  t.equal(file, `${JSON.stringify(configJsonSchema(), null, 2)}\n`, 'write it anew with configJsonSchema()');
  t.match(configJsonSchema(), {
    required: ['upstreams'],
    additionalProperties: false,
    properties: { upstreams: { additionalProperties: { required: ['baseUrl'] } } },
  });
});

t.test('whatever the text is, loading never throws, and no message has a secret or a line break in it', async (t) => {
  const random = createRandom(20_261_122);
  const pick = <T>(list: ArrayLike<T>): T => list[Math.floor(random() * list.length)] as T;
  const noise = [
    `\${`,
    '}',
    '"',
    "'",
    ': ',
    '\n',
    '\t',
    '- ',
    '[',
    '{',
    '*x',
    '&x ',
    '!',
    '|',
    '>',
    '#',
    '%',
    '\0',
    '\ud800',
    '__proto__',
    'CANARY',
    '---',
    '?',
    ',',
  ];
  const full = `${EXAMPLE.replace('clients: []', 'clients:').replace(/^# (- name| {2}keySha256| {2}limits)/gm, '$1')}`.replace(
    'headers: {}',
    'headers: { X-Key: CANARY-1 }',
  );
  const env = { OPENAI_API_KEY: 'CANARY-2' };
  const texts = Array.from(full, (_, end) => full.slice(0, end)).filter((_, end) => end % 7 === 0);
  for (let round = 0; round < 600; round++) {
    const at = Math.floor(random() * full.length);
    texts.push(full.slice(0, at) + pick(noise) + full.slice(at + Math.floor(random() * 4)));
    texts.push(Array.from({ length: Math.floor(random() * 40) }, () => pick(round % 2 ? noise : full)).join(''));
  }
  const messages = new Set<string>();
  for (const text of texts) {
    const result = load(text, env);
    for (const problem of [...(result.ok ? [] : result.problems), ...result.warnings]) messages.add(leaksOf(problem));
    if (result.ok === false && result.problems.length === 0) messages.add(`no problem for ${JSON.stringify(text)}`);
  }
  messages.delete('');
  t.strictSame([...messages], []);
});

/** The message of a problem that says too much or has no place; else nothing. */
function leaksOf(problem: Problem): string {
  const isPlaced = problem.line >= 1 && problem.column >= 1;
  return isPlaced && !/CANARY-|[\r\n]/.test(problem.message) ? '' : formatProblem(problem);
}

/** Numbers from 0 to 1 that are the same in every run (mulberry32). */
function createRandom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

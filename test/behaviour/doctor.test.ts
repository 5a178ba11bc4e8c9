// Promise: `sluicegate doctor` tells which hop on the way holds back, cuts or compresses a stream, and what to set there.
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { createServer, request as requestHttp, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { promisify } from 'node:util';
import t, { type Test } from 'tap';
import { startDemo } from '../../src/demo/server.ts';
import { hashKey } from '../../src/http/auth.ts';
import { startTestGateway, type TestGateway } from '../support/gateway.ts';
import { runSluicegate } from '../support/process.ts';
import { findFreePort, findProgram, nginxConfig, startServer } from '../support/servers.ts';
import { createCertificate } from '../support/tls.ts';

t.jobs = 4;

const [nginx, haproxy, caddy] = ['nginx', 'haproxy', 'caddy'].map(findProgram);
const missing = (file: string | undefined, name: string) => (file === undefined ? `${name} is not installed` : false);
/** Nothing of these tests reaches an upstream. */
const NO_UPSTREAM = 'http://127.0.0.1:1/v1';
const KEY = 'sk-client-of-the-doctor';

interface Told {
  readonly code: number | string;
  readonly text: string;
}

/** Runs the doctor as a person does. */
async function consult(t: Test, url: string, args: string[] = [], env: Record<string, string> = {}): Promise<Told> {
  const running = runSluicegate(t, ['doctor', url, '--silence', '500ms', ...args], env);
  const code = await running.exited();
  return { code, text: running.stdout + running.stderr };
}

async function startNginx(t: Test, http: string): Promise<void> {
  const folder = t.testdir({});
  const file = join(folder, 'nginx.conf');
  writeFileSync(file, nginxConfig(folder, http));
  await promisify(execFile)(nginx ?? '', ['-e', 'stderr', '-p', folder, '-t', '-c', file]);
  // The first lines that it says come once its sockets listen.
  await startServer(t, nginx ?? '', ['-e', 'stderr', '-p', folder, '-c', file]).said('OS: ');
}

/** nginx with one location before the gateway; resolves with its URL. */
async function behindNginx(t: Test, gateway: TestGateway, settings: string): Promise<string> {
  const port = await findFreePort();
  await startNginx(t, `server { listen 127.0.0.1:${port}; location / { proxy_pass ${gateway.url}; ${settings} } }`);
  return `http://127.0.0.1:${port}/v1`;
}

async function behindHaproxy(t: Test, gateway: TestGateway, settings: string): Promise<string> {
  const port = await findFreePort();
  const config = `global
  log stdout format raw local0
defaults
  mode http
  log global
  timeout connect 5s
  timeout client 30s
  timeout server 30s
  ${settings}
frontend clients
  bind 127.0.0.1:${port}
  default_backend gateways
backend gateways
  option httpchk GET /readyz
  option log-health-checks
  server one 127.0.0.1:${gateway.port} check inter 200ms
`;
  const folder = t.testdir({ 'haproxy.cfg': config });
  await startServer(t, haproxy ?? '', ['-db', '-f', join(folder, 'haproxy.cfg')]).said('Health check for server gateways/one succeeded');
  return `http://127.0.0.1:${port}`;
}

async function behindCaddy(t: Test, gateway: TestGateway, edit: (caddyfile: string) => string): Promise<string> {
  const port = await findFreePort();
  const folder = t.testdir({ Caddyfile: `{\n\tadmin off\n}\n${edit(readFileSync('config/caddy/Caddyfile', 'utf8'))}` });
  const env = { SLUICEGATE_SITE: `http://127.0.0.1:${port}`, SLUICEGATE_GATEWAYS: `127.0.0.1:${gateway.port}`, HOME: folder };
  const args = ['--config', join(folder, 'Caddyfile'), '--adapter', 'caddyfile'];
  await promisify(execFile)(caddy ?? '', ['validate', ...args], { env: { ...process.env, ...env } });
  await startServer(t, caddy ?? '', ['run', ...args], env).said('serving initial configuration');
  return `http://127.0.0.1:${port}/v1`;
}

const gatewayOf = (t: Test) => startTestGateway(t, NO_UPSTREAM);

t.test('direct: streaming, nobody on the way, however the URL is written', async (t) => {
  const gateway = await gatewayOf(t);
  for (const url of [gateway.url, `${gateway.baseUrl}/`, `${gateway.baseUrl}/chat/completions`]) {
    const { code, text } = await consult(t, url);
    t.equal(code, 0, text);
    t.match(text, /^streaming: 30 of 30 events/);
    t.match(text, new RegExp(`url +${gateway.baseUrl}\n +on the way +nobody that shows`));
    t.match(text, /Silence was tried for 500 ms/);
  }
  t.match(await gateway.ended(), { endpoint: '/v1/sluicegate/probe', outcome: 'completed', client: 'anonymous' });
});

t.test('nginx as it comes: streaming, since Sluicegate asks for it', { skip: missing(nginx, 'nginx') }, async (t) => {
  const { code, text } = await consult(t, await behindNginx(t, await gatewayOf(t), ''));
  t.equal(code, 0, text);
  t.match(text, /on the way +nginx\n/);
  t.match(text, /By default nginx cuts after 60 s/);
  t.match(text, / - x-accel-buffering: no\n/);
});

t.test('nginx with config/nginx/sluicegate.conf (proxy_buffering off): streaming', { skip: missing(nginx, 'nginx') }, async (t) => {
  const gateway = await gatewayOf(t);
  const port = await findFreePort();
  const file = readFileSync('config/nginx/sluicegate.conf', 'utf8');
  t.match(file, /^\s+proxy_buffering off;$/m);
  await startNginx(
    t,
    file.replace('server gateway:8080;', `server 127.0.0.1:${gateway.port};`).replace('listen 80;', `listen 127.0.0.1:${port};`),
  );
  const { code, text } = await consult(t, `http://127.0.0.1:${port}/v1`);
  t.equal(code, 0, text);
  t.match(text, /on the way +nginx\n/);
  t.equal((await fetch(`http://127.0.0.1:${port}/readyz`)).status, 200);
  t.equal((await fetch(`http://127.0.0.1:${port}/metrics`)).status, 404);
});

t.test('nginx told not to heed it: buffered, how much and how long, and which lines', { skip: missing(nginx, 'nginx') }, async (t) => {
  const { code, text } = await consult(t, await behindNginx(t, await gatewayOf(t), 'proxy_ignore_headers X-Accel-Buffering;'));
  t.equal(code, 3, text);
  const [, held, longest, together, bytes] =
    /^buffered: (\d+) of 30 events were held back, for up to ([\d.]+) s; up to (\d+) \((\d+) bytes\)/.exec(text) ?? [];
  t.ok(Number(held) >= 20 && Number(longest) >= 1, `${held} events for ${longest} s`);
  t.ok(Number(together) >= 5 && Number(bytes) > 2000 && Number(bytes) < 9000, `${together} events, ${bytes} bytes: about nginx's buffer`);
  t.match(text, /nginx, buffered:\n.*proxy_buffering off;\n.*proxy_ignore_headers/);
});

t.test('nginx that compresses event streams: compressed, and not buffered', { skip: missing(nginx, 'nginx') }, async (t) => {
  const url = await behindNginx(t, await gatewayOf(t), 'gzip_types text/event-stream; gzip_proxied any; gzip_min_length 0;');
  const { code, text } = await consult(t, url);
  t.equal(code, 5, text);
  t.match(text, /^compressed: the events come in gzip/);
  t.match(text, /nginx, compressed:\n.*gzip off;/);
  const { verdict, hops } = JSON.parse((await consult(t, url, ['--json'])).text);
  t.same({ verdict, hops }, { verdict: 'compressed', hops: ['nginx'] });
});

t.test('nginx that loses patience: cut after so much silence', { skip: missing(nginx, 'nginx') }, async (t) => {
  const { code, text } = await consult(t, await behindNginx(t, await gatewayOf(t), 'proxy_read_timeout 1s;'), ['--silence', '4s']);
  t.equal(code, 4, text);
  const seconds = Number(/^cut after ([\d.]+) (?:m?s) of silence/.exec(text)?.[1]);
  t.ok((seconds >= 0.5 && seconds < 3) || seconds > 500, text);
  t.match(text, /proxy_read_timeout 1h;/);
  t.match(text, /sse\.heartbeat is 15 s, which is too late: sse: \{ heartbeat: /);
});

t.test('HAProxy with option http-no-delay: streaming', { skip: missing(haproxy, 'haproxy') }, async (t) => {
  const { code, text } = await consult(t, await behindHaproxy(t, await gatewayOf(t), 'option forwardfor\n  option http-no-delay'));
  t.equal(code, 0, text);
  t.match(text, /^streaming/);
  t.match(text, /on the way +a hop that does not give its name/);
});

t.test(
  'HAProxy as it comes: gathers events for the kernel’s 200 ms, and which option ends that',
  { skip: missing(haproxy, 'haproxy') },
  async (t) => {
    const { code, text } = await consult(t, await behindHaproxy(t, await gatewayOf(t), ''));
    t.equal(code, 3, text);
    const [, longest] = /^buffered: \d+ of 30 events were held back, for up to (\d+) ms; up to [2-9] /.exec(text) ?? [];
    t.ok(Number(longest) > 150 && Number(longest) < 600, `${longest} ms`);
    t.match(text, /HAProxy: "option http-no-delay"/);
  },
);

t.test('HAProxy that loses patience: cut, and which timeouts', { skip: missing(haproxy, 'haproxy') }, async (t) => {
  const url = await behindHaproxy(t, await gatewayOf(t), 'option http-no-delay\n  timeout server 1s');
  const { code, text } = await consult(t, url, ['--silence', '4s']);
  t.equal(code, 4, text);
  t.match(text, /^cut after (?:[12](?:\.\d)? s|[5-9]\d\d ms) of silence/);
  t.match(text, /"timeout server 1h" and "timeout client 1h"/);
});

t.test('Caddy with config/caddy/Caddyfile: streaming', { skip: missing(caddy, 'caddy') }, async (t) => {
  const url = await behindCaddy(t, await gatewayOf(t), (file) => file);
  const { code, text } = await consult(t, url);
  t.equal(code, 0, text);
  t.match(text, /on the way +Caddy\n/);
  t.equal((await fetch(url.replace('/v1', '/metrics'))).status, 404);
});

t.test('Caddy that encodes: compressed, and which line', { skip: missing(caddy, 'caddy') }, async (t) => {
  const encoding = 'encode {\n\t\tgzip\n\t\tmatch {\n\t\t\theader Content-Type text/*\n\t\t}\n\t}\n';
  const url = await behindCaddy(t, await gatewayOf(t), (file) => file.replace('\t@api path', `\t${encoding}\t@api path`));
  const { text } = await consult(t, url);
  t.match(text, /^compressed: the events come in gzip/m);
  t.match(text, /Caddy, compressed:\n.*Take encode off/);
});

/** A hop that does as it is told; resolves with its URL. */
async function startHop(t: Test, handle: (path: string, response: ServerResponse) => void, tls?: string): Promise<string> {
  const server: Server = createServer((request, response) => handle(request.url ?? '', response));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    server.closeAllConnections();
    return new Promise((resolve) => server.close(resolve));
  });
  return `${tls ?? 'http'}://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

t.test('a hop that waits for the whole answer, as API Gateway does: all of it at the end', async (t) => {
  const gateway = await gatewayOf(t);
  const url = await startHop(t, (path, response) => {
    requestHttp(`${gateway.url}${path}`, (answer) => {
      const pieces: Buffer[] = [];
      answer.on('data', (piece: Buffer) => pieces.push(piece));
      answer.on('end', () => response.writeHead(200, { ...answer.headers, 'x-amz-apigw-id': 'a=' }).end(Buffer.concat(pieces)));
    }).end();
  });
  const { code, text } = await consult(t, url);
  t.equal(code, 3, text);
  t.match(text, /^buffered: all 30 events \(\d+ bytes\) arrived together at the end, the first one (?:2\.[5-9]|[3-5](?:\.\d)?) s late/);
  t.match(text, /on the way +API Gateway\n/);
  t.match(text, /responseTransferMode: STREAM/);
});

t.test('a hop that answers for the gateway after silence: cut, with its status', async (t) => {
  const gateway = await gatewayOf(t);
  const url = await startHop(t, (path, response) => {
    if (!path.includes('silenceMs=500')) {
      requestHttp(`${gateway.url}${path}`, (answer) => answer.pipe(response.writeHead(200, answer.headers))).end();
    } else {
      response.writeHead(504, { 'content-type': 'text/html' }).end('<h1>504</h1>');
    }
  });
  const { code, text } = await consult(t, url);
  t.equal(code, 4, text);
  t.match(text, /with a 504 of the hop's own/);
});

t.test('an answer out of a cache is told from one of the gateway', async (t) => {
  const gateway = await gatewayOf(t);
  const url = await startHop(t, (path, response) => {
    requestHttp(`${gateway.url}${path.replace(/nonce=[\w-]+/, 'nonce=old')}`, (answer) =>
      answer.pipe(response.writeHead(200, answer.headers)),
    ).end();
  });
  const { code, text } = await consult(t, url);
  t.equal(code, 2);
  t.match(text, /came out of a cache/);
});

t.test('a gateway that asks for a key', async (t) => {
  const clients = [{ name: 'doctor', keySha256: hashKey(KEY), models: ['none-of-these'] }];
  const gateway = await startTestGateway(t, NO_UPSTREAM, { clients });
  const none = await consult(t, gateway.baseUrl);
  t.match(none, { code: 2, text: /asks for a client’s key \(401\)\n\n.*--key KEY/ });
  const wrong = await consult(t, gateway.baseUrl, ['--key', 'sk-wrong-0123456789']);
  t.match(wrong, { code: 2, text: /does not know this key/ });
  t.notMatch(wrong.text, 'sk-wrong');
  t.match(await consult(t, gateway.baseUrl, ['--key', KEY]), { code: 0, text: /^streaming/ });
  t.match(await consult(t, gateway.baseUrl, [], { SLUICEGATE_KEY: KEY }), { code: 0 });
  const passthrough = await startTestGateway(t, NO_UPSTREAM, { upstream: { auth: 'passthrough', apiKey: undefined }, clients });
  t.match(
    await consult(t, passthrough.baseUrl, ['--key', KEY]),
    { code: 0, text: /^streaming/ },
    'in the header that passthrough leaves for it',
  );
});

t.test('TLS: a certificate that nobody knows, one that is known, and none where one was asked for', async (t) => {
  const { cert, key } = createCertificate();
  const folder = t.testdir({ 'cert.pem': cert, 'key.pem': key });
  const files = { cert: join(folder, 'cert.pem'), key: join(folder, 'key.pem') };
  const gateway = await startTestGateway(t, NO_UPSTREAM, { server: { tls: files } });
  t.match(await consult(t, gateway.baseUrl), { code: 2, text: /TLS with .* failed \(\w+\)\n\n[\s\S]*NODE_EXTRA_CA_CERTS/ });
  t.match(await consult(t, gateway.baseUrl, [], { NODE_EXTRA_CA_CERTS: files.cert }), { code: 0, text: /^streaming/ });
  const plain = await gatewayOf(t);
  t.match(await consult(t, plain.baseUrl.replace('http:', 'https:')), { code: 2, text: /does not speak TLS/ });
  t.match(await consult(t, gateway.baseUrl.replace('https:', 'http:')), { code: 2 });
});

t.test(
  'what is no probe is explained: closed port, wrong port, wrong server, lost path, redirect, unknown name, dead backend',
  async (t) => {
    const gateway = await gatewayOf(t);
    t.match(await consult(t, `http://127.0.0.1:${await findFreePort()}/v1`), {
      code: 2,
      text: /ECONNREFUSED\)\n\n +Nothing listens there/,
    });
    t.match(await consult(t, gateway.opsUrl), { code: 2, text: /the port of metrics/ });
    const demo = await startDemo({ host: '127.0.0.1', port: 0 });
    t.teardown(() => demo.close());
    t.match(await consult(t, demo.url), { code: 2, text: /404\)/ });
    const page = await startHop(t, (_, response) =>
      response.writeHead(200, { 'content-type': 'text/html' }).end('<p>Hello \u001b[2J there'),
    );
    const other = await consult(t, page);
    t.match(other, { code: 2, text: /\(200, text\/html\) is not that of a Sluicegate/ });
    t.notMatch(other.text, '\u001b');
    const elsewhere = await startHop(t, (path, response) => response.writeHead(308, { location: `https://llm.example${path}` }).end());
    t.match(await consult(t, `${elsewhere}/v1`), {
      code: 2,
      text: /redirects to https:\/\/llm\.example\/v1\n[\s\S]*sluicegate doctor https:\/\/llm\.example\/v1\n/,
    });
    const dead = await startHop(t, (_, response) => response.writeHead(502).end('<html>Bad Gateway</html>'));
    t.match(await consult(t, dead), { code: 2, text: /answered 502 in the place of the gateway/ });
    const renamed = await startHop(t, (path, response) => {
      requestHttp(`${gateway.url}${path}`, { headers: { host: 'gateway:8080' } }, (answer) =>
        answer.pipe(response.writeHead(answer.statusCode ?? 0, answer.headers)),
      ).end();
    });
    t.match(await consult(t, renamed), { code: 2, text: /server\.hostnames/ });
  },
);

t.test('a command line that cannot be used is 1', async (t) => {
  for (const args of [
    [],
    ['localhost:8080'],
    ['http://127.0.0.1:1', 'more'],
    ['http://127.0.0.1:1', '--silence', 'long'],
    ['http://127.0.0.1:1', '--silence', '1h'],
    ['http://127.0.0.1:1', '--watch'],
  ]) {
    const running = runSluicegate(t, ['doctor', ...args]);
    t.equal(await running.exited(), 1, args.join(' '));
    t.match(running.stderr, /sluicegate doctor --help tells how to call it/);
  }
});

// The demo upstream: a small OpenAI-compatible server, paced like a model, to try Sluicegate with before there is a key.
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { type Call, sendJson } from './call.ts';
import { completeChat } from './chat.ts';
import { completeText } from './completions.ts';
import { embed } from './embeddings.ts';
import { checkModel } from './fields.ts';
import { takeFile } from './files.ts';
import { MODELS } from './model.ts';
import { DEFAULT_PACE, type Pace, readPace } from './pace.ts';
import { createRefusal, isRefusal } from './refusal.ts';
import { createResponses } from './responses.ts';
import { speak } from './speech.ts';

/** How it talks to a request that does not say otherwise, and the bearer token it asks for, if any. */
export interface DemoOptions {
  /** Before the first token; 250 by default. */
  ttftMs?: number;
  /** 40 by default; 0 is as fast as it goes. */
  tokensPerSecond?: number;
  key?: string;
}

/** A running demo upstream. */
export interface Demo {
  /** The base URL for clients: http://host:port/v1 */
  readonly url: string;
  /** Requests taken, answered whole, and left (or ended by `close`) before that. Live; `GET /demo/stats` shows the same. */
  readonly stats: { opened: number; finished: number; cut: number };
  /** Ends live streams at once and frees the port. */
  close(): Promise<void>;
}

type Answer = (call: Call, id: string) => Promise<void> | void;

/** One path and who answers each method; the pattern's first group is the id. */
interface Route {
  readonly path: RegExp;
  readonly methods: Readonly<Record<string, Answer>>;
}

/** Starts the demo upstream. port 0: any free one. Rejects if it cannot listen. */
export async function startDemo(listen: { host: string; port: number }, options: DemoOptions = {}): Promise<Demo> {
  const stats = { opened: 0, finished: 0, cut: 0 };
  const pace = { ttftMs: options.ttftMs ?? DEFAULT_PACE.ttftMs, tokensPerSecond: options.tokensPerSecond ?? DEFAULT_PACE.tokensPerSecond };
  const routes = createRoutes();
  const server = createServer((req, res) => {
    res.setHeader('server', 'sluicegate-demo');
    if (req.url === '/demo/stats') return sendJson(res, 200, stats);
    const gone = countEnd(res, stats);
    void answerRequest(routes, { req, res, gone }, { pace, key: options.key });
  });
  // Longer than a client keeps a connection it does not use: with Node's 5 s the two ends race, and a request meets a reset.
  server.keepAliveTimeout = 75_000;
  await new Promise<void>((resolve, reject) => server.once('error', reject).listen(listen, resolve));
  let closed: Promise<void> | undefined;
  return {
    url: urlOf(server),
    stats,
    close() {
      closed ??= new Promise((resolve) => server.close(() => resolve()).closeAllConnections());
      return closed;
    },
  };
}

function createRoutes(): Route[] {
  const responses = createResponses();
  return [
    { path: /^\/v1\/models$/, methods: { GET: listModels } },
    { path: /^\/v1\/models\/(.+)$/, methods: { GET: ({ res }, id) => sendJson(res, 200, describeModel(checkModel(id))) } },
    { path: /^\/v1\/chat\/completions$/, methods: { POST: completeChat } },
    { path: /^\/v1\/completions$/, methods: { POST: completeText } },
    { path: /^\/v1\/responses$/, methods: { POST: responses.create } },
    { path: /^\/v1\/responses\/([^/]+)$/, methods: { GET: responses.retrieve } },
    { path: /^\/v1\/embeddings$/, methods: { POST: embed } },
    { path: /^\/v1\/files$/, methods: { POST: takeFile } },
    { path: /^\/v1\/audio\/speech$/, methods: { POST: speak } },
  ];
}

function listModels({ res }: Call): void {
  sendJson(res, 200, { object: 'list', data: MODELS.map(describeModel) });
}

function describeModel(id: string): object {
  return { id, object: 'model', created: 1_767_225_600, owned_by: 'sluicegate-demo' };
}

/** Counts how one request ends; the signal aborts if that is before its answer is whole. */
function countEnd(res: ServerResponse, stats: Demo['stats']): AbortSignal {
  const gone = new AbortController();
  stats.opened += 1;
  res.once('finish', () => {
    stats.finished += 1;
  });
  res.once('close', () => {
    if (res.writableFinished) return;
    stats.cut += 1;
    gone.abort();
  });
  return gone.signal;
}

async function answerRequest(
  routes: Route[],
  { req, res, gone }: Pick<Call, 'req' | 'res' | 'gone'>,
  options: { pace: Pace; key: string | undefined },
): Promise<void> {
  try {
    if (options.key !== undefined) checkKey(req, options.key);
    const [path, query] = splitTarget(req);
    const { answer, id } = findAnswer(routes, req.method ?? '', path);
    await answer({ req, res, gone, query: new URLSearchParams(query), pace: readPace(req.headers, options.pace) }, id);
  } catch (error) {
    if (!gone.aborted && !res.destroyed) answerError(res, error);
  }
}

function checkKey({ headers }: IncomingMessage, key: string): void {
  if (headers.authorization === `Bearer ${key}`) return;
  throw createRefusal(401, 'Incorrect API key provided.', { code: 'invalid_api_key', headers: { 'www-authenticate': 'Bearer' } });
}

function splitTarget({ url = '/' }: IncomingMessage): [path: string, query: string] {
  const at = url.indexOf('?');
  return at < 0 ? [url, ''] : [url.slice(0, at), url.slice(at + 1)];
}

function findAnswer(routes: Route[], method: string, path: string): { answer: Answer; id: string } {
  const route = routes.find((one) => one.path.test(path));
  if (!route) throw createRefusal(404, `Unknown request URL: ${method} ${path}.`, { code: 'unknown_url' });
  const answer = Object.hasOwn(route.methods, method) ? route.methods[method] : undefined;
  if (answer) return { answer, id: decodeId(route.path.exec(path)?.[1] ?? '') };
  const allow = Object.keys(route.methods).join(', ');
  throw createRefusal(405, `Not allowed to ${method} on ${path}.`, { code: 'method_not_supported', headers: { allow } });
}

function decodeId(segment: string): string {
  try {
    return decodeURIComponent(segment);
  } catch {
    throw createRefusal(400, 'The path is not valid percent-encoding.');
  }
}

/** After the first byte there is no error to send any more: the connection breaks, so that nobody takes the answer for whole. */
function answerError(res: ServerResponse, error: unknown): void {
  const refusal = isRefusal(error) ? error : createRefusal(500, 'The demo upstream failed.');
  if (res.headersSent) res.destroy();
  else sendJson(res, refusal.status, refusal.body, refusal.headers);
}

function urlOf(server: Server): string {
  const { address, family, port } = server.address() as AddressInfo;
  return `http://${family === 'IPv6' ? `[${address}]` : address}:${port}/v1`;
}

// What operators see and may do: metrics, the live page, what it shows, an end to a stream, a prompt of their own.
import { createHash, timingSafeEqual } from 'node:crypto';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { type Address, type Config, isLoopback } from '../config.ts';
import { GatewayError } from '../errors.ts';
import type { Page } from '../telemetry/registry.ts';
import type { View } from '../telemetry/view.ts';
import { credentialHeaders } from '../upstream/headers.ts';
import { createGuard } from './guard.ts';
import { serveLivePage } from './live-page.ts';

export interface OpsParts {
  config(): Config;
  /** Where this listener is, which no reload changes. */
  readonly listen: Address;
  /** Whether clients call on it too. */
  readonly isShared: boolean;
  /** The metrics, of all processes. */
  scrape(accept: string): Promise<Page>;
  /** What is under way, in all processes. */
  look(): Promise<View>;
  /** Ends the request that was shown under this id, in whichever process; whether there is one. */
  endStream(id: string): Promise<boolean>;
  /** Serves a request as if a client had sent it. */
  handle(request: FastifyRequest, reply: FastifyReply): Promise<void>;
}

/**
 * What an action needs besides the token. No form, image or link can send a header of its own, and a script of another origin
 * would have to be allowed to, which nobody is. `Origin` is judged as well, but only where a browser sends it.
 */
const ACTION_HEADER = 'x-sluicegate-action';
/** What of the page's own must not go on with its prompt; its authorization is the token of ops. */
const OWN_HEADERS = new Set<string>([...credentialHeaders, 'x-sluicegate-key', ACTION_HEADER]);

/** Serves all of ops but the health checks. With `ops.token`, each but the page itself needs it as `Authorization: Bearer`. */
export function serveOps(app: FastifyInstance, parts: OpsParts): void {
  const { config, listen, isShared } = parts;

  const checkToken = ({ headers }: FastifyRequest) => {
    const { token } = config().ops;
    if (token !== undefined && !isSameSecret(headers.authorization ?? '', `Bearer ${token}`))
      throw new GatewayError('invalid_api_key', 'Missing or wrong ops token. Send the one in ops.token as Authorization: Bearer TOKEN.');
  };

  /** Without a token, only for this machine; and for no web page but ours (INTERFACE section 10). */
  const checkCaller = ({ raw }: FastifyRequest) => {
    const { ops, server } = config();
    if (ops.token === undefined && (isShared || !isLoopback(listen.host)))
      throw new GatewayError('not_found', 'Beyond loopback and without ops.token only /metrics and the health checks are here.');
    createGuard({ listen, hostnames: server.hostnames, origins: [] })(raw);
  };
  const checkReader = (request: FastifyRequest) => {
    checkCaller(request);
    checkToken(request);
  };
  const checkActor = (request: FastifyRequest) => {
    checkReader(request);
    if (request.headers[ACTION_HEADER] === undefined)
      throw new GatewayError('forbidden_origin', `This needs the header ${ACTION_HEADER}, so that no other web page can do it.`);
  };

  app.get('/metrics', async (request, reply) => {
    checkToken(request);
    const { contentType, body } = await parts.scrape(request.headers.accept ?? '');
    return reply.type(contentType).send(body);
  });
  serveLivePage(app, checkCaller);
  app.get('/api/streams', async (request, reply) => {
    checkReader(request);
    return reply.headers(DATA_HEADERS).send(await parts.look());
  });
  app.delete<{ Params: { id: string } }>('/api/streams/:id', async (request, reply) => {
    checkActor(request);
    const { id } = request.params;
    if (!(await parts.endStream(id))) throw new GatewayError('not_found', 'No such stream is under way: it may have ended.');
    return reply.code(202).headers(DATA_HEADERS).send({ id, state: 'ending' });
  });
  for (const [method, path] of [['GET', '/models'] as const, ['POST', '/chat/completions'] as const]) {
    app.route({
      method,
      url: `/api${path}`,
      handler: async (request, reply) => {
        checkActor(request);
        readdress(request, `/v1${path}`, config());
        return parts.handle(request, reply);
      },
    });
  }
}

const DATA_HEADERS = { 'cache-control': 'no-store', 'x-content-type-options': 'nosniff', 'cross-origin-resource-policy': 'same-origin' };

/** Makes the page's request one of a client's: to where clients call, with the client's key in place of the token. */
function readdress({ raw }: FastifyRequest, target: string, { clients, upstreams }: Config): void {
  const key = raw.headers['x-sluicegate-key'];
  const isKeyApart = clients.length > 0 && upstreams.some(({ auth }) => auth === 'passthrough');
  const rest = raw.rawHeaders.flatMap((name, at, all) => (at % 2 === 1 || OWN_HEADERS.has(name.toLowerCase()) ? [] : [name, all[at + 1]!]));
  for (const name of OWN_HEADERS) delete raw.headers[name];
  if (typeof key === 'string') rest.push(...(isKeyApart ? ['x-sluicegate-key', key] : ['authorization', `Bearer ${key}`]));
  raw.rawHeaders.splice(0, raw.rawHeaders.length, ...rest);
  raw.url = target;
}

/** Compares in a time that tells nothing of either. */
function isSameSecret(given: string, expected: string): boolean {
  const digest = (text: string) => createHash('sha256').update(text).digest();
  return timingSafeEqual(digest(given), digest(expected));
}

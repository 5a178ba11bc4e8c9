// What operators see: metrics, and a page that says what is where.
import { createHash, timingSafeEqual } from 'node:crypto';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { type Config, isLoopback } from '../config.ts';
import { GatewayError } from '../errors.ts';
import type { Metrics } from '../telemetry/metrics.ts';
import { createGuard } from './guard.ts';

/** Serves all of ops but the health checks. With `ops.token`, each needs it as `Authorization: Bearer`. */
export function serveOps(app: FastifyInstance, config: () => Config, metrics: Pick<Metrics, 'scrape'>): void {
  const checkToken = (request: FastifyRequest) => {
    const { token } = config().ops;
    if (token !== undefined && !isSameSecret(request.headers.authorization ?? '', `Bearer ${token}`))
      throw new GatewayError('invalid_api_key');
  };

  app.get('/metrics', async (request, reply) => {
    checkToken(request);
    const { contentType, body } = await metrics.scrape(request.headers.accept ?? '');
    return reply.type(contentType).send(body);
  });
  app.get('/', async (request, reply) => {
    const { ops, server } = config();
    if (ops.token === undefined && !isLoopback(ops.listen.host))
      throw new GatewayError('not_found', 'Beyond loopback and without ops.token only /metrics and the health checks are here.');
    checkToken(request);
    createGuard({ listen: ops.listen, hostnames: server.hostnames, origins: [] })(request.raw);
    return reply
      .type('text/plain; charset=utf-8')
      .send('Sluicegate\n\n/metrics  for Prometheus\n/healthz  the process runs\n/readyz   it would accept a stream\n');
  });
}

/** Compares in a time that tells nothing of either. */
function isSameSecret(given: string, expected: string): boolean {
  const digest = (text: string) => createHash('sha256').update(text).digest();
  return timingSafeEqual(digest(given), digest(expected));
}

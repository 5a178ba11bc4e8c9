// The health checks, the same on both listeners.
import type { FastifyInstance } from 'fastify';

/** Whether the gateway would accept a stream, and if not, why. */
export interface Readiness {
  readonly isReady: boolean;
  readonly reason: string;
}

/**
 * `GET /healthz`: 200 while the process runs. `GET /readyz`: 503 with the reason while it would not accept a stream.
 * @param onAsked called on each `/readyz`
 */
export function serveHealth(app: FastifyInstance, readiness: () => Readiness, onAsked: () => void): void {
  app.get('/healthz', async (_, reply) => reply.type('text/plain; charset=utf-8').send('ok\n'));
  app.get('/readyz', async (_, reply) => {
    const { isReady, reason } = readiness();
    onAsked();
    return reply
      .code(isReady ? 200 : 503)
      .type('text/plain; charset=utf-8')
      .send(`${reason}\n`);
  });
}

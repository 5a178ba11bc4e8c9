// Fastify with @fastify/http-proxy: what one would take off the shelf on this platform. No meter, no limits, no log.
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Contender, findFreePort, peersFolder, startProcess, UPSTREAM_KEY } from '../contender.ts';

const script = fileURLToPath(import.meta.url);
const fromPeers = createRequire(join(peersFolder, 'package.json'));

export const httpProxy: Contender = {
  name: 'http-proxy',
  describe: () => `@fastify/http-proxy ${fromPeers('@fastify/http-proxy/package.json').version}, no log`,
  isAvailable: () => (existsSync(join(peersFolder, 'node_modules/@fastify/http-proxy')) ? undefined : 'not installed (--install)'),
  cannot: ({ workers }) => (workers > 1 ? 'is one process' : undefined),
  async start({ upstreamPort, isTls, caFile, cpus }) {
    const port = await findFreePort();
    const upstream = `${isTls ? 'https' : 'http'}://127.0.0.1:${upstreamPort}`;
    return startProcess({ command: [process.execPath, script, String(port), upstream], port, cpus, env: { NODE_EXTRA_CA_CERTS: caFile } });
  },
};

async function serve(port: number, upstream: string): Promise<void> {
  const app = fromPeers('fastify')({ logger: false, bodyLimit: 64 * 1024 * 1024 });
  app.register(fromPeers('@fastify/http-proxy'), {
    upstream,
    // Its default of 128 connections would make the 129th stream wait.
    undici: { connections: 20_000, pipelining: 1, bodyTimeout: 0, headersTimeout: 0 },
    replyOptions: {
      rewriteRequestHeaders: (_: unknown, headers: object) => ({ ...headers, authorization: `Bearer ${UPSTREAM_KEY}` }),
    },
  });
  await app.listen({ port, host: '127.0.0.1', backlog: 4096 });
}

if (process.argv[1] === script) await serve(Number(process.argv[2]), process.argv[3] ?? '');

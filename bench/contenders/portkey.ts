// Portkey's gateway, as its own start script runs it.
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Contender, findFreePort, peersFolder, startProcess, UPSTREAM_KEY } from '../contender.ts';

const folder = join(peersFolder, 'node_modules/@portkey-ai/gateway');

export const portkey: Contender = {
  name: 'portkey',
  describe: () =>
    `@portkey-ai/gateway ${JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')).version}, --headless, with the @hono/node-server of install.ts`,
  isAvailable: () => (existsSync(folder) ? undefined : 'not installed (--install)'),
  cannot: ({ workers }) => (workers > 1 ? 'is one process' : undefined),
  async start({ upstreamPort, isTls, caFile, cpus }) {
    const port = await findFreePort();
    const command = [process.execPath, join(folder, 'build/start-server.js'), `--port=${port}`, '--headless'];
    const running = await startProcess({ command, port, cpus, env: { NODE_EXTRA_CA_CERTS: caFile } });
    const headers = [
      `Authorization: Bearer ${UPSTREAM_KEY}`,
      'x-portkey-provider: openai',
      `x-portkey-custom-host: ${isTls ? 'https' : 'http'}://127.0.0.1:${upstreamPort}/v1`,
    ];
    return { ...running, headers };
  },
};

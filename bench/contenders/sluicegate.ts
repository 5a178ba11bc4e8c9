// Sluicegate as a user would run it: src/main.ts with a file, metering on, a client key in and an upstream key out, its JSON log to /dev/null.
import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { stringify } from 'yaml';
import { CLIENT_KEY, type Contender, findFreePort, type Setup, startProcess, UPSTREAM_KEY } from '../contender.ts';

const here = fileURLToPath(new URL('../..', import.meta.url));
/** So high that nobody is refused, and yet each call is counted against them. */
const LIMITS = { requestsPerMinute: 100_000_000, tokensPerMinute: 1_000_000_000_000, concurrentStreams: 1_000_000 };

/** Only what differs from the defaults, so that older commits can read it too. */
function configure({ upstreamPort, isTls, workers, redisUrl }: Setup, port: number): object {
  const client = { name: 'bench', keySha256: createHash('sha256').update(CLIENT_KEY).digest('hex') };
  return {
    server: { listen: `127.0.0.1:${port}`, maxConnections: 'off', ...(workers > 1 && { workers }) },
    ops: { listen: '127.0.0.1:0' },
    upstreams: {
      bench: { baseUrl: `${isTls ? 'https' : 'http'}://127.0.0.1:${upstreamPort}/v1`, apiKey: UPSTREAM_KEY, maxConnections: 'off' },
    },
    clients: [redisUrl === undefined ? client : { ...client, limits: LIMITS }],
    ...(redisUrl !== undefined && { limits: { store: redisUrl } }),
  };
}

/** What its `npm start` gives Node: another commit may have had other options. */
function nodeOptionsOf(root: string): string[] {
  const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  return scripts.start.split(' ').filter((word: string) => word.startsWith('--'));
}

/** @param root of the checkout to run; this one by default */
export function createSluicegate(name = 'sluicegate', root = here): Contender {
  return {
    name,
    describe: () => `Node ${process.version}, metering on, usage asked for, one client key, JSON log to /dev/null`,
    isAvailable: () => undefined,
    async start(setup) {
      const port = await findFreePort();
      const file = join(setup.folder, 'sluicegate.yaml');
      writeFileSync(file, stringify(configure(setup, port)));
      const command = [process.execPath, ...nodeOptionsOf(root), join(root, 'src/main.ts'), '-c', file];
      // A real provider's authority is one that Node knows: so is this one made, without a caFile.
      return startProcess({ command, port, cpus: setup.cpus, env: setup.isTls ? { NODE_EXTRA_CA_CERTS: setup.caFile } : {} });
    },
  };
}

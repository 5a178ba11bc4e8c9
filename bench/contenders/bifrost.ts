// Bifrost's HTTP transport, file-based configuration, its log store off.
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Contender, findFreePort, findProgram, peersFolder, startProcess, UPSTREAM_KEY } from '../contender.ts';

const own = join(peersFolder, 'go/bifrost-http');
const program = existsSync(own) ? own : findProgram('bifrost-http');

export const bifrost: Contender = {
  name: 'bifrost',
  describe: () => 'bifrost-http by go install, file-based configuration',
  isAvailable: () => (program === undefined ? 'no bifrost-http here (--install asks the Go module proxy for it)' : undefined),
  cannot: ({ isTls }) => (isTls ? 'not set up for the private authority' : undefined),
  async start({ upstreamPort, cpus, workers, folder }) {
    const port = await findFreePort();
    const configuration = {
      client: { drop_excess_requests: false, enable_logging: false, initial_pool_size: 5000 },
      providers: {
        openai: {
          keys: [{ name: 'bench', value: UPSTREAM_KEY, models: ['*'], weight: 1 }],
          network_config: { base_url: `http://127.0.0.1:${upstreamPort}`, default_request_timeout_in_seconds: 600 },
          concurrency_and_buffer_size: { concurrency: 6000, buffer_size: 10_000 },
        },
      },
      config_store: { enabled: false },
    };
    writeFileSync(join(folder, 'config.json'), JSON.stringify(configuration));
    const command = [program ?? '', '-host', '127.0.0.1', '-port', String(port), '-app-dir', folder, '-log-level', 'error'];
    return { ...(await startProcess({ command, port, cpus, env: { GOMAXPROCS: String(workers) } })), model: 'openai/gpt-4o' };
  },
};

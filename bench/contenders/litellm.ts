// LiteLLM's proxy, one worker, a master key, its own price list.
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { CLIENT_KEY, type Contender, findFreePort, peersFolder, startProcess, UPSTREAM_KEY, versionOf } from '../contender.ts';

const program = join(peersFolder, 'venv/bin/litellm');

export const litellm: Contender = {
  name: 'litellm',
  describe: () => `${versionOf(program, '--version').trim()}, from PyPI, master key`,
  isAvailable: () => (existsSync(program) ? undefined : 'not installed (--install)'),
  cannot: ({ isTls }) => (isTls ? 'not set up for the private authority' : undefined),
  async start({ upstreamPort, cpus, workers, folder }) {
    const port = await findFreePort();
    const file = join(folder, 'litellm.yaml');
    writeFileSync(
      file,
      `model_list:
  - model_name: "*"
    litellm_params: { model: "openai/*", api_base: "http://127.0.0.1:${upstreamPort}/v1", api_key: ${UPSTREAM_KEY} }
general_settings: { master_key: ${CLIENT_KEY} }
litellm_settings: { telemetry: false, request_timeout: 600 }
`,
    );
    const command = [program, '--config', file, '--host', '127.0.0.1', '--port', String(port), '--num_workers', String(workers)];
    return startProcess({ command, port, cpus, cwd: folder, env: { LITELLM_LOCAL_MODEL_COST_MAP: 'True', LITELLM_MODE: 'PRODUCTION' } });
  },
};

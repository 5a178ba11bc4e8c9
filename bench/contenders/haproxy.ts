// HAProxy in HTTP mode, without delay, connections to the upstream kept and shared, no log.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Contender, findFreePort, findProgram, type Setup, startProcess, UPSTREAM_KEY, versionOf } from '../contender.ts';

const program = findProgram('haproxy');

function configure({ upstreamPort, isTls, caFile, workers }: Setup, port: number): string {
  return `global
  maxconn 9000
  nbthread ${workers}
defaults
  mode http
  option http-no-delay
  http-reuse always
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  timeout http-keep-alive 600s
frontend f
  bind 127.0.0.1:${port} backlog 4096
  default_backend b
backend b
  http-request set-header Authorization "Bearer ${UPSTREAM_KEY}"
  server up 127.0.0.1:${upstreamPort} pool-max-conn 6000${isTls ? ` ssl verify required ca-file ${caFile}` : ''}
`;
}

export const haproxy: Contender = {
  name: 'haproxy',
  describe: () => `${versionOf(program ?? '', '-v').split(' - ')[0]}, option http-no-delay, http-reuse always, no log`,
  isAvailable: () => (program === undefined ? 'not installed' : undefined),
  async start(setup) {
    const port = await findFreePort();
    const file = join(setup.folder, 'haproxy.cfg');
    writeFileSync(file, configure(setup, port));
    return startProcess({ command: [program ?? '', '-db', '-f', file], port, cpus: setup.cpus });
  },
};

// nginx as a streaming proxy: nothing buffered in either direction, connections to the upstream kept, no access log.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Contender, findFreePort, findProgram, type Setup, startProcess, UPSTREAM_KEY, versionOf } from '../contender.ts';

const program = findProgram('nginx');

function configure({ upstreamPort, isTls, caFile, workers, folder }: Setup, port: number): string {
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((kind) => `${kind}_temp_path ${folder}/${kind};`);
  const tls = `proxy_ssl_verify on; proxy_ssl_trusted_certificate ${caFile}; proxy_ssl_name localhost;`;
  return `
user root; worker_processes ${workers}; pid ${folder}/pid; error_log ${folder}/error.log crit; daemon off; worker_rlimit_nofile 40000;
events { worker_connections 18000; }
http {
  access_log off; tcp_nodelay on; keepalive_requests 10000000; client_max_body_size 64m;
  ${temporary.join(' ')}
  upstream up { server 127.0.0.1:${upstreamPort}; keepalive 6000; keepalive_requests 10000000; }
  server {
    listen 127.0.0.1:${port} backlog=4096;
    location / {
      proxy_pass ${isTls ? 'https' : 'http'}://up; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Authorization "Bearer ${UPSTREAM_KEY}";
      proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 600s;
      ${isTls ? tls : ''}
    }
  }
}`;
}

export const nginx: Contender = {
  name: 'nginx',
  describe: () => `${versionOf(program ?? '', '-v')}, proxy_buffering off, proxy_request_buffering off, no access log`,
  isAvailable: () => (program === undefined ? 'not installed' : undefined),
  async start(setup) {
    const port = await findFreePort();
    const file = join(setup.folder, 'nginx.conf');
    writeFileSync(file, configure(setup, port));
    return startProcess({ command: [program ?? '', '-p', setup.folder, '-c', file], port, cpus: setup.cpus });
  },
};

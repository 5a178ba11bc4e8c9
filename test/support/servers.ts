// Real servers of other people's for a test: nginx, HAProxy, Caddy, found where Debian puts them, killed with the test.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { createServer } from 'node:net';
import { delimiter, join } from 'node:path';
import type { Test } from 'tap';
import { createWaiting } from './waiting.ts';

/** Where a program is, Debian's place for servers included; undefined where it is not installed. */
export function findProgram(program: string): string | undefined {
  const folders = ['/usr/sbin', ...(process.env.PATH ?? '').split(delimiter)];
  return folders.map((folder) => join(folder, program)).find((file) => existsSync(file));
}

/** Free a moment ago; whoever takes it in between makes its user fail to start, and the test to say so. */
export async function findFreePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  return typeof address === 'object' ? (address?.port ?? 0) : 0;
}

/** Starts a server; `said` waits for something in its output. */
export function startServer(t: Test, file: string, args: string[], env: Record<string, string> = {}) {
  const child = spawn(file, args, { stdio: ['ignore', 'pipe', 'pipe'], env: { PATH: process.env.PATH ?? '', ...env } });
  const exited = once(child, 'close');
  const kill = () => child.kill('SIGKILL');
  // For a test that dies before its teardown.
  process.once('exit', kill);
  t.teardown(() => {
    process.off('exit', kill);
    kill();
    return exited;
  });
  const waiting = createWaiting(10_000);
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text;
      waiting.changed();
    });
  }
  void exited.then(() => waiting.abandon(`${file} ended while the test waited`));
  return {
    /** The offset behind everything said so far. */
    mark: () => output.length,
    said: (wanted: string, since = 0) =>
      waiting.wait({ awaited: wanted, seen: () => output.slice(-1500), attempt: () => output.includes(wanted, since) || undefined }),
  };
}

/** A whole nginx.conf around what stands in its http block, with every path in `folder`. */
export function nginxConfig(folder: string, http: string): string {
  const temp = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((name) => `${name}_temp_path ${folder}/${name};`).join(' ');
  return `daemon off; master_process off; pid ${folder}/nginx.pid; error_log stderr notice;
events { worker_connections 768; }
http { sendfile on; tcp_nopush on; types_hash_max_size 2048; default_type application/octet-stream; access_log off; gzip on; ${temp}
${http}
}
`;
}

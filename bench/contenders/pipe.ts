// A bare Node net pipe: bytes from socket to socket, no HTTP, no meter. The floor of what a Node program can reach with public APIs.
import { connect as connectTcp, createServer } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { fileURLToPath } from 'node:url';
import { type Contender, findFreePort, startProcess } from '../contender.ts';

const script = fileURLToPath(import.meta.url);

export const pipe: Contender = {
  name: 'pipe',
  describe: () => `Node ${process.version}: socket.pipe(socket) both ways, nothing else`,
  isAvailable: () => undefined,
  cannot: ({ workers }) => (workers > 1 ? 'is one process' : undefined),
  async start({ upstreamPort, isTls, caFile, cpus }) {
    const port = await findFreePort();
    const command = [process.execPath, script, String(port), String(upstreamPort), String(isTls)];
    return startProcess({ command, port, cpus, env: { NODE_EXTRA_CA_CERTS: caFile } });
  },
};

function serve(port: number, upstreamPort: number, isTls: boolean): void {
  const server = createServer({ noDelay: true, allowHalfOpen: false }, (client) => {
    const to = { port: upstreamPort, host: '127.0.0.1' };
    const upstream = isTls ? connectTls(to) : connectTcp({ ...to, noDelay: true });
    client.pipe(upstream).pipe(client);
    client.on('error', () => upstream.destroy()).on('close', () => upstream.destroy());
    upstream.on('error', () => client.destroy()).on('close', () => client.destroy());
  });
  server.listen({ port, host: '127.0.0.1', backlog: 4096 });
}

if (process.argv[1] === script) serve(Number(process.argv[2]), Number(process.argv[3]), process.argv[4] === 'true');

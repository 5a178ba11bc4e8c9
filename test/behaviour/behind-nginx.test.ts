// Promise: behind nginx as it comes, buffering and all, a stream is still a stream, its end is true and its client's going is heard.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { startTestGateway } from '../support/gateway.ts';
import { findFreePort, findProgram, nginxConfig, startServer } from '../support/servers.ts';
import { startUpstream } from '../support/upstream.ts';

const binary = findProgram('nginx');
const skip = binary === undefined && 'nginx is not installed';

/** What each variant adds to `proxy_pass`, and the coding that a client which offers gzip then gets. */
const variants: Record<string, { settings: string; coding: string | null }> = {
  'as it comes': { settings: '', coding: null },
  'with HTTP/1.1 towards the gateway': { settings: 'proxy_http_version 1.1;', coding: null },
  'compressing event streams too': { settings: 'gzip_types text/event-stream; gzip_proxied any; gzip_min_length 0;', coding: 'gzip' },
};

/** Starts one nginx with a server for each variant, all before `url`; resolves with their URLs once it listens. */
async function startNginx(t: Test, url: string): Promise<Record<string, string>> {
  const ports = await Promise.all(Object.keys(variants).map(findFreePort));
  const servers = Object.values(variants).map(
    ({ settings }, at) => `server { listen 127.0.0.1:${ports[at]}; location / { proxy_pass ${url}; ${settings} } }`,
  );
  const folder = t.testdir({});
  writeFileSync(join(folder, 'nginx.conf'), nginxConfig(folder, servers.join('\n')));
  // The first lines that it says come once its sockets listen.
  await startServer(t, binary ?? '', ['-e', 'stderr', '-p', folder, '-c', join(folder, 'nginx.conf')]).said('OS: ');
  return Object.fromEntries(Object.keys(variants).map((name, at) => [name, `http://127.0.0.1:${ports[at]}/v1`]));
}

/** A chat stream by `fetch`, which offers gzip and undoes it. */
async function openStream(url: string) {
  const controller = new AbortController();
  const body = '{"model":"m","stream":true}';
  const signal = AbortSignal.any([controller.signal, AbortSignal.timeout(10_000)]);
  const response = await fetch(`${url}/chat/completions`, { method: 'POST', body, signal });
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  return {
    response,
    leave: () => controller.abort(),
    /** Reads until the text so far contains `wanted`, or to the end; returns all that was read. */
    async readUntil(wanted: string): Promise<string> {
      while (!text.includes(wanted)) {
        const { done, value } = await reader.read();
        if (done) throw new Error(`the stream ended without ${wanted}`);
        text += value;
      }
      return text;
    },
    async readToEnd(): Promise<string> {
      for (let next = await reader.read(); !next.done; next = await reader.read()) text += next.value;
      return text;
    },
  };
}

const delta = (content: string) => ({ choices: [{ index: 0, delta: { content }, finish_reason: null }] });

t.test('behind nginx', { skip }, async (t) => {
  const upstream = await startUpstream();
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url);
  const urls = await startNginx(t, gateway.url);

  /** A stream under way, from its app to its upstream. */
  async function begin(name: string) {
    const opening = openStream(urls[name] ?? '');
    const request = await upstream.request();
    request.startSse();
    return { request, stream: await opening };
  }

  for (const [name, { coding }] of Object.entries(variants)) {
    t.test(`${name}: event n + 1 is withheld until the app has event n, through all 20`, async (t) => {
      const { request, stream } = await begin(name);
      t.equal(stream.response.headers.get('content-encoding'), coding);
      t.match(stream.response.headers.get('server'), /nginx/);
      for (let n = 1; n <= 20; n += 1) {
        request.event(delta(`token ${n};`));
        t.match(await stream.readUntil(`token ${n};`), `token ${n};`);
      }
      request.event('[DONE]');
      request.endChunks();
      t.equal((await stream.readToEnd()).match(/^data: /gm)?.length, 21);
      t.equal((await gateway.ended()).outcome, 'completed');
    });

    t.test(`${name}: an app that leaves closes the upstream`, async (t) => {
      const { request, stream } = await begin(name);
      request.event(delta('one;'));
      await stream.readUntil('one;');
      stream.leave();
      await request.connection.closed;
      t.match(await gateway.ended(), { outcome: 'client_closed', phase: 'stream' });
    });

    t.test(`${name}: a stream that breaks does not end like a whole one`, async (t) => {
      const { request, stream } = await begin(name);
      request.event(delta('one;'));
      await stream.readUntil('one;');
      request.connection.reset();
      t.match(await stream.readUntil('upstream_reset'), /data: \{"error":.*"code":"upstream_reset"/);
      await t.rejects(stream.readToEnd());
      t.equal((await gateway.ended()).outcome, 'upstream_reset');
    });
  }
});

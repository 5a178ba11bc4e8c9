// What a person needs first: where to point an app, who may call, who answers, where the numbers are, and a line to try it with.
import { isDeepStrictEqual } from 'node:util';
import { type Config, isLoopback } from '../config.ts';
import type { Served } from '../gateway.ts';
import { readVersion } from './command.ts';
import type { Loaded } from './load.ts';

/** Names of clients in the start-up lines. */
const MAX_SHOWN_CLIENTS = 5;

/** @param isDemo whether the built-in demo answers */
export function writeStartLines(gateway: Pick<Served, 'url' | 'opsUrl'>, { config, file }: Loaded, isDemo: boolean): string {
  const [url, opsUrl] = [gateway.url, gateway.opsUrl].map(reachable);
  const key = config.clients.length > 0 ? ' -H "authorization: Bearer $SLUICEGATE_KEY"' : '';
  const body = `{"model":"${isDemo ? 'demo' : likelyModel(config)}","stream":true,"messages":[{"role":"user","content":"Hello!"}]}`;
  const upstream = isDemo
    ? 'the built-in demo (no key is set; OPENAI_API_KEY or SLUICEGATE_UPSTREAM choose a real one)'
    : config.upstreams.map(({ name, baseUrl }) => `${name} at ${baseUrl}`).join(', ');
  return `
Sluicegate ${readVersion()}

  API       ${url}/v1   the base URL for your app
  Clients   ${describeClients(config)}
  Upstream  ${upstream}
  Metrics   ${opsUrl}/metrics
${hasLivePage(config) ? `  Live page ${opsUrl}/\n` : ''}  Settings  ${file ?? 'built-in defaults and the environment'}

Try it:

  curl -N ${url}/v1/chat/completions${key} -H 'content-type: application/json' -d '${body}'

Behind nginx, a CDN or a load balancer, "sluicegate doctor URL" tells whether streams come through.

`;
}

/** An address that means all addresses is none to paste, nor to call. */
export function reachable(url: string): string {
  return url.replace('//0.0.0.0:', '//127.0.0.1:').replace('//[::]:', '//[::1]:');
}

/** As ops has it: for this machine, or for whoever has the token. */
function hasLivePage({ ops, server }: Config): boolean {
  return ops.token !== undefined || (isLoopback(ops.listen.host) && !isDeepStrictEqual(ops.listen, server.listen));
}

/** Who may call; of many only some, and how many more. */
function describeClients({ clients, server }: Config): string {
  if (clients.length === 0)
    return isLoopback(server.listen.host) ? 'anyone on this machine, without a key' : 'anyone who reaches it, without a key';
  const names = clients.slice(0, MAX_SHOWN_CLIENTS).map(({ name }) => name);
  const more = clients.length - names.length;
  return `${names.join(', ')}${more > 0 ? ` and ${more} more` : ''}, each with its key`;
}

/** A model to paste: one that the configuration names, else one that OpenAI has; of other upstreams nobody knows. */
function likelyModel({ models, upstreams }: Config): string {
  const named = models.find(({ match }) => !match.includes('*'))?.match;
  const isOpenAi = upstreams[0]?.baseUrl.startsWith('https://api.openai.com') ?? false;
  return named ?? (isOpenAi ? 'gpt-4o-mini' : 'MODEL');
}

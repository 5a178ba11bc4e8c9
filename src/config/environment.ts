// Lays the environment's variables over a file's tree before anything is checked, so that one set of rules holds for both.
import { createHash } from 'node:crypto';
import { BlockList, isIP } from 'node:net';
import { valueAt } from './check.ts';
import { BROKEN, type Environment, type Path } from './load.ts';
import { isCredential, isLoopback, isNetwork } from './scalars.ts';

export interface Overlay {
  readonly tree: unknown;
  /** What is wrong with a variable that fits no setting: `[variable, what is wrong and what would be right]`. */
  readonly faults: readonly (readonly [variable: string, message: string])[];
  /** The variable that set a path, or something around it. */
  variableOf(path: Path): string | undefined;
}

interface Layer {
  tree: unknown;
  readonly variables: [path: Path, variable: string][];
  readonly faults: [variable: string, message: string][];
}

/** The tree as the environment changes it (INTERFACE section 1). A variable that is set to nothing counts as not set. */
export function layEnvironment(tree: unknown, env: Environment, hasFile: boolean): Overlay {
  const layer: Layer = { tree, variables: [], faults: [] };
  if (!hasFile) addUpstream(layer, env);
  setListeners(layer, env);
  if (env.SLUICEGATE_ALLOW_ANONYMOUS) {
    put(layer, ['server', 'allowAnonymous'], env.SLUICEGATE_ALLOW_ANONYMOUS, 'SLUICEGATE_ALLOW_ANONYMOUS');
  }
  if (env.SLUICEGATE_KEY) addClient(layer, env.SLUICEGATE_KEY);
  setTraces(layer, env);
  const isWithin = (path: Path, outer: Path) => outer.every((segment, depth) => path[depth] === segment);
  return { ...layer, variableOf: (path) => layer.variables.find(([outer]) => isWithin(path, outer))?.[1] };
}

function addUpstream(layer: Layer, env: Environment): void {
  if (env.SLUICEGATE_UPSTREAM) {
    const key = env.SLUICEGATE_UPSTREAM_KEY;
    put(layer, ['upstreams', 'upstream', 'baseUrl'], env.SLUICEGATE_UPSTREAM, 'SLUICEGATE_UPSTREAM');
    if (key) put(layer, ['upstreams', 'upstream', 'apiKey'], key, 'SLUICEGATE_UPSTREAM_KEY');
    put(layer, ['upstreams', 'upstream', 'auth'], key ? 'bearer' : 'none', 'SLUICEGATE_UPSTREAM');
    addProxy(layer, env, 'upstream', env.SLUICEGATE_UPSTREAM);
  } else if (env.OPENAI_API_KEY) {
    put(layer, ['upstreams', 'openai', 'baseUrl'], 'https://api.openai.com/v1', 'OPENAI_API_KEY');
    put(layer, ['upstreams', 'openai', 'apiKey'], env.OPENAI_API_KEY, 'OPENAI_API_KEY');
    addProxy(layer, env, 'openai', 'https://api.openai.com/v1');
  }
}

/** As curl has it: the proxy for https, which may be written without its scheme, but for hosts of NO_PROXY and this machine. */
function addProxy(layer: Layer, env: Environment, name: string, baseUrl: string): void {
  const variable = env.HTTPS_PROXY ? 'HTTPS_PROXY' : 'https_proxy';
  const proxy = env[variable];
  if (!proxy || !URL.canParse(baseUrl)) return;
  const { protocol, hostname, port } = new URL(baseUrl);
  const host = hostname.replace(/^\[|\]$/g, '').replace(/\.$/, '');
  if (protocol !== 'https:' || isLoopback(host) || host.endsWith('.localhost')) return;
  if (isExempt(host, port || '443', env.NO_PROXY || env.no_proxy || '')) return;
  put(layer, ['upstreams', name, 'proxy'], /^\w+:\/\//.test(proxy) ? proxy : `http://${proxy}`, variable);
}

/** Whether NO_PROXY names a host: `*`, a domain with all below it (with or without a dot before it), an address or a range; each perhaps with a port. */
function isExempt(host: string, port: string, noProxy: string): boolean {
  return noProxy
    .toLowerCase()
    .split(/[\s,]+/)
    .some((entry) => {
      const [, bracketed, bare = '', only = port] = /^(?:\[(.*)\]|(.*?))(?::(\d+))?$/.exec(entry) ?? [];
      const named = isIP(entry) !== 0 || isNetwork(entry) ? entry : (bracketed ?? bare).replace(/^\*?\./, '');
      if (named === '' || (named !== entry && only !== port)) return false;
      return named === '*' || named === host || (isIP(host) === 0 ? host.endsWith(`.${named}`) : isWithin(host, named));
    });
}

function isWithin(address: string, network: string): boolean {
  if (!isNetwork(network) || isIP(address) !== isIP(network.split('/')[0] ?? '')) return false;
  const family = isIP(address) === 4 ? 'ipv4' : 'ipv6';
  const list = new BlockList();
  const [start = '', bits = family === 'ipv4' ? '32' : '128'] = network.split('/');
  list.addSubnet(start, Number(bits), family);
  return list.check(address, family);
}

function setListeners(layer: Layer, env: Environment): void {
  const { SLUICEGATE_LISTEN: listen, SLUICEGATE_OPS_LISTEN: opsListen, PORT: port } = env;
  if (listen) put(layer, ['server', 'listen'], listen, 'SLUICEGATE_LISTEN');
  else if (port && /^\d{1,5}$/.test(port) && Number(port) <= 65_535) put(layer, ['server', 'listen'], `0.0.0.0:${port}`, 'PORT');
  else if (port) layer.faults.push(['PORT', 'is not a port; set it to a number from 0 to 65535, or set SLUICEGATE_LISTEN']);
  if (opsListen) put(layer, ['ops', 'listen'], opsListen, 'SLUICEGATE_OPS_LISTEN');
}

function addClient(layer: Layer, key: string): void {
  const variable = 'SLUICEGATE_KEY';
  if (!isCredential(key)) layer.faults.push([variable, 'is not a key; a key is visible ASCII without blanks or line breaks']);
  const clients = valueAt(layer.tree, ['clients']) ?? [];
  if (!Array.isArray(clients)) return;
  const keySha256 = createHash('sha256').update(key).digest('hex');
  put(layer, ['clients'], [...clients, { name: 'default', keySha256 }]);
  layer.variables.push([['clients', clients.length], variable]);
}

/**
 * OpenTelemetry's own variables, where the file leaves a setting open: they are often set for all containers of a cluster at once,
 * and what the file says (`endpoint: off` too) is about this one.
 */
function setTraces(layer: Layer, env: Environment): void {
  const set = (key: string, value: unknown, variable: string) => {
    if (valueAt(layer.tree, ['traces', key]) === undefined) put(layer, ['traces', key], value, variable);
  };
  const isOff = /^true$/i.test(env.OTEL_SDK_DISABLED ?? '') || env.OTEL_TRACES_EXPORTER === 'none';
  const own = env.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT;
  const shared = env.OTEL_EXPORTER_OTLP_ENDPOINT;
  if (!isOff && own) set('endpoint', own, 'OTEL_EXPORTER_OTLP_TRACES_ENDPOINT');
  else if (!isOff && shared) set('endpoint', `${shared.replace(/\/+$/, '')}/v1/traces`, 'OTEL_EXPORTER_OTLP_ENDPOINT');
  if ((valueAt(layer.tree, ['traces', 'endpoint']) ?? 'off') === 'off') return;
  const protocol = env.OTEL_EXPORTER_OTLP_TRACES_PROTOCOL || env.OTEL_EXPORTER_OTLP_PROTOCOL || 'http/protobuf';
  if (protocol !== 'http/protobuf' && layer.variables.some(([[section]]) => section === 'traces')) {
    const right = 'name the http endpoint (port 4318) with http/protobuf, or set traces.endpoint in the file';
    layer.faults.push([
      'OTEL_EXPORTER_OTLP_PROTOCOL',
      `asks for another protocol than http/protobuf, which is what is spoken here; ${right}`,
    ]);
  }

  const pairs = (variable: string) => (env[variable] ? readPairs(layer, variable, env[variable]) : {});
  const headers = { ...pairs('OTEL_EXPORTER_OTLP_HEADERS'), ...pairs('OTEL_EXPORTER_OTLP_TRACES_HEADERS') };
  if (Object.keys(headers).length > 0) set('headers', headers, 'OTEL_EXPORTER_OTLP_HEADERS');
  const { 'service.name': named, ...resource } = pairs('OTEL_RESOURCE_ATTRIBUTES');
  if (Object.keys(resource).length > 0) set('resource', resource, 'OTEL_RESOURCE_ATTRIBUTES');
  if (env.OTEL_SERVICE_NAME) set('service', env.OTEL_SERVICE_NAME, 'OTEL_SERVICE_NAME');
  else if (named) set('service', named, 'OTEL_RESOURCE_ATTRIBUTES');
  if (env.OTEL_TRACES_SAMPLER) set('sampler', env.OTEL_TRACES_SAMPLER, 'OTEL_TRACES_SAMPLER');
  if (env.OTEL_TRACES_SAMPLER_ARG) set('sample', env.OTEL_TRACES_SAMPLER_ARG, 'OTEL_TRACES_SAMPLER_ARG');
}

/** `name=value,name=value`, percent-encoded, as OpenTelemetry writes headers and attributes (of W3C Baggage 3.3.1). */
function readPairs(layer: Layer, variable: string, text: string): Record<string, string> {
  const pairs: [string, string][] = [];
  for (const pair of text.split(',').filter((part) => part.trim() !== '')) {
    const at = pair.indexOf('=');
    try {
      if (at < 1) throw new URIError();
      pairs.push([pair.slice(0, at).trim(), decodeURIComponent(pair.slice(at + 1).trim())]);
    } catch {
      layer.faults.push([variable, 'is not a list as name=value,name=value, with other characters percent-encoded']);
    }
  }
  return Object.fromEntries(pairs);
}

/** Puts a value at a path, into copies: an alias may have made two sections one object. What is no mapping stays, and is reported. */
function put(layer: Layer, path: Path, value: unknown, variable?: string): void {
  const putInto = (tree: unknown, [key, ...rest]: Path): unknown => {
    if (key === undefined) return value;
    if (tree !== undefined && (typeof tree !== 'object' || tree === null || Array.isArray(tree))) return tree;
    return { ...tree, [key]: putInto(valueAt(tree, [key]), rest) };
  };
  layer.tree = layer.tree === BROKEN ? BROKEN : putInto(layer.tree, path);
  if (variable !== undefined) layer.variables.push([path, variable]);
}

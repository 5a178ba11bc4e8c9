// The hops that people put in front of a gateway: how each gives itself away, and which of its settings mends what.
import type { Traces } from './verdict.ts';

export interface Hop {
  readonly name: string;
  isSeen(traces: Traces): boolean;
  /** What to set where; each may have several lines. */
  readonly buffered: string;
  readonly compressed: string;
  readonly cut: string;
  /** What it does to silence by default, for whoever has not waited for it. */
  readonly patience: string;
}

const header = (name: string, pattern: RegExp) => (traces: Traces) => pattern.test(traces.arrived.get(name) ?? '');
const server = (pattern: RegExp) => header('server', pattern);
const via = (pattern: RegExp) => (traces: Traces) => pattern.test(`${traces.arrived.get('via') ?? ''}, ${traces.via ?? ''}`);
const added = (name: string) => (traces: Traces) => traces.added.has(name);
const any =
  (...signs: ((traces: Traces) => boolean)[]) =>
  (traces: Traces) =>
    signs.some((isSign) => isSign(traces));

/** As docs/in-front.md has them, with where each is documented. */
export const hops: readonly Hop[] = [
  {
    name: 'Cloudflare',
    isSeen: any(server(/^cloudflare/i), header('cf-ray', /./), added('cf-ray')),
    buffered: `Cloudflare does not hold event streams by itself. On Enterprise: zone settings, Network, "Response Buffering": off.
A Worker in between must return the fetched response itself (return fetch(request)), not await its text().`,
    compressed: 'Rules, Compression Rules: for your API’s host name, "Disable compression".',
    cut: `Proxy Read Timeout: 120 s, fixed but on Enterprise (zone setting proxy_read_timeout, up to 6000).
On other plans keep below it with sse.heartbeat and sse.earlyHeaders, or take the API's host name off the proxy (DNS only).`,
    patience: 'Cloudflare cuts after 120 s of silence (524 before the first byte)',
  },
  {
    name: 'CloudFront',
    isSeen: any(via(/cloudfront/i), header('x-amz-cf-id', /./), added('x-amz-cf-id')),
    buffered: `CloudFront passes a response on as it comes; Lambda@Edge and functions that rewrite bodies do not: take them off this behavior.
Cache policy of the behavior: CachingDisabled.`,
    compressed: 'In the behavior: "Compress objects automatically": No (Compress: false).',
    cut: 'Origin settings: "Response timeout" (OriginReadTimeout), 30 s by default, 1 to 120 s; more needs a quota increase.',
    patience: 'CloudFront cuts after 30 s of silence unless the origin’s response timeout was raised',
  },
  {
    name: 'API Gateway',
    isSeen: any(header('x-amz-apigw-id', /./), header('apigw-requestid', /./), added('x-amzn-apigateway-api-id')),
    buffered: `A REST API with an HTTP_PROXY integration and responseTransferMode: STREAM (console: Integration request, "Response transfer mode": Stream).
HTTP APIs cannot stream at all: use a REST API, or put an ALB or CloudFront in its place.`,
    compressed: 'Take minimumCompressionSize off the REST API; with STREAM there is no compression.',
    cut: `Without STREAM: 29 s for the whole answer. With it: 5 minutes of silence (edge-optimized endpoints: 30 s; take a regional one),
and 15 minutes in all, if the integration’s timeoutInMillis says so too: 900000.`,
    patience: 'API Gateway cuts after 5 minutes of silence with STREAM (30 s edge-optimized), after 29 s without',
  },
  {
    name: 'Vercel',
    isSeen: any(server(/^vercel/i), header('x-vercel-id', /./), added('x-vercel-id')),
    buffered: `A rewrite in vercel.json streams by itself. A function in between must return the fetched body as a stream:
return new Response(upstream.body, upstream), not await upstream.text() or .json().`,
    compressed: 'A function in between must hand the gateway’s headers on, above all cache-control: no-transform.',
    cut: `A rewrite waits 120 s for the first byte, and as long between bytes: keep below it with sse.heartbeat and sse.earlyHeaders.
A function is cut at its maxDuration: raise it (vercel.json, "functions": { "api/**": { "maxDuration": 300 } }).`,
    patience: 'Vercel cuts after 120 s of silence, and a function at its maxDuration',
  },
  {
    name: 'Heroku',
    isSeen: via(/\bvegur\b|heroku-router/i),
    buffered: 'Heroku’s router does not hold responses back for more than 1 MB of what the client has not taken; look for another hop.',
    compressed: 'Heroku’s router does not compress; look for a middleware or another hop.',
    cut: 'Fixed: 30 s to the first byte, then 55 s of silence (H12, H15). Keep below with sse.heartbeat and sse.earlyHeaders: 20s.',
    patience: 'Heroku cuts after 30 s without a first byte, and after 55 s of silence',
  },
  {
    name: 'Google Cloud load balancer',
    isSeen: via(/\bgoogle\b/i),
    buffered: 'The load balancer streams; Cloud CDN (enableCDN) on the backend service may hold: switch it off for the API.',
    compressed: 'Backend service: compressionMode: DISABLED.',
    cut: `Backend service: timeoutSec, 30 by default, and for a whole answer: gcloud compute backend-services update NAME --timeout=3600
(on GKE: a BackendConfig with spec.timeoutSec: 3600).`,
    patience: 'the backend service’s timeout, 30 s by default, ends the whole answer',
  },
  {
    name: 'Azure Front Door',
    isSeen: any(header('x-azure-ref', /./), added('x-azure-ref')),
    buffered: 'Front Door: caching off on the route (a cached route holds answers).',
    compressed: 'Front Door: on the route, "Enable compression" off.',
    cut: 'Front Door: "Origin response timeout" of the profile, 16 to 240 s.',
    patience: 'Front Door’s origin response timeout is 16 to 240 s',
  },
  {
    name: 'ingress-nginx',
    isSeen: (traces) => traces.added.has('x-scheme') && traces.added.has('x-forwarded-scheme'),
    buffered: `On the Ingress: nginx.ingress.kubernetes.io/proxy-buffering: "off" (its default; the ConfigMap's proxy-buffering, or a snippet with
proxy_ignore_headers X-Accel-Buffering, has changed it).`,
    compressed:
      'ConfigMap of the controller: use-gzip: "false", use-brotli: "false", or take text/event-stream out of gzip-types and brotli-types.',
    cut: 'On the Ingress: nginx.ingress.kubernetes.io/proxy-read-timeout: "3600" and proxy-send-timeout: "3600" (60 by default).',
    patience: 'ingress-nginx cuts after 60 s of silence unless proxy-read-timeout was raised',
  },
  {
    name: 'nginx',
    isSeen: server(/nginx|openresty|tengine/i),
    buffered: `In the location with proxy_pass: proxy_buffering off;
and take X-Accel-Buffering out of proxy_ignore_headers, if it is there: Sluicegate asks with that header for no buffering.`,
    compressed: 'In the location with proxy_pass: gzip off; or take text/event-stream out of gzip_types.',
    cut: 'In the location with proxy_pass: proxy_read_timeout 1h; (60s by default)',
    patience: 'nginx cuts after 60 s of silence unless proxy_read_timeout was raised',
  },
  {
    name: 'Caddy',
    isSeen: any(server(/^caddy/i), via(/\bcaddy\b/i)),
    buffered: `Caddy passes event streams on by itself; something has it wait: take response_buffers (buffer_responses) and a positive
flush_interval out of reverse_proxy. Not flush_interval -1: with it, clients that leave no longer close their upstreams.`,
    compressed: 'Take encode off the API’s paths: put it into a handle that does not match /v1/*.',
    cut: 'In reverse_proxy, transport http: take response_header_timeout and read_timeout out; in servers, timeouts: no write.',
    patience: 'Caddy allows any silence unless a timeout was set',
  },
  {
    name: 'Envoy',
    isSeen: any(server(/envoy/i), header('x-envoy-upstream-service-time', /./), added('x-envoy-expected-rq-timeout-ms')),
    buffered: 'Take the buffer filter (envoy.filters.http.buffer) off this route; body-reading Lua, Wasm or ext_proc filters hold too.',
    compressed: 'Take text/event-stream out of the compressor filter’s content_type, or disable the filter on this route.',
    cut: `On the route: timeout: 0s and idle_timeout: 3600s (15 s for the whole answer and 5 minutes of silence by default);
Istio: in the VirtualService, timeout: 0s.`,
    patience: 'Envoy cuts after 5 minutes of silence, and routes have a timeout of 15 s for the whole answer unless it was changed',
  },
  {
    name: 'Apache httpd',
    isSeen: server(/^apache/i),
    buffered: 'On the ProxyPass line: flushpackets=on',
    compressed: 'SetEnvIf Request_URI "^/v1/" no-gzip=1 (mod_deflate), no-brotli=1 (mod_brotli)',
    cut: 'On the ProxyPass line: timeout=3600 (ProxyTimeout, by default Timeout, 60)',
    patience: 'Apache cuts after 60 s of silence unless timeout was raised',
  },
  {
    name: 'IIS',
    isSeen: any(server(/^microsoft-iis/i), header('x-powered-by', /\bARR\b/)),
    buffered: 'Application Request Routing, Server Proxy Settings: "Response buffer threshold" (responseBufferLimit): 0.',
    compressed: 'Take text/event-stream out of dynamicTypes, or <urlCompression doDynamicCompression="false" /> on the site.',
    cut: 'Application Request Routing, Server Proxy Settings: "Time-out (seconds)": 3600 (120 by default).',
    patience: 'ARR cuts after 120 s unless its time-out was raised',
  },
  {
    name: 'Traefik',
    isSeen: added('x-forwarded-server'),
    buffered: 'Take the buffering middleware off this router.',
    compressed: 'compress middleware: excludedContentTypes: [text/event-stream] (its default), or take it off this router.',
    cut: 'entryPoints.NAME.transport.respondingTimeouts.writeTimeout: 0 and serversTransport forwardingTimeouts.responseHeaderTimeout: 0.',
    patience: 'Traefik allows any silence unless a timeout was set',
  },
  {
    name: 'AWS load balancer (ALB)',
    isSeen: added('x-amzn-trace-id'),
    buffered: 'An ALB does not hold responses of instances and IPs; those of Lambda targets it does. Look for another hop.',
    compressed: 'An ALB does not compress; look for another hop, or a proxy next to the gateway.',
    cut: `Load balancer attribute idle_timeout.timeout_seconds (60 by default, up to 4000):
aws elbv2 modify-load-balancer-attributes --load-balancer-arn ARN --attributes Key=idle_timeout.timeout_seconds,Value=4000`,
    patience: 'an ALB cuts after 60 s of silence unless its idle timeout was raised',
  },
];

/** Whoever says nothing of itself, such as HAProxy. */
export const unknownHop: Hop = {
  name: 'a hop that does not give its name',
  isSeen: (traces) => ['x-forwarded-for', 'forwarded', 'x-real-ip', 'x-forwarded-proto'].some((name) => traces.added.has(name)),
  buffered: `HAProxy: "option http-no-delay" in defaults, or in this frontend and backend: without it the kernel gathers events for up to 200 ms.
nginx that hides its name: proxy_buffering off;
Squid, virus scanners and company proxies hold what they inspect: exempt the API's host name.`,
  compressed: `HAProxy: take text/event-stream out of "compression type". nginx: gzip off; Apache: no-gzip.`,
  cut: `HAProxy: "timeout server 1h" and "timeout client 1h" (and "timeout tunnel 1h" for WebSockets) in defaults or in this backend and frontend.
nginx: proxy_read_timeout 1h; ALB: idle_timeout.timeout_seconds.`,
  patience: 'HAProxy cuts after timeout server or timeout client (often 30 s to 60 s)',
};

/** The hops that show; one without a name stands for those that left traces and no name. */
export function recognise(traces: Traces): Hop[] {
  const seen = hops.filter((hop) => hop.isSeen(traces));
  // ingress-nginx is nginx, and API Gateway and CloudFront leave the load balancer's trace as well.
  const isAlso = (name: string, of: string) => seen.some((hop) => hop.name === name) && seen.some((hop) => hop.name === of);
  const named = seen.filter(
    ({ name }) =>
      !(name === 'nginx' && isAlso('ingress-nginx', 'nginx')) && !(name === 'AWS load balancer (ALB)' && isAlso('API Gateway', name)),
  );
  return named.length > 0 || !unknownHop.isSeen(traces) ? named : [unknownHop];
}

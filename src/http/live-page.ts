// The live page: a few static files that hold no figure and no secret, under a policy that lets nothing else run.
import { readFileSync } from 'node:fs';
import type { FastifyInstance, FastifyRequest } from 'fastify';

const FILES = [
  ['/', 'live.html', 'text/html; charset=utf-8'],
  ['/live/live.css', 'live.css', 'text/css; charset=utf-8'],
  ...['live.js', 'call.js', 'draw.js', 'prompt.js'].map((file) => [`/live/${file}`, file, 'text/javascript; charset=utf-8'] as const),
  ['/live/icon.svg', 'icon.svg', 'image/svg+xml'],
] as const;

/** Whatever might get into the page as text, or into a browser as an extension of it, loads and sends nothing elsewhere. */
const POLICY = [
  ...["default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'"],
  ...["base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'", "trusted-types 'none'"],
].join('; ');

const HEADERS = {
  'content-security-policy': POLICY,
  'cache-control': 'no-cache',
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'permissions-policy': 'camera=(), geolocation=(), microphone=()',
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff',
  'x-frame-options': 'DENY',
};

/**
 * Serves the page. It asks for no token, which a browser could not send with an address that somebody types: the page itself asks
 * for it, and sends it with whatever it then wants to know.
 * @param check throws where a request may not have it
 */
export function serveLivePage(app: FastifyInstance, check: (request: FastifyRequest) => void): void {
  for (const [url, file, type] of FILES) {
    const body = readFileSync(new URL(`../live/${file}`, import.meta.url));
    app.get(url, async (request, reply) => {
      check(request);
      return reply.headers(HEADERS).type(type).send(body);
    });
  }
}

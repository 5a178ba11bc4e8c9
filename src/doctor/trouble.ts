// Why there was nothing to examine: each way in which a URL is not that of a Sluicegate, and what to do about it.
import { type Answer, type NoAnswer, probeUrl } from './ask.ts';
import type { ProbePlan } from './probe.ts';
import { headerOf } from './verdict.ts';

export interface Trouble {
  /** A word for scripts. */
  readonly kind: 'unreachable' | 'tls' | 'key' | 'refused' | 'redirected' | 'notFound' | 'busy' | 'noProbe';
  readonly what: string;
  readonly advice: string;
}

export interface Circumstances {
  readonly base: URL;
  readonly plan: ProbePlan;
  readonly hasKey: boolean;
}

const SELF_SIGNED = `The certificate is not signed by an authority that Node knows. SDKs will refuse it as well. If it is your own authority's,
NODE_EXTRA_CA_CERTS=/path/to/ca.pem makes Node know it; else the hop must send its whole chain (fullchain.pem).`;

const TLS_ADVICE: Record<string, string> = {
  CERT_HAS_EXPIRED: 'The certificate has expired: renew it, and reload the hop that holds it.',
  CERT_NOT_YET_VALID: 'The certificate is not valid yet: look at the clock of this machine.',
  ERR_TLS_CERT_ALTNAME_INVALID: 'The certificate is for another name: call the hop by a name in it, or get one for this name.',
  DEPTH_ZERO_SELF_SIGNED_CERT: SELF_SIGNED,
  SELF_SIGNED_CERT_IN_CHAIN: SELF_SIGNED,
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: SELF_SIGNED,
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: SELF_SIGNED,
  EPROTO: 'What listens there does not speak TLS: try http:// in the place of https://, or the port that has TLS.',
  ERR_SSL_WRONG_VERSION_NUMBER: 'What listens there does not speak TLS: try http:// in the place of https://, or the port that has TLS.',
};

const REACH_ADVICE: Record<string, string> = {
  ECONNREFUSED:
    'Nothing listens there. Is the gateway (or the hop in front) running, and is this its port? Beyond its own machine it listens only where server.listen says so.',
  ENOTFOUND: 'This name is not known: a spelling mistake, or a name that only exists inside a container network or VPN.',
  EAI_AGAIN: 'The name could not be looked up: no DNS from here, or a name that only exists inside a container network.',
  EHOSTUNREACH: 'There is no way to this address from here.',
  ENETUNREACH: 'There is no way to this address from here.',
  ETIMEDOUT: 'Nobody answers at this address: a firewall or security group drops the connection, or the address is an old one.',
  TIMEOUT: 'The connection was made, and nothing came: a hop waits for somebody who does not answer.',
  ECONNRESET: 'The connection was closed without an answer: a hop without a backend, or a TLS port that was asked without TLS (https://).',
};

/** What it means that no answer came. */
export function explainNoAnswer({ code, message }: NoAnswer, { base }: Circumstances): Trouble {
  const isTls = /CERT|TLS|SSL|EPROTO|SIGNATURE/.test(code);
  if (isTls) return { kind: 'tls', what: `TLS with ${base.host} failed (${code})`, advice: TLS_ADVICE[code] ?? message };
  if (code.startsWith('HPE_')) {
    return { kind: 'unreachable', what: `what ${base.host} answered is no HTTP (${code})`, advice: 'Is it a TLS port? Then https://.' };
  }
  return { kind: 'unreachable', what: `${base.host} could not be reached (${code})`, advice: REACH_ADVICE[code] ?? message };
}

/** What it means that an answer came, and no probe. */
export function explainAnswer(answer: Answer, circumstances: Circumstances): Trouble {
  const { status, headers, text } = answer;
  const code = /"code":"([a-z_]+)"/.exec(text)?.[1];
  const location = headerOf(headers, 'location');
  if (status >= 300 && status < 400 && location !== undefined) return explainRedirect(location, circumstances);
  if (/plain HTTP request was sent to HTTPS port|HTTP request to an HTTPS server/i.test(text)) {
    return { kind: 'tls', what: 'this is a TLS port', advice: 'Write https:// in the place of http://.' };
  }
  if (status === 401) return explainKey(code, circumstances);
  if (status === 403) return explainForbidden(code, circumstances);
  if (status === 404 || status === 405) return explainNotFound(answer, circumstances);
  if (status === 429 || code === 'overloaded') {
    return {
      kind: 'busy',
      what: `the gateway takes no probe now (${code ?? status})`,
      advice: messageOf(text) ?? 'Try again in a moment.',
    };
  }
  if (status >= 500) {
    return {
      kind: 'unreachable',
      what: `a hop answered ${status} in the place of the gateway`,
      advice: `It does not reach the gateway: look at its backend's address, and at its log. It said: ${firstLine(text)}`,
    };
  }
  return {
    kind: 'noProbe',
    what: `the answer (${status}, ${headerOf(headers, 'content-type') ?? 'no content-type'}) is not that of a Sluicegate`,
    advice: `Asked was ${shown(circumstances)}. It must reach the gateway with this path. It began: ${firstLine(text)}`,
  };
}

function explainRedirect(location: string, { base, plan }: Circumstances): Trouble {
  const asked = probeUrl(base, plan).href;
  const target = URL.canParse(location, asked) ? new URL(location, asked).href : location;
  const better = target.replace(/\/sluicegate\/probe(?:\?.*)?$/, '');
  return {
    kind: 'redirected',
    what: `a hop redirects to ${better}`,
    advice: `SDKs do not follow that with a POST, or lose its body: give them the URL behind it. sluicegate doctor ${better}`,
  };
}

function explainKey(code: string | undefined, { hasKey }: Circumstances): Trouble {
  if (code !== 'invalid_api_key') {
    return { kind: 'key', what: 'a hop asks for credentials of its own (401)', advice: 'Exempt the API from it, or ask from behind it.' };
  }
  if (!hasKey) {
    return {
      kind: 'key',
      what: 'the gateway asks for a client’s key (401)',
      advice: 'Give one: --key KEY, or SLUICEGATE_KEY in the environment.',
    };
  }
  return {
    kind: 'key',
    what: 'the gateway does not know this key (401)',
    advice: 'It must be a client’s key (sluicegate key NAME), not the upstream’s; and a hop may have changed the Authorization header.',
  };
}

function explainForbidden(code: string | undefined, { base, hasKey }: Circumstances): Trouble {
  if (code !== 'forbidden_origin') {
    return { kind: 'refused', what: 'a hop refuses (403)', advice: 'A firewall (WAF) or an access rule in front: allow /v1/ there.' };
  }
  return {
    kind: 'refused',
    what: `the gateway does not know itself by the name that arrived, ${base.hostname} or what a hop made of it (403)`,
    advice: hasKey
      ? 'A hop has taken the Authorization header away: let it pass.'
      : `Callers without a key need a known name: server.hostnames: [${base.hostname}] in the configuration, and a hop that hands the Host on
(nginx: proxy_set_header Host $http_host;). Or give a client's key: --key KEY.`,
  };
}

function explainNotFound({ status, headers, text }: Answer, circumstances: Circumstances): Trouble {
  const isGateway = headerOf(headers, 'x-sluicegate-upstream') !== undefined;
  if (isGateway) {
    return {
      kind: 'notFound',
      what: `the gateway sent the probe on to its upstream (${status})`,
      advice: 'It is older than this doctor: update it.',
    };
  }
  const isOwnForm = /"type":"invalid_request_error"/.test(text);
  return {
    kind: 'notFound',
    what: `nothing is at ${shown(circumstances)} (${status})`,
    advice: isOwnForm
      ? `Either this is the port of metrics (ops.listen), and apps have another one (server.listen); or the path arrived changed,
because a hop strips or adds a part of it. nginx: no path and no slash behind proxy_pass http://gateway:8080;`
      : 'Either it is no Sluicegate, or a hop cuts the path off: /v1/… must reach the gateway as it is. Give the base URL that apps use.',
  };
}

function shown({ base, plan }: Circumstances): string {
  const { origin, pathname } = probeUrl(base, plan);
  return `${origin}${pathname}`;
}

function messageOf(text: string): string | undefined {
  try {
    const { error } = JSON.parse(text) as { error?: { message?: unknown } };
    return typeof error?.message === 'string' ? error.message : undefined;
  } catch {
    return undefined;
  }
}

/** Of a body that anybody may have written: nothing in it shall move the cursor. */
function firstLine(text: string): string {
  const plain = text
    .replace(/<[^>]*>/g, ' ')
    .replace(/[\p{C}\s]+/gu, ' ')
    .trim();
  return plain === '' ? '(nothing)' : JSON.stringify(plain.slice(0, 120));
}

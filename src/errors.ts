// The table of errors that Sluicegate itself answers with: one row a code, in the form that every OpenAI SDK raises.

/** Who is to blame, for logs and for whoever decides on a retry. */
export type Blame = 'client' | 'upstream' | 'gateway';

interface ErrorRow {
  readonly status: number;
  readonly type: string;
  readonly blame: Blame;
  readonly message: string;
  /** Headers that belong to the error, such as the one that tells SDKs not to try again. */
  readonly headers?: Readonly<Record<string, string>>;
}

/** SDKs of OpenAI heed this header over their own rules for the status. */
const DO_NOT_RETRY = { 'x-should-retry': 'false' };

const rows = {
  invalid_request: { status: 400, type: 'invalid_request_error', blame: 'client', message: 'The request is malformed.' },
  invalid_api_key: {
    status: 401,
    type: 'invalid_request_error',
    blame: 'client',
    message: 'Missing or unknown API key. Send the key that the operator of this gateway gave you as Authorization: Bearer KEY.',
  },
  forbidden_origin: {
    status: 403,
    type: 'invalid_request_error',
    blame: 'client',
    message: 'This Host or Origin may not call this gateway. The operator can allow it in server.hostnames or server.cors.origins.',
  },
  model_not_allowed: {
    status: 403,
    type: 'invalid_request_error',
    blame: 'client',
    message: 'This key may not call this model, or a call that names none. The operator of this gateway can allow it.',
  },
  not_found: { status: 404, type: 'invalid_request_error', blame: 'client', message: 'Nothing is here. The API stands under /v1.' },
  method_not_allowed: { status: 405, type: 'invalid_request_error', blame: 'client', message: 'This method is not forwarded.' },
  request_timeout: { status: 408, type: 'invalid_request_error', blame: 'client', message: 'The request took too long to arrive.' },
  request_too_large: {
    status: 413,
    type: 'invalid_request_error',
    blame: 'client',
    message: 'The request body is larger than this gateway accepts (server.maxRequestBody).',
  },
  unsupported_media_type: {
    status: 415,
    type: 'invalid_request_error',
    blame: 'client',
    message: 'The request body must be read here and cannot be.',
  },
  rate_limit_exceeded: { status: 429, type: 'requests', blame: 'client', message: 'Too many requests. Wait as retry-after says.' },
  insufficient_quota: {
    status: 429,
    type: 'insufficient_quota',
    blame: 'client',
    message: 'The budget of this key is spent. It is renewed when retry-after says; the operator of this gateway can raise it.',
    headers: DO_NOT_RETRY,
  },
  headers_too_large: { status: 431, type: 'invalid_request_error', blame: 'client', message: 'The request headers exceed 16 KiB.' },
  internal_error: { status: 500, type: 'server_error', blame: 'gateway', message: 'The gateway failed. The request id leads to its log.' },
  upstream_unreachable: { status: 502, type: 'upstream_error', blame: 'upstream', message: 'The upstream could not be reached.' },
  upstream_reset: {
    status: 502,
    type: 'upstream_error',
    blame: 'upstream',
    message: 'The upstream broke the connection, or its answer was malformed.',
  },
  upstream_auth: {
    status: 502,
    type: 'upstream_error',
    blame: 'upstream',
    message: "The upstream refused the gateway's own key. Nothing is wrong with yours: tell the operator.",
    headers: DO_NOT_RETRY,
  },
  overloaded: {
    status: 503,
    type: 'server_error',
    blame: 'gateway',
    message: 'The gateway takes no more requests for now. Try again shortly.',
    headers: { 'retry-after': '1' },
  },
  upstream_timeout: { status: 504, type: 'upstream_error', blame: 'upstream', message: 'The upstream did not answer in time.' },
  upstream_truncated: {
    status: 502,
    type: 'upstream_error',
    blame: 'upstream',
    message: 'The upstream ended the stream before it was complete.',
  },
  upstream_idle_timeout: { status: 504, type: 'upstream_error', blame: 'upstream', message: 'The upstream fell silent in mid-stream.' },
  upstream_total_timeout: { status: 504, type: 'upstream_error', blame: 'upstream', message: 'The stream took longer than allowed.' },
  ended_by_operator: {
    status: 503,
    type: 'server_error',
    blame: 'gateway',
    message: 'The operator of this gateway has ended this request.',
    headers: DO_NOT_RETRY,
  },
  draining: { status: 503, type: 'server_error', blame: 'gateway', message: 'The gateway is shutting down.' },
} as const satisfies Record<string, ErrorRow>;

export type ErrorCode = keyof typeof rows;

/** All codes with their rows, in the order of their statuses; docs/errors.md has each. */
export const errorTable: Readonly<Record<ErrorCode, ErrorRow>> = rows;

/** An error that ends a request with an answer made here. */
export class GatewayError extends Error {
  readonly code: ErrorCode;
  readonly headers: Readonly<Record<string, string>>;
  readonly type: string;

  /** `message` and `type`, if given, replace the row's; they go to the client, so they never quote what came from elsewhere. */
  constructor(code: ErrorCode, message?: string, headers: Readonly<Record<string, string>> = {}, type: string = rows[code].type) {
    super(message ?? rows[code].message);
    this.code = code;
    this.headers = headers;
    this.type = type;
  }

  get detail(): ErrorDetail {
    return { message: this.message, type: this.type, code: this.code };
  }

  get row(): ErrorRow {
    return rows[this.code];
  }
}

/** What an error looks like in a body: the `error` member of OpenAI's error answers. */
export interface ErrorDetail {
  readonly message: string;
  readonly type: string;
  readonly code: string;
}

/** The detail of `code`, with the row's message unless another is given. */
export function detailOf(code: ErrorCode, message: string = rows[code].message): ErrorDetail {
  return { message, type: rows[code].type, code };
}

/** The body of an error answer (OpenAI API reference, "Error codes"). */
export function errorBody({ message, type, code }: ErrorDetail): string {
  return JSON.stringify({ error: { message, type, param: null, code } });
}

// The demo's errors, in the form that OpenAI's API gives them.

/** An error that is meant for the client. `body` is OpenAI's error object, `headers` go with it. */
export interface Refusal extends Error {
  readonly status: number;
  readonly body: { readonly error: { message: string; type: string; param: string | null; code: string | null } };
  readonly headers: Record<string, string>;
}

/** What a refusal may say beyond its status and message: the parameter at fault, a code to branch on, response headers. */
export interface RefusalDetails {
  param?: string;
  code?: string;
  headers?: Record<string, string>;
}

/** Makes an error to throw; the server turns it into the response. `type` follows the status as at OpenAI. */
export function createRefusal(status: number, message: string, details: RefusalDetails = {}): Refusal {
  const type = status >= 500 ? 'server_error' : 'invalid_request_error';
  const error = { message, type, param: details.param ?? null, code: details.code ?? null };
  return Object.assign(new Error(message), { status, body: { error }, headers: details.headers ?? {} });
}

/** Tells a refusal from a fault of the demo itself. */
export function isRefusal(error: unknown): error is Refusal {
  return error instanceof Error && 'status' in error && 'body' in error;
}

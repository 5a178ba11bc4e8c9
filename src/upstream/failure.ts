// Why a call to an upstream failed, in a word that quotes nothing.

/** Why a call failed: before a connection stood, or on one. `detail` is an error code such as ECONNREFUSED, never a message. */
export interface UpstreamFailure {
  readonly kind: 'unreachable' | 'reset';
  readonly detail: string;
}

/** The code of an error or of what caused it; its message may quote addresses and stays here. */
export function codeOf(error: unknown): string {
  for (let at = error; at instanceof Error; at = at.cause) {
    const code: unknown = Reflect.get(at, 'code');
    if (typeof code === 'string') return code;
    const [first]: unknown[] = at instanceof AggregateError ? at.errors : [];
    if (first !== undefined && at.cause === undefined) return codeOf(first);
  }
  return error instanceof Error ? error.name : 'unknown';
}

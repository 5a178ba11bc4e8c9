// Asking the gateway: with the ops token, where one was given for this tab, and with the header that no other page can send.

const KEPT = 'sluicegate-ops-token';
const ANSWER_MS = 5000;
let token = sessionStorage.getItem(KEPT) ?? '';

export function keepToken(given) {
  token = given;
  if (given === '') sessionStorage.removeItem(KEPT);
  else sessionStorage.setItem(KEPT, given);
}

export const hasToken = () => token !== '';

/** What the server answered, where that was an error. */
export class Refusal extends Error {
  constructor(status, { message = `The gateway answered ${status}.`, code = String(status) } = {}) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/**
 * @param path without a slash before it: the page may stand below a path of a proxy's
 * @throws Refusal where it is refused, and what fetch throws where nobody answers
 */
export async function call(path, { headers = {}, signal = AbortSignal.timeout(ANSWER_MS), ...how } = {}) {
  const own = { 'x-sluicegate-action': 'page', ...(token && { authorization: `Bearer ${token}` }) };
  const response = await fetch(path, { cache: 'no-store', ...how, signal, headers: { ...headers, ...own } });
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Refusal(response.status, typeof body.error === 'object' && body.error !== null ? body.error : undefined);
}

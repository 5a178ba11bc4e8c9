// What a client with a list of models may call: only what names one of them, beyond doubt.
import type { Client } from '../config.ts';
import { GatewayError } from '../errors.ts';
import { createPattern, decodeFully, modelOfPath } from '../upstream/router.ts';
import type { RequestTarget } from '../upstream/target.ts';

/** What one client may. */
export interface Permit {
  /** Whether the path passes whatever the call names. */
  opens(target: RequestTarget): boolean;
  allows(model: string): boolean;
}

/** Undefined for a client that may call everything. Patterns are made once for each configuration. */
export function createPermits(): (client: Client | undefined) => Permit | undefined {
  const permits = new WeakMap<Client, Permit>();
  return (client) => {
    if (client?.models === undefined) return undefined;
    const known = permits.get(client) ?? createPermit(client.models, client.endpoints);
    permits.set(client, known);
    return known;
  };
}

function createPermit(models: readonly string[], endpoints: readonly string[]): Permit {
  const allowed = models.map(createPattern);
  const opened = endpoints.map(createPattern);
  return {
    opens: ({ path }) => opened.some((fits) => fits(path)),
    allows: (model) => allowed.some((fits) => fits(model)),
  };
}

/** The list of models: it passes, and what the client may not call is left out of it. */
export function isModelList(method: string | undefined, endpoint: string): boolean {
  return endpoint === '/v1/models' && (method === 'GET' || method === 'HEAD');
}

/** Calls whose models stand deeper in their bodies, or in what these name, whatever `model` they have at the top. */
const MODELS_ELSEWHERE = /\/(?:batches|evals|graders|client_secrets|realtime\/calls|submit_tool_outputs)(?:[/;]|$)/i;

/**
 * Holds a call against its client's permit. Whatever does not name a model (uploads, batches, stored objects) could get around the list.
 * @param inBody the model in its body; undefined where that was not read, or names none
 * @throws GatewayError `model_not_allowed`
 */
export function checkPermit(permit: Permit, target: RequestTarget, inBody: string | undefined): void {
  const inQuery = new URLSearchParams(target.query).getAll('model');
  const named = [modelOfPath(target.path), inBody, ...inQuery].filter((model) => model !== undefined);
  if (MODELS_ELSEWHERE.test(decodeFully(target.path)) || named.length === 0 || !named.every(permit.allows))
    throw new GatewayError('model_not_allowed');
}

// What becomes of a call: whether its client may make it, which upstream serves it, and how that one is asked for usage.
import type { IncomingMessage } from 'node:http';
import type { Client, Config } from '../config.ts';
import { GatewayError } from '../errors.ts';
import { createTopLevelScanner } from '../stream/json.ts';
import { type AskedRequest, askForUsage } from '../upstream/ask.ts';
import { createRouter, decodeFully, modelOfPath, type Route } from '../upstream/router.ts';
import type { RequestTarget } from '../upstream/target.ts';
import type { Asker } from './asking.ts';
import { type Call, isJsonRequest } from './call.ts';
import { checkPermit, createPermits, isModelList } from './permit.ts';

/** A request on its way in. */
export interface Entrant {
  readonly request: IncomingMessage;
  readonly requestTarget: RequestTarget;
  readonly endpoint: string;
  readonly client: Client | undefined;
}

export interface Plan {
  readonly route: Route;
  /** How usage is asked for on the client's behalf; undefined where the body goes as it is. */
  readonly asked: AskedRequest | undefined;
  /** The answer lists models: those to be shown. Undefined where all are, and for every other answer. */
  readonly shows: ((model: string) => boolean) | undefined;
}

/** For one configuration. */
export interface Planner {
  /** Where a request goes as long as nothing more is known of it. */
  readonly firstRoute: Route;
  /**
   * Whether a call's body must be whole before it can be sent: its model decides, or asking changes its length.
   * @throws GatewayError `unsupported_media_type` where its model decides and cannot be read, `model_not_allowed` where nothing
   * that is still to come could make the call one that its client may make
   */
  mustRead(entrant: Entrant, call: Call | undefined): boolean;
  /**
   * @param call the whole call; undefined where its body is not read
   * @throws GatewayError `invalid_request` where the body does not name one model beyond doubt, `model_not_allowed`
   */
  plan(entrant: Entrant, call: Call | undefined): Plan;
  /**
   * Where a WebSocket goes: its model stands in the path, or in the query.
   * @throws GatewayError `invalid_request` where the query does not name one model beyond doubt, `model_not_allowed`
   */
  routeSession(entrant: Entrant): Route;
}

/** Calls whose model stands in a JSON body: some upstreams read it whatever the content type says, and so past routes and prices. */
function isJsonCall({ method }: IncomingMessage, { path }: RequestTarget): boolean {
  return method === 'POST' && /\/(?:completions|responses|messages|embeddings)(?:[/;]|$)/i.test(decodeFully(path));
}

/** The model that a query names, as OpenAI (`model`) and Azure (`deployment`) have it. Some servers ignore the case of such names. */
function modelOfQuery(query: string | undefined): string | undefined {
  const named = [...new URLSearchParams(query)].filter(([name]) => /^(?:model|deployment)$/i.test(name));
  if (named.length > 1) throw new GatewayError('invalid_request', 'The query must name one model.');
  return named[0]?.[1];
}

export function createPlanner(config: Config, asker: Asker): Planner {
  const router = createRouter(config);
  const firstRoute = router.route(undefined);
  const permitOf = createPermits();

  /** The permit that a call must be held against; undefined where it passes whatever it names. */
  function permitFor({ request, requestTarget, endpoint, client }: Entrant) {
    const permit = permitOf(client);
    return permit === undefined || permit.opens(requestTarget) || isModelList(request.method, endpoint) ? undefined : permit;
  }

  return {
    firstRoute,
    mustRead(entrant, call) {
      const { request, requestTarget, endpoint } = entrant;
      const permit = permitFor(entrant);
      const decides = permit !== undefined || (router.readsModel && modelOfPath(requestTarget.path) === undefined);
      if (decides && call === undefined && isJsonRequest(request)) throw new GatewayError('unsupported_media_type');
      if (permit !== undefined && call === undefined) checkPermit(permit, requestTarget, undefined);
      if (decides && call === undefined && isJsonCall(request, requestTarget)) throw new GatewayError('unsupported_media_type');
      return call !== undefined && (decides || config.upstreams.some((upstream) => asker.mayAsk(endpoint, upstream)));
    },
    plan(entrant, call) {
      const { request, requestTarget, endpoint, client } = entrant;
      const permit = permitFor(entrant);
      const inBody = permit !== undefined || router.readsModel ? call?.model() : undefined;
      if (permit !== undefined && call?.namesFurtherModels()) throw new GatewayError('model_not_allowed');
      if (permit !== undefined) checkPermit(permit, requestTarget, inBody);
      const route = router.route(modelOfPath(requestTarget.path) ?? inBody);
      const shows = isModelList(request.method, endpoint) ? permitOf(client)?.allows : undefined;
      const { usage } = route.upstream;
      const mayAsk = call !== undefined && usage !== 'asSent' && asker.mayAsk(endpoint, route.upstream);
      return { route, shows, asked: mayAsk ? askForUsage(call.body, usage, createTopLevelScanner) : undefined };
    },
    routeSession(entrant) {
      const { path, query } = entrant.requestTarget;
      const permit = permitFor(entrant);
      const model = modelOfPath(path) ?? modelOfQuery(query);
      // Over any other WebSocket, such as that of Responses, models are named in messages.
      if (permit !== undefined && entrant.endpoint !== '/v1/realtime') throw new GatewayError('model_not_allowed');
      if (permit !== undefined) checkPermit(permit, entrant.requestTarget, model);
      return router.route(model);
    },
  };
}

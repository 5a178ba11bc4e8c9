// What becomes of a call: whether its client may make it, which upstreams may serve it, and how it goes to each of them.
import type { IncomingMessage } from 'node:http';
import type { Client, Config } from '../config.ts';
import { GatewayError } from '../errors.ts';
import { createTopLevelScanner } from '../stream/json.ts';
import { askForUsage, type Strip } from '../upstream/ask.ts';
import { routeEndpoint } from '../upstream/endpoints.ts';
import { createRouter, decodeFully, modelOfPath, type Route, renameModel, type Target } from '../upstream/router.ts';
import type { Splice } from '../upstream/splice.ts';
import type { RequestTarget } from '../upstream/target.ts';
import type { Asker } from './asking.ts';
import { type Call, isJsonRequest } from './call.ts';
import type { ModelMerge } from './model-list.ts';
import { checkPermit, createPermits, isModelList } from './permit.ts';

/** A request on its way in. */
export interface Entrant {
  readonly request: IncomingMessage;
  readonly requestTarget: RequestTarget;
  readonly endpoint: string;
  readonly client: Client | undefined;
}

/** How a call goes to one target. */
export interface Edit {
  readonly requestTarget: RequestTarget;
  /** The model's name there, where that is another than the client's. */
  readonly model: string | undefined;
  /** What changes in its body. */
  readonly splices: readonly Splice[];
  /** What must come out of the answer again; undefined where usage was not asked for on the client's behalf. */
  readonly strip: Strip | undefined;
}

export interface Plan {
  readonly route: Route;
  /** Whether another target may be tried: the call leaves nothing behind that later calls look for. */
  readonly mayMove: boolean;
  /** The answer lists models: those to be shown to the client. Undefined where all are, and for every other answer. */
  readonly shows: ((model: string) => boolean) | undefined;
  /** The answer is made of the lists of several upstreams. */
  readonly merges: ModelMerge | undefined;
  edit(target: Target): Edit;
}

export interface SessionPlan extends Plan {
  /** The model that the session asks for, as its client calls it; undefined where its messages name it. */
  readonly model: string | undefined;
}

/** For one configuration. */
export interface Planner {
  /** Where a request goes as long as nothing more is known of it. */
  readonly firstRoute: Route;
  /**
   * Whether a call's body must be whole before it can be sent: its model decides, asking or renaming changes it, or it may have to
   * be sent again.
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
  planSession(entrant: Entrant): SessionPlan;
}

const NO_SPLICES: readonly Splice[] = [];

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
  const firstRoute = router.route(undefined, '');
  const permitOf = createPermits();
  const merge: ModelMerge = {
    upstreams: router.upstreams,
    names: router.names,
    serves: (upstream, model) => router.route(model, '').targets.some((target) => target.upstream === upstream),
  };

  const isMerged = merge.upstreams.length > 1 || merge.names.length > 0;

  /** The permit that a call must be held against; undefined where it passes whatever it names. */
  function permitFor({ request, requestTarget, endpoint, client }: Entrant) {
    const permit = permitOf(client);
    return permit === undefined || permit.opens(requestTarget) || isModelList(request.method, endpoint) ? undefined : permit;
  }

  /** Whether a call that goes this way may be sent twice, by what is known before its body is. */
  function mayTryAgain({ targets }: Route): boolean {
    return targets.length > 1 || targets.some(({ upstream }) => upstream.apiKeys.length > 1);
  }

  function mayMove({ request, requestTarget }: Entrant, call: Call | undefined): boolean {
    const { leaves } = routeEndpoint(request.method ?? '', requestTarget.path);
    return call === undefined ? leaves === 'nothing' : call.leavesNothing(leaves);
  }

  function edit({ requestTarget, endpoint }: Entrant, call: Call | undefined, { upstream, rewrite }: Target): Edit {
    const { usage } = upstream;
    const mayAsk = call !== undefined && usage !== 'asSent' && asker.mayAsk(endpoint, upstream);
    const asked = mayAsk ? askForUsage(call.body, usage, createTopLevelScanner) : undefined;
    const renamed = rewrite === undefined || modelOfPath(requestTarget.path) !== undefined ? undefined : call?.rename(rewrite);
    return {
      requestTarget: rewrite === undefined ? requestTarget : renameModel(requestTarget, rewrite),
      model: rewrite,
      // Unlike a spread or a push, `concat` leaves no room to grow, which would live as long as the stream.
      splices: NO_SPLICES.concat(renamed ?? [], asked?.splice ?? []),
      strip: asked?.strip,
    };
  }

  return {
    firstRoute,
    mustRead(entrant, call) {
      const { request, requestTarget, endpoint } = entrant;
      const permit = permitFor(entrant);
      const inPath = modelOfPath(requestTarget.path);
      const decides = permit !== undefined || (router.readsModel && inPath === undefined);
      if (decides && call === undefined && isJsonRequest(request)) throw new GatewayError('unsupported_media_type');
      if (permit !== undefined && call === undefined) checkPermit(permit, requestTarget, undefined);
      if (decides && call === undefined && isJsonCall(request, requestTarget)) throw new GatewayError('unsupported_media_type');
      if (call === undefined) return false;
      const isAsked = config.upstreams.some((upstream) => asker.mayAsk(endpoint, upstream));
      return decides || isAsked || mayTryAgain(router.route(inPath, requestTarget.path));
    },
    plan(entrant, call) {
      const { request, requestTarget, endpoint, client } = entrant;
      const permit = permitFor(entrant);
      const inBody = permit !== undefined || router.readsModel ? call?.model() : undefined;
      if (permit !== undefined && call?.namesFurtherModels()) throw new GatewayError('model_not_allowed');
      if (permit !== undefined) checkPermit(permit, requestTarget, inBody);
      return {
        route: router.route(modelOfPath(requestTarget.path) ?? inBody, requestTarget.path),
        mayMove: mayMove(entrant, call),
        shows: isModelList(request.method, endpoint) ? permitOf(client)?.allows : undefined,
        merges: isMerged && isModelList(request.method, endpoint) && request.method === 'GET' ? merge : undefined,
        edit: (target) => edit(entrant, call, target),
      };
    },
    planSession(entrant) {
      const { path, query } = entrant.requestTarget;
      const permit = permitFor(entrant);
      const model = modelOfPath(path) ?? modelOfQuery(query);
      // Over any other WebSocket, such as that of Responses, models are named in messages.
      if (permit !== undefined && entrant.endpoint !== '/v1/realtime') throw new GatewayError('model_not_allowed');
      if (permit !== undefined) checkPermit(permit, entrant.requestTarget, model);
      return {
        model,
        route: router.route(model, path),
        mayMove: true,
        shows: undefined,
        merges: undefined,
        edit: (target) => edit(entrant, undefined, target),
      };
    },
  };
}

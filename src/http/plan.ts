// What becomes of a call: which upstream serves it, and how that one is asked for usage.
import type { IncomingMessage } from 'node:http';
import type { Client, Config } from '../config.ts';
import { GatewayError } from '../errors.ts';
import { createTopLevelScanner } from '../stream/json.ts';
import { type AskedRequest, askForUsage } from '../upstream/ask.ts';
import { createRouter, modelOfPath, type Route } from '../upstream/router.ts';
import type { Target } from '../upstream/target.ts';
import type { Asker } from './asking.ts';
import { type Call, isJsonRequest } from './call.ts';

/** A request on its way in. */
export interface Entrant {
  readonly request: IncomingMessage;
  readonly target: Target;
  readonly endpoint: string;
  readonly client: Client | undefined;
}

export interface Plan {
  readonly route: Route;
  /** How usage is asked for on the client's behalf; undefined where the body goes as it is. */
  readonly asked: AskedRequest | undefined;
}

/** For one configuration. */
export interface Planner {
  /** Where a request goes as long as nothing more is known of it. */
  readonly firstRoute: Route;
  /**
   * Whether a call's body must be whole before it can be sent: its model decides, or asking changes its length.
   * @throws GatewayError `unsupported_media_type` where its model decides and cannot be read
   */
  mustRead(entrant: Entrant, call: Call | undefined): boolean;
  /**
   * @param call the whole call; undefined where its body is not read
   * @throws GatewayError `invalid_request` where the body does not name one model beyond doubt
   */
  plan(entrant: Entrant, call: Call | undefined): Plan;
}

export function createPlanner(config: Config, asker: Asker): Planner {
  const router = createRouter(config);
  const firstRoute = router.route(undefined);
  const hasBody = ({ request }: Entrant) => request.headers['content-length'] !== '0';
  return {
    firstRoute,
    mustRead(entrant, call) {
      const { request, target, endpoint } = entrant;
      const decides = router.readsModel && modelOfPath(target.path) === undefined && hasBody(entrant);
      if (decides && call === undefined && isJsonRequest(request)) throw new GatewayError('unsupported_media_type');
      return call !== undefined && (decides || config.upstreams.some((upstream) => asker.mayAsk(endpoint, upstream)));
    },
    plan({ target, endpoint }, call) {
      const model = modelOfPath(target.path) ?? (router.readsModel ? call?.model() : undefined);
      const route = router.route(model);
      const { usage } = route.upstream;
      if (call === undefined || usage === 'asSent' || !asker.mayAsk(endpoint, route.upstream)) return { route, asked: undefined };
      return { route, asked: askForUsage(call.body, usage, createTopLevelScanner) };
    },
  };
}

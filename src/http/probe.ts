// The probe: an event stream made here, for whoever wants to know what its way does to one (`sluicegate doctor`).
import { formatEvent, type ProbeFacts, type ProbePlan, pauseBefore, readPlan } from '../doctor/probe.ts';
import { type ErrorCode, errorBody, GatewayError } from '../errors.ts';
import type { Outcome } from '../exchange.ts';
import { responseHead } from '../upstream/headers.ts';
import { answerError, type Journey } from './answer.ts';
import { type Passage, reasonOf, type Station } from './forward.ts';
import type { Admit } from './limits.ts';
import { asGatewayError, isUpgraded } from './listener.ts';
import { createSink } from './sink.ts';

/** One doctor needs one; a probe is a timer and a connection, and costs about what a silent stream does. */
const MAX_PER_CALLER = 4;
/** What `x-sluicegate-upstream` says of a probe: nobody but the gateway served it. */
const SERVED_BY = 'sluicegate';
/** Names of headers that are told; a request has no more than 16 KiB of them. */
const MAX_SEEN = 64;

/**
 * Makes what answers `GET /v1/sluicegate/probe`. It passes the key, the guard and the limits of any other call, is a request
 * like any other in metrics and log, with its own endpoint and no upstream, and ends with its client, or with a drain.
 */
export function createProbes(): (journey: Journey, station: Station, admit: Admit) => void {
  const running = new Map<string, number>();

  return (journey, station, admit) => {
    const { exchange, request, response } = journey;
    const { ledger, passages, clock, config } = station;
    const caller = journey.client === undefined ? `network ${exchange.remoteAddress}` : `client ${journey.client.name}`;
    let timer: NodeJS.Timeout | undefined;
    let isOver = false;

    function settle(outcome: Outcome): void {
      if (isOver) return;
      isOver = true;
      clearTimeout(timer);
      request.socket.off('end', onHalfClose);
      seat.leave();
      const others = (running.get(caller) ?? 1) - 1;
      if (others === 0) running.delete(caller);
      else running.set(caller, others);
      ledger.end(exchange, outcome);
    }

    function refuse(failure: unknown): void {
      if (isOver) return;
      const error = asGatewayError(failure, station.onFault);
      exchange.rejection = reasonOf(error);
      answerError(journey, error);
      settle('rejected');
    }

    /** Sends the head as that of any event stream, so that what the doctor finds is true of those. */
    function begin(plan: ProbePlan): void {
      const traits = { status: 200, upstream: SERVED_BY, requestId: exchange.requestId, isCorsOurs: config.server.cors !== undefined };
      const { headers } = responseHead(['content-type', 'text/event-stream'], { ...traits, own: journey.ownHeaders });
      exchange.status = 200;
      exchange.phase = 'stream';
      response.writeHead(200, headers);
      const sink = createSink(response, { hasLength: false, graceMs: config.server.clientStallMs });
      const write = (text: string) => {
        exchange.bytesOut += text.length;
        sink.write(text);
      };
      breakOff = (code, outcome) => {
        if (outcome === 'rejected') exchange.rejection = code;
        write(`data: ${errorBody(new GatewayError(code).detail)}\n\n`);
        sink.cutGently();
        settle(outcome);
      };
      const startedAtMs = clock.now();
      send(0);

      function send(n: number): void {
        const atMs = Math.round((clock.now() - startedAtMs) * 100) / 100;
        const isLast = n === plan.events - 1;
        const facts = n === 0 ? { facts: factsOf(journey, station, plan, headers) } : {};
        write(formatEvent({ n, atMs, ...facts, ...(isLast && { last: true }) }));
        if (isLast) end();
        else timer = setTimeout(send, pauseBefore(n + 1, plan), n + 1);
      }

      /** All of it is less than 64 KiB, which the kernel takes; who does not read even so is not waited for. */
      function end(): void {
        write('data: [DONE]\n\n');
        response.once('finish', () => settle('completed'));
        sink.end();
        if (!Number.isFinite(config.server.clientStallMs)) return;
        timer = setTimeout(() => {
          settle('client_stalled');
          sink.destroy();
        }, config.server.clientStallMs);
      }
    }

    async function enter(): Promise<void> {
      const plan = checkRequest(journey);
      if ((running.get(caller) ?? 0) > MAX_PER_CALLER) {
        throw new GatewayError(
          'rate_limit_exceeded',
          `No more than ${MAX_PER_CALLER} probes run at a time.`,
          { 'retry-after': '5' },
          'streams',
        );
      }
      const { headers, lease } = await admit({ tokens: 0, nanoUsd: 0 }, () => refuse(new GatewayError('insufficient_quota')));
      if (isOver) {
        lease?.settle({ tokens: 0, nanoUsd: 0 });
        return;
      }
      exchange.lease = lease;
      journey.ownHeaders.push(...headers);
      begin(plan);
    }

    function onHalfClose(): void {
      settle('client_closed');
      response.destroy();
    }

    let breakOff: (code: ErrorCode, outcome: Outcome) => void = () => refuse(new GatewayError('overloaded'));
    const passage: Passage = {
      exchange,
      drain: () => breakOff('draining', 'drained'),
      end: () => breakOff('ended_by_operator', 'rejected'),
    };
    const seat = passages.enter(passage);
    running.set(caller, (running.get(caller) ?? 0) + 1);
    response.once('close', () => settle('client_closed'));
    request.socket.once('end', onHalfClose);
    if (request.socket.destroyed || request.socket.readableEnded) onHalfClose();
    else void enter().catch(refuse);
  };
}

function checkRequest({ request, requestTarget }: Journey): ProbePlan {
  const { method, headers } = request;
  if (method !== 'GET' || isUpgraded(request))
    throw new GatewayError('method_not_allowed', 'The probe is asked for with GET.', { allow: 'GET' });
  if (headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0) {
    throw new GatewayError('invalid_request', 'The probe takes no body.');
  }
  const plan = readPlan(requestTarget.query ?? '');
  if (plan === undefined) {
    throw new GatewayError(
      'invalid_request',
      'The probe takes events (1 to 100), everyMs (10 to 1000), silenceMs (0 to 600000) and a nonce.',
    );
  }
  return plan;
}

function factsOf({ request }: Journey, { config }: Station, { nonce }: ProbePlan, sent: readonly string[]): ProbeFacts {
  const { headers, httpVersion } = request;
  const finite = (ms: number | undefined) => (ms !== undefined && Number.isFinite(ms) ? ms : undefined);
  return {
    nonce,
    sent: sent.map((part, at) => (at % 2 === 0 ? part.toLowerCase() : part)),
    seen: Object.keys(headers).slice(0, MAX_SEEN),
    httpVersion,
    via: headers.via,
    acceptEncoding: headers['accept-encoding']?.toString(),
    heartbeatMs: finite(config.sse.heartbeatMs),
    earlyHeadersMs: finite(config.sse.earlyHeadersMs),
    firstByteMs: finite(config.upstreams[0]?.timeouts.firstByteMs),
  };
}

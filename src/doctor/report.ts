// A diagnosis in words for a person, as JSON for a script, and as an exit code for both.
import { type Diagnosis, formatSeconds } from './doctor.ts';
import { type Hop, unknownHop } from './hops.ts';
import type { Trouble } from './trouble.ts';
import type { Finding, HeaderChange } from './verdict.ts';

/** 1 is a command line that cannot be used, as everywhere; of several findings the first in this order decides. */
export const DOCTOR_EXIT = { streaming: 0, trouble: 2, buffered: 3, cut: 4, compressed: 5 } as const;
const ORDER = ['buffered', 'cut', 'compressed'] as const;

export function isTrouble(result: Diagnosis | Trouble): result is Trouble {
  return 'advice' in result;
}

export function exitCodeOf(result: Diagnosis | Trouble): number {
  if (isTrouble(result)) return DOCTOR_EXIT.trouble;
  return DOCTOR_EXIT[ORDER.find((kind) => result.findings.some((finding) => finding.kind === kind)) ?? 'streaming'];
}

/** One JSON document. */
export function writeJson(result: Diagnosis | Trouble): string {
  if (isTrouble(result)) return `${JSON.stringify({ verdict: 'trouble', ...result })}\n`;
  const { url, findings, hops, changes, requestChanges, facts, firstEventMs, events, silenceMs } = result;
  const verdicts = ORDER.filter((kind) => findings.some((finding) => finding.kind === kind));
  const advice = findings.flatMap(({ kind }) => advisers(hops).map((hop) => ({ for: kind, hop: hop.name, set: hop[kind] })));
  const document = {
    verdict: verdicts[0] ?? 'streaming',
    ...{ url, findings, hops: hops.map(({ name }) => name), advice, changes, requestChanges },
    ...{ events, firstEventMs: Math.round(firstEventMs), silenceMs, heartbeatMs: facts.heartbeatMs },
  };
  return `${JSON.stringify(document)}\n`;
}

/** A few lines that say what is and what to do. */
export function writeReport(result: Diagnosis | Trouble): string {
  if (isTrouble(result)) return `could not examine: ${result.what}\n\n${indent(result.advice)}\n`;
  const { findings, hops } = result;
  const ordered = ORDER.flatMap((kind) => findings.filter((finding) => finding.kind === kind));
  const verdict = ordered.length === 0 ? `streaming: ${result.events} of ${result.events} events arrived when they were sent` : '';
  return `${[
    [verdict, ...ordered.map(describe)].filter((line) => line !== '').join('\n'),
    describeWay(result),
    ...(ordered.length > 0
      ? ['What to set:', ...ordered.map((finding) => advise(finding, hops, result)), AGAIN]
      : [describeLimits(result)]),
  ].join('\n\n')}\n`;
}

const AGAIN = 'Then ask again. What each hop does, and a whole configuration for some: docs/in-front.md.';

function describe(finding: Finding): string {
  if (finding.kind === 'compressed') {
    return `compressed: the events come in ${finding.coding}, although Sluicegate sends cache-control: no-transform`;
  }
  if (finding.kind === 'cut') {
    const how = finding.status === undefined ? '' : `, with a ${finding.status} of the hop's own`;
    if (finding.silenceMs === undefined) return `cut after ${formatSeconds(finding.afterMs)}, while events flowed`;
    return `cut after ${formatSeconds(finding.silenceMs)} of silence${how}`;
  }
  const { longestMs, bytes, events, held, of, isWhole } = finding;
  if (isWhole)
    return `buffered: all ${of} events (${bytes} bytes) arrived together at the end, the first one ${formatSeconds(longestMs)} late`;
  return `buffered: ${held} of ${of} events were held back, for up to ${formatSeconds(longestMs)}; up to ${events} (${bytes} bytes) arrived together`;
}

function describeWay({ url, hops, firstEventMs, changes, requestChanges }: Diagnosis): string {
  const names = hops.length === 0 ? 'nobody that shows' : hops.map(({ name }) => name).join(', ');
  return [
    `  url          ${url}`,
    `  on the way   ${names}`,
    `  first event  ${formatSeconds(firstEventMs)}`,
    ...listChanges('  answer      ', changes),
    ...listChanges('  request     ', requestChanges),
  ].join('\n');
}

function listChanges(label: string, changes: readonly HeaderChange[]): string[] {
  return changes.map(({ name, sent, arrived }, at) => {
    const head = at === 0 ? label : ' '.repeat(label.length);
    if (sent === undefined) return `${head} + ${name}: ${plain(arrived)}`;
    if (arrived === undefined) return `${head} - ${name}: ${plain(sent)}`;
    return `${head} ~ ${name}: ${plain(sent)} → ${plain(arrived)}`;
  });
}

/** A header's value is anybody's text: nothing in it shall move the cursor. */
function plain(value = ''): string {
  const shown = value.replace(/\p{C}/gu, '\ufffd');
  return shown.length > 80 ? `${shown.slice(0, 77)}...` : shown;
}

/** Those to ask for what to set; where nobody shows, somebody without a name did it. */
function advisers(hops: readonly Hop[]): readonly Hop[] {
  return hops.length > 0 ? hops : [unknownHop];
}

function advise(finding: Finding, hops: readonly Hop[], diagnosis: Diagnosis): string {
  const lines = advisers(hops).map((hop) => `  ${hop.name}, ${finding.kind}:\n${indent(hop[finding.kind])}`);
  const own =
    finding.kind === 'cut' && finding.silenceMs !== undefined
      ? [`  Sluicegate:\n${indent(adviseHeartbeat(finding.silenceMs, diagnosis))}`]
      : [];
  return [...lines, ...own].join('\n');
}

function adviseHeartbeat(silenceMs: number, { facts: { heartbeatMs, earlyHeadersMs } }: Diagnosis): string {
  const wanted = silenceMs < 1500 ? '500ms' : `${Math.max(1, Math.floor(silenceMs / 2000))}s`;
  if (heartbeatMs === undefined) return `sse.heartbeat is off: sse: { heartbeat: ${wanted} } keeps streams from being silent for so long.`;
  if (heartbeatMs >= silenceMs) {
    return `sse.heartbeat is ${formatSeconds(heartbeatMs)}, which is too late: sse: { heartbeat: ${wanted} } keeps streams from being cut.`;
  }
  const early =
    earlyHeadersMs === undefined || earlyHeadersMs >= silenceMs
      ? `a model that thinks for longer before its first byte is cut: sse: { earlyHeaders: ${wanted} }`
      : `and before the first byte sse.earlyHeaders (${formatSeconds(earlyHeadersMs)}) does`;
  return `sse.heartbeat, ${formatSeconds(heartbeatMs)}, keeps streams that have begun from being cut; ${early}.`;
}

function describeLimits({ silenceMs, hops }: Diagnosis): string {
  const patience = hops.map((hop) => `  By default ${hop.patience}.`);
  const tried =
    silenceMs === 0
      ? 'Silence was not tried.'
      : `Silence was tried for ${formatSeconds(silenceMs)}. A model may think for longer before its first byte: --silence 2m tries that.`;
  return [tried, ...patience].join('\n');
}

function indent(text: string): string {
  return text.replace(/^/gm, '    ');
}

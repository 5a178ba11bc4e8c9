// Asks a real Prometheus what the dashboard and the alerts ask it, until there is data or patience ends.
import { setTimeout as delayFor } from 'node:timers/promises';
import { type Query, usesOf } from './queries.ts';

export interface Verdict {
  readonly name: string;
  /** Undefined where all is well. */
  readonly fault: string | undefined;
}

interface Answer {
  readonly status: string;
  readonly error?: string;
  readonly data?: { readonly result: readonly { readonly value: readonly [number, string] }[] };
}

/** Rare endings come once in a hundred calls, two or three of which are made a second. */
const PATIENCE_MS = 150_000;
const AGAIN_MS = 1000;
/** Prometheus makes them only while an alert is pending or firing, which need not be so here. */
const PERHAPS = new Set(['ALERTS']);

async function ask(prometheusUrl: string, expr: string): Promise<Answer> {
  const body = new URLSearchParams({ query: expr });
  const answer = await fetch(`${prometheusUrl}/api/v1/query`, { method: 'POST', body, signal: AbortSignal.timeout(10_000) });
  return (await answer.json()) as Answer;
}

/** Waits until each query has a number; judged all the same when patience ends. */
async function judge(prometheusUrl: string, queries: readonly Query[], untilMs: number): Promise<Verdict[]> {
  const open = new Map(queries.map((query) => [query, 'returns nothing']));
  for (;;) {
    for (const query of [...open.keys()]) {
      const { status, error, data } = await ask(prometheusUrl, query.expr);
      if (status !== 'success') open.set(query, error ?? status);
      else if (data?.result.some(({ value: [, text] }) => Number.isFinite(Number(text)))) open.delete(query);
    }
    if (open.size === 0 || performance.now() > untilMs) break;
    await delayFor(AGAIN_MS);
  }
  return queries.map((query) => ({ name: query.name, fault: open.has(query) ? `${open.get(query)}: ${query.expr}` : undefined }));
}

/** Each query of each panel must return at least one number. */
export async function judgePanels(prometheusUrl: string, queries: readonly Query[]): Promise<Verdict[]> {
  const verdicts = await judge(prometheusUrl, queries, performance.now() + PATIENCE_MS);
  return verdicts.map(({ name, fault }) => ({ name: `panel ${name}`, fault }));
}

/** Alerts are quiet when all is well: each metric that one names must be there, with the labels that it is asked for by; and Prometheus must have evaluated it. */
export async function judgeAlerts(prometheusUrl: string, queries: readonly Query[]): Promise<Verdict[]> {
  const asked = queries.flatMap(({ name, expr }) =>
    usesOf(expr)
      .uses.filter(({ metric }) => !PERHAPS.has(metric))
      .map(({ metric, labels }) => ({ name, expr: `count(${metric}{${labels.map((label) => `${label}!=""`).join(', ')}})` })),
  );
  const verdicts = await judge(prometheusUrl, asked, performance.now() + PATIENCE_MS);
  const answer = await fetch(`${prometheusUrl}/api/v1/rules`, { signal: AbortSignal.timeout(10_000) });
  const { data } = (await answer.json()) as { data: { groups: { rules: { name: string; health: string; lastError?: string }[] }[] } };
  const evaluated = data.groups.flatMap(({ rules }) => rules);
  return [
    ...verdicts.map(({ name, fault }) => ({ name: `alert ${name}`, fault })),
    {
      name: 'Prometheus has all rules',
      fault: evaluated.length === queries.length ? undefined : `${evaluated.length} of ${queries.length}`,
    },
    ...evaluated.map(({ name, health, lastError }) => ({
      name: `Prometheus evaluates ${name}`,
      fault: health === 'err' ? (lastError ?? health) : undefined,
    })),
  ];
}

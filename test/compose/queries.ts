// What the dashboard and the alerts ask Prometheus, and which metrics and labels they name.
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parse } from 'yaml';

export interface Query {
  /** The panel or alert that asks. */
  readonly name: string;
  readonly expr: string;
}

export interface Panel {
  readonly title: string;
  readonly type: string;
  readonly description?: string;
  readonly gridPos: { readonly x: number; readonly y: number; readonly w: number; readonly h: number };
  readonly fieldConfig?: { readonly defaults: { readonly unit?: string } };
  readonly targets?: readonly { readonly expr: string }[];
}

interface Variable {
  readonly name: string;
  readonly query: string | { readonly query: string };
}

interface Dashboard {
  readonly panels: readonly Panel[];
  readonly templating: { readonly list: readonly Variable[] };
}

interface Rule {
  readonly alert?: string;
  readonly record?: string;
  readonly expr: string;
  readonly annotations?: Record<string, string>;
}

/** A metric that an expression names, with the labels that it is asked for by. */
export interface Use {
  readonly metric: string;
  readonly labels: readonly string[];
}

export const root = fileURLToPath(new URL('../..', import.meta.url));
const read = (path: string) => readFileSync(`${root}/${path}`, 'utf8');

export const dashboard = JSON.parse(read('config/grafana/dashboards/sluicegate.json')) as Dashboard;
const groups = (parse(read('config/prometheus/rules.yaml')) as { groups: { rules: Rule[] }[] }).groups;
export const rules: readonly Rule[] = groups.flatMap((group) => group.rules);

/** What Grafana would put in the place of its variables, with everything chosen and half an hour in sight. */
const VARIABLES: Readonly<Record<string, string>> = {
  $__rate_interval: '1m',
  $__interval: '15s',
  $__range: '30m',
  $__range_s: '1800',
  $upstream: '.*',
  $model: '.*',
  $client: '.*',
};

/** Every query of every panel, as Grafana would send it. */
export function panelQueries(): Query[] {
  return dashboard.panels.flatMap(({ title, targets = [] }) =>
    targets.map(({ expr }) => ({ name: title, expr: expr.replace(/\$\w+/g, (name) => VARIABLES[name] ?? name) })),
  );
}

export function ruleQueries(): Query[] {
  return rules.map(({ alert, record, expr }) => ({ name: alert ?? record ?? '', expr }));
}

/** The metrics and labels that choose what the dashboard's variables offer. */
export function variableUses(): Use[] {
  return dashboard.templating.list.flatMap(({ query }) => {
    const [, metric, label] = /^label_values\((\w+), (\w+)\)$/.exec(typeof query === 'string' ? query : query.query) ?? [];
    return metric === undefined || label === undefined ? [] : [{ metric, labels: [label] }];
  });
}

const WORDS = new Set(['by', 'without', 'on', 'ignoring', 'group_left', 'group_right', 'and', 'or', 'unless', 'offset', 'bool']);
const GROUPING = /\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)/g;

/** The metrics of an expression, with the labels of their matchers; and the labels that it groups by. A reader of what we write, not of all PromQL. */
export function usesOf(expr: string): { uses: Use[]; grouping: string[] } {
  const plain = expr.replace(/"(?:[^"\\]|\\.)*"/g, '""');
  const grouping = [...plain.matchAll(GROUPING)].flatMap(([, list = '']) => list.split(',').map((label) => label.trim())).filter(Boolean);
  const selectors = plain
    .replace(GROUPING, ' ')
    .replace(/\[[^\]]*\]/g, ' ')
    .replace(/\boffset\s+\w+/g, ' ');
  const uses: Use[] = [];
  for (const [, metric = '', matchers = ''] of selectors.matchAll(/(?<![\w:.])([a-zA-Z_:][\w:]*)(?:\{([^}]*)\})?(?!\s*\(|[\w:])/g)) {
    if (WORDS.has(metric)) continue;
    // What stands within the braces is no metric; they are taken with the name before them.
    uses.push({ metric, labels: [...matchers.matchAll(/(\w+)\s*(?:=~|!~|!=|=)/g)].map(([, label = '']) => label) });
  }
  return { uses, grouping };
}

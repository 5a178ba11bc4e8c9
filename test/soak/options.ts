// What a soak is told on its command line.
import { parseArgs } from 'node:util';

const { values } = parseArgs({
  options: {
    scenario: { type: 'string', default: 'mixed' },
    minutes: { type: 'string' },
    seed: { type: 'string', default: '1' },
    'at-once': { type: 'string' },
  },
});

export const scenario = values.scenario;
export const seed = Number(values.seed);

/** How long it shall last; each scenario has a length of its own. */
export function minutes(otherwise: number): number {
  return Number(values.minutes ?? otherwise);
}

/** How many calls, connections or streams there are at a time. */
export function atOnce(otherwise: number): number {
  return Number(values['at-once'] ?? otherwise);
}

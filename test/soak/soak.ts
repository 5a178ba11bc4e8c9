// npm run soak: what cannot be shown in seconds, one scenario at a time; each prints its figures, and exits non-zero on a finding.
//   npm run soak -- [--scenario mixed|slow-http|many-streams|dead-upstreams|killed-upstream] [--minutes 10] [--seed 1] [--at-once 60]
import { scenario } from './options.ts';

const scenarios: Record<string, () => Promise<unknown>> = {
  mixed: () => import('./mixed.ts'),
  'slow-http': () => import('./slow-http.ts'),
  'many-streams': () => import('./many-streams.ts'),
  'dead-upstreams': () => import('./dead-upstreams.ts'),
  'killed-upstream': () => import('./killed-upstream.ts'),
};

const play = scenarios[scenario];
if (play === undefined) throw new Error(`no scenario ${scenario}: there are ${Object.keys(scenarios).join(', ')}`);
await play();

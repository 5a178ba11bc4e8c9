// Which of a route's targets is tried first, and which after it.
import type { Upstream } from '../config.ts';
import type { Outlet } from './outlet.ts';
import type { Route, Target } from './router.ts';

export interface Balance {
  /** The targets to try, in order: without those that are put aside, unless all are; those whose keys all rest come last. */
  order(route: Route): Target[];
}

export function createBalance(outletOf: (upstream: Upstream) => Outlet): Balance {
  const credits = new WeakMap<Route, Map<Target, number>>();

  /** nginx's smooth weighted round robin: of weights 3 and 1, a a b a. */
  function takeTurn(route: Route, targets: readonly Target[]): Target[] {
    const credit = credits.get(route) ?? new Map<Target, number>();
    credits.set(route, credit);
    let sum = 0;
    for (const target of targets) {
      const weight = target.weight ?? 1;
      sum += weight;
      credit.set(target, (credit.get(target) ?? 0) + weight);
    }
    const first = targets.reduce((best, target) => ((credit.get(target) ?? 0) > (credit.get(best) ?? 0) ? target : best));
    credit.set(first, (credit.get(first) ?? 0) - sum);
    return [first, ...targets.filter((target) => target !== first)];
  }

  function load({ upstream, weight = 1 }: Target): number {
    const { active, queued } = outletOf(upstream).client.counts();
    return (active + queued) / weight;
  }

  function arrange(route: Route, targets: readonly Target[]): Target[] {
    const isLevel = route.balance === 'leastBusy';
    const inTurn = isLevel || targets.some(({ weight }) => weight !== undefined) ? takeTurn(route, targets) : [...targets];
    // Those that are as busy as each other take turns.
    return isLevel ? inTurn.toSorted((a, b) => load(a) - load(b)) : inTurn;
  }

  return {
    order(route) {
      if (route.targets.length === 1) return [...route.targets];
      const fit = route.targets.filter(({ upstream }) => outletOf(upstream).health.isFit);
      const targets = fit.length > 0 ? fit : route.targets;
      const { resting = [], fresh = [] } = Object.groupBy(targets, ({ upstream }) =>
        outletOf(upstream).keys.isResting ? 'resting' : 'fresh',
      );
      return fresh.length === 0 ? arrange(route, resting) : [...arrange(route, fresh), ...resting];
    },
  };
}

// Runs a scenario: starts its contenders, takes them in turn, round by round, and keeps every round's figures.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Contender, Running, Setup } from './contender.ts';
import type { Cores } from './cores.ts';
import type { FigureName, Figures } from './figures.ts';
import type { Generators } from './generators/generators.ts';
import { measure, needsFreshStart, type Pace, verify, warmUp } from './measure.ts';
import { startRedis } from './redis.ts';
import type { Scenario } from './scenarios.ts';
import { rotate } from './statistics.ts';

export interface Row {
  readonly name: string;
  readonly rounds: Figures[];
}

export interface ScenarioResult {
  readonly scenario: Scenario;
  readonly rows: Row[];
  readonly skipped: { readonly name: string; readonly reason: string }[];
}

export interface RunParts {
  readonly generators: Generators;
  readonly cores: Cores;
  readonly contenders: readonly Contender[];
  readonly rounds: number;
  readonly pace: Pace;
  tell(line: string): void;
}

/** Measures every contender of a scenario in every round, side by side. */
export async function runScenario(scenario: Scenario, parts: RunParts): Promise<ScenarioResult> {
  const redis = scenario.hasRedis ? await startRedis(parts.cores.generators) : undefined;
  const stage = createStage(scenario, parts, redis?.url);
  const result: ScenarioResult = { scenario, rows: [], skipped: [] };
  const taking = new Map<Contender, Row>();
  try {
    for (const contender of parts.contenders) {
      const reason = await stage.admit(contender);
      if (reason === undefined) taking.set(contender, { name: contender.name, rounds: [] });
      else result.skipped.push({ name: contender.name, reason });
    }
    if (!needsFreshStart(scenario.kind))
      for (const contender of taking.keys()) await warmUp({ ...parts, running: await stage.enter(contender), scenario });
    const rounds = Math.min(parts.rounds, scenario.maxRounds ?? parts.rounds);
    for (let round = 0; round < rounds; round++) {
      for (const contender of rotate([...taking.keys()], round)) {
        const running = await stage.enter(contender);
        const figures = await measure({ ...parts, running, scenario });
        taking.get(contender)?.rounds.push(figures);
        parts.tell(`${scenario.name}, round ${round + 1} of ${rounds}: ${contender.name}${tellFirst(scenario.quoted, figures)}`);
      }
    }
  } finally {
    await stage.clear();
    await redis?.stop();
  }
  result.rows.push(...taking.values());
  return result;
}

function tellFirst(quoted: readonly FigureName[], figures: Figures): string {
  const name = quoted.find((one) => figures[one] !== undefined);
  return name === undefined ? '' : `, ${name} ${figures[name]?.toFixed(1)}`;
}

/** Who runs at the moment. Contenders that wait for their turn use no CPU; where memory is measured, each turn is a fresh one's. */
function createStage(scenario: Scenario, { generators, cores }: RunParts, redisUrl: string | undefined) {
  const running = new Map<Contender, Running>();
  const folder = mkdtempSync(join(tmpdir(), 'sluicegate-bench-'));
  const workers = scenario.workers ?? 1;
  const setupOf = (): Setup => ({
    upstreamPort: scenario.isTls ? generators.upstreamTlsPort : generators.upstreamPort,
    isTls: scenario.isTls ?? false,
    caFile: generators.caFile,
    workers,
    cpus: scenario.isOnPair ? cores.pair : cores.contender,
    redisUrl,
    folder: mkdtempSync(join(folder, 'contender-')),
  });

  async function start(contender: Contender): Promise<Running> {
    // Direct has no way to the upstream of its own: the load does not speak TLS.
    const setup = contender.name === 'direct' ? { ...setupOf(), upstreamPort: generators.upstreamPort } : setupOf();
    const started = await contender.start(setup);
    running.set(contender, started);
    return started;
  }

  async function leave(contender: Contender): Promise<void> {
    await running.get(contender)?.stop();
    running.delete(contender);
  }

  return {
    /** Starts it and has it answer one call; returns why it takes no part. */
    async admit(contender: Contender): Promise<string | undefined> {
      const reason = contender.isAvailable() ?? contender.cannot?.(setupOf());
      if (reason !== undefined) return reason;
      try {
        const fault = await verify({ generators, running: await start(contender), scenario });
        if (fault !== undefined) await leave(contender);
        return fault;
      } catch (error) {
        return String(error instanceof Error ? error.message : error);
      }
    },
    async enter(contender: Contender): Promise<Running> {
      if (needsFreshStart(scenario.kind)) await leave(contender);
      return running.get(contender) ?? start(contender);
    },
    async clear(): Promise<void> {
      for (const contender of [...running.keys()]) await leave(contender);
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

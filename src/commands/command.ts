// What a command of the command line is, and what all of them say alike.
import { readFileSync } from 'node:fs';
import type { Address } from '../config.ts';

export interface Command {
  /** What stands behind `sluicegate`. */
  readonly usage: string;
  /** One line for the list of commands. */
  readonly brief: string;
  /** The rest of the command's own page. */
  readonly more: string;
  /** Those that mean something to it; a flag that would not be heeded is an error. */
  readonly flags: readonly (keyof Flags)[];
  /** @returns the exit code; undefined where it goes on until the process is told to end */
  run(args: readonly string[], flags: Flags): number | undefined | Promise<number | undefined>;
}

/** By the names that are typed. */
export type Commands = Readonly<Record<string, Command>>;

export type Flags = {
  config?: string;
  listen?: string;
  watch?: boolean;
  key?: string;
  silence?: string;
  json?: boolean;
  token?: string;
  once?: boolean;
};

export const EXIT = { clean: 0, badConfiguration: 1, couldNotStart: 2 } as const;

export function print(text: string): number {
  process.stdout.write(text);
  return EXIT.clean;
}

export function refuseUsage(message: string, command?: string): number {
  process.stderr.write(`sluicegate: ${message}\nsluicegate ${command === undefined ? '' : `${command} `}--help tells how to call it.\n`);
  return EXIT.badConfiguration;
}

export function refuseArgument(argument: string, command: string): number {
  return refuseUsage(`unexpected argument "${argument}"`, command);
}

/** @param listen where it should have listened */
export function tellStartFailure(error: unknown, { host, port }: Address): number {
  const { code, address = host, port: busyPort = port, message } = error as NodeJS.ErrnoException & { address?: string; port?: number };
  const reasons: Record<string, string> = {
    EADDRINUSE: 'something listens there already',
    EACCES: 'this user may not listen there; ports below 1024 need root or CAP_NET_BIND_SERVICE',
    EADDRNOTAVAIL: 'this machine does not have that address',
  };
  const what = code === undefined ? `could not start: ${message}` : `could not listen at ${address}:${busyPort}: ${reasons[code] ?? code}`;
  process.stderr.write(`sluicegate: ${what}\n`);
  return EXIT.couldNotStart;
}

export function readVersion(): string {
  const { version }: { version: string } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));
  return version;
}

#!/usr/bin/env node
// The command line: which command is meant, and the exit code. With `commands` it is the process's edge: nothing else touches the process.
import { parseArgs } from 'node:util';
import { check } from './commands/check.ts';
import { type Commands, EXIT, type Flags, print, readVersion, refuseUsage } from './commands/command.ts';
import { demo } from './commands/demo.ts';
import { doctor } from './commands/doctor.ts';
import { nearestCommand, writeCommandHelp, writeHelp } from './commands/help.ts';
import { key } from './commands/key.ts';
import { serve } from './commands/serve.ts';
import { top } from './commands/top.ts';
import { traffic } from './commands/traffic.ts';
import { WORKER, work } from './commands/worker.ts';

/** In the order of the help. */
const commands: Commands = { serve, check, key, doctor, top, demo, traffic };

async function main(argv: string[]): Promise<number | undefined> {
  const given = readArguments(argv);
  if (given === undefined) return EXIT.badConfiguration;
  const { values, positionals } = given;
  if (values.version) return print(`${readVersion()}\n`);
  const [name = 'serve', ...args] = positionals;
  if (values.help || name === 'help') return help(name === 'help' ? args[0] : positionals[0]);
  if (name === WORKER && process.connected) return work();
  const command = Object.hasOwn(commands, name) ? commands[name] : undefined;
  if (command === undefined) return refuseCommand(name);
  const unheeded = Object.keys(values).find((flag) => !command.flags.includes(flag as keyof Flags));
  return unheeded === undefined ? command.run(args, values) : refuseUsage(`${name} does not take --${unheeded}`, name);
}

/** Undefined where they cannot be read, which has been told. */
function readArguments(argv: string[]) {
  const options = {
    config: { type: 'string', short: 'c' },
    listen: { type: 'string' },
    watch: { type: 'boolean' },
    key: { type: 'string' },
    silence: { type: 'string' },
    json: { type: 'boolean' },
    token: { type: 'string' },
    once: { type: 'boolean' },
    help: { type: 'boolean', short: 'h' },
    version: { type: 'boolean', short: 'v' },
  } as const;
  try {
    return parseArgs({ args: argv, options, allowPositionals: true });
  } catch (error) {
    // Node goes on to say how to pass a value that begins with a dash.
    const [fault = ''] = (error as Error).message.split(/\.? To specify/);
    refuseUsage(fault.replace(/^\p{Lu}/u, (first) => first.toLowerCase()));
    return undefined;
  }
}

function help(name: string | undefined): number {
  if (name === undefined) return print(writeHelp(commands));
  const page = writeCommandHelp(commands, name);
  return page === undefined ? refuseCommand(name) : print(page);
}

function refuseCommand(name: string): number {
  const nearest = nearestCommand(commands, name);
  return refuseUsage(`there is no command "${name}"${nearest === undefined ? '' : `; did you mean "${nearest}"?`}`);
}

const exitCode = await main(process.argv.slice(2));
if (exitCode !== undefined) process.exitCode = exitCode;

// `sluicegate check`: every problem of a configuration, or what is in effect.
import { printConfig } from '../config.ts';
import { type Command, EXIT, print, refuseArgument } from './command.ts';
import { load } from './load.ts';

export const check: Command = {
  usage: 'check [-c FILE]',
  brief: 'tell every problem of a configuration, and what is in effect',
  more: `Tells all that is wrong at once, each as file:line:column: what is wrong, and what would be right.
Prints what is in effect, secrets masked. Exit code 0 if it can be served, 1 if not: fit for CI, and for before a reload.

  -c, --config FILE   the file; found as serve finds it`,

  flags: ['config'],
  run([unexpected], flags) {
    if (unexpected !== undefined) return refuseArgument(unexpected, 'check');
    const loaded = load(flags);
    if (loaded === undefined) return EXIT.badConfiguration;
    return print(`# ${loaded.file ?? 'built-in defaults and the environment'}: valid. In effect:\n${printConfig(loaded.config)}`);
  },
};

// `sluicegate key`: a key for a client, and the lines that make it known.
import { randomBytes } from 'node:crypto';
import { isName } from '../config.ts';
import { hashKey } from '../http/auth.ts';
import { type Command, print, refuseUsage } from './command.ts';

export const key: Command = {
  usage: 'key NAME',
  brief: 'make a key for a client',
  more: `Prints the key, this once, and the lines for the configuration, which hold only its SHA-256.

Example
  sluicegate key web-app`,

  flags: [],
  run([name, ...rest]) {
    if (name === undefined || rest.length > 0) return refuseUsage('key takes one argument, the name of the client', 'key');
    if (!isName(name)) return refuseUsage('a client’s name has 1 to 64 letters, digits, ".", "_" or "-"', 'key');
    const secret = `sk-sluicegate-${randomBytes(24).toString('base64url')}`;
    return print(
      `Key of ${name}, shown only now:\n\n  ${secret}\n\nFor the configuration:\n\nclients:\n  - name: ${name}\n    keySha256: ${hashKey(secret)}\n`,
    );
  },
};

// A real Chromium, where the machine has one: started once for a test file, closed with it.
import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';
import { type Browser, chromium } from 'playwright-core';
import type { Test } from 'tap';

const executablePath = ['/usr/bin', ...(process.env.PATH ?? '').split(delimiter)]
  .map((folder) => join(folder, 'chromium'))
  .find(isExecutable);

/** The reason not to run a test that needs it. */
export const skipWithoutChromium = executablePath === undefined && 'Chromium is not installed';

/** Nothing of its own goes out, and the streams under test go over TCP. */
const args =
  '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync';

function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** @param t the file's own, with which the browser ends */
export function createBrowser(t: Test): () => Promise<Browser> {
  let launched: Promise<Browser> | undefined;
  t.teardown(async () => (await launched)?.close());
  return () => {
    launched ??= chromium.launch({ executablePath: executablePath ?? '', args: args.split(' ') });
    return launched;
  };
}

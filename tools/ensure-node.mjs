// Gives npm scripts a current Node where the machine has only an older one: Node's own binary from npm, into tools/node.
// Plain JavaScript that runs on Node 18 and later. Does nothing where the running Node is new enough.
import { spawnSync } from 'node:child_process';
import { existsSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const [major, minor] = process.versions.node.split('.').map(Number);
if (major > 22 || (major === 22 && minor >= 21)) process.exit(0);

const binFolder = new URL('../node_modules/.bin/', import.meta.url);
if (!existsSync(binFolder)) {
  console.error('node_modules is missing: run npm ci first');
  process.exit(1);
}
const nested = new URL('./node/', import.meta.url);
const binary = new URL('./node/node_modules/.bin/node', import.meta.url);
if (!existsSync(binary)) {
  console.error(`Node ${process.versions.node} is too old (22.21 or newer is needed): fetching a newer one into tools/node`);
  // npm's own settings of the outer run (its prefix above all) would send the nested install to the wrong folder.
  const env = Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !/^npm_(?!config_(registry|cache|userconfig)$)/i.test(name)),
  );
  const install = [process.env.npm_execpath, 'ci', '--no-audit', '--no-fund', '--loglevel=error'];
  const { status } = spawnSync(process.execPath, install, { cwd: fileURLToPath(nested), env, stdio: 'inherit' });
  if (status !== 0) process.exit(status ?? 1);
}
// npm puts node_modules/.bin first on the PATH of every script, npx and npm exec.
if (process.platform === 'win32') {
  writeFileSync(new URL('node.cmd', binFolder), `@"${fileURLToPath(binary)}.cmd" %*\r\n`);
} else {
  const link = new URL('node', binFolder);
  rmSync(link, { force: true });
  symlinkSync('../../tools/node/node_modules/.bin/node', link);
}

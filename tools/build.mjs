// npm run build: dist/ from src/, afresh.
import { spawnSync } from 'node:child_process';
import { chmodSync, cpSync, rmSync } from 'node:fs';

rmSync('dist', { recursive: true, force: true });
const { status } = spawnSync('npx', ['--no-install', 'tsc', '-p', 'tsconfig.build.json'], {
  stdio: 'inherit',
  shell: process.platform === 'win32',
});
if (status !== 0) process.exit(status ?? 1);
// The live page's files are served as they are.
cpSync('src/live', 'dist/live', { recursive: true });
chmodSync('dist/main.js', 0o755);

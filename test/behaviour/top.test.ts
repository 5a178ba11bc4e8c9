// Promise: `sluicegate top` shows what is streaming, fits its terminal, leaves it as it was, and says plainly what is wrong.
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import t, { type Test } from 'tap';
import type { View } from '../../src/telemetry/view.ts';
import { drawScreen } from '../../src/top/screen.ts';
import { startTestGateway } from '../support/gateway.ts';
import { command, runCommand, runSluicegate } from '../support/process.ts';
import { startUpstream } from '../support/upstream.ts';
import { connect } from '../support/wire.ts';

const delta = { model: 'model-1', choices: [{ index: 0, delta: { content: 'word' }, finish_reason: null }] };

async function startWithStream(t: Test, settings: Record<string, object> = {}) {
  const upstream = await startUpstream({ waitMs: 15_000 });
  t.teardown(() => upstream.close());
  const gateway = await startTestGateway(t, upstream.url, settings);
  const client = await connect(gateway.port);
  client.request({ method: 'POST', target: '/v1/chat/completions', body: '{"model":"m","stream":true}' });
  const request = await upstream.request();
  request.startSse();
  request.event(delta);
  await client.until('word');
  return { gateway, client, request };
}

t.test('one look, where nobody watches', async (t) => {
  const { gateway, client } = await startWithStream(t);
  const running = runSluicegate(t, ['top', gateway.opsUrl]);
  t.equal(await running.exited(), 0);
  t.match(running.stdout, /^Sluicegate 0\.0\.0 {2}ready, up \d+s\nStreams 1 /);
  t.match(running.stdout, /STATE +CLIENT +MODEL +UPSTREAM +TOKENS +TOK\/S +FIRST +AGE\nstreaming +anonymous +model-1 +main +1 /);
  t.notMatch(running.stdout, '\x1b', 'plain text');
  client.destroy();
  await gateway.ended();
  const after = runSluicegate(t, ['top', gateway.opsUrl.replace('http://', ''), '--once']);
  t.equal(await after.exited(), 0);
  t.match(after.stdout, /Nothing is streaming\.\n\nENDED +OUTCOME[^\n]*\n\d+s ago +client_closed +in stream +anonymous/);
});

t.test('in a terminal: another look each second, and q or Ctrl-C give it back', async (t) => {
  const { gateway, request } = await startWithStream(t);
  for (const key of ['q', '\x03']) {
    const inTerminal = ['script', '-qefc', `stty cols 60 rows 20; ${command.join(' ')} top ${gateway.opsUrl}`, '/dev/null'];
    const running = runCommand(t, inTerminal, { TERM: 'xterm' }, undefined, 'pipe');
    await running.said(/\[\?1049h.*streaming +anonymous +model-1/s);
    const seen = running.stdout.split('Sluicegate 0.0.0').length;
    request.event(delta);
    await running.said(new RegExp(`(?:Sluicegate 0\\.0\\.0.*?){${seen}}`, 's'));
    running.child.stdin?.write(key);
    t.equal(await running.exited(), 0);
    t.ok(running.stdout.trimEnd().endsWith('\x1b[?25h\x1b[?1049l'), 'the cursor and the screen are back');
    // biome-ignore lint/suspicious/noControlCharactersInRegex: what moves the cursor is not on the lines.
    for (const line of running.stdout.replace(/\x1b\[[?\d]*[A-Za-z]/g, '').split('\r\n')) t.ok(line.length <= 60, line);
  }
});

t.test('what is wrong is said: nobody there, a token, somebody else', async (t) => {
  const { gateway } = await startWithStream(t, { ops: { token: 'ops-secret' } });
  const refused = createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => refused.once('listening', resolve));
  const { port } = refused.address() as AddressInfo;
  await new Promise((resolve) => refused.close(resolve));
  const cases: [args: string[], message: RegExp, env?: Record<string, string>][] = [
    [[`127.0.0.1:${port}`], /nothing listens at http:\/\/127\.0\.0\.1:\d+ \(ECONNREFUSED\): does the gateway run/],
    [[gateway.opsUrl], /asks for its ops token: give the one in ops\.token with --token/],
    [[gateway.opsUrl, '--token', 'wrong'], /does not take this token/],
    [[gateway.url], /answered 404: Nothing is here\./],
    [['http://['], /is no URL of an ops listener/],
  ];
  for (const [args, message] of cases) {
    const running = runSluicegate(t, ['top', ...args]);
    t.equal(await running.exited(), 2, args.join(' '));
    t.match(running.stderr, message);
    t.equal(running.stdout, '');
  }
  for (const [args, env] of [[['--token', 'ops-secret'], {}] as const, [[], { SLUICEGATE_OPS_TOKEN: 'ops-secret' }] as const]) {
    const running = runSluicegate(t, ['top', gateway.opsUrl, ...args], env);
    t.equal(await running.exited(), 0);
    t.match(running.stdout, 'streaming');
  }
});

t.test('it fits any room, and no name moves a cursor', async (t) => {
  const stream = {
    id: 'a-1',
    requestId: 'r',
    upstream: 'main',
    endpoint: '/v1/chat/completions',
    phase: 'stream' as const,
    isUnheard: false,
  };
  const figures = { ageMs: 7_400_000, ttftMs: 120, tokens: 1234, tokensPerSecond: 3.2, bytesOut: 1 };
  const streams = Array.from({ length: 60 }, (_, n) => ({
    ...{ ...stream, ...figures, client: `client-${n}`, model: `a/rather-long-name-of-a-model:${n}\x1b[2J` },
  }));
  const ended = {
    requestId: 'r',
    client: 'app',
    upstream: undefined,
    model: undefined,
    endpoint: 'other',
    status: 502,
    phase: 'connect' as const,
  };
  const times = { endedAt: 90_000, durationMs: 12, ttftMs: undefined, inputTokens: undefined, outputTokens: undefined };
  const view: View = {
    ...{ version: '1.2.3', state: 'ready', at: 100_000, startedAt: 0, workers: 2, url: '', isKeyNeeded: false },
    ...{ streamCount: 60, tokensPerSecond: 192, streams, history: { everyMs: 2000, streams: [], tokensPerSecond: [] } },
    totals: {
      requests: 12_345,
      outcomes: { completed: 12_000, upstream_reset: 345 },
      inputTokens: 1,
      outputTokens: 2_000_000,
      costUsd: 3.5,
    },
    upstreams: [{ name: 'main', isUp: false, active: 60, idle: 0, queued: 3 }],
    recent: Array.from({ length: 50 }, () => ({ ...ended, ...times, outcome: 'upstream_unreachable' as const, cause: 'ECONNREFUSED' })),
  };
  for (const columns of [20, 40, 60, 80, 120, 200]) {
    for (const rows of [5, 24, 60]) {
      const lines = drawScreen(view, { columns, rows }, 'old');
      t.ok(lines.length <= rows, `${lines.length} lines of ${rows}`);
      t.ok(
        lines.every((line) => line.length <= columns),
        `within ${columns} columns`,
      );
      t.notMatch(lines.join('\n'), '\x1b');
    }
  }
  const wide = drawScreen(view, { columns: 200, rows: 40 }).join('\n');
  t.match(wide, /Sluicegate 1\.2\.3 {2}ready, up 1m40s, 2 workers\nStreams 60 .*Requests 12\.3K .*Tokens 2M out, 1 in .*Cost \$3\.50/);
  t.match(wide, '12K completed, 345 upstream_reset');
  t.match(wide, /main +PUT ASIDE/);
  t.match(wide, /and \d+ more\n/);
  t.match(wide, /10s ago +upstream_unreachable +ECONNREFUSED/);
});

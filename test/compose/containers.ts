// docker-compose.yml itself, in podman: the real Dockerfile is built, and the other images are made from Debian's packages of the same programs,
// under the names that the file asks for. All of it in a storage of its own, which is gone afterwards.
import { spawnSync } from 'node:child_process';
import { chmodSync, mkdtempSync, readFileSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { parse } from 'yaml';
import type { Stack } from './compose.ts';
import type { Verdict } from './judge.ts';
import { findFreePort, waitFor } from './processes.ts';
import { root } from './queries.ts';

interface Service {
  readonly image: string;
  readonly healthcheck: { readonly test: readonly string[] };
}

const { services } = parse(readFileSync(join(root, 'docker-compose.yml'), 'utf8'), { merge: true }) as {
  services: Record<string, Service>;
};
/** There is no package of Grafana's; its dashboard's queries are asked of the real Prometheus. */
const UP = ['gateway', 'demo', 'traffic', 'prometheus', 'limits', 'edge'];
const STEP_MS = 300_000;

/** Runs a command to its end, as the least important one of the machine. @throws with its last words where it fails */
function run(file: string, args: readonly string[], env: Record<string, string> = {}): string {
  const options = {
    cwd: root,
    encoding: 'utf8',
    timeout: STEP_MS,
    env: { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin`, ...env },
  } as const;
  const { status, stdout, stderr, error } = spawnSync('nice', [file, ...args], { ...options, maxBuffer: 64 * 1024 * 1024 });
  if (status !== 0) throw new Error(`${file} ${args.join(' ').slice(0, 120)}: ${error?.message ?? ''}${(stdout + stderr).slice(-3000)}`);
  return stdout.trim();
}

const shell = (script: string, ...args: string[]) => run('sh', ['-euc', script, 'sh', ...args]);

/** Where this machine has its own packages from. */
function findMirror(): { mirror: string; codename: string } {
  const codename = /^VERSION_CODENAME=(\w+)$/m.exec(readFileSync('/etc/os-release', 'utf8'))?.[1] ?? '';
  const [mirror = ''] = run('apt-get', ['indextargets', '--format', '$(REPO_URI)', 'Created-By: Packages', `Codename: ${codename}`]).split(
    '\n',
  );
  if (mirror === '') throw new Error('no Debian mirror in the apt sources');
  return { mirror, codename };
}

/** Makes two images: Debian with Node and npm, and Debian with the other programs. */
function makeImages(work: string, podman: string): void {
  const { mirror, codename } = findMirror();
  const [base, tools] = [join(work, 'base'), join(work, 'tools')];
  run('debootstrap', ['--variant=minbase', codename, base, mirror]);
  shell('cp -a "$1" "$2"', base, tools);
  // As the images have them: names, users' folders, BusyBox' wget.
  shell(
    `chroot "$1" apt-get install -y -qq --no-install-recommends prometheus nginx-light redis-server busybox >/dev/null 2>&1
     cd "$1"; ln -s redis-server usr/bin/valkey-server; ln -s redis-cli usr/bin/valkey-cli; ln -s busybox usr/bin/wget
     install -d -o 65534 -g 65534 prometheus; install -d -o 999 -g 1000 data; rm -rf var/cache/apt var/lib/apt/lists`,
    tools,
  );
  const npm = dirname(dirname(realpathSync(process.env.npm_execpath ?? run('which', ['npm']))));
  const node = realpathSync(process.execPath);
  shell(
    `install -D "$2" "$1/usr/local/bin/node"; mkdir -p "$1/usr/local/lib/node_modules"; cp -a "$3" "$1/usr/local/lib/node_modules/npm"
     ln -s ../lib/node_modules/npm/bin/npm-cli.js "$1/usr/local/bin/npm"; install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/ca-certificates.crt"`,
    base,
    node,
    npm,
  );
  // The machine's own authorities: what stands between it and the registry may have one.
  const authorities = 'ENV NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt';
  const from = /^FROM (\S+)/m.exec(readFileSync(join(root, 'Dockerfile'), 'utf8'))?.[1] ?? '';
  shell('tar -C "$1" -c . | "$2" import --quiet --change "$3" - "$4"', base, podman, authorities, nameInFull(from));
  const first = services.prometheus?.image ?? '';
  shell('tar -C "$1" -c . | "$2" import --quiet - "$3"', tools, podman, nameInFull(first));
  for (const name of ['limits', 'edge']) run(podman, ['tag', nameInFull(first), nameInFull(services[name]?.image ?? '')]);
  rmSync(base, { recursive: true, force: true });
  rmSync(tools, { recursive: true, force: true });
}

function nameInFull(image: string): string {
  return image.includes('/') ? `docker.io/${image}` : `docker.io/library/${image}`;
}

/** The health check of a service, as the compose file has it, in its container. */
function checkHealth(podman: string, container: string, service: string): Verdict {
  const [kind, ...test] = services[service]?.healthcheck.test ?? [];
  const name = `${service} is healthy by its own check`;
  if (kind !== 'CMD') return { name, fault: `its check is ${kind}` };
  return { name, fault: tell(() => run(podman, ['exec', container, ...test])) };
}

function tell(attempt: () => unknown): string | undefined {
  try {
    attempt();
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
}

/** Brings it up on free ports. */
export async function startContainers(): Promise<Stack> {
  // Not below /tmp, which may be memory.
  const work = mkdtempSync('/var/tmp/sluicegate-stack-');
  const podman = join(work, 'podman');
  const store = ['--root', join(work, 'store'), '--runroot', join(work, 'run'), '--network-config-dir', join(work, 'networks')];
  writeFileSync(podman, `#!/bin/sh\nexec podman ${store.join(' ')} --runtime runc "$@"\n`);
  chmodSync(podman, 0o755);
  const project = `sluicegate-proof-${process.pid}`;
  const ports = Object.fromEntries(
    await Promise.all(
      ['API_PORT', 'OPS_PORT', 'PROMETHEUS_PORT', 'EDGE_PORT'].map(async (name) => [name, String(await findFreePort())] as const),
    ),
  );
  // What runc may not raise here itself; not for users.
  const override = join(work, 'override.yml');
  const ulimits = { nofile: { soft: 4096, hard: 4096 }, nproc: { soft: 4096, hard: 4096 } };
  writeFileSync(override, JSON.stringify({ services: Object.fromEntries(UP.map((name) => [name, { ulimits }])) }));
  const compose = (...args: string[]) =>
    run('podman-compose', ['-p', project, '-f', join(root, 'docker-compose.yml'), '-f', override, '--podman-path', podman, ...args], {
      ...ports,
      LIMITS_STORE: 'redis://limits:6379/0',
    });
  const container = (service: string) => `${project}_${service}_1`;

  async function stop(): Promise<void> {
    for (const args of [
      ['rm', '--all', '--force', '--time', '0', '--volumes'],
      ['network', 'prune', '--force'],
      ['system', 'reset', '--force'],
    ])
      tell(() => run(podman, args));
    tell(() => shell('mount | cut -d" " -f3 | grep "^$1/" | sort -r | xargs -r umount', work));
    rmSync(work, { recursive: true, force: true });
  }

  try {
    makeImages(work, podman);
    const image = (services.gateway?.image ?? '').replace(/^\$\{\w+:-(.*)\}$/, '$1');
    run(podman, ['build', '--format=docker', '--isolation=chroot', '--network=host', '--pull=never', '-t', image, '.']);
    console.log(
      `the image: ${run(podman, ['image', 'inspect', '--format', '{{.Size}}', image])} bytes, of them the base ${run(podman, ['image', 'inspect', '--format', '{{.Size}}', 'docker.io/library/node:24-bookworm-slim'])}`,
    );
    compose('up', '-d', '--no-build', ...UP);
    await waitFor(`http://127.0.0.1:${ports.OPS_PORT}/readyz`);
    await Promise.all([
      waitFor(`http://127.0.0.1:${ports.EDGE_PORT}/readyz`),
      waitFor(`http://127.0.0.1:${ports.PROMETHEUS_PORT}/-/ready`),
    ]);
  } catch (error) {
    for (const service of UP)
      console.log(`${service}: ${tell(() => console.log(run(podman, ['logs', '--tail', '10', container(service)]))) ?? ''}`);
    await stop();
    throw error;
  }

  async function check(): Promise<Verdict[]> {
    const inside = (service: string, script: string) => run(podman, ['exec', container(service), 'sh', '-c', script]);
    return [
      ...UP.map((service) => checkHealth(podman, container(service), service)),
      ...UP.map((service) => ({
        name: `${service} runs without root and cannot write to its image`,
        fault: tell(() => inside(service, '[ "$(id -u)" != 0 ] && ! touch /written /usr/written 2>/dev/null')),
      })),
      {
        name: 'the gateway is the first process, with the options of the image',
        fault: tell(() =>
          inside('gateway', "tr '\\0' ' ' < /proc/1/cmdline | grep -q '^node --max-semi-space-size=8 --v8-pool-size=1 src/main.ts'"),
        ),
      },
      {
        name: 'the gateway counts limits in the store',
        fault: tell(() => inside('limits', 'for i in $(seq 20); do [ "$(valkey-cli dbsize)" -gt 0 ] && exit; sleep 1; done; exit 1')),
      },
      {
        name: 'only the gateway reaches the store',
        fault: tell(() => inside('prometheus', '! timeout 3 redis-cli -h limits ping 2>/dev/null | grep -q PONG')),
      },
      {
        name: 'Prometheus’ token is for nobody else to read',
        fault: tell(() => inside('prometheus', '[ "$(stat -c %a /tmp/ops-token)" = 600 ]')),
      },
    ];
  }

  async function end(): Promise<Verdict> {
    const fault = tell(() => {
      run(podman, ['stop', '--time', '75', container('gateway')]);
      const code = run(podman, ['inspect', '--format', '{{.State.ExitCode}}', container('gateway')]);
      // 137: it was killed.
      if (code !== '0') throw new Error(`code ${code}`);
    });
    return { name: 'the gateway lets its streams finish and ends when it is told to', fault };
  }
  return {
    prometheusUrl: `http://127.0.0.1:${ports.PROMETHEUS_PORT}`,
    edgeUrl: `http://127.0.0.1:${ports.EDGE_PORT}`,
    gatewayUrl: `http://127.0.0.1:${ports.API_PORT}`,
    check,
    end,
    stop,
  };
}

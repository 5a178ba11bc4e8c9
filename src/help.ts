// What the command line says of itself: one page for all, and one for each command.
import { editDistance } from './config.ts';

export interface CommandHelp {
  /** What stands behind `sluicegate`. */
  readonly usage: string;
  /** One line for the list of commands. */
  readonly brief: string;
  /** The rest of the command's own page. */
  readonly more: string;
}

/** By the names that are typed; `serve` is the one that is meant where none is. */
export const commands: Readonly<Record<string, CommandHelp>> = {
  serve: {
    usage: '[serve] [-c FILE] [--watch]',
    brief: 'serve (what it does without a command)',
    more: `Serves apps on one port (127.0.0.1:8080) and operators on another (127.0.0.1:9464).

  -c, --config FILE   the configuration; without it $SLUICEGATE_CONFIG, else config/sluicegate.yaml if it is
                      there, else the environment alone
      --watch         load the file again whenever it changes

Without any configuration it forwards to
  OPENAI_API_KEY        OpenAI, with this key, or to
  SLUICEGATE_UPSTREAM   this base URL, with SLUICEGATE_UPSTREAM_KEY if set, or, with neither, to
                        the built-in demo, which needs no key

The environment is heeded in any case for
  SLUICEGATE_LISTEN                 where apps call; PORT=N means 0.0.0.0:N
  SLUICEGATE_OPS_LISTEN             where metrics and the live page are
  SLUICEGATE_KEY                    a client named "default" with this key
  SLUICEGATE_ALLOW_ANONYMOUS=true   let anyone who reaches the gateway use it

Signals: TERM and INT drain (a second one ends it at once), HUP loads the configuration again, whole or not at all.

Examples
  sluicegate                                                       the demo, to try things out
  OPENAI_API_KEY=sk-... sluicegate                                 OpenAI
  SLUICEGATE_UPSTREAM=http://localhost:11434/v1 sluicegate         Ollama, vLLM, llama.cpp
  sluicegate -c /etc/sluicegate.yaml --watch                       everything else`,
  },
  check: {
    usage: 'check [-c FILE]',
    brief: 'tell every problem of a configuration, and what is in effect',
    more: `Tells all that is wrong at once, each as file:line:column: what is wrong, and what would be right.
Prints what is in effect, secrets masked. Exit code 0 if it can be served, 1 if not: fit for CI, and for before a reload.

  -c, --config FILE   the file; found as serve finds it`,
  },
  key: {
    usage: 'key NAME',
    brief: 'make a key for a client',
    more: `Prints the key, this once, and the lines for the configuration, which hold only its SHA-256.

Example
  sluicegate key web-app`,
  },
  doctor: {
    usage: 'doctor URL [--key KEY] [--silence TIME] [--json]',
    brief: 'tell whether the way to a gateway streams: who buffers, compresses or cuts, and what to set',
    more: `Asks the gateway at URL, through all that stands in front of it, for events that tell when they were sent, and
compares that with when they arrive; the clocks of both ends need not agree. Then for a silence, to see who loses patience.
URL is the base URL that apps are given: https://llm.example.com/v1

      --key KEY       a client's key, where the gateway asks for one; or $SLUICEGATE_KEY, which no process list shows
      --silence TIME  how long the silence lasts (10s, 2m, at most 10m; off: none); without it a little longer than
                      the heartbeat of real streams
      --json          one JSON document in the place of the report

Exit codes
  0  streaming: every event arrives when it is sent
  1  the command line is wrong
  2  could not examine: no connection, no TLS, no key, no Sluicegate
  3  buffered: events are held back
  4  cut: the connection ends after so much silence
  5  compressed: the events come in another form than they were sent

Examples
  sluicegate doctor http://127.0.0.1:8080/v1
  sluicegate doctor https://llm.example.com/v1 --key sk-sluicegate-... --silence 2m`,
  },
  top: {
    usage: 'top [URL] [--once] [--token TOKEN]',
    brief: 'what is streaming now, once a second, in the terminal',
    more: `Shows what the live page shows, as the ops listener at URL tells it; without URL, the one at $SLUICEGATE_OPS_LISTEN
(127.0.0.1:9464). One look where nobody watches, as in a pipe. q or Ctrl-C ends it.

      --once          one look
      --token TOKEN   where the listener asks for ops.token; or $SLUICEGATE_OPS_TOKEN

Exit codes: 0 clean, 2 where it cannot be had.`,
  },
  demo: {
    usage: 'demo [--listen HOST:PORT]',
    brief: 'the demo upstream alone, an OpenAI-compatible server that needs no key',
    more: `      --listen ADDR   where it listens; without it 127.0.0.1:8081`,
  },
  traffic: {
    usage: 'traffic URL [KEY...]',
    brief: 'call a gateway before the demo upstream as an app’s users would',
    more: `Calls the gateway at URL with the demo's models, streamed and not, leaves some streams, and asks for some failures, so
that a dashboard has something to show. With keys, each caller takes one of them. Ctrl-C ends it.

Example
  sluicegate traffic http://127.0.0.1:8080/v1`,
  },
};

/** The page of `sluicegate --help`. */
export function writeHelp(): string {
  const rows = Object.values(commands).map(({ usage, brief }) => `  sluicegate ${usage}\n      ${brief}`);
  return `Sluicegate: a streaming gateway for OpenAI-compatible APIs.

Apps change their base URL to it, and nothing else: what the provider says arrives as it is said, every token is counted,
and no key of yours reaches an app.

Usage
${rows.join('\n')}
  sluicegate help COMMAND, or COMMAND --help
      more about one of them
  sluicegate --version

Try it
  sluicegate                                                  starts with a built-in demo; prints a curl line to paste
  OPENAI_API_KEY=sk-... sluicegate                            the same before OpenAI
  SLUICEGATE_UPSTREAM=http://localhost:11434/v1 sluicegate    or before Ollama, vLLM, ...

Settings are in a file: config/sluicegate.example.yaml has all of them, each with its default.

Exit codes: 0 clean, 1 bad configuration or command line, 2 could not listen or start. doctor has more.
`;
}

/** The page of one command; undefined where there is no such command. */
export function writeCommandHelp(name: string): string | undefined {
  if (!Object.hasOwn(commands, name)) return undefined;
  const { usage, brief, more } = commands[name]!;
  return `sluicegate ${usage}\n\n${brief.charAt(0).toUpperCase()}${brief.slice(1)}.\n\n${more}\n`;
}

/** The command that was probably meant, for a mistyped one. */
export function nearestCommand(typed: string): string | undefined {
  const [nearest] = Object.keys(commands).sort((one, other) => editDistance(typed, one) - editDistance(typed, other));
  return nearest !== undefined && editDistance(typed, nearest) <= 2 ? nearest : undefined;
}

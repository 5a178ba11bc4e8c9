// What the command line says of itself: one page for all commands, and one for each.
import { editDistance } from '../config.ts';
import type { Commands } from './command.ts';

/** The page of `sluicegate --help`. */
export function writeHelp(commands: Commands): string {
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
export function writeCommandHelp(commands: Commands, name: string): string | undefined {
  if (!Object.hasOwn(commands, name)) return undefined;
  const { usage, brief, more } = commands[name]!;
  return `sluicegate ${usage}\n\n${brief.charAt(0).toUpperCase()}${brief.slice(1)}.\n\n${more}\n`;
}

/** The command that was probably meant, for a mistyped one. */
export function nearestCommand(commands: Commands, typed: string): string | undefined {
  const [nearest] = Object.keys(commands).sort((one, other) => editDistance(typed, one) - editDistance(typed, other));
  return nearest !== undefined && editDistance(typed, nearest) <= 2 ? nearest : undefined;
}

// `sluicegate doctor`: tells on standard output whether the way to a gateway streams.
import { parseDuration } from '../config.ts';
import { type Command, type Flags, readVersion, refuseUsage } from './command.ts';

/** The longest silence that the probe can be asked for. */
const MAX_SILENCE_MS = 600_000;

export const doctor: Command = {
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

  flags: ['key', 'silence', 'json'],
  async run([url, ...rest], flags) {
    if (url === undefined || rest.length > 0) return refuse('doctor takes one argument, the base URL that apps are given');
    if (!/^https?:\/\//i.test(url) || !URL.canParse(url)) {
      return refuse(`"${url}" is no URL that begins with http:// or https://, such as http://127.0.0.1:8080/v1`);
    }
    const silenceMs = readSilence(flags.silence);
    if (silenceMs === 'invalid') return refuse(`--silence takes a time up to 10m, such as 30s, or off, not "${flags.silence}"`);
    const key = flags.key ?? process.env.SLUICEGATE_KEY;
    if (key !== undefined && !/^[!-~]+$/.test(key)) return refuse('a key has visible ASCII characters only');
    return examineWay(new URL(url), key || undefined, silenceMs, flags);
  },
};

function refuse(message: string): number {
  return refuseUsage(message, 'doctor');
}

/** Undefined for as long as the probe finds fit. */
function readSilence(given: string | undefined): number | undefined | 'invalid' {
  if (given === undefined) return undefined;
  if (given === 'off') return 0;
  const silenceMs = parseDuration(given);
  return silenceMs === undefined || silenceMs > MAX_SILENCE_MS ? 'invalid' : silenceMs;
}

/** Steps are told only to a person, who waits. */
async function examineWay(base: URL, key: string | undefined, silenceMs: number | undefined, { json }: Flags): Promise<number> {
  // What serves needs none of this.
  const { examine } = await import('../doctor/doctor.ts');
  const { exitCodeOf, writeJson, writeReport } = await import('../doctor/report.ts');
  const isWatched = process.stderr.isTTY === true && json !== true;
  const onStep = (step: string) => void (isWatched && process.stderr.write(`... ${step}\n`));
  const result = await examine({ base, key, silenceMs, version: readVersion(), onStep });
  process.stdout.write(json ? writeJson(result) : writeReport(result));
  return exitCodeOf(result);
}

// The live page: looks once a second, shows what it sees, and says so where it sees nothing any more.
import { call, hasToken, keepToken, Refusal } from './call.js';
import {
  byId,
  createRows,
  drawLine,
  drawShares,
  formatCount,
  formatRate,
  formatSpan,
  formatTime,
  formatUsd,
  label,
  medianOf,
  write,
} from './draw.js';
import { setKeyNeeded } from './prompt.js';

const LOOK_MS = 1000;
/** A line this long at least: two samples are no history. */
const MIN_SAMPLES = 30;
const FEW = 12;
/** What the phases are to somebody who watches. */
const PHASES = {
  upload: ['sending', 'warn'],
  connect: ['connecting', 'warn'],
  headers: ['waiting', 'warn'],
  stream: ['streaming', 'good'],
  backpressure: ['client is slow', 'warn'],
};
const LEFT = ['client_closed', 'client_stalled', 'rejected', 'drained'];
const dialog = byId('end');
let seenAt;
let ending;
let timer;

const isBad = (outcome) => outcome !== 'completed' && !LEFT.includes(outcome);
const inWords = (code) => code.replaceAll('_', ' ');

const showStreams = createRows(byId('streams').tBodies[0], byId('stream-row'), (stream, part, row) => {
  const [word, tone] = stream.isUnheard ? ['client has left', 'warn'] : (PHASES[stream.phase] ?? [stream.phase, '']);
  const isMute = stream.phase === 'stream' && stream.tokens === 0;
  label(row.querySelector('.state'), 'class', `state ${isMute ? 'warn' : tone}`);
  write(part('state'), isMute ? 'no token yet' : word);
  writeWay(stream, part);
  write(part('tokens'), formatCount(stream.tokens));
  write(part('rate'), formatRate(stream.tokensPerSecond));
  write(part('ttft'), formatTime(stream.ttftMs));
  write(part('age'), formatSpan(stream.ageMs));
  label(part('end'), 'aria-label', `End the stream of ${stream.client}, ${stream.model ?? stream.endpoint}`);
  part('end').onclick = () => askToEnd(stream);
});

const showRecent = createRows(byId('recent').tBodies[0], byId('recent-row'), (ended, part) => {
  label(part('outcome'), 'class', `outcome ${ended.outcome === 'completed' ? 'good' : isBad(ended.outcome) ? 'bad' : 'warn'}`);
  write(part('outcome'), inWords(ended.outcome));
  const where = ended.outcome === 'completed' ? '' : (ended.cause ?? `in ${ended.phase}`);
  write(part('cause'), [where, ended.status >= 400 ? ended.status : ''].filter(Boolean).join(' · '));
  writeWay(ended, part);
  write(part('tokens'), ended.outputTokens === undefined ? '–' : formatCount(ended.outputTokens));
  write(part('ttft'), formatTime(ended.ttftMs));
  write(part('took'), formatTime(ended.durationMs));
  write(part('when'), `${formatSpan(ended.agoMs)} ago`);
});

const showUpstreams = createRows(byId('upstreams'), byId('upstream-row'), (upstream, part, row) => {
  label(row.querySelector('.state'), 'class', `state ${upstream.isUp ? 'good' : 'bad'}`);
  write(part('name'), upstream.name);
  write(part('state'), upstream.isUp ? 'up' : 'put aside for its failures');
  const { active, idle, queued } = upstream;
  write(part('connections'), `${active} in use, ${idle} idle${queued > 0 ? `, ${queued} waiting for a connection` : ''}`);
  const failed = upstream.recent.filter(({ outcome }) => isBad(outcome)).length;
  const first = medianOf(upstream.recent.map(({ ttftMs }) => ttftMs));
  const facts = [`${failed} of its last ${upstream.recent.length} failed`, first === undefined ? '' : `first token ${formatTime(first)}`];
  write(part('recent'), upstream.recent.length === 0 ? 'Nothing has gone there of late' : facts.filter(Boolean).join(', '));
});

/** Who, what model, and which way; the same in both tables. */
function writeWay({ client, requestId, model, upstream, endpoint }, part) {
  write(part('client'), client);
  write(part('request'), requestId);
  label(part('request'), 'title', requestId);
  write(part('model'), model ?? '–');
  write(part('way'), [upstream, endpoint.replace(/^\/v1\//, '')].filter(Boolean).join(' · '));
}

function show(view) {
  const { streams, streamCount, tokensPerSecond, totals, history, recent, upstreams } = view;
  write(
    byId('about'),
    `${view.version} · up ${formatSpan(view.at - view.startedAt)}${view.workers > 1 ? ` · ${view.workers} workers` : ''}`,
  );
  write(byId('streams-now'), formatCount(streamCount));
  write(byId('rate-now'), formatRate(tokensPerSecond));
  showLine('streams', history.streams, history.everyMs, formatCount);
  showLine('rate', history.tokensPerSecond, history.everyMs, formatRate);
  const firsts = [...recent, ...streams].map(({ ttftMs }) => ttftMs).filter((ms) => ms !== undefined);
  write(byId('ttft'), formatTime(medianOf(firsts)));
  write(byId('ttft-of'), firsts.length === 0 ? 'no answer yet' : `median of the last ${firsts.length}`);
  showTotals(totals);
  showStreams(streams, ({ id }) => id);
  byId('streams').hidden = streams.length === 0;
  byId('streams-none').hidden = streams.length > 0;
  byId('streams-more').hidden = streamCount <= streams.length;
  write(byId('streams-more'), `The ${streams.length} oldest of ${formatCount(streamCount)}.`);
  write(byId('curl'), curlLine(view));
  showUpstreams(
    upstreams.map((upstream) => ({ ...upstream, recent: recent.filter((ended) => ended.upstream === upstream.name) })),
    ({ name }) => name,
  );
  const isAll = byId('recent-all').getAttribute('aria-expanded') === 'true';
  byId('recent-more').hidden = recent.length <= FEW;
  write(byId('recent-all'), isAll ? `Show the last ${FEW}` : `Show the last ${recent.length}`);
  showRecent(
    recent.slice(0, isAll ? recent.length : FEW).map((ended) => ({ ...ended, agoMs: Math.max(0, view.at - ended.endedAt) })),
    ({ requestId, endedAt, client }) => `${endedAt} ${client} ${requestId}`,
  );
  byId('recent').hidden = recent.length === 0;
  byId('recent-none').hidden = recent.length > 0;
  setKeyNeeded(view.isKeyNeeded);
  document.title = streamCount === 0 ? 'Sluicegate' : `(${formatCount(streamCount)}) Sluicegate`;
}

function showLine(name, samples, everyMs, format) {
  drawLine(byId(`${name}-line`), samples, Math.max(MIN_SAMPLES, samples.length));
  const peak = `peak ${format(Math.max(0, ...samples))} in ${formatSpan(Math.max(1, samples.length) * everyMs)}`;
  write(byId(`${name}-peak`), peak);
  label(byId(`${name}-line`), 'aria-label', peak);
}

function showTotals({ requests, outcomes, inputTokens, outputTokens, costUsd }) {
  const completed = outcomes.completed ?? 0;
  const failed = Object.entries(outcomes).reduce((sum, [outcome, count]) => sum + (isBad(outcome) ? count : 0), 0);
  const left = requests - completed - failed;
  write(byId('requests'), formatCount(requests));
  drawShares(byId('outcomes'), [completed, left, failed]);
  const parts = [`${formatCount(completed)} completed`];
  if (left > 0) parts.push(`${formatCount(left)} ended early`);
  if (failed > 0) parts.push(`${formatCount(failed)} failed`);
  write(byId('outcomes-text'), requests === 0 ? 'none yet' : parts.join(', '));
  label(byId('outcomes'), 'aria-label', parts.join(', '));
  write(byId('tokens'), formatCount(outputTokens));
  write(byId('tokens-text'), `out, ${formatCount(inputTokens)} in${costUsd > 0 ? `, ${formatUsd(costUsd)}` : ''}`);
}

/** Where it listens on all addresses, it is called by the one that this page was called by. */
function curlLine({ url, isKeyNeeded, upstreams }) {
  const base = url.replace(/\/\/(?:0\.0\.0\.0|\[::\])(?=:)/, `//${location.hostname}`);
  const model = byId('try-model').value || (upstreams[0]?.name === 'demo' ? 'demo' : 'gpt-4o-mini');
  const body = JSON.stringify({ model, stream: true, messages: [{ role: 'user', content: 'Hello!' }] });
  const key = isKeyNeeded ? ' -H "authorization: Bearer $SLUICEGATE_KEY"' : '';
  return `curl -N ${base}/v1/chat/completions${key} -H 'content-type: application/json' -d '${body.replaceAll("'", "'\\''")}'`;
}

function askToEnd(stream) {
  ending = stream;
  write(
    byId('end-what'),
    `${stream.client} · ${stream.model ?? stream.endpoint} · ${formatCount(stream.tokens)} tokens · ${stream.requestId}`,
  );
  write(byId('end-error'), '');
  dialog.returnValue = '';
  dialog.showModal();
}

dialog.addEventListener('close', async () => {
  if (dialog.returnValue !== 'end') return;
  try {
    await call(`api/streams/${encodeURIComponent(ending.id)}`, { method: 'DELETE' });
    await look();
  } catch (failure) {
    // It may have ended while it was asked for: that is what was wanted.
    if (failure instanceof Refusal && failure.status === 404) return void look();
    write(byId('end-error'), failure.message);
    dialog.showModal();
  }
});

function tell(tone, state) {
  label(byId('pulse'), 'class', tone);
  document.body.classList.toggle('stale', tone === 'bad');
  // Told to those who listen only when it changes.
  write(byId('pulse-state'), state);
  const agoMs = seenAt === undefined ? 0 : performance.now() - seenAt;
  write(byId('pulse-age'), tone === 'bad' && seenAt !== undefined ? `figures are ${formatSpan(agoMs)} old` : '');
}

function askForToken(isWrong) {
  byId('token').hidden = false;
  byId('board').hidden = true;
  write(byId('token-error'), isWrong ? 'That is not the token.' : '');
  tell('warn', 'Locked');
}

async function look() {
  clearTimeout(timer);
  try {
    const view = await (await call('api/streams')).json();
    seenAt = performance.now();
    byId('token').hidden = true;
    byId('board').hidden = false;
    show(view);
    tell(view.state === 'ready' ? 'good' : 'warn', view.state === 'ready' ? 'Live' : 'Draining');
  } catch (failure) {
    if (failure instanceof Refusal && failure.status === 401) {
      askForToken(hasToken());
      keepToken('');
      return;
    }
    tell('bad', failure instanceof Refusal ? failure.message : 'The gateway does not answer');
  }
  clearTimeout(timer);
  // Nobody sees a page that is hidden.
  if (!document.hidden) timer = setTimeout(look, LOOK_MS);
}

byId('token').addEventListener('submit', (event) => {
  event.preventDefault();
  keepToken(byId('token-value').value);
  byId('token-value').value = '';
  void look();
});
byId('recent-all').addEventListener('click', ({ currentTarget }) => {
  label(currentTarget, 'aria-expanded', String(currentTarget.getAttribute('aria-expanded') !== 'true'));
  void look();
});
byId('copy').hidden = navigator.clipboard === undefined;
byId('copy').addEventListener('click', async () => {
  await navigator.clipboard.writeText(byId('curl').textContent);
  write(byId('copy'), 'Copied');
  setTimeout(() => write(byId('copy'), 'Copy'), 2000);
});
document.addEventListener('visibilitychange', () => document.hidden || void look());
void look();

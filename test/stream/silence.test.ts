// Silence, judged by counters and a clock that the test owns.
import t from 'tap';
import { createSilence } from '../../src/stream/silence.ts';

const bounds = { firstByteMs: 100, idleMs: 50, heartbeatMs: 20 };

function start(overrides: Partial<typeof bounds> = {}) {
  const flow = { meaning: 0, bytes: 0 };
  const silence = createSilence({ ...bounds, ...overrides }, 0, 10);
  const judge = (nowMs: number) => silence.judge(nowMs, { meaningCount: () => flow.meaning }, flow.bytes);
  return { flow, silence, judge };
}

t.test('the first event is due from the last byte of the request on, the others from the event before', async (t) => {
  const { flow, judge } = start({ heartbeatMs: Infinity });
  t.equal(judge(100), undefined);
  t.equal(judge(101), 'noFirstByte');
  flow.meaning = 1;
  t.equal(judge(102), undefined, 'it has come');
  t.equal(judge(152), undefined);
  t.equal(judge(153), 'idle');
  flow.meaning = 2;
  t.equal(judge(153), undefined);
});

t.test('bytes without meaning put off the heartbeat, and nothing else', async (t) => {
  const { flow, silence, judge } = start();
  flow.meaning = 1;
  t.equal(judge(11), undefined);
  t.equal(judge(30), 'beat');
  silence.broken(30);
  t.equal(judge(31), undefined, 'broken once, it begins anew');
  flow.bytes = 7;
  t.equal(judge(49), undefined, 'a ping came');
  t.equal(judge(61), undefined);
  flow.bytes = 8;
  t.equal(judge(62), 'idle', 'but no sign of the model');
});

t.test('once a stream has begun, its meaning is asked for a few times in the time of its bound, and always before its end', async (t) => {
  const silence = createSilence({ firstByteMs: 3200, idleMs: 3200, heartbeatMs: Infinity }, 0, 0);
  let looks = 0;
  let meaning = 1;
  const progress = {
    meaningCount() {
      looks++;
      return meaning;
    },
  };
  for (let nowMs = 10; nowMs <= 3210; nowMs += 10) t.equal(silence.judge(nowMs, progress, nowMs), undefined);
  t.equal(looks, 1 + 32);
  meaning = 2;
  t.equal(silence.judge(3211, progress, 0), undefined, 'what has come in time counts, though nobody had looked');
  t.equal(silence.judge(6411, progress, 0), undefined);
  t.equal(silence.judge(6412, progress, 0), 'idle');
});

t.test('a pause of the client’s doing counts for nothing', async (t) => {
  const { flow, silence, judge } = start({ heartbeatMs: Infinity });
  flow.meaning = 1;
  judge(20);
  silence.resume(500);
  t.equal(judge(550), undefined);
  t.equal(judge(551), 'idle');
});

t.test('Infinity is no bound', async (t) => {
  const { judge } = start({ firstByteMs: Infinity, heartbeatMs: Infinity });
  t.equal(judge(1e12), undefined);
});

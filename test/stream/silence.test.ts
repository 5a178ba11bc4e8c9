// Silence, judged by counters and a clock that the test owns.
import t from 'tap';
import { createSilence } from '../../src/stream/silence.ts';

const bounds = { firstByteMs: 100, idleMs: 50, heartbeatMs: 20 };

function start(overrides: Partial<typeof bounds> = {}) {
  const flow = { meaning: 0, bytes: 0 };
  const silence = createSilence({
    bounds: { ...bounds, ...overrides },
    sentAtMs: 0,
    nowMs: 10,
    meaning: () => flow.meaning,
    bytes: () => flow.bytes,
  });
  return { flow, silence };
}

t.test('the first event is due from the last byte of the request on, the others from the event before', async (t) => {
  const { flow, silence } = start({ heartbeatMs: Infinity });
  t.equal(silence.judge(100), undefined);
  t.equal(silence.judge(101), 'noFirstByte');
  flow.meaning = 1;
  t.equal(silence.judge(102), undefined, 'it has come');
  t.equal(silence.judge(152), undefined);
  t.equal(silence.judge(153), 'idle');
  flow.meaning = 2;
  t.equal(silence.judge(153), undefined);
});

t.test('bytes without meaning put off the heartbeat, and nothing else', async (t) => {
  const { flow, silence } = start();
  flow.meaning = 1;
  t.equal(silence.judge(11), undefined);
  t.equal(silence.judge(30), 'beat');
  silence.broken(30);
  t.equal(silence.judge(31), undefined, 'broken once, it begins anew');
  flow.bytes = 7;
  t.equal(silence.judge(49), undefined, 'a ping came');
  t.equal(silence.judge(61), undefined);
  flow.bytes = 8;
  t.equal(silence.judge(62), 'idle', 'but no sign of the model');
});

t.test('a pause of the client’s doing counts for nothing', async (t) => {
  const { flow, silence } = start({ heartbeatMs: Infinity });
  flow.meaning = 1;
  silence.judge(20);
  silence.resume(500);
  t.equal(silence.judge(550), undefined);
  t.equal(silence.judge(551), 'idle');
});

t.test('Infinity is no bound', async (t) => {
  const { silence } = start({ firstByteMs: Infinity, heartbeatMs: Infinity });
  t.equal(silence.judge(1e12), undefined);
});

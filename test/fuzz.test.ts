// Promise: whatever is sent, from either side, is answered in a documented way, and disturbs nobody.
import t from 'tap';
import { fuzz } from './support/fuzz.ts';

t.test('C22 a thousand seeded mutations, of requests and of answers', async (t) => {
  const { count, statuses, findings } = await fuzz(1, 1000);
  t.same(findings, []);
  t.equal(count, 1000);
  for (const status of [200, 400, 404, 429, 502]) t.ok((statuses.get(status) ?? 0) > 0, `some were answered ${status}`);
});

// npm run fuzz -- --count 1000000 --seed 7: the long run of the fuzzer; exits non-zero on a finding.
import { parseArgs } from 'node:util';
import { fuzz } from './support/fuzz.ts';

const { values } = parseArgs({ options: { count: { type: 'string', default: '100000' }, seed: { type: 'string', default: '1' } } });
const seed = Number(values.seed);
let told = 0;
const report = await fuzz(seed, Number(values.count), ({ count, findings }) => {
  for (const finding of findings.slice(told)) console.log(finding);
  told = findings.length;
  console.error(`${count} cases, ${told} findings`);
});
const statuses = [...report.statuses].sort(([a], [b]) => a - b).map(([status, times]) => `${status || 'none'}: ${times}`);
console.log(`count ${report.count}, seed ${seed}, statuses { ${statuses.join(', ')} }, findings ${report.findings.length}`);
process.exitCode = report.findings.length > 0 ? 1 : 0;

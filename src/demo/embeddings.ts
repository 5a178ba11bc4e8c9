// POST /v1/embeddings: unit vectors that are the same for the same text, written one by one with the usage at the end.
import { type Call, readFields, writePiece } from './call.ts';
import { readInteger, readModel, readTexts, wrongValue } from './fields.ts';
import { countTokens, hashText } from './model.ts';

/** Both as at OpenAI. */
const DEFAULT_DIMENSIONS = 1536;
const MAX_INPUTS = 2048;
const MAX_DIMENSIONS = 3072;

/** Answers one embeddings request; throws refusals, and rejects when the client leaves. It holds one vector at a time. */
export async function embed(call: Call): Promise<void> {
  const { fields } = await readFields(call);
  const model = readModel(fields);
  const texts = readTexts(fields, 'input', MAX_INPUTS);
  const dimensions = readInteger(fields, 'dimensions', 1, MAX_DIMENSIONS) ?? DEFAULT_DIMENSIONS;
  const format = fields.encoding_format ?? 'float';
  if (format !== 'float' && format !== 'base64') throw wrongValue('encoding_format', "'float' or 'base64'");
  const tokens = texts.reduce((sum, text) => sum + countTokens(text), 0);
  call.res.writeHead(200, { 'content-type': 'application/json' });
  await writePiece(call, '{"object":"list","data":[');
  for (const [index, text] of texts.entries()) {
    const vector = createVector(text, dimensions);
    const embedding = format === 'float' ? Array.from(vector) : Buffer.from(vector.buffer).toString('base64');
    await writePiece(call, `${index > 0 ? ',' : ''}${JSON.stringify({ object: 'embedding', index, embedding })}`);
  }
  const usage = { prompt_tokens: tokens, total_tokens: tokens };
  call.res.end(`],"model":${JSON.stringify(model)},"usage":${JSON.stringify(usage)}}`);
}

/** Numbers from a generator (mulberry32) seeded by the text, scaled to length 1. Little-endian, as every Node is. */
function createVector(text: string, dimensions: number): Float32Array {
  let state = hashText(text);
  const vector = Float32Array.from({ length: dimensions }, () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 31 - 1;
  });
  const length = Math.hypot(...vector);
  return vector.map((number) => number / length);
}

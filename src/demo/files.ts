// POST /v1/files: takes an upload of any size up to the limit, counts its bytes as they pass and keeps none of them.
import { randomUUID } from 'node:crypto';
import { type Call, readChunks, sendJson } from './call.ts';
import { missing } from './fields.ts';
import { createFormReader, readBoundary } from './multipart.ts';

/** Answers one upload with a file object; throws refusals. The file itself is gone: nothing can be read back. */
export async function takeFile(call: Call): Promise<void> {
  const form = createFormReader(readBoundary(call.req.headers['content-type']));
  for await (const chunk of readChunks(call)) form.push(chunk);
  const parts = form.end();
  const file = parts.find(({ name }) => name === 'file');
  const purpose = parts.find(({ name }) => name === 'purpose')?.value;
  if (!file) throw missing('file');
  if (!purpose) throw missing('purpose');
  sendJson(call.res, 200, {
    id: `file-${randomUUID().replaceAll('-', '')}`,
    object: 'file',
    bytes: file.bytes,
    created_at: Math.floor(Date.now() / 1000),
    filename: file.filename ?? 'upload',
    purpose,
    status: 'processed',
  });
}

// Images, where they are streamed as events of several megabytes.
import type { Dialect } from './dialect.ts';
import { createNamedDialect } from './named.ts';

const ENDS = new Set(['image_generation.completed', 'image_edit.completed']);

/** https://platform.openai.com/docs/api-reference/images-streaming; the last event brings both the image and the usage. */
export const images: Dialect = createNamedDialect('images', () => ({
  terminal: ENDS,
  readContent(type, event, findings) {
    if (type.startsWith('image_')) findings.addOpaque(event.b64_json);
    return type.endsWith('.partial_image');
  },
}));

// Speech and transcriptions, where they are streamed as events.
import type { Dialect } from './dialect.ts';
import { createNamedDialect } from './named.ts';

const SPEECH_ENDS = new Set(['speech.audio.done']);
const TRANSCRIPT_ENDS = new Set(['transcript.text.done']);

/** https://platform.openai.com/docs/api-reference/audio/speech-audio-delta-event */
export const speech: Dialect = createNamedDialect('speech', () => ({
  terminal: SPEECH_ENDS,
  readContent(type, event, findings) {
    if (type !== 'speech.audio.delta') return false;
    findings.addOpaque(event.audio);
    return true;
  },
}));

/** https://platform.openai.com/docs/api-reference/audio/transcript-text-delta-event; segments repeat what the deltas said. */
export const transcription: Dialect = createNamedDialect('transcription', () => ({
  terminal: TRANSCRIPT_ENDS,
  readContent(type, event, findings) {
    if (type !== 'transcript.text.delta') return false;
    findings.addText(event.delta, 'transcript');
    return true;
  },
}));

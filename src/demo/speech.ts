// POST /v1/audio/speech: a short WAV, one soft note for each token of the input, written note by note.
import { type Call, readFields, writePiece } from './call.ts';
import { readModel, readText, wrongValue } from './fields.ts';
import { hashText, splitTokens } from './model.ts';
import { startPacer } from './pace.ts';

const SAMPLE_RATE_HZ = 24_000;
const NOTE_SAMPLES = SAMPLE_RATE_HZ / 8;
const MAX_NOTES = 80;
const MAX_INPUT_CHARACTERS = 4096;

/** A pentatonic scale: any order of these is easy on the ear. */
const NOTES_HZ: readonly number[] = [261.63, 293.66, 329.63, 392, 440, 523.25];

/** Answers one speech request, ten seconds at most; throws refusals, and rejects when the client leaves. Only WAV and PCM are known. */
export async function speak(call: Call): Promise<void> {
  const { fields } = await readFields(call);
  readModel(fields);
  readText(fields, 'voice');
  const input = readText(fields, 'input');
  if (input.length > MAX_INPUT_CHARACTERS) throw wrongValue('input', `a string of ${MAX_INPUT_CHARACTERS} characters at most`);
  // The API's default is mp3, which takes an encoder; without a wish it gets WAV, and the content type says so.
  const format = fields.response_format ?? 'wav';
  if (format !== 'wav' && format !== 'pcm') throw wrongValue('response_format', "'wav' or 'pcm' at this demo");
  if ((fields.stream_format ?? 'audio') !== 'audio') throw wrongValue('stream_format', "'audio' at this demo");
  const notes = splitTokens(input).slice(0, MAX_NOTES);
  call.res.writeHead(200, { 'content-type': format === 'wav' ? 'audio/wav' : 'audio/pcm' }).flushHeaders();
  const pacer = startPacer(call.pace, call.gone);
  if (format === 'wav') await writePiece(call, createWavHead(notes.length * NOTE_SAMPLES * 2));
  for (const [index, token] of notes.entries()) {
    await pacer.reach(index + 1);
    await writePiece(call, createNote(NOTES_HZ[hashText(token) % NOTES_HZ.length]!));
  }
  call.res.end();
}

/** The 44 bytes before the samples: RIFF, one channel of 16-bit PCM. */
function createWavHead(sampleBytes: number): Buffer {
  const head = Buffer.alloc(44);
  head.write('RIFF', 0, 'latin1');
  head.writeUInt32LE(36 + sampleBytes, 4);
  head.write('WAVEfmt ', 8, 'latin1');
  head.writeUInt32LE(16, 16);
  head.writeUInt16LE(1, 20);
  head.writeUInt16LE(1, 22);
  head.writeUInt32LE(SAMPLE_RATE_HZ, 24);
  head.writeUInt32LE(SAMPLE_RATE_HZ * 2, 28);
  head.writeUInt16LE(2, 32);
  head.writeUInt16LE(16, 34);
  head.write('data', 36, 'latin1');
  head.writeUInt32LE(sampleBytes, 40);
  return head;
}

/** An eighth of a second of a sine that swells and fades, so that notes join without a click. */
function createNote(hz: number): Buffer {
  const note = Buffer.alloc(NOTE_SAMPLES * 2);
  for (let i = 0; i < NOTE_SAMPLES; i += 1) {
    const loudness = 0.3 * Math.sin((Math.PI * i) / NOTE_SAMPLES);
    note.writeInt16LE(Math.round(32_767 * loudness * Math.sin((2 * Math.PI * hz * i) / SAMPLE_RATE_HZ)), i * 2);
  }
  return note;
}

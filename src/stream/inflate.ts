// Meters a body that comes compressed although identity was asked: a copy is inflated on the side, and nothing waits for it.
import zlib from 'node:zlib';
import type { Meter, MeterFault } from './meter.ts';

/** What streams of models inflate to is 5 to 30 times their size; gzip can make 1000 of one byte, and brotli more. */
const MAX_RATIO = 100;
const FREE_BYTES = 1_048_576;
/** Compressed bytes that wait for a thread of the pool. */
const MAX_WAITING_BYTES = 1_048_576;

/** As a content coding zstd takes a window of 8 MiB at most (RFC 9659); its library would take 128. */
const ZSTD_BOUNDS = { [zlib.constants.ZSTD_d_windowLogMax]: 23 };

type CreateInflater = (first: number) => zlib.Gunzip | zlib.BrotliDecompress | zlib.ZstdDecompress;

/** That a body breaks off is no fault here (`finishFlush`): a client may leave at any time, and what came is counted. */
const inflaters: Record<string, CreateInflater> = {
  gzip: () => zlib.createGunzip({ finishFlush: zlib.constants.Z_SYNC_FLUSH }),
  deflate(first) {
    const isWrapped = (first & 15) === 8; // RFC 1950; some send RFC 1951 without it (RFC 9110, 8.4.1.2)
    const options = { finishFlush: zlib.constants.Z_SYNC_FLUSH };
    return isWrapped ? zlib.createInflate(options) : zlib.createInflateRaw(options);
  },
  br: () => zlib.createBrotliDecompress({ finishFlush: zlib.constants.BROTLI_OPERATION_FLUSH }),
  zstd: () => zlib.createZstdDecompress({ finishFlush: zlib.constants.ZSTD_e_flush, params: ZSTD_BOUNDS }),
};

/**
 * Shows `inner` what the body inflates to. What it says is late by what is in the inflater, and `usage` waits for that. Bytes that
 * do not inflate, a bomb, and a machine too busy to keep up switch it off.
 * @param coding the body's `content-encoding`; undefined comes of one that is not known here, and of several
 */
export function createInflatingMeter(coding: string, inner: Meter): Meter | undefined {
  const name = coding.trim().toLowerCase().replace(/^x-/, '');
  const createInflater = Object.hasOwn(inflaters, name) ? inflaters[name] : undefined;
  return createInflater && meterInflated(createInflater, inner);
}

function meterInflated(createInflater: CreateInflater, inner: Meter): Meter {
  let inflater: ReturnType<CreateInflater> | undefined;
  let fault: MeterFault | undefined;
  let compressedBytes = 0;
  let inflatedBytes = 0;
  let close: () => void;
  const closed = new Promise<void>((resolve) => {
    close = resolve;
  });

  function switchOff(why: MeterFault): void {
    fault ??= why;
    inflater?.destroy();
    close();
  }

  function begin(first: number) {
    const begun = createInflater(first);
    begun.on('data', (bytes: Buffer) => {
      inflatedBytes += bytes.length;
      if (inflatedBytes > FREE_BYTES + MAX_RATIO * compressedBytes) switchOff('bomb');
      if (fault === undefined) inner.observe(bytes.toString('latin1'));
    });
    begun.on('error', () => switchOff('coding'));
    begun.on('end', close);
    return begun;
  }

  function inflate(bytes: string): void {
    inflater ??= begin(bytes.charCodeAt(0));
    compressedBytes += bytes.length;
    inflater.write(bytes, 'latin1');
    if (inflater.writableLength > MAX_WAITING_BYTES) switchOff('behind');
  }

  return {
    observe(bytes) {
      if (fault !== undefined || bytes === '') return;
      try {
        inflate(bytes);
      } catch {
        switchOff('coding');
      }
    },
    async usage(prompt) {
      if (inflater !== undefined && fault === undefined) {
        inflater.end();
        await closed;
      }
      return fault === undefined ? await inner.usage(prompt) : undefined;
    },
    errorEvent: () => '',
    isEventOpen: true,
    get isOff() {
      return fault !== undefined || inner.isOff;
    },
    get fault() {
      return fault ?? inner.fault;
    },
    get eventCount() {
      return inner.eventCount;
    },
    get contentCount() {
      return inner.contentCount;
    },
    get meaningCount() {
      return inner.meaningCount;
    },
    get textLength() {
      return inner.textLength;
    },
    get model() {
      return inner.model;
    },
    get isComplete() {
      return inner.isComplete;
    },
    get isTerminated() {
      return inner.isTerminated;
    },
    get hasError() {
      return inner.hasError;
    },
    get hasIdOrRetry() {
      return inner.hasIdOrRetry;
    },
  };
}

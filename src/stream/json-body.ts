// The JSON object in a body that comes in chunks of bytes, perhaps behind a byte order mark.
import { createTopLevelScanner, type TopLevelScanner } from './json.ts';

export interface JsonBody {
  /** Looks at the next bytes of the body, cut anywhere. Never throws. */
  observe(chunk: Buffer): void;
  readonly members: TopLevelScanner;
  /** How many bytes stand before what `members` has scanned. */
  readonly bomBytes: number;
}

const BOM = '\xef\xbb\xbf';

/** For one body. `wanted` members are kept up to `maxValueBytes` each; of the rest nothing is. */
export function createJsonBody(wanted: readonly string[], maxValueBytes: number): JsonBody {
  const members = createTopLevelScanner(wanted, maxValueBytes);
  let head: string | undefined = ''; // the first bytes, while they may be a byte order mark
  let bomBytes = 0;

  function scanHead(bytes: string): void {
    head += bytes;
    if (head === undefined || (head.length < BOM.length && BOM.startsWith(head))) return;
    if (head.startsWith(BOM)) bomBytes = BOM.length;
    members.scan(head.slice(bomBytes));
    head = undefined;
  }

  return {
    observe(chunk) {
      if (members.isMalformed) return;
      const bytes = chunk.toString('latin1');
      if (head === undefined) members.scan(bytes);
      else scanHead(bytes);
    },
    members,
    get bomBytes() {
      return bomBytes;
    },
  };
}

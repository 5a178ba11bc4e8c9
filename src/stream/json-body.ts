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
  return new BomAwareBody(wanted, maxValueBytes);
}

class BomAwareBody implements JsonBody {
  readonly members: TopLevelScanner;
  private head: string | undefined = ''; // the first bytes, while they may be a byte order mark
  bomBytes = 0;

  constructor(wanted: readonly string[], maxValueBytes: number) {
    this.members = createTopLevelScanner(wanted, maxValueBytes);
  }

  private scanHead(bytes: string): void {
    this.head += bytes;
    if (this.head === undefined || (this.head.length < BOM.length && BOM.startsWith(this.head))) return;
    if (this.head.startsWith(BOM)) this.bomBytes = BOM.length;
    this.members.scan(this.head.slice(this.bomBytes));
    this.head = undefined;
  }

  observe(chunk: Buffer): void {
    if (this.members.isMalformed) return;
    const bytes = chunk.toString('latin1');
    if (this.head === undefined) this.members.scan(bytes);
    else this.scanHead(bytes);
  }
}

// Which choices of a streamed answer have begun, and which have ended. Most answers have one: a set is made for the others only.

/** Beyond, indexes are not believed: whoever invents them shall not fill the memory. */
const MAX_OTHERS = 1024;

export interface ChoiceBook {
  /** Notes that the choice of this index has begun; returns whether it is new. */
  begin(index: unknown): boolean;
  /** Notes that it has its `finish_reason`. */
  end(index: unknown): void;
  /** Whether it has begun, or ended. */
  isKnown(index: unknown): boolean;
  /** There are choices, and each has ended. */
  readonly areEnded: boolean;
}

/** For one answer. */
export function createChoiceBook(): ChoiceBook {
  return new CountedChoices();
}

class CountedChoices implements ChoiceBook {
  private isFirstKnown = false;
  private isFirstEnded = false;
  /** Of the others, whether they have ended. */
  private others: Map<unknown, boolean> | undefined;
  private openCount = 0;
  private endedCount = 0;

  begin(index: unknown): boolean {
    if (this.isKnown(index) || !this.note(index, false)) return false;
    this.openCount++;
    return true;
  }

  end(index: unknown): void {
    if (this.hasEnded(index)) return;
    if (this.isKnown(index)) this.openCount--;
    if (this.note(index, true)) this.endedCount++;
  }

  isKnown(index: unknown): boolean {
    return index === 0 ? this.isFirstKnown : (this.others?.has(index) ?? false);
  }

  private hasEnded(index: unknown): boolean {
    return index === 0 ? this.isFirstEnded : this.others?.get(index) === true;
  }

  /** False where there is no room for another. */
  private note(index: unknown, hasEnded: boolean): boolean {
    if (index === 0) {
      this.isFirstKnown = true;
      this.isFirstEnded = hasEnded;
      return true;
    }
    this.others ??= new Map();
    if (this.others.size >= MAX_OTHERS && !this.others.has(index)) return false;
    this.others.set(index, hasEnded);
    return true;
  }

  get areEnded(): boolean {
    return this.endedCount > 0 && this.openCount === 0;
  }
}

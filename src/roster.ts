// Who is under way. What comes and goes with each call is kept in one of these, and not in a Set.
//
// A Set of a few members makes a new table each time that one of them leaves. The table before is garbage; but garbage of the old
// generation counts as alive until that is marked, which is seldom, and so does all that it points to: V8 promotes the whole of a
// call, with every scavenge, and the next table with it. A seat that is left leaves nothing behind.

/** A member's place. */
export class Seat<Member> {
  readonly member: Member;
  private readonly row: Seat<Member>[];
  private at: number;

  constructor(member: Member, row: Seat<Member>[]) {
    this.member = member;
    this.row = row;
    this.at = row.push(this) - 1;
  }

  get isTaken(): boolean {
    return this.at >= 0;
  }

  /** Constant time. Returns whether it was taken: later calls change nothing. */
  leave(): boolean {
    const { row, at } = this;
    if (at < 0) return false;
    this.at = -1;
    const last = row.pop()!;
    if (last === this) return true;
    row[at] = last;
    last.at = at;
    return true;
  }
}

/** A collection without order, whose members know their places: none is ever looked for. */
export class Roster<Member> implements Iterable<Member> {
  private readonly row: Seat<Member>[] = [];

  get size(): number {
    return this.row.length;
  }

  /** Takes it in; once more, if it is here already. */
  enter(member: Member): Seat<Member> {
    return new Seat(member, this.row);
  }

  /** Those that are taken now, each once, but for what has been left when its turn comes. */
  *seats(): Generator<Seat<Member>> {
    for (const seat of this.row.slice()) if (seat.isTaken) yield seat;
  }

  /** The members in those seats. */
  *[Symbol.iterator](): Generator<Member> {
    for (const { member } of this.seats()) yield member;
  }
}

// A map that keeps an order and gives its first entry in constant time. A Map would search for it past all that was deleted before it:
// 10,000 leases renewed by turns cost 7 µs for each look at the oldest.

interface Link<V> {
  readonly key: string;
  readonly value: V;
  before: Link<V> | undefined;
  after: Link<V> | undefined;
}

/** A class, and its map made when there is something to keep: each caller has two of these, and closures took 650 bytes apiece. */
export class Ordered<V> {
  #links: Map<string, Link<V>> | undefined;
  #first: Link<V> | undefined;
  #last: Link<V> | undefined;

  get size(): number {
    return this.#links?.size ?? 0;
  }

  get(key: string): V | undefined {
    return this.#links?.get(key)?.value;
  }

  first(): { readonly key: string; readonly value: V } | undefined {
    return this.#first;
  }

  /** Puts it at the end, whether or not it was there before. */
  append(key: string, value: V): void {
    this.#links ??= new Map();
    const old = this.#links.get(key);
    if (old) this.#cut(old);
    const link: Link<V> = { key, value, before: this.#last, after: undefined };
    if (this.#last) this.#last.after = link;
    else this.#first = link;
    this.#last = link;
    this.#links.set(key, link);
  }

  delete(key: string): void {
    const link = this.#links?.get(key);
    if (link === undefined) return;
    this.#cut(link);
    this.#links?.delete(key);
    if (this.size === 0) this.#links = undefined;
  }

  #cut(link: Link<V>): void {
    const { before, after } = link;
    // Else one that is gone, and old, keeps all that came behind it from the young collector.
    link.before = link.after = undefined;
    if (before) before.after = after;
    else this.#first = after;
    if (after) after.before = before;
    else this.#last = before;
  }
}

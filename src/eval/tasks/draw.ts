/** Seeded draws: one key, one example, on every machine. */
export class Draw {
  #state: number

  /** Keys that differ in anything give unrelated draws. */
  constructor(key: string) {
    // FNV-1a, then mulberry32 in `#next`: both public domain, four lines each, good enough for made-up text.
    let hash = 0x811c9dc5
    for (const c of key) hash = Math.imul(hash ^ c.codePointAt(0)!, 0x01000193)
    this.#state = hash >>> 0
  }

  /** Whole, [0, 2^32). */
  #next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0
    let t = this.#state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return (t ^ (t >>> 14)) >>> 0
  }

  chance(p: number): boolean {
    return this.#next() / 2 ** 32 < p
  }

  /** Whole, [from, to]: both ends can come up. */
  whole(from: number, to: number): number {
    return from + Math.floor((this.#next() / 2 ** 32) * (to - from + 1))
  }

  pick<T>(from: readonly T[]): T {
    return from[this.whole(0, from.length - 1)]!
  }

  shuffle<T>(list: readonly T[]): T[] {
    const out = [...list]
    for (let i = out.length - 1; i > 0; i--) {
      const j = this.whole(0, i)
      ;[out[i], out[j]] = [out[j]!, out[i]!]
    }
    return out
  }

  /** `n` different members, or all when there are fewer, in random order. */
  sample<T>(from: readonly T[], n: number): T[] {
    return this.shuffle(from).slice(0, n)
  }

  digits(n: number): string {
    return String(this.whole(10 ** (n - 1), 10 ** n - 1))
  }

  symbols(alphabet: string, n: number): string {
    return Array.from({ length: n }, () => alphabet[this.whole(0, alphabet.length - 1)]).join('')
  }
}

/** Draws until something new comes up, and remembers it. */
export class Fresh {
  readonly #taken: Set<string>

  constructor(taken: Iterable<string> = []) {
    this.#taken = new Set(taken)
  }

  of(make: () => string): string {
    for (let i = 0; i < 100_000; i++) {
      const s = make()
      if (this.#taken.has(s)) continue
      this.#taken.add(s)
      return s
    }
    throw new Error(`nothing new after ${this.#taken.size} different ones`)
  }
}

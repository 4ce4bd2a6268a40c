/**
 * What a place for blocks below the arenas can do, and the two parts that such places share: an LRU list that knows
 * chains, and a meter for the rate of reading.
 *
 * A tier is a cache: it may forget, and it never fails. Blocks are opaque bytes under names from `identity.ts`.
 */
import { KvasirError } from '../../contract/errors.ts'
import type { BlockHash, Medium } from '../../contract/events.ts'
import { isBlockHash } from '../identity.ts'

/** A full block on its way into a tier. */
export interface TierBlock {
  readonly hash: BlockHash
  /** Null: the text's first block. */
  readonly parent: BlockHash | null
  /** Ids, [pageTokens]. */
  readonly tokens: ArrayLike<number>
  /** The tier's from then on: nobody may write into it any more. */
  readonly payload: Uint8Array
}

export interface TierStats {
  /** Blocks that can be asked for. */
  readonly blocks: number
  /** Bytes of these, headers included. */
  readonly bytes: number
  readonly hits: number
  readonly misses: number
  /** Blocks that were not what they should be; also counted as misses. */
  readonly corrupt: number
  /** Blocks that were not stored: no room in queue or tier, or a failure. */
  readonly dropped: number
  readonly written: number
  readonly evicted: number
  /** Rate of reading, recent reads counting most; null: nothing was read yet; Infinity: nothing has to be read. */
  readonly readBytesPerSecond: number | null
}

export interface Tier {
  readonly medium: Medium
  readonly stats: TierStats
  /** Why the tier is off, for people; null while it works. */
  readonly problem: string | null

  /** Whether {@link get} would probably find it. No I/O. */
  has(hash: BlockHash): boolean

  /**
   * Offers a block; at once, work goes on behind. A block is worth less than its parent if that is here already, else
   * it is the newest. So offer a chain from its beginning on and stop at the first no: the tier is full of what is
   * worth more, or cannot keep up. Blocks that come one by one from a tier above, children first, are in order too.
   * @returns whether the block is, or probably soon will be, stored
   * @throws KvasirError INVALID_ARGUMENT for names that are not names, and empty payloads
   */
  put(block: TierBlock): boolean

  /**
   * The payload, not to be written into; null: not here. Never rejects. Whoever walks a chain with it calls
   * {@link touch} afterwards, so that the chain keeps its order.
   */
  get(hash: BlockHash): Promise<Uint8Array | null>

  /** Payloads of a chain from its beginning on, as far as they are here; reads ahead. Never rejects. */
  getMany(hashes: readonly BlockHash[]): AsyncGenerator<Uint8Array, void, undefined>

  /** Says that a chain, given from its beginning, was used, e.g. from a tier above. */
  touch(hashes: readonly BlockHash[]): void

  delete(hash: BlockHash): void

  /** Forgets all blocks. */
  clear(): Promise<void>

  /** When it resolves, all that was put before is stored for good, or was dropped. */
  flush(): Promise<void>

  /** Flushes and ends; afterwards the tier is empty for whoever asks. */
  close(): Promise<void>
}

/** @throws KvasirError INVALID_ARGUMENT for what is not a block */
export function checkTierBlock({ hash, parent, payload }: TierBlock): void {
  if (!isBlockHash(hash) || (parent !== null && !isBlockHash(parent)))
    throw new KvasirError(
      'INVALID_ARGUMENT',
      `a block and its parent have names of 64 digits of hex: ${hash}, ${parent}`,
    )
  if (payload.byteLength === 0) throw new KvasirError('INVALID_ARGUMENT', `block ${hash} has no bytes`)
}

/** Between two blocks of one chain, ms. File times are cut to microseconds: a smaller step could make two equal. */
const CHAIN_STEP_MS = 0.004

interface Link<T> {
  readonly key: string
  readonly value: T
  readonly bytes: number
  /** Wall clock; grows towards the newest. */
  usedMs: number
  older: Link<T> | null
  newer: Link<T> | null
}

/** Entries in order of use. O(1) each, and a chain's later blocks are always older than its earlier ones. */
export class Lru<T> {
  readonly #links = new Map<string, Link<T>>()
  readonly #now: () => number
  #oldest: Link<T> | null = null
  #newest: Link<T> | null = null
  #bytes = 0

  constructor(now: () => number) {
    this.#now = now
  }

  get size(): number {
    return this.#links.size
  }

  get bytes(): number {
    return this.#bytes
  }

  /** Key of the entry to go first. */
  get oldest(): string | null {
    return this.#oldest?.key ?? null
  }

  get(key: string): T | null {
    return this.#links.get(key)?.value ?? null
  }

  has(key: string): boolean {
    return this.#links.has(key)
  }

  bytesOf(key: string): number {
    return this.#links.get(key)?.bytes ?? 0
  }

  /** When it was used last, ms; for storing beside the entry. */
  usedMs(key: string): number {
    return this.#links.get(key)?.usedMs ?? 0
  }

  /** Adds as the newest, or just older than `parent` if that is here. The key must be new. */
  add(key: string, value: T, bytes: number, parent: string | null = null): void {
    const above = parent === null ? undefined : this.#links.get(parent)
    const usedMs = above ? above.usedMs - CHAIN_STEP_MS : this.#stamp()
    this.#insert({ key, value, bytes, usedMs, older: null, newer: null }, above ?? null)
  }

  /** Adds with a time of use that was kept elsewhere; it must not be less than that of the newest. */
  addNewest(key: string, value: T, bytes: number, usedMs: number): void {
    this.#insert({ key, value, bytes, usedMs, older: null, newer: null }, null)
  }

  /** Marks a chain as used now; its first block becomes the newest. */
  touch(chain: readonly string[]): void {
    for (let i = chain.length - 1; i >= 0; i--) {
      const link = this.#links.get(chain[i]!)
      if (!link) continue
      this.#unlink(link)
      link.usedMs = this.#stamp()
      this.#link(link, null)
    }
  }

  delete(key: string): boolean {
    const link = this.#links.get(key)
    if (!link) return false
    this.#links.delete(key)
    this.#bytes -= link.bytes
    this.#unlink(link)
    return true
  }

  clear(): void {
    this.#links.clear()
    this.#oldest = this.#newest = null
    this.#bytes = 0
  }

  /** From the oldest to the newest. */
  *entries(): Generator<{ readonly key: string; readonly value: T; readonly bytes: number; readonly usedMs: number }> {
    for (let link = this.#oldest; link; link = link.newer) yield link
  }

  /** Later than all before it, even where the clock stands still or was set back. */
  #stamp(): number {
    return Math.max(this.#now(), (this.#newest?.usedMs ?? 0) + CHAIN_STEP_MS)
  }

  #insert(link: Link<T>, above: Link<T> | null): void {
    this.#links.set(link.key, link)
    this.#bytes += link.bytes
    this.#link(link, above)
  }

  /** Puts in just older than `above`; null: as the newest. */
  #link(link: Link<T>, above: Link<T> | null): void {
    link.newer = above
    link.older = above ? above.older : this.#newest
    if (link.older) link.older.newer = link
    else this.#oldest = link
    if (above) above.older = link
    else this.#newest = link
  }

  #unlink(link: Link<T>): void {
    if (link.older) link.older.newer = link.newer
    else this.#oldest = link.newer
    if (link.newer) link.newer.older = link.older
    else this.#newest = link.older
    link.older = link.newer = null
  }
}

/** Weight of all earlier reads when the next one is done. */
const DECAY = 0.9

/** Bytes per second of the time in which at least one read ran, so that overlapping reads count once. */
export class RateMeter {
  readonly #now: () => number
  #running = 0
  #sinceMs = 0
  #ms = 0
  #bytes = 0

  /** @param now ms, monotonic */
  constructor(now: () => number) {
    this.#now = now
  }

  start(): void {
    if (this.#running++ === 0) this.#sinceMs = this.#now()
  }

  /** @param bytes 0 for a read that failed */
  end(bytes: number): void {
    const now = this.#now()
    this.#running--
    this.#ms = this.#ms * DECAY + (now - this.#sinceMs)
    this.#bytes = this.#bytes * DECAY + bytes
    this.#sinceMs = now
  }

  get bytesPerSecond(): number | null {
    return this.#bytes > 0 ? (this.#bytes / Math.max(this.#ms, 0.001)) * 1000 : null
  }
}

/** Blocks in ordinary memory, up to a number of bytes; least recently used ones go first, children before parents. */
import { KvasirError } from '../../contract/errors.ts'
import type { BlockHash } from '../../contract/events.ts'
import { checkTierBlock, Lru, type Tier, type TierBlock, type TierStats } from './tier.ts'

export interface HostTierOptions {
  /** Bytes of payloads. */
  readonly maxBytes: number
  /** Wall clock in ms. */
  readonly now?: () => number
}

export class HostTier implements Tier {
  readonly medium = 'host'
  readonly problem = null
  readonly maxBytes: number
  readonly #blocks: Lru<Uint8Array>
  #isClosed = false
  #counts = { hits: 0, misses: 0, dropped: 0, written: 0, evicted: 0 }

  /** @throws KvasirError INVALID_ARGUMENT */
  constructor({ maxBytes, now = Date.now }: HostTierOptions) {
    if (!(maxBytes >= 0)) throw new KvasirError('INVALID_ARGUMENT', `maxBytes must be 0 or more, got ${maxBytes}`)
    this.maxBytes = maxBytes
    this.#blocks = new Lru(now)
  }

  get stats(): TierStats {
    const { size: blocks, bytes } = this.#blocks
    return { blocks, bytes, corrupt: 0, ...this.#counts, readBytesPerSecond: Number.POSITIVE_INFINITY }
  }

  has(hash: BlockHash): boolean {
    return this.#blocks.has(hash)
  }

  put(block: TierBlock): boolean {
    checkTierBlock(block)
    if (this.#isClosed) return false
    const { hash, parent, payload } = block
    if (this.#blocks.has(hash)) return true
    if (payload.byteLength > this.maxBytes) {
      this.#counts.dropped++
      return false
    }
    // a view of something larger would keep all of it in memory
    const own = payload.byteLength < payload.buffer.byteLength ? new Uint8Array(payload) : payload
    this.#blocks.add(hash, own, own.byteLength, parent)
    while (this.#blocks.bytes > this.maxBytes) {
      const oldest = this.#blocks.oldest!
      this.#blocks.delete(oldest)
      if (oldest === hash) {
        // all others are worth more, e.g. the chain that it belongs to
        this.#counts.dropped++
        return false
      }
      this.#counts.evicted++
    }
    this.#counts.written++
    return true
  }

  get(hash: BlockHash): Promise<Uint8Array | null> {
    const payload = this.#blocks.get(hash)
    this.#counts[payload ? 'hits' : 'misses']++
    this.#blocks.touch([hash])
    return Promise.resolve(payload)
  }

  async *getMany(hashes: readonly BlockHash[]): AsyncGenerator<Uint8Array, void, undefined> {
    let given = 0
    try {
      for (const hash of hashes) {
        const payload = this.#blocks.get(hash)
        this.#counts[payload ? 'hits' : 'misses']++
        if (!payload) return
        given++
        yield payload
      }
    } finally {
      this.#blocks.touch(hashes.slice(0, given))
    }
  }

  touch(hashes: readonly BlockHash[]): void {
    this.#blocks.touch(hashes)
  }

  delete(hash: BlockHash): void {
    this.#blocks.delete(hash)
  }

  clear(): Promise<void> {
    this.#blocks.clear()
    return Promise.resolve()
  }

  flush(): Promise<void> {
    return Promise.resolve()
  }

  close(): Promise<void> {
    this.#isClosed = true
    return this.clear()
  }
}

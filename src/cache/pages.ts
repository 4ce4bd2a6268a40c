/**
 * Which pages and blocks of one arena are in use, and by how many. Only counting: the bytes are the arena's.
 *
 * A holder holds either a whole page (uniform tables, stored prefixes) or single blocks of it (ragged tables); one *column*
 * is one layer and head, and block c of a page is its part in column c. A block is in use while anybody holds it or its
 * page, and only what nobody holds is free:
 *
 *   free        no whole holders, no block holders
 *   whole       whole holders only
 *   split       block holders, with or without whole holders; blocks without either are free for their column
 *
 * Sequences grow page by page, and a graph reads a run of consecutive pages without a copy. So each growing sequence opens an
 * *extent*, the room it is expected to need, and others stay out of it for as long as there is room elsewhere.
 */
import type { PageId } from '../contract/units.ts'

/** Room that a growing sequence is expected to need: pages [from, to). */
export interface Extent {
  readonly from: number
  readonly to: number
}

export class PagePool {
  readonly pages: number
  /** Blocks of a page: layers x KV heads. */
  readonly columns: number
  readonly #whole: Uint32Array
  /** Holders of single blocks, [columns]; null: none. */
  readonly #blocks: (Uint32Array | null)[]
  /** Extents that cover a page. */
  readonly #claims: Uint16Array
  /** When somebody last began to hold a page or a block of it, or the last one let it go, on the clock `now`. */
  readonly #sinceMs: Float64Array
  /** 1: somebody held the page since it was last said to be idle, so its memory was written to. */
  readonly #touched: Uint8Array
  /** 1: its bytes are lent to another arena, and nobody writes here. */
  readonly #lent: Uint8Array
  readonly #now: () => number
  /** Pages without whole holders of which some blocks are held, some free. */
  readonly #fragmented = new Set<number>()
  #freePages: number
  #usedBlocks = 0

  /** @param now milliseconds */
  constructor(pages: number, columns: number, now: () => number = () => performance.now()) {
    this.pages = pages
    this.columns = columns
    this.#whole = new Uint32Array(pages)
    this.#blocks = Array.from({ length: pages }, () => null)
    this.#claims = new Uint16Array(pages)
    this.#sinceMs = new Float64Array(pages)
    this.#touched = new Uint8Array(pages)
    this.#lent = new Uint8Array(pages)
    this.#now = now
    this.#freePages = pages
  }

  /** Pages that nobody holds any part of. */
  get freePages(): number {
    return this.#freePages
  }

  /** Blocks in use; a whole page counts as {@link columns}. */
  get usedBlocks(): number {
    return this.#usedBlocks
  }

  // extents ------------------------------------------------------------------------------------------------------------

  /**
   * Claims room for `pages` pages where nobody else claims any: behind page `after` if there is enough, else the smallest gap
   * that has it, else the largest.
   */
  openExtent(pages: number, after: number | null = null): Extent | null {
    const mayClaim = (p: number) => this.isFree(p) && this.#claims[p] === 0
    let best: Extent | null = null
    let bestSize = 0
    for (const gap of this.#gaps(mayClaim)) {
      const size = gap.to - gap.from
      const better = bestSize >= pages ? size >= pages && size < bestSize : size > bestSize
      if (better) [best, bestSize] = [gap, size]
    }
    if (!best) return null
    if (after !== null) {
      let to = after + 1
      while (to < this.pages && to <= after + pages && mayClaim(to)) to++
      if (to - after > Math.min(pages, bestSize)) best = { from: after + 1, to }
    }
    return this.claimExtent({ from: best.from, to: Math.min(best.to, best.from + pages) })
  }

  /** Claims an extent that was chosen before. */
  claimExtent(extent: Extent): Extent {
    for (let p = extent.from; p < extent.to; p++) this.#claims[p]!++
    return extent
  }

  /** Whether an extent has a free page. */
  hasFree(extent: Extent): boolean {
    return this.#first(extent.from, extent.to, (p) => this.isFree(p)) >= 0
  }

  closeExtent(extent: Extent): void {
    for (let p = extent.from; p < extent.to; p++) this.#claims[p]!--
  }

  // whole pages --------------------------------------------------------------------------------------------------------

  /**
   * Takes a free page: the one behind `after` if it can be had, else the first free one of `extent`, else one outside all
   * extents, else any. Null when there is none.
   */
  takePage(after: number | null, extent: Extent | null): PageId | null {
    if (this.#freePages === 0) return null
    let page = -1
    if (after !== null && after + 1 < this.pages && this.isFree(after + 1)) {
      const own = extent !== null && after + 1 >= extent.from && after + 1 < extent.to
      if (this.#claims[after + 1]! === 0 || (own && this.#claims[after + 1]! === 1)) page = after + 1
    }
    if (page < 0 && extent) page = this.#first(extent.from, extent.to, (p) => this.isFree(p))
    if (page < 0) page = this.#first(0, this.pages, (p) => this.isFree(p) && this.#claims[p] === 0)
    if (page < 0) page = this.#first(0, this.pages, (p) => this.isFree(p))
    this.holdPage(page as PageId)
    return page as PageId
  }

  /** Takes the last free page, where others are least likely to grow, only for its bytes not to be used. Null when there is none. */
  lendPage(): PageId | null {
    const last = (mayTake: (p: number) => boolean) => {
      for (let p = this.pages - 1; p >= 0; p--) if (this.isFree(p) && mayTake(p)) return p
      return -1
    }
    if (this.#freePages === 0) return null
    const unclaimed = last((p) => this.#claims[p] === 0)
    const page = (unclaimed >= 0 ? unclaimed : last(() => true)) as PageId
    const touched = this.#touched[page]!
    this.holdPage(page)
    this.#touched[page] = touched
    this.#lent[page] = 1
    return page
  }

  /** What {@link lendPage} lent is free again. */
  takeBackPage(page: PageId): void {
    this.#lent[page] = 0
    this.releasePage(page)
  }

  /** Takes a free page for one that is held by nobody: for pages that were chosen elsewhere. */
  holdPage(page: PageId): void {
    const before = this.#used(page)
    if (before === 0) this.#freePages--
    this.#whole[page]!++
    this.#usedBlocks += this.columns - before
    this.#fragmented.delete(page)
    this.#touch(page)
  }

  releasePage(page: PageId): void {
    if (this.#whole[page]! === 0) throw new Error(`page ${page} is not held`)
    this.#whole[page]!--
    if (this.#whole[page]! > 0) return
    const left = this.#used(page)
    this.#usedBlocks -= this.columns - left
    this.#settle(page, left)
  }

  /** Turns one hold on a page into holds on each of its blocks. */
  splitPage(page: PageId): void {
    const blocks = (this.#blocks[page] ??= new Uint32Array(this.columns))
    for (let c = 0; c < this.columns; c++) blocks[c]!++
    this.releasePage(page)
  }

  /** Whether somebody else holds it, or a part of it, too. */
  isPageShared(page: PageId): boolean {
    return this.#whole[page]! > 1 || (this.#blocks[page]?.some((n) => n > 0) ?? false)
  }

  // blocks -------------------------------------------------------------------------------------------------------------

  /** Takes a free block of a column: the one behind `after` if it is free, else in a page that is split already. */
  takeBlock(column: number, after: number | null): PageId | null {
    const free = (p: number) => this.#isBlockFree(p, column)
    let page = -1
    // Columns of a sequence that grow together stay in the same pages, and are read at once.
    if (after !== null && after + 1 < this.pages && free(after + 1))
      if (!this.isFree(after + 1) || this.#claims[after + 1] === 0) page = after + 1
    if (page < 0)
      for (const p of this.#fragmented)
        if (free(p)) {
          page = p
          break
        }
    if (page < 0 && this.#freePages === 0) return null
    if (page < 0) page = this.#first(0, this.pages, (p) => this.isFree(p) && this.#claims[p] === 0)
    if (page < 0) page = this.#first(0, this.pages, (p) => this.isFree(p))
    this.holdBlock(page as PageId, column)
    return page as PageId
  }

  holdBlock(page: PageId, column: number): void {
    const before = this.#used(page)
    if (before === 0) this.#freePages--
    const blocks = (this.#blocks[page] ??= new Uint32Array(this.columns))
    blocks[column]!++
    const now = this.#used(page)
    this.#usedBlocks += now - before
    this.#settle(page, now)
    this.#touch(page)
  }

  releaseBlock(page: PageId, column: number): void {
    const blocks = this.#blocks[page]
    if (!blocks || blocks[column] === 0) throw new Error(`block ${column} of page ${page} is not held`)
    const before = this.#used(page)
    blocks[column]!--
    if (blocks.every((n) => n === 0)) this.#blocks[page] = null
    const now = this.#used(page)
    this.#usedBlocks += now - before
    if (before > 0) this.#settle(page, now)
  }

  isBlockShared(page: PageId, column: number): boolean {
    return this.#whole[page]! + (this.#blocks[page]?.[column] ?? 0) > 1
  }

  /** Holders of a block, those of its page included. */
  holders(page: PageId, column: number): number {
    return this.#whole[page]! + (this.#blocks[page]?.[column] ?? 0)
  }

  // memory -------------------------------------------------------------------------------------------------------------

  /**
   * Runs of pages in which nobody has written for `ms` milliseconds, and of which some were written to before: those whose memory is
   * worth giving back. They count as never written to from then on.
   */
  takeIdle(ms: number): Extent[] {
    const before = this.#now() - ms
    const isIdle = (p: number) =>
      (this.isFree(p) || this.#lent[p] === 1) && (this.#touched[p] === 0 || this.#sinceMs[p]! <= before)
    const isTouched = ({ from, to }: Extent) => this.#first(from, to, (p) => this.#touched[p] === 1) >= 0
    const runs = [...this.#gaps(isIdle)].filter(isTouched)
    for (const { from, to } of runs) this.#touched.fill(0, from, to)
    return runs
  }

  // for displays and the checker ----------------------------------------------------------------------------------------

  /** Milliseconds since somebody last began to hold a page or a block of it; 0: nobody holds any. */
  age(page: number): number {
    return this.isFree(page) ? 0 : this.#now() - this.#sinceMs[page]!
  }

  /** Whether nobody holds any part of a page. */
  isFree(page: number): boolean {
    return this.#whole[page] === 0 && this.#blocks[page] === null
  }

  pageHolders(page: number): number {
    return this.#whole[page]!
  }

  /** Holders of each single block of a page, [columns]; null: none. Not a copy. */
  blockHolders(page: number): Readonly<Uint32Array> | null {
    return this.#blocks[page]!
  }

  /** Extents that cover a page. */
  claims(page: number): number {
    return this.#claims[page]!
  }

  isFragmented(page: number): boolean {
    return this.#fragmented.has(page)
  }

  // -------------------------------------------------------------------------------------------------------------------

  #isBlockFree(page: number, column: number): boolean {
    return this.#whole[page] === 0 && (this.#blocks[page]?.[column] ?? 0) === 0
  }

  /** Blocks of a page that are in use. */
  #used(page: number): number {
    if (this.#whole[page]! > 0) return this.columns
    const blocks = this.#blocks[page]
    if (!blocks) return 0
    let n = 0
    for (const held of blocks) if (held > 0) n++
    return n
  }

  /** After a page lost or won a holder: is it free, fragmented, or full? */
  #settle(page: number, used: number): void {
    if (used === 0) {
      this.#freePages++
      this.#sinceMs[page] = this.#now()
    }
    if (used > 0 && used < this.columns) this.#fragmented.add(page)
    else this.#fragmented.delete(page)
  }

  #touch(page: number): void {
    this.#sinceMs[page] = this.#now()
    this.#touched[page] = 1
  }

  #first(from: number, to: number, holds: (page: number) => boolean): number {
    for (let p = from; p < to; p++) if (holds(p)) return p
    return -1
  }

  *#gaps(holds: (page: number) => boolean): Generator<Extent> {
    let from = -1
    for (let p = 0; p <= this.pages; p++) {
      const inside = p < this.pages && holds(p)
      if (inside && from < 0) from = p
      if (!inside && from >= 0) {
        yield { from, to: p }
        from = -1
      }
    }
  }
}

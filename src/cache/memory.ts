/**
 * The memory of the KV store: arenas, who holds which of their pages and blocks, and what they lend to each other. It knows no
 * sequences.
 */
import { KvasirError } from '../contract/errors.ts'
import type { PageId } from '../contract/units.ts'
import type { Device } from '../ggml/device.ts'
import { canGiveBack } from '../ggml/posix.ts'
import { Arena, type ArenaFormat, type CacheDims, CELL_PADDING, PAGE_CELLS } from './arena.ts'
import type { CodeArena } from './code-arena.ts'
import type { BlockRef } from './column.ts'
import { Loans } from './loans.ts'
import { type Extent, PagePool } from './pages.ts'

export interface StoreShape extends CacheDims {
  /** The first is where new sequences grow; others are for rows that a policy stores differently. */
  readonly arenas: readonly (ArenaFormat & { readonly pages: number })[]
}

export class KvMemory implements Disposable {
  readonly dims: CacheDims
  readonly device: Device
  readonly #arenas: (Arena | CodeArena)[]
  readonly #pools: PagePool[]
  /** Room that the first arena gave to others. */
  readonly #loans: Loans
  readonly #borrowers = new Map<string, number>()

  /** @throws KvasirError INVALID_ARGUMENT, OUT_OF_MEMORY */
  constructor(shape: StoreShape, device: Device) {
    const { layers, headDim, kvHeads } = shape
    this.dims = { layers, headDim, kvHeads }
    const arenas: Arena[] = []
    try {
      for (const a of shape.arenas) arenas.push(new Arena({ ...this.dims, ...a }, device))
    } catch (error) {
      for (const a of arenas) a[Symbol.dispose]()
      throw error
    }
    this.device = device
    this.#arenas = arenas
    this.#pools = arenas.map((a) => new PagePool(a.pages, layers * kvHeads))
    this.#loans = new Loans(this.#arenas, this.#pools)
  }

  [Symbol.dispose](): void {
    for (const a of this.arenas) a[Symbol.dispose]()
  }

  get arenas(): readonly (Arena | CodeArena)[] {
    return this.#arenas
  }

  get pools(): readonly PagePool[] {
    return this.#pools
  }

  /** The arena that sequences grow in. */
  get home(): Arena {
    return this.#arenas[0] as Arena
  }

  /** An arena in which rows are stored one by one. @throws KvasirError INVALID_ARGUMENT */
  rowArena(index: number): Arena {
    const arena = this.#arenas[index]
    if (arena?.kind !== 'rows') throw new KvasirError('INVALID_ARGUMENT', `arena ${index} does not store row by row`)
    return arena
  }

  /**
   * The arena for rows in a format, made when it is first asked for. It has no room of its own: it borrows from the first, page by
   * page, and gives back what it does not need.
   * @returns its index
   */
  borrower(format: string, make: () => Arena | CodeArena): number {
    const known = this.#borrowers.get(format)
    if (known !== undefined) return known
    const arena = make()
    const index = this.#arenas.push(arena) - 1
    this.#pools.push(new PagePool(arena.pages, this.dims.layers * this.dims.kvHeads))
    this.#loans.add()
    this.#borrowers.set(format, index)
    return index
  }

  // how much there is ------------------------------------------------------------------------------------------------------

  /** Pages of the first arena that others have borrowed. */
  get lentPages(): readonly PageId[] {
    return this.#loans.pages
  }

  /** Pages of the first arena that must be free for so many more pages of another. */
  pagesToBorrow(arena: number, pages: number): number {
    return arena === 0 ? pages : this.#loans.needed(arena, pages)
  }

  /** Pages of the first arena that would be free with so many pages of an arena. */
  pagesReturned(arena: number, pages: number): number {
    return arena === 0 ? pages : this.#loans.returned(arena, pages)
  }

  /** Pages of the first arena that so many of an arena take the place of. */
  homePages(arena: number, pages: number): number {
    return this.#loans.pagesFor(arena, pages)
  }

  /** Most pages of an arena that there is room for. */
  mostPages(arena: number): number {
    const { pages, pageBytes } = this.arenas[arena]!
    return Math.min(pages, this.pagesOfAll(pageBytes))
  }

  /** As many pages of a size as all memory holds, one at least, but no more than an arena's indices reach. */
  pagesOfAll(pageBytes: number): number {
    const { headDim, kvHeads } = this.dims
    const step = CELL_PADDING / PAGE_CELLS
    const reach = Math.floor((2 ** 31 - 1) / (headDim * kvHeads * CELL_PADDING)) * step
    return Math.max(1, Math.min(reach, Math.floor((this.home.pages * this.home.pageBytes) / pageBytes)))
  }

  /** Gives the first arena back what it lent and is not used. */
  reclaim(): void {
    this.#loans.reclaim()
  }

  /** Bytes of native memory: what borrowers use is the first arena's. */
  get bytes(): number {
    return this.arenas.reduce((sum, a, i) => sum + (this.#loans.isBorrower(i) ? 0 : a.bytes), 0)
  }

  /** Bytes of the blocks that somebody holds, and of what lies beside them. */
  get usedBytes(): number {
    const lent = this.lentPages.length * this.home.pageBytes
    return this.arenas.reduce((sum, a, i) => {
      const beside = a.kind === 'codes' ? a.extraBytes : 0
      return sum + this.pools[i]!.usedBlocks * a.blockBytes + beside
    }, -lent)
  }

  /**
   * Memory of pages that nobody has used for so many milliseconds goes back to the system, where it can (Linux, the CPU's memory), so that
   * what the process takes follows what is in use. Steps may run meanwhile: what they read beside their rows is masked, and 0 is a number.
   * @returns bytes of the memory that went back, what was free of memory before included
   */
  giveBack(idleMs: number): number {
    if (!canGiveBack) return 0
    let bytes = 0
    for (const [i, pool] of this.#pools.entries())
      for (const { from, to } of pool.takeIdle(idleMs)) bytes += this.#arenas[i]!.giveBack(from, to)
    return bytes
  }

  // whole pages ------------------------------------------------------------------------------------------------------------

  /**
   * Takes a free page, e.g. to load a stored block into. Null: there is none.
   * @param after page that it should lie behind
   * @param extent room that the taker has claimed
   */
  takePage(arena: number, after: number | null, extent: Extent | null = null): BlockRef | null {
    const page = this.pools[arena]!.takePage(after, extent)
    if (page === null) return null
    const taken = { arena, page }
    if (this.#loans.cover(arena)) return taken
    this.releasePage(taken)
    return null
  }

  /**
   * Takes so many free pages that follow each other, where nobody claims any. Null: there are none.
   * @param room pages that should be free behind them, if that can be had
   */
  takeRun(arena: number, pages: number, room = 0): BlockRef[] | null {
    checkArena(this, arena)
    const pool = this.pools[arena]!
    const extent = pool.openExtent(pages + room)
    if (!extent) return null
    pool.closeExtent(extent)
    if (extent.to - extent.from < pages) return null
    const run = Array.from({ length: pages }, (_, i) => ({ arena, page: (extent.from + i) as PageId }))
    for (const b of run) this.holdPage(b)
    if (this.#loans.cover(arena)) return run
    for (const b of run) this.releasePage(b)
    return null
  }

  holdPage(b: BlockRef): void {
    this.pools[b.arena]!.holdPage(b.page)
  }

  releasePage(b: BlockRef): void {
    this.pools[b.arena]!.releasePage(b.page)
    this.#loans.settle(b.arena)
  }

  isPageShared(b: BlockRef): boolean {
    return this.pools[b.arena]!.isPageShared(b.page)
  }

  // single blocks: `part` says which of its page's, layer * Hkv + head -----------------------------------------------------

  /** Takes a free block, behind page `after` if that can be had. Null: there is none. */
  takeBlock(arena: number, part: number, after: number | null): BlockRef | null {
    const page = this.pools[arena]!.takeBlock(part, after)
    if (page === null) return null
    const taken = { arena, page }
    if (this.#loans.cover(arena)) return taken
    this.releaseBlock(taken, part)
    return null
  }

  holdBlock(b: BlockRef, part: number): void {
    this.pools[b.arena]!.holdBlock(b.page, part)
  }

  releaseBlock(b: BlockRef, part: number): void {
    const pool = this.pools[b.arena]!
    pool.releaseBlock(b.page, part)
    const arena = this.arenas[b.arena]!
    const { kvHeads } = this.dims
    if (arena.kind === 'codes' && pool.holders(b.page, part) === 0)
      arena.forget(Math.floor(part / kvHeads), part % kvHeads, b.page)
    this.#loans.settle(b.arena)
  }

  isPartShared(b: BlockRef, part: number): boolean {
    return this.pools[b.arena]!.isBlockShared(b.page, part)
  }
}

/** @throws KvasirError INVALID_ARGUMENT */
export function checkArena({ arenas }: KvMemory, arena: number): void {
  if (!arenas[arena]) throw new KvasirError('INVALID_ARGUMENT', `arena ${arena} of a store of ${arenas.length}`)
}

/**
 * Room that the store's first arena gives to others. All memory for keys and values is one budget, `kvMemory`, and the first arena has
 * it; arenas of other formats are made as large as could ever be, but may only use as many bytes as pages of the first are held for
 * them. Memory that is never touched is none.
 */
import type { PageId } from '../contract/units.ts'
import type { PagePool } from './pages.ts'

interface Sized {
  readonly pageBytes: number
}

/** Pages of the first arena by which more is lent than needed, and above which it is given back. */
const STEP = 4

export class Loans {
  readonly #arenas: readonly Sized[]
  readonly #pools: readonly PagePool[]
  /** Pages of the first arena that are held, by borrower; absent: an arena with room of its own. */
  readonly #lent = new Map<number, PageId[]>()

  /** Both lists grow with the store's. */
  constructor(arenas: readonly Sized[], pools: readonly PagePool[]) {
    this.#arenas = arenas
    this.#pools = pools
  }

  /** The last arena borrows. */
  add(): void {
    this.#lent.set(this.#arenas.length - 1, [])
  }

  isBorrower(arena: number): boolean {
    return this.#lent.has(arena)
  }

  get pages(): PageId[] {
    return [...this.#lent.values()].flat()
  }

  /** Pages of the first arena that a borrower needs for so many more pages of its own, whatever was lent and is not used. */
  needed(arena: number, pages: number): number {
    if (!this.#lent.has(arena)) return 0
    const used = this.#used(arena)
    return this.pagesFor(arena, used + pages) - this.pagesFor(arena, used)
  }

  /** Pages of the first arena that could be taken back if a borrower used so many pages less. */
  returned(arena: number, pages: number): number {
    const lent = this.#lent.get(arena)
    if (!lent) return 0
    return lent.length - this.pagesFor(arena, this.#used(arena) - pages)
  }

  /** Borrows what an arena uses, if it must; false: there is no room, and what was taken last must be given back. */
  cover(arena: number): boolean {
    const lent = this.#lent.get(arena)
    if (!lent) return true
    const needed = this.pagesFor(arena, this.#used(arena))
    let missing = needed - lent.length
    if (missing <= 0) return true
    missing += Math.min(STEP, Math.max(0, this.#pools[0]!.freePages - missing))
    for (; missing > 0; missing--) {
      const page = this.#pools[0]!.lendPage()
      if (page === null) break
      lent.push(page)
    }
    return lent.length >= needed
  }

  /** Gives back what a borrower no longer needs. */
  settle(arena: number): void {
    const lent = this.#lent.get(arena)
    if (!lent) return
    const needed = this.pagesFor(arena, this.#used(arena))
    if (lent.length - needed > STEP || needed === 0) this.#takeBack(lent, needed)
  }

  /** Takes back all that was lent and is not needed: room is short. */
  reclaim(): void {
    for (const [arena, lent] of this.#lent) this.#takeBack(lent, this.pagesFor(arena, this.#used(arena)))
  }

  #takeBack(lent: PageId[], kept: number): void {
    for (const page of lent.splice(kept)) this.#pools[0]!.takeBackPage(page)
  }

  /** Pages of a borrower of which somebody holds something. */
  #used(arena: number): number {
    const pool = this.#pools[arena]!
    return pool.pages - pool.freePages
  }

  /** Pages of the first arena that so many of another take the place of. */
  pagesFor(arena: number, pages: number): number {
    return Math.ceil((pages * this.#arenas[arena]!.pageBytes) / this.#arenas[0]!.pageBytes)
  }
}

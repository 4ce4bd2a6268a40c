/**
 * The KV store: memory (`memory.ts`), and the sequences that have rows in it. It moves no tokens and knows no model; whoever runs
 * the model asks where rows go (`append`) and where they lie (`columns`, `runs`).
 *
 * A sequence is *uniform* (one column of whole pages for all layers and heads) until a policy makes it *ragged* (a column of
 * blocks for each layer and head). Pages are shared between sequences and with stored prefixes; whoever writes into a shared
 * one gets a copy first. Every change either happens as a whole or throws KV_BUDGET and leaves everything as it was.
 *
 * What is done to the blocks of one table is in `tables.ts`, what moves rows in `compact.ts`, what only counts in `accounting.ts`.
 */
import { KvasirError } from '../contract/errors.ts'
import type { Range, SequenceId } from '../contract/units.ts'
import { heldBytes, ownPages, pagesNeeded } from './accounting.ts'
import { PAGE_CELLS } from './arena.ts'
import type { BlockRef, Column } from './column.ts'
import { bringTogether, compact, rewrite } from './compact.ts'
import { checkArena, KvMemory } from './memory.ts'
import { KvSequence } from './sequence.ts'
import {
  blocksWritten,
  checkCells,
  closeExtent,
  columnsOf,
  hold,
  isShared,
  makeWritable,
  ownAll,
  partOf,
  release,
  take,
} from './tables.ts'

export class KvStore extends KvMemory {
  readonly #sequences = new Map<SequenceId, KvSequence>()
  #nextId = 1

  get sequences(): ReadonlyMap<SequenceId, KvSequence> {
    return this.#sequences
  }

  /** @throws KvasirError INVALID_ARGUMENT */
  sequence(id: SequenceId): KvSequence {
    const found = this.#sequences.get(id)
    if (!found) throw new KvasirError('INVALID_ARGUMENT', `there is no sequence ${id} in the store`)
    return found
  }

  // life of a sequence ---------------------------------------------------------------------------------------------------

  /** @param expectedRows how long it may become: rows are kept together as far as there is room for that. */
  create(expectedRows: number, arena = 0): KvSequence {
    checkArena(this, arena)
    const s = new KvSequence(this.#nextId++ as SequenceId, arena)
    this.#sequences.set(s.id, s)
    s.expectedRows = expectedRows
    return s
  }

  /** A sequence with the same rows. Nothing is copied until one of the two writes into a page that both hold. */
  fork(from: KvSequence, expectedRows: number): KvSequence {
    this.#checkAlive(from)
    // Ragged tables need no room kept together.
    const s = this.create(from.layout === 'uniform' ? expectedRows : 0, from.arena)
    s.layout = from.layout
    s.inSlots = from.inSlots
    for (const [key, tier] of from.tiers) s.tiers.set(key, tier)
    s.columns = from.columns.map((c) => c.clone())
    for (const [c, column] of s.columns.entries()) {
      // Room that only `from` was promised stays its own.
      column.takeUnused()
      for (const b of column.blocks) hold(this, s, c, b)
    }
    return s
  }

  free(s: KvSequence): void {
    if (!this.#sequences.delete(s.id)) throw new KvasirError('DISPOSED', `sequence ${s.id} was freed before`)
    for (const [c, column] of s.columns.entries()) for (const b of column.blocks) release(this, s, c, b)
    s.columns = []
    closeExtent(this, s)
  }

  // rows -----------------------------------------------------------------------------------------------------------------

  /** Takes the blocks that the next `rows` rows need. @throws KvasirError KV_BUDGET; then nothing has changed. */
  reserve(s: KvSequence, rows: number, layers?: Range): void {
    this.#checkAlive(s)
    checkCount('rows', rows)
    makeWritable(this, s, columnsOf(this, s, layers), rows)
  }

  /** {@link reserve} for one column of a ragged sequence (0: the one of a uniform sequence); the cell of the first row. */
  reserveColumn(s: KvSequence, column: number, rows: number): number {
    const c = this.#checkColumn(s, column)
    checkCount('rows', rows)
    makeWritable(this, s, [column], rows)
    return blocksWritten(this, s, c, rows).start
  }

  /**
   * Puts rows at the end of every column. Where they lie is then in `columns`: the last `positions.length` cells.
   * @param layers of a ragged sequence: rows of these only
   * @throws KvasirError KV_BUDGET; then nothing has changed.
   */
  append(s: KvSequence, positions: ArrayLike<number>, layers?: Range): void {
    for (let i = 0; i < positions.length; i++) checkCount('position', positions[i]!)
    this.reserve(s, positions.length, layers)
    for (const i of columnsOf(this, s, layers)) {
      const column = s.columns[i]!
      column.skipTo(blocksWritten(this, s, column, positions.length).start)
      for (let i = 0; i < positions.length; i++) column.push(positions[i]!)
    }
  }

  /**
   * Puts pages that are filled already (a stored prefix, a swapped-in page) at the end of a uniform sequence that ends with
   * a full page. The caller's holds go over to the sequence. Positions go on from `position`.
   */
  adopt(s: KvSequence, pages: readonly BlockRef[], position: number): void {
    this.#checkAlive(s)
    checkCount('position', position)
    const column = s.columns[0]!
    if (s.layout !== 'uniform' || column.end !== column.cells)
      throw new KvasirError('INVALID_ARGUMENT', 'whole pages can only follow whole pages of a uniform sequence')
    for (const page of pages) {
      column.addBlock(page)
      for (let i = 0; i < PAGE_CELLS; i++) column.push(position++)
    }
  }

  /** Takes back the last rows: cells from `end` on, of a uniform sequence. Room that was reserved stays. */
  truncate(s: KvSequence, end: number): void {
    checkCount('end', end)
    for (const column of s.columns) column.truncate(end)
  }

  /** Takes back the last `rows` rows of every column, those of the last append. */
  takeBack(s: KvSequence, rows: number, layers?: Range): void {
    checkCount('rows', rows)
    const columns = columnsOf(this, s, layers).map((i) => s.columns[i]!)
    for (const column of columns)
      if (rows > column.end)
        throw new KvasirError('INVALID_ARGUMENT', `${rows} rows cannot be taken back from a column of ${column.end}`)
    for (const column of columns) column.truncate(column.end - rows)
  }

  /** Gives back room that was reserved and is not used. */
  trim(s: KvSequence): void {
    for (const [i, column] of s.columns.entries()) for (const b of column.takeUnused()) release(this, s, i, b)
  }

  /**
   * Before cells of a sequence are overwritten (selective recompute): nobody else may see it.
   * @param columns one or some; all, if not given
   * @throws KvasirError KV_BUDGET; then nothing has changed
   */
  own(s: KvSequence, cells: Iterable<number>, columns: number | readonly number[] = [...s.columns.keys()]): void {
    this.#checkAlive(s)
    const list = [...cells]
    if (typeof columns === 'number') columns = [columns]
    for (const i of columns) checkCells(this.#checkColumn(s, i), list)
    const blocks = list.map((cell) => Math.floor(cell / PAGE_CELLS))
    ownAll(this, s, new Map(columns.map((i) => [i, blocks])))
  }

  // what it costs ----------------------------------------------------------------------------------------------------------

  /** Pages of its arena that `rows` more rows of a sequence need: see {@link pagesNeeded}. */
  pagesNeeded(s: KvSequence, rows: number, layers?: Range): number {
    return pagesNeeded(this, s, rows, layers)
  }

  /** Bytes of what its rows lie in, shared or not: see {@link heldBytes}. */
  heldBytes(s: KvSequence): number {
    return heldBytes(this, s)
  }

  /** Pages of the first arena's size that freeing a sequence would free. */
  ownPages(s: KvSequence): number {
    return ownPages(this, s)
  }

  /** Whether somebody else holds block `index` of a column, or its page, too. */
  isBlockShared(s: KvSequence, column: number, index: number): boolean {
    return isShared(this, s, column, s.columns[column]!.blocks[index]!)
  }

  // rows go, and others close up -------------------------------------------------------------------------------------------

  /** Makes the table ragged: a column for each layer and head, with the same rows at first. Frees and copies nothing. */
  makeRagged(s: KvSequence): void {
    this.#checkAlive(s)
    if (s.layout === 'ragged') return
    const [only] = s.columns
    for (const b of only!.blocks) this.pools[b.arena]!.splitPage(b.page)
    s.columns = Array.from({ length: this.dims.layers * this.dims.kvHeads }, () => only!.clone())
    s.layout = 'ragged'
    closeExtent(this, s)
  }

  /**
   * Drops rows, given by their cells. Blocks that hold nothing any more are free at once; {@link compact} frees the rest.
   * @param column of a ragged sequence; 0 of a uniform one: the rows go in all layers and heads
   */
  drop(s: KvSequence, column: number, cells: Iterable<number>): void {
    const c = this.#checkColumn(s, column)
    const gone = [...cells]
    checkCells(c, gone)
    c.dropAll(gone)
    for (const b of c.takeEmpty()) release(this, s, column, b)
  }

  /**
   * Moves the last rows of a column into its holes, so that its rows take as few blocks as they can: see {@link compact}.
   * @throws KvasirError KV_BUDGET when a copy finds no room; then nothing has changed
   */
  compact(s: KvSequence, column: number): void {
    this.#checkColumn(s, column)
    compact(this, s, column)
  }

  /**
   * Puts rows of a ragged sequence side by side at the front of the column's blocks: see {@link bringTogether}.
   * @returns the blocks that they are in now
   * @throws KvasirError INVALID_ARGUMENT, KV_BUDGET; then nothing has changed
   */
  bringTogether(s: KvSequence, column: number, cells: readonly number[]): number[] {
    this.#checkColumn(s, column)
    return bringTogether(this, s, column, cells)
  }

  /**
   * Copies the rows that a ragged sequence keeps into fresh pages, side by side: see {@link rewrite}.
   * @returns false where there is no room for that, or rows lie in several arenas: then nothing has changed
   */
  rewrite(s: KvSequence, kept: readonly ArrayLike<number>[]): boolean {
    this.#checkAlive(s)
    return rewrite(this, s, kept)
  }

  // blocks of other arenas and other layers --------------------------------------------------------------------------------

  /**
   * Puts free blocks of any arena into a column, as holes, in front of the block that its end lies in: for rows that move
   * there. {@link drop} releases those in which no row is put. The first of their cells.
   * @throws KvasirError KV_BUDGET; then nothing has changed
   */
  insertBlocks(s: KvSequence, column: number, blocks: number, arena: number): number {
    const c = this.#checkColumn(s, column)
    checkArena(this, arena)
    checkCount('blocks', blocks)
    const taken: BlockRef[] = []
    try {
      let after = c.blocks.findLast((b) => b.arena === arena && b.layer === undefined)?.page ?? null
      while (taken.length < blocks) {
        taken.push(take(this, s, column, arena, after))
        after = taken.at(-1)!.page
      }
    } catch (error) {
      for (const b of taken.reverse()) release(this, s, column, b)
      throw error
    }
    return c.insertBlocks(Math.floor(c.end / PAGE_CELLS), taken)
  }

  /**
   * Puts blocks of one layer into a column of another, for both to read: as holes, in front of the block that its end lies in. The
   * first of their cells.
   */
  shareBlocks(s: KvSequence, column: number, blocks: readonly BlockRef[], layer: number): number {
    const c = this.#checkColumn(s, column)
    const refs = blocks.map((b) => ({ ...b, layer }))
    for (const b of refs) this.holdBlock(b, partOf(this, column, b))
    return c.insertBlocks(Math.floor(c.end / PAGE_CELLS), refs)
  }

  /** Marks blocks of a column as shared with another layer: nothing in them moves from then on. */
  markShared(s: KvSequence, column: number, indices: readonly number[]): void {
    const c = this.#checkColumn(s, column)
    const layer = Math.floor(column / this.dims.kvHeads)
    for (const i of indices) c.replaceBlock(i, { ...c.blocks[i]!, layer })
  }

  // ------------------------------------------------------------------------------------------------------------------------

  #checkAlive(s: KvSequence): void {
    if (this.#sequences.get(s.id) !== s) throw new KvasirError('DISPOSED', `sequence ${s.id} is not in the store`)
  }

  #checkColumn(s: KvSequence, column: number): Column {
    this.#checkAlive(s)
    const c = s.columns[column]
    if (!c) throw new KvasirError('INVALID_ARGUMENT', `column ${column} of a sequence of ${s.columns.length}`)
    return c
  }
}

function checkCount(what: string, n: number): void {
  if (!(Number.isSafeInteger(n) && n >= 0))
    throw new KvasirError('INVALID_ARGUMENT', `${what} ${n}: must be a whole number from 0 up`)
}

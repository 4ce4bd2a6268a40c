/**
 * The KV store: arenas, and the sequences that have rows in them. It moves no tokens and knows no model; whoever runs the
 * model asks where rows go (`append`) and where they lie (`columns`, `runs`).
 *
 * A sequence is *uniform* (one column of whole pages for all layers and heads) until a policy makes it *ragged* (a column of
 * blocks for each layer and head). Pages are shared between sequences and with stored prefixes; whoever writes into a shared
 * one gets a copy first. Every change either happens as a whole or throws KV_BUDGET and leaves everything as it was.
 */
import { KvasirError, showBytes } from '../contract/errors.ts'
import type { PageId, Range, SequenceId } from '../contract/units.ts'
import type { Device } from '../ggml/device.ts'
import { Arena, type ArenaFormat, type CacheDims, CELL_PADDING, PAGE_CELLS } from './arena.ts'
import type { CodeArena } from './code-arena.ts'
import { extrasBytes, type Tier } from './codes.ts'
import { type BlockRef, Column } from './column.ts'
import { Loans } from './loans.ts'
import { type Extent, PagePool } from './pages.ts'
import { permuteRows } from './permute.ts'

/** Pages that a sequence claims when it has become longer than was expected. */
const LEAST_EXTENT = 8

export interface StoreShape extends CacheDims {
  /** The first is where new sequences grow; others are for rows that a policy stores differently. */
  readonly arenas: readonly (ArenaFormat & { readonly pages: number })[]
}

export class KvSequence {
  readonly id: SequenceId
  /** Arena in which new rows are stored. */
  arena: number
  layout: 'uniform' | 'ragged' = 'uniform'
  /** One, or [layer * Hkv + head]. */
  columns: Column[] = [new Column()]
  extent: Extent | null = null
  /** How long it may become; its extent is claimed with its first page. */
  expectedRows = 0
  /** Distances between rows are counted in rows that are there, not in positions: see {@link slotShifts}. */
  inSlots = false
  /** Arena that the extent lies in: rows may be stored in another one later. */
  extentArena: number
  /** What the first rows in codes fixed for later ones, by {@link tierKey}. */
  readonly tiers = new Map<string, { readonly keys: Tier; readonly values: Tier }>()

  constructor(id: SequenceId, arena: number) {
    this.id = id
    this.arena = arena
    this.extentArena = arena
  }

  /** The column that holds for a layer and head. */
  column(layer: number, head: number, kvHeads: number): Column {
    return this.columns[this.layout === 'uniform' ? 0 : layer * kvHeads + head]!
  }

  /** Rows of the longest column. */
  get rows(): number {
    return this.columns.reduce((most, c) => Math.max(most, c.rows), 0)
  }
}

export function tierKey(column: number, arena: number): string {
  return `${column} ${arena}`
}

export class KvStore implements Disposable {
  readonly dims: CacheDims
  readonly device: Device
  readonly #arenas: (Arena | CodeArena)[]
  readonly #pools: PagePool[]
  /** Room that the first arena gave to others. */
  readonly #loans: Loans
  readonly #borrowers = new Map<string, number>()
  readonly #sequences = new Map<SequenceId, KvSequence>()
  #nextId = 1

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
    this.#checkArena(arena)
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
      for (const b of column.blocks)
        if (s.layout === 'uniform') this.pools[b.arena]!.holdPage(b.page)
        else this.#hold(c, b)
    }
    return s
  }

  free(s: KvSequence): void {
    if (!this.#sequences.delete(s.id)) throw new KvasirError('DISPOSED', `sequence ${s.id} was freed before`)
    for (const [c, column] of s.columns.entries()) for (const b of column.blocks) this.#release(s, c, b)
    s.columns = []
    this.#closeExtent(s)
  }

  // rows -----------------------------------------------------------------------------------------------------------------

  /** Pages (or, ragged, pages' worth of blocks) that `rows` more rows of a sequence need: never too few. */
  pagesNeeded(s: KvSequence, rows: number, layers?: Range): number {
    // Blocks of one column lie in as many pages; other columns have theirs in the same ones.
    let most = 0
    for (const i of this.#columnsOf(s, layers)) {
      const c = s.columns[i]!
      const { first, last } = this.#blocksWritten(s, c, rows)
      let blocks = 0
      for (let b = first; b < last; b++) if (!this.#isWritable(s, i, c.blocks[b])) blocks++
      most = Math.max(most, blocks)
    }
    return most
  }

  /** Takes the blocks that the next `rows` rows need. @throws KvasirError KV_BUDGET; then nothing has changed. */
  reserve(s: KvSequence, rows: number, layers?: Range): void {
    this.#checkAlive(s)
    checkCount('rows', rows)
    this.#makeWritable(s, this.#columnsOf(s, layers), rows)
  }

  /** {@link reserve} for one column of a ragged sequence (0: the one of a uniform sequence); the cell of the first row. */
  reserveColumn(s: KvSequence, column: number, rows: number): number {
    const c = this.#checkColumn(s, column)
    checkCount('rows', rows)
    this.#makeWritable(s, [column], rows)
    return this.#blocksWritten(s, c, rows).start
  }

  #makeWritable(s: KvSequence, columns: readonly number[], rows: number): void {
    if (rows === 0) return
    const undo: (() => void)[] = []
    const { extent } = s
    try {
      for (const i of columns) {
        const column = s.columns[i]!
        const { first, last } = this.#blocksWritten(s, column, rows)
        for (let index = first; index < last; index++) {
          const old = column.blocks[index]
          if (this.#isWritable(s, i, old)) continue
          if (!old) {
            this.#openExtent(s, column.blocks[index - 1])
            column.addBlock(this.#take(s, i, s.arena, index - 1))
            undo.push(() => this.#release(s, i, column.popBlock()))
          } else this.#replace(s, i, index, s.arena, index * PAGE_CELLS < column.end, undo)
        }
      }
    } catch (error) {
      for (const back of undo.reverse()) back()
      this.#closeExtent(s)
      s.extent = extent && this.pools[s.extentArena]!.claimExtent(extent)
      throw error
    }
  }

  /**
   * Puts rows at the end of every column. Where they lie is then in `columns`: the last `positions.length` cells.
   * @param layers of a ragged sequence: rows of these only
   * @throws KvasirError KV_BUDGET; then nothing has changed.
   */
  append(s: KvSequence, positions: ArrayLike<number>, layers?: Range): void {
    for (let i = 0; i < positions.length; i++) checkCount('position', positions[i]!)
    this.reserve(s, positions.length, layers)
    for (const i of this.#columnsOf(s, layers)) {
      const column = s.columns[i]!
      column.skipTo(this.#blocksWritten(s, column, positions.length).start)
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
    const columns = this.#columnsOf(s, layers).map((i) => s.columns[i]!)
    for (const column of columns)
      if (rows > column.end)
        throw new KvasirError('INVALID_ARGUMENT', `${rows} rows cannot be taken back from a column of ${column.end}`)
    for (const column of columns) column.truncate(column.end - rows)
  }

  /**
   * Bytes of the blocks that its rows lie in, those that it shares with other sequences too, and of all that belongs to them. What
   * several of its own rows or layers share counts once.
   */
  heldBytes(s: KvSequence): number {
    const perBlock = s.layout === 'uniform' ? this.dims.layers * this.dims.kvHeads : 1
    let bytes = 0
    const shared = new Set<object>()
    const once = (list: Uint16Array | null) => {
      if (list && !shared.has(list)) bytes += list.byteLength
      if (list) shared.add(list)
    }
    for (const [i, c] of s.columns.entries())
      for (let k = 0; k * PAGE_CELLS < c.end; k++) {
        const b = c.blocks[k]!
        const arena = this.arenas[b.arena]!
        // Two layers share a block: the upper one's. Each has lengths of its own, f16, of keys and values.
        if (b.layer !== undefined) bytes += SCALE_BYTES
        if (b.layer === undefined || b.layer === Math.floor(i / this.dims.kvHeads)) bytes += perBlock * arena.blockBytes
        if (arena.kind === 'rows') continue
        const { layer, head } = this.#place(i, b)
        const extras = arena.extras(layer, head, b.page)
        if (!extras) continue
        bytes += extrasBytes(extras.keys) + extrasBytes(extras.values)
        for (const e of [extras.keys, extras.values]) {
          once(e.channelScale)
          once(e.channelBase)
          once(e.lowRank?.b ?? null)
        }
      }
    return bytes
  }

  /** Gives back room that was reserved and is not used. */
  trim(s: KvSequence): void {
    for (const [i, column] of s.columns.entries()) for (const b of column.takeUnused()) this.#release(s, i, b)
  }

  /** Makes the table ragged: a column for each layer and head, with the same rows at first. Frees and copies nothing. */
  makeRagged(s: KvSequence): void {
    this.#checkAlive(s)
    if (s.layout === 'ragged') return
    const [only] = s.columns
    for (const b of only!.blocks) this.pools[b.arena]!.splitPage(b.page)
    s.columns = Array.from({ length: this.dims.layers * this.dims.kvHeads }, () => only!.clone())
    s.layout = 'ragged'
    this.#closeExtent(s)
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
    for (const b of c.takeEmpty()) this.#release(s, column, b)
  }

  /**
   * Closes the holes of a column by moving its last rows into them, so that its rows take as few blocks as they can. The
   * order of rows in a column is of no meaning: each carries its position. Shared blocks are copied first. Rows stay in
   * their arena, and in blocks that are written as a whole where they are; blocks of the sequence's own arena come last, so that
   * it grows on in the last of them.
   * @throws KvasirError KV_BUDGET when a copy finds no room; then nothing has changed
   */
  compact(s: KvSequence, column: number): void {
    const c = this.#checkColumn(s, column)
    const { positions } = c
    const used = c.blocks.slice(0, Math.ceil(c.end / PAGE_CELLS))
    const moves: [from: number, into: number][] = []
    const own: number[] = []
    const others: number[] = []
    let end = 0
    const sealed = [...used.keys()].filter((i) => this.#isSealed(used[i]!))
    others.push(...sealed)
    end += sealed.length * PAGE_CELLS
    const open = used.filter((b) => !this.#isSealed(b))
    for (const arena of new Set(open.map((b) => b.arena))) {
      const blocks = [...used.keys()].filter((i) => used[i]!.arena === arena && !this.#isSealed(used[i]!))
      const cellAt = (i: number) => blocks[Math.floor(i / PAGE_CELLS)]! * PAGE_CELLS + (i % PAGE_CELLS)
      let into = 0
      let from = blocks.length * PAGE_CELLS - 1
      for (; ; into++, from--) {
        while (into <= from && positions[cellAt(into)]! >= 0) into++
        while (from >= into && positions[cellAt(from)]! < 0) from--
        if (into >= from) break
        moves.push([cellAt(from), cellAt(into)])
      }
      // All rows lie before `into` now.
      const filled = blocks.slice(0, Math.ceil(into / PAGE_CELLS))
      if (arena === s.arena) own.push(...filled)
      else others.push(...filled)
      end += arena === s.arena ? into : filled.length * PAGE_CELLS
    }
    this.#ownAll(s, new Map([[column, moves.map(([, into]) => Math.floor(into / PAGE_CELLS))]]))
    for (const [from, into] of moves) this.#moveRow(s, column, from, into)
    for (const b of c.arrange([...others, ...own], end)) this.#release(s, column, b)
  }

  /**
   * Puts rows of a ragged sequence side by side at the front of the column's blocks, in the order in which they are given, and all
   * others behind them: blocks that are written as a whole stay where they are. Shared blocks are copied first.
   * @param cells of rows that lie in the sequence's own arena, as many as fill whole blocks
   * @returns the blocks that they are in now
   * @throws KvasirError INVALID_ARGUMENT, KV_BUDGET; then nothing has changed
   */
  bringTogether(s: KvSequence, column: number, cells: readonly number[]): number[] {
    const c = this.#checkColumn(s, column)
    checkCells(c, cells)
    if (s.layout === 'uniform' || cells.length % PAGE_CELLS)
      throw new KvasirError('INVALID_ARGUMENT', `${cells.length} rows of a ${s.layout} sequence fill no whole blocks`)
    const used = c.blocks.slice(0, Math.ceil(c.end / PAGE_CELLS))
    const open = [...used.keys()].filter((i) => used[i]!.arena === s.arena && !this.#isSealed(used[i]!))
    const chosen = new Set(cells)
    const others = open
      .flatMap((i) => Array.from({ length: PAGE_CELLS }, (_, k) => i * PAGE_CELLS + k))
      .filter((cell) => c.positions[cell]! >= 0 && !chosen.has(cell))
    this.#ownAll(s, new Map([[column, open]]))
    const { layer, head } = this.#place(column, used[open[0]!]!)
    const pages = open.map((i) => c.blocks[i]!.page)
    const order = [...cells, ...others]
    const place = new Map(open.map((block, k) => [block, k]))
    const physical = order.map((cell) => place.get(Math.floor(cell / PAGE_CELLS))! * PAGE_CELLS + (cell % PAGE_CELLS))
    permuteRows(this.rowArena(s.arena), layer, head, pages, physical)
    c.permute(open, order)
    return open.slice(0, cells.length / PAGE_CELLS)
  }

  /**
   * Copies the rows that a ragged sequence keeps into fresh pages, side by side in the order of their positions, the same pages for
   * all layers and heads: attention then reads them where they lie. All else that it held is released.
   * @param kept cells by column, in the order of their positions, one at least in some column
   * @returns false where there is no such run of free pages, or rows lie in several arenas: then nothing has changed
   */
  rewrite(s: KvSequence, kept: readonly ArrayLike<number>[]): boolean {
    this.#checkAlive(s)
    if (s.layout === 'uniform') throw new KvasirError('INVALID_ARGUMENT', 'only ragged sequences are rewritten')
    for (const [i, cells] of kept.entries()) checkCells(s.columns[i]!, Array.from(cells))
    const pages = Math.ceil(kept.reduce((most, cells) => Math.max(most, cells.length), 0) / PAGE_CELLS)
    if (s.columns.some((c) => c.blocks.some((b) => b.arena !== s.arena || this.#isSealed(b)))) return false
    const run = this.takeRun(s.arena, pages, LEAST_EXTENT)
    if (!run) return false
    for (const { arena, page } of run) this.pools[arena]!.splitPage(page)
    const arena = this.rowArena(s.arena)
    for (const [i, old] of s.columns.entries()) {
      const [layer, head] = [Math.floor(i / this.dims.kvHeads), i % this.dims.kvHeads]
      const fresh = new Column()
      const blocks = Math.ceil(kept[i]!.length / PAGE_CELLS)
      for (const b of run.slice(0, blocks)) fresh.addBlock(b)
      for (const b of run.slice(blocks)) this.#release(s, i, b)
      const { positions } = old
      for (let k = 0; k < kept[i]!.length; k++) {
        const from = kept[i]![k]!
        const into = fresh.push(positions[from]!)
        fresh.copyMarks(old, from, into)
        arena.copyRow(layer, head, old.physical(from), fresh.physical(into))
      }
      for (const b of old.blocks) this.#release(s, i, b)
      s.columns[i] = fresh
    }
    return true
  }

  /**
   * Puts free blocks of any arena into a column, as holes, in front of the block that its end lies in: for rows that move
   * there. {@link drop} releases those in which no row is put. The first of their cells.
   * @throws KvasirError KV_BUDGET; then nothing has changed
   */
  insertBlocks(s: KvSequence, column: number, blocks: number, arena: number): number {
    const c = this.#checkColumn(s, column)
    this.#checkArena(arena)
    checkCount('blocks', blocks)
    const taken: BlockRef[] = []
    try {
      let after = c.blocks.findLast((b) => b.arena === arena && b.layer === undefined)?.page ?? null
      while (taken.length < blocks) {
        taken.push(this.#takeAfter(s, column, arena, after))
        after = taken.at(-1)!.page
      }
    } catch (error) {
      for (const b of taken.reverse()) this.#release(s, column, b)
      throw error
    }
    return c.insertBlocks(Math.floor(c.end / PAGE_CELLS), taken)
  }

  // pages for stored prefixes ----------------------------------------------------------------------------------------------

  /** Takes a free page for itself, e.g. to load a stored block into. Null: there is none. */
  takePage(arena: number, after: number | null): BlockRef | null {
    const page = this.pools[arena]!.takePage(after, null)
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
    this.#checkArena(arena)
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

  /** Whether somebody else holds block `index` of a column, or its page, too. */
  isBlockShared(s: KvSequence, column: number, index: number): boolean {
    return this.#isShared(s, column, s.columns[column]!.blocks[index]!)
  }

  /** Pages of the first arena's size that nobody else holds: what freeing a sequence would free. */
  ownPages(s: KvSequence): number {
    if (s.layout === 'uniform') {
      const own = s.columns[0]!.blocks.filter((b) => !this.isPageShared(b))
      return Math.floor(own.reduce((sum, b) => sum + this.arenas[b.arena]!.pageBytes, 0) / this.home.pageBytes)
    }
    // What other arenas hold is lent by the first.
    let bytes = 0
    for (const [i, c] of s.columns.entries())
      for (const b of c.blocks) if (!this.#isShared(s, i, b)) bytes += this.arenas[b.arena]!.blockBytes
    return Math.floor(bytes / this.home.pageBytes)
  }

  /**
   * Puts blocks of one layer into a column of another, for both to read: as holes, in front of the block that its end lies in. The
   * first of their cells.
   */
  shareBlocks(s: KvSequence, column: number, blocks: readonly BlockRef[], layer: number): number {
    const c = this.#checkColumn(s, column)
    const refs = blocks.map((b) => ({ ...b, layer }))
    for (const b of refs) this.#hold(column, b)
    return c.insertBlocks(Math.floor(c.end / PAGE_CELLS), refs)
  }

  /** Marks blocks of a column as shared with another layer: nothing in them moves from then on. */
  markShared(s: KvSequence, column: number, indices: readonly number[]): void {
    const c = this.#checkColumn(s, column)
    const layer = Math.floor(column / this.dims.kvHeads)
    for (const i of indices) c.replaceBlock(i, { ...c.blocks[i]!, layer })
  }

  [Symbol.dispose](): void {
    for (const a of this.arenas) a[Symbol.dispose]()
  }

  // -----------------------------------------------------------------------------------------------------------------------

  /** Indices of the columns that hold for some layers, or for all. */
  #columnsOf(s: KvSequence, layers?: Range): number[] {
    const all = [...s.columns.keys()]
    if (!layers) return all
    if (s.layout === 'uniform')
      throw new KvasirError('INVALID_ARGUMENT', 'a uniform sequence has the same rows in all layers')
    return all.slice(layers.from * this.dims.kvHeads, layers.to * this.dims.kvHeads)
  }

  /** Where the next rows start, and the blocks [first, last) of a column that they go into. */
  #blocksWritten(s: KvSequence, c: Column, rows: number): { start: number; first: number; last: number } {
    if (rows === 0) return { start: c.end, first: 0, last: 0 }
    // The rest of a block of another arena, or of one that is written as a whole, is left empty.
    const b = c.blocks[Math.floor(c.end / PAGE_CELLS)]
    const start = b && (b.arena !== s.arena || this.#isSealed(b)) ? Math.ceil(c.end / PAGE_CELLS) * PAGE_CELLS : c.end
    return { start, first: Math.floor(start / PAGE_CELLS), last: Math.ceil((start + rows) / PAGE_CELLS) }
  }

  /** Whether new rows can go into a block as it is. Those behind the end can be shared too, once rows were taken back. */
  #isWritable(s: KvSequence, column: number, b: BlockRef | undefined): boolean {
    return b !== undefined && b.arena === s.arena && !this.#isSealed(b) && !this.#isShared(s, column, b)
  }

  #isShared(s: KvSequence, column: number, b: BlockRef): boolean {
    const pool = this.pools[b.arena]!
    return s.layout === 'uniform' ? pool.isPageShared(b.page) : pool.isBlockShared(b.page, this.#owner(column, b))
  }

  /** Whether its rows can be dropped, but neither moved nor written. */
  #isSealed(b: BlockRef): boolean {
    return b.layer !== undefined || this.arenas[b.arena]!.kind === 'codes'
  }

  /** Layer and head of a ragged table's block. */
  #place(column: number, b: BlockRef): { layer: number; head: number } {
    const { kvHeads } = this.dims
    return { layer: b.layer ?? Math.floor(column / kvHeads), head: column % kvHeads }
  }

  /** Which of its page's blocks a column's block is. */
  #owner(column: number, b: BlockRef): number {
    const { layer, head } = this.#place(column, b)
    return layer * this.dims.kvHeads + head
  }

  #hold(column: number, b: BlockRef): void {
    this.pools[b.arena]!.holdBlock(b.page, this.#owner(column, b))
  }

  /** Puts a fresh block in place of block `index`, with the same bytes if wanted; `undo` gets the way back. */
  #replace(s: KvSequence, column: number, index: number, arena: number, copy: boolean, undo: (() => void)[]): void {
    const c = s.columns[column]!
    const old = c.blocks[index]!
    const fresh = this.#take(s, column, arena, index - 1)
    if (copy) this.#copyBlock(s, column, old, fresh)
    c.replaceBlock(index, fresh)
    this.#release(s, column, old)
    undo.push(() => {
      c.replaceBlock(index, old)
      if (s.layout === 'uniform') this.holdPage(old)
      else this.#hold(column, old)
      this.#release(s, column, fresh)
    })
  }

  /** Between blocks of one arena. */
  #copyBlock(s: KvSequence, column: number, from: BlockRef, into: BlockRef): void {
    const arena = this.rowArena(from.arena)
    if (s.layout === 'uniform') {
      arena.copyPage(from.page, into.page)
      return
    }
    const layer = Math.floor(column / this.dims.kvHeads)
    const head = column % this.dims.kvHeads
    arena.writeBlock(layer, head, into.page, arena.readBlock(layer, head, from.page))
  }

  /** Makes sure that nobody else holds these blocks, given by column: copies them if need be, all or none. */
  #ownAll(s: KvSequence, wanted: ReadonlyMap<number, Iterable<number>>): void {
    const undo: (() => void)[] = []
    try {
      for (const [column, indices] of wanted)
        for (const index of new Set(indices)) {
          const b = s.columns[column]!.blocks[index]!
          if (this.#isShared(s, column, b)) this.#replace(s, column, index, b.arena, true, undo)
        }
    } catch (error) {
      for (const back of undo.reverse()) back()
      throw error
    }
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
    this.#ownAll(s, new Map(columns.map((i) => [i, blocks])))
  }

  /** Between cells of one arena, of which nobody else holds the second. */
  #moveRow(s: KvSequence, column: number, from: number, into: number): void {
    const c = s.columns[column]!
    const arena = this.rowArena(c.blocks[Math.floor(from / PAGE_CELLS)]!.arena)
    const { layers, kvHeads } = this.dims
    const move = (layer: number, head: number) => arena.copyRow(layer, head, c.physical(from), c.physical(into))
    if (s.layout === 'ragged') move(Math.floor(column / kvHeads), column % kvHeads)
    else for (let l = 0; l < layers; l++) for (let h = 0; h < kvHeads; h++) move(l, h)
    c.setPosition(into, c.positions[from]!)
    c.copyMarks(c, from, into)
    c.drop(from)
  }

  /** A free block, behind block `index` if that can be had. */
  #take(s: KvSequence, column: number, arena: number, index: number): BlockRef {
    const before = s.columns[column]!.blocks[index]
    return this.#takeAfter(
      s,
      column,
      arena,
      before && before.arena === arena && before.layer === undefined ? before.page : null,
    )
  }

  #takeAfter(s: KvSequence, column: number, arena: number, after: PageId | null): BlockRef {
    const pool = this.pools[arena]!
    const extent = arena === s.extentArena ? s.extent : null
    const page: PageId | null = s.layout === 'uniform' ? pool.takePage(after, extent) : pool.takeBlock(column, after)
    if (page !== null) {
      if (this.#loans.cover(arena)) return { arena, page }
      this.#release(s, column, { arena, page })
    }
    const a = this.home
    throw new KvasirError(
      'KV_BUDGET',
      `no page is free: all ${a.pages} (${showBytes(a.bytes)}) are held. Lower maxTokens, send fewer requests at once, or load ` +
        'with more kvMemory',
      { pages: a.pages, bytes: a.bytes },
    )
  }

  #release(s: KvSequence, column: number, b: BlockRef): void {
    const pool = this.pools[b.arena]!
    if (s.layout === 'uniform') pool.releasePage(b.page)
    else {
      const owner = this.#owner(column, b)
      pool.releaseBlock(b.page, owner)
      const arena = this.arenas[b.arena]!
      const { layer, head } = this.#place(column, b)
      if (arena.kind === 'codes' && pool.holders(b.page, owner) === 0) arena.forget(layer, head, b.page)
    }
    this.#loans.settle(b.arena)
  }

  /** Claims room to grow, behind block `after` if it can be; again when what was claimed is used up. */
  #openExtent(s: KvSequence, after: BlockRef | undefined): void {
    if (s.layout !== 'uniform' || s.arena !== s.extentArena) return
    const pool = this.pools[s.extentArena]!
    if (s.extent && pool.hasFree(s.extent)) return
    this.#closeExtent(s)
    const missing = Math.ceil(s.expectedRows / PAGE_CELLS) - s.columns[0]!.blocks.length
    if (s.expectedRows > 0)
      s.extent = pool.openExtent(Math.max(missing, LEAST_EXTENT), after?.arena === s.arena ? after.page : null)
  }

  #closeExtent(s: KvSequence): void {
    if (s.extent) this.pools[s.extentArena]!.closeExtent(s.extent)
    s.extent = null
  }

  #checkAlive(s: KvSequence): void {
    if (this.#sequences.get(s.id) !== s) throw new KvasirError('DISPOSED', `sequence ${s.id} is not in the store`)
  }

  #checkColumn(s: KvSequence, column: number): Column {
    this.#checkAlive(s)
    const c = s.columns[column]
    if (!c) throw new KvasirError('INVALID_ARGUMENT', `column ${column} of a sequence of ${s.columns.length}`)
    return c
  }

  #checkArena(arena: number): void {
    if (!this.arenas[arena])
      throw new KvasirError('INVALID_ARGUMENT', `arena ${arena} of a store of ${this.arenas.length}`)
  }
}

/** Of a block that two layers share: lengths of 32 keys and 32 values, f16. */
const SCALE_BYTES = PAGE_CELLS * 2 * 2

function checkCount(what: string, n: number): void {
  if (!(Number.isSafeInteger(n) && n >= 0))
    throw new KvasirError('INVALID_ARGUMENT', `${what} ${n}: must be a whole number from 0 up`)
}

function checkCells(c: Column, cells: readonly number[]): void {
  for (const cell of cells)
    if (!(Number.isInteger(cell) && cell >= 0 && cell < c.end))
      throw new KvasirError('INVALID_ARGUMENT', `cell ${cell} of a column of ${c.end}`)
}

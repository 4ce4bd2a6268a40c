/**
 * A column lists the cells that a sequence's rows lie in: blocks of 32 cells, and which position each cell holds. A uniform
 * sequence has one column, over whole pages, that holds for all layers and heads; a ragged one has a column per layer and
 * head.
 *
 *   blocks      [ page 7 ][ page 8 ][ page 3 ]
 *   positions   0 ... 31  32 - 34 .  64 65 - -      -1: a hole, or not used yet
 *                                         ^ end     the next row goes here
 *
 * Holes belong to the column, not to the page: two sequences can share a page and have dropped different rows of it.
 *
 * Blocks of several arenas may stand in any order, but rows are only pushed into blocks of the sequence's own arena. Rows
 * that move to another arena go into blocks that are put in front of the one that `end` lies in, so `end` moves on with it:
 *
 *   blocks      [ own 7  ][ other 2 ][ own 3  ]
 *   positions   0 ... 31  32 33 - -   40 - - -      `other 2` is filled partly: its holes lie below `end`, and only later
 *                                       ^ end       moves into that arena (or a compaction) fill them
 *
 * So a cell is only good until the next drop, compaction or move; positions last.
 */
import type { PageId } from '../contract/units.ts'
import { PAGE_CELLS } from './arena.ts'

export interface BlockRef {
  /** Index of the arena in the store. */
  readonly arena: number
  readonly page: PageId
  /** Layer whose block of the page it is, where two layers share it; absent: the column's own. */
  readonly layer?: number
}

/** What a row carries besides its position. */
export const MARKS = ['mass', 'keyScale', 'valueScale'] as const
export type Mark = (typeof MARKS)[number]

/** Consecutive cells of one arena: [from, to). */
export interface Run {
  readonly arena: number
  readonly from: number
  readonly to: number
}

/** More rows than this are not taken out of the order one by one. */
const MOST_ORDERED_DROPS = 8

/** The order with one more cell behind it; null when its row is not the newest. */
function appended(order: Int32Array, positions: Int32Array, cell: number): Int32Array | null {
  const n = order.length
  if (n > 0 && positions[order[n - 1]!]! >= positions[cell]!) return null
  const room = new Int32Array(order.buffer)
  const grown = room.length > n ? room : new Int32Array(2 * n + PAGE_CELLS)
  if (grown !== room) grown.set(order)
  grown[n] = cell
  return grown.subarray(0, n + 1)
}

export class Column {
  readonly blocks: BlockRef[] = []
  /** Position of the row in each cell; -1: none. Longer than needed. */
  #positions = new Int32Array(8 * PAGE_CELLS).fill(-1)
  /** Marks of the row in each cell, where some row's is not 1; as long as {@link #positions}. */
  #marks = new Map<Mark, Float32Array>()
  /** Cells up to here were used; the next row goes here. */
  #end = 0
  #rows = 0
  #runs: readonly Run[] | null = null
  /** Cells of the rows in the order of their positions, where it is known; policies ask for it row after row. */
  #order: Int32Array | null = null
  /** Their positions, which stay the same wherever rows move to; null: to be worked out. */
  #ordered: Int32Array | null = null

  get end(): number {
    return this.#end
  }

  /** Rows that are there: cells that are no holes. */
  get rows(): number {
    return this.#rows
  }

  /** Cells of all blocks. */
  get cells(): number {
    return this.blocks.length * PAGE_CELLS
  }

  /** Position in each cell of its blocks, -1 for none; [cells]. Not a copy. */
  get positions(): Int32Array {
    return this.#positions.subarray(0, this.cells)
  }

  /**
   * Of the row in each cell: how many rows it stands for (`mass`), by what its key and its value are multiplied when read; [cells].
   * Null: 1 for all. Not a copy.
   */
  marks(mark: Mark): Float32Array | null {
    return this.#marks.get(mark)?.subarray(0, this.cells) ?? null
  }

  setMark(mark: Mark, cell: number, value: number): void {
    let marks = this.#marks.get(mark)
    if (!marks && value !== 1) this.#marks.set(mark, (marks = new Float32Array(this.#positions.length).fill(1)))
    if (marks) marks[cell] = value
  }

  /** Gives a cell the marks of another one's row, of this column or another. */
  copyMarks(from: Column, fromCell: number, cell: number): void {
    for (const mark of MARKS) this.setMark(mark, cell, from.#marks.get(mark)?.[fromCell] ?? 1)
  }

  addBlock(block: BlockRef): void {
    this.blocks.push(block)
    this.#runs = null
    if (this.cells <= this.#positions.length) return
    const grown = new Int32Array(2 * this.#positions.length).fill(-1)
    grown.set(this.#positions)
    this.#positions = grown
    for (const [mark, old] of this.#marks) {
      const marks = new Float32Array(grown.length).fill(1)
      marks.set(old)
      this.#marks.set(mark, marks)
    }
  }

  /** Puts blocks without rows in front of block `index`; the cells from there on move up. The first of their cells. */
  insertBlocks(index: number, blocks: readonly BlockRef[]): number {
    this.#order = null
    const first = index * PAGE_CELLS
    const size = blocks.length * PAGE_CELLS
    const last = this.cells
    for (const b of blocks) this.addBlock(b) // makes room in `positions`
    this.blocks.splice(last / PAGE_CELLS)
    this.blocks.splice(index, 0, ...blocks)
    this.#positions.copyWithin(first + size, first, last)
    this.#positions.fill(-1, first, first + size)
    for (const marks of this.#marks.values()) marks.copyWithin(first + size, first, last).fill(1, first, first + size)
    if (this.#end >= first) this.#end += size
    return first
  }

  /** Puts the blocks into another order, in which the next row goes to `end`. Those that are not in it, and hold no rows, are given. */
  arrange(order: readonly number[], end: number): BlockRef[] {
    if (order.every((from, to) => from === to)) return this.#cut(order.length, end)
    this.#order = null
    const old = this.#positions.slice()
    const oldMarks = new Map([...this.#marks].map(([mark, m]) => [mark, m.slice()]))
    const blocks = this.blocks.slice()
    const kept = new Set(order)
    this.#positions.fill(-1)
    for (const marks of this.#marks.values()) marks.fill(1)
    for (const [to, from] of order.entries()) {
      const cells = [from * PAGE_CELLS, (from + 1) * PAGE_CELLS] as const
      this.#positions.set(old.subarray(...cells), to * PAGE_CELLS)
      for (const [mark, m] of oldMarks) this.#marks.get(mark)!.set(m.subarray(...cells), to * PAGE_CELLS)
    }
    this.blocks.splice(0, blocks.length, ...order.map((i) => blocks[i]!))
    this.#end = end
    this.#runs = null
    return blocks.filter((_, i) => !kept.has(i))
  }

  /** Takes out the blocks from `blocks` on, which hold no rows, and gives them; the next row goes to `end`. */
  #cut(blocks: number, end: number): BlockRef[] {
    this.#end = end
    this.#runs = null
    return this.blocks.splice(blocks)
  }

  /**
   * Rows move among the cells of some blocks, given by index: the first of them gets the row of cell `from[0]`, and so on; cells for
   * which there is none are empty. The last block must be the one that `end` lies in, if that is among them.
   */
  permute(blocks: readonly number[], from: readonly number[]): void {
    const old = this.#positions.slice()
    const oldMarks = new Map([...this.#marks].map(([mark, m]) => [mark, m.slice()]))
    const cells = blocks.flatMap((b) => Array.from({ length: PAGE_CELLS }, (_, k) => b * PAGE_CELLS + k))
    for (const [i, cell] of cells.entries()) {
      this.#positions[cell] = i < from.length ? old[from[i]!]! : -1
      for (const [mark, m] of oldMarks) this.#marks.get(mark)![cell] = i < from.length ? m[from[i]!]! : 1
    }
    this.#order = null
    const last = blocks.at(-1)
    if (last === undefined || (last + 1) * PAGE_CELLS < this.#end) return
    let end = this.#end
    while (end > 0 && this.#positions[end - 1]! < 0) end--
    this.#end = end
  }

  /** The next row goes to `end` or behind it: the cells between stay holes. */
  skipTo(end: number): void {
    this.#end = Math.max(this.#end, end)
  }

  /** Takes out the last block, of which no cell may be used. */
  popBlock(): BlockRef {
    this.#runs = null
    return this.blocks.pop()!
  }

  /** Puts another block in place of block `index`; its cells keep their positions. */
  replaceBlock(index: number, block: BlockRef): void {
    this.blocks[index] = block
    this.#runs = null
  }

  /** A row of position `position` in the next cell, whose block must be there; the cell. */
  push(position: number): number {
    const cell = this.#end++
    this.#ordered = null
    this.#positions[cell] = position
    this.#rows++
    if (this.#order) this.#order = appended(this.#order, this.#positions, cell)
    return cell
  }

  /** Makes a cell a hole. Its block stays until {@link takeEmpty}. */
  drop(cell: number): void {
    if (this.#positions[cell]! < 0) return
    this.#ordered = null
    const at = this.#orderOf(this.#positions[cell]!)
    if (at >= 0 && this.#order![at] === cell) {
      this.#order!.copyWithin(at, at + 1)
      this.#order = this.#order!.subarray(0, -1)
    }
    this.#positions[cell] = -1
    for (const marks of this.#marks.values()) marks[cell] = 1
    this.#rows--
  }

  /** Makes many cells holes. */
  dropAll(cells: readonly number[]): void {
    // Taking them out of the order one by one would cost more than to work it out again.
    if (cells.length > MOST_ORDERED_DROPS) this.#order = null
    for (const cell of cells) this.drop(cell)
  }

  /** Cells of its rows in the order of their positions. Not a copy: good until the next change. */
  get byPosition(): Int32Array {
    if (this.#order) return this.#order
    const positions = this.#positions
    const cells = Int32Array.from(this.usedCells())
    let ascends = true
    for (let i = 1; i < cells.length && ascends; i++) ascends = positions[cells[i]!]! > positions[cells[i - 1]!]!
    if (!ascends) cells.sort((a, b) => positions[a]! - positions[b]!)
    return (this.#order = cells)
  }

  /** Positions of its rows, ascending. Not a copy; a change of the rows makes a new list and leaves this one as it is. */
  get orderedPositions(): Int32Array {
    if (this.#ordered) return this.#ordered
    const positions = this.#positions
    const out = this.byPosition.slice()
    for (let i = 0; i < out.length; i++) out[i] = positions[out[i]!]!
    return (this.#ordered = out)
  }

  /** Where a position stands in the order; below 0: it is not there, or the order is not known. */
  #orderOf(position: number): number {
    const order = this.#order
    if (!order) return -1
    let from = 0
    let to = order.length
    while (from < to) {
      const middle = (from + to) >> 1
      if (this.#positions[order[middle]!]! < position) from = middle + 1
      else to = middle
    }
    return from < order.length && this.#positions[order[from]!] === position ? from : -1
  }

  /** Says which row a cell holds; one that was a hole becomes a row. */
  setPosition(cell: number, position: number): void {
    this.#ordered = null
    // A row that moves: the cell that it leaves is dropped next.
    const at = this.#positions[cell]! < 0 ? this.#orderOf(position) : -1
    if (at >= 0) this.#order![at] = cell
    else this.#order = null
    if (this.#positions[cell]! < 0) this.#rows++
    this.#positions[cell] = position
    this.#end = Math.max(this.#end, cell + 1)
  }

  /** Ends the used cells at `end`: those behind are free for rows again. */
  truncate(end: number): void {
    for (let cell = end; cell < this.#end; cell++) this.drop(cell)
    this.#end = Math.min(this.#end, end)
  }

  /** Takes out the blocks that only hold holes, and gives them. Those that rows can still go into stay. */
  takeEmpty(): BlockRef[] {
    const gone: BlockRef[] = []
    const kept: BlockRef[] = []
    let at = 0
    let end = this.#end
    for (const [i, block] of this.blocks.entries()) {
      const first = i * PAGE_CELLS
      let keep = this.#end < first + PAGE_CELLS
      for (let c = first; c < first + PAGE_CELLS; c++) keep ||= this.#positions[c]! >= 0
      if (keep) {
        if (at !== first) {
          this.#order = null
          this.#positions.copyWithin(at, first, first + PAGE_CELLS)
          for (const marks of this.#marks.values()) marks.copyWithin(at, first, first + PAGE_CELLS)
        }
        kept.push(block)
        at += PAGE_CELLS
      } else {
        gone.push(block)
        end -= PAGE_CELLS
      }
    }
    if (!gone.length) return gone
    this.blocks.splice(0, this.blocks.length, ...kept)
    this.#positions.fill(-1, at)
    for (const marks of this.#marks.values()) marks.fill(1, at)
    this.#end = end
    this.#runs = null
    return gone
  }

  /** Takes out the blocks behind the last used cell, and gives them. */
  takeUnused(): BlockRef[] {
    this.#runs = null
    return this.blocks.splice(Math.ceil(this.#end / PAGE_CELLS))
  }

  /** The cell of its arena in which logical cell `cell` lies. */
  physical(cell: number): number {
    return this.blocks[Math.floor(cell / PAGE_CELLS)]!.page * PAGE_CELLS + (cell % PAGE_CELLS)
  }

  /** Its blocks as runs of consecutive cells, in order. */
  get runs(): readonly Run[] {
    if (this.#runs) return this.#runs
    const runs: { arena: number; from: number; to: number }[] = []
    for (const { arena, page } of this.blocks) {
      const last = runs.at(-1)
      if (last && last.arena === arena && last.to === page * PAGE_CELLS) last.to += PAGE_CELLS
      else runs.push({ arena, from: page * PAGE_CELLS, to: (page + 1) * PAGE_CELLS })
    }
    return (this.#runs = runs)
  }

  /** Cells that hold a row, in order. */
  usedCells(): number[] {
    const out: number[] = []
    for (let cell = 0; cell < this.#end; cell++) if (this.#positions[cell]! >= 0) out.push(cell)
    return out
  }

  clone(): Column {
    const copy = new Column()
    copy.blocks.push(...this.blocks)
    copy.#positions = this.#positions.slice()
    copy.#marks = new Map([...this.#marks].map(([mark, m]) => [mark, m.slice()]))
    copy.#order = this.#order?.slice() ?? null
    copy.#end = this.#end
    copy.#rows = this.#rows
    return copy
  }
}

/**
 * Rows change places within a sequence, so that they take as few blocks as they can or lie side by side. The order of rows in a
 * column is of no meaning: each carries its position.
 */
import { KvasirError } from '../contract/errors.ts'
import { PAGE_CELLS } from './arena.ts'
import { type BlockRef, Column } from './column.ts'
import type { KvMemory } from './memory.ts'
import { permuteRows } from './permute.ts'
import type { KvSequence } from './sequence.ts'
import { checkCells, isSealed, LEAST_EXTENT, ownAll, placeOf, release } from './tables.ts'

/** Of a row, between two cells of a column. */
type Move = readonly [from: number, into: number]

/**
 * Closes the holes of a column by moving its last rows into them. Shared blocks are copied first. Rows stay in their arena, and in
 * blocks that are written as a whole where they are; blocks of the sequence's own arena come last, so that it grows on in the last
 * of them.
 * @throws KvasirError KV_BUDGET when a copy finds no room; then nothing has changed
 */
export function compact(memory: KvMemory, s: KvSequence, column: number): void {
  const c = s.columns[column]!
  const { moves, order, end } = planCompaction(memory, s, c)
  ownAll(memory, s, new Map([[column, moves.map(([, into]) => Math.floor(into / PAGE_CELLS))]]))
  for (const [from, into] of moves) moveRow(memory, s, column, from, into)
  for (const b of c.arrange(order, end)) release(memory, s, column, b)
}

/** @returns `order`: blocks that hold rows then, by their indices now; `end`: the column's end then */
function planCompaction(
  memory: KvMemory,
  s: KvSequence,
  c: Column,
): { readonly moves: readonly Move[]; readonly order: readonly number[]; readonly end: number } {
  const used = c.blocks.slice(0, Math.ceil(c.end / PAGE_CELLS))
  const which = (holds: (b: BlockRef) => boolean) => [...used.keys()].filter((i) => holds(used[i]!))
  const moves: Move[] = []
  const own: number[] = []
  const others = which((b) => isSealed(memory, b))
  let end = others.length * PAGE_CELLS
  const open = used.filter((b) => !isSealed(memory, b))
  for (const arena of new Set(open.map((b) => b.arena))) {
    const blocks = which((b) => b.arena === arena && !isSealed(memory, b))
    const closed = closeUp(c.positions, blocks)
    moves.push(...closed.moves)
    const filled = blocks.slice(0, Math.ceil(closed.rows / PAGE_CELLS))
    if (arena === s.arena) own.push(...filled)
    else others.push(...filled)
    end += arena === s.arena ? closed.rows : filled.length * PAGE_CELLS
  }
  return { moves, order: [...others, ...own], end }
}

/** Moves after which all rows of some blocks lie in front of all their holes, and how many rows they are. */
function closeUp(positions: Int32Array, blocks: readonly number[]): { moves: Move[]; rows: number } {
  const cellAt = (i: number) => blocks[Math.floor(i / PAGE_CELLS)]! * PAGE_CELLS + (i % PAGE_CELLS)
  const cells = blocks.length * PAGE_CELLS
  // Policies that plan after each row leave one hole among thousands of rows.
  const holeFrom = (i: number): number => {
    while (i < cells) {
      const at = cellAt(i)
      const left = PAGE_CELLS - (i % PAGE_CELLS)
      for (let k = 0; k < left; k++) if (positions[at + k]! < 0) return i + k
      i += left
    }
    return cells
  }
  const moves: Move[] = []
  let into = 0
  let from = cells - 1
  for (; ; into++, from--) {
    into = Math.min(holeFrom(into), from + 1)
    while (from >= into && positions[cellAt(from)]! < 0) from--
    if (into >= from) break
    moves.push([cellAt(from), cellAt(into)])
  }
  // All rows lie before `into` now.
  return { moves, rows: into }
}

/** Between cells of one arena, of which nobody else holds the second. */
function moveRow(memory: KvMemory, s: KvSequence, column: number, from: number, into: number): void {
  const c = s.columns[column]!
  const arena = memory.rowArena(c.blocks[Math.floor(from / PAGE_CELLS)]!.arena)
  const { layers, kvHeads } = memory.dims
  const move = (layer: number, head: number) => arena.copyRow(layer, head, c.physical(from), c.physical(into))
  if (s.layout === 'ragged') move(Math.floor(column / kvHeads), column % kvHeads)
  else for (let l = 0; l < layers; l++) for (let h = 0; h < kvHeads; h++) move(l, h)
  c.setPosition(into, c.positions[from]!)
  c.copyMarks(c, from, into)
  c.drop(from)
}

/**
 * Puts rows of a ragged sequence side by side at the front of the column's blocks, in the order in which they are given, and all
 * others behind them: blocks that are written as a whole stay where they are. Shared blocks are copied first.
 * @param cells of rows that lie in the sequence's own arena, as many as fill whole blocks
 * @returns the blocks that they are in now
 * @throws KvasirError INVALID_ARGUMENT, KV_BUDGET; then nothing has changed
 */
export function bringTogether(memory: KvMemory, s: KvSequence, column: number, cells: readonly number[]): number[] {
  const c = s.columns[column]!
  checkCells(c, cells)
  if (s.layout === 'uniform' || cells.length % PAGE_CELLS)
    throw new KvasirError('INVALID_ARGUMENT', `${cells.length} rows of a ${s.layout} sequence fill no whole blocks`)
  const used = c.blocks.slice(0, Math.ceil(c.end / PAGE_CELLS))
  const open = [...used.keys()].filter((i) => used[i]!.arena === s.arena && !isSealed(memory, used[i]!))
  const chosen = new Set(cells)
  const others = open
    .flatMap((i) => Array.from({ length: PAGE_CELLS }, (_, k) => i * PAGE_CELLS + k))
    .filter((cell) => c.positions[cell]! >= 0 && !chosen.has(cell))
  ownAll(memory, s, new Map([[column, open]]))
  const { layer, head } = placeOf(memory, column, used[open[0]!]!)
  const pages = open.map((i) => c.blocks[i]!.page)
  const order = [...cells, ...others]
  const place = new Map(open.map((block, k) => [block, k]))
  const physical = order.map((cell) => place.get(Math.floor(cell / PAGE_CELLS))! * PAGE_CELLS + (cell % PAGE_CELLS))
  permuteRows(memory.rowArena(s.arena), layer, head, pages, physical)
  c.permute(open, order)
  return open.slice(0, cells.length / PAGE_CELLS)
}

/**
 * Copies the rows that a ragged sequence keeps into fresh pages, side by side in the order of their positions, the same pages for
 * all layers and heads: attention then reads them where they lie. All else that it held is released.
 * @param kept cells by column, in the order of their positions, one at least in some column
 * @returns false where there is no such run of free pages, or rows lie in several arenas: then nothing has changed
 */
export function rewrite(memory: KvMemory, s: KvSequence, kept: readonly ArrayLike<number>[]): boolean {
  if (s.layout === 'uniform') throw new KvasirError('INVALID_ARGUMENT', 'only ragged sequences are rewritten')
  for (const [i, cells] of kept.entries()) checkCells(s.columns[i]!, Array.from(cells))
  const pages = Math.ceil(kept.reduce((most, cells) => Math.max(most, cells.length), 0) / PAGE_CELLS)
  if (s.columns.some((c) => c.blocks.some((b) => b.arena !== s.arena || isSealed(memory, b)))) return false
  const run = memory.takeRun(s.arena, pages, LEAST_EXTENT)
  if (!run) return false
  for (const { arena, page } of run) memory.pools[arena]!.splitPage(page)
  const arena = memory.rowArena(s.arena)
  const { kvHeads } = memory.dims
  for (const [i, old] of s.columns.entries()) {
    const [layer, head] = [Math.floor(i / kvHeads), i % kvHeads]
    const fresh = new Column()
    const blocks = Math.ceil(kept[i]!.length / PAGE_CELLS)
    for (const b of run.slice(0, blocks)) fresh.addBlock(b)
    for (const b of run.slice(blocks)) release(memory, s, i, b)
    const { positions } = old
    for (let k = 0; k < kept[i]!.length; k++) {
      const from = kept[i]![k]!
      const into = fresh.push(positions[from]!)
      fresh.copyMarks(old, from, into)
      arena.copyRow(layer, head, old.physical(from), fresh.physical(into))
    }
    for (const b of old.blocks) release(memory, s, i, b)
    s.columns[i] = fresh
  }
  return true
}

/**
 * The blocks in a sequence's table: which may be written, and how it takes, holds, copies and releases them. A uniform table
 * holds whole pages, a ragged one single blocks: the functions here do what is right for either.
 */
import { KvasirError, showBytes } from '../contract/errors.ts'
import type { Range } from '../contract/units.ts'
import { PAGE_CELLS } from './arena.ts'
import type { BlockRef, Column } from './column.ts'
import type { KvMemory } from './memory.ts'
import type { KvSequence } from './sequence.ts'

/** Pages that a sequence claims when it has become longer than was expected. */
export const LEAST_EXTENT = 8

/** Ways back from what was done so far, to be gone from the last to the first. */
type Undo = (() => void)[]

// which is which -----------------------------------------------------------------------------------------------------------

/** Indices of the columns that hold for some layers, or for all. */
export function columnsOf(memory: KvMemory, s: KvSequence, layers?: Range): number[] {
  const all = [...s.columns.keys()]
  if (!layers) return all
  if (s.layout === 'uniform')
    throw new KvasirError('INVALID_ARGUMENT', 'a uniform sequence has the same rows in all layers')
  return all.slice(layers.from * memory.dims.kvHeads, layers.to * memory.dims.kvHeads)
}

/** Layer and head of a ragged table's block. */
export function placeOf(memory: KvMemory, column: number, b: BlockRef): { layer: number; head: number } {
  const { kvHeads } = memory.dims
  return { layer: b.layer ?? Math.floor(column / kvHeads), head: column % kvHeads }
}

/** Which of its page's blocks a ragged column's block is. */
export function partOf(memory: KvMemory, column: number, b: BlockRef): number {
  const { layer, head } = placeOf(memory, column, b)
  return layer * memory.dims.kvHeads + head
}

/** Whether its rows can be dropped, but neither moved nor written. */
export function isSealed(memory: KvMemory, b: BlockRef): boolean {
  return b.layer !== undefined || memory.arenas[b.arena]!.kind === 'codes'
}

/** Whether somebody else holds it, or its page, too. */
export function isShared(memory: KvMemory, s: KvSequence, column: number, b: BlockRef): boolean {
  return s.layout === 'uniform' ? memory.isPageShared(b) : memory.isPartShared(b, partOf(memory, column, b))
}

/** Whether new rows can go into a block as it is. Those behind the end can be shared too, once rows were taken back. */
export function isWritable(memory: KvMemory, s: KvSequence, column: number, b: BlockRef | undefined): boolean {
  return b !== undefined && b.arena === s.arena && !isSealed(memory, b) && !isShared(memory, s, column, b)
}

/** Where the next rows start, and the blocks [first, last) of a column that they go into. */
export function blocksWritten(
  memory: KvMemory,
  s: KvSequence,
  c: Column,
  rows: number,
): { start: number; first: number; last: number } {
  if (rows === 0) return { start: c.end, first: 0, last: 0 }
  // The rest of a block of another arena, or of one that is written as a whole, is left empty.
  const b = c.blocks[Math.floor(c.end / PAGE_CELLS)]
  const start = b && (b.arena !== s.arena || isSealed(memory, b)) ? Math.ceil(c.end / PAGE_CELLS) * PAGE_CELLS : c.end
  return { start, first: Math.floor(start / PAGE_CELLS), last: Math.ceil((start + rows) / PAGE_CELLS) }
}

/** @throws KvasirError INVALID_ARGUMENT */
export function checkCells(c: Column, cells: readonly number[]): void {
  for (const cell of cells)
    if (!(Number.isInteger(cell) && cell >= 0 && cell < c.end))
      throw new KvasirError('INVALID_ARGUMENT', `cell ${cell} of a column of ${c.end}`)
}

// taking and releasing -------------------------------------------------------------------------------------------------------

/** A free block, behind page `after` if that can be had. @throws KvasirError KV_BUDGET */
export function take(memory: KvMemory, s: KvSequence, column: number, arena: number, after: number | null): BlockRef {
  const extent = arena === s.extentArena ? s.extent : null
  const taken = s.layout === 'uniform' ? memory.takePage(arena, after, extent) : memory.takeBlock(arena, column, after)
  if (taken) return taken
  const { pages, bytes } = memory.home
  throw new KvasirError(
    'KV_BUDGET',
    `no page is free: all ${pages} (${showBytes(bytes)}) are held. Lower maxTokens, send fewer requests at once, or load ` +
      'with more kvMemory',
    { pages, bytes },
  )
}

/** A free block, behind block `index` of the column if that can be had. @throws KvasirError KV_BUDGET */
function takeBehind(memory: KvMemory, s: KvSequence, column: number, arena: number, index: number): BlockRef {
  const before = s.columns[column]!.blocks[index]
  const follows = before && before.arena === arena && before.layer === undefined
  return take(memory, s, column, arena, follows ? before.page : null)
}

export function hold(memory: KvMemory, s: KvSequence, column: number, b: BlockRef): void {
  if (s.layout === 'uniform') memory.holdPage(b)
  else memory.holdBlock(b, partOf(memory, column, b))
}

export function release(memory: KvMemory, s: KvSequence, column: number, b: BlockRef): void {
  if (s.layout === 'uniform') memory.releasePage(b)
  else memory.releaseBlock(b, partOf(memory, column, b))
}

/** Claims room to grow, behind block `after` if it can be; again when what was claimed is used up. */
function openExtent(memory: KvMemory, s: KvSequence, after: BlockRef | undefined): void {
  if (s.layout !== 'uniform' || s.arena !== s.extentArena) return
  const pool = memory.pools[s.extentArena]!
  if (s.extent && pool.hasFree(s.extent)) return
  closeExtent(memory, s)
  const missing = Math.ceil(s.expectedRows / PAGE_CELLS) - s.columns[0]!.blocks.length
  if (s.expectedRows > 0)
    s.extent = pool.openExtent(Math.max(missing, LEAST_EXTENT), after?.arena === s.arena ? after.page : null)
}

export function closeExtent(memory: KvMemory, s: KvSequence): void {
  if (s.extent) memory.pools[s.extentArena]!.closeExtent(s.extent)
  s.extent = null
}

// before rows are written ----------------------------------------------------------------------------------------------------

/** Gives some columns blocks of their own for the next `rows` rows. @throws KvasirError KV_BUDGET; then nothing has changed. */
export function makeWritable(memory: KvMemory, s: KvSequence, columns: readonly number[], rows: number): void {
  if (rows === 0) return
  const undo: Undo = []
  const { extent } = s
  try {
    for (const i of columns) {
      const column = s.columns[i]!
      const { first, last } = blocksWritten(memory, s, column, rows)
      for (let index = first; index < last; index++) {
        const old = column.blocks[index]
        if (isWritable(memory, s, i, old)) continue
        if (!old) {
          openExtent(memory, s, column.blocks[index - 1])
          column.addBlock(takeBehind(memory, s, i, s.arena, index - 1))
          undo.push(() => release(memory, s, i, column.popBlock()))
        } else replace(memory, s, i, index, s.arena, index * PAGE_CELLS < column.end, undo)
      }
    }
  } catch (error) {
    for (const back of undo.reverse()) back()
    closeExtent(memory, s)
    s.extent = extent && memory.pools[s.extentArena]!.claimExtent(extent)
    throw error
  }
}

/**
 * Makes sure that nobody else holds these blocks, given by column: copies them if need be, all or none.
 * @throws KvasirError KV_BUDGET; then nothing has changed
 */
export function ownAll(memory: KvMemory, s: KvSequence, wanted: ReadonlyMap<number, Iterable<number>>): void {
  const undo: Undo = []
  try {
    for (const [column, indices] of wanted)
      for (const index of new Set(indices)) {
        const b = s.columns[column]!.blocks[index]!
        if (isShared(memory, s, column, b)) replace(memory, s, column, index, b.arena, true, undo)
      }
  } catch (error) {
    for (const back of undo.reverse()) back()
    throw error
  }
}

/** Puts a fresh block in place of block `index`, with the same bytes if wanted; `undo` gets the way back. */
function replace(
  memory: KvMemory,
  s: KvSequence,
  column: number,
  index: number,
  arena: number,
  copy: boolean,
  undo: Undo,
): void {
  const c = s.columns[column]!
  const old = c.blocks[index]!
  const fresh = takeBehind(memory, s, column, arena, index - 1)
  if (copy) copyBlock(memory, s, column, old, fresh)
  c.replaceBlock(index, fresh)
  release(memory, s, column, old)
  undo.push(() => {
    c.replaceBlock(index, old)
    hold(memory, s, column, old)
    release(memory, s, column, fresh)
  })
}

/** Between blocks of one arena. */
function copyBlock(memory: KvMemory, s: KvSequence, column: number, from: BlockRef, into: BlockRef): void {
  const arena = memory.rowArena(from.arena)
  if (s.layout === 'uniform') {
    arena.copyPage(from.page, into.page)
    return
  }
  const layer = Math.floor(column / memory.dims.kvHeads)
  const head = column % memory.dims.kvHeads
  arena.writeBlock(layer, head, into.page, arena.readBlock(layer, head, from.page))
}

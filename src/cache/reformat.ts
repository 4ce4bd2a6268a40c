/**
 * Moves rows of a ragged sequence into other formats: codes, other cache types, blocks that two layers share. Rows are given by
 * their positions, since cells are only good until something moves.
 */
import { KvasirError } from '../contract/errors.ts'
import { BLOCK_ROWS, type RowFormat } from '../contract/format.ts'
import type { SharedRows } from '../contract/policy.ts'
import type { Runner } from '../ggml/backend.ts'
import { isQuantized } from '../ggml/types.ts'
import { Arena, pageBytes } from './arena.ts'
import { CodeArena, codePageBytes, type KeysOrValues } from './code-arena.ts'
import { type EncodedBlock, encode } from './codes.ts'
import { type BlockRef, type Column, MARKS, type Mark } from './column.ts'
import { sharedDirections } from './directions.ts'
import { readRows, requantize, writeRows } from './rows.ts'
import { type KvSequence, tierKey } from './sequence.ts'
import type { KvStore } from './store.ts'

/** The arena for rows in a format; its index. @throws KvasirError INVALID_ARGUMENT, OUT_OF_MEMORY */
export function formatArena(store: KvStore, format: RowFormat): number {
  return store.borrower(JSON.stringify(format), () => makeArena(store, format))
}

function makeArena(store: KvStore, format: RowFormat): Arena | CodeArena {
  const { dims, home, device } = store
  if (format.kind === 'codes') return new CodeArena(format, dims, store.pagesOfAll(codePageBytes(format, dims)), device)
  const types = {
    keyType: format.keys,
    valueType: format.values,
    valuesTransposed: home.shape.valuesTransposed && !isQuantized(format.values),
  }
  return new Arena({ ...dims, ...types, pages: store.pagesOfAll(pageBytes({ ...dims, ...types })) }, device)
}

/** Rows of a column that go to an arena. */
export interface RowMove {
  readonly column: number
  /** Ascending, of rows that are in the sequence's own arena. */
  readonly positions: Int32Array
  readonly arena: number
  readonly balance: Float32Array | null
  readonly seed: number
}

/** Rows on their way: they are in no block. */
interface EncodedRows {
  readonly move: RowMove
  readonly blocks: readonly Readonly<Record<KeysOrValues, EncodedBlock>>[]
  /** [rows] each; those that are missing are 1. */
  readonly marks: ReadonlyMap<Mark, Float32Array>
}

/**
 * Stores rows in other arenas. Those that become codes are encoded first, and leave their blocks before they get new ones: no more room
 * is needed than becomes free.
 * @param makeRoom tries to make so many pages of the first arena free
 * @throws KvasirError INVALID_ARGUMENT; KV_BUDGET where cache types find no room beside the rows, or blocks for codes are gone: rows
 *   may be lost then
 */
export function moveRows(
  runner: () => Runner,
  store: KvStore,
  s: KvSequence,
  moves: readonly RowMove[],
  makeRoom: (pages: number) => void,
): void {
  const coded = moves.filter((m) => store.arenas[m.arena]!.kind === 'codes')
  const encoded = coded.map((m) => encodeRows(runner(), store, s, m))
  for (const { column, positions } of coded) store.drop(s, column, cellsAt(s.columns[column]!, positions))
  for (const column of new Set(coded.map((m) => m.column))) closeHoles(store, s, column)
  const arenas = [...new Set(moves.map((m) => m.arena))]
  makeRoom(arenas.reduce((sum, arena) => sum + store.pagesToBorrow(arena, mostBlocks(moves, arena)), 0))
  for (const rows of encoded) put(store, s, rows)
  for (const m of moves)
    if (store.arenas[m.arena]!.kind === 'rows')
      requantize(runner(), store, s, m.column, cellsAt(s.columns[m.column]!, m.positions), m.arena)
}

/** Blocks of all heads lie in the same pages. */
function mostBlocks(moves: readonly RowMove[], arena: number): number {
  const blocks = moves.filter((m) => m.arena === arena).map((m) => Math.ceil(m.positions.length / BLOCK_ROWS))
  return Math.max(0, ...blocks)
}

function encodeRows(runner: Runner, store: KvStore, s: KvSequence, move: RowMove): EncodedRows {
  const { column, positions, balance, seed } = move
  const { format } = store.arenas[move.arena] as CodeArena
  const { kvHeads, headDim: d } = store.dims
  const c = s.columns[column]!
  const cells = cellsAt(c, positions)
  const rows = readRows(runner, store, s, Math.floor(column / kvHeads), column % kvHeads, cells)
  const key = tierKey(column, move.arena)
  const tier = s.tiers.get(key)
  const keys = encode(rows.keys, format.keys, d, { tier: tier?.keys ?? null, balance, seed })
  const values = encode(rows.values, format.values, d, { tier: tier?.values ?? null, balance: null, seed })
  if (!tier) s.tiers.set(key, { keys: keys.tier, values: values.tier })
  const marks = new Map<Mark, Float32Array>()
  for (const mark of MARKS) {
    const own = c.marks(mark)
    if (own)
      marks.set(
        mark,
        Float32Array.from(cells, (cell) => own[cell]!),
      )
  }
  return { move, blocks: keys.blocks.map((block, i) => ({ keys: block, values: values.blocks[i]! })), marks }
}

function put(store: KvStore, s: KvSequence, { move: { column, positions, arena }, blocks, marks }: EncodedRows): void {
  const { kvHeads } = store.dims
  const c = s.columns[column]!
  const into = store.arenas[arena] as CodeArena
  const first = store.insertBlocks(s, column, blocks.length, arena)
  for (const [i, block] of blocks.entries()) {
    const { page } = c.blocks[first / BLOCK_ROWS + i]!
    into.write(Math.floor(column / kvHeads), column % kvHeads, page, block)
  }
  for (const [i, position] of positions.entries()) c.setPosition(first + i, position)
  for (const [mark, own] of marks) for (const [i, value] of own.entries()) c.setMark(mark, first + i, value)
}

/**
 * Closes the holes of a column. Blocks that others share are copied for it; where there is no room for copies, the holes stay until the
 * next time.
 */
export function closeHoles(store: KvStore, sequence: KvSequence, column: number): void {
  try {
    store.compact(sequence, column)
  } catch (error) {
    if (!(error instanceof KvasirError && error.code === 'KV_BUDGET')) throw error
  }
}

/**
 * Makes two layers share one direction for some of their rows, in the upper one's blocks.
 * @param positions ascending, as many as fill whole blocks, of rows that are in the sequence's own arena
 * @throws KvasirError INVALID_ARGUMENT, KV_BUDGET where blocks that others hold, too, find no room for their copies
 */
export function shareRows(
  runner: Runner,
  store: KvStore,
  s: KvSequence,
  { lower, upper, t }: Pick<SharedRows, 'lower' | 'upper' | 't'>,
  head: number,
  positions: ArrayLike<number>,
): void {
  if (positions.length === 0) return
  const { kvHeads, headDim: d } = store.dims
  const [below, above] = [lower * kvHeads + head, upper * kvHeads + head]
  const rowsOf = (layer: number, column: number) =>
    readRows(runner, store, s, layer, head, cellsAt(s.columns[column]!, positions))
  const [a, b] = [rowsOf(lower, below), rowsOf(upper, above)]
  const keys = sharedDirections(a.keys, b.keys, d, t)
  const values = sharedDirections(a.values, b.values, d, t)

  const into = s.columns[above]!
  const indices = store.bringTogether(s, above, cellsAt(into, positions))
  const directions = { keys: keys.directions, values: values.directions }
  writeRows(runner, store, s, upper, head, cellsAt(into, positions), directions)
  const refs: BlockRef[] = indices.map((i) => into.blocks[i]!)
  store.markShared(s, above, indices)
  moveTo(store, s, below, positions, store.shareBlocks(s, below, refs, upper))
  for (const [column, side] of [
    [above, 'upper'],
    [below, 'lower'],
  ] as const) {
    const c = s.columns[column]!
    for (const [i, cell] of cellsAt(c, positions).entries()) {
      c.setMark('keyScale', cell, keys[side][i]!)
      c.setMark('valueScale', cell, values[side][i]!)
    }
  }
}

/** Rows are in cells from `first` on now; those that they were in become holes. */
function moveTo(store: KvStore, s: KvSequence, column: number, positions: ArrayLike<number>, first: number): void {
  const c = s.columns[column]!
  const from = cellsAt(c, positions)
  for (const [i, cell] of from.entries()) {
    c.setPosition(first + i, positions[i]!)
    c.copyMarks(c, cell, first + i)
  }
  store.drop(s, column, from)
}

/** Cells of rows by their positions, ascending. @throws KvasirError INVALID_ARGUMENT */
function cellsAt(c: Column, positions: ArrayLike<number>): number[] {
  const { byPosition } = c
  const out: number[] = []
  let at = 0
  for (let i = 0; i < positions.length; i++) {
    while (at < byPosition.length && c.positions[byPosition[at]!]! < positions[i]!) at++
    if (at === byPosition.length || c.positions[byPosition[at]!] !== positions[i])
      throw new KvasirError('INVALID_ARGUMENT', `no row of position ${positions[i]} is in the column`)
    out.push(byPosition[at]!)
  }
  return out
}

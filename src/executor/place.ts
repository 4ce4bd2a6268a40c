/**
 * Places the items of a step: the order of their rows in the step's table, where their keys and values are stored, and how
 * attention reads the rows that are cached. Everything here is arithmetic over block tables; `graph.ts` and
 * `attention.ts` make tensors of it.
 *
 * Reading is always the same: *parts*, each a view of consecutive cells or a gather of blocks, from one arena. One view is
 * the common case, since the store keeps sequences together; a few views are multiplied one by one; anything else (a table
 * in many pieces, ragged tables) is gathered.
 */
import { CELL_PADDING, PAGE_CELLS } from '../cache/arena.ts'
import type { KeysOrValues } from '../cache/code-arena.ts'
import type { BlockRef, Column, Mark, Run } from '../cache/column.ts'
import { type Rotation, rotationOf } from '../cache/rotation.ts'
import type { KvSequence } from '../cache/sequence.ts'
import type { KvStore } from '../cache/store.ts'
import { KvasirError } from '../contract/errors.ts'
import type { WorkItem } from '../contract/work-item.ts'
import { type ExtrasShape, extrasKey, extrasShape } from './coded.ts'
import { chooseLowering } from './lower/choose.ts'
import { TILE_ROWS } from './lower/flash.ts'
import { grouped } from './lower/grouped.ts'
import type { LoweringName } from './lower/lowering.ts'
import { observedKey } from './observe/wanted.ts'

/** More views than this are not multiplied one by one but gathered. */
const MOST_VIEWS = 4
/** Rows from which on transposed values are stored as blocks where their cells are consecutive: a scatter goes element by element. */
export const BLOCK_STORE_ROWS = TILE_ROWS
/**
 * ggml's products of quantised weights take four rows at a time. Rows that are left over cost as much or more: of repacked
 * weights each is a pass over all of them (7 rows: four passes, 8 rows: two); of others a slower kernel (0.5B q8_0, 2 threads:
 * 5 rows 176 ms, 7 rows 198 ms, 8 rows 168 ms). So steps are filled up with rows that nobody asked for.
 */
export const ROW_TILE = 4
/** More pieces than this are scattered after all. */
const MOST_STORE_PIECES = 4

export type LoadPart =
  | (Shiftable & { readonly kind: 'view'; readonly arena: number; readonly from: number; readonly to: number })
  /** `cells` cells are gathered by index, the same number for each head. */
  | GatherPart

export interface GatherPart extends Shiftable {
  readonly kind: 'gather'
  readonly arena: number
  readonly cells: number
  /** Layer whose rows they are, where another one's are read; keys and values are then multiplied, each row by its own number. */
  readonly layer?: number
  /** Of an arena of codes: what belongs to its blocks. */
  readonly codes?: Readonly<Record<KeysOrValues, ExtrasShape>>
}

interface Shiftable {
  /** Keys are rotated on their way to attention, from their rows' positions to their places: {@link slotShifts}. */
  readonly shifted?: true
}

/** Cells that a part of a load reads. */
export function partCells(part: LoadPart): number {
  return part.kind === 'gather' ? part.cells : part.to - part.from
}

/** How attention reads one column, or the columns of one layer's heads. */
export interface Load {
  /** Cells read, padding included. */
  readonly cells: number
  readonly parts: readonly LoadPart[]
  /** For each column (one, or one per head): which of its blocks lies in each slot of 32 cells, over all parts; -1: padding. */
  readonly slots: readonly Int32Array[]
  readonly columns: readonly Column[]
}

/** Consecutive rows of an item that go to consecutive cells. */
export interface StorePiece {
  readonly row: number
  readonly rows: number
  /** Cell in the arena. */
  readonly cell: number
}

export interface PlacedItem {
  readonly item: WorkItem
  /** Its index in the step. */
  readonly index: number
  readonly sequence: KvSequence
  readonly rows: number
  /** First of its rows in the step's table, in which all items have their rows, those of other layers too. */
  readonly first: number
  readonly ragged: boolean
  /** Whether attention counts distances in rows that are there, and some are missing. */
  readonly shifted: boolean
  /** Whether its rows' keys and values are stored. */
  readonly stored: boolean
  /** Arena that they are stored in. */
  readonly arena: number
  /** How they are stored, and the rows that they attend to. */
  readonly rotation: Rotation
  /** Not null: transposed values are stored by these, without an index. */
  readonly pieces: readonly StorePiece[] | null
  /** Logical cell of each row in each column that it is stored in: [columns][rows]; without rows when they are not. */
  readonly cells: readonly (readonly number[] | Int32Array)[]
  /** One for all layers of a uniform sequence; else one per layer, from `item.layers.from` on. */
  readonly loads: readonly Load[]
}

export interface PlacedStep {
  readonly items: readonly PlacedItem[]
  /** Of all items. */
  readonly rows: number
  /** Rows behind them that are computed for nobody, see {@link ROW_TILE}. */
  readonly padding: number
  /** Equal for steps that one graph can serve. */
  readonly key: string
}

/** How attention will read. */
export interface Reads {
  readonly lowering: LoweringName
  /** Query heads of a KV head. */
  readonly group: number
}

/**
 * @param fillFrom from so many rows on they are filled up to a multiple of {@link ROW_TILE}. Not where rows join and leave.
 */
export function placeStep(items: readonly WorkItem[], store: KvStore, reads: Reads, fillFrom: number): PlacedStep {
  const unordered = items.map((item, index) => place(item, index, store, reads))
  // Neighbours that are stored alike are stored by one op.
  const rank = (p: PlacedItem) => (p.stored ? 0 : 4e6) + (p.ragged ? 2e6 : 0) + 2 * p.arena + (p.pieces ? 1 : 0)
  unordered.sort((a, b) => rank(a) - rank(b) || a.index - b.index)
  let first = 0
  const placed = unordered.map((p) => {
    const at = { ...p, first }
    first += p.rows
    return at
  })
  const plain = items.every(
    ({ layers, input, outputs }) =>
      layers.from === 0 && layers.to === store.dims.layers && input.kind === 'tokens' && !outputs.hidden,
  )
  const padding = plain && first >= fillFrom ? (ROW_TILE - (first % ROW_TILE)) % ROW_TILE : 0
  return { items: placed, rows: first, padding, key: `${reads.lowering}|${padding}|${placed.map(keyOf).join('|')}` }
}

function place(item: WorkItem, index: number, store: KvStore, reads: Reads): PlacedItem {
  const sequence = store.sequence(item.sequence)
  const rows = item.positions.length
  const ragged = sequence.layout === 'ragged'
  const { kvHeads } = store.dims
  const stored = item.store.kind !== 'kept'
  const cells = sequence.columns.map((c) => cellsOf(item, c))
  const columnsOf = (layer: number) =>
    ragged ? sequence.columns.slice(layer * kvHeads, (layer + 1) * kvHeads) : sequence.columns
  const layers = ragged
    ? Array.from({ length: item.layers.to - item.layers.from }, (_, i) => item.layers.from + i)
    : [0]
  const arena = ragged || !stored ? sequence.arena : arenaOf(sequence.columns[0]!, cells[0]!)
  const { valuesTransposed } = store.rowArena(arena).shape
  const loads = layers.map((layer) => {
    const load = loadOf(columnsOf(layer), layer, store, rows, reads)
    const cells = sequence.inSlots ? shiftedCells(load) : 0
    return cells > 0 ? withShifts(load, cells) : load
  })
  const asBlocks = stored && !ragged && valuesTransposed && rows >= BLOCK_STORE_ROWS
  return {
    item,
    index,
    sequence,
    rows,
    first: 0,
    ragged,
    shifted: loads.some((load) => load.parts.some((part) => part.shifted)),
    stored,
    arena,
    rotation: rotationOf(store.rowArena(sequence.arena).shape),
    cells,
    pieces: asBlocks ? piecesOf(sequence.columns[0]!, cells[0]!) : null,
    loads,
  }
}

/** Logical cells that an item's rows are stored in. */
function cellsOf({ store, positions: { length: rows } }: WorkItem, c: Column): readonly number[] | Int32Array {
  if (store.kind === 'cells') return store.cells
  return store.kind === 'kept' ? [] : Int32Array.from({ length: rows }, (_, i) => c.end - rows + i)
}

/** The arena that rows are stored in: they must all lie in one. */
function arenaOf(column: Column, cells: ArrayLike<number>): number {
  const arena = column.blocks[Math.floor(cells[0]! / PAGE_CELLS)]!.arena
  for (let i = 0; i < cells.length; i++)
    if (column.blocks[Math.floor(cells[i]! / PAGE_CELLS)]!.arena !== arena)
      throw new KvasirError('NOT_SUPPORTED', 'work item: its rows are to be stored in several arenas')
  return arena
}

function piecesOf(column: Column, cells: ArrayLike<number>): StorePiece[] | null {
  const pieces: { row: number; rows: number; cell: number }[] = []
  for (let row = 0; row < cells.length; row++) {
    const cell = column.physical(cells[row]!)
    const last = pieces.at(-1)
    if (last && last.cell + last.rows === cell) last.rows++
    else if (pieces.length === MOST_STORE_PIECES) return null
    else pieces.push({ row, rows: 1, cell })
  }
  return pieces
}

/** @param layer of ragged tables: whose columns they are */
function loadOf(columns: readonly Column[], layer: number, store: KvStore, rows: number, reads: Reads): Load {
  const usedBlocks = columns.map((c) => Math.ceil(c.end / PAGE_CELLS))
  const isPlain = (b: BlockRef) => b.layer === undefined && store.arenas[b.arena]!.kind === 'rows'
  if (!columns.every((c, i) => c.blocks.every((b, k) => k >= usedBlocks[i]! || isPlain(b))))
    return gatherLoad(columns, usedBlocks, layer, store)
  const transposed = columns.every((c, i) =>
    c.blocks.every((b, k) => k >= usedBlocks[i]! || store.rowArena(b.arena).shape.valuesTransposed),
  )
  const longest = usedBlocks.indexOf(Math.max(...usedBlocks))
  if (columns.every((c, i) => liesIn(c, usedBlocks[i]!, columns[longest]!))) {
    const runs = usedRuns(columns[longest]!, usedBlocks[longest]!)
    const separate = chooseLowering(reads.lowering, rows, reads.group, transposed) === grouped ? MOST_VIEWS : 1
    if (runs.length <= separate) return viewLoad(columns, usedBlocks, runs, layer, store)
  }
  return gatherLoad(columns, usedBlocks, layer, store)
}

/** Whether the first `blocks` blocks of a column lie in the pages of another one's first: then both are read at once. */
function liesIn(c: Column, blocks: number, other: Column): boolean {
  if (c === other) return true
  for (let i = 0; i < blocks; i++) {
    const [a, b] = [c.blocks[i]!, other.blocks[i]!]
    if (a.page !== b.page || a.arena !== b.arena) return false
  }
  return true
}

/** Runs of the first `blocks` blocks. */
function usedRuns(column: Column, blocks: number): Run[] {
  const out: Run[] = []
  let left = blocks * PAGE_CELLS
  for (const run of column.runs) {
    if (left <= 0) break
    const to = Math.min(run.to, run.from + left)
    out.push({ ...run, to })
    left -= to - run.from
  }
  return out
}

/** Each run of the longest column as it lies; the last one with as many cells behind it as make the sum a multiple of the padding. */
function viewLoad(
  columns: readonly Column[],
  usedBlocks: readonly number[],
  runs: readonly Run[],
  layer: number,
  store: KvStore,
): Load {
  const used = runs.reduce((sum, r) => sum + r.to - r.from, 0)
  const cells = Math.ceil(used / CELL_PADDING) * CELL_PADDING
  const last = runs.at(-1)!
  const size = last.to - last.from + cells - used
  // At the end of the arena the padding lies before the run instead.
  const from = Math.min(last.from, store.rowArena(last.arena).cells - size)
  if (from < 0) return gatherLoad(columns, usedBlocks, layer, store)
  const before = (used - (last.to - last.from)) / PAGE_CELLS
  const lead = (last.from - from) / PAGE_CELLS
  const slots = usedBlocks.map((blocks) => {
    const own = new Int32Array(cells / PAGE_CELLS).fill(-1)
    for (let i = 0; i < blocks; i++) own[i < before ? i : i + lead] = i
    return own
  })
  const parts = runs.map((r): LoadPart => ({ kind: 'view', arena: r.arena, from: r.from, to: r.to }))
  parts[parts.length - 1] = { kind: 'view', arena: last.arena, from, to: from + size }
  return { cells, parts, slots, columns }
}

/** Blocks by index, one part per arena and layer that they lie in; heads with fewer blocks are padded. */
function gatherLoad(columns: readonly Column[], usedBlocks: readonly number[], layer: number, store: KvStore): Load {
  const sources = new Map<string, BlockRef>()
  const nameOf = ({ arena, layer }: BlockRef) => `${arena} ${layer ?? ''}`
  for (const [i, c] of columns.entries())
    for (let b = 0; b < usedBlocks[i]!; b++) sources.set(nameOf(c.blocks[b]!), c.blocks[b]!)
  const parts: GatherPart[] = []
  const slots: number[][] = columns.map(() => [])
  const step = CELL_PADDING / PAGE_CELLS
  for (const source of [...sources.keys()].sort()) {
    const { arena, layer: from } = sources.get(source)!
    const own = columns.map((c, i) =>
      Array.from({ length: usedBlocks[i]! }, (_, b) => b).filter((b) => nameOf(c.blocks[b]!) === source),
    )
    const most = Math.ceil(Math.max(...own.map((o) => o.length)) / step) * step
    for (const [i, o] of own.entries()) slots[i]!.push(...o, ...Array.from({ length: most - o.length }, () => -1))
    const held = store.arenas[arena]!
    const blocks = own.map((o, i) => o.map((b) => columns[i]!.blocks[b]!))
    parts.push({
      ...{ kind: 'gather', arena, cells: most * PAGE_CELLS },
      ...(from === undefined ? {} : { layer: from }),
      ...(held.kind === 'codes' ? { codes: extrasShape(held, from ?? layer, blocks) } : {}),
    })
  }
  const cells = parts.reduce((sum, p) => sum + p.cells, 0)
  return { cells, parts, slots: slots.map((s) => Int32Array.from(s)), columns }
}

/** Splits parts where the keys that are to be rotated end: they lie in the first `cells` cells of a load. */
function withShifts(load: Load, cells: number): Load {
  let at = 0
  const parts = load.parts.flatMap((part): LoadPart[] => {
    const own = Math.min(partCells(part), Math.max(0, cells - at))
    at += partCells(part)
    if (own === 0) return [part]
    if (part.kind === 'gather' || own === partCells(part)) return [{ ...part, shifted: true }]
    const middle = part.from + own
    return [
      { ...part, to: middle, shifted: true },
      { ...part, from: middle },
    ]
  })
  return { ...load, parts }
}

/** Cells of a load, from the first on, among which all rows lie whose keys are to be rotated. */
function shiftedCells(load: Load): number {
  let slots = 0
  for (const [i, c] of load.columns.entries()) {
    const shifts = shiftsOf(c)
    for (const [slot, block] of load.slots[i]!.entries())
      if (block >= 0 && shifts.subarray(block * PAGE_CELLS, (block + 1) * PAGE_CELLS).some((by) => by !== 0))
        slots = Math.max(slots, slot + 1)
  }
  return slots * PAGE_CELLS
}

/**
 * By how much each row of a column moves up so that all stand side by side, the newest where it is: attention sees only
 * distances, and the newest rows, which all queries are among, need no new rotation. By cell; 0 for holes.
 */
function shiftsOf(c: Column): Int32Array {
  const { byPosition, positions } = c
  const n = byPosition.length
  const shifts = new Int32Array(c.cells)
  const first = n > 0 ? positions[byPosition[n - 1]!]! - n + 1 : 0
  for (let rank = 0; rank < n; rank++) {
    const cell = byPosition[rank]!
    shifts[cell] = first + rank - positions[cell]!
  }
  return shifts
}

/** What stands in the cells of a column, in the order in which a load reads them. */
function toSlots<T extends Int32Array | Float32Array>(load: Load, column: number, cells: T, out: T): T {
  for (const [slot, block] of load.slots[column]!.entries())
    if (block >= 0) out.set(cells.subarray(block * PAGE_CELLS, (block + 1) * PAGE_CELLS), slot * PAGE_CELLS)
  return out
}

/** Position in each cell that a load reads; -1: none. */
export function slotPositions(load: Load, column: number): Int32Array {
  return toSlots(load, column, load.columns[column]!.positions, new Int32Array(load.cells).fill(-1))
}

/** Marks of the rows in the cells that a load reads; null: all are 1. */
export function slotMarks(load: Load, column: number, mark: Mark): Float32Array | null {
  const marks = load.columns[column]!.marks(mark)
  return marks && toSlots(load, column, marks, new Float32Array(load.cells).fill(1))
}

/** {@link shiftsOf}, in each cell that a load reads. */
export function slotShifts(load: Load, column: number): Int32Array {
  return toSlots(load, column, shiftsOf(load.columns[column]!), new Int32Array(load.cells))
}

function keyOf(p: PlacedItem): string {
  const { item } = p
  const parts = (l: Load) =>
    l.parts
      .map(
        (x) =>
          (x.kind === 'view'
            ? `v${x.arena}:${x.from}-${x.to}`
            : `g${x.arena}:${x.cells}@${x.layer ?? ''}${x.codes ? extrasKey(x.codes) : ''}`) + (x.shifted ? 's' : ''),
      )
      .join(',')
  const store = p.pieces ? p.pieces.map((s) => `${s.row}+${s.rows}@${s.cell}`).join(',') : 's'
  return [
    p.rows,
    `${item.layers.from}-${item.layers.to}`,
    item.input.kind,
    item.outputs.logits.length,
    item.outputs.hidden ? 'h' : '',
    item.outputs.queries ? 'q' : '',
    item.outputs.normed?.length ?? 0,
    `${p.ragged ? 'r' : 'u'}${p.arena}@${p.rotation.keys},${p.rotation.values}`,
    p.stored ? store : 'k',
    observedKey(item.outputs.observe),
    p.loads.map(parts).join('/'),
  ].join(' ')
}

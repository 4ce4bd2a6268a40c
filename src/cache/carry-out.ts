/**
 * Carries out what a policy decided: rows are merged, rows that are not kept leave the store, and the memory they took is free.
 */
import type { RowFormat } from '../contract/format.ts'
import type { CompressionPlan, Merge, SharedRows } from '../contract/policy.ts'
import type { Runner } from '../ggml/backend.ts'
import { PAGE_CELLS } from './arena.ts'
import { checkPlan, type KeepPlan, sameRows } from './check-plan.ts'
import type { BlockRef, Column } from './column.ts'
import { closeHoles, formatArena, moveRows, type RowMove, shareRows } from './reformat.ts'
import { mergeRows } from './rows.ts'
import type { KvSequence } from './sequence.ts'
import type { KvStore } from './store.ts'

/** What carrying a plan out may need. */
export interface CarryOutTools {
  readonly runner: () => Runner
  /** Formats that the plan's `stored` names. */
  readonly formats: readonly RowFormat[]
  readonly seed: number
  /** Tries to make so many pages of the first arena free. */
  readonly makeRoom: (pages: number) => void
}

/**
 * Carries out a plan. A table stays uniform when all layers and heads keep the same rows. Holes are closed, so that a
 * sequence takes no more blocks than its rows fill, and heads that keep equally many rows lie side by side and are read at once;
 * if there is room to close them: {@link pagesToKeep} says how much.
 * Rows that move to other formats, or that two layers share, go last, when all room is free that becomes free.
 * @param tools for plans that do more than drop rows
 * @throws KvasirError INVALID_ARGUMENT for a plan that does not fit the sequence, KV_BUDGET where rows to be merged are shared and
 *   there is no room for copies: some rows may be gone by then
 */
export function carryOut(store: KvStore, sequence: KvSequence, plan: CompressionPlan, tools?: CarryOutTools): void {
  if (plan.kind === 'keep-all') return
  const { layers, kvHeads } = store.dims
  checkPlan(sequence, plan, tools?.formats.length ?? 0, layers, kvHeads)
  const rowsOf = (i: number) => plan.rows[Math.floor(i / kvHeads)]![i % kvHeads]!
  const mergesOf = (i: number) => plan.merges?.[Math.floor(i / kvHeads)]?.[i % kvHeads] ?? []
  const columns = Array.from({ length: layers * kvHeads }, (_, i) => i)
  const alike = columns.every((i) => sameRows(rowsOf(i), rowsOf(0)) && mergesOf(i).length === 0)
  const moves = movesOf(store, sequence, plan, tools)
  const moving = moves.stored.length + moves.shared.length > 0
  if (sequence.layout === 'uniform' && !(alike && !moving)) store.makeRagged(sequence)
  keepOnly(store, sequence, plan, tools)
  if (moving) move(store, sequence, moves, tools!)
}

/** Merges and drops rows. */
function keepOnly(store: KvStore, sequence: KvSequence, plan: KeepPlan, tools: CarryOutTools | undefined): void {
  const { kvHeads } = store.dims
  const rowsOf = (i: number) => plan.rows[Math.floor(i / kvHeads)]![i % kvHeads]!
  const mergesOf = (i: number) => plan.merges?.[Math.floor(i / kvHeads)]?.[i % kvHeads] ?? []
  if (plan.placement === 'slots') sequence.inSlots = true
  const copies = sequence.columns.map((c, i) => (mergesOf(i).length ? sharedBlocks(store, sequence, i, c) : 0))
  if (copies.some((blocks) => blocks > 0)) tools!.makeRoom(store.pagesToBorrow(sequence.arena, Math.max(...copies)))
  const gone = sequence.columns.map((column, i) => {
    if (!mergesOf(i).length) return droppedCells(column.byPosition, rowsOf(i))
    // Merging drops rows: from then on they go by their positions.
    const positions = column.orderedPositions
    merge(store, sequence, i, mergesOf(i), positions, tools!.runner())
    const stay = new Set(rowsOf(i).map((row) => positions[row]!))
    return [...column.byPosition].filter((cell) => !stay.has(column.positions[cell]!))
  })
  const isMuch = gone.some((cells) => cells.length >= PAGE_CELLS)
  if (sequence.layout === 'ragged' && isMuch) {
    const kept = sequence.columns.map((column, i) => {
      const lost = new Set(gone[i]!)
      return column.byPosition.filter((cell) => !lost.has(cell))
    })
    if (store.rewrite(sequence, kept)) return
  }
  // Rows that go at the front of all heads alike leave whole blocks soon enough.
  const mostHoles = sequence.layout === 'uniform' ? PAGE_CELLS : 1
  for (const [i, column] of sequence.columns.entries()) {
    if (gone[i]!.length > 0) store.drop(sequence, i, gone[i]!)
    if (column.end - column.rows >= mostHoles) closeHoles(store, sequence, i)
  }
}

/**
 * Blocks of a column that others hold, too: what is merged into is written, and they are copied for it. Rows in other formats, and those
 * that two layers share, are only read.
 */
function sharedBlocks(store: KvStore, sequence: KvSequence, index: number, column: Column): number {
  const isCopied = (b: BlockRef, k: number) =>
    b.arena === sequence.arena && b.layer === undefined && store.isBlockShared(sequence, index, k)
  return column.blocks.reduce((n, b, k) => n + (isCopied(b, k) ? 1 : 0), 0)
}

/** What is to be done with rows that move: they are named by their positions, which last when others go. */
interface Moves {
  readonly stored: readonly RowMove[]
  readonly shared: readonly { readonly pair: SharedRows; readonly head: number; readonly positions: Int32Array }[]
}

function movesOf(store: KvStore, sequence: KvSequence, plan: KeepPlan, tools: CarryOutTools | undefined): Moves {
  const { kvHeads } = store.dims
  const positionsOf = (layer: number, head: number, rows: Int32Array): Int32Array => {
    const all = sequence.column(layer, head, kvHeads).orderedPositions
    return rows.map((row) => all[row]!)
  }
  const stored = (plan.stored ?? []).flatMap(({ format, rows, balance }) =>
    rows.flatMap((heads, layer) =>
      heads.map((own, head): RowMove => {
        const arena = formatArena(store, tools!.formats[format]!)
        const positions = positionsOf(layer, head, own)
        const column = layer * kvHeads + head
        return { column, positions, arena, balance: balance?.[layer]?.[head] ?? null, seed: tools!.seed }
      }),
    ),
  )
  const shared = (plan.shared ?? []).flatMap((pair) =>
    pair.upperRows.map((own, head) => ({ pair, head, positions: positionsOf(pair.upper, head, own) })),
  )
  return {
    stored: stored.filter((m) => m.positions.length > 0),
    shared: shared.filter((m) => m.positions.length > 0),
  }
}

function move(store: KvStore, sequence: KvSequence, { stored, shared }: Moves, tools: CarryOutTools): void {
  const { runner, makeRoom } = tools
  moveRows(runner, store, sequence, stored, makeRoom)
  // Rows are put side by side in blocks of the upper layer: what others share of it is copied.
  const copies = shared.map(({ pair: { upper }, head }) => {
    const i = upper * store.dims.kvHeads + head
    return sharedBlocks(store, sequence, i, sequence.columns[i]!)
  })
  if (copies.some((blocks) => blocks > 0)) makeRoom(store.pagesToBorrow(sequence.arena, Math.max(...copies)))
  for (const { pair, head, positions } of shared) shareRows(runner(), store, sequence, pair, head, positions)
  for (const i of sequence.columns.keys()) closeHoles(store, sequence, i)
}

/** Those of a column's cells that a plan does not keep. @param rows that it keeps: indices into `cells`, ascending */
function droppedCells(cells: Int32Array, rows: Int32Array): number[] {
  const gone: number[] = []
  let next = 0
  for (let row = 0; row < cells.length; row++)
    if (next < rows.length && rows[next] === row) next++
    else gone.push(cells[row]!)
  return gone
}

/** @param positions of the column's rows, in the order that the plan counts in */
function merge(
  store: KvStore,
  sequence: KvSequence,
  index: number,
  merges: readonly Merge[],
  positions: Int32Array,
  runner: Runner,
): void {
  const column = sequence.columns[index]!
  const cellAt = new Map(column.usedCells().map((cell) => [column.positions[cell]!, cell]))
  const cellOf = (row: number) => cellAt.get(positions[row]!)!
  const groups = merges.map(({ into, from, weights, valueWeights = weights }) => ({
    into: cellOf(into),
    from: Array.from(from, (row, k) => ({ cell: cellOf(row), weight: weights[k]!, valueWeight: valueWeights[k]! })),
  }))
  mergeRows(runner, store, sequence, index, groups)
  const masses = new Map(merges.map(({ into, mass }) => [positions[into]!, mass]))
  for (const cell of column.usedCells()) {
    const mass = masses.get(column.positions[cell]!)
    if (mass !== undefined) column.setMark('mass', cell, mass)
  }
}

/** Pages that may have to be free for a plan that keeps `rows` rows of each layer and head on average. */
export function pagesToKeep(rows: number): number {
  return Math.ceil(rows / PAGE_CELLS) + 2
}

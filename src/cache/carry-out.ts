/**
 * Carries out what a policy decided: rows are merged, rows that are not kept leave the store, and the memory they took is free.
 */
import { KvasirError } from '../contract/errors.ts'
import type { CompressionPlan, Merge } from '../contract/policy.ts'
import type { Runner } from '../ggml/backend.ts'
import { PAGE_CELLS } from './arena.ts'
import { mergeRows } from './rows.ts'
import type { KvSequence, KvStore } from './store.ts'

/**
 * Carries out a plan. A table stays uniform when all layers and heads keep the same rows. Holes are closed, so that a
 * sequence takes no more blocks than its rows fill, and heads that keep equally many rows lie side by side and are read at once;
 * if there is room to close them: {@link pagesToKeep} says how much.
 * @param runner for plans that merge rows
 * @throws KvasirError INVALID_ARGUMENT for a plan that does not fit the sequence, KV_BUDGET where rows to be merged are shared and
 *   there is no room for copies: some rows may be gone by then
 */
export function carryOut(store: KvStore, sequence: KvSequence, plan: CompressionPlan, runner?: () => Runner): void {
  if (plan.kind === 'keep-all') return
  const { layers, kvHeads } = store.dims
  checkPlan(sequence, plan, layers, kvHeads)
  const rowsOf = (i: number) => plan.rows[Math.floor(i / kvHeads)]![i % kvHeads]!
  const mergesOf = (i: number) => plan.merges?.[Math.floor(i / kvHeads)]?.[i % kvHeads] ?? []
  const columns = Array.from({ length: layers * kvHeads }, (_, i) => i)
  const alike = columns.every((i) => sameRows(rowsOf(i), rowsOf(0)) && mergesOf(i).length === 0)
  if (sequence.layout === 'uniform' && !alike) store.makeRagged(sequence)
  if (plan.placement === 'slots') sequence.inSlots = true
  const kept = [...sequence.columns.entries()].map(([i, column]) => {
    if (!mergesOf(i).length) return rowsOf(i).map((row) => column.byPosition[row]!)
    // Merging drops rows: from then on they go by their positions.
    const positions = column.orderedPositions()
    merge(store, sequence, i, mergesOf(i), positions, runner!())
    const stay = new Set(rowsOf(i).map((row) => positions[row]!))
    return column.byPosition.filter((cell) => stay.has(column.positions[cell]!))
  })
  const gone = sequence.columns.map((column, i) => missing(column.byPosition, kept[i]!))
  const isMuch = gone.some((cells) => cells.length >= PAGE_CELLS)
  if (sequence.layout === 'ragged' && isMuch && store.rewrite(sequence, kept)) return
  // Rows that go at the front of all heads alike leave whole blocks soon enough.
  const mostHoles = sequence.layout === 'uniform' ? PAGE_CELLS : 1
  for (const [i, column] of sequence.columns.entries()) {
    if (gone[i]!.length > 0) store.drop(sequence, i, gone[i]!)
    if (column.end - column.rows >= mostHoles) closeHoles(store, sequence, i)
  }
}

/** Those of `cells` that are not among the kept ones; both in one order. */
function missing(cells: Int32Array, kept: Int32Array): number[] {
  const gone: number[] = []
  let next = 0
  for (const cell of cells)
    if (kept[next] === cell) next++
    else gone.push(cell)
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
  const groups = merges.map(({ into, from, weights }) => ({
    into: cellOf(into),
    from: Array.from(from, (row, k) => ({ cell: cellOf(row), weight: weights[k]! })),
  }))
  mergeRows(runner, store, sequence, index, groups)
  const masses = new Map(merges.map(({ into, mass }) => [positions[into]!, mass]))
  for (const cell of column.usedCells()) {
    const mass = masses.get(column.positions[cell]!)
    if (mass !== undefined) column.setMass(cell, mass)
  }
}

/** Blocks that others share are copied for it; where there is no room for copies, the holes stay until the next time. */
function closeHoles(store: KvStore, sequence: KvSequence, column: number): void {
  try {
    store.compact(sequence, column)
  } catch (error) {
    if (!(error instanceof KvasirError && error.code === 'KV_BUDGET')) throw error
  }
}

function checkPlan(
  sequence: KvSequence,
  { rows, merges }: Extract<CompressionPlan, { kind: 'keep' }>,
  layers: number,
  kvHeads: number,
): void {
  if (rows.length !== layers) throw bad(`rows of ${rows.length} layers, and there are ${layers}`)
  if (merges && merges.length !== layers) throw bad(`merges of ${merges.length} layers, and there are ${layers}`)
  for (const [layer, heads] of rows.entries()) {
    if (heads.length !== kvHeads) throw bad(`layer ${layer} has rows of ${heads.length} of ${kvHeads} KV heads`)
    for (const [head, kept] of heads.entries()) {
      const { rows: n } = sequence.column(layer, head, kvHeads)
      const where = `layer ${layer}, KV head ${head}`
      checkAscending(kept, n, where)
      // A layer that the prompt has not reached yet has none.
      if (kept.length === 0 && n > 0) throw bad(`${where} keeps nothing; attention needs one row at least`)
      const own = merges?.[layer]?.[head] ?? []
      if (own.length) checkMerges(own, new Set(kept), n, where)
    }
  }
}

function checkMerges(merges: readonly Merge[], kept: ReadonlySet<number>, n: number, where: string): void {
  const into = new Set<number>()
  for (const m of merges) {
    if (!kept.has(m.into)) throw bad(`${where} merges into row ${m.into}, which it does not keep`)
    if (into.has(m.into)) throw bad(`${where} merges into row ${m.into} twice`)
    into.add(m.into)
    checkAscending(m.from, n, `${where}, merge into row ${m.into}`)
    if (m.from.length === 0 || m.from.length !== m.weights.length)
      throw bad(`${where} merges ${m.from.length} rows with ${m.weights.length} weights`)
    if (!m.weights.every(Number.isFinite))
      throw bad(`${where} merges into row ${m.into} with weights that are no numbers`)
    if (!(m.mass >= 1 && Number.isFinite(m.mass)))
      throw bad(`${where}: row ${m.into} is to stand for ${m.mass} rows; it must be 1 or more`)
  }
  const lost = merges.flatMap((m) => [...m.from]).find((row) => kept.has(row) && !into.has(row))
  if (lost !== undefined) throw bad(`${where} keeps row ${lost}, which it also merges into another`)
}

function checkAscending(rows: Int32Array, n: number, where: string): void {
  let before = -1
  for (const row of rows) {
    if (!(row > before && row < n))
      throw bad(`${where}: row ${row} behind ${before} of ${n}; rows must ascend and be there`)
    before = row
  }
}

const bad = (what: string) => new KvasirError('INVALID_ARGUMENT', `compression plan: ${what}`)

/** Pages that may have to be free for a plan that keeps `rows` rows of each layer and head on average. */
export function pagesToKeep(rows: number): number {
  return Math.ceil(rows / PAGE_CELLS) + 2
}

function sameRows(a: Int32Array, b: Int32Array): boolean {
  return a === b || (a.length === b.length && a.every((row, i) => row === b[i]))
}

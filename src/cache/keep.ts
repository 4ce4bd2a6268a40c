/** Carries out what a policy decided: rows that are not kept leave the store, and the memory they took is free. */
import { KvasirError } from '../contract/errors.ts'
import type { CompressionPlan } from '../contract/policy.ts'
import { PAGE_CELLS } from './arena.ts'
import type { Column } from './column.ts'
import type { KvSequence, KvStore } from './store.ts'

/** The cells of a column's rows in the order of their positions: what the indices of a plan count. */
export function cellsByPosition(column: Column): number[] {
  const { positions } = column
  return column.usedCells().sort((a, b) => positions[a]! - positions[b]!)
}

/**
 * Drops all rows but those of the plan. A table stays uniform when all layers and heads keep the same rows. Holes are closed
 * as soon as they make up a block, so a sequence takes no more than one block per layer and head beyond its rows, if there
 * is room to close them: {@link pagesToKeep} says how much.
 * @throws KvasirError INVALID_ARGUMENT for a plan that does not fit the sequence; then nothing has changed
 */
export function keepRows(store: KvStore, sequence: KvSequence, plan: CompressionPlan): void {
  if (plan.kind === 'keep-all') return
  const { layers, kvHeads } = store.dims
  const at = (column: number) => plan.rows[Math.floor(column / kvHeads)]?.[column % kvHeads]
  checkPlan(sequence, plan.rows, layers, kvHeads)
  const lists = Array.from({ length: layers * kvHeads }, (_, i) => at(i)!)
  if (sequence.layout === 'uniform' && !lists.every((rows) => sameRows(rows, lists[0]!))) store.makeRagged(sequence)
  for (const [i, column] of sequence.columns.entries()) {
    const kept = new Set(lists[i])
    const gone = cellsByPosition(column).filter((_, row) => !kept.has(row))
    if (gone.length > 0) store.drop(sequence, i, gone)
    if (sequence.columns[i]!.end - sequence.columns[i]!.rows >= PAGE_CELLS) closeHoles(store, sequence, i)
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
  rows: readonly (readonly Int32Array[])[],
  layers: number,
  kvHeads: number,
): void {
  const bad = (what: string) => new KvasirError('INVALID_ARGUMENT', `compression plan: ${what}`)
  if (rows.length !== layers) throw bad(`rows of ${rows.length} layers, and there are ${layers}`)
  for (const [layer, heads] of rows.entries()) {
    if (heads.length !== kvHeads) throw bad(`layer ${layer} has rows of ${heads.length} of ${kvHeads} KV heads`)
    for (const [head, kept] of heads.entries()) {
      const { rows: n } = sequence.column(layer, head, kvHeads)
      let before = -1
      for (const row of kept) {
        if (!(row > before && row < n))
          throw bad(
            `layer ${layer}, KV head ${head}: row ${row} behind ${before} of ${n}; rows must ascend and be there`,
          )
        before = row
      }
      if (kept.length === 0)
        throw bad(`layer ${layer}, KV head ${head} keeps nothing; attention needs one row at least`)
    }
  }
}

/** Pages that may have to be free for a plan that keeps `rows` rows of each layer and head on average. */
export function pagesToKeep(rows: number): number {
  return Math.ceil(rows / PAGE_CELLS) + 2
}

function sameRows(a: Int32Array, b: Int32Array): boolean {
  return a === b || (a.length === b.length && a.every((row, i) => row === b[i]))
}

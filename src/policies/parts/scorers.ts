/** What several papers call the worth of a row. Each is made for the rows that compete (`ends`), by KV head. */
import type { Observation, ObservedLayer } from '../../contract/observation.ts'
import type { PolicyState } from '../../contract/policy.ts'
import { randomOf } from './random.ts'
import { competing, type Ends, groupMean, type LayerScores, type Pooling, poolRows } from './scores.ts'

/** Queries at the end of the prompt that were observed: fewer than asked for when the prompt is shorter. */
export const windowRows = (rows: number, { seen }: PolicyState): number => Math.min(rows, seen)

/** A window that leaves room for others even in a tiny budget. */
export const fitWindow = (window: number, budget: number): number =>
  Math.max(1, Math.min(window, Math.floor(budget / 2)))

export interface Pool {
  readonly kernel: number
  readonly pool: Pooling
}

/**
 * SnapKV's: what the last queries of the prompt give a row, query heads of a group averaged, then pooled along the rows. A sum
 * over the queries, where the papers have a mean: the order is the same, and so are all ratios.
 */
export function windowScores(seen: Observation, layer: number, ends: Ends, { kernel, pool }: Pool): LayerScores {
  return poolRows(groupMean(seen.window![layer]!, 'sum', ends), kernel, pool)
}

/** H2O's: what all queries so far gave a row. */
export function columnScores(seen: Observation, layer: number, ends: Ends): LayerScores {
  return groupMean(seen.columns![layer]!, 'sum', ends)
}

/** The row of the answer that was computed last. */
export const lastQuery = (seen: Observation, layer: number): ObservedLayer => seen.decode![layer]!

/** By chance: a row has the same worth however often it is asked for. */
export function randomScores(state: PolicyState, layer: number, ends: Ends): LayerScores {
  return Array.from({ length: state.model.kvHeads }, (_, kvHead) => {
    const positions = state.positions(layer, kvHead)
    return Float64Array.from({ length: competing(positions.length, ends) }, (_, j) =>
      randomOf(state.seed, layer, kvHead, positions[ends.first + j]!),
    )
  })
}

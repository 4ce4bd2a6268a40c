/** What some queries gave the rows of a cache, for policies that do not look at all of them. Nothing is changed in place. */
import type { ObservedLayer } from '../../contract/observation.ts'
import type { PolicyState } from '../../contract/policy.ts'
import { groupMean, type LayerScores } from './scores.ts'

export interface Votes {
  /** Positions of the queries, ascending. */
  readonly queries: Int32Array
  /** By layer: sums over them, query heads of a group averaged, of the rows that are counted. */
  readonly sums: readonly LayerScores[]
}

/**
 * Queries more: they come behind those that voted, and see rows that the others did not.
 * @param layers `sum` of the new queries
 * @param first rows of a head that are not counted, the oldest; always the same ones
 */
export function addVotes(
  before: Votes | null,
  layers: readonly ObservedLayer[],
  queries: Int32Array,
  first: number,
): Votes {
  const sums = layers.map((layer, l) => {
    const now = groupMean(layer, 'sum', { first, last: 0 })
    return before ? now.map((row, kvHead) => row.map((p, j) => p + (before.sums[l]![kvHead]![j] ?? 0))) : now
  })
  return { queries: Int32Array.from([...(before?.queries ?? []), ...queries]), sums }
}

/** Only some rows are still cached. @param kept indices of them, `[layer][kvHead]` */
export const keptVotes = ({ queries, sums }: Votes, kept: readonly (readonly Int32Array[])[]): Votes => ({
  queries,
  sums: sums.map((heads, layer) =>
    heads.map((one, kvHead) => Float64Array.from(kept[layer]![kvHead]!, (j) => one[j]!)),
  ),
})

/** All queries so far, for sums that are over all. */
export const allQueries = ({ seen }: PolicyState): Int32Array => Int32Array.from({ length: seen }, (_, i) => i)

/**
 * Of each row, what it got from the queries that may see it, on average: early rows are seen by more, and would always win.
 * @param sums by KV head, without the `first` oldest rows
 * @param queries positions of those that voted, ascending
 */
export const averageVotes = (
  sums: LayerScores,
  { positions }: PolicyState,
  layer: number,
  first: number,
  queries: Int32Array,
): LayerScores => sums.map((one, kvHead) => perQuery(one, positions(layer, kvHead).subarray(first), queries))

/** @param positions of the rows, ascending */
function perQuery(sums: Float64Array, positions: Int32Array, queries: Int32Array): Float64Array {
  let before = 0
  return sums.map((sum, j) => {
    while (before < queries.length && queries[before]! < positions[j]!) before++
    return sum / Math.max(1, queries.length - before)
  })
}

/** Rows in two tiers, by what they are worth. */
import { topRows } from './select.ts'

/** Indices of the best rows and of the others, both ascending; of equal ones the first are the best. */
export function splitRows(
  scores: Float64Array,
  count: number,
): { readonly best: Int32Array; readonly others: Int32Array } {
  const best = topRows(scores, count)
  const others = new Int32Array(scores.length - best.length)
  let next = 0
  let at = 0
  for (let j = 0; j < scores.length; j++) {
    if (best[next] === j) next++
    else others[at++] = j
  }
  return { best, others }
}

/** Rows that are a share of others, rounded down. */
export const shareOf = (share: number, rows: number): number =>
  // A product that is whole but for rounding errors is whole.
  Math.floor(share * rows + 1e-9)

/**
 * What the last few queries looked at, kept from step to step: one attention row for each, over the rows of a head's cache. A
 * row is as long as what its query saw; rows that came later it gave nothing. Nothing here is ever changed in place.
 */

/** Of one head, the oldest query first: f64 [rows that it saw and that are still cached]. */
export type RecentVotes = readonly Float64Array[]

/** A query more, the oldest go. @param most queries that count */
export const addVote = (votes: RecentVotes, row: Float64Array, most: number): RecentVotes =>
  [...votes, row].slice(-most)

/** Only some rows are still cached. @param kept indices of them, ascending */
export function keepVotes(votes: RecentVotes, kept: Int32Array): RecentVotes {
  // Queries that were observed as one sum share a row.
  const done = new Map<Float64Array, Float64Array>()
  return votes.map((row) => {
    const left = done.get(row) ?? Float64Array.from(kept.subarray(0, countBelow(kept, row.length)), (j) => row[j]!)
    done.set(row, left)
    return left
  })
}

/** What all of them gave the first `rows` rows. */
export function sumVotes(votes: RecentVotes, rows: number): Float64Array {
  const sum = new Float64Array(rows)
  for (const row of votes) for (let j = 0; j < rows && j < row.length; j++) sum[j]! += row[j]!
  return sum
}

/** How many numbers of an ascending list are below a bound: at the end of a cache, where nearly all are. */
function countBelow(list: Int32Array, bound: number): number {
  let count = list.length
  while (count > 0 && list[count - 1]! >= bound) count--
  return count
}

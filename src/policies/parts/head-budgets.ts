/** How many of a layer's rows each KV head gets: the second step. Every function shares out Hkv * free rows. */
import { eachHead, type LayerScores } from './scores.ts'
import { topRows } from './select.ts'
import { capTo, roundTo } from './shares.ts'

/**
 * Ada-KV: rows compete across the heads of a layer, and each head is sure of a part.
 *
 *     z_h = s_h * (sum of the `free` largest of s_h) / (sum of s_h)
 *     c_h = how many of the Hkv * free largest of all z are head h's
 *     b_h = (1 - floor) c_h + floor * free
 *
 * The authors round each head on its own, which loses or adds up to 1.5 rows a head; here the total is exact.
 * @param floor share of the uniform budget that every head is sure of: 1 is uniform
 */
export function adaBudgets(scores: LayerScores, free: number, floor: number): number[] {
  const total = Math.min(
    free * scores.length,
    scores.reduce((n, s) => n + s.length, 0),
  )
  const weighted = eachHead(scores, (s) => {
    const all = sum(s)
    const weight = all > 0 ? sum(s.toSorted().subarray(Math.max(0, s.length - free))) / all : 0
    return s.map((x) => x * weight)
  })
  const won = winners(weighted, total)
  const quotas = won.map((c) => (1 - floor) * c + (floor * total) / scores.length)
  return capTo(
    roundTo(quotas, total),
    scores.map((s) => s.length),
  )
}

/** How many of the `count` largest of all lists together are in each. */
function winners(lists: LayerScores, count: number): number[] {
  const all = new Float64Array(lists.reduce((n, s) => n + s.length, 0))
  const starts = lists.map((_, h) => lists.slice(0, h).reduce((n, s) => n + s.length, 0))
  for (const [h, s] of lists.entries()) all.set(s, starts[h]!)
  const rows = topRows(all, count)
  return lists.map((s, h) => rows.reduce((n, j) => n + (j >= starts[h]! && j < starts[h]! + s.length ? 1 : 0), 0))
}

const sum = (list: Float64Array) => list.reduce((a, b) => a + b, 0)

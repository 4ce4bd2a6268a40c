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

/**
 * Heads in groups of the same size, those with the largest worth in group 0; of equal ones the first.
 * @param groups as many as there are heads at most
 * @returns the group of each head
 */
export function headGroups(worth: readonly number[], groups: number): number[] {
  const falling = worth.map((_, h) => h).sort((a, b) => worth[b]! - worth[a]! || a - b)
  const parts = Math.min(groups, worth.length)
  const out = new Array<number>(worth.length).fill(0)
  for (const [rank, h] of falling.entries()) out[h] = Math.floor((rank * parts) / worth.length)
  return out
}

/**
 * UNComp: a head of group 0 gets `ratio` times the rows of one of the last group, windows included; those between lie on a line.
 * What a head cannot use goes to the others.
 * @param free rows per head that compete for a place, on average
 * @param kept rows that stay anyway in each head
 * @param caps rows that compete, by head
 */
export function groupBudgets(
  groups: readonly number[],
  ratio: number,
  free: number,
  kept: number,
  caps: readonly number[],
): number[] {
  const last = Math.max(...groups)
  const weights = groups.map((g) => (last > 0 ? ratio - ((ratio - 1) * g) / last : 1))
  const all = weights.reduce((a, b) => a + b, 0)
  const total = free * groups.length
  // A head that the window alone fills gets nothing more, and the others pay for it.
  const beyond = weights.map((w) => Math.max(0, (w / all) * (total + kept * groups.length) - kept))
  const asked = beyond.reduce((a, b) => a + b, 0)
  const quotas = beyond.map((rows) => (asked > 0 ? (rows / asked) * total : 0))
  return capTo(roundTo(quotas, total), caps)
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

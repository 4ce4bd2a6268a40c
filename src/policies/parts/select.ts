/** Which rows stay: the best, in order, ties to the older row, so that the same scores always give the same plan. */
import { KvasirError } from '../../contract/errors.ts'
import type { CompressionPlan, PolicyState } from '../../contract/policy.ts'
import type { Ends, LayerScores } from './scores.ts'

/** Indices of the `count` largest scores, ascending; of equal ones those that come first. */
export function topRows(scores: Float64Array, count: number): Int32Array {
  const out = new Int32Array(Math.max(0, Math.min(count, scores.length)))
  pick(scores, out, 0)
  return out
}

/** Fills `out` with the indices of as many of the largest scores, counted from `first`. */
function pick(scores: Float64Array, out: Int32Array, first: number): void {
  const k = out.length
  if (k === 0) return
  // The case of every decode step.
  if (k === scores.length - 1) {
    const one = worst(scores)
    for (let j = 0; j < k; j++) out[j] = first + (j < one ? j : j + 1)
    return
  }
  const least = bound(scores, k)
  let equal = k
  for (const s of scores) if (s > least) equal--
  let at = 0
  for (let j = 0; j < scores.length && at < k; j++) {
    const s = scores[j]!
    if (s > least || (s === least && equal-- > 0)) out[at++] = first + j
  }
  if (at !== k) throw notNumbers()
}

/** A bound that `k` scores reach and at most k pass. Numbers are sorted several times faster than indices by their scores. */
function bound(scores: Float64Array, k: number): number {
  return scores.toSorted()[scores.length - k]!
}

/** Index of the least score; of equal ones the last. */
function worst(scores: Float64Array): number {
  let at = 0
  for (let j = 0; j < scores.length; j++) {
    if (scores[j]! <= scores[at]!) at = j
    else if (Number.isNaN(scores[j]!)) throw notNumbers()
  }
  return at
}

const notNumbers = () => new KvasirError('NATIVE_FAILED', 'attention gave scores that are not numbers')

/**
 * The plan of one layer: rows at both ends, and the best of those that compete.
 * @param rows in the cache, by KV head
 * @param counts how many of those that compete stay, by KV head
 */
export function keepLayer(
  rows: readonly number[],
  ends: Ends,
  scores: LayerScores,
  counts: readonly number[],
): Int32Array[] {
  const done = new Map<Float64Array, { readonly rows: number; readonly count: number; readonly kept: Int32Array }>()
  return rows.map((n, kvHead) => {
    const one = scores[kvHead]!
    const count = counts[kvHead]!
    const same = done.get(one)
    if (same?.rows === n && same.count === count) return same.kept
    const kept = keepHead(n, ends, one, count)
    done.set(one, { rows: n, count, kept })
    return kept
  })
}

function keepHead(n: number, ends: Ends, scores: Float64Array, count: number): Int32Array {
  const first = Math.min(ends.first, n)
  const last = Math.min(ends.last, n - first)
  const best = Math.max(0, Math.min(count, scores.length))
  const kept = new Int32Array(first + best + last)
  for (let j = 0; j < first; j++) kept[j] = j
  pick(scores, kept.subarray(first, first + best), first)
  for (let j = 0; j < last; j++) kept[first + best + j] = n - last + j
  return kept
}

/** Rows in the cache, `[layer][kvHead]`. */
export function cachedRows({ model, positions }: PolicyState): number[][] {
  return Array.from({ length: model.layers }, (_, layer) =>
    Array.from({ length: model.kvHeads }, (_, kvHead) => positions(layer, kvHead).length),
  )
}

/** How many rows all heads together have beyond the budget; at most 0: none. */
export function rowsOver({ model, budget }: PolicyState, rows: readonly (readonly number[])[]): number {
  return rows.flat().reduce((a, b) => a + b, 0) - budget * model.layers * model.kvHeads
}

/** The oldest `first` rows of every head and the newest up to the budget. */
export function keepEnds(state: PolicyState, first: number): CompressionPlan {
  const rows = cachedRows(state)
  if (rowsOver(state, rows) <= 0) return { kind: 'keep-all' }
  const sinks = Math.min(first, state.budget - 1)
  const ends: Ends = { first: sinks, last: state.budget - sinks }
  const none = new Float64Array(0)
  return {
    kind: 'keep',
    rows: rows.map((heads) =>
      keepLayer(
        heads,
        ends,
        heads.map(() => none),
        heads.map(() => 0),
      ),
    ),
  }
}

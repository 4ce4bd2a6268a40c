import assert from 'node:assert/strict'
import { test } from 'node:test'
import { bestFitDecreasing } from './packing.ts'

/** mulberry32 */
function random(seed: number): () => number {
  let a = seed
  return () => {
    a = (a + 0x6d2b79f5) | 0
    let t = Math.imul(a ^ (a >>> 15), 1 | a)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}

/** Fewest bins, by trying all: each item into every bin that has room, and into one new bin. */
function fewestBins(lengths: readonly number[], capacity: number): number {
  const items = lengths.toSorted((a, b) => b - a)
  let best = items.length
  const place = (at: number, loads: number[]): void => {
    if (loads.length >= best) return
    if (at === items.length) {
      best = loads.length
      return
    }
    const tried = new Set<number>()
    for (const [b, load] of loads.entries()) {
      if (load + items[at]! > capacity || tried.has(load)) continue
      tried.add(load)
      loads[b] = load + items[at]!
      place(at + 1, loads)
      loads[b] = load
    }
    place(at + 1, [...loads, items[at]!])
  }
  place(0, [])
  return best
}

/** Neighbours by length share a bin, as in the paper's length-ordered baseline. */
function lengthOrderedBins(lengths: readonly number[], capacity: number): number {
  let bins = 0
  let load = Number.POSITIVE_INFINITY
  for (const n of lengths.toSorted((a, b) => b - a)) {
    if (load + n > capacity) [bins, load] = [bins + 1, 0]
    load += n
  }
  return bins
}

test('the example of the spec: 32 token cells instead of 48', () => {
  const lengths = [8, 7, 5, 4, 4, 2]
  const bins = bestFitDecreasing(lengths, 8)
  assert.deepEqual(
    bins.map((items) => items.map((i) => lengths[i])),
    [[8], [7], [5, 2], [4, 4]],
  )
})

test('the fullest bin that has room, not the first', () => {
  // First fit would put the 1 beside the 8.
  assert.deepEqual(bestFitDecreasing([8, 6, 5, 1], 12), [[0], [1, 2, 3]])
  // Ties: the earlier item, the earlier bin.
  assert.deepEqual(bestFitDecreasing([4, 6, 6, 4, 1], 8), [[1, 4], [2], [0, 3]])
})

test('edges: nothing, equal lengths, one that fits nowhere', () => {
  assert.deepEqual(bestFitDecreasing([], 8), [])
  assert.deepEqual(bestFitDecreasing([8, 8, 8], 8), [[0], [1], [2]])
  assert.throws(() => bestFitDecreasing([3, 9], 8), /an item of length 9 in bins of 8/)
})

test('200 random sets: every item once, no bin too full, close to the fewest bins', () => {
  const next = random(7)
  let exact = 0
  let better = 0
  for (let set = 0; set < 200; set++) {
    const lengths = Array.from({ length: 10 }, () => 1 + Math.floor(next() * 100))
    const capacity = Math.max(...lengths)
    const bins = bestFitDecreasing(lengths, capacity)
    assert.deepEqual(
      bins.flat().sort((a, b) => a - b),
      lengths.map((_, i) => i),
    )
    for (const items of bins) assert.ok(items.reduce((n, i) => n + lengths[i]!, 0) <= capacity)
    const fewest = fewestBins(lengths, capacity)
    assert.ok(bins.length >= fewest && bins.length <= Math.ceil((11 / 9) * fewest) + 1, `${bins.length} of ${fewest}`)
    if (bins.length === fewest) exact++
    if (bins.length < lengthOrderedBins(lengths, capacity)) better++
  }
  assert.ok(exact >= 160, `${exact} of 200 sets have the fewest bins`)
  assert.ok(better >= 100, `${better} of 200 sets have fewer bins than the length-ordered ones`)
})

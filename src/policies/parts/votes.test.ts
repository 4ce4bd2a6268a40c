import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { ObservedLayer } from '../../contract/observation.ts'
import {
  attention,
  columnOf,
  DIMS,
  fullCache,
  mean,
  observe,
  rows,
  stateOf,
  total,
  uniformAttention,
} from '../attention.fixture.ts'
import { addVotes, allQueries, averageVotes, keptVotes } from './votes.ts'

const ALL = { rows: 1, share: 1, statistics: ['sum'] } as const
const close = (a: number, b: number) => assert.ok(Math.abs(a - b) <= 1e-5 * Math.abs(b), `${a} is not ${b}`)

test('with all queries: the mean of what those give that may see a row', () => {
  const n = 40
  const P = attention(DIMS, n, 2)
  const seen = observe(P, DIMS, { window: ALL })
  const votes = addVotes(null, seen.window!, seen.windowRows!, 0)
  const state = stateOf(DIMS, fullCache(DIMS, n), n)
  const averages = averageVotes(votes.sums[1]!, state, 1, 0, votes.queries)
  const group = DIMS.heads / DIMS.kvHeads
  for (const [kvHead, one] of averages.entries())
    for (const [j, s] of one.entries())
      close(s, mean(rows(kvHead * group, (kvHead + 1) * group).map((h) => total(columnOf(P[1]![h]!, j, n)) / (n - j))))
})

test('of even attention: sums fall from H_l to 1/l, averages from H_l / l to 1/l', () => {
  const l = 50
  const seen = observe(uniformAttention(DIMS, l), DIMS, { window: ALL })
  const { sums, queries } = addVotes(null, seen.window!, seen.windowRows!, 0)
  const state = stateOf(DIMS, fullCache(DIMS, l), l)
  const harmonic = total(rows(1, l + 1).map((k) => 1 / k))
  const plain = sums[0]![0]!
  const [averaged] = averageVotes(sums[0]!, state, 0, 0, queries) as [Float64Array]
  for (const i of [0, 7, l - 1]) {
    const s = total(rows(i, l).map((k) => 1 / (k + 1)))
    close(plain[i]!, s)
    close(averaged[i]!, s / (l - i))
  }
  close(plain[0]! / plain.at(-1)!, l * harmonic)
  close(averaged[0]! / averaged.at(-1)!, harmonic)
  assert.deepEqual(allQueries(state), queries)
})

test('only queries at a row or behind it may see it', () => {
  const state = stateOf(DIMS, fullCache(DIMS, 6), 6)
  const [one] = averageVotes([Float64Array.of(6, 6, 6, 6, 6, 0)], state, 0, 0, Int32Array.of(1, 2, 4)) as [Float64Array]
  assert.deepEqual([...one], [2, 2, 3, 6, 6, 0])
  const [behind] = averageVotes([Float64Array.of(6, 6)], state, 0, 3, Int32Array.of(1, 2, 4)) as [Float64Array]
  assert.deepEqual([...behind], [6, 6])
})

test('queries that come later add to rows that were there, and see new ones; nothing is changed', () => {
  const layer = (sums: number[]): ObservedLayer => ({
    keys: [sums.length],
    positions: [Int32Array.from(rows(0, sums.length))],
    statistics: { sum: Float32Array.from(sums) },
  })
  const first = addVotes(null, [layer([9, 1, 2])], Int32Array.of(2), 1)
  const second = addVotes(first, [layer([9, 4, 8, 16])], Int32Array.of(3), 1)
  assert.deepEqual([...first.sums[0]![0]!], [1, 2])
  assert.deepEqual([...second.sums[0]![0]!], [5, 10, 16])
  assert.deepEqual([...second.queries], [2, 3])
  const kept = keptVotes(second, [[Int32Array.of(0, 2)]])
  assert.deepEqual([...kept.sums[0]![0]!], [5, 16])
})

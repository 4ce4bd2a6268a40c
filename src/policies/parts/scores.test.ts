import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ShapeError } from '../../contract/errors.ts'
import type { ObservedLayer } from '../../contract/observation.ts'
import { groupMean, layerMean, poolRows, statistic } from './scores.ts'

/** Four query heads on two KV heads of 3 and 2 rows. */
const ragged: ObservedLayer = {
  keys: [3, 2],
  positions: [Int32Array.of(0, 1, 2), Int32Array.of(1, 2)],
  statistics: { sum: Float32Array.of(1, 2, 3, 3, 4, 5, 6, 7, 0, 8, 9, 0) },
}
const lists = (scores: readonly Float64Array[]) => scores.map((s) => [...s])
const NONE = { first: 0, last: 0 }

test('query heads of a group are averaged; heads can have different rows', () => {
  assert.deepEqual(lists(groupMean(ragged, 'sum', NONE)), [
    [2, 3, 4],
    [7, 8],
  ])
  assert.deepEqual(lists(groupMean(ragged, 'sum', { first: 1, last: 1 })), [[3], []])
})

test('a mean over the layer needs the same rows everywhere', () => {
  const even = { ...ragged, keys: [3, 3] }
  const scores = layerMean(even, 'sum', { first: 0, last: 1 })
  assert.deepEqual(lists(scores), [
    [4.5, 5.5],
    [4.5, 5.5],
  ])
  assert.equal(scores[0], scores[1])
  assert.deepEqual(lists(layerMean(even, 'sum', NONE, [1, 2]))[0], [4.5, 5.5, 2.5])
  assert.throws(() => layerMean(ragged, 'sum', NONE), ShapeError)
  assert.throws(() => statistic(ragged, 'variance'), /'variance' was not observed/)
})

test('pooling: averages divide by the width at the borders too', () => {
  const one = [Float64Array.of(3, 0, 6, 9)]
  assert.deepEqual(lists(poolRows(one, 3, 'avg')), [[1, 3, 5, 5]])
  assert.deepEqual(lists(poolRows(one, 3, 'max')), [[3, 6, 9, 9]])
  assert.deepEqual(lists(poolRows(one, 9, 'avg')), [[2, 2, 2, 2]])
  assert.deepEqual(lists(poolRows(one, 1, 'avg')), lists(one))
  assert.deepEqual(lists(poolRows([new Float64Array(0)], 5, 'max')), [[]])
})

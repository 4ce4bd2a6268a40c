import assert from 'node:assert/strict'
import { test } from 'node:test'
import { capTo, roundTo, spread } from './shares.ts'

test('rounds to a total: the largest fractions first, ties to the first', () => {
  assert.deepEqual(roundTo([1.5, 2.25, 1.25], 5), [2, 2, 1])
  assert.deepEqual(roundTo([0.5, 0.5, 1], 2), [1, 0, 1])
  // 0.1 + 0.2 is a little more than 0.3, and 3 * 1.1 than 3.3: whole quotas stay whole.
  assert.deepEqual(roundTo([2.9999999999999996, 4], 7), [3, 4])
})

test('caps: the excess goes evenly to whoever has room', () => {
  assert.deepEqual(capTo([9, 1, 1], [5, 5, 5]), [5, 3, 3])
  assert.deepEqual(capTo([9, 4, 0], [5, 5, 5]), [5, 5, 3])
  assert.deepEqual(capTo([9, 9], [5, 5]), [5, 5])
})

test('what does not divide evenly goes to the first', () => {
  const out = [0, 0, 0, 7]
  spread(out, [0, 1, 2], 5)
  assert.deepEqual(out, [2, 2, 1, 7])
})

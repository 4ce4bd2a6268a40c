import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { best, rows } from '../attention.fixture.ts'
import { shareOf, splitRows } from './tiers.ts'

test('the best and the others: no row is lost, none is in both', () => {
  fc.assert(
    // Few different numbers, so that there are ties.
    fc.property(fc.array(fc.integer({ min: 0, max: 5 })), fc.nat(20), (scores, count) => {
      const split = splitRows(Float64Array.from(scores), count)
      const top = best(scores, count)
      assert.deepEqual([...split.best], top)
      assert.deepEqual(
        [...split.others],
        rows(0, scores.length).filter((j) => !top.includes(j)),
      )
    }),
  )
})

test('shares are rounded down, but not for rounding errors', () => {
  assert.equal(shareOf(0.2, 34), 6)
  assert.equal(shareOf(0.29, 100), 29)
  assert.equal(shareOf(1 - 0.9, 320), 32)
  assert.equal(shareOf(1, 77), 77)
})

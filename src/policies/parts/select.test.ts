import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { best } from '../attention.fixture.ts'
import { keepLayer, topRows } from './select.ts'

test('the best rows in order, ties to the first: against a sort of indices', () => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 0, max: 6 }), { maxLength: 50 }),
      fc.integer({ min: -2, max: 60 }),
      (scores, k) => {
        assert.deepEqual([...topRows(Float64Array.from(scores), k)], best(scores, Math.max(0, k)))
      },
    ),
  )
})

test('scores that are not numbers are an error, not a short plan', () => {
  assert.throws(() => topRows(Float64Array.of(1, Number.NaN, Number.NaN), 2), /not numbers/)
})

test('ends that overlap: the first rows, then what is left of the last', () => {
  const kept = (n: number) => [...keepLayer([n], { first: 3, last: 4 }, [new Float64Array(0)], [0])[0]!]
  assert.deepEqual([kept(0), kept(2), kept(5), kept(9)], [[], [0, 1], [0, 1, 2, 3, 4], [0, 1, 2, 5, 6, 7, 8]])
})

test('heads that share scores share the plan, unless their counts differ', () => {
  const s = Float64Array.of(1, 2, 3)
  const [a, b, c] = keepLayer([4, 4, 4], { first: 0, last: 1 }, [s, s, s], [2, 2, 1])
  assert.equal(a, b)
  assert.deepEqual([...a!, ...c!], [1, 2, 3, 2, 3])
})

import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { total } from '../attention.fixture.ts'
import { adaBudgets } from './head-budgets.ts'

const list = (...xs: number[]) => Float64Array.from(xs)

test('a head that looks at few rows gives places away', () => {
  // Two places each. Weights: 10/10 and 6/12; z: 9 1 0 0 and 1.5 1.5 1.5 1.5: the best four are 9 and three of the second.
  assert.deepEqual(adaBudgets([list(9, 1, 0, 0), list(3, 3, 3, 3)], 2, 0), [1, 3])
  assert.deepEqual(adaBudgets([list(9, 1, 0, 0), list(3, 3, 3, 3)], 2, 1), [2, 2])
  // 0.5 * 1 + 1 and 0.5 * 3 + 1: both end in a half, and the first head gets the row.
  assert.deepEqual(adaBudgets([list(9, 1, 0, 0), list(3, 3, 3, 3)], 2, 0.5), [2, 2])
})

test('ties go to the first head; heads that nobody looks at still share out all places', () => {
  assert.deepEqual(adaBudgets([list(1, 1), list(1, 1)], 1, 0), [2, 0])
  // 0.5 * 2 + 0.5 and 0.5 * 0 + 0.5.
  assert.deepEqual(adaBudgets([list(0, 0), list(0, 0)], 1, 0.5), [2, 0])
})

test('every place is given out, none twice, and the floor holds', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 8 }).chain((heads) =>
        fc.record({
          lists: fc.array(fc.array(fc.float({ min: 0, max: 1, noNaN: true }), { minLength: 6, maxLength: 40 }), {
            minLength: heads,
            maxLength: heads,
          }),
          free: fc.integer({ min: 0, max: 6 }),
          floor: fc.double({ min: 0, max: 1, noNaN: true }),
        }),
      ),
      ({ lists, free, floor }) => {
        const rows = adaBudgets(
          lists.map((x) => Float64Array.from(x)),
          free,
          floor,
        )
        assert.equal(total(rows), free * lists.length)
        for (const [h, b] of rows.entries())
          assert.ok(b <= lists[h]!.length && b >= Math.floor(floor * free + 1e-9), String(rows))
      },
    ),
  )
})

/** Against sorting. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import { fillOutliers } from './outliers.ts'

/** What the function promises for one vector, by a stable sort. */
function plain(vector: readonly number[], share: number): { filled: number[]; marks: number[] } {
  const k = Math.floor((share / 2) * vector.length)
  const order = vector.map((_, i) => i).sort((i, j) => vector[i]! - vector[j]!)
  const taken = new Set([...order.slice(0, k), ...order.slice(vector.length - k)])
  const mean = Math.fround(vector.reduce((sum, value) => sum + value, 0) / vector.length)
  return {
    filled: vector.map((value, i) => (taken.has(i) ? mean : value)),
    marks: vector.map((_, i) => Number(taken.has(i))),
  }
}

/** Small whole numbers: many are equal. */
const matrices = fc.tuple(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 70 })).chain(([d, n]) =>
  fc.record({
    d: fc.constant(d),
    x: fc.array(fc.integer({ min: -9, max: 9 }), { minLength: d * n, maxLength: d * n }),
  }),
)

describe('outliers', () => {
  it('are the extremes of each vector, which become its mean', () => {
    fc.assert(
      fc.property(matrices, fc.double({ min: 0, max: 1, noNaN: true }), fc.boolean(), ({ d, x }, share, byToken) => {
        const n = x.length / d
        const y = Float32Array.from([...x, ...Array(d).fill(99)]) // a row behind the last that counts for nothing
        const marks = fillOutliers(y, d, n, share, byToken ? 'token' : 'channel') ?? new Uint8Array(y.length)
        const places = byToken
          ? Array.from({ length: n }, (_, row) => Array.from({ length: d }, (_, i) => row * d + i))
          : Array.from({ length: d }, (_, i) => Array.from({ length: n }, (_, row) => row * d + i))
        for (const vector of places) {
          const want = plain(
            vector.map((at) => x[at]!),
            share,
          )
          assert.deepEqual(
            vector.map((at) => marks[at]),
            want.marks,
          )
          assert.deepEqual(
            vector.map((at) => y[at]),
            want.filled,
          )
        }
        assert.deepEqual([...y.subarray(n * d)], Array(d).fill(99))
        assert.deepEqual([...marks.subarray(n * d)], Array(d).fill(0))
      }),
      { numRuns: 200 },
    )
  })

  it('are none where the share is of less than one number at each end', () => {
    assert.equal(fillOutliers(new Float32Array(8 * 10), 8, 10, 0.19, 'channel'), null)
    assert.notEqual(fillOutliers(new Float32Array(8 * 10), 8, 10, 0.2, 'channel'), null)
    assert.equal(fillOutliers(new Float32Array(8 * 10), 8, 10, 0.24, 'token'), null)
  })
})

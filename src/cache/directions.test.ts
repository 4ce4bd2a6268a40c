/** One direction for two vectors, against the formula in long hand. */
import assert from 'node:assert/strict'
import { before, describe, it } from 'node:test'
import fc from 'fast-check'
import { Random } from '../ggml/fixture.test.ts'
import { loadNative } from '../ggml/library.ts'
import { sharedDirections } from './directions.ts'

const d = 8
const total = (list: readonly number[]) => list.reduce((a, b) => a + b, 0)
const randoms = (seed: number) => {
  const r = new Random(seed)
  return () => r.next()
}
const all = (x: Float32Array, size = d) => Int32Array.from({ length: x.length / size }, (_, i) => i)

/** f32 [d, n], each number from -1 to 1, each vector of another length. */
function vectors(n: number, seed: number): Float32Array {
  const next = randoms(seed)
  const lengths = Array.from({ length: n }, () => 10 ** (4 * next() - 2))
  return Float32Array.from({ length: d * n }, (_, at) => (2 * next() - 1) * lengths[Math.floor(at / d)]!)
}

const column = (x: Float32Array, row: number): number[] => [...x.subarray(row * d, row * d + d)]
const dot = (a: readonly number[], b: readonly number[]) => total(a.map((x, i) => x * b[i]!))
const unit = (a: readonly number[]) => a.map((x) => x / Math.sqrt(dot(a, a)))
const distance = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Math.sqrt(total(Array.from(a, (x, i) => (x - b[i]!) ** 2)))
const near = (got: number, want: number, within: number) =>
  assert.ok(Math.abs(got - want) <= within, `${got} is not within ${within} of ${want}`)
const close = (got: ArrayLike<number>, want: ArrayLike<number>, within: number) => near(distance(got, want), 0, within)

/** Numbers 2 i and 2 i + 1 of each vector, rotated by its position times 10^-i. */
function rotated(x: Float32Array): Float32Array {
  const out = x.slice()
  for (let at = 0; at < x.length; at += 2) {
    const theta = Math.floor(at / d) * 10 ** -((at % d) / 2)
    out[at] = x[at]! * Math.cos(theta) - x[at + 1]! * Math.sin(theta)
    out[at + 1] = x[at]! * Math.sin(theta) + x[at + 1]! * Math.cos(theta)
  }
  return out
}

before(loadNative)

const restore = (directions: Float32Array, lengths: Float32Array, size: number): Float32Array =>
  directions.map((x, at) => x * lengths[Math.floor(at / size)]!)

describe('slerp', () => {
  it("is the formula's, in long hand, and of length 1", () => {
    for (const t of [0, 0.3, 0.6, 1]) {
      const [a, b] = [vectors(40, 5), vectors(40, 6)]
      const { directions, lower, upper } = sharedDirections(a, b, d, t)
      for (const row of all(a)) {
        const [ua, ub] = [unit(column(a, row)), unit(column(b, row))]
        const O = Math.acos(dot(ua, ub))
        const e = ua.map((x, i) => (Math.sin((1 - t) * O) * x + Math.sin(t * O) * ub[i]!) / Math.sin(O))
        close(column(directions, row), e, 1e-6)
        near(Math.hypot(...column(directions, row)), 1, 1e-6)
        // Rounded to f16.
        near(lower[row]! / Math.hypot(...column(a, row)), 1, 5e-4)
        near(upper[row]! / Math.hypot(...column(b, row)), 1, 5e-4)
      }
    }
  })
  it('half-way it is the direction of the sum', () => {
    const [a, b] = [vectors(40, 7), vectors(40, 8)]
    const { directions } = sharedDirections(a, b, d, 0.5)
    for (const row of all(a)) {
      const [ua, ub] = [unit(column(a, row)), unit(column(b, row))]
      close(column(directions, row), unit(ua.map((x, i) => x + ub[i]!)), 1e-6)
    }
  })

  const plane = (theta: number) => Float32Array.of(3 * Math.cos(theta), 3 * Math.sin(theta))
  const between = (theta: number, t: number) => sharedDirections(Float32Array.of(2, 0), plane(theta), 2, t)

  it('at small angles, on both sides of where the formula is left', () => {
    for (const theta of [0, 1e-7, 0.99e-4, 1.01e-4, 1e-3]) {
      const { directions } = between(theta, 0.6)
      near(directions[0]!, Math.cos(0.6 * theta), 1e-7)
      near(directions[1]!, 0.6 * theta, 1e-9 + 1e-5 * theta)
    }
  })
  it('of opposite vectors is the one at the nearer end', () => {
    for (const theta of [Math.PI, Math.PI - 1e-5, Math.PI + 1e-5]) {
      close(between(theta, 0.6).directions, [-1, 0], 1e-4)
      assert.deepEqual([...between(theta, 0.4).directions], [1, 0])
    }
    // A little off, the great circle is known.
    close(between(Math.PI - 0.01, 0.5).directions, [0, 1], 0.01)
  })
  it('where one vector is zeros is the other one, whatever t; both come back', () => {
    const zero = Float32Array.of(0, 0)
    const x = Float32Array.of(3, 4)
    for (const t of [0, 0.6, 1]) {
      for (const [lower, upper] of [
        [zero, x],
        [x, zero],
      ] as const) {
        const shared = sharedDirections(lower, upper, 2, t)
        close(shared.directions, [0.6, 0.8], 1e-6)
        close(restore(shared.directions, shared.lower, 2), lower, 1e-5)
        close(restore(shared.directions, shared.upper, 2), upper, 1e-5)
      }
      assert.deepEqual([...sharedDirections(zero, zero, 2, t).directions], [0, 0])
    }
  })
})

describe('what comes back', () => {
  it('identical layers: all of it, for any t; lengths may differ', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 999 }), fc.double({ min: 0, max: 1, noNaN: true }), (seed, t) => {
        const x = vectors(9, seed)
        const scaled = x.map((v) => 7 * v)
        for (const upper of [x, scaled]) {
          const shared = sharedDirections(x, upper, d, t)
          const back = [restore(shared.directions, shared.lower, d), restore(shared.directions, shared.upper, d)]
          for (const [i, v] of x.entries()) near(back[0]![i]!, v, 1e-3 * Math.abs(v) + 1e-4)
          for (const [i, v] of upper.entries()) near(back[1]![i]!, v, 1e-3 * Math.abs(v) + 1e-4)
        }
      }),
      { numRuns: 50 },
    )
  })
  it('at the ends: one layer', () => {
    const [a, b] = [vectors(9, 9), vectors(9, 10)]
    const [low, high] = [sharedDirections(a, b, d, 0), sharedDirections(a, b, d, 1)]
    for (const [i, x] of restore(low.directions, low.lower, d).entries()) near(x, a[i]!, 1e-3 * Math.abs(a[i]!) + 1e-4)
    for (const [i, x] of restore(high.directions, high.upper, d).entries())
      near(x, b[i]!, 1e-3 * Math.abs(b[i]!) + 1e-4)
  })
  it('keeps its length, where a mean of the vectors does not: of layers alike but for that, more is left', () => {
    const next = randoms(11)
    const a = vectors(60, 12)
    const b = a.map((x) => 3 * x * (1 + 0.1 * (2 * next() - 1)))
    const shared = sharedDirections(a, b, d, 0.5)
    const middle = a.map((x, i) => (x + b[i]!) / 2)
    const lost = (back: Float32Array, x: Float32Array) => distance(back, x) / distance(x, new Float32Array(x.length))
    near(lost(restore(shared.directions, shared.lower, d), a), 0, 0.1)
    near(lost(restore(shared.directions, shared.upper, d), b), 0, 0.1)
    near(lost(middle, a), 1, 0.1)
    near(lost(middle, b), 1 / 3, 0.05)
  })
  it('rotations of both layers pass through: directions and lengths', () => {
    const [a, b] = [vectors(30, 13), vectors(30, 14)]
    const [before, after] = [sharedDirections(a, b, d, 0.6), sharedDirections(rotated(a), rotated(b), d, 0.6)]
    for (const [i, x] of rotated(before.directions).entries()) near(after.directions[i]!, x, 1e-5)
    for (const row of all(a)) {
      near(after.lower[row]! / before.lower[row]!, 1, 1e-3)
      near(after.upper[row]! / before.upper[row]!, 1, 1e-3)
    }
  })
})

import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { randoms, total } from '../attention.fixture.ts'
import { eigenvalues, truncatedEntropy } from './entropy.ts'

const [d, T] = [16, 4000]

/** Box and Muller. */
function gaussians(seed: number): () => number {
  const next = randoms(seed)
  return () => Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next())
}

/** f32 [d, T] */
const states = (of: (i: number, t: number) => number) =>
  Float32Array.from({ length: d * T }, (_, at) => of(at % d, Math.floor(at / d)))

const near = (got: number, want: number, within: number) =>
  assert.ok(Math.abs(got - want) <= within, `${got} is not within ${within} of ${want}`)

describe('eigenvalues', () => {
  it('are those that the matrix was made with', () => {
    // Q diag(s) Q with the reflection Q = I - 2 v v^T / v.v
    for (const [size, seed] of [
      [2, 1],
      [7, 2],
      [64, 3],
    ] as const) {
      const next = gaussians(seed)
      const want = Array.from({ length: size }, (_, i) => 10 ** -(i % 8) * (1 + i))
      const v = Array.from({ length: size }, next)
      const vv = total(v.map((x) => x * x))
      const q = (i: number, j: number) => (i === j ? 1 : 0) - (2 * v[i]! * v[j]!) / vv
      const a = Float64Array.from({ length: size * size }, (_, at) =>
        total(want.map((s, k) => q(Math.floor(at / size), k) * s * q(k, at % size))),
      )
      const got = eigenvalues(a, size).toSorted()
      for (const [i, s] of want.toSorted((x, y) => x - y).entries()) near(got[i]!, s, 1e-11)
    }
  })
  it('of a diagonal matrix are its diagonal; the matrix stays as it was', () => {
    const a = Float64Array.of(3, 1, 1, 3)
    const [low, high] = eigenvalues(a, 2).toSorted() as unknown as [number, number]
    near(low, 2, 1e-14)
    near(high, 4, 1e-14)
    assert.deepEqual([...a], [3, 1, 1, 3])
    assert.deepEqual([...eigenvalues(Float64Array.of(5, 0, 0, -1), 2)], [5, -1])
  })
})

describe('truncated entropy', () => {
  const normal = gaussians(7)
  const gaussian = states(normal)
  /** Some directions are used more than others. */
  const skewed = states((i) => normal() / (1 + i))

  it('is almost nothing where tokens differ in one direction', () => {
    const u = Array.from({ length: d }, normal)
    const r = Array.from({ length: T }, normal)
    const x = states((i, t) => r[t]! * u[i]! + 1e-3 * normal())
    near(truncatedEntropy(x, d, d), 0, 0.02)
  })
  it('is ln d where they differ in all alike', () => near(truncatedEntropy(gaussian, d, d), Math.log(d), 0.01))
  it('looks past what all rows have in common', () => {
    // Equal rows but for tiny noise: centring leaves the noise, which goes in all directions. 1e-3 keeps its shape in f32.
    const x = states((i) => i + 1e-3 * normal())
    near(truncatedEntropy(x, d, d), Math.log(d), 0.01)
  })
  it('grows with k', () => {
    const H = Array.from({ length: d }, (_, k) => truncatedEntropy(skewed, d, k + 1))
    for (let k = 1; k < d; k++) assert.ok(H[k]! > H[k - 1]!, String(H))
  })
  it('is that of the spectrum, by its definition', () => {
    // Two tokens opposite each other on each axis, 3 pairs on the first and 1 on the second: eigenvalues 3/4 and 1/4.
    const x = Float32Array.of(2, 0, -2, 0, 2, 0, -2, 0, 2, 0, -2, 0, 0, 2, 0, -2)
    near(truncatedEntropy(x, 2, 1), -0.75 * Math.log(0.75), 1e-9)
    near(truncatedEntropy(x, 2, 2), -0.75 * Math.log(0.75) - 0.25 * Math.log(0.25), 1e-8)
  })
  it('does not see a scale, nor a constant added to all rows', () => {
    const H = truncatedEntropy(skewed, d, 4)
    near(
      truncatedEntropy(
        skewed.map((v) => 8 * v),
        d,
        4,
      ),
      H,
      1e-12,
    )
    near(
      truncatedEntropy(
        skewed.map((v, at) => v + (at % d)),
        d,
        4,
      ),
      H,
      1e-5,
    )
  })
  it('is nothing where all rows are the same', () => {
    const x = states(() => 1)
    near(truncatedEntropy(x, d, d), 0, 1e-7)
  })
  it('refuses shapes that do not go together', () => {
    assert.throws(() => truncatedEntropy(new Float32Array(33), 16, 4), /d = 16 cannot have 33 numbers/)
    assert.throws(() => truncatedEntropy(new Float32Array(0), 16, 4), /cannot have 0 numbers/)
    assert.throws(() => truncatedEntropy(gaussian, d, 17), /1 to 16 can count, got 17/)
  })
})

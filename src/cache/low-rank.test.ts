/** Against the best product of the same rank, by a singular value decomposition. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import type { Codes } from '../contract/format.ts'
import { Random } from '../ggml/fixture.test.ts'
import { decode, encode } from './codes.ts'
import { lowRank } from './low-rank.ts'

type Factors = ReturnType<typeof lowRank>

/** Frobenius norm of x - A B^T. */
function errorOf(x: Float32Array, d: number, { a, b }: Factors): number {
  const rank = b.length / d
  let squares = 0
  for (let at = 0; at < x.length; at++) {
    let left = x[at]!
    for (let k = 0; k < rank; k++) left -= a[Math.floor(at / d) * rank + k]! * b[(at % d) * rank + k]!
    squares += left ** 2
  }
  return Math.sqrt(squares)
}

/** Descending, by one-sided Jacobi rotations of the columns (channels) of x [d, n]. */
function singularValues(x: Float32Array, d: number): number[] {
  const m = Float64Array.from(x)
  const dot = (i: number, j: number) => {
    let sum = 0
    for (let at = 0; at < m.length; at += d) sum += m[at + i]! * m[at + j]!
    return sum
  }
  const rotate = (i: number, j: number, angle: number) => {
    const [c, s] = [Math.cos(angle), Math.sin(angle)]
    for (let at = 0; at < m.length; at += d) {
      const [p, q] = [m[at + i]!, m[at + j]!]
      m[at + i] = c * p + s * q
      m[at + j] = c * q - s * p
    }
  }
  for (let sweep = 0; sweep < 12; sweep++)
    for (let i = 0; i < d; i++)
      for (let j = 0; j < i; j++) rotate(i, j, Math.atan2(2 * dot(i, j), dot(i, i) - dot(j, j)) / 2)
  return Array.from({ length: d }, (_, i) => Math.sqrt(dot(i, i))).sort((p, q) => q - p)
}

const norm = (values: readonly number[]) => Math.sqrt(values.reduce((sum, s) => sum + s ** 2, 0))

function normals(r: Random, count: number): Float32Array {
  return Float32Array.from({ length: count }, () => r.normal())
}

/** Sum of `rank` outer products of normal numbers, each less than the one before by `decay`. f32 [d, n] */
function product(r: Random, d: number, n: number, rank: number, decay = 1): Float32Array {
  const x = new Float32Array(d * n)
  for (let k = 0; k < rank; k++) {
    const [rows, channels] = [normals(r, n), normals(r, d)]
    for (let at = 0; at < x.length; at++) x[at]! += decay ** k * rows[Math.floor(at / d)]! * channels[at % d]!
  }
  return x
}

/** Tokens that drift in a few directions. f32 [d, n] */
function tokens(r: Random, d: number, n: number): Float32Array {
  const directions = Array.from({ length: 6 }, () => normals(r, d))
  const at = new Float64Array(directions.length)
  const x = normals(r, d * n).map((value) => 0.3 * value)
  for (let row = 0; row < n; row++)
    for (const [k, direction] of directions.entries()) {
      at[k] = 0.95 * at[k]! + 0.4 * r.normal()
      for (let i = 0; i < d; i++) x[row * d + i]! += at[k]! * direction[i]!
    }
  return x
}

/** What rounding takes from x [d, n], n a multiple of 32. */
function lacking(x: Float32Array, c: Codes, d: number): Float32Array {
  const { blocks } = encode(x, c, d, { tier: null, balance: null, seed: 0 })
  const decoded = blocks.flatMap((block) => [...decode(block, c, d)])
  return x.map((value, at) => value - decoded[at]!)
}

describe('a product of two thin matrices', () => {
  const [d, n] = [24, 96]

  it('is within 5% of the best of its rank, on average', () => {
    const kinds: Record<string, (r: Random) => Float32Array> = {
      'no direction stands out': (r) => normals(r, d * n),
      'each a little less than the one before': (r) => product(r, d, n, d, 0.9),
      'what codes by channel lack': (r) => lacking(tokens(r, d, n), { bits: 2, groups: { by: 'channel' } }, d),
      'what codes by token lack': (r) => lacking(tokens(r, d, n), { bits: 2, groups: { by: 'token', size: d } }, d),
    }
    const seeds = Array.from({ length: 16 }, (_, i) => i)
    for (const [kind, make] of Object.entries(kinds)) {
      const cases = seeds.map((seed) => make(new Random(seed))).map((x) => ({ x, s: singularValues(x, d) }))
      for (const rank of [1, 2, 4]) {
        const ratios = cases.map(({ x, s }, seed) => errorOf(x, d, lowRank(x, d, rank, seed)) / norm(s.slice(rank)))
        const mean = ratios.reduce((sum, ratio) => sum + ratio, 0) / ratios.length
        assert.ok(Math.min(...ratios) > 0.9999, 'no product has less error than the best')
        assert.ok(mean < 1.05, `${kind}, rank ${rank}: ${mean} times the least error`)
      }
    }
  })

  it('is the matrix where that has no higher rank, and a column too many is 0', () => {
    const r = new Random(2)
    const x = new Float32Array(d * n)
    for (let k = 0; k < 3; k++) {
      // whole numbers: f32 holds their products, so that the rank is exact
      const [rows, channels] = [n, d].map((length) => Int8Array.from({ length }, () => r.int(-9, 9)))
      for (let at = 0; at < x.length; at++) x[at]! += rows![Math.floor(at / d)]! * channels![at % d]!
    }
    const { a, b } = lowRank(x, d, 5, 1)
    assert.ok(errorOf(x, d, { a, b }) < 1e-5 * norm([...x]), 'it is not the matrix')
    for (const m of [a, b])
      assert.ok(
        m.every((value, i) => i % 5 < 3 || value === 0),
        'there are more columns',
      )
    const zero = lowRank(new Float32Array(d * n), d, 2, 1)
    assert.deepEqual(zero, { a: new Float32Array(2 * n), b: new Float32Array(2 * d) })
  })

  it('is the matrix when the rank is that of all its rows or channels', () => {
    const r = new Random(3)
    for (const [channels, rows] of [[d, n] as const, [n, d] as const, [8, 1] as const]) {
      const x = normals(r, channels * rows)
      const rank = Math.min(channels, rows) + 2
      const { a, b } = lowRank(x, channels, rank, 1)
      assert.equal(a.length, rank * rows)
      assert.equal(b.length, rank * channels)
      assert.ok(errorOf(x, channels, { a, b }) < 1e-5 * norm([...x]), `[${channels}, ${rows}]`)
    }
  })

  it('has orthonormal columns on the left', () => {
    const rank = 6
    const { a } = lowRank(product(new Random(4), d, n, d, 0.1), d, rank, 1) // 1e-5 is the least of them
    for (let k = 0; k < rank; k++)
      for (let j = 0; j <= k; j++) {
        let sum = 0
        for (let at = 0; at < a.length; at += rank) sum += a[at + k]! * a[at + j]!
        assert.ok(Math.abs(sum - (k === j ? 1 : 0)) < 1e-5, `columns ${k} and ${j}: ${sum}`)
      }
  })

  it('depends on its seed alone', () => {
    const x = normals(new Random(5), d * n)
    assert.deepEqual(lowRank(x, d, 4, 9), lowRank(x, d, 4, 9))
    assert.notDeepEqual(lowRank(x, d, 4, 9), lowRank(x, d, 4, 10))
  })
})

import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import type { HeadRows } from '../../contract/observation.ts'
import { mean, randoms, total } from '../attention.fixture.ts'
import { adjacentCosines, angles } from './directions.ts'

const d = 8
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
const _close = (got: ArrayLike<number>, want: ArrayLike<number>, within: number) => near(distance(got, want), 0, within)

/** Of two vectors of two numbers. */
const angle = (a: readonly number[], b: readonly number[]) =>
  angles(Float32Array.from(a), Float32Array.from(b), 2, Int32Array.of(0))[0]!

describe('angles', () => {
  it('are the arc cosines of the cosines', () => {
    const [a, b] = [vectors(50, 1), vectors(50, 2)]
    for (const [row, O] of angles(a, b, d, all(a)).entries())
      near(O, Math.acos(dot(unit(column(a, row)), unit(column(b, row)))), 1e-12)
    near(angle([1, 0], [0, 3]), Math.PI / 2, 1e-15)
    near(angle([1, 1], [5, 0]), Math.PI / 4, 1e-15)
  })
  it('near 0 and near pi too, where arc cosines see nothing', () => {
    for (const small of [1e-3, 1e-5, 1e-9]) {
      const y = Math.fround(small)
      near(angle([1, 0], [1, y]), Math.atan(y), small * 1e-6)
      near(Math.PI - angle([1, 0], [-1, y]), Math.atan(y), small * 1e-6 + 1e-15)
    }
    assert.equal(angle([0.1, 0.7], [0.1, 0.7]), 0)
    assert.equal(angle([0.1, 0.7], [-0.1, -0.7]), Math.PI)
  })
  it('of a vector of zeros are 0: nothing is lost of it', () => {
    assert.deepEqual([angle([0, 0], [1, 2]), angle([1, 2], [0, 0]), angle([0, 0], [0, 0])], [0, 0, 0])
  })
  it('are of the rows that were asked for', () => {
    const [a, b] = [vectors(6, 3), vectors(6, 4)]
    const every = angles(a, b, d, all(a))
    assert.deepEqual([...angles(a, b, d, Int32Array.of(1, 5))], [every[1], every[5]])
  })
})

describe('cosines of neighbouring layers', () => {
  const model = { layers: 4, heads: 4, kvHeads: 2, headDim: d }
  const plain = (a: Float32Array, b: Float32Array) =>
    mean([...all(a)].map((row) => dot(unit(column(a, row)), unit(column(b, row)))))

  it('are means over rows and heads, of keys and values apart; each head is read once', () => {
    const cache = Array.from({ length: 4 }, (_, l) =>
      Array.from(
        { length: 2 },
        (_, h): HeadRows => ({ keys: vectors(20, 20 + 2 * l + h), values: vectors(20, 40 + l) }),
      ),
    )
    const read: string[] = []
    const rows = (l: number, h: number) => {
      read.push(`${l},${h}`)
      return cache[l]![h]!
    }
    const { keys, values } = adjacentCosines(rows, model)
    assert.deepEqual([keys.length, values.length, read.length, new Set(read).size], [3, 3, 8, 8])
    for (const l of [0, 1, 2]) {
      const [lower, upper] = [cache[l]!, cache[l + 1]!]
      near(keys[l]!, mean([0, 1].map((h) => plain(lower[h]!.keys, upper[h]!.keys))), 1e-9)
      near(values[l]!, mean([0, 1].map((h) => plain(lower[h]!.values, upper[h]!.values))), 1e-9)
    }
  })
  it('of one layer there are none', () => {
    const rows = () => ({ keys: vectors(3, 1), values: vectors(3, 2) })
    assert.deepEqual(adjacentCosines(rows, { ...model, layers: 1 }), { keys: [], values: [] })
  })
})

it('shapes that do not go together are refused', () => {
  assert.throws(() => angles(new Float32Array(16), new Float32Array(8), 8, Int32Array.of(0)), { code: 'SHAPE' })
})

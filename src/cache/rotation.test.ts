/** The rotation of quantised rows. */
import assert from 'node:assert/strict'
import { before, describe, it } from 'node:test'
import fc from 'fast-check'
import { loadNative } from '../ggml/library.ts'
import { fromFloats, toFloats } from '../ggml/numbers.ts'
import type { CacheType } from './arena.ts'
import { hadamardMatrix, rotate, rotationName, rotationOf } from './rotation.ts'

before(() => loadNative())

const sizes = fc.constantFrom(32, 64, 128, 256)
const numbers = (n: number) =>
  fc
    .array(fc.double({ min: -100, max: 100, noNaN: true }), { minLength: n, maxLength: n })
    .map((x) => Float32Array.from(x))
const vectors = sizes.chain((d) => fc.tuple(fc.constant(d), numbers(2 * d)))
const near = (a: ArrayLike<number>, b: ArrayLike<number>) => {
  for (let i = 0; i < b.length; i++) assert.ok(Math.abs(a[i]! - b[i]!) < 1e-3, `${i}: ${a[i]} for ${b[i]}`)
}
const norm = (x: Float32Array) => Math.hypot(...x)

describe('rotation', () => {
  it('is its own inverse, and keeps lengths and products', () => {
    fc.assert(
      fc.property(vectors, ([d, x]) => {
        const y = x.slice()
        rotate(y, d)
        const [a, b] = [x.subarray(0, d), x.subarray(d)]
        const [c, e] = [y.subarray(0, d), y.subarray(d)]
        const dot = (p: Float32Array, q: Float32Array) => p.reduce((sum, v, i) => sum + v * q[i]!, 0)
        assert.ok(Math.abs(dot(a, b) - dot(c, e)) <= 1e-5 * (1 + norm(a) * norm(b)))
        near([norm(c)], [norm(a)])
        rotate(y, d)
        near(y, x)
      }),
    )
  })

  it('is a product with the matrix, piece by piece', () => {
    for (const [d, size] of [
      [32, 32],
      [192, 64],
      [128, 128],
    ] as const) {
      const m = hadamardMatrix(size)
      const x = Float32Array.from({ length: d }, (_, i) => Math.sin(7 * i))
      const want = x.map((_, i) => {
        const from = i - (i % size)
        let sum = 0
        for (let j = 0; j < size; j++) sum += m[(i - from) * size + j]! * x[from + j]!
        return sum
      })
      rotate(x, size)
      near(x, want)
    }
  })

  it('leaves a channel that is much larger than others less of the precision', () => {
    const d = 64
    const x = Float32Array.from({ length: d }, (_, i) => (i === 5 ? 40 : Math.sin(3 * i + 1)))
    const error = (y: Float32Array) => norm(y.map((v, i) => v - x[i]!))
    const rounded = (y: Float32Array) => toFloats('q4_0', fromFloats('q4_0', y, d), d)
    const turned = x.slice()
    rotate(turned, d)
    const back = rounded(turned)
    rotate(back, d)
    assert.ok(error(back) < error(rounded(x)) / 1.5, `${error(back)}, ${error(rounded(x))}`)
  })

  it('is for quantised types, keys and values apart', () => {
    const of = (keyType: CacheType, valueType: CacheType, headDim: number) => ({ keyType, valueType, headDim })
    assert.deepEqual(rotationOf(of('q8_0', 'f16', 64)), { keys: 64, values: 0 })
    assert.deepEqual(rotationOf(of('q8_0', 'q4_0', 256)), { keys: 256, values: 64 })
    assert.deepEqual(rotationOf(of('q8_0', 'q4_0', 192)), { keys: 64, values: 64 })
    assert.deepEqual(rotationOf(of('q8_0', 'q4_0', 96)), { keys: 0, values: 0 })
    const names = (['f16', 'q4_0'] as const).flatMap((keyType) =>
      (['bf16', 'q5_1'] as const).map((valueType) => rotationName(of(keyType, valueType, 128))),
    )
    assert.deepEqual(names, ['plain', 'rotated 0,64', 'rotated 128,0', 'rotated 128,64'])
  })
})

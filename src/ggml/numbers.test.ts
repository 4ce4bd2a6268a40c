import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Random, rmsError } from './fixture.test.ts'
import { fromFloats, toFloats } from './numbers.ts'
import { canBecomeFloats, canHoldFloats, GGML_TYPES, type GgmlType, rowBytes } from './types.ts'

/** Relative rms error of normal deviates: measured, with a margin of about a tenth. Fewer bits, larger error. */
const BOUNDS: Readonly<Partial<Record<GgmlType, number>>> = {
  ...{ f32: 0, f16: 3e-4, bf16: 2e-3, q8_0: 6e-3 },
  ...{ q6_K: 0.02, q5_K: 0.04, q5_1: 0.04, q5_0: 0.05, q4_K: 0.08, q4_1: 0.085, q4_0: 0.1 },
  ...{ iq4_nl: 0.085, iq4_xs: 0.085, mxfp4: 0.13, q3_K: 0.16, q2_K: 0.31 },
}
const TYPES = Object.keys(GGML_TYPES) as GgmlType[]
const normal = (n: number, seed = 1) => {
  const r = new Random(seed)
  return Float32Array.from({ length: n }, () => r.normal())
}

test('round trips stay within the error of each type', () => {
  const data = normal(256 * 40)
  const errors: Record<string, number> = {}
  for (const type of TYPES.filter(canHoldFloats)) {
    const bytes = fromFloats(type, data, 512)
    assert.equal(bytes.length, rowBytes(type, data.length))
    errors[type] = rmsError(toFloats(type, bytes, data.length), data)
    assert.ok(errors[type] <= BOUNDS[type]!, `${type}: ${errors[type]}`)
    assert.ok(errors[type] >= BOUNDS[type]! / 2, `${type}: ${errors[type]} is too good for its bound`)
  }
  assert.deepEqual(Object.keys(errors).sort(), Object.keys(BOUNDS).sort())
})

test('numbers that a type holds come back exactly', () => {
  const halves = Float32Array.of(0, -0, 1, -2.5, 65504, 2 ** -24, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY)
  for (const type of ['f32', 'f16'] as const) assert.deepEqual(toFloats(type, fromFloats(type, halves, 8), 8), halves)
  assert.ok(Number.isNaN(toFloats('f16', fromFloats('f16', Float32Array.of(Number.NaN), 1), 1)[0]))
  const zeros = new Float32Array(256)
  for (const type of TYPES.filter(canHoldFloats))
    assert.ok(
      toFloats(type, fromFloats(type, zeros, 256), 256).every((x) => x === 0),
      type,
    )
})

test('every block type but the internal ones can be read', () => {
  for (const type of TYPES.filter(canBecomeFloats)) {
    const out = toFloats(type, new Uint8Array(rowBytes(type, 256)), 256)
    assert.equal(out.length, 256)
    assert.ok(out.every(Number.isFinite), type)
  }
})

test('what does not fit is refused', () => {
  const data = normal(64)
  const code = { code: 'SHAPE' }
  assert.throws(() => fromFloats('q8_0', data, 20), code)
  assert.throws(() => fromFloats('q8_0', data, 96), code)
  assert.throws(() => fromFloats('f32', data, 0), code)
  assert.throws(() => fromFloats('iq2_xxs', normal(256), 256), code)
  assert.throws(() => fromFloats('i32', data, 64), code)
  assert.throws(() => fromFloats('q8_K', normal(256), 256), code)
  assert.throws(() => toFloats('q8_0', new Uint8Array(33), 32), code)
  assert.throws(() => toFloats('q8_0', new Uint8Array(340), 33), code)
  assert.throws(() => toFloats('f32', new Uint8Array(16), -4), code)
  assert.throws(() => toFloats('i64', new Uint8Array(64), 8), code)
  assert.throws(() => toFloats('q8_1', new Uint8Array(36), 32), code)
})

test('a part of a larger array is converted where it lies', () => {
  const data = normal(96)
  const part = data.subarray(32, 64)
  assert.deepEqual(fromFloats('q8_0', part, 32), fromFloats('q8_0', Float32Array.from(part), 32))
  const f16 = fromFloats('f16', data, 96)
  assert.deepEqual(toFloats('f16', f16.subarray(64, 128), 32), toFloats('f16', f16, 96).subarray(32, 64))
})

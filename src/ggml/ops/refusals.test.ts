/** Calls that C would answer by ending the process, or with garbage, and that must throw here instead. */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { KvasirError } from '../../contract/errors.ts'
import { Buffer } from '../buffer.ts'
import { Context } from '../context.ts'
import { cpuDevice } from '../device.ts'
import { backend, runner } from '../fixture.test.ts'
import { fromFloats } from '../numbers.ts'
import type { Tensor } from '../tensor.ts'
import type { GgmlType } from '../types.ts'
import * as ops from './index.ts'

const c = new Context({ tensors: 4096 })
const t = (type: GgmlType, ...ne: number[]): Tensor => c.tensor(type, ...ne)
const f = (...ne: number[]): Tensor => t('f32', ...ne)
/** [n, m] with the elements of a row m apart. */
const turned = (type: GgmlType, n: number, m: number): Tensor => ops.transpose(c, t(type, m, n))
/** [n, m] with gaps between the rows. */
const gaps = (type: GgmlType, n: number, m: number): Tensor =>
  ops.view(c, t(type, 2 * n, m), [n, m], [t(type, 2 * n, m).nb[1]])

after(() => {
  c.dispose()
  runner.dispose()
  backend.dispose()
})

const rope: ops.RopeOptions = {
  ...{ dims: 8, pairs: 'neox', base: 1e4, frequencyScale: 1, extFactor: 0, attentionFactor: 1 },
  ...{ betaFast: 32, betaSlow: 1, originalContext: 0 },
} as const

const REFUSED: Readonly<Record<string, () => unknown>> = {
  'tensor: no size': () => t('f32'),
  'tensor: five sizes': () => t('f32', 1, 1, 1, 1, 2),
  'tensor: zero': () => f(4, 0),
  'tensor: negative': () => f(-4),
  'tensor: a fraction': () => f(2.5),
  'tensor: NaN': () => f(Number.NaN),
  'tensor: no whole block': () => t('q8_0', 33),
  'tensor: too many bytes': () => f(2 ** 31, 2 ** 31),

  'add: does not repeat': () => ops.add(c, f(4, 3), f(4, 2)),
  'add: the second larger': () => ops.add(c, f(4, 1), f(4, 3)),
  'add: f16 beside f32': () => ops.add(c, f(4), t('f16', 4)),
  'add: bf16 beside f16': () => ops.add(c, t('f16', 4), t('bf16', 4)),
  'add: integers': () => ops.add(c, t('i32', 4), t('i32', 4)),
  'add: f64': () => ops.add(c, t('f64', 4), f(4)),
  'add: the second quantised': () => ops.add(c, f(32), t('q8_0', 32)),
  'add: quantised and repeated': () => ops.add(c, t('q8_0', 32, 2), f(32)),
  'add: quantised and transposed': () => ops.add(c, t('q8_0', 32, 2), turned('f32', 32, 2)),
  'add: a type nothing quantises to': () => ops.add(c, t('iq2_xxs', 256), f(256)),
  'add: transposed': () => ops.add(c, turned('f32', 4, 3), f(4, 3)),
  'sub: quantised': () => ops.sub(c, t('q8_0', 32), f(32)),
  'mul: quantised': () => ops.mul(c, t('q8_0', 32), f(32)),
  'div: quantised': () => ops.div(c, t('q8_0', 32), f(32)),
  'scale: f16': () => ops.scale(c, t('f16', 4), 2),
  'scale: gaps': () => ops.scale(c, gaps('f32', 4, 3), 2),
  'scale: one row of a permuted tensor': () => ops.scale(c, turned('f32', 2, 5), 2),
  'exp: bf16': () => ops.exp(c, t('bf16', 4)),
  'silu: transposed': () => ops.silu(c, turned('f32', 4, 3)),
  'neg: one element, strided': () => ops.neg(c, turned('f32', 1, 3)),
  'gelu: gaps': () => ops.gelu(c, gaps('f32', 4, 3)),
  'swigluSplit: shapes': () => ops.swigluSplit(c, f(4, 2), f(4, 1)),
  'swigluSplit: types': () => ops.swigluSplit(c, f(4), t('f16', 4)),
  'gegluSplit: gaps': () => ops.gegluSplit(c, f(4, 3), gaps('f32', 4, 3)),
  'swiglu: odd': () => ops.swiglu(c, f(5)),
  'swiglu: bf16': () => ops.swiglu(c, t('bf16', 4)),

  'sumRows: f16': () => ops.sumRows(c, t('f16', 4)),
  'mean: transposed': () => ops.mean(c, turned('f32', 4, 3)),
  'cumsum: f16': () => ops.cumsum(c, t('f16', 4)),
  'cumsum: gaps': () => ops.cumsum(c, gaps('f32', 4, 3)),
  'argmax: three dimensions': () => ops.argmax(c, f(4, 3, 2)),
  'argsort: f16': () => ops.argsort(c, t('f16', 4), 'ascending'),
  'argsort: permuted': () => ops.argsort(c, ops.permute(c, f(4, 3, 2), 0, 2, 1, 3), 'ascending'),
  'topK: more than there are': () => ops.topK(c, f(4), 5),
  'topK: none': () => ops.topK(c, f(4), 0),
  'topK: a fraction': () => ops.topK(c, f(4), 1.5),

  'mulMat: inner sizes': () => ops.mulMat(c, f(4, 2), f(5, 2)),
  'mulMat: heads': () => ops.mulMat(c, f(4, 2, 2), f(4, 2, 3)),
  'mulMat: transposed first': () => ops.mulMat(c, turned('f32', 4, 3), f(4, 2)),
  'mulMat: transposed second': () => ops.mulMat(c, f(4, 2), turned('f32', 4, 3)),
  'mulMat: f16 beside f32': () => ops.mulMat(c, f(7, 2), t('f16', 7)),
  'mulMat: f16 beside q8_0': () => ops.mulMat(c, t('q8_0', 32), t('f16', 32)),
  'mulMat: quantised second': () => ops.mulMat(c, f(32), t('q8_0', 32)),
  'mulMat: integers': () => ops.mulMat(c, t('i32', 4), f(4)),
  'mulMat: q8_K': () => ops.mulMat(c, t('q8_K', 256), f(256)),
  'outProd: sizes': () => ops.outProd(c, f(4, 2), f(4, 3)),
  'outProd: bf16': () => ops.outProd(c, t('bf16', 4, 2), f(4, 2)),
  'outProd: f16 second': () => ops.outProd(c, f(4, 2), t('f16', 4, 2)),
  'outProd: q8_0 repeated': () => ops.outProd(c, t('q8_0', 32, 2), f(4, 2, 2)),
  'outProd: transposed first': () => ops.outProd(c, turned('f32', 4, 3), f(2, 3)),
  'hadamard: no power of two': () => ops.hadamard(c, f(96, 96), f(96, 2)),
  'hadamard: sizes': () => ops.hadamard(c, f(32, 32), f(64, 2)),
  'hadamard: no square': () => ops.hadamard(c, f(32, 16), f(32, 2)),
  'hadamard: several matrices': () => ops.hadamard(c, f(32, 32, 2), f(32, 2, 2)),
  'hadamard: f16 matrix': () => ops.hadamard(c, t('f16', 32, 32), f(32, 2)),
  'hadamard: f16': () => ops.hadamard(c, f(32, 32), t('f16', 32, 2)),
  'hadamard: transposed': () => ops.hadamard(c, f(32, 32), turned('f32', 4, 32)),
  'rmsNorm: f16': () => ops.rmsNorm(c, t('f16', 4), 1e-5),
  'rmsNorm: transposed': () => ops.rmsNorm(c, turned('f32', 4, 3), 1e-5),
  'rmsNorm: epsilon': () => ops.rmsNorm(c, f(4), -1),
  'layerNorm: epsilon': () => ops.layerNorm(c, f(4), Number.NaN),

  'getRows: i64 indices': () => ops.getRows(c, f(4, 3), t('i64', 2)),
  'getRows: heads': () => ops.getRows(c, f(4, 3, 2), t('i32', 2)),
  'getRows: i16 rows': () => ops.getRows(c, t('i16', 4, 3), t('i32', 2)),
  'getRows: q8_1 rows': () => ops.getRows(c, t('q8_1', 32, 3), t('i32', 2)),
  'getRows: q8_K rows': () => ops.getRows(c, t('q8_K', 256, 3), t('i32', 2)),
  'getRows: transposed': () => ops.getRows(c, turned('f32', 4, 3), t('i32', 2)),
  'setRows: f32 indices': () => ops.setRows(c, f(4, 3), f(4, 2), f(2)),
  'setRows: row sizes': () => ops.setRows(c, f(4, 3), f(5, 2), t('i64', 2)),
  'setRows: counts': () => ops.setRows(c, f(4, 3), f(4, 2), t('i64', 3)),
  'setRows: heads': () => ops.setRows(c, f(4, 3, 2), f(4, 2, 1), t('i64', 2)),
  'setRows: into integers': () => ops.setRows(c, t('i8', 4, 3), f(4, 2), t('i64', 2)),
  'setRows: into a type nothing quantises to': () => ops.setRows(c, t('iq2_xxs', 256, 3), f(256, 2), t('i64', 2)),
  'setRows: bf16 source': () => ops.setRows(c, f(4, 3), t('bf16', 4, 2), t('i64', 2)),
  'setRows: transposed source': () => ops.setRows(c, f(4, 3), turned('f32', 4, 2), t('i64', 2)),

  'view: behind the end': () => ops.view(c, f(4, 3), [4, 3], undefined, 16),
  'view: too many rows': () => ops.view(c, f(4, 3), [4, 4]),
  'view: overlapping rows': () => ops.view(c, f(4, 3), [4, 4], [0]),
  'view: negative stride': () => ops.view(c, f(4, 3), [4, 2], [-16], 32),
  'view: NaN stride': () => ops.view(c, f(4, 3), [4, 2], [Number.NaN]),
  'view: fractional offset': () => ops.view(c, f(4, 3), [4, 1], undefined, 0.5),
  'view: between elements': () => ops.view(c, f(4, 3), [4, 1], undefined, 2),
  'view: negative offset': () => ops.view(c, f(4, 3), [4, 1], undefined, -16),
  'view: half a block': () => ops.view(c, t('q8_0', 64, 2), [16, 2]),
  'view: of a transposed tensor': () => ops.view(c, turned('f32', 4, 3), [4, 1]),
  'view: five sizes': () => ops.view(c, f(4), [1, 1, 1, 1, 4]),
  'slice: outside': () => ops.slice(c, f(4, 3), 1, 1, 4),
  'slice: empty': () => ops.slice(c, f(4, 3), 1, 1, 1),
  'slice: fractions': () => ops.slice(c, f(4, 3), 1, 0.5, 1.5),
  'reshape: count': () => ops.reshape(c, f(4, 3), 5),
  'reshape: gaps': () => ops.reshape(c, gaps('f32', 4, 3), 12),
  'reshape: half a block': () => ops.reshape(c, t('q8_0', 64), 16, 4),
  'permute: twice the same': () => ops.permute(c, f(4), 0, 0, 1, 2),
  'permute: outside': () => ops.permute(c, f(4), 0, 1, 2, 4),
  'permute: blocks': () => ops.permute(c, t('q8_0', 32, 32), 1, 0, 2, 3),
  'cont: count': () => ops.cont(c, f(4, 3), 5),
  'cont: half a block': () => ops.cont(c, t('q8_0', 64), 16, 4),
  'cont: quantised with gaps, another shape': () => ops.cont(c, gaps('q8_0', 32, 4), 64, 2),
  'cast: q8_0 to f16': () => ops.cast(c, t('q8_0', 32), 'f16'),
  'cast: q8_0 to q4_0': () => ops.cast(c, t('q8_0', 32), 'q4_0'),
  'cast: f32 to i64': () => ops.cast(c, f(4), 'i64'),
  'cast: f64 to f32': () => ops.cast(c, t('f64', 4), 'f32'),
  'cast: f32 to a type nothing quantises to': () => ops.cast(c, f(256), 'iq2_xxs'),
  'cast: q8_1 to f32': () => ops.cast(c, t('q8_1', 32), 'f32'),
  'cast: transposed to q8_0': () => ops.cast(c, turned('f32', 32, 32), 'q8_0'),
  'cast: no whole block': () => ops.cast(c, f(33), 'q8_0'),
  'copy: count': () => ops.copy(c, f(4), f(5)),
  'copy: q8_0 to f16': () => ops.copy(c, t('q8_0', 32), t('f16', 32)),
  'copy: into a permuted q8_0': () => ops.copy(c, f(32, 2, 2), ops.permute(c, t('q8_0', 32, 2, 2), 0, 2, 1, 3)),
  'copy: rows that cut blocks': () => ops.copy(c, f(16, 4), t('q8_0', 64)),
  'concat: types': () => ops.concat(c, f(4), t('f16', 4), 0),
  'concat: sizes': () => ops.concat(c, f(4, 2), f(5, 2), 1),
  'concat: dimension': () => ops.concat(c, f(4), f(4), 4 as 3),
  'repeat: does not fit': () => ops.repeat(c, f(4), 6),
  'repeat: bf16': () => ops.repeat(c, t('bf16', 4), 8),
  'repeat: transposed': () => ops.repeat(c, turned('f32', 4, 3), 8, 3),

  'softMax: f16': () => ops.softMax(c, t('f16', 4), null, 1),
  'softMax: gaps': () => ops.softMax(c, gaps('f32', 4, 3), null, 1),
  'softMax: short mask': () => ops.softMax(c, f(4, 3), f(4, 2), 1),
  'softMax: narrow mask': () => ops.softMax(c, f(4, 3), f(3, 3), 1),
  'softMax: heads of the mask': () => ops.softMax(c, f(4, 3, 4), f(4, 3, 3), 1),
  'softMax: i32 mask': () => ops.softMax(c, f(4, 3), t('i32', 4, 3), 1),
  'softMax: gaps in the mask': () => ops.softMax(c, f(4, 3), gaps('f32', 4, 3), 1),
  'flashAttention: f16 q': () => flash(t('f16', 32, 2, 4)),
  'flashAttention: head size': () => flash(f(64, 2, 4)),
  'flashAttention: heads': () => flash(f(32, 2, 3)),
  'flashAttention: batch': () => flash(f(32, 2, 4, 2)),
  'flashAttention: keys and values': () => flash(f(32, 2, 4), t('f16', 32, 8, 2), t('f16', 32, 7, 2)),
  'flashAttention: heads of V': () => flash(f(32, 2, 4), t('f16', 32, 8, 2), t('f16', 32, 8, 1)),
  'flashAttention: i32 K': () => flash(f(32, 2, 4), t('i32', 32, 8, 2)),
  'flashAttention: transposed V': () => flash(f(32, 2, 2), t('f16', 32, 8), turned('f16', 32, 8)),
  'flashAttention: f32 mask': () => flash(f(32, 2, 4), undefined, undefined, f(8, 2)),
  'flashAttention: short mask': () => flash(f(32, 2, 4), undefined, undefined, t('f16', 8, 1)),
  'flashAttention: narrow mask': () => flash(f(32, 2, 4), undefined, undefined, t('f16', 7, 2)),
  'flashAttention: heads of the mask': () => flash(f(32, 2, 4), undefined, undefined, t('f16', 8, 2, 3)),
  'flashAttention: softcap over part of a tile': () =>
    ops.flashAttention(c, f(32, 64, 4), t('f16', 32, 70, 2), t('f16', 32, 70, 2), null, 1, 30),
  'rope: bf16': () => ops.rope(c, t('bf16', 8, 2, 3), t('i32', 3), null, rope),
  'rope: number of positions': () => ops.rope(c, f(8, 2, 3), t('i32', 2), null, rope),
  'rope: f32 positions': () => ops.rope(c, f(8, 2, 3), f(3), null, rope),
  'rope: strided positions': () => ops.rope(c, f(8, 2, 3), turned('i32', 3, 2), null, rope),
  'rope: odd dims': () => ops.rope(c, f(8, 2, 3), t('i32', 3), null, { ...rope, dims: 7 }),
  'rope: more dims than there are': () => ops.rope(c, f(8, 2, 3), t('i32', 3), null, { ...rope, dims: 10 }),
  'rope: few factors': () => ops.rope(c, f(8, 2, 3), t('i32', 3), f(3), rope),
  'rope: f16 factors': () => ops.rope(c, f(8, 2, 3), t('i32', 3), t('f16', 4), rope),
  'rope: strided factors': () => ops.rope(c, f(8, 2, 3), t('i32', 3), turned('f32', 4, 2), rope),
  'rope: transposed': () => ops.rope(c, turned('f32', 8, 2), t('i32', 1), null, rope),
}

function flash(q: Tensor, k = t('f16', 32, 8, 2), v = k, mask: Tensor | null = null): Tensor {
  return ops.flashAttention(c, q, k, v, mask, 1)
}

for (const [name, call] of Object.entries(REFUSED))
  test(`refused: ${name}`, () => {
    assert.throws(call, (e) => e instanceof KvasirError && e.code === 'SHAPE')
  })

test('packed weights: set whole, read by mulMat alone', {
  skip: packingType() ? false : 'no packing buffer type here',
}, () => {
  using weights = new Context({ tensors: 1 })
  const w = weights.tensor('q4_0', 64, 16)
  using buffer = Buffer.forContext(weights, packingType()!)
  assert.equal(buffer.type?.isPacking, true)
  const bytes = fromFloats('q4_0', new Float32Array(64 * 16).fill(1), 64)
  assert.throws(() => w.set(bytes.subarray(0, 36)), isCode('NOT_SUPPORTED'))
  w.set(bytes)
  assert.throws(() => w.get(new Uint8Array(w.bytes)), isCode('NOT_SUPPORTED'))
  const uses: (() => unknown)[] = [
    () => ops.getRows(c, w, t('i32', 1)),
    () => ops.view(c, w, [64, 8]),
    () => ops.slice(c, w, 1, 0, 8),
    () => ops.reshape(c, w, 32, 32),
    () => ops.outProd(c, w, f(4, 16)),
    () => ops.cast(c, w, 'f32'),
    () => ops.copy(c, w, f(64, 16)),
    () => ops.add(c, w, f(64, 16)),
    () => ops.mulMat(c, f(64, 2), w),
    () => ops.mulMat(c, w, f(64, 2, 2)),
    () => ops.mulMat(c, w, gaps('f32', 64, 8)),
  ]
  for (const use of uses) assert.throws(use, isCode('SHAPE'))
  ops.mulMat(c, w, f(64, 8))
})

test('packed weights: a type that cannot be packed is refused when set', {
  skip: packingType() ? false : 'none here',
}, () => {
  using weights = new Context({ tensors: 1 })
  const w = weights.tensor('f32', 64, 3)
  using _ = Buffer.forContext(weights, packingType()!)
  assert.throws(() => w.set(new Float32Array(64 * 3)), isCode('NOT_SUPPORTED'))
})

function packingType() {
  return cpuDevice()
    .packingBufferTypes()
    .find((type) => type.name === 'CPU_REPACK')
}

function isCode(code: string) {
  return (e: unknown) => e instanceof KvasirError && e.code === code
}

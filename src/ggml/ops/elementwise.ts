/** Arithmetic element by element; the second operand repeats over the first. */
import type { Context } from '../context.ts'
import { ffi } from '../library.ts'
import type { Tensor } from '../tensor.ts'
import { canHoldFloats, isQuantized } from '../types.ts'
import { fail, needContiguous, needDenseRows, needPacked, needType, readable, repeatsInto, sameShape } from './check.ts'

type Binary = 'ggml_add' | 'ggml_sub' | 'ggml_mul' | 'ggml_div'

function binary(fn: Binary, c: Context, a: Tensor, b: Tensor): Tensor {
  const op = fn.slice(5)
  readable(op, c, a, b)
  if (!repeatsInto(a, b)) fail(op, [a, b], 'the second must repeat into the first')
  if (!canHoldFloats(a.type)) fail(op, [a, b], 'no arithmetic for this type')
  if (isQuantized(a.type)) {
    if (fn !== 'ggml_add') fail(op, [a, b], 'quantised operands can only be added to')
    if (!sameShape(a, b) || !b.hasDenseRows)
      fail(op, [a, b], 'beside a quantised operand the second must have its shape and dense rows')
  }
  if (b.type !== a.type && b.type !== 'f32') fail(op, [a, b], "the second must be f32 or of the first's type")
  if (isQuantized(b.type)) fail(op, [a, b], 'the second must not be quantised')
  needDenseRows(op, a)
  return c.adopt(ffi[fn](c.reserve(a, b), a.ptr, b.ptr), a.type, a.ne)
}

export const add = (c: Context, a: Tensor, b: Tensor) => binary('ggml_add', c, a, b)
export const sub = (c: Context, a: Tensor, b: Tensor) => binary('ggml_sub', c, a, b)
export const mul = (c: Context, a: Tensor, b: Tensor) => binary('ggml_mul', c, a, b)
export const div = (c: Context, a: Tensor, b: Tensor) => binary('ggml_div', c, a, b)

/** a * factor + bias, f32. */
export function scale(c: Context, a: Tensor, factor: number, bias = 0): Tensor {
  readable('scale', c, a)
  needType('scale', a, 'f32')
  needPacked('scale', a)
  const ptr =
    bias === 0 ? ffi.ggml_scale(c.reserve(a), a.ptr, factor) : ffi.ggml_scale_bias(c.reserve(a), a.ptr, factor, bias)
  return c.adopt(ptr, a.type, a.ne)
}

type Unary =
  | ('ggml_sqr' | 'ggml_sqrt' | 'ggml_log' | 'ggml_exp' | 'ggml_neg' | 'ggml_abs')
  | ('ggml_tanh' | 'ggml_relu' | 'ggml_sigmoid' | 'ggml_silu' | 'ggml_gelu')

function unary(fn: Unary, c: Context, a: Tensor): Tensor {
  const op = fn.slice(5)
  readable(op, c, a)
  needType(op, a, 'f32', 'f16')
  needContiguous(op, a)
  return c.adopt(ffi[fn](c.reserve(a), a.ptr), a.type, a.ne)
}

export const sqr = (c: Context, a: Tensor) => unary('ggml_sqr', c, a)
export const sqrt = (c: Context, a: Tensor) => unary('ggml_sqrt', c, a)
export const log = (c: Context, a: Tensor) => unary('ggml_log', c, a)
export const exp = (c: Context, a: Tensor) => unary('ggml_exp', c, a)
export const neg = (c: Context, a: Tensor) => unary('ggml_neg', c, a)
export const abs = (c: Context, a: Tensor) => unary('ggml_abs', c, a)
export const tanh = (c: Context, a: Tensor) => unary('ggml_tanh', c, a)
export const relu = (c: Context, a: Tensor) => unary('ggml_relu', c, a)
export const sigmoid = (c: Context, a: Tensor) => unary('ggml_sigmoid', c, a)
export const silu = (c: Context, a: Tensor) => unary('ggml_silu', c, a)
export const gelu = (c: Context, a: Tensor) => unary('ggml_gelu', c, a)

/** activation(a) * b, elementwise. */
function gated(fn: 'ggml_swiglu_split' | 'ggml_geglu_split', c: Context, a: Tensor, b: Tensor): Tensor {
  const op = fn.slice(5)
  readable(op, c, a, b)
  needType(op, a, 'f32', 'f16')
  if (!sameShape(a, b) || a.type !== b.type) fail(op, [a, b], 'must have one shape and type')
  needPacked(op, a)
  needPacked(op, b)
  return c.adopt(ffi[fn](c.reserve(a, b), a.ptr, b.ptr), a.type, a.ne)
}

export const swigluSplit = (c: Context, gate: Tensor, up: Tensor) => gated('ggml_swiglu_split', c, gate, up)
export const gegluSplit = (c: Context, gate: Tensor, up: Tensor) => gated('ggml_geglu_split', c, gate, up)

/** activation(first half of each row) * second half: [2F, T] -> [F, T]. */
function gatedHalves(fn: 'ggml_swiglu' | 'ggml_geglu', c: Context, a: Tensor): Tensor {
  const op = fn.slice(5)
  readable(op, c, a)
  needType(op, a, 'f32', 'f16')
  needPacked(op, a)
  if (a.ne[0] % 2) fail(op, [a], 'rows must have an even length')
  return c.adopt(ffi[fn](c.reserve(a), a.ptr), a.type, [a.ne[0] / 2, a.ne[1], a.ne[2], a.ne[3]])
}

export const swiglu = (c: Context, a: Tensor) => gatedHalves('ggml_swiglu', c, a)
export const geglu = (c: Context, a: Tensor) => gatedHalves('ggml_geglu', c, a)

/** Matrix products and norms. */
import { ShapeError } from '../../contract/errors.ts'
import type { Context } from '../context.ts'
import { ffi } from '../library.ts'
import type { Tensor } from '../tensor.ts'
import { fail, needDenseRows, needType, readable } from './check.ts'

const NOT_A_WEIGHT = new Set(['i8', 'i16', 'i32', 'i64', 'f64', 'q8_1', 'q8_K'])

/**
 * out[i,t] = sum over k of a[k,i] * b[k,t]: [k, m, a2, a3] x [k, n, b2, b3] -> f32 [m, n, b2, b3].
 * `a` repeats over `b` in dimensions 2 and 3 (that is grouped-query attention). The only op that may read packed weights.
 */
export function mulMat(c: Context, a: Tensor, b: Tensor): Tensor {
  a.checkAlive()
  readable('mulMat', c, b)
  if (a.ne[0] !== b.ne[0] || b.ne[2] % a.ne[2] || b.ne[3] % a.ne[3])
    fail('mulMat', [a, b], 'ne[0] must agree, ne[2] and ne[3] of the second be a multiple of the first')
  if (NOT_A_WEIGHT.has(a.type)) fail('mulMat', [a, b], 'no matrix product for this type')
  if (b.type !== 'f32' && (b.type !== 'f16' || a.type !== 'f16'))
    fail('mulMat', [a, b], 'the second must be f32 (or f16 beside an f16)')
  if (a.nb[0] > a.nb[1] || !a.hasDenseRows) fail('mulMat', [a, b], 'the first must not be transposed')
  needDenseRows('mulMat', b)
  // CPU_REPACK reads rows four at a time as if they were contiguous; AMX knows only two dimensions.
  if (a.ctx.packed && (b.type !== 'f32' || !b.isContiguous || b.ne[2] !== 1 || b.ne[3] !== 1))
    fail('mulMat', [a, b], 'beside a packed weight the second must be a contiguous f32 matrix')
  return c.adopt(ffi.ggml_mul_mat(c.reserve(a, b), a.ptr, b.ptr), 'f32', [a.ne[1], b.ne[1], b.ne[2], b.ne[3]])
}

/**
 * out[i,j] = sum over r of a[i,r] * b[j,r]: [m, k, ...] x [n, k, ...] -> f32 [m, n, ...]; no transpose needed, but several
 * times slower than {@link mulMat} for f16.
 */
export function outProd(c: Context, a: Tensor, b: Tensor): Tensor {
  readable('outProd', c, a, b)
  if (a.ne[1] !== b.ne[1] || b.ne[2] % a.ne[2] || b.ne[3] % a.ne[3])
    fail('outProd', [a, b], 'ne[1] must agree, ne[2] and ne[3] of the second be a multiple of the first')
  if (a.type !== 'f32' && (a.ne[2] !== b.ne[2] || a.ne[3] !== b.ne[3]))
    fail('outProd', [a, b], 'only f32 repeats over dimensions 2 and 3')
  if (a.type === 'bf16' || NOT_A_WEIGHT.has(a.type)) fail('outProd', [a, b], 'no outer product for this type')
  needType('outProd', b, 'f32')
  needDenseRows('outProd', a)
  return c.adopt(ffi.ggml_out_prod(c.reserve(a, b), a.ptr, b.ptr), 'f32', [a.ne[0], b.ne[0], b.ne[2], b.ne[3]])
}

/** enum ggml_op_hint: the first matrix is that of a Walsh-Hadamard rotation. */
const HINT_HADAMARD = 1

/**
 * Each vector along dimension 0 times the orthonormal Walsh-Hadamard matrix of its size, a power of two: its own inverse.
 * @param matrix f32 [k, k] with these numbers: the CPU takes its values for granted, other devices multiply by it
 * @param x f32 [k, ...], contiguous
 */
export function hadamard(c: Context, matrix: Tensor, x: Tensor): Tensor {
  readable('hadamard', c, matrix, x)
  const [k] = x.ne
  if (matrix.ne[0] !== k || matrix.ne[1] !== k || matrix.elements !== k * k || k & (k - 1))
    fail(
      'hadamard',
      [matrix, x],
      'the first must be a square matrix of the size of ne[0] of the second, a power of two',
    )
  needType('hadamard', matrix, 'f32')
  needType('hadamard', x, 'f32')
  if (!matrix.isContiguous || !x.isContiguous) fail('hadamard', [matrix, x], 'both must be contiguous')
  const out = mulMat(c, matrix, x)
  ffi.ggml_mul_mat_set_hint(out.ptr, HINT_HADAMARD)
  return out
}

function checkEpsilon(op: string, epsilon: number): void {
  if (!(epsilon >= 0)) throw new ShapeError(`${op}: epsilon ${epsilon} must be 0 or more`)
}

/** x / sqrt(mean(x^2) + epsilon) along dimension 0, f32. */
export function rmsNorm(c: Context, a: Tensor, epsilon: number): Tensor {
  readable('rmsNorm', c, a)
  needType('rmsNorm', a, 'f32')
  needDenseRows('rmsNorm', a)
  checkEpsilon('rmsNorm', epsilon)
  return c.adopt(ffi.ggml_rms_norm(c.reserve(a), a.ptr, epsilon), 'f32', a.ne)
}

/** (x - mean) / sqrt(variance + epsilon) along dimension 0, f32. */
export function layerNorm(c: Context, a: Tensor, epsilon: number): Tensor {
  readable('layerNorm', c, a)
  needType('layerNorm', a, 'f32')
  needDenseRows('layerNorm', a)
  checkEpsilon('layerNorm', epsilon)
  return c.adopt(ffi.ggml_norm(c.reserve(a), a.ptr, epsilon), 'f32', a.ne)
}

/** Sums, maxima and orders along dimension 0; f32 only. NaN scores leave any order arbitrary. */
import type { Context } from '../context.ts'
import { ffi } from '../library.ts'
import type { Tensor } from '../tensor.ts'
import { fail, needContiguous, needDenseRows, needPacked, needType, readable } from './check.ts'

function f32Rows(op: string, c: Context, a: Tensor): void {
  readable(op, c, a)
  needType(op, a, 'f32')
  needDenseRows(op, a)
}

/** The sorting kernels step from row to row by one stride. */
function evenRows(op: string, a: Tensor): void {
  if (a.ne[2] * a.ne[3] > 1) needPacked(op, a)
}

/** [n, ...] -> [1, ...] */
export function sumRows(c: Context, a: Tensor): Tensor {
  f32Rows('sumRows', c, a)
  return c.adopt(ffi.ggml_sum_rows(c.reserve(a), a.ptr), 'f32', [1, a.ne[1], a.ne[2], a.ne[3]])
}

/** [n, ...] -> [1, ...] */
export function mean(c: Context, a: Tensor): Tensor {
  f32Rows('mean', c, a)
  return c.adopt(ffi.ggml_mean(c.reserve(a), a.ptr), 'f32', [1, a.ne[1], a.ne[2], a.ne[3]])
}

/** Running sum along dimension 0. */
export function cumsum(c: Context, a: Tensor): Tensor {
  f32Rows('cumsum', c, a)
  needContiguous('cumsum', a)
  return c.adopt(ffi.ggml_cumsum(c.reserve(a), a.ptr), 'f32', a.ne)
}

/** [n, rows] -> i32 [rows] */
export function argmax(c: Context, a: Tensor): Tensor {
  f32Rows('argmax', c, a)
  if (a.ne[2] !== 1 || a.ne[3] !== 1) fail('argmax', [a], 'must be a matrix')
  return c.adopt(ffi.ggml_argmax(c.reserve(a), a.ptr), 'i32', [a.ne[1], 1, 1, 1])
}

/** Indices that sort each row: i32 of the same shape. */
export function argsort(c: Context, a: Tensor, order: 'ascending' | 'descending'): Tensor {
  f32Rows('argsort', c, a)
  evenRows('argsort', a)
  return c.adopt(ffi.ggml_argsort(c.reserve(a), a.ptr, order === 'ascending' ? 0 : 1), 'i32', a.ne)
}

/** Indices of the k largest of each row, in no promised order: i32 [k, ...]. */
export function topK(c: Context, a: Tensor, k: number): Tensor {
  f32Rows('topK', c, a)
  evenRows('topK', a)
  if (!(Number.isSafeInteger(k) && k >= 1 && k <= a.ne[0])) fail('topK', [a], `k = ${k} is not from 1 to ${a.ne[0]}`)
  return c.adopt(ffi.ggml_top_k(c.reserve(a), a.ptr, k), 'i32', [k, a.ne[1], a.ne[2], a.ne[3]])
}

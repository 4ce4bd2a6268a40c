/** Reading and writing rows by index. The indices themselves must be checked by whoever sets them: C aborts on a bad one. */
import type { Context } from '../context.ts'
import { ffi } from '../library.ts'
import type { Tensor } from '../tensor.ts'
import { canBecomeFloats, canHoldFloats } from '../types.ts'
import { fail, needDenseRows, needType, readable } from './check.ts'

/** a [n, r, b2, b3], ids i32 [k, b2, b3] -> f32 [n, k, b2, b3] (i32 stays i32); dequantises. */
export function getRows(c: Context, a: Tensor, ids: Tensor): Tensor {
  readable('getRows', c, a, ids)
  needType('getRows', ids, 'i32')
  if (a.type !== 'i32' && !canBecomeFloats(a.type)) fail('getRows', [a, ids], 'rows of this type cannot be read')
  if (a.ne[2] !== ids.ne[1] || a.ne[3] !== ids.ne[2] || ids.ne[3] !== 1)
    fail('getRows', [a, ids], 'ids must be [k, ne2, ne3] of the first')
  needDenseRows('getRows', a)
  const type = a.type === 'i32' ? 'i32' : 'f32'
  return c.adopt(ffi.ggml_get_rows(c.reserve(a, ids), a.ptr, ids.ptr), type, [a.ne[0], ids.ne[0], ids.ne[1], ids.ne[2]])
}

/**
 * Writes rows of `source` f32 [n, k, b2, b3] over rows `ids` i64 or i32 [k, b2 or 1, b3 or 1] of `into` [n, r, b2, b3],
 * quantising. The result is a view of `into`; two equal ids give either row.
 */
export function setRows(c: Context, into: Tensor, source: Tensor, ids: Tensor): Tensor {
  readable('setRows', c, into, source, ids)
  needType('setRows', source, 'f32', 'f16')
  needType('setRows', ids, 'i64', 'i32')
  if (!canHoldFloats(into.type)) fail('setRows', [into, source, ids], 'rows of the first cannot be made from floats')
  const fits = into.ne[0] === source.ne[0] && into.ne[2] === source.ne[2] && into.ne[3] === source.ne[3]
  const indexed =
    source.ne[1] === ids.ne[0] && source.ne[2] % ids.ne[1] === 0 && source.ne[3] % ids.ne[2] === 0 && ids.ne[3] === 1
  if (!fits || !indexed) fail('setRows', [into, source, ids], 'rows or ids do not go together')
  needDenseRows('setRows', into)
  needDenseRows('setRows', source)
  needDenseRows('setRows', ids)
  const ptr = ffi.ggml_set_rows(c.reserve(into, source, ids), into.ptr, source.ptr, ids.ptr)
  return c.adopt(ptr, into.type, into.ne, into.nb)
}

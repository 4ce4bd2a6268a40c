/**
 * Attention as two matrix products: all query heads of a KV head read each key and value once (ggml's fused attention reads
 * them once per query head), and sums are f32. Needs transposed values. The choice for decoding: several times faster than
 * the fused op on long caches, and exact where that sums an f16 V in f16. Several parts are multiplied where they lie; only
 * their scores are put together.
 */
import type { Context } from '../../ggml/context.ts'
import * as ops from '../../ggml/ops/index.ts'
import type { Tensor } from '../../ggml/tensor.ts'
import { isQuantized } from '../../ggml/types.ts'
import { isCoded, isFewRows, numbersOf, valueSums } from './blocks.ts'
import { type KvPart, type Lowering, partHeads, partRows } from './lowering.ts'
import { maskForRows, probabilities } from './probabilities.ts'

export const grouped: Lowering = {
  mask: maskForRows,

  attend(c, a) {
    const [d, H, T] = a.q.ne
    const Hkv = partHeads(a.parts[0]!)
    const G = H / Hkv
    const p = probabilities(c, a) //                                                   f32 [n, T, H]
    const o = weightedSum(c, a.parts, ops.reshape(c, p, p.ne[0], T * G, Hkv)) //        f32 [d, T * G, Hkv]
    if (T === 1) return { out: ops.reshape(c, o, d * H, 1), probabilities: p }
    const byRow = ops.permute(c, ops.reshape(c, o, d, T, G, Hkv), 0, 3, 1, 2) //        f32 [d, G, Hkv, T]
    return { out: ops.cont(c, byRow, d * H, T), probabilities: p }
  },
}

/** Sum over all parts of values [n_i, d, Hkv] times weights [n_i, rows, Hkv] -> [d, rows, Hkv]. */
function weightedSum(c: Context, parts: readonly KvPart[], p: Tensor): Tensor {
  if (parts.length === 1) return times(c, parts[0]!, p)
  let at = 0
  let sum: Tensor | null = null
  for (const part of parts) {
    const n = partRows(part)
    const own = ops.view(c, p, [n, p.ne[1], p.ne[2]], [p.nb[1], p.nb[2]], at * p.nb[0])
    const o = times(c, part, own)
    sum = sum ? ops.add(c, sum, o) : o
    at += n
  }
  return sum!
}

/**
 * From so many columns on, row-major values are brought to f32 before the product; with fewer it reads them as they are, and
 * does so once for each column.
 */
const MOST_PASSES = 4

/** Values of one part times weights [n, rows, Hkv] -> [d, rows, Hkv]. */
function times(c: Context, part: KvPart, weights: Tensor): Tensor {
  const o = product(c, part, weights)
  return part.valueScale ? ops.mul(c, o, part.valueScale) : o
}

function product(c: Context, { values, valuesTransposed }: KvPart, weights: Tensor): Tensor {
  if (isCoded(values)) {
    if (isFewRows(weights.ne[1])) return valueSums(c, values, weights)
    return ops.mulMat(c, numbersOf(c, values), weights)
  }
  if (valuesTransposed) return ops.mulMat(c, values, weights)
  const direct = values.type === 'f32' || (isQuantized(values.type) && weights.ne[1] <= MOST_PASSES)
  return ops.outProd(c, direct ? values : ops.cast(c, values, 'f32'), ops.transpose(c, weights))
}

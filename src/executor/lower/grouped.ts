/**
 * Attention as two matrix products: all query heads of a KV head read each key and value once (ggml's fused attention reads
 * them once per query head), and sums are f32. Needs transposed values. The choice for decoding: several times faster than
 * the fused op on long caches, and exact where that sums an f16 V in f16. Several parts are multiplied where they lie; only
 * their scores are put together.
 */
import type { Context } from '../../ggml/context.ts'
import * as ops from '../../ggml/ops/index.ts'
import type { Tensor } from '../../ggml/tensor.ts'
import type { AttentionInputs, KvPart, Lowering } from './lowering.ts'

export const grouped: Lowering = {
  /** Softmax runs in parallel over dimension 1 only: for a single row the heads go there, with a mask row for each. */
  mask(c, mask, heads) {
    if (mask.ne[1] !== 1) return mask
    if (mask.ne[2] === heads) return ops.reshape(c, mask, mask.ne[0], heads)
    return ops.repeat(c, mask, mask.ne[0], heads)
  },

  attend(c, a) {
    const [d, H, T] = a.q.ne
    const Hkv = a.parts[0]!.keys.ne[2]
    const G = H / Hkv
    const q = T === 1 ? ops.reshape(c, dense(c, a.q), d, G, Hkv) : byKvHead(c, a.q, Hkv) // f32 [d, T * G, Hkv]
    const kq = a.parts.map((p) => ops.mulMat(c, p.keys, q)).reduce((x, y) => ops.concat(c, x, y, 0)) // f32 [n, T * G, Hkv]
    const n = kq.ne[0]
    const scores = T === 1 ? ops.reshape(c, kq, n, H) : ops.reshape(c, kq, n, T, H)
    const p = ops.reshape(c, softMax(c, scores, a), n, T * G, Hkv) //                  f32 [n, T * G, Hkv]
    const o = weightedSum(c, a.parts, p) //                                            f32 [d, T * G, Hkv]
    if (T === 1) return ops.reshape(c, o, d * H, 1)
    const byRow = ops.permute(c, ops.reshape(c, o, d, T, G, Hkv), 0, 3, 1, 2) //        f32 [d, G, Hkv, T]
    return ops.cont(c, byRow, d * H, T)
  },
}

/** Sum over all parts of values [n_i, d, Hkv] times weights [n_i, rows, Hkv] -> [d, rows, Hkv]. */
function weightedSum(c: Context, parts: readonly KvPart[], p: Tensor): Tensor {
  if (parts.length === 1) return ops.mulMat(c, parts[0]!.values, p)
  let at = 0
  let sum: Tensor | null = null
  for (const { values } of parts) {
    const own = ops.view(c, p, [values.ne[0], p.ne[1], p.ne[2]], [p.nb[1], p.nb[2]], at * p.nb[0])
    const o = ops.mulMat(c, values, own)
    sum = sum ? ops.add(c, sum, o) : o
    at += values.ne[0]
  }
  return sum!
}

/** Rows and the group of a KV head become one dimension: [d, H, T] -> [d, T, G, Hkv] -> [d, T * G, Hkv]. */
function byKvHead(c: Context, q: Tensor, Hkv: number): Tensor {
  const [d, H, T] = q.ne
  const G = H / Hkv
  const split = ops.view(c, q, [d, G, Hkv, T], [q.nb[1], G * q.nb[1], q.nb[2]])
  return ops.cont(c, ops.permute(c, split, 0, 2, 3, 1), d, T * G, Hkv)
}

function dense(c: Context, t: Tensor): Tensor {
  return t.isContiguous ? t : ops.cont(c, t)
}

function softMax(c: Context, scores: Tensor, a: AttentionInputs): Tensor {
  if (!a.softcap) return ops.softMax(c, scores, a.mask, a.scale)
  const capped = ops.scale(c, ops.tanh(c, ops.scale(c, scores, a.scale / a.softcap)), a.softcap)
  return ops.softMax(c, capped, a.mask, 1)
}

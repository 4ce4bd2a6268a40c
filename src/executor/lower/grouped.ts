/**
 * Attention as two matrix products: all query heads of a KV head read each key and value once (ggml's fused attention reads
 * them once per query head), and sums are f32. Needs transposed values. The choice for decoding: several times faster than
 * the fused op on long caches, and exact where that sums an f16 V in f16.
 */
import type { Context } from '../../ggml/context.ts'
import * as ops from '../../ggml/ops/index.ts'
import type { Tensor } from '../../ggml/tensor.ts'
import type { AttentionInputs, Lowering } from './lowering.ts'

export const grouped: Lowering = {
  /** Softmax runs in parallel over dimension 1 only: for a single row the heads go there, with a mask row for each. */
  mask: (c, mask, heads) => (mask.ne[1] === 1 ? ops.repeat(c, mask, mask.ne[0], heads) : mask),

  attend(c, a) {
    const [d, H, T] = a.q.ne
    const [, n, Hkv] = a.keys.ne
    const G = H / Hkv
    const q = T === 1 ? ops.reshape(c, a.q, d, G, Hkv) : byKvHead(c, a.q, Hkv) // f32 [d, T * G, Hkv]
    const kq = ops.mulMat(c, a.keys, q) //                                      f32 [n, T * G, Hkv]
    const scores = T === 1 ? ops.reshape(c, kq, n, H) : ops.reshape(c, kq, n, T, H)
    const p = softMax(c, scores, a) //                                          f32 [n, H] or [n, T, H]
    const o = ops.mulMat(c, a.values, ops.reshape(c, p, n, T * G, Hkv)) //      f32 [d, T * G, Hkv]
    if (T === 1) return ops.reshape(c, o, d * H, 1)
    const byRow = ops.permute(c, ops.reshape(c, o, d, T, G, Hkv), 0, 3, 1, 2) // f32 [d, G, Hkv, T]
    return ops.cont(c, byRow, d * H, T)
  },
}

/** Rows and the group of a KV head become one dimension: [d, H, T] -> [d, T, G, Hkv] -> [d, T * G, Hkv]. */
function byKvHead(c: Context, q: Tensor, Hkv: number): Tensor {
  const [d, H, T] = q.ne
  const G = H / Hkv
  const split = ops.view(c, q, [d, G, Hkv, T], [q.nb[1], G * q.nb[1], q.nb[2]])
  return ops.cont(c, ops.permute(c, split, 0, 2, 3, 1), d, T * G, Hkv)
}

function softMax(c: Context, scores: Tensor, a: AttentionInputs): Tensor {
  if (!a.softcap) return ops.softMax(c, scores, a.mask, a.scale)
  const capped = ops.scale(c, ops.tanh(c, ops.scale(c, scores, a.scale / a.softcap)), a.softcap)
  return ops.softMax(c, capped, a.mask, 1)
}

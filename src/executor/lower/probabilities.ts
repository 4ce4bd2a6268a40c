/**
 * Attention probabilities by explicit products: all query heads of a KV head read each key once, sums are f32. Several parts
 * are multiplied where they lie; only their scores are put together.
 */
import type { Context } from '../../ggml/context.ts'
import * as ops from '../../ggml/ops/index.ts'
import type { Tensor } from '../../ggml/tensor.ts'
import { type CodedRows, isCoded, isFewRows, keyProducts, numbersOf } from './blocks.ts'
import { type AttentionInputs, type KeyPart, partHeads } from './lowering.ts'

/** What {@link probabilities} needs; values are not read. */
export type ScoreInputs = Omit<AttentionInputs, 'parts'> & { readonly parts: readonly KeyPart[] }

/**
 * The form in which {@link probabilities} reads a mask, f16 [n, T] or [n, T, H]. Softmax runs in parallel over dimension 1
 * only: for a single row the heads go there, with a mask row for each.
 */
export function maskForRows(c: Context, mask: Tensor, heads: number): Tensor {
  if (mask.ne[1] !== 1) return mask
  if (mask.ne[2] === heads) return ops.reshape(c, mask, mask.ne[0], heads)
  return ops.repeat(c, mask, mask.ne[0], heads)
}

/** softmax over n keys, f32 [n, T, H]. */
export function probabilities(c: Context, a: ScoreInputs): Tensor {
  const [d, H, T] = a.q.ne
  const Hkv = partHeads(a.parts[0]!)
  const q = T === 1 ? ops.reshape(c, dense(c, a.q), d, H / Hkv, Hkv) : byKvHead(c, a.q, Hkv) //               f32 [d, T * G, Hkv]
  const kq = a.parts.map((p) => scores(c, p, q)).reduce((x, y) => ops.concat(c, x, y, 0)) //          f32 [n, T * G, Hkv]
  const n = kq.ne[0]
  if (T === 1) return ops.reshape(c, softMax(c, ops.reshape(c, kq, n, H), a), n, 1, H)
  return softMax(c, ops.reshape(c, kq, n, T, H), a)
}

/**
 * Products of the keys of a part with q f32 [d, T * G, Hkv]. What their channels are multiplied by goes to the queries instead, and
 * what is added to them is one number for all rows.
 */
function scores(c: Context, { keys, keysTransposed, keyScale, keyBase }: KeyPart, q: Tensor): Tensor {
  const scaled = keyScale ? ops.mul(c, q, keyScale) : q
  const kq = products(c, keys, keysTransposed ?? false, scaled)
  return keyBase ? ops.add(c, kq, ops.mulMat(c, keyBase, q)) : kq
}

function products(c: Context, keys: Tensor | CodedRows, isTransposed: boolean, q: Tensor): Tensor {
  if (isCoded(keys)) {
    if (isFewRows(q.ne[1])) return keyProducts(c, keys, q)
    return products(c, numbersOf(c, keys), keys.by === 'token', q)
  }
  return isTransposed ? ops.outProd(c, keys, ops.transpose(c, q)) : ops.mulMat(c, keys, q)
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

function softMax(c: Context, scores: Tensor, a: ScoreInputs): Tensor {
  if (!a.softcap) return ops.softMax(c, scores, a.mask, a.scale)
  const capped = ops.scale(c, ops.tanh(c, ops.scale(c, scores, a.scale / a.softcap)), a.softcap)
  return ops.softMax(c, capped, a.mask, 1)
}

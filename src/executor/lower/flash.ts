/**
 * ggml's fused attention. With 64 queries or more and K and V both f16 or both f32 it runs in f32 tiles, exact and fast; below, it
 * sums an f16 V in f16.
 */

import type { Context } from '../../ggml/context.ts'
import * as ops from '../../ggml/ops/index.ts'
import type { Tensor } from '../../ggml/tensor.ts'
import { type CodedRows, isCoded, numbersOf } from './blocks.ts'
import type { Attended, AttentionInputs, KeyPart, KvPart, Lowering } from './lowering.ts'

/** ggml's CPU kernel works in tiles from this many queries on. */
export const TILE_ROWS = 64

/** On keys and values in whatever types they are cached, as libllama does it, bit for bit. */
export const flash: Lowering = { mask: (_, mask) => mask, attend: (c, a) => fused(c, a, together(c, a.parts)) }

/** For {@link TILE_ROWS} rows or more: types that the tiles do not read are cast to f32, which costs less than the slow path. */
export const tiled: Lowering = {
  mask: flash.mask,

  attend(c, a) {
    const { k, v } = together(c, a.parts)
    const isRead = k.type === v.type && (k.type === 'f16' || k.type === 'f32')
    return fused(c, a, isRead ? { k, v } : { k: asFloats(c, k), v: asFloats(c, v) })
  },
}

/** @param rows keys and values, [d, n, Hkv] */
function fused(c: Context, { q, mask, scale, softcap }: AttentionInputs, { k, v }: Together): Attended {
  const o = ops.flashAttention(c, ops.permute(c, q, 0, 2, 1, 3), k, v, mask, scale, softcap) // f32 [d, H, T]
  return { out: ops.reshape(c, o, o.ne[0] * o.ne[1], q.ne[2]), probabilities: null }
}

interface Together {
  readonly k: Tensor
  readonly v: Tensor
}

/** All parts as one, row-major; several are brought to f32 first. */
function together(c: Context, parts: readonly KvPart[]): Together {
  const [first, ...rest] = parts
  if (!rest.length) return { k: plainKeys(c, first!), v: plainValues(c, first!) }
  const join = (all: Tensor[]) => all.reduce((a, b) => ops.concat(c, a, b, 1))
  return {
    k: join(parts.map((p) => asFloats(c, plainKeys(c, p)))),
    v: join(parts.map((p) => asFloats(c, plainValues(c, p)))),
  }
}

/** Keys as they are meant, [d, n, Hkv]. */
export function plainKeys(c: Context, { keys, keysTransposed, keyScale, keyBase }: KeyPart): Tensor {
  let k = plainRows(c, keys, keysTransposed ?? false)
  if (keyScale) k = ops.mul(c, asFloats(c, k), keyScale)
  return keyBase ? ops.add(c, asFloats(c, k), keyBase) : k
}

/** Values as they are meant, [d, n, Hkv]. */
export function plainValues(c: Context, { values, valuesTransposed, valueScale }: KvPart): Tensor {
  const v = plainRows(c, values, valuesTransposed)
  return valueScale ? ops.mul(c, asFloats(c, v), valueScale) : v
}

function plainRows(c: Context, rows: Tensor | CodedRows, isTransposed: boolean): Tensor {
  if (isCoded(rows)) return plainRows(c, numbersOf(c, rows), rows.by === 'token')
  return isTransposed ? rowMajor(c, rows) : rows
}

function asFloats(c: Context, t: Tensor): Tensor {
  return t.type === 'f32' ? t : ops.cast(c, t, 'f32')
}

/** [n, d, Hkv] -> [d, n, Hkv] */
function rowMajor(c: Context, x: Tensor): Tensor {
  return ops.cont(c, ops.transpose(c, x))
}

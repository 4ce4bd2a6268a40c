/** Softmax, fused attention, rotary positions. */
import { ShapeError } from '../../contract/errors.ts'
import type { Context } from '../context.ts'
import { ffi } from '../library.ts'
import type { Tensor } from '../tensor.ts'
import { fail, needContiguous, needDenseRows, needType, readable } from './check.ts'

/**
 * softmax(a * scale + mask) along dimension 0. `a` f32 [n, rows, heads, batch]; `mask` f16 or f32 [n, >= rows, m2, m3]
 * with heads a multiple of m2 (head h reads h % m2). A row that is masked as a whole gives NaN.
 */
export function softMax(c: Context, a: Tensor, mask: Tensor | null, scale: number): Tensor {
  readable('softMax', c, a, mask)
  needType('softMax', a, 'f32')
  needContiguous('softMax', a)
  if (mask) {
    needType('softMax', mask, 'f16', 'f32')
    needContiguous('softMax', mask)
    if (mask.ne[0] !== a.ne[0] || mask.ne[1] < a.ne[1] || a.ne[2] % mask.ne[2] || a.ne[3] % mask.ne[3])
      fail('softMax', [a, mask], 'the mask must be [n, >= rows, a divisor of heads, a divisor of the batch]')
  }
  return c.adopt(ffi.ggml_soft_max_ext(c.reserve(a, mask), a.ptr, mask?.ptr ?? null, scale, 0), 'f32', a.ne)
}

/** K-quants need rows of 256. */
const FLASH_TYPES = ['f32', 'f16', 'bf16', 'q8_0', 'q4_0', 'q4_1', 'q5_0', 'q5_1', 'iq4_nl'] as const

/**
 * Attention in one op: q f32 [d, T, H, B], k [d, n, Hkv, B], v [dv, n, Hkv, B] -> f32 [dv, H, T, B].
 * `mask` f16 [n, >= T, m2, m3] is added to the scaled scores; `softcap` (0: none) limits them to +-softcap by tanh.
 * ggml's CPU kernel sums an f16 V in f16 when T < 64: see `docs/decisions` on the default lowering.
 */
export function flashAttention(
  c: Context,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  mask: Tensor | null,
  scale: number,
  softcap = 0,
): Tensor {
  const operands = [q, k, v, mask]
  readable('flashAttention', c, ...operands)
  needType('flashAttention', q, 'f32')
  needType('flashAttention', k, ...FLASH_TYPES)
  needType('flashAttention', v, ...FLASH_TYPES)
  for (const t of [q, k, v]) needDenseRows('flashAttention', t)
  if (q.ne[0] !== k.ne[0] || q.ne[2] % k.ne[2] || q.ne[3] !== k.ne[3] || q.ne[3] !== v.ne[3] || k.ne[1] !== v.ne[1])
    fail('flashAttention', operands, 'head sizes, numbers of keys or batches do not agree')
  if (v.ne[2] !== k.ne[2]) fail('flashAttention', operands, 'K and V must have as many heads')
  // The tiled kernel pads the last keys with -inf before the cap, which makes finite scores of them: wrong by 3 to 90 %.
  if (softcap && q.ne[1] >= 64 && k.ne[1] % 64)
    fail(
      'flashAttention',
      operands,
      'with a softcap and 64 queries or more, the number of keys must be a multiple of 64',
    )
  if (mask) {
    needType('flashAttention', mask, 'f16')
    needContiguous('flashAttention', mask)
    if (mask.ne[0] < k.ne[1] || mask.ne[1] < q.ne[1] || q.ne[2] % mask.ne[2] || q.ne[3] % mask.ne[3])
      fail(
        'flashAttention',
        operands,
        'the mask must be [>= keys, >= queries, a divisor of heads, a divisor of the batch]',
      )
  }
  const ptr = ffi.ggml_flash_attn_ext(c.reserve(...operands), q.ptr, k.ptr, v.ptr, mask?.ptr ?? null, scale, 0, softcap)
  return c.adopt(ptr, 'f32', [v.ne[0], q.ne[2], q.ne[1], q.ne[3]])
}

/** How RoPE pairs the elements of a head: (2i, 2i+1) or (i, i + dims/2). */
export type RopePairs = 'norm' | 'neox'

export interface RopeOptions {
  /** Elements of each head that are rotated; even. */
  readonly dims: number
  readonly pairs: RopePairs
  /** Base of the angles (theta). */
  readonly base: number
  /** 1 / scaling factor of linear and YaRN scaling; 1 for none. */
  readonly frequencyScale: number
  /** YaRN: weight of extrapolation; 0 turns YaRN off. */
  readonly extFactor: number
  /** Factor on the magnitude of the rotated vectors. */
  readonly attentionFactor: number
  readonly betaFast: number
  readonly betaSlow: number
  /** Context length the model was first trained with, tokens. */
  readonly originalContext: number
}

/**
 * Rotates `a` f32 or f16 [d, heads, T] by its rows' positions, i32 [T]; negative positions rotate back.
 * `factors` f32 [dims / 2] divides the frequencies (Llama 3, LongRoPE).
 */
export function rope(c: Context, a: Tensor, positions: Tensor, factors: Tensor | null, o: RopeOptions): Tensor {
  const operands = [a, positions, factors]
  readable('rope', c, ...operands)
  needType('rope', a, 'f32', 'f16')
  needType('rope', positions, 'i32')
  needDenseRows('rope', a)
  needDenseRows('rope', positions)
  if (positions.ne[0] !== a.ne[2] || positions.elements !== positions.ne[0])
    fail('rope', operands, 'there must be one position per row of dimension 2')
  if (o.dims % 2 || o.dims < 2 || o.dims > a.ne[0]) throw new ShapeError(`rope: ${o.dims} dims of a head of ${a.ne[0]}`)
  if (factors) {
    needType('rope', factors, 'f32')
    needDenseRows('rope', factors)
    if (factors.ne[0] < o.dims / 2) fail('rope', operands, `factors must be at least ${o.dims / 2}`)
  }
  const ptr = ffi.ggml_rope_ext(
    c.reserve(...operands),
    a.ptr,
    positions.ptr,
    factors?.ptr ?? null,
    o.dims,
    o.pairs === 'neox' ? 2 : 0,
    o.originalContext,
    o.base,
    o.frequencyScale,
    o.extFactor,
    o.attentionFactor,
    o.betaFast,
    o.betaSlow,
  )
  return c.adopt(ptr, a.type, a.ne)
}

/**
 * How attention reads the rows that a plan names. A lowering turns one layer's attention into graph nodes; all give the
 * same result up to rounding.
 */
import type { Context } from '../../ggml/context.ts'
import type { Tensor } from '../../ggml/tensor.ts'
import { type CodedByToken, type CodedRows, codedRowCount, isCoded } from './blocks.ts'

/** Cached rows that lie together, or were gathered. */
export interface KvPart extends KeyPart {
  /** [d, n, Hkv], or [n, d, Hkv] when transposed. */
  readonly values: Tensor | CodedByToken
  readonly valuesTransposed: boolean
  /** f32 [d, 1, Hkv]: by what each channel of the values is still to be multiplied. Absent: 1. */
  readonly valueScale?: Tensor
}

/** A part whose rows are numbers as they stand. */
export interface PlainPart extends KvPart {
  readonly keys: Tensor
  readonly values: Tensor
}

/** The keys of a part. */
export interface KeyPart {
  /** [d, n, Hkv]; f32 [n, d, Hkv] when transposed. */
  readonly keys: Tensor | CodedRows
  readonly keysTransposed?: boolean
  /** f32 [d, 1, Hkv]: by what each channel of the keys is still to be multiplied, and what is added behind. Absent: 1, 0. */
  readonly keyScale?: Tensor
  readonly keyBase?: Tensor
}

/** Rows of a part. */
export function partRows({ keys, keysTransposed }: KeyPart): number {
  return isCoded(keys) ? codedRowCount(keys) : keys.ne[keysTransposed ? 0 : 1]
}

/** KV heads of a part. */
export function partHeads({ keys }: KeyPart): number {
  return isCoded(keys) ? keys.codes.ne[3] : keys.ne[2]
}

/** One item's attention in one layer, over n cached rows in all parts together. */
export interface AttentionInputs {
  /** f32 [d, H, T] */
  readonly q: Tensor
  readonly parts: readonly KvPart[]
  /** What {@link Lowering.mask} made of the mask. */
  readonly mask: Tensor
  readonly scale: number
  /** Scores are limited to +-this; 0: not. */
  readonly softcap: number
}

export interface Attended {
  /** f32 [d * H, T] */
  readonly out: Tensor
  /** f32 [n, T, H]; null where the lowering does not make them as a whole. */
  readonly probabilities: Tensor | null
}

export interface Lowering {
  /** Brings a mask, f16 [n, T] or [n, T, H] of 0 and -inf, into the form that `attend` reads; once for all layers that share it. */
  readonly mask: (c: Context, mask: Tensor, heads: number) => Tensor
  readonly attend: (c: Context, a: AttentionInputs) => Attended
}

/** `auto` picks by what is exact and fast for the step at hand; `flash` is what libllama does. */
export const LOWERINGS = ['auto', 'flash', 'grouped'] as const
export type LoweringName = (typeof LOWERINGS)[number]

/**
 * How attention reads the rows that a plan names. A lowering turns one layer's attention into graph nodes; all give the
 * same result up to rounding.
 */
import type { Context } from '../../ggml/context.ts'
import type { Tensor } from '../../ggml/tensor.ts'

/** One layer's attention over n cached rows. */
export interface AttentionInputs {
  /** f32 [d, H, T] */
  readonly q: Tensor
  /** [d, n, Hkv] */
  readonly keys: Tensor
  /** [d, n, Hkv], or [n, d, Hkv] when transposed. */
  readonly values: Tensor
  readonly valuesTransposed: boolean
  /** What {@link Lowering.mask} made of the mask. */
  readonly mask: Tensor
  readonly scale: number
  /** Scores are limited to +-this; 0: not. */
  readonly softcap: number
}

export interface Lowering {
  /** Brings a mask, f16 [n, T] of 0 and -inf, into the form that `attend` reads; once for all layers of a graph. */
  readonly mask: (c: Context, mask: Tensor, heads: number) => Tensor
  /** -> f32 [d * H, T] */
  readonly attend: (c: Context, a: AttentionInputs) => Tensor
}

/** `auto` picks by what is exact and fast for the step at hand; `flash` is what libllama does. */
export const LOWERINGS = ['auto', 'flash', 'grouped'] as const
export type LoweringName = (typeof LOWERINGS)[number]

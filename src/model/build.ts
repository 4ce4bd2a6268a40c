/**
 * The vocabulary in which architectures are written: one method per thing that blocks do, over the rows of one step.
 * Shapes: T rows of this step, D width, d head size, H query heads, Hkv KV heads.
 */
import type { Context } from '../ggml/context.ts'
import * as ops from '../ggml/ops/index.ts'
import type { Tensor } from '../ggml/tensor.ts'
import { type ModelConfig, ropeOf } from './config.ts'

/**
 * What the executor gives a block: where its keys and values go and how attention reads them.
 * q f32 [d, H, T], k and v f32 [d, Hkv, T] -> f32 [d * H, T]. Stores k and v before it reads.
 */
export type Attend = (layer: number, q: Tensor, k: Tensor, v: Tensor, scale: number) => Tensor

/** Query, key and value projections: stacked, or one by one. */
export interface QkvWeights {
  /** [D, d * (H + 2 Hkv)] */
  readonly qkv?: Tensor | undefined
  readonly qkvBias?: Tensor | undefined
  readonly q?: Tensor | undefined
  readonly k?: Tensor | undefined
  readonly v?: Tensor | undefined
  readonly qBias?: Tensor | null | undefined
  readonly kBias?: Tensor | null | undefined
  readonly vBias?: Tensor | null | undefined
}

/** A gated MLP: gate and up stacked, or one by one. */
export interface MlpWeights {
  /** [D, 2 F] */
  readonly gateUp?: Tensor | undefined
  readonly gate?: Tensor | undefined
  readonly up?: Tensor | undefined
  readonly down: Tensor
}

export class Build {
  readonly c: Context
  readonly config: ModelConfig
  /** i32 [T] */
  readonly positions: Tensor
  readonly #attend: Attend
  readonly #ropeFactors: Tensor | null
  /** i32 [rows]: rows that go on behind the last block's attention; null: all. */
  readonly #outputRows: Tensor | null
  layer = 0

  constructor(
    c: Context,
    config: ModelConfig,
    positions: Tensor,
    ropeFactors: Tensor | null,
    outputRows: Tensor | null,
    attend: Attend,
  ) {
    this.c = c
    this.config = config
    this.positions = positions
    this.#ropeFactors = ropeFactors
    this.#outputRows = outputRows
    this.#attend = attend
  }

  /** rmsNorm(x) * weight */
  norm(x: Tensor, weight: Tensor): Tensor {
    return ops.mul(this.c, ops.rmsNorm(this.c, x, this.config.normEpsilon), weight)
  }

  /** weight [in, out] x [in, T] (+ bias) -> [out, T] */
  linear(x: Tensor, weight: Tensor, bias?: Tensor | null): Tensor {
    const y = ops.mulMat(this.c, weight, x)
    return bias ? ops.add(this.c, y, bias) : y
  }

  /** [d * heads, T] -> [d, heads, T] */
  heads(x: Tensor): Tensor {
    const d = this.config.headDim
    return ops.reshape(this.c, x, d, x.ne[0] / d, x.ne[1])
  }

  /** Heads [first, first + count) of packed rows [d * all, T], as a view [d, count, T]. */
  headRange(x: Tensor, first: number, count: number): Tensor {
    const headBytes = this.config.headDim * x.nb[0]
    return ops.view(this.c, x, [this.config.headDim, count, x.ne[1]], [headBytes, x.nb[1]], first * headBytes)
  }

  /** Rotates [d, heads, T] by the rows' positions. */
  rope(x: Tensor): Tensor {
    return ops.rope(this.c, x, this.positions, this.#ropeFactors, ropeOf(this.config, this.layer))
  }

  /** Stores k and v [d, Hkv, T], attends with q [d, H, T] -> [d * H, T]. */
  attend(q: Tensor, k: Tensor, v: Tensor, scale = this.config.attentionScale): Tensor {
    return this.#attend(this.layer, q, k, v, scale)
  }

  add(a: Tensor, b: Tensor): Tensor {
    return ops.add(this.c, a, b)
  }

  scale(x: Tensor, factor: number): Tensor {
    return ops.scale(this.c, x, factor)
  }

  /** Behind the last block's attention only the rows whose outputs are wanted go on: the rest would be thrown away. */
  outputRowsOnly<T extends readonly Tensor[]>(...rows: T): T {
    const ids = this.#outputRows
    if (!ids || this.layer !== this.config.layers - 1) return rows
    return rows.map((x) => ops.getRows(this.c, x, ids)) as unknown as T
  }

  /** The projections of rows h, not rotated: q [d, H, T], k and v [d, Hkv, T]. One product where they are stacked. */
  qkv(h: Tensor, w: QkvWeights): { readonly q: Tensor; readonly k: Tensor; readonly v: Tensor } {
    const { heads: H, kvHeads: Hkv } = this.config
    if (!w.qkv)
      return {
        q: this.heads(this.linear(h, w.q!, w.qBias)),
        k: this.heads(this.linear(h, w.k!, w.kBias)),
        v: this.heads(this.linear(h, w.v!, w.vBias)),
      }
    const all = this.linear(h, w.qkv, w.qkvBias) // [d * (H + 2 Hkv), T]
    return {
      q: this.headRange(all, 0, H),
      k: this.headRange(all, H, Hkv),
      v: this.headRange(all, H + Hkv, Hkv),
    }
  }

  /** The same with q and k rotated, in one go where they are stacked. */
  rotatedQkv(h: Tensor, w: QkvWeights): { readonly q: Tensor; readonly k: Tensor; readonly v: Tensor } {
    const { heads: H, kvHeads: Hkv, headDim: d } = this.config
    if (!w.qkv) {
      const { q, k, v } = this.qkv(h, w)
      return { q: this.rope(q), k: this.rope(k), v }
    }
    const all = this.linear(h, w.qkv, w.qkvBias) //              [d * (H + 2 Hkv), T]
    const qk = this.rope(this.headRange(all, 0, H + Hkv)) //      [d, H + Hkv, T]
    const part = (first: number, count: number) =>
      ops.view(this.c, qk, [d, count, qk.ne[2]], [qk.nb[1], qk.nb[2]], first * qk.nb[1])
    return { q: part(0, H), k: part(H, Hkv), v: this.headRange(all, H + Hkv, Hkv) }
  }

  /** down(silu(gate(x)) * up(x)) */
  swiglu(x: Tensor, w: MlpWeights): Tensor {
    const h = w.gateUp
      ? ops.swiglu(this.c, ops.mulMat(this.c, w.gateUp, x))
      : ops.swigluSplit(this.c, ops.mulMat(this.c, w.gate!, x), ops.mulMat(this.c, w.up!, x))
    return ops.mulMat(this.c, w.down, h)
  }

  /** down(gelu(gate(x)) * up(x)) */
  geglu(x: Tensor, w: MlpWeights): Tensor {
    const h = w.gateUp
      ? ops.geglu(this.c, ops.mulMat(this.c, w.gateUp, x))
      : ops.gegluSplit(this.c, ops.mulMat(this.c, w.gate!, x), ops.mulMat(this.c, w.up!, x))
    return ops.mulMat(this.c, w.down, h)
  }

  /** limit * tanh(x / limit) */
  softcap(x: Tensor, limit: number): Tensor {
    return ops.scale(this.c, ops.tanh(this.c, ops.scale(this.c, x, 1 / limit)), limit)
  }
}

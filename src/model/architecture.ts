/**
 * What an architecture is: a name, its weights, and one function that builds a block. Everything that architectures share
 * is in `build.ts`; everything that a step decides (which rows, how attention reads them) comes in through `Build.attend`.
 */
import type { GgufFile } from '../ggml/gguf/index.ts'
import type { Tensor } from '../ggml/tensor.ts'
import type { Build } from './build.ts'
import type { ModelConfig } from './config.ts'

/** A weight's GGUF name (without `blk.N.`) and shape, fastest dimension first. */
export interface WeightSpec<Optional extends boolean = boolean> {
  readonly name: string
  readonly ne: readonly number[]
  readonly optional: Optional
}

export type WeightSpecs = Readonly<Record<string, WeightSpec>>

/**
 * Weights that are multiplied with the same rows, and so can lie in one tensor, row behind row: one product does the work of
 * several. Where that is not possible (other types, a mapped file that is too large to copy) they stay apart.
 */
export const STACKS = {
  qkv: ['q', 'k', 'v'],
  qkvBias: ['qBias', 'kBias', 'vBias'],
  gateUp: ['gate', 'up'],
} as const satisfies Record<string, readonly string[]>

export type StackName = keyof typeof STACKS

type Stacked = (typeof STACKS)[StackName][number]

/**
 * The tensors of a set of specs. An optional one is null when the file has none; one that can be part of a stack is undefined
 * when it is.
 */
export type TensorsOf<S extends WeightSpecs> = {
  readonly [K in keyof S]:
    | (K extends Stacked ? Tensor | undefined : Tensor)
    | (S[K] extends WeightSpec<false> ? never : null)
} & { readonly [K in StackName]?: Tensor }

export const need = (name: string, ...ne: number[]): WeightSpec<false> => ({ name, ne, optional: false })
export const may = (name: string, ...ne: number[]): WeightSpec<true> => ({ name, ne, optional: true })

export interface Architecture<S extends WeightSpecs = WeightSpecs> {
  /** `general.architecture` in the file. */
  readonly name: string
  readonly configure: (file: GgufFile) => ModelConfig
  /** Weights of one layer. */
  readonly layerWeights: (config: ModelConfig) => S
  /** Token embeddings to the first residual rows; default: unchanged. */
  readonly embed?: (b: Build, x: Tensor) => Tensor
  /** One block: residual rows [D, T] in, residual rows out. */
  readonly block: (b: Build, x: Tensor, w: TensorsOf<S>) => Tensor
}

/** Gives `block` the exact type of its weights, then forgets it, so that architectures can stand in one table. */
export function defineArchitecture<const S extends WeightSpecs>(architecture: Architecture<S>): Architecture {
  return architecture as unknown as Architecture
}

/** Weights outside the blocks, the same in every architecture here. `output` is absent when tied to the embeddings. */
export function globalWeights(config: ModelConfig) {
  return {
    tokenEmbeddings: need('token_embd.weight', config.width, config.vocab),
    outputNorm: need('output_norm.weight', config.width),
    output: may('output.weight', config.width, config.vocab),
    outputBias: may('output.bias', config.vocab),
    ropeFactors: may('rope_freqs.weight', config.rope.dims / 2),
    ropeLong: may('rope_factors_long.weight', config.rope.dims / 2),
    ropeShort: may('rope_factors_short.weight', config.rope.dims / 2),
  }
}

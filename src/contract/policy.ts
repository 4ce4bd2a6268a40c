/**
 * A cache policy: a pure function from observations to a plan. It knows no engine: the executor makes the observations and the
 * store carries out the plan; tests and the simulator run the same function.
 *
 * Letters as everywhere: Lyr layers, H query heads, Hkv KV heads, G = H / Hkv, d head size, n rows in the cache.
 */
import type { Observation, ObservationNeeds } from './observation.ts'

export interface ModelDims {
  readonly layers: number
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
}

export interface PolicyState {
  readonly model: ModelDims
  /** Tokens seen so far: the position of the next one. */
  readonly seen: number
  /** Positions of the rows in the cache, ascending, by layer and KV head. A uniform cache has one list for all. */
  readonly positions: (layer: number, kvHead: number) => Int32Array
  /** Rows per layer and KV head that the budget pays for on average, sinks and windows included. */
  readonly budget: number
  /** Same seed, same plan. */
  readonly seed: number
  /** Of this very model; only where {@link PolicyDefinition.calibration} asks for it. */
  readonly calibration?: Calibration
}

/** What was measured of a model once, by `kvasir calibrate POLICY MODEL`, for a policy that needs it. */
export type Calibration = CompressKvCalibration

export interface CompressKvCalibration {
  readonly policy: 'compresskv'
  /** By layer: all query heads, the one that best holds on to a passage it copies from first. */
  readonly heads: readonly (readonly number[])[]
  /** By layer: its share of the error that eviction causes; they add up to 1. */
  readonly layerShares: readonly number[]
}

export type CompressionPlan =
  | { readonly kind: 'keep-all' }
  /** `rows[layer][kvHead]`: indices into the rows of that head's cache, ascending, without doubles. All others are dropped. */
  | { readonly kind: 'keep'; readonly rows: readonly (readonly Int32Array[])[] }

/** An option of a policy; its default is the paper's, or our choice where the policy's file says so. */
export type OptionSpec =
  | {
      readonly kind: 'number'
      readonly default: number
      readonly min: number
      readonly max: number
      readonly whole?: boolean
      readonly help: string
    }
  | { readonly kind: 'choice'; readonly default: string; readonly choices: readonly string[]; readonly help: string }
  | { readonly kind: 'flag'; readonly default: boolean; readonly help: string }

export type OptionSpecs = Readonly<Record<string, OptionSpec>>
type OptionValue<O extends OptionSpec> = O extends { readonly kind: 'number' }
  ? number
  : O extends { readonly kind: 'flag' }
    ? boolean
    : O extends { readonly choices: readonly (infer C)[] }
      ? C
      : never
export type OptionsOf<S extends OptionSpecs> = { readonly [K in keyof S]: OptionValue<S[K]> }

/** Methods rather than functions in fields, so that definitions with options of their own fit into one list. */
export interface PolicyDefinition<S extends OptionSpecs = OptionSpecs> {
  /** As users type it, and the name of its file. */
  readonly name: string
  readonly family: 'eviction' | 'quantization' | 'merging' | 'sparse'
  readonly summary: string
  readonly paper: { readonly title: string; readonly year: number; readonly arxiv: string } | null
  readonly options: S
  /** What is wrong with options of which each is in its range; null: nothing. */
  check?(options: OptionsOf<S>): string | null
  /** Whose calibration it needs; absent or null: none. */
  calibration?(options: OptionsOf<S>): Calibration['policy'] | null
  observes(options: OptionsOf<S>): ObservationNeeds
  /** When the prompt is complete. */
  afterPrefill(seen: Observation, state: PolicyState, options: OptionsOf<S>): CompressionPlan
  /** After each row of the answer; absent: the answer's rows are kept. */
  afterDecode?(seen: Observation, state: PolicyState, options: OptionsOf<S>): CompressionPlan
}

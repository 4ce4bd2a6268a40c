/**
 * A cache policy: a pure function from observations to a plan. It knows no engine: the executor makes the observations and the
 * store carries out the plan; tests and the simulator run the same function.
 *
 * Letters as everywhere: Lyr layers, H query heads, Hkv KV heads, G = H / Hkv, d head size, n rows in the cache.
 */
import type { Calibration } from './calibration.ts'
import type { RowFormat } from './format.ts'
import type { Observation, ObservationNeeds } from './observation.ts'
import type { Range } from './units.ts'

export type { Calibration }

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
  /** Positions of the rows in the cache, ascending, by layer and KV head; to be read only. A uniform cache has one list for all. */
  readonly positions: (layer: number, kvHead: number) => Int32Array
  /**
   * In which format each of them is stored: 0 as they were computed, i + 1 in the i-th of {@link PolicyDefinition.formats},
   * {@link SHARED} with another layer. Absent: all as they were computed.
   */
  readonly formats?: (layer: number, kvHead: number) => Uint8Array
  /** Rows per layer and KV head that the budget pays for on average, sinks and windows included. */
  readonly budget: number
  /** Same seed, same plan. */
  readonly seed: number
  /** Of this very model; only where {@link PolicyDefinition.calibration} asks for it. */
  readonly calibration?: Calibration
  /** What the policy's last plan for this sequence told it to remember; absent: there was none. */
  readonly memory?: unknown
}

/** Of a prompt that is read layer by layer: see {@link PolicyDefinition.stages}. */
export interface StageState extends PolicyState {
  /** What {@link PolicyDefinition.stages} was told. */
  readonly prompt: PromptAhead
  /** Layers that were just computed, half-open. */
  readonly layers: Range
  /** Positions of the rows that were computed in them, ascending. */
  readonly ran: Int32Array
}

/** One row that stands for several: it keeps the cell and the position of `into`. */
export interface Merge {
  /** A row that the plan keeps. */
  readonly into: number
  /** Rows that are summed, `into` among them or not. All but `into` are dropped. */
  readonly from: Int32Array
  /** Of each of them, for keys and values alike: 1 / n each is their mean. */
  readonly weights: Float32Array
  /** Where values have other weights than keys. Absent: they have not. */
  readonly valueWeights?: Float32Array
  /** How many rows it stands for, 1 or more: ln(mass) is added to its attention scores. */
  readonly mass: number
}

/** Of a row whose direction two layers share: see {@link SharedRows}. */
export const SHARED = 255

/** Rows that move to another format. They are stored in blocks of 32: what does not fill the last block wastes its place. */
export interface StoredRows {
  /** Which of {@link PolicyDefinition.formats}. */
  readonly format: number
  /** `rows[layer][kvHead]`: indices of kept rows that are stored as they were computed, ascending. */
  readonly rows: readonly (readonly Int32Array[])[]
  /**
   * `balance[layer][kvHead]`, f32 [d], of keys in codes: channel c is multiplied by its number before it is rounded, and divided
   * behind; of the first plan that stores rows in the format. Absent: not.
   */
  readonly balance?: readonly (readonly Float32Array[])[]
}

/**
 * Rows of which two layers keep one direction, and a length each: x_l ~ |x_l| e, e on the great circle between the directions of the
 * two, at `t` of the way from the lower to the upper. For keys and values alike.
 */
export interface SharedRows {
  readonly lower: number
  readonly upper: number
  /**
   * By KV head: indices of kept rows, the same positions in both layers, stored as they were computed, ascending; as many as fill
   * blocks of 32.
   */
  readonly lowerRows: readonly Int32Array[]
  readonly upperRows: readonly Int32Array[]
  readonly t: number
}

interface Remembering {
  /** For the next plan of this sequence, as {@link PolicyState.memory}; never changed afterwards. Absent: as it was. */
  readonly memory?: unknown
}

export type CompressionPlan =
  | (Remembering & { readonly kind: 'keep-all' })
  | (Remembering & {
      readonly kind: 'keep'
      /** `rows[layer][kvHead]`: indices into the rows of that head's cache, ascending, without doubles. All others are dropped. */
      readonly rows: readonly (readonly Int32Array[])[]
      /** `merges[layer][kvHead]`; absent: none. */
      readonly merges?: readonly (readonly (readonly Merge[])[])[]
      /**
       * `slots`: from now on rows stand side by side for attention, whatever was dropped between them: distances are counted in
       * cached rows. Absent: positions stay what they were.
       */
      readonly placement?: 'slots'
      /** Rows that move to other formats, each in one list at most; not those that are merged. Absent: none. */
      readonly stored?: readonly StoredRows[]
      /** Rows that pairs of layers share, none of them in `stored` or `merges`. Absent: none. */
      readonly shared?: readonly SharedRows[]
    })

/** When a prompt that is read layer by layer has passed some of them. */
export interface StagePlan extends Remembering {
  /** Of the layers that it has passed, all of them, `[layer][kvHead]`, as in a {@link CompressionPlan}; null: all rows stay. */
  readonly rows: readonly (readonly Int32Array[])[] | null
  /** Which of the rows that ran go on to the next layers: indices into {@link StageState.ran}, ascending; null: all. */
  readonly next: Int32Array | null
}

/** What is known of a prompt before it is computed. */
export interface PromptAhead {
  readonly model: ModelDims
  readonly rows: number
  /** Rows per layer and KV head on average. */
  readonly budget: number
  /** Longest context that the model was trained for. */
  readonly contextLength: number
  readonly calibration?: Calibration
}

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
  /** Formats that its plans store rows in. Absent: none. */
  formats?(model: ModelDims, options: OptionsOf<S>): readonly RowFormat[]
  /** Absent: yes. Else its options say what the cache holds, no budget may be given, and {@link PolicyState.budget} is all rows. */
  readonly takesBudget?: false
  /**
   * Whether its cache stays within the budget however long the answer becomes, at distances that the model knows: such an answer
   * may go on beyond the context. Default: no.
   */
  isEndless?(options: OptionsOf<S>): boolean
  /** Rows of the prompt that are read between two plans ({@link afterChunk}); absent or null: it is read as a whole. */
  chunkRows?(prompt: PromptAhead, options: OptionsOf<S>): number | null
  /** A chunk of the prompt was read, the last one too. Nothing is observed. */
  afterChunk?(state: PolicyState, options: OptionsOf<S>): CompressionPlan
  /**
   * First layers of the stages in which the prompt is read, ascending from 0; absent or null: all layers in one go. What is
   * asked of the window is then seen at the end of each stage, of its layers and of the last rows that ran in it.
   */
  stages?(prompt: PromptAhead, options: OptionsOf<S>): readonly number[] | null
  /** The prompt has passed a stage; behind the last one it is complete, and {@link afterPrefill} is not called. */
  afterStage?(seen: Observation, state: StageState, options: OptionsOf<S>): StagePlan
  /** When the prompt is complete. */
  afterPrefill(seen: Observation, state: PolicyState, options: OptionsOf<S>): CompressionPlan
  /** After each row of the answer; absent: the answer's rows are kept. */
  afterDecode?(seen: Observation, state: PolicyState, options: OptionsOf<S>): CompressionPlan
}

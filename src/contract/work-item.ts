/**
 * What the scheduler hands to the executor. A prompt chunk, a decode step, a few layers of either: all are work items. The
 * residual stream is a table of rows; rows join and leave at layer boundaries.
 */
import type { ObservedLayer, Statistic } from './observation.ts'
import type { Position, Range, SequenceId, TokenId } from './units.ts'

export type WorkInput =
  /** One token id per row. */
  | { readonly kind: 'tokens'; readonly tokens: readonly TokenId[] | Int32Array }
  /** Rows that enter before the first layer in place of token embeddings, f32 [D, rows]. */
  | { readonly kind: 'embeddings'; readonly rows: Float32Array }
  /** Residual rows saved at layer `layers.from`, f32 [D, rows]. */
  | { readonly kind: 'hidden'; readonly rows: Float32Array }

export interface WorkOutputs {
  /** Rows of the item whose logits are wanted, ascending. */
  readonly logits: readonly number[]
  /** Whether the residual rows behind layer `layers.to - 1` are wanted, all of them. */
  readonly hidden: boolean
  /** Rows whose states behind the model's final norm are wanted, ascending: what embeddings are made of. Default: none. */
  readonly normed?: readonly number[]
  /**
   * Attention of these rows of the item, half-open, on every key that the sequence then holds, reduced over the rows. Rows
   * that are in the cache already can be computed again for it, with {@link WorkStore} `cells`.
   */
  readonly observe?: { readonly rows: Range; readonly statistics: readonly Statistic[] }
  /** Whether the rotated query states of all rows are wanted, in each layer. Default: no. */
  readonly queries?: boolean
}

/** Where an item's keys and values go, in the sequence's table. */
export type WorkStore =
  /** The rows that were appended last, in every layer and head. */
  | { readonly kind: 'tail' }
  /** These cells of a uniform sequence's column: rows that are there already are computed again. */
  | { readonly kind: 'cells'; readonly cells: readonly number[] | Int32Array }
  /** Nowhere: the rows' keys and values are in the cache already, and are read as they are. */
  | { readonly kind: 'kept' }

/** Which cached keys a row may see. */
export type WorkMask =
  /** All cells of the sequence at the row's position or before it. */
  { readonly kind: 'causal' }

export interface WorkItem {
  readonly sequence: SequenceId
  /** Place of each row in the text. */
  readonly positions: readonly Position[] | Int32Array
  readonly store: WorkStore
  /** Layers to run, half-open. */
  readonly layers: Range
  readonly input: WorkInput
  readonly outputs: WorkOutputs
  readonly mask: WorkMask
}

/**
 * Work that runs as one graph: linear layers over the rows of all items together, attention per item. Items of one sequence
 * in one step must not read what another of them stores.
 */
export interface Step {
  readonly items: readonly WorkItem[]
}

export interface WorkResult {
  /** f32 [V, outputs.logits.length]; valid until the next step. */
  readonly logits: Float32Array | null
  /** f32 [D, rows]; valid until the next step. */
  readonly hidden: Float32Array | null
  /** f32 [D, outputs.normed.length]; valid until the next step. */
  readonly normed: Float32Array | null
  /** One per layer that the item ran, in their order; null when nothing was to be observed. Valid until the next step. */
  readonly observed?: readonly ObservedLayer[] | null
  /** f32 [d, H, rows], one per layer that the item ran, in their order; null when not wanted. */
  readonly queries?: readonly Float32Array[] | null
}

export interface StepResult {
  readonly items: readonly WorkResult[]
  /** Milliseconds inside ggml's graph computation. */
  readonly computeMs: number
  /** Milliseconds for the whole step. */
  readonly totalMs: number
}

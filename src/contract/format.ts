/**
 * How rows are stored that a policy keeps, but not as they are. Bytes are those of the store: a *block* is 32 rows of one KV head
 * in one layer, d its head size.
 */

/** Rows of a block. */
export const BLOCK_ROWS = 32

/** Cache types of ggml that rows can be stored in one by one. */
export type RowType = 'f16' | 'bf16' | 'f32' | 'q8_0' | 'q5_1' | 'q5_0' | 'q4_1' | 'q4_0' | 'iq4_nl'

/** Which numbers share a scale and a minimum, f16 each. */
export type Groups =
  /** So many channels of one row, one group behind the other; divides d. */
  | { readonly by: 'token'; readonly size: number }
  /** The rows of one block, in one channel. */
  | { readonly by: 'channel' }
  /** All rows that a head stores in this format, in one channel: later ones are clamped to the range of the first plan's. */
  | { readonly by: 'tier' }

/**
 * Whole numbers from 0 to 2^bits - 1, and what turns them back: x = code * scale + minimum, of min and max of the group. Both are
 * rounded to f16 before codes are made.
 */
export interface Codes {
  readonly bits: 2 | 4
  readonly groups: Groups
  /**
   * Share of the numbers that are stored exactly, half of it the smallest, half the largest, beside the codes: of each channel's
   * rows in the plan, or, with groups by token, of each row's channels. Default 0.
   */
  readonly outliers?: number
  /** Rank of what is added to make up for rounding, fitted over all rows of a plan. Default 0: nothing. */
  readonly rank?: number
  /** Channels are divided by sqrt(max |x|) before, over the rows of the first plan, and multiplied behind. Default: not. */
  readonly evened?: boolean
}

/** Keys and values, either both row by row or both in blocks of codes. */
export type RowFormat =
  | { readonly kind: 'types'; readonly keys: RowType; readonly values: RowType }
  | { readonly kind: 'codes'; readonly keys: Codes; readonly values: Codes }

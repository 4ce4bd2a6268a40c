/**
 * What was measured of a model once, by `kvasir calibrate POLICY MODEL`, for a policy that needs it. Numbers only, as they were
 * measured: what a policy makes of them is an option of the policy.
 */
export type Calibration = CompressKvCalibration | RazorAttentionCalibration | UncompCalibration

export interface CompressKvCalibration {
  readonly policy: 'compresskv'
  /** By layer: all query heads, the one that best holds on to a passage it copies from first. */
  readonly heads: readonly (readonly number[])[]
  /** By layer: its share of the error that eviction causes; they add up to 1. */
  readonly layerShares: readonly number[]
}

export interface RazorAttentionCalibration {
  readonly policy: 'razorattention'
  /** [layer][kvHead]: attention to earlier copies of the current token, mean over the rows of a repeated random text. */
  readonly echo: readonly (readonly number[])[]
  /** [layer][kvHead]: the same to the tokens that followed those copies. */
  readonly induction: readonly (readonly number[])[]
}

export interface UncompCalibration {
  readonly policy: 'uncomp'
  /** [layer]: truncated matrix entropy of the rotated queries, nats, sum over the query heads, mean over the samples. */
  readonly layerEntropies: readonly number[]
  /** [layer][kvHead]: share of the samples in which the head's entropy is in the upper half of its layer, 0 to 1. */
  readonly headVotes: readonly (readonly number[])[]
}

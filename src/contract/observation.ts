/**
 * What a policy may ask to see of a pass. Only what was asked for is computed, inside the graph, and reduced there. Numbers
 * come as f32 arrays, fastest dimension first.
 *
 * P[i, j, h] is the attention probability of query row i on key j in query head h: post-softmax over all keys that row i may
 * see, f32; 0 for keys that it may not.
 */

/** A reduction over w query rows i, for each key j and query head h: f32 [n, H]. */
export type Statistic =
  /** sum_i P[i, j, h] */
  | 'sum'
  /** 1/(w-1) sum_i (P[i, j, h] - 1/w sum_i P[i, j, h])^2; w is 2 to {@link MOST_COMPARED_ROWS} */
  | 'variance'
  /** sum_i -P[i, j, h] ln(P[i, j, h] + 1e-10) */
  | 'entropy'

/** Query rows that can be compared with each other: their probabilities are in memory at once. */
export const MOST_COMPARED_ROWS = 64

/** Of one layer, reduced over the rows that were asked for. */
export interface ObservedLayer {
  /** Keys of each KV head, Hkv of them, in the order of the cache's table; all equal while that is uniform. */
  readonly keys: readonly number[]
  /** Positions of the keys, by KV head; one list for all while the table is uniform. */
  readonly positions: readonly Int32Array[]
  /** f32 [n, H] by statistic, n the largest of `keys`; what lies behind a head's own keys is 0. */
  readonly statistics: Readonly<Partial<Record<Statistic, Float32Array>>>
}

/** What a policy needs, and when. */
export interface ObservationNeeds {
  /** Of the last rows of the prompt, when the prompt is complete. */
  readonly window?: {
    readonly rows: number
    readonly statistics: readonly Statistic[]
    /** Instead of `rows`, this share of the prompt's rows where that is more. Default 0. */
    readonly share?: number
    /** This share of the prompt's rows besides, by chance among those before. Default 0. */
    readonly random?: number
    /** Whether the queries themselves are wanted. */
    readonly queries?: boolean
  }
  /** Of each key, the sum of what it got from all query rows so far, prompt and answer. */
  readonly columns?: boolean
  /** The probabilities of each row of the answer, when it was computed. */
  readonly decode?: boolean
  /** The cached keys and values themselves, whenever a plan is made. */
  readonly rows?: boolean
}

/** Keys, with their rotation, and values of one KV head, dequantised; f32 [d, n], rows in the order of their positions. */
export interface HeadRows {
  readonly keys: Float32Array
  readonly values: Float32Array
}

/** All layers, layer 0 first. */
export interface Observation {
  readonly window?: readonly ObservedLayer[]
  /** Positions of the rows that the window's statistics are over, ascending. */
  readonly windowRows?: Int32Array
  /** Of these rows, with their rotation, by layer: f32 [d, H, rows]. */
  readonly queries?: readonly Float32Array[]
  /** `sum` only. */
  readonly columns?: readonly ObservedLayer[]
  /** `sum` only, of one row. */
  readonly decode?: readonly ObservedLayer[]
  /** Read when asked for, and not kept: those of all layers at once would be a second cache. */
  readonly rows?: (layer: number, kvHead: number) => HeadRows
}

/**
 * What rows are worth: one number per row, higher stays. Scores are made of what was observed, for the rows that compete;
 * those at both ends that stay anyway are left out first, so that they cannot bleed into their neighbours when pooled.
 */
import { ShapeError } from '../../contract/errors.ts'
import type { ObservedLayer, Statistic } from '../../contract/observation.ts'

/** Rows of a head's cache that stay whatever they are worth. */
export interface Ends {
  /** The oldest ones: sinks. */
  readonly first: number
  /** The newest ones: a window. */
  readonly last: number
}

/** Of one layer: a list per KV head, over the rows that compete. Heads that share a list keep the same rows. */
export type LayerScores = readonly Float64Array[]

/** How many of n rows compete. */
export const competing = (n: number, { first, last }: Ends): number => Math.max(0, n - first - last)

/** A statistic that was asked for. f32 [n, H], n the largest of `keys`. */
export function statistic(
  { keys, statistics }: ObservedLayer,
  name: Statistic,
): { n: number; heads: number; data: Float32Array } {
  const data = statistics[name]
  if (!data) throw new ShapeError(`statistic '${name}' was not observed`)
  const n = Math.max(...keys)
  return { n, heads: n ? data.length / n : 0, data }
}

/** Mean over the G query heads of each KV head: query head h reads KV head floor(h / G). */
export function groupMean(layer: ObservedLayer, name: Statistic, ends: Ends): LayerScores {
  const { n, heads, data } = statistic(layer, name)
  const group = heads / layer.keys.length
  return layer.keys.map((rows, kvHead) => {
    const queryHeads = Array.from({ length: group }, (_, g) => kvHead * group + g)
    return meanOver(data, n, queryHeads, ends.first, competing(rows, ends))
  })
}

/**
 * Mean over query heads of the layer: one list for all KV heads.
 * @param queryHeads which of them; default: all
 */
export function layerMean(
  layer: ObservedLayer,
  name: Statistic,
  ends: Ends,
  queryHeads?: readonly number[],
): LayerScores {
  const { n, heads, data } = statistic(layer, name)
  if (layer.keys.some((rows) => rows !== n))
    throw new ShapeError(`a mean over all heads of a layer needs the same rows in each, got ${layer.keys.join(', ')}`)
  const all = queryHeads ?? Array.from({ length: heads }, (_, h) => h)
  const mean = meanOver(data, n, all, ends.first, competing(n, ends))
  return layer.keys.map(() => mean)
}

/** out[j] = mean over the heads h of data[first + j, h], j < count; data [n, H]. */
function meanOver(data: Float32Array, n: number, heads: readonly number[], first: number, count: number): Float64Array {
  const out = new Float64Array(count)
  for (const h of heads) for (let j = 0; j < count; j++) out[j]! += data[h * n + first + j]!
  for (let j = 0; j < count; j++) out[j]! /= heads.length
  return out
}

/** One function over each list; heads that share a list share the result. */
export function eachHead(scores: LayerScores, change: (one: Float64Array) => Float64Array): LayerScores {
  const done = new Map<Float64Array, Float64Array>()
  return scores.map((one) => {
    const out = done.get(one) ?? change(one)
    done.set(one, out)
    return out
  })
}

export type Pooling = 'avg' | 'max'

/**
 * Pooled along the rows: stride 1, as many rows as before.
 * @param kernel odd width. An average divides by it at the borders too, as PyTorch's does: padding counts as zeros
 */
export function poolRows(scores: LayerScores, kernel: number, pooling: Pooling): LayerScores {
  if (kernel === 1) return scores
  const half = (kernel - 1) / 2
  const pool = pooling === 'avg' ? averageOf : largestOf
  return eachHead(scores, (one) => {
    const out = new Float64Array(one.length)
    for (let j = 0; j < out.length; j++)
      out[j] = pool(one, Math.max(0, j - half), Math.min(one.length, j + half + 1), kernel)
    return out
  })
}

function averageOf(list: Float64Array, from: number, to: number, kernel: number): number {
  let sum = 0
  for (let i = from; i < to; i++) sum += list[i]!
  return sum / kernel
}

function largestOf(list: Float64Array, from: number, to: number): number {
  let most = list[from]!
  for (let i = from + 1; i < to; i++) if (list[i]! > most) most = list[i]!
  return most
}

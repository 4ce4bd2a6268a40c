/** Attention made by chance, and all that can be observed of it, computed the plain way in float64. */
import assert from 'node:assert/strict'
import type { Observation, ObservationNeeds, ObservedLayer, Statistic } from '../contract/observation.ts'
import type { CompressionPlan, Merge, ModelDims, PolicyState } from '../contract/policy.ts'

export const DIMS: ModelDims = { layers: 3, heads: 4, kvHeads: 2, headDim: 8 }

/** Numbers in [0, 1); mulberry32. */
export function randoms(seed: number): () => number {
  let a = seed >>> 0
  return () => {
    a = (a + 0x6d2b79f5) >>> 0
    let t = Math.imul(a ^ (a >>> 15), a | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

/** A row of probabilities: some heads are sharp, some are flat. */
function probabilities(length: number, sharpness: number, next: () => number): number[] {
  const e = Array.from({ length }, () => Math.exp(sharpness * next()))
  const sum = e.reduce((a, b) => a + b, 0)
  return e.map((x) => x / sum)
}

/** P[layer][head][i][j], causal: row i has i + 1 entries. */
export type Attention = readonly (readonly (readonly (readonly number[])[])[])[]

export function attention({ layers, heads }: ModelDims, n: number, seed: number): Attention {
  const next = randoms(seed)
  return Array.from({ length: layers }, () =>
    Array.from({ length: heads }, () => {
      const sharpness = 8 * next()
      return Array.from({ length: n }, (_, i) => probabilities(i + 1, sharpness, next))
    }),
  )
}

/** The last `rows` values of key j in one head; 0 where a query may not see it. */
export const columnOf = (P: readonly (readonly number[])[], j: number, rows: number): number[] =>
  P.slice(-rows).map((row) => row[j] ?? 0)

export const total = (list: readonly number[]): number => list.reduce((a, b) => a + b, 0)
export const mean = (list: readonly number[]): number => total(list) / list.length

/** Unbiased: over w - 1. */
export function variance(list: readonly number[]): number {
  const m = mean(list)
  return total(list.map((x) => (x - m) ** 2)) / (list.length - 1)
}

const REDUCE: Record<Statistic, (column: readonly number[]) => number> = {
  sum: total,
  variance,
  entropy: (column) => total(column.map((p) => -p * Math.log(p + 1e-10))),
}

const range = (n: number) => Int32Array.from({ length: n }, (_, i) => i)

/** What was asked to be seen of a prompt's attention. */
export function observe(P: Attention, { kvHeads }: ModelDims, needs: ObservationNeeds): Observation {
  const n = P[0]![0]!.length
  const layersOf = (rows: number, statistics: readonly Statistic[]): ObservedLayer[] =>
    P.map((heads) => {
      const f32 = (statistic: Statistic) =>
        Float32Array.from(heads.flatMap((p) => Array.from(range(n), (j) => REDUCE[statistic](columnOf(p, j, rows)))))
      const keys = new Array<number>(kvHeads).fill(n)
      return { keys, positions: keys.map(range), statistics: Object.fromEntries(statistics.map((s) => [s, f32(s)])) }
    })
  return {
    ...(needs.window ? { window: layersOf(Math.min(n, needs.window.rows), needs.window.statistics) } : {}),
    ...(needs.columns ? { columns: layersOf(n, ['sum']) } : {}),
  }
}

/** Positions in a cache, `[layer][kvHead]`. */
export type Cache = readonly (readonly Int32Array[])[]

export const fullCache = ({ layers, kvHeads }: ModelDims, n: number): Cache =>
  Array.from({ length: layers }, () => Array.from({ length: kvHeads }, () => range(n)))

/** One query's probabilities, by chance, over what the cache holds; also as if they were all sums so far. */
export function observeDecode({ heads, kvHeads }: ModelDims, cache: Cache, seed: number): Observation {
  const next = randoms(seed)
  const layers = cache.map((positions): ObservedLayer => {
    const keys = positions.map((p) => p.length)
    const n = Math.max(...keys)
    const sum = new Float32Array(n * heads)
    for (let h = 0; h < heads; h++) sum.set(probabilities(keys[Math.floor((h * kvHeads) / heads)]!, 4, next), h * n)
    return { keys, positions, statistics: { sum } }
  })
  return { decode: layers, columns: layers }
}

export function stateOf(model: ModelDims, cache: Cache, budget: number, more: Partial<PolicyState> = {}): PolicyState {
  const seen = 1 + Math.max(...cache.flat().map((p) => p.at(-1) ?? -1))
  return { model, seen, budget, seed: 1, positions: (layer, kvHead) => cache[layer]![kvHead]!, ...more }
}

/** What is left of a cache: positions; a merged row keeps that of `into`. */
export function carryOut(cache: Cache, plan: CompressionPlan): Cache {
  if (plan.kind === 'keep-all') return cache
  return plan.rows.map((heads, layer) =>
    heads.map((rows, kvHead) => {
      const before = cache[layer]![kvHead]!
      for (const merge of plan.merges?.[layer]?.[kvHead] ?? []) checkMerge(merge, rows, before.length)
      return Int32Array.from(rows, (row) => before[row]!)
    }),
  )
}

/** Into a row that stays, from rows that go, with a weight each. */
function checkMerge({ into, from, weights, mass }: Merge, kept: Int32Array, n: number): void {
  assert.ok(kept.includes(into), `merged into row ${into}, which is dropped`)
  for (const [i, row] of from.entries()) {
    assert.ok(row < n && (i === 0 ? row >= 0 : row > from[i - 1]!), `merged from ${from}`)
    assert.ok(row === into || !kept.includes(row), `row ${row} is merged, and stays`)
  }
  assert.equal(weights.length, from.length)
  assert.ok(mass >= 1)
}

/** A row of the answer is there. */
export const append = (cache: Cache, position: number): Cache =>
  cache.map((heads) =>
    heads.map((p) => {
      const grown = new Int32Array(p.length + 1)
      grown.set(p)
      grown[p.length] = position
      return grown
    }),
  )

/** The kept rows as lists, `[layer][kvHead]`; all rows for keep-all. */
export const kept = (cache: Cache): number[][][] => cache.map((heads) => heads.map((p) => [...p]))

/** Indices of the k largest, ascending; ties to the first. The long way round. */
export function best(scores: readonly number[], k: number): number[] {
  return scores
    .map((s, j) => [s, j] as const)
    .sort(([a, i], [b, j]) => b - a || i - j)
    .slice(0, k)
    .map(([, j]) => j)
    .sort((a, b) => a - b)
}

/** Average pooling as PyTorch does it by default: padding counts. */
export const poolAverage = (s: readonly number[], kernel: number): number[] =>
  s.map((_, j) => total(Array.from({ length: kernel }, (_, i) => s[j + i - (kernel - 1) / 2] ?? 0)) / kernel)

export const poolMax = (s: readonly number[], kernel: number): number[] =>
  s.map((_, j) => Math.max(...Array.from({ length: kernel }, (_, i) => s[j + i - (kernel - 1) / 2] ?? 0)))

/** Rows from..to-1. */
export const rows = (from: number, to: number): number[] => Array.from({ length: to - from }, (_, i) => from + i)

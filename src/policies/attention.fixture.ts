/** Attention made by chance, and all that can be observed of it, computed the plain way in float64. */
import assert from 'node:assert/strict'
import type { Observation, ObservationNeeds, ObservedLayer, Statistic } from '../contract/observation.ts'
import { type CompressionPlan, type Merge, type ModelDims, type PolicyState, SHARED } from '../contract/policy.ts'

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

/** Attention that falls on all rows alike. */
export const uniformAttention = ({ layers, heads }: ModelDims, n: number): Attention =>
  Array.from({ length: layers }, () =>
    Array.from({ length: heads }, () =>
      Array.from({ length: n }, (_, i) => new Array<number>(i + 1).fill(1 / (i + 1))),
    ),
  )

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

/** f32 [d, n], by chance; `alike` says how much of a row comes from the one before, from 0 to 1. */
function vectors(d: number, n: number, next: () => number, alike: () => number): Float32Array {
  const out = new Float32Array(d * n)
  for (let j = 0; j < n; j++) {
    const a = alike()
    for (let i = 0; i < d; i++) out[j * d + i] = a * (out[(j - 1) * d + i] ?? 0) + (1 - a) * (2 * next() - 1)
  }
  return out
}

/** Keys and values of n rows by chance: a key is like its neighbour, some more, some less; values are not. */
export function headRows({ headDim }: ModelDims, n: number, seed: number): NonNullable<Observation['rows']> {
  return (layer, kvHead) => {
    const next = randoms(1e4 * seed + 100 * layer + kvHead)
    return { keys: vectors(headDim, n, next, next), values: vectors(headDim, n, next, () => 0) }
  }
}

/** Which queries of a prompt of n rows are observed, ascending. */
function windowRows(n: number, { rows, share = 0, random = 0 }: NonNullable<ObservationNeeds['window']>): Int32Array {
  const first = n - Math.min(n, Math.max(rows, Math.floor(share * n)))
  const next = randoms(n)
  const byChance = best(Array.from({ length: first }, next), Math.floor(random * n))
  return Int32Array.from([...byChance, ...range(n).subarray(first)])
}

/** What was asked to be seen of a prompt's attention. */
export function observe(P: Attention, dims: ModelDims, needs: ObservationNeeds, seed = 1): Observation {
  const { kvHeads, heads, headDim } = dims
  const n = P[0]![0]!.length
  const layersOf = (queries: Int32Array, statistics: readonly Statistic[]): ObservedLayer[] =>
    P.map((heads) => {
      const seen = heads.map((p) => Array.from(queries, (i) => p[i]!))
      const f32 = (statistic: Statistic) =>
        Float32Array.from(seen.flatMap((p) => Array.from(range(n), (j) => REDUCE[statistic](columnOf(p, j, n)))))
      const keys = new Array<number>(kvHeads).fill(n)
      return { keys, positions: keys.map(range), statistics: Object.fromEntries(statistics.map((s) => [s, f32(s)])) }
    })
  const observed = needs.window ? windowRows(n, needs.window) : range(0)
  const next = randoms(seed)
  return {
    ...(needs.window ? { window: layersOf(observed, needs.window.statistics), windowRows: observed } : {}),
    ...(needs.window?.queries
      ? { queries: P.map(() => vectors(headDim, heads * observed.length, next, () => 0)) }
      : {}),
    ...(needs.columns ? { columns: layersOf(range(n), ['sum']) } : {}),
    ...(needs.rows ? { rows: headRows(dims, n, seed) } : {}),
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

/** How rows are stored, `[layer][kvHead]`: as {@link PolicyState.formats} says it. */
export type Formats = readonly (readonly Uint8Array[])[]

export const asComputed = (cache: Cache): Formats => cache.map((heads) => heads.map((p) => new Uint8Array(p.length)))

/** How what is left of a cache is stored. @param formats as before the plan. @param known formats that the policy has */
export function storeRows(formats: Formats, plan: CompressionPlan, known: number): Formats {
  if (plan.kind === 'keep-all') return formats
  const after = formats.map((heads) => heads.map((list) => list.slice()))
  const store = (layer: number, kvHead: number, list: Int32Array, format: number) => {
    for (const [i, row] of list.entries()) {
      assert.ok(i === 0 || row > list[i - 1]!, `stored rows ${list}`)
      assert.ok(plan.rows[layer]![kvHead]!.includes(row), `row ${row} is stored, and dropped`)
      const merges = plan.merges?.[layer]?.[kvHead] ?? []
      assert.ok(!merges.some((m) => m.into === row || m.from.includes(row)), `row ${row} is stored, and merged`)
      assert.equal(after[layer]![kvHead]![row], 0, `row ${row} is stored a second time`)
      after[layer]![kvHead]![row] = format
    }
  }
  for (const { format, rows } of plan.stored ?? []) {
    assert.ok(format >= 0 && format < known, `format ${format} of ${known}`)
    for (const [layer, heads] of rows.entries())
      for (const [kvHead, list] of heads.entries()) store(layer, kvHead, list, format + 1)
  }
  for (const { lower, upper, lowerRows, upperRows } of plan.shared ?? []) {
    for (const [kvHead, list] of lowerRows.entries()) store(lower, kvHead, list, SHARED)
    for (const [kvHead, list] of upperRows.entries()) store(upper, kvHead, list, SHARED)
  }
  return plan.rows.map((heads, layer) =>
    heads.map((rows, kvHead) => Uint8Array.from(rows, (row) => after[layer]![kvHead]![row]!)),
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

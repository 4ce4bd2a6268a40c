/** Which rows of a prompt are computed once more for a policy to see what they look at, and what was seen of them. */

import type { KvSequence } from '../cache/sequence.ts'
import type { ObservationNeeds, ObservedLayer, Statistic } from '../contract/observation.ts'
import type { Range } from '../contract/units.ts'
import type { WorkInput, WorkItem, WorkResult } from '../contract/work-item.ts'
import { randomOf } from '../policies/index.ts'

export type WindowNeeds = NonNullable<ObservationNeeds['window']>

/** What was seen of a window's rows. */
export interface SeenWindow {
  /** Their positions, ascending. */
  readonly positions: Int32Array
  readonly layers: readonly ObservedLayer[]
  /** By layer, f32 [d, H, rows]; null: not asked for. */
  readonly queries: readonly Float32Array[] | null
}

/** Which of n rows are in a window, ascending: the last ones, and some of those before by chance. */
export function windowRows({ rows, share = 0, random = 0 }: WindowNeeds, n: number, seed: number): Int32Array {
  const last = Math.min(n, Math.max(rows, Math.floor(share * n)))
  const before = n - last
  const chosen = Array.from({ length: before }, (_, row) => row)
    .sort((a, b) => randomOf(seed, a) - randomOf(seed, b))
    .slice(0, Math.floor(random * n))
    .sort((a, b) => a - b)
  return Int32Array.from([...chosen, ...Array.from({ length: last }, (_, i) => before + i)])
}

/**
 * Work that lets rows be seen whose keys and values are in the cache; nothing is stored.
 * @param rows indices of rows, ascending
 * @param most rows of an item
 */
export function windowItems(
  sequence: KvSequence,
  { statistics, queries }: WindowNeeds,
  rows: Int32Array,
  layers: Range,
  {
    positions,
    inputOf,
    most,
  }: {
    readonly positions: Int32Array
    readonly inputOf: (rows: Int32Array) => WorkInput
    readonly most: number
  },
): WorkItem[] {
  const items: WorkItem[] = []
  // The variance compares rows with each other; sums can be added.
  const size = statistics.includes('variance') ? rows.length : most
  for (let from = 0; from < rows.length; from += size) {
    const own = rows.subarray(from, from + size)
    items.push({
      sequence: sequence.id,
      positions: own.map((row) => positions[row]!),
      store: { kind: 'kept' },
      ...{ layers, input: inputOf(own), mask: { kind: 'causal' } },
      outputs: {
        ...{ logits: [], hidden: false },
        ...(statistics.length ? { observe: { rows: { from: 0, to: own.length }, statistics } } : {}),
        ...(queries ? { queries } : {}),
      },
    })
  }
  return items
}

/** What was seen of all items of a window together. */
export function joinWindow(items: readonly WorkItem[], results: readonly WorkResult[]): SeenWindow {
  const positions = Int32Array.from(items.flatMap((item) => [...item.positions]))
  const layers = results
    .map((r) => r.observed ?? [])
    .reduce((sum, more) => sum.map((layer, l) => added(layer, more[l]!)))
  const parts = results.map((r) => r.queries ?? null)
  const queries = parts[0]?.map((_, l) => concatenated(parts.map((p) => p![l]!))) ?? null
  return { positions, layers, queries }
}

function added(a: ObservedLayer, b: ObservedLayer): ObservedLayer {
  const statistics: Partial<Record<Statistic, Float32Array>> = {}
  for (const [name, values] of Object.entries(a.statistics) as [Statistic, Float32Array][])
    statistics[name] = values.map((x, i) => x + b.statistics[name]![i]!)
  return { ...a, statistics }
}

function concatenated(arrays: readonly Float32Array[]): Float32Array {
  const out = new Float32Array(arrays.reduce((sum, a) => sum + a.length, 0))
  let at = 0
  for (const a of arrays) {
    out.set(a, at)
    at += a.length
  }
  return out
}

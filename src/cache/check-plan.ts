/** Whether a plan fits the sequence that it is for: nothing has been touched when it does not. */
import { KvasirError } from '../contract/errors.ts'
import type { CompressionPlan, Merge } from '../contract/policy.ts'
import { PAGE_CELLS } from './arena.ts'
import type { Column } from './column.ts'
import type { KvSequence } from './sequence.ts'

export type KeepPlan = Extract<CompressionPlan, { kind: 'keep' }>

/**
 * @param formats that its `stored` may name
 * @throws KvasirError INVALID_ARGUMENT
 */
export function checkPlan(
  sequence: KvSequence,
  plan: KeepPlan,
  formats: number,
  layers: number,
  kvHeads: number,
): void {
  const { rows, merges } = plan
  if (rows.length !== layers) throw bad(`rows of ${rows.length} layers, and there are ${layers}`)
  if (merges && merges.length !== layers) throw bad(`merges of ${merges.length} layers, and there are ${layers}`)
  for (const [layer, heads] of rows.entries()) {
    if (heads.length !== kvHeads) throw bad(`layer ${layer} has rows of ${heads.length} of ${kvHeads} KV heads`)
    for (const [head, kept] of heads.entries()) {
      const { rows: n } = sequence.column(layer, head, kvHeads)
      const where = `layer ${layer}, KV head ${head}`
      checkAscending(kept, n, where)
      // A layer that the prompt has not reached yet has none.
      if (kept.length === 0 && n > 0) throw bad(`${where} keeps nothing; attention needs one row at least`)
      const own = merges?.[layer]?.[head] ?? []
      if (!own.length) continue
      checkMerges(own, new Set(kept), n, where)
      checkMerged(sequence, sequence.column(layer, head, kvHeads), own, where)
    }
  }
  if (plan.stored || plan.shared) checkMoves(sequence, plan, formats, layers, kvHeads)
}

/** Each row moves once, is kept, is not merged, and is stored as it was computed. */
function checkMoves(sequence: KvSequence, plan: KeepPlan, formats: number, layers: number, kvHeads: number): void {
  const moving = new Map<number, Set<number>>()
  const take = (layer: number, head: number, rows: Int32Array, what: string) => {
    const where = `layer ${layer}, KV head ${head}: rows ${what}`
    const column = sequence.column(layer, head, kvHeads)
    checkAscending(rows, column.rows, where)
    const index = layer * kvHeads + head
    const taken = moving.get(index) ?? new Set<number>()
    moving.set(index, taken)
    const kept = new Set(plan.rows[layer]![head]!)
    const merged = new Set(plan.merges?.[layer]?.[head]?.flatMap((m) => [m.into, ...m.from]))
    for (const row of rows) {
      if (!kept.has(row)) throw bad(`${where}: row ${row} is not kept`)
      if (merged.has(row)) throw bad(`${where}: row ${row} is merged, too`)
      if (taken.has(row)) throw bad(`${where}: row ${row} moves twice`)
      if (!isAsComputed(sequence, column, row)) throw bad(`${where}: row ${row} is in another format already`)
      taken.add(row)
    }
  }
  for (const { format, rows } of plan.stored ?? []) {
    if (!(Number.isInteger(format) && format >= 0 && format < formats))
      throw bad(`rows go to format ${format} of ${formats}`)
    if (rows.length !== layers) throw bad(`stored rows of ${rows.length} layers, and there are ${layers}`)
    for (const [layer, heads] of rows.entries())
      for (const [head, own] of heads.entries()) take(layer, head, own, `for format ${format}`)
  }
  for (const { lower, upper, lowerRows, upperRows, t } of plan.shared ?? []) {
    const where = `layers ${lower} and ${upper} share rows`
    if (![lower, upper].every((l) => Number.isInteger(l) && l >= 0 && l < layers) || lower >= upper)
      throw bad(`${where}; there are ${layers}, and the lower comes first`)
    if (!(t >= 0 && t <= 1)) throw bad(`${where} at ${t} of the way; it must be 0 to 1`)
    if (lowerRows.length !== kvHeads || upperRows.length !== kvHeads) throw bad(`${where}, of not all KV heads`)
    for (let head = 0; head < kvHeads; head++) {
      if (upperRows[head]!.length % PAGE_CELLS)
        throw bad(`${where}: ${upperRows[head]!.length} in KV head ${head}; they must fill blocks of ${PAGE_CELLS}`)
      take(lower, head, lowerRows[head]!, 'to be shared')
      take(upper, head, upperRows[head]!, 'to be shared')
      const positions = (layer: number, rows: Int32Array) => {
        const all = sequence.column(layer, head, kvHeads).orderedPositions
        return rows.map((row) => all[row]!)
      }
      if (!sameRows(positions(lower, lowerRows[head]!), positions(upper, upperRows[head]!)))
        throw bad(`${where} of other positions in KV head ${head}`)
    }
  }
}

function checkMerges(merges: readonly Merge[], kept: ReadonlySet<number>, n: number, where: string): void {
  const into = new Set<number>()
  for (const m of merges) {
    if (!kept.has(m.into)) throw bad(`${where} merges into row ${m.into}, which it does not keep`)
    if (into.has(m.into)) throw bad(`${where} merges into row ${m.into} twice`)
    into.add(m.into)
    checkAscending(m.from, n, `${where}, merge into row ${m.into}`)
    for (const weights of [m.weights, m.valueWeights ?? m.weights]) {
      if (m.from.length === 0 || m.from.length !== weights.length)
        throw bad(`${where} merges ${m.from.length} rows with ${weights.length} weights`)
      if (!weights.every(Number.isFinite))
        throw bad(`${where} merges into row ${m.into} with weights that are no numbers`)
    }
    if (!(m.mass >= 1 && Number.isFinite(m.mass)))
      throw bad(`${where}: row ${m.into} is to stand for ${m.mass} rows; it must be 1 or more`)
  }
  const lost = merges.flatMap((m) => [...m.from]).find((row) => kept.has(row) && !into.has(row))
  if (lost !== undefined) throw bad(`${where} keeps row ${lost}, which it also merges into another`)
}

/** Sums of rows are made of rows as they were computed, and written over one of them. */
function checkMerged(sequence: KvSequence, column: Column, merges: readonly Merge[], where: string): void {
  for (const { into, from } of merges)
    for (const row of [into, ...from])
      if (!isAsComputed(sequence, column, row)) throw bad(`${where} merges row ${row}, which is in another format`)
}

function isAsComputed(sequence: KvSequence, column: Column, row: number): boolean {
  const { arena, layer } = column.blocks[Math.floor(column.byPosition[row]! / PAGE_CELLS)]!
  return arena === sequence.arena && layer === undefined
}

function checkAscending(rows: Int32Array, n: number, where: string): void {
  let before = -1
  for (let i = 0; i < rows.length; i++) {
    const row = rows[i]!
    if (!(row > before && row < n))
      throw bad(`${where}: row ${row} behind ${before} of ${n}; rows must ascend and be there`)
    before = row
  }
}

const bad = (what: string) => new KvasirError('INVALID_ARGUMENT', `compression plan: ${what}`)

export function sameRows(a: Int32Array, b: Int32Array): boolean {
  if (a === b) return true
  if (a.length !== b.length) return false
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false
  return true
}

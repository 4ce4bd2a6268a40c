/** A policy that reads its prompt layer by layer, at work on made-up attention, as the engine runs it. */
import assert from 'node:assert/strict'
import type { Observation } from '../contract/observation.ts'
import type { Calibration, ModelDims, PolicyState, PromptAhead, StageState } from '../contract/policy.ts'
import type { Range } from '../contract/units.ts'
import { type Attention, attention, type Cache, DIMS, observe, total } from './attention.fixture.ts'
import { choosePolicy } from './index.ts'

export interface StagedSetting {
  readonly dims?: ModelDims
  readonly n: number
  readonly budget: number
  readonly contextLength?: number
  readonly calibration?: Calibration
  readonly seed?: number
}

/** One stage, and the cache behind it. */
export interface Passed {
  readonly layers: Range
  readonly ran: Int32Array
  readonly seen: Observation
  /** Rows of all heads when the stage was computed, before its plan. */
  readonly heldRows: number
  readonly cache: Cache
}

export interface StagedPrefill {
  /** Empty: the policy has the prompt read as a whole. */
  readonly stages: readonly Passed[]
  readonly cache: Cache
  readonly memory: unknown
}

/** Attention of some layers among the rows that are left: what fell to the others goes to those. */
function among(P: Attention, { from, to }: Range, rows: Int32Array): Attention {
  return P.slice(from, to).map((heads) =>
    heads.map((p) =>
      Array.from(rows, (i, row) => {
        const seen = Array.from(rows.subarray(0, row + 1), (j) => p[i]![j]!)
        const sum = total(seen)
        return seen.map((x) => x / sum)
      }),
    ),
  )
}

function assertIndices(list: Int32Array, rows: number): void {
  for (const [k, j] of list.entries()) assert.ok(j < rows && j >= 0 && (k === 0 || j > list[k - 1]!), String(list))
}

export function prefillInStages(spec: string, setting: StagedSetting): StagedPrefill {
  const { dims = DIMS, n, budget, contextLength = n, calibration, seed = 1 } = setting
  const { definition, options } = choosePolicy(spec)
  const known = calibration ? { calibration } : {}
  const prompt: PromptAhead = { model: dims, rows: n, budget, contextLength, ...known }
  const firsts = definition.stages?.(prompt, options) ?? []
  const P = attention(dims, n, seed)
  const needs = definition.observes(options)
  const stages: Passed[] = []
  let ran = Int32Array.from({ length: n }, (_, i) => i)
  let cache: Int32Array[][] = Array.from({ length: dims.layers }, () =>
    Array.from({ length: dims.kvHeads }, () => new Int32Array(0)),
  )
  let memory: unknown
  for (const [k, from] of firsts.entries()) {
    const layers = { from, to: firsts[k + 1] ?? dims.layers }
    assert.ok(k === 0 ? from === 0 : from < layers.to, `stages ${firsts}`)
    cache = cache.map((heads, l) => (l >= from && l < layers.to ? heads.map(() => ran) : heads))
    const heldRows = total(cache.flat().map((p) => p.length))
    const seen = observe(among(P, layers, ran), dims, needs)
    const now = cache
    const base: PolicyState = { model: dims, seen: n, budget, seed, positions: (l, h) => now[l]![h]!, ...known }
    const state: StageState = { ...base, ...(k ? { memory } : {}), prompt, layers, ran }
    const before = structuredClone(memory)
    const plan = definition.afterStage!(seen, state, options)
    assert.deepEqual(memory, before, 'a memory never changes')
    assert.deepEqual(definition.afterStage!(seen, state, options), plan, 'same input, same plan')
    if ('memory' in plan) memory = plan.memory
    if (plan.rows) {
      assert.equal(plan.rows.length, layers.to)
      for (const [l, heads] of plan.rows.entries())
        for (const [h, list] of heads.entries()) assertIndices(list, now[l]![h]!.length)
      cache = now.map((heads, l) => heads.map((p, h) => plan.rows![l]?.[h]?.map((row) => p[row]!) ?? p))
    }
    stages.push({ layers, ran, seen, heldRows, cache })
    if (plan.next) {
      assertIndices(plan.next, ran.length)
      ran = plan.next.map((row) => now[from]![0]![row]!)
    }
  }
  return { stages, cache, memory }
}

/**
 * A policy made of parts, in this order: which rows stay anyway; what the others are worth; how layers, then heads share the
 * places that are left; the best get them, and the losers are dropped.
 */
import { MOST_COMPARED_ROWS, type Observation, type ObservationNeeds } from '../../contract/observation.ts'
import type { CompressionPlan, OptionSpecs, OptionsOf, PolicyDefinition, PolicyState } from '../../contract/policy.ts'
import { definePolicy } from '../define.ts'
import { type AllocationOptions, allocationNeeds, headBudgets, layerBudgets } from './allocation.ts'
import { competing, type Ends, type LayerScores } from './scores.ts'
import { cachedRows, keepLayer, rowsOver } from './select.ts'

/** What a scorer gets to make the scores of one layer. */
export interface Scoring<O> {
  readonly seen: Observation
  readonly layer: number
  /** Rows that the scores leave out. */
  readonly ends: Ends
  readonly state: PolicyState
  readonly options: O
}

export interface ScoredParts<S extends OptionSpecs>
  extends Pick<PolicyDefinition<S>, 'name' | 'summary' | 'paper' | 'options'> {
  check?(options: OptionsOf<S>): string | null
  calibration?(options: OptionsOf<S>): 'compresskv' | null
  /** What the scores are made of. */
  observes(options: OptionsOf<S>): ObservationNeeds
  /** Rows that stay whatever they are worth, `budget` rows at most. The newest one always does. */
  protect(options: OptionsOf<S>, budget: number): Ends
  /** What rows are worth when the prompt is complete. */
  score(scoring: Scoring<OptionsOf<S>>): LayerScores
  /** What rows are worth after each row of the answer; absent: the answer is kept. */
  scoreDecode?(scoring: Scoring<OptionsOf<S>>): LayerScores
}

/** Of options that the policy does not have, these hold: everybody gets the same. */
const UNIFORM: AllocationOptions = {
  layers: 'uniform',
  beta: 1,
  tau1: 1,
  tau2: 1,
  least: 0,
  heads: 'uniform',
  floor: 1,
}

export function scored<const S extends OptionSpecs>(parts: ScoredParts<S>): PolicyDefinition<S> {
  const { name, summary, paper, options, scoreDecode } = parts
  const allocation = (o: OptionsOf<S>): AllocationOptions => ({ ...UNIFORM, ...(o as Partial<AllocationOptions>) })
  const endsOf = (o: OptionsOf<S>, { budget }: PolicyState): Ends => {
    const { first, last } = parts.protect(o, budget)
    const newest = Math.max(1, Math.min(last, budget))
    return { first: Math.min(first, budget - newest), last: newest }
  }
  const observes = (o: OptionsOf<S>) => allocationNeeds(parts.observes(o), allocation(o).layers)

  return definePolicy<S>({
    name,
    family: 'eviction',
    summary,
    paper,
    options,
    check(o) {
      const { window } = observes(o)
      const compares = window?.statistics.includes('variance') ?? false
      if (compares && (window!.rows < 2 || window!.rows > MOST_COMPARED_ROWS))
        return `layers=cake compares queries: the window must be 2 to ${MOST_COMPARED_ROWS} rows`
      return parts.check?.(o) ?? null
    },
    calibration: (o) => (allocation(o).layers === 'error' ? 'compresskv' : (parts.calibration?.(o) ?? null)),
    observes,
    afterPrefill(seen, state, o) {
      const rows = cachedRows(state)
      if (rowsOver(state, rows) <= 0) return { kind: 'keep-all' }
      const ends = endsOf(o, state)
      const ask = {
        free: state.budget - ends.first - ends.last,
        cap: Math.max(...rows.flat()) - ends.first - ends.last,
        kept: ends.first + ends.last,
        window: observes(o).window?.rows ?? 0,
      }
      const free = layerBudgets(ask, seen, state, allocation(o))
      const plan = rows.map((heads, layer) => {
        const scores = parts.score({ seen, layer, ends, state, options: o })
        return keepLayer(heads, ends, scores, headBudgets(free[layer]!, layer, scores, state, allocation(o)))
      })
      return { kind: 'keep', rows: plan }
    },
    ...(scoreDecode
      ? {
          afterDecode(seen: Observation, state: PolicyState, o: OptionsOf<S>): CompressionPlan {
            const ends = endsOf(o, state)
            return dropEvenly(state, ends, (layer) => scoreDecode({ seen, layer, ends, state, options: o }))
          },
        }
      : {}),
  })
}

/**
 * What is beyond the budget goes, the same number of rows from each head: the division that the prompt got stays as it is,
 * without anybody having to remember it.
 */
export function dropEvenly(state: PolicyState, ends: Ends, score: (layer: number) => LayerScores): CompressionPlan {
  const rows = cachedRows(state)
  const over = rowsOver(state, rows)
  if (over <= 0) return { kind: 'keep-all' }
  const each = Math.ceil(over / (state.model.layers * state.model.kvHeads))
  const plan = rows.map((heads, layer) =>
    keepLayer(
      heads,
      ends,
      score(layer),
      heads.map((n) => Math.max(0, competing(n, ends) - each)),
    ),
  )
  return { kind: 'keep', rows: plan }
}

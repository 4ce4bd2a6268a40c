/** What is drawn beside accuracy against bytes: divergence on prose, accuracy turn by turn, and what policies cost. */
import type { EvalRow } from '../row.ts'
import { isFull } from '../treatments.ts'
import { groupBy, mean, unique } from './lists.ts'
import { heldOf } from './panels.ts'

export interface DivergencePoint {
  readonly budget: number | string
  readonly held: number
  /** Nats a token, at least. */
  readonly kl: number
  readonly top1: number
}

export interface Divergence {
  readonly lengths: readonly number[]
  readonly n: number
  readonly series: readonly { readonly policy: string; readonly points: readonly DivergencePoint[] }[]
}

/** Of prose, mean over its lengths. Null: there is none. */
export function divergenceOf(rows: readonly EvalRow[]): Divergence | null {
  const prose = inAllLengths(rows.filter((row) => row.kl !== null && !isFull(row)))
  if (prose.length === 0) return null
  const series = [...groupBy(prose, (row) => row.policy)].map(([policy, all]) => {
    const points = [...groupBy(all, (row) => row.budget)].map(([budget, same]): DivergencePoint => {
      const held = mean(same.map(heldOf))
      return { budget, held, kl: mean(same.map((r) => r.kl!)), top1: mean(same.map((r) => r.top1!)) }
    })
    return { policy, points: points.sort((a, b) => b.held - a.held) }
  })
  const lengths = unique(prose.map((row) => row.length)).sort((a, b) => a - b)
  return { lengths, n: Math.max(...prose.map((row) => row.n)), series }
}

/** Rows of policies and budgets that were run at all lengths: a mean over others would be one of other texts. */
function inAllLengths(rows: readonly EvalRow[]): EvalRow[] {
  const lengths = unique(rows.map((row) => row.length)).length
  const treatments = groupBy(rows, (row) => JSON.stringify([row.policy, row.budget]))
  return [...treatments.values()].filter((of) => unique(of.map((r) => r.length)).length === lengths).flat()
}

export interface Turns {
  readonly budget: number | string
  readonly tasks: readonly string[]
  /** `turns[i]`: accuracy of the i-th questions, mean over tasks and lengths. The full cache is among them. */
  readonly series: readonly { readonly policy: string; readonly turns: readonly number[] }[]
}

/** Conversations whose cache was shortened with the first question in view, at the budget nearest to `wanted`. */
export function turnsOf(rows: readonly EvalRow[], wanted = 0.25): Turns | null {
  const talks = rows.filter((row) => row.mode === 'multi-turn' && row.compress_at !== 'context')
  const most = Math.max(0, ...talks.map((row) => row.accuracy_by_turn.length))
  const long = talks.filter((row) => row.accuracy_by_turn.length === most)
  const budgets = long.filter((row) => !isFull(row)).map((row) => row.budget)
  const budget = budgets.reduce((best, b) => (distance(b, wanted) < distance(best, wanted) ? b : best), budgets[0] ?? 1)
  if (most < 2 || budgets.length === 0) return null
  const shown = long.filter((row) => isFull(row) || row.budget === budget)
  const cells = (of: readonly EvalRow[]) => unique(of.map((row) => `${row.task} ${row.length}`)).length
  const whole = [...groupBy(shown, (row) => row.policy)].filter(([, same]) => cells(same) === cells(shown))
  const series = whole.map(([policy, same]) => {
    const turns = Array.from({ length: most }, (_, i) => mean(same.map((row) => row.accuracy_by_turn[i]!)))
    return { policy, turns }
  })
  return { budget, tasks: unique(shown.map((row) => row.task)), series }
}

const distance = (budget: number | string, wanted: number) =>
  typeof budget === 'number' ? Math.abs(Math.log(budget / wanted)) : Number.POSITIVE_INFINITY

export interface Cost {
  readonly policy: string
  readonly budget: number | string
  readonly length: number
  /** Of rows that computed their own prompts; null: there are none. */
  readonly ttftMs: number | null
  readonly policyMs: number
  readonly decodeTokS: number
}

/** By policy, budget and length, mean over tasks; prose is not among them. */
export function costsOf(rows: readonly EvalRow[]): Cost[] {
  const asked = rows.filter((row) => row.accuracy !== null)
  const timed = asked.some((row) => row.ttft_ms !== null && !isFull(row))
    ? asked.filter((r) => r.ttft_ms !== null)
    : asked
  return [...groupBy(timed, (r) => JSON.stringify([r.length, r.policy, r.budget])).values()].map((same): Cost => {
    const { policy, budget, length } = same[0]!
    const times = same.flatMap((row) => row.ttft_ms ?? [])
    return {
      ...{ policy, budget, length },
      ttftMs: times.length === same.length ? mean(times) : null,
      policyMs: mean(same.map((row) => row.policy_ms)),
      decodeTokS: mean(same.map((row) => row.decode_tok_s)),
    }
  })
}

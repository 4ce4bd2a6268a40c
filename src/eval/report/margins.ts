/**
 * How much better one policy is than another: the mean difference of scores of the same examples, with its 95 % interval by
 * bootstrap. Examples are drawn again within each cell, so that every task and length keeps its weight.
 */
import { Draw } from '../tasks/draw.ts'
import { mean } from './lists.ts'
import type { AskedRow } from './panels.ts'

export interface Margin {
  readonly mean: number
  readonly low: number
  readonly high: number
}

const RESAMPLES = 1000
/** Share of the resamples on either side of the interval. */
const TAIL = 0.025

/** Of `ours` over `theirs`: rows of the same cells, in the same order. Null when their examples are not the same. */
export function marginOf(ours: readonly AskedRow[], theirs: readonly AskedRow[]): Margin | null {
  const paired = ours.length === theirs.length && ours.every((row, i) => isPaired(row, theirs[i]!))
  if (!paired || ours.length === 0) return null
  return bootstrap(ours.map((row, cell) => row.scores.map((score, i) => score - theirs[cell]!.scores[i]!)))
}

/** [cells][examples] differences. */
export function bootstrap(differences: readonly (readonly number[])[]): Margin {
  const r = new Draw('bootstrap')
  const again = (of: readonly number[]) => mean(of.map(() => of[r.whole(0, of.length - 1)]!))
  const means = Array.from({ length: RESAMPLES }, () => mean(differences.map(again))).sort((a, b) => a - b)
  const at = (share: number) => means[Math.round(share * (RESAMPLES - 1))]!
  return { mean: mean(differences.map(mean)), low: at(TAIL), high: at(1 - TAIL) }
}

function isPaired(a: AskedRow, b: AskedRow): boolean {
  return a.task === b.task && a.length === b.length && a.seed === b.seed && a.scores.length === b.scores.length
}

/** An interval that holds 0 is no result. */
export const isClear = ({ low, high }: Margin): boolean => low > 0 || high < 0

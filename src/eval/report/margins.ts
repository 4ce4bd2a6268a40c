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

/**
 * [cells][examples] differences. The percentiles of a bootstrap over few examples lie too close together: they are moved apart by
 * what Student's t asks for beyond the normal distribution, and by sqrt(n / (n - 1)) (Hesterberg 2015, arXiv 1411.5279).
 */
export function bootstrap(differences: readonly (readonly number[])[]): Margin {
  const r = new Draw('bootstrap')
  const again = (of: readonly number[]) => mean(of.map(() => of[r.whole(0, of.length - 1)]!))
  const means = Array.from({ length: RESAMPLES }, () => mean(differences.map(again))).sort((a, b) => a - b)
  const at = (share: number) => means[Math.round(share * (RESAMPLES - 1))]!
  const middle = mean(differences.map(mean))
  const wider = widening(differences)
  if (wider === null) return { mean: middle, low: -1, high: 1 }
  // Scores are 0 to 1.
  const moved = (to: number) => Math.max(-1, Math.min(1, middle + wider * (to - middle)))
  return { mean: middle, low: moved(at(TAIL)), high: moved(at(1 - TAIL)) }
}

/** Of the 97.5 % point of Student's t with k degrees of freedom over the normal distribution's: Cornish and Fisher's expansion. Null: nothing can be said. */
function widening(differences: readonly (readonly number[])[]): number | null {
  const n = mean(differences.map((of) => of.length))
  const k = differences.reduce((sum, of) => sum + of.length - 1, 0)
  // Two or three examples say nothing of how far they would scatter.
  if (k < 3) return null
  const z = 1.959964
  const t = z + (z ** 3 + z) / (4 * k) + (5 * z ** 5 + 16 * z ** 3 + 3 * z) / (96 * k ** 2)
  return (t / z) * Math.sqrt(n / Math.max(1, n - 1))
}

function isPaired(a: AskedRow, b: AskedRow): boolean {
  return (
    a.task === b.task &&
    a.length === b.length &&
    a.seed === b.seed &&
    a.history === b.history &&
    a.scores.length === b.scores.length
  )
}

/** An interval that holds 0 is no result. */
export const isClear = ({ low, high }: Margin): boolean => low > 0 || high < 0

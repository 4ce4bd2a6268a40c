/** What an item wants to see of its attention: checked, and as a part of a graph's key. */
import type { KvasirError } from '../../contract/errors.ts'
import { MOST_COMPARED_ROWS, type Statistic } from '../../contract/observation.ts'
import type { WorkOutputs } from '../../contract/work-item.ts'

/** In the order in which graphs make them. */
export const STATISTICS = ['sum', 'variance', 'entropy'] as const satisfies readonly Statistic[]

/** Rows that are looked at together: the most whose probabilities, f32 [n, rows, H], there is memory for at once. */
export const OBSERVED_ROWS = MOST_COMPARED_ROWS

export type Observe = NonNullable<WorkOutputs['observe']>

/** @param rows of the item @param bad makes an error of what is wrong */
export function checkObserve(
  { rows: { from, to }, statistics }: Observe,
  rows: number,
  bad: (what: string) => KvasirError,
): void {
  const wanted = to - from
  if (!(Number.isInteger(from) && Number.isInteger(to) && from >= 0 && from < to && to <= rows))
    throw bad(`rows [${from}, ${to}) of ${rows} to be observed`)
  if (statistics.length < 1 || new Set(statistics).size < statistics.length)
    throw bad(`statistics "${statistics.join(', ')}" to be observed: at least one, and each once`)
  const unknown = statistics.find((s) => !STATISTICS.includes(s))
  if (unknown !== undefined) throw bad(`"${unknown}" to be observed; there are ${STATISTICS.join(', ')}`)
  if (statistics.includes('variance') && (wanted < 2 || wanted > OBSERVED_ROWS))
    throw bad(`the variance over ${wanted} rows: observe 2 to ${OBSERVED_ROWS} rows, or leave it out`)
}

/** Equal for items that one graph can serve. */
export function observedKey(observe: WorkOutputs['observe']): string {
  if (!observe) return ''
  const { rows, statistics } = observe
  return `o${rows.from}-${rows.to}:${STATISTICS.filter((s) => statistics.includes(s)).join('+')}`
}

/** How many blocks of at most {@link OBSERVED_ROWS} rows are looked at, in each layer. */
export function observedBlocks(observe: WorkOutputs['observe']): number {
  return observe ? Math.ceil((observe.rows.to - observe.rows.from) / OBSERVED_ROWS) : 0
}

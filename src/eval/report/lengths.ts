/** Accuracy by the length of the context, at one budget: whether what a policy loses grows with the text. */
import { groupBy, mean } from './lists.ts'
import { type Panel, pointAt, type Setting } from './panels.ts'

export interface ByLength {
  readonly group: string
  readonly setting: Setting
  readonly tasks: readonly string[]
  readonly budget: number | string
  readonly lengths: readonly number[]
  /** `accuracies[i]`: at `lengths[i]`, mean over tasks. The full cache is among them. */
  readonly series: readonly { readonly policy: string; readonly accuracies: readonly number[] }[]
}

/** Of panels with several lengths. Policies that take no budget are among them where their bytes are near it. */
export function byLength(panels: readonly Panel[], budget: number | string): ByLength[] {
  return panels
    .filter((panel) => panel.lengths.length > 1)
    .map((panel) => {
      const { group, setting, tasks, lengths } = panel
      const series = [...(panel.full ? ['full'] : []), ...panel.series.map((s) => s.policy)].flatMap((policy) => {
        const rows = pointAt(panel, policy, budget)?.rows
        if (!rows) return []
        const own = groupBy(rows, (row) => row.length)
        return [{ policy, accuracies: lengths.map((length) => mean(own.get(length)!.map((row) => row.accuracy))) }]
      })
      return { group, setting, tasks, budget, lengths, series }
    })
}

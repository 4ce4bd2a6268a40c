/**
 * One row of every running decode, and who gives way when pages run out. All schedulers share it.
 *
 * Step 1 of Sarathi-Serve's loop (sarathi_scheduler.py), itself vLLM's: requests are looked at in rank order; while a decode
 * lacks a page the last request that was not yet looked at, a decode or an unfinished prefill, loses its own. When there is
 * none left the decode gives way itself. So what is in the plan already is never preempted, the first in rank always
 * advances, and every run ends.
 *
 * Rank is arrival, as in the paper, behind priority, which it does not have. A request keeps both when preempted.
 */
import type { RequestView, RowsPlan, ScheduleState } from '../contract/schedule.ts'
import type { RequestId } from '../contract/units.ts'
import { pagesToDecode } from './admission.ts'

export interface Decodes {
  readonly work: readonly RowsPlan[]
  /** Rows of {@link work}: one for each sequence of a request. */
  readonly rows: number
  readonly decodes: readonly RequestView[]
  /** Unfinished prefills that keep their pages, in rank order. */
  readonly prefills: readonly RequestView[]
  readonly preempt: readonly RequestId[]
  /** Pages left when all this is done. */
  readonly freePages: number
}

export function byRank(a: RequestView, b: RequestView): number {
  return b.priority - a.priority || a.arrivalMs - b.arrivalMs || a.id - b.id
}

export function planDecodes(state: ScheduleState): Decodes {
  const queue = state.running.toSorted(byRank)
  const decodes: RequestView[] = []
  const prefills: RequestView[] = []
  const preempt: RequestId[] = []
  let freePages = state.freePages
  for (let r = queue.shift(); r; r = queue.shift()) {
    if (r.phase === 'prefill') {
      prefills.push(r)
      continue
    }
    const pages = pagesToDecode(r, state)
    let victim: RequestView | null = null
    while (freePages < pages && victim !== r) {
      victim = queue.pop() ?? r
      preempt.push(victim.id)
      freePages += victim.ownPages
    }
    if (victim === r) continue
    freePages -= pages
    decodes.push(r)
  }
  const work = decodes.map((r) => ({ id: r.id, rows: 1 }))
  return { work, rows: decodes.reduce((n, r) => n + r.samples, 0), decodes, prefills, preempt, freePages }
}

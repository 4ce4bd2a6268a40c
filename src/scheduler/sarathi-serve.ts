/**
 * Sarathi-Serve: every decode in every step, prompts in pieces in what is left of a budget of rows. The default.
 *
 * Paper    Agrawal et al. 2024 (OSDI), arXiv 2403.02310.  Code  microsoft/sarathi-serve, sarathi_scheduler.py.  Spec
 *          sarathi-serve.md
 * Loop     1  one row of each decode; without pages the last arrival gives way (decodes.ts)
 *          2  unfinished prefills in rank order: c = min(remaining, tau - n) rows each, tau = tokenBudget
 *          3  waiting requests in strict order, with pages for the whole prompt above the watermark: c rows each
 * Promise  no decode waits for a prefill; a step has n <= max(tau, decodes) rows
 * Differs  tau - n is clamped at 0 (the code tests == 0 only). Step 3 is left out when anything was preempted: the pages that
 *          a decode just won must not go to the victim at once. Rank has priority before arrival. The chunk size is constant;
 *          the code's dynamic schedule is off by default too
 */
import type { RowsPlan, Scheduler } from '../contract/schedule.ts'
import type { RequestId } from '../contract/units.ts'
import { admissible, remainingRows } from './admission.ts'
import { planDecodes } from './decodes.ts'

export const sarathiServe: Scheduler = {
  name: 'sarathi-serve',
  summary: 'decodes never wait: prompts run in pieces beside them, within a budget of rows a step',
  paper: {
    title: 'Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve',
    year: 2024,
    arxiv: '2403.02310',
  },
  schedule(state, options) {
    const { work: riding, rows, prefills, preempt, freePages } = planDecodes(state)
    const work: RowsPlan[] = [...riding]
    const admit: RequestId[] = []
    let left = Math.max(0, options.tokenBudget - rows)
    for (const r of prefills) {
      if (left === 0) break
      const chunk = Math.min(remainingRows(r), left)
      work.push({ id: r.id, rows: chunk })
      left -= chunk
    }
    if (preempt.length > 0) return { preempt, admit, work }
    for (const r of admissible(state, options, state.running, freePages)) {
      if (left === 0) break
      const chunk = Math.min(remainingRows(r), left)
      admit.push(r.id)
      work.push({ id: r.id, rows: chunk })
      left -= chunk
    }
    return { preempt, admit, work }
  },
}

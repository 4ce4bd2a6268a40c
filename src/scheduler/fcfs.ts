/**
 * FCFS: whole prompts before anything else. The baseline that the others are measured against.
 *
 * Paper    Kwon et al. 2023, PagedAttention (vLLM), arXiv 2309.06180; the scheduler of its first versions.  Spec
 *          sarathi-serve.md, "vLLM" among the baselines
 * Loop     if there are unfinished or admissible prompts: run them whole, in order, while n <= tokenBudget, at least one
 *          else: one row of every decode; without pages the last arrival is preempted and recomputed
 * Good at  first tokens. Bad at the gaps between later ones: every decode stands still while a prompt is computed
 * Differs  a prompt longer than the budget runs alone and whole; vLLM refuses it
 */
import type { RequestView, Scheduler, SchedulerOptions, ScheduleState, StepPlan } from '../contract/schedule.ts'
import { admissible, remainingRows } from './admission.ts'
import { planDecodes } from './decodes.ts'

/** Prompts that could be computed now: those that run already, then those that can be admitted, in order. */
export function promptsAtHand(state: ScheduleState, options: SchedulerOptions): RequestView[] {
  const unfinished = state.running.filter((r) => r.phase === 'prefill')
  return [...unfinished, ...admissible(state, options, state.running, state.freePages)]
}

/** Runs some prompts to their ends; admits those that wait. */
export function planWhole(state: ScheduleState, prompts: readonly RequestView[]): StepPlan {
  const running = new Set(state.running.map((r) => r.id))
  return {
    preempt: [],
    admit: prompts.filter((r) => !running.has(r.id)).map((r) => r.id),
    work: prompts.map((r) => ({ id: r.id, rows: remainingRows(r) })),
  }
}

/** A step of decodes alone. */
export function planDecodesOnly(state: ScheduleState): StepPlan {
  const { preempt, work } = planDecodes(state)
  return { preempt, admit: [], work }
}

export const fcfs: Scheduler = {
  name: 'fcfs',
  summary: 'whole prompts first, decodes when no prompt is left; the baseline',
  paper: {
    title: 'Efficient Memory Management for Large Language Model Serving with PagedAttention',
    year: 2023,
    arxiv: '2309.06180',
  },
  schedule(state, options) {
    const prompts = promptsAtHand(state, options)
    let n = 0
    let count = 0
    for (const r of prompts) {
      n += remainingRows(r)
      if (count > 0 && n > options.tokenBudget) break
      count++
    }
    return count > 0 ? planWhole(state, prompts.slice(0, count)) : planDecodesOnly(state)
  },
}

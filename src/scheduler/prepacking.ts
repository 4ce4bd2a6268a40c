/**
 * Prepacking: prompts of different lengths share steps, packed so that few steps do.
 *
 * Paper    Zhao et al. 2024 (AISTATS 2025), arXiv 2404.09529.  Code  siyan-zhao/prepacking.  Spec  prepacking.md
 * Loop     pack the prompts at hand, by remaining rows, into bins of m rows; run the bin that the first of them is in, whole
 *          m = max(longest of them, tokenBudget);   without prompts: one row of every decode
 * Baseline `prepacking-padded`: all prompts at hand in one step, each padded to the longest, k * max(l) rows
 * Differs  the paper's bins are the rows of one rectangular batch, with m = the longest prompt and a block-diagonal mask. Our
 *          steps are flat lists of rows with attention per item, so nothing is padded or masked, and packing decides only
 *          which prompts go together. Bins run one after the other, so m = the longest would cut many short prompts into many
 *          short steps; up to the budget a fuller step costs no more steps.
 *          The last token of a prompt is not held back for a decode step: its logits come out of the same run.
 *          It is a technique for prefills. Decodes wait as they do under `fcfs`, and run as an ordinary batch.
 */
import type { Scheduler } from '../contract/schedule.ts'
import { remainingRows } from './admission.ts'
import { planDecodesOnly, planWhole, promptsAtHand } from './fcfs.ts'
import { bestFitDecreasing } from './packing.ts'

const PAPER = {
  title: 'Prepacking: A Simple Method for Fast Prefilling and Increased Throughput in Large Language Models',
  year: 2024,
  arxiv: '2404.09529',
} as const

export const prepacking: Scheduler = {
  name: 'prepacking',
  summary: 'prompts packed into full steps by best-fit decreasing, decodes when no prompt is left',
  paper: PAPER,
  schedule(state, options) {
    const prompts = promptsAtHand(state, options)
    if (prompts.length === 0) return planDecodesOnly(state)
    const lengths = prompts.map(remainingRows)
    const bins = bestFitDecreasing(lengths, Math.max(options.tokenBudget, ...lengths))
    // The fullest bin first would let a prompt that fits badly wait for ever.
    const bin = bins.find((items) => items.includes(0))!
    // In the order of service, not of length: it is the order of admission.
    return planWhole(
      state,
      prompts.filter((_, i) => bin.includes(i)),
    )
  },
}

export const prepackingPadded: Scheduler = {
  name: 'prepacking-padded',
  summary: 'all prompts at hand in one step, padded to the longest; the baseline of prepacking',
  paper: PAPER,
  schedule(state, options) {
    const prompts = promptsAtHand(state, options)
    if (prompts.length === 0) return planDecodesOnly(state)
    const longest = Math.max(...prompts.map(remainingRows))
    const plan = planWhole(state, prompts)
    return { ...plan, work: plan.work.map((w) => ({ ...w, padding: longest - w.rows })) }
  },
}

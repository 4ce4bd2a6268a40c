/**
 * SARATHI: every step is one piece of one prompt and a row of each decode, C rows in all.
 *
 * Paper    Agrawal et al. 2023, arXiv 2308.16369.  Spec  sarathi.md
 * Loop     admit while running < B and the pages for prompt and longest answer are free
 *          d = rows of the decodes, at most B - 1 beside a chunk
 *          p = min(remaining, max(1, C - d)) rows of the oldest unfinished prompt, C = tokenBudget, B = maxSequences
 * Balance  a prompt of P rows gives about P/C steps with B - 1 free seats: all decodes ride if P/D = C/(B - 1)
 * Good at  throughput: the weights are read once for chunk and riders. A last, short chunk is not topped up with another prompt
 * Differs  it reserves what each request may need, not the longest context; a request that could never get its reservation
 *          starts alone. Reservations make preemption impossible, but pages taken under another scheduler may lack them: then
 *          the common rule of decodes.ts holds
 */
import type { RequestView, Scheduler, SchedulerOptions, ScheduleState } from '../contract/schedule.ts'
import { counted, pagesToAdmit, pagesToDecode, remainingRows, sequencesOf } from './admission.ts'
import { planDecodes } from './decodes.ts'

/** Pages when the answer is as long as it may be: the prompt's full pages once, what follows for each sequence. */
export function pagesAtEnd(r: RequestView, pageTokens: number): number {
  const prompt = r.rows - r.generated
  const full = Math.floor(prompt / pageTokens)
  return counted(r, full + r.samples * Math.ceil((prompt - full * pageTokens + r.maxTokens) / pageTokens))
}

/** Pages that a running request has, those it shares included; for several sequences at least so many. */
export function pagesHeld(r: RequestView, pageTokens: number): number {
  if (r.phase === 'prefill') return pagesToAdmit(r, pageTokens)
  const prompt = r.rows - r.generated
  const full = Math.floor(prompt / pageTokens)
  // The sequences share the prompt's last page until their first own row.
  const copies = r.generated > 1 ? r.samples : 1
  return counted(r, full + copies * Math.ceil((r.computed - full * pageTokens) / pageTokens))
}

/** Reservations not yet used; of each decode at least what its next row may take, which copy-on-write can make more. */
function pagesOwed(state: ScheduleState): number {
  const { running, pageTokens } = state
  const next = (r: RequestView) => (r.phase === 'decode' ? pagesToDecode(r, state) : 0)
  return running.reduce((n, r) => n + Math.max(next(r), pagesAtEnd(r, pageTokens) - pagesHeld(r, pageTokens)), 0)
}

function admit(state: ScheduleState, options: SchedulerOptions): RequestView[] {
  const admitted: RequestView[] = []
  let sequences = sequencesOf(state.running)
  let free = state.freePages - pagesOwed(state)
  for (const r of state.waiting) {
    sequences += r.samples
    free -= pagesAtEnd(r, state.pageTokens)
    const alone = state.running.length + admitted.length === 0
    const fits = free >= 0 || (alone && pagesToAdmit(r, state.pageTokens) <= state.freePages)
    if (sequences > options.maxSequences || !fits) break
    admitted.push(r)
  }
  return admitted
}

export const sarathi: Scheduler = {
  name: 'sarathi',
  summary: 'one prompt chunk a step, every decode rides on it; KV space reserved at admission',
  paper: {
    title: 'SARATHI: Efficient LLM Inference by Piggybacking Decodes with Chunked Prefills',
    year: 2023,
    arxiv: '2308.16369',
  },
  schedule(state, options) {
    const { preempt, prefills, decodes } = planDecodes(state)
    const admitted = preempt.length > 0 ? [] : admit(state, options)
    // The prompt that was begun goes on, even if one of higher rank came in: one prompt at a time.
    const prompt = state.running.find((r) => prefills.includes(r)) ?? admitted[0]
    const riders: RequestView[] = []
    let d = 0
    for (const r of decodes) {
      if (prompt && d + r.samples > options.maxSequences - 1) break
      riders.push(r)
      d += r.samples
    }
    const work = riders.map((r) => ({ id: r.id, rows: 1 }))
    if (prompt) {
      const p = Math.min(remainingRows(prompt), Math.max(1, options.tokenBudget - d))
      work.unshift({ id: prompt.id, rows: p })
    }
    return { preempt, admit: admitted.map((r) => r.id), work }
  },
}

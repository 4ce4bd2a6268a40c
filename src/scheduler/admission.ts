/**
 * Who may enter: waiting requests in strict order for as long as pages and sequences last. A request that does not fit holds
 * back those behind it; else short prompts would pass a long one for ever.
 *
 * vLLM's rule (block_manager, also in Sarathi-Serve): a whole prompt's pages must be free, and a *watermark* must stay free
 * behind it for the growth of what runs. Differs: the watermark is waived while nothing runs. vLLM drops a prompt that would
 * touch it; here the prompt simply runs alone.
 */
import type { RequestView, SchedulerOptions, ScheduleState } from '../contract/schedule.ts'

/** Rows still to compute before the next token can be sampled. */
export function remainingRows(r: RequestView): number {
  return r.rows - r.computed
}

/** Sequences of some requests, at present or when their prompts are done. */
export function sequencesOf(requests: Iterable<RequestView>): number {
  let n = 0
  for (const r of requests) n += r.samples
  return n
}

/** What so many pages of a request take of those that are counted. */
export function counted({ pageSize }: RequestView, pages: number): number {
  return pageSize ? Math.ceil((pages * pageSize.bytes) / pageSize.counted) : pages
}

/**
 * Pages that an admission may take. Those of a prefix that it hits are counted too: if nobody else uses them they are among
 * the free ones now, and not afterwards. If somebody does, this is too many, never too few.
 */
export function pagesToAdmit(r: RequestView, pageTokens: number): number {
  return counted(r, Math.ceil(r.rows / pageTokens))
}

/** Pages that a decode row may take: one for each of the request's sequences. */
export function pagesToDecode(r: RequestView, state: ScheduleState): number {
  return state.needsPage(r.id) ? counted(r, r.samples) : 0
}

/**
 * Waiting requests that can be admitted, in order, each beside those before it.
 * @param kept the requests that run on
 * @param freePages what is left for admissions
 */
export function* admissible(
  state: ScheduleState,
  options: SchedulerOptions,
  kept: readonly RequestView[],
  freePages: number,
): Generator<RequestView, void> {
  let sequences = sequencesOf(kept)
  let free = freePages
  let watermark = kept.length > 0 ? Math.floor(options.watermark * state.totalPages) : 0
  for (const r of state.waiting) {
    sequences += r.samples
    free -= pagesToAdmit(r, state.pageTokens)
    if (sequences > options.maxSequences || free < watermark) return
    yield r
    watermark = Math.floor(options.watermark * state.totalPages)
  }
}

/**
 * What a scheduler sees, and what it answers. Plain data: the engine, the tests and the simulator run the same functions.
 *
 * A request's *rows* are the tokens whose keys and values have to be in the cache before its next token can be sampled: its
 * prompt, then prompt and answer so far. A prefill has many rows to go; a decode has exactly one.
 */
import type { RequestId } from './units.ts'

export interface RequestView {
  readonly id: RequestId
  readonly tenant: string
  /** Higher goes first; default 0. */
  readonly priority: number
  readonly arrivalMs: number
  /** When the answer must have begun, on the clock of {@link ScheduleState.nowMs}; null: never mind. */
  readonly deadlineMs: number | null
  /** `prefill` until the first token was sampled, and again after a preemption until it has caught up. */
  readonly phase: 'prefill' | 'decode'
  /** Rows that must be in the cache before the next token is sampled. */
  readonly rows: number
  /** How many of them are. For a waiting request: how many the prefix index (or a swap) would give it on admission. */
  readonly computed: number
  /** Tokens of the answer so far. */
  readonly generated: number
  /** Tokens that the answer may have. */
  readonly maxTokens: number
  /** Sequences it becomes when its prompt is done: the number of parallel samples asked for. */
  readonly samples: number
  /** Pages that would be freed if it were preempted: those that nobody else holds. */
  readonly ownPages: number
  /** How large its pages are beside those that are counted, where its rows are stored in other types. Default: as large. */
  readonly pageSize?: PageSize
}

/** Bytes of a page of a request, and of the pages that are counted. */
export interface PageSize {
  readonly bytes: number
  readonly counted: number
}

export interface ScheduleState {
  readonly nowMs: number
  /** In the order in which they are to be served (`order.ts`). */
  readonly waiting: readonly RequestView[]
  /** Admitted, oldest admission first. */
  readonly running: readonly RequestView[]
  /** Pages that are free or could be freed by evicting prefixes that nobody uses. A page in other types counts by its size. */
  readonly freePages: number
  readonly totalPages: number
  /** Tokens a page holds. */
  readonly pageTokens: number
  /** Whether a request's next row needs a page that it does not hold; by request. */
  readonly needsPage: (id: RequestId) => boolean
}

/** Rows of one request to run in this step. */
export interface RowsPlan {
  readonly id: RequestId
  readonly rows: number
  /** Rows of padding to compute beside them, only in the padded baseline of prepacking. Default 0. */
  readonly padding?: number
}

export interface StepPlan {
  /** Running requests to put back to waiting, pages freed, before anything else. */
  readonly preempt: readonly RequestId[]
  /** Waiting requests to admit, in this order: each gets pages for all its rows at once. */
  readonly admit: readonly RequestId[]
  /** What to run; every id is running, or admitted here, and not preempted. Empty: nothing can run. */
  readonly work: readonly RowsPlan[]
}

export interface SchedulerOptions {
  /** Most rows in a step, where the system has such a bound. Default 512. */
  readonly tokenBudget: number
  /** Most sequences that run at once. Default 16. */
  readonly maxSequences: number
  /** Share of all pages that admissions leave free, for the growth of what runs. Default 0.01. */
  readonly watermark: number
}

/** One scheduling system. `schedule` is pure: the same state gives the same plan. */
export interface Scheduler {
  readonly name: string
  /** One line for lists of names. */
  readonly summary: string
  readonly paper: { readonly title: string; readonly year: number; readonly arxiv?: string } | null
  readonly schedule: (state: ScheduleState, options: SchedulerOptions) => StepPlan
}

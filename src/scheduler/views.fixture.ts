/** States of a few requests, for tests. */
import type { RequestView, SchedulerOptions, ScheduleState } from '../contract/schedule.ts'
import type { RequestId } from '../contract/units.ts'

export const OPTIONS: SchedulerOptions = { tokenBudget: 64, maxSequences: 8, watermark: 0 }

export const ids = (...n: number[]) => n as RequestId[]

/** A prompt of 10 tokens, arrived at its id, nothing computed. */
export function prompt(id: number, over: Partial<RequestView> = {}): RequestView {
  return {
    id: id as RequestId,
    tenant: '',
    priority: 0,
    arrivalMs: id,
    deadlineMs: null,
    phase: 'prefill',
    rows: 10,
    computed: 0,
    generated: 0,
    maxTokens: 10,
    samples: 1,
    ownPages: 0,
    ...over,
  }
}

/** The same with its first token sampled. */
export function decode(id: number, over: Partial<RequestView> = {}): RequestView {
  return prompt(id, { phase: 'decode', rows: 11, computed: 10, generated: 1, ownPages: 1, ...over })
}

/** 100 free pages of 16 tokens; `short`: requests whose next row needs a page. */
export function state(over: Partial<ScheduleState> & { readonly short?: readonly number[] } = {}): ScheduleState {
  const { short = [], ...rest } = over
  return {
    nowMs: 1000,
    waiting: [],
    running: [],
    freePages: 100,
    totalPages: 200,
    pageTokens: 16,
    needsPage: (id) => short.includes(id),
    ...rest,
  }
}

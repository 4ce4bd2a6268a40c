/** The scheduling systems by name. To add one: write its file, list it here; the suite in `schedulers.test.ts` runs it. */
import { KvasirError, nearest } from '../contract/errors.ts'
import type { Scheduler, SchedulerOptions } from '../contract/schedule.ts'
import { fcfs } from './fcfs.ts'
import { prepacking, prepackingPadded } from './prepacking.ts'
import { sarathi } from './sarathi.ts'
import { sarathiServe } from './sarathi-serve.ts'

export { checkPlan } from './check.ts'
export { join, order, promptCost, type ServedTokens, serve } from './order.ts'

export const SCHEDULERS = {
  'sarathi-serve': sarathiServe,
  sarathi,
  fcfs,
  prepacking,
  'prepacking-padded': prepackingPadded,
} as const satisfies Record<string, Scheduler>

export type SchedulerName = keyof typeof SCHEDULERS

export const DEFAULT_SCHEDULER: SchedulerName = 'sarathi-serve'

export const DEFAULT_SCHEDULER_OPTIONS: SchedulerOptions = { tokenBudget: 512, maxSequences: 16, watermark: 0.01 }

export function schedulerNamed(name: string = DEFAULT_SCHEDULER): Scheduler {
  if (Object.hasOwn(SCHEDULERS, name)) return SCHEDULERS[name as SchedulerName]
  const names = Object.keys(SCHEDULERS)
  const near = nearest(name, names)
  const hint = near ? `Did you mean '${near}'?` : `There are ${names.join(', ')}.`
  throw new KvasirError('INVALID_ARGUMENT', `no scheduler is named '${name}'. ${hint}`, { name, known: names })
}

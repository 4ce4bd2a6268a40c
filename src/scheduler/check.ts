/**
 * Whether a plan can be carried out. For tests, for the engine's debug mode, and for schedulers that are being written: the
 * message names the request and the numbers.
 */
import { KvasirError } from '../contract/errors.ts'
import type { RequestView, SchedulerOptions, ScheduleState, StepPlan } from '../contract/schedule.ts'
import type { RequestId } from '../contract/units.ts'
import { pagesToAdmit, pagesToDecode, remainingRows, sequencesOf } from './admission.ts'

/** Throws `INVALID_ARGUMENT` for the first thing that is wrong. */
export function checkPlan(state: ScheduleState, options: SchedulerOptions, plan: StepPlan): void {
  const running = new Map(state.running.map((r) => [r.id, r]))
  const waiting = new Map(state.waiting.map((r) => [r.id, r]))
  const preempted = named(plan.preempt, running, 'preempts', 'running')
  const admitted = named(plan.admit, waiting, 'admits', 'waiting')
  const gone = new Set(plan.preempt)

  const seen = new Set<RequestId>()
  let decodePages = 0
  for (const { id, rows, padding = 0 } of plan.work) {
    if (seen.has(id)) throw wrong(`works on request ${id} twice: once a step, with all its rows`, { id })
    seen.add(id)
    if (gone.has(id)) throw wrong(`preempts request ${id} and works on it: its pages are gone`, { id })
    const r = running.get(id) ?? admitted.find((a) => a.id === id)
    if (!r) {
      const why = waiting.has(id) ? 'waits and is not admitted' : 'is not known'
      throw wrong(`works on request ${id}, which ${why}`, { id })
    }
    const most = r.phase === 'decode' ? 1 : remainingRows(r)
    if (!Number.isInteger(rows) || rows < 1 || rows > most)
      throw wrong(`runs ${rows} rows of request ${id}, a ${r.phase}: 1 to ${most} can be run`, { id, rows, most })
    if (!Number.isInteger(padding) || padding < 0)
      throw wrong(`pads request ${id} by ${padding} rows: a whole number from 0 on is needed`, { id, padding })
    if (r.phase === 'decode' && running.has(id)) decodePages += pagesToDecode(r, state)
  }

  const kept = state.running.filter((r) => !gone.has(r.id))
  const sequences = sequencesOf([...kept, ...admitted])
  if (admitted.length > 0 && sequences > options.maxSequences)
    throw wrong(`admits up to ${sequences} sequences, ${options.maxSequences} may run`, { sequences })

  const free = state.freePages + preempted.reduce((n, r) => n + r.ownPages, 0)
  const pages = decodePages + admitted.reduce((n, r) => n + pagesToAdmit(r, state.pageTokens), 0)
  if (pages > free)
    throw wrong(`needs ${pages} pages, ${decodePages} of them for decodes; ${free} are free after preemption`, {
      pages,
      free,
    })
}

/** The requests of a list of ids, each once and all of them in `among`. */
function named(
  ids: readonly RequestId[],
  among: ReadonlyMap<RequestId, RequestView>,
  verb: string,
  where: string,
): RequestView[] {
  const seen = new Set<RequestId>()
  return ids.map((id) => {
    const r = among.get(id)
    if (!r) throw wrong(`${verb} request ${id}, which is not ${where}`, { id })
    if (seen.has(id)) throw wrong(`${verb} request ${id} twice`, { id })
    seen.add(id)
    return r
  })
}

function wrong(text: string, details: Record<string, unknown>): KvasirError {
  return new KvasirError('INVALID_ARGUMENT', `the plan ${text}`, details)
}

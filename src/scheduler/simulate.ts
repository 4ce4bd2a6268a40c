/**
 * Plays a scheduler against requests with arrival times: no model, no clock, only counts of rows and pages. It keeps the books
 * that the engine keeps (waiting, running, pages of each request) and takes the length of a step from a cost function.
 *
 * Simple on purpose: no shared prefixes, no swapping, one sequence a request. A preempted request is recomputed.
 */
import { KvasirError } from '../contract/errors.ts'
import type { RequestView, Scheduler, SchedulerOptions, StepPlan } from '../contract/schedule.ts'
import type { RequestId } from '../contract/units.ts'
import { checkPlan } from './check.ts'
import { join, order, promptCost, type ServedTokens, serve } from './order.ts'

export interface SimulatedRequest {
  readonly id: number
  readonly arrivalMs: number
  /** Tokens of the prompt. */
  readonly prompt: number
  /** Tokens that the answer will have. */
  readonly answer: number
  /** Tokens that it may have, which is what a scheduler sees; default {@link answer}. */
  readonly maxTokens?: number
  readonly tenant?: string
  readonly priority?: number
  readonly deadlineMs?: number
}

/** What a step computes. */
export interface StepLoad {
  readonly prefillRows: number
  readonly decodeRows: number
  readonly paddingRows: number
  /** Keys that the rows attend to, summed over all rows: q * k of Sarathi-Serve's cost model. */
  readonly attended: number
}

export interface Machine {
  readonly totalPages: number
  readonly pageTokens: number
  /** Milliseconds of a step. */
  readonly costMs: (load: StepLoad) => number
}

export interface SimulatedStep {
  readonly startMs: number
  readonly endMs: number
  readonly plan: StepPlan
  readonly load: StepLoad
  /** Requests that were decoding when the plan was made. */
  readonly decoding: readonly RequestId[]
  /** Pages free after the step's work was given its own, before finished requests left. */
  readonly freePages: number
}

export interface Simulation {
  readonly steps: readonly SimulatedStep[]
  /** When each token of each answer came. */
  readonly tokenMs: ReadonlyMap<RequestId, readonly number[]>
  readonly endMs: number
}

interface Live {
  readonly request: SimulatedRequest
  readonly id: RequestId
  computed: number
  generated: number
  pages: number
  readonly tokenMs: number[]
}

export function simulate(
  scheduler: Scheduler,
  requests: readonly SimulatedRequest[],
  options: SchedulerOptions,
  machine: Machine,
): Simulation {
  const { totalPages, pageTokens, costMs } = machine
  const all = requests.toSorted((a, b) => a.arrivalMs - b.arrivalMs || a.id - b.id).map(toLive)
  for (const { request } of all) checkFits(request, machine)
  const steps: SimulatedStep[] = []
  let waiting: Live[] = []
  let running: Live[] = []
  let served: ServedTokens = new Map()
  let free = totalPages
  let now = 0
  let arrived = 0
  /** Steps in a row that computed nothing. */
  let idle = 0

  while (arrived < all.length || waiting.length + running.length > 0) {
    if (waiting.length + running.length === 0) now = Math.max(now, all[arrived]!.request.arrivalMs)
    for (; arrived < all.length && all[arrived]!.request.arrivalMs <= now; arrived++) {
      served = join(served, tenantOf(all[arrived]!), waiting.map(tenantOf), running.map(tenantOf))
      waiting.push(all[arrived]!)
    }

    const live = new Map([...waiting, ...running].map((r) => [r.id, r]))
    const state = {
      nowMs: now,
      waiting: order(waiting.map(view), served, now),
      running: running.map(view),
      freePages: free,
      totalPages,
      pageTokens,
      needsPage: (id: RequestId) => pagesShort(live.get(id)!, pageTokens) > 0,
    }
    const plan = scheduler.schedule(state, options)
    checkPlan(state, options, plan)
    const decoding = running.filter(isDecoding).map((r) => r.id)

    for (const id of plan.preempt) {
      const r = live.get(id)!
      free += r.pages
      Object.assign(r, { pages: 0, computed: 0 })
      running = running.filter((x) => x !== r)
      waiting.push(r)
    }
    const grow = (r: Live) => {
      const pages = pagesShort(r, pageTokens)
      r.pages += pages
      free -= pages
    }
    for (const id of plan.admit) {
      const r = live.get(id)!
      served = serve(served, tenantOf(r), { input: promptCost(view(r)) })
      waiting = waiting.filter((x) => x !== r)
      running.push(r)
      grow(r)
    }
    for (const { id } of plan.work) grow(live.get(id)!)

    const load = loadOf(plan, live)
    const startMs = now
    if (plan.work.length > 0) now += costMs(load)
    else if (plan.preempt.length === 0 && arrived < all.length) now = all[arrived]!.request.arrivalMs
    // A step may do nothing but preempt; the next one has the pages.
    idle = plan.work.length > 0 ? 0 : idle + 1
    if (idle > 1 && arrived === all.length)
      throw new KvasirError('CAPACITY', `${scheduler.name} runs nothing: ${waiting.length} requests wait for ever`)
    steps.push({ startMs, endMs: now, plan, load, decoding, freePages: free })

    for (const { id, rows } of plan.work) {
      const r = live.get(id)!
      r.computed += rows
      if (r.computed < rowsOf(r)) continue
      r.generated++
      r.tokenMs.push(now)
      served = serve(served, tenantOf(r), { output: 1 })
      if (r.generated < r.request.answer) continue
      free += r.pages
      running = running.filter((x) => x !== r)
    }
  }
  return { steps, tokenMs: new Map(all.map((r) => [r.id, r.tokenMs])), endMs: now }
}

function loadOf(plan: StepPlan, live: ReadonlyMap<RequestId, Live>): StepLoad {
  let [prefillRows, decodeRows, paddingRows, attended] = [0, 0, 0, 0]
  for (const { id, rows, padding = 0 } of plan.work) {
    const r = live.get(id)!
    if (isDecoding(r)) decodeRows += rows
    else prefillRows += rows
    paddingRows += padding
    attended += rows * (r.computed + (rows + 1) / 2)
  }
  return { prefillRows, decodeRows, paddingRows, attended }
}

function view(r: Live): RequestView {
  const { arrivalMs, priority = 0, deadlineMs = null, answer, maxTokens = answer } = r.request
  return {
    id: r.id,
    tenant: tenantOf(r),
    priority,
    arrivalMs,
    deadlineMs,
    phase: isDecoding(r) ? 'decode' : 'prefill',
    rows: rowsOf(r),
    computed: r.computed,
    generated: r.generated,
    maxTokens,
    samples: 1,
    ownPages: r.pages,
  }
}

function toLive(request: SimulatedRequest): Live {
  return { request, id: request.id as RequestId, computed: 0, generated: 0, pages: 0, tokenMs: [] }
}

const tenantOf = (r: Live): string => r.request.tenant ?? ''
const rowsOf = (r: Live): number => r.request.prompt + r.generated
const isDecoding = (r: Live): boolean => r.generated > 0 && r.computed === rowsOf(r) - 1
const pagesShort = (r: Live, pageTokens: number): number => Math.max(0, Math.ceil(rowsOf(r) / pageTokens) - r.pages)

/** One that outgrows the pool would be preempted and recomputed for ever. */
function checkFits({ id, prompt, answer }: SimulatedRequest, { totalPages, pageTokens }: Machine): void {
  const pages = Math.ceil((prompt + answer) / pageTokens)
  if (prompt < 1 || answer < 1 || pages > totalPages)
    throw new KvasirError('INVALID_ARGUMENT', `request ${id} has ${prompt} + ${answer} tokens, ${totalPages} pages fit`)
}

/**
 * The loop: plans a step, makes room for it, runs it, samples, hands out what came of it, and begins again, as long as
 * there is work. Between steps, and only there, requests come, leave, are preempted and are refused, so a step is short.
 */
import { setImmediate } from 'node:timers/promises'
import { PAGE_CELLS } from '../cache/arena.ts'
import { checkStore } from '../cache/check.ts'
import type { PrefixCache } from '../cache/prefix-cache.ts'
import type { KvStore } from '../cache/store.ts'
import { KvasirError } from '../contract/errors.ts'
import type { ObservedLayer } from '../contract/observation.ts'
import type { RequestView, Scheduler, SchedulerOptions, StepPlan } from '../contract/schedule.ts'
import type { RequestId } from '../contract/units.ts'
import type { WorkItem, WorkResult } from '../contract/work-item.ts'
import type { Executor } from '../executor/run.ts'
import type { Model } from '../model/model.ts'
import { checkPlan, order } from '../scheduler/index.ts'
import type { Branch } from './branch.ts'
import type { Compression } from './compression.ts'
import type { EventLog } from './events.ts'
import { cutRuns, type Piece } from './pieces.ts'
import type { Pooler } from './pooler.ts'
import { Roster, type Totals } from './roster.ts'
import { stoppedByCaller, type Task } from './task.ts'
import { joinWindow } from './window.ts'
import type { HeldBytes, Writer } from './writer.ts'

/** Quick steps run on the calling thread; at least this often, in milliseconds, the event loop gets its turn. */
const YIELD_MS = 10

export interface LoopOptions extends SchedulerOptions {
  readonly scheduler: Scheduler
  readonly maxWaiting: number
}

export class EngineLoop {
  readonly #model: Model
  readonly #store: KvStore
  readonly #executor: Executor
  readonly #prefixes: PrefixCache
  readonly #events: EventLog
  readonly #options: LoopOptions
  readonly #roster: Roster
  #loop: Promise<void> | null = null
  #wake: (() => void) | null = null
  /** Stops the step that runs, when all that it works for have left. */
  #step: { readonly abort: AbortController; readonly tasks: ReadonlySet<Task> } | null = null
  #lastYield = 0

  constructor(
    model: Model,
    store: KvStore,
    executor: Executor,
    prefixes: PrefixCache,
    events: EventLog,
    options: LoopOptions,
  ) {
    this.#model = model
    this.#store = store
    this.#executor = executor
    this.#prefixes = prefixes
    this.#events = events
    this.#options = options
    this.#roster = new Roster(
      model,
      store,
      prefixes,
      events,
      () => executor.rowRunner,
      () => this.wake(),
    )
  }

  /** Branches that have pages, oldest admission first. */
  get running(): readonly Branch[] {
    return this.#roster.running
  }

  get waiting(): readonly Branch[] {
    return this.#roster.waiting
  }

  get totals(): Readonly<Totals> {
    return this.#roster.totals
  }

  /**
   * Takes a request in.
   * @throws KvasirError QUEUE_FULL, KV_BUDGET when it could not even run alone
   */
  submit(task: Task): void {
    this.#roster.submit(task, this.#options.maxWaiting)
    this.wake()
  }

  /** Resolves when nothing is left to do. */
  async idle(): Promise<void> {
    while (this.#loop) await this.#loop
  }

  /** The caller has left, or has read: see whether there is more to do. */
  wake(): void {
    if (this.#step && [...this.#step.tasks].every((t) => t.cancelled !== undefined)) this.#step.abort.abort()
    this.#wake?.()
    this.#wake = null
    this.#loop ??= this.#run()
  }

  async #run(): Promise<void> {
    // Requests of one tick are planned together.
    await setImmediate()
    for (;;) {
      this.#sweep()
      if (!this.#roster.waiting.length && !this.#roster.running.length) break
      try {
        if (!(await this.#oneStep())) await this.#sleep()
      } catch (error) {
        for (const branch of [...this.#roster.waiting, ...this.#roster.running]) this.#roster.fail(branch, error)
      }
      if (performance.now() - this.#lastYield > YIELD_MS) {
        await setImmediate()
        this.#lastYield = performance.now()
      }
    }
    if (process.env['KVASIR_CHECK']) checkStore(this.#store, this.#prefixes.check())
    // In the same tick as the check, so that no request falls in between.
    this.#loop = null
  }

  /** Until something changes; or until the next deadline. */
  async #sleep(): Promise<void> {
    const deadlines = this.#roster.waiting.flatMap((b) => (b.task.deadlineMs === null ? [] : [b.task.deadlineMs]))
    const ms = deadlines.length ? Math.max(1, Math.min(...deadlines) - performance.now()) : 1000
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, ms)
      this.#wake = () => {
        clearTimeout(timer)
        resolve()
      }
    })
  }

  /** Ends branches whose caller has left or whose time is over; their pages are free before the next step. */
  #sweep(): void {
    const now = performance.now()
    for (const branch of [...this.#roster.waiting, ...this.#roster.running]) {
      const { task } = branch
      if (task.cancelled !== undefined) this.#roster.fail(branch, stoppedByCaller(task.cancelled))
      else if (task.deadlineMs !== null && now > task.deadlineMs && branch.generated === 0)
        this.#roster.fail(branch, new KvasirError('DEADLINE', 'the answer had not begun when its deadline passed'))
    }
  }

  // planning -------------------------------------------------------------------------------------------------------------

  /** Whether anything was run or changed. */
  async #oneStep(): Promise<boolean> {
    const { tokenBudget, maxSequences } = this.#options
    const plan = this.#plan()
    for (const id of plan.preempt) this.#roster.preempt(this.#roster.find(id))
    let changed = plan.preempt.length > 0
    for (const id of plan.admit) {
      if (!this.#roster.admit(this.#roster.find(id))) break
      changed = true
    }
    const work = plan.work.flatMap((w): Piece[] => {
      const branch = this.#roster.running.find((b) => b.id === w.id)
      const rows = branch?.compression?.most(branch.computed, w.rows, tokenBudget) ?? w.rows
      const padding = branch?.compression?.staged ? 0 : (w.padding ?? 0)
      return branch ? [{ branch, rows, padding }] : []
    })
    if (!work.length) return changed || this.#preemptResting()
    for (const pieces of cutRuns(work, tokenBudget, maxSequences)) await this.#runPieces(pieces)
    return true
  }

  /** Nothing can run: a branch whose reader is slow gives its pages to those that wait. */
  #preemptResting(): boolean {
    const resting = this.#roster.running.findLast((b) => b.task.parts.isSlow)
    if (!resting || !this.#roster.waiting.some((b) => !b.loading && !b.task.parts.isSlow)) return false
    this.#roster.preempt(resting)
    return true
  }

  #plan(): StepPlan {
    const nowMs = performance.now()
    const view = (b: Branch) => b.view(this.#roster.cachedRows(b), b.sequence ? this.#store.ownPages(b.sequence) : 0)
    const waiting = order(
      this.#roster.waiting.filter((b) => !b.loading && !b.task.parts.isSlow).map(view),
      this.#roster.served,
      nowMs,
    )
    const state = {
      nowMs,
      waiting: this.#withoutFollowers(waiting),
      running: this.#roster.running.filter((b) => !b.task.parts.isSlow).map(view),
      freePages: this.#store.pools[0]!.freePages + this.#prefixes.evictablePages,
      totalPages: this.#store.home.pages,
      pageTokens: PAGE_CELLS,
      needsPage: (id: RequestId) => {
        const b = this.#roster.find(id)
        return b.sequence !== null && this.#store.pagesNeeded(b.sequence, 1) > 0
      },
    }
    const resting = this.#roster.running.length - state.running.length
    const options = { ...this.#options, maxSequences: Math.max(1, this.#options.maxSequences - resting) }
    const plan = this.#options.scheduler.schedule(state, options)
    if (process.env['KVASIR_CHECK']) checkPlan(state, options, plan)
    return plan
  }

  /**
   * Leaves out who would compute a block that somebody else is about to compute: it will find it stored. Of many requests with
   * one new prefix, one computes it.
   */
  #withoutFollowers(waiting: readonly RequestView[]): RequestView[] {
    const coming = new Set<string>()
    for (const b of this.#roster.running) {
      if (b.isCompressed) continue
      const next = b.hashes[Math.floor(b.computed / PAGE_CELLS)]
      if (next !== undefined) coming.add(next)
    }
    return waiting.filter((v) => {
      const branch = this.#roster.find(v.id)
      const at = v.computed / PAGE_CELLS
      const next = branch.hashes[at]
      if (next === undefined || at >= branch.reusableBlocks) return true
      if (coming.has(next)) return false
      coming.add(next)
      return true
    })
  }

  // running --------------------------------------------------------------------------------------------------------------

  async #runPieces(all: readonly Piece[]): Promise<void> {
    const pieces = this.#append(all)
    if (!pieces.length) return
    const items = pieces.map((p) => p.branch.item(p.rows, p.padding, this.#model.config.layers))
    const tasks = new Set(pieces.map((p) => p.branch.task))
    const abort = new AbortController()
    this.#step = { abort, tasks }
    try {
      const result = await this.#executor.run({ items }, abort.signal)
      this.#step = null
      for (const { branch, padding } of pieces) if (padding) this.#takeBack(branch, padding)
      this.#account(pieces, result)
      const planned: (() => Promise<void>)[] = []
      for (const [i, { branch, rows }] of pieces.entries()) {
        // Another sample of its request may have failed.
        if (!branch.sequence) continue
        this.#roster.publish(branch)
        if (branch.task.cancelled !== undefined) continue
        if (!branch.compression) this.#take(branch, result.items[i]!)
        else planned.push(this.#compressed(branch, branch.compression, rows, result.items[i]!))
      }
      for (const plan of planned) await plan()
    } catch (error) {
      this.#step = null
      // What the step wrote is not to be trusted; nothing of it was given out.
      for (const { branch, rows, padding } of pieces) if (branch.sequence) this.#takeBack(branch, rows + padding)
      if (error instanceof KvasirError && error.code === 'ABORTED') return
      for (const { branch } of pieces) if (!branch.task.parts.ended) this.#roster.fail(branch, error)
    }
  }

  /**
   * Puts the rows of each piece into its sequence. Where there is no room, whoever was admitted last gives way (schedulers
   * that do not preempt rely on this); who finds none even then waits for the next step, or, alone, ends.
   */
  #append(all: readonly Piece[]): Piece[] {
    const done: Piece[] = []
    for (const piece of all) {
      const { branch, rows, padding } = piece
      while (branch.sequence) {
        try {
          const staged = branch.compression?.staged
          const at = branch.computed
          const positions = staged?.next(rows) ?? Int32Array.from({ length: rows + padding }, (_, i) => at + i)
          this.#roster.reserve(branch.sequence, positions.length, 'growth', staged?.layers)
          this.#store.append(branch.sequence, positions, staged?.layers)
          branch.compression?.appended(rows + padding)
          done.push(piece)
          break
        } catch (error) {
          const stays = (b: Branch) => b === branch || b.sequence === null || done.some((p) => p.branch === b)
          const victim = this.#roster.running.findLast((b) => !stays(b))
          if (victim) this.#roster.preempt(victim)
          else {
            if (!done.length) this.#roster.fail(branch, error)
            break
          }
        }
      }
    }
    return done
  }

  #takeBack(branch: Branch, rows: number): void {
    this.#store.takeBack(branch.sequence!, rows, branch.compression?.staged?.layers)
    branch.compression?.appended(-rows)
  }

  /**
   * Hands a branch with a policy what it is due. Its own step, where one is needed, comes after all other outputs of this one
   * were read; what it needs of them is copied now.
   * @param rows that were computed
   */
  #compressed(branch: Branch, compression: Compression, rows: number, result: WorkResult): () => Promise<void> {
    const own: WorkResult = { logits: result.logits?.slice() ?? null, hidden: null, normed: null }
    // A policy that fails ends its own request, not those that were computed beside it.
    const guarded = async (work: () => Promise<void> | void) => {
      const start = performance.now()
      try {
        await work()
      } catch (error) {
        // Those admitted before go on; it comes back when they have ended.
        const isShort = error instanceof KvasirError && error.code === 'KV_BUDGET'
        if (isShort && this.#roster.running.some((b) => b.task !== branch.task)) this.#roster.preempt(branch)
        else this.#roster.fail(branch, error)
      }
      branch.task.policyMs += performance.now() - start
    }
    compression.staged?.passed(rows, result.hidden)
    const seen = guarded(() => {
      compression.add(result.observed)
      // A piece of a padded batch can be padding alone.
      if (rows > 0 && compression.isBehindPrompt) compression.afterDecode(branch.sequence!, result.observed ?? null)
    })
    return async () => {
      await seen
      if (!branch.sequence) return
      if (compression.isPromptDue(branch.computed)) await guarded(() => this.#planPrompt(branch, compression))
      if (branch.sequence) this.#take(branch, own)
    }
  }

  async #planPrompt(branch: Branch, compression: Compression): Promise<void> {
    const items = compression.window(branch.sequence!, this.#options.tokenBudget)
    const window = items.length ? joinWindow(items, await this.#observe(branch, items)) : null
    this.#roster.detach(branch, compression.budget)
    compression.planPrompt(branch.sequence!, window)
  }

  /** Runs items one by one. What comes of them is good beyond the next step. */
  async #observe({ task }: Branch, items: readonly WorkItem[]): Promise<WorkResult[]> {
    const results: WorkResult[] = []
    for (const item of items) {
      const { items: done, computeMs } = await this.#executor.run({ items: [item] })
      task.computeMs += computeMs
      results.push(items.length > 1 ? { ...done[0]!, observed: done[0]!.observed?.map(copied) ?? null } : done[0]!)
    }
    return results
  }

  #account(pieces: readonly Piece[], { computeMs, totalMs }: { computeMs: number; totalMs: number }): void {
    this.#roster.totals.steps++
    const decodes = pieces.filter((p) => p.rows === 1 && p.branch.generated > 0)
    const prefillRows = pieces.reduce((sum, p) => sum + p.rows + p.padding, 0) - decodes.length
    // Rows that passed some of the layers count by how many.
    const skipped = pieces.reduce((sum, { branch, rows }) => {
      const { from = 0, to = this.#model.config.layers } = branch.compression?.staged?.layers ?? {}
      return sum + rows * (1 - (to - from) / this.#model.config.layers)
    }, 0)
    this.#roster.rates.step(prefillRows - skipped, decodes.length, totalMs)
    for (const task of new Set(pieces.map((p) => p.branch.task))) task.computeMs += computeMs
    this.#events.add({
      ...{ kind: 'step-end', prefillRows, decodeRows: decodes.length, sequences: pieces.length },
      ...{ ms: totalMs, computeMs },
    })
  }

  /** Hands a branch the outputs behind its rows. */
  #take(branch: Branch, { logits, normed }: WorkResult): void {
    const { head } = branch
    try {
      if (head.kind === 'pooler') this.#pool(branch, head, normed)
      else if (logits && branch.generated > 0) this.#next(branch, head, logits)
      else if (logits) this.#first(branch, logits)
    } catch (error) {
      this.#roster.fail(branch, error)
    }
  }

  #pool(branch: Branch, head: Pooler, states: Float32Array | null): void {
    if (states && head.add(states)) this.#roster.end(branch, 'embedded')
  }

  /** The prompt is done: its samples part. */
  #first(branch: Branch, logits: Float32Array): void {
    const { task } = branch
    task.promptEndMs = performance.now()
    const all = [branch, ...this.#roster.fork(branch)]
    for (const { head } of all) if (head.kind === 'writer') head.sampler.acceptPrompt(task.prompt)
    for (const b of all) if (b.head.kind === 'writer') this.#next(b, b.head, logits)
  }

  #next(branch: Branch, head: Writer, logits: Float32Array): void {
    const { task } = branch
    const first = task.firstTokenMs === 0
    // Before the token is chosen: an answer of one token ends with it, and tells its timings.
    if (first) task.firstTokenMs = performance.now()
    const reason = head.next(logits, branch.tokens, () => this.#held(branch))
    if (first) {
      const ttftMs = task.firstTokenMs - task.arrivedMs
      this.#events.add({ kind: 'request-first-token', request: branch.id, ttftMs })
    }
    this.#roster.countToken(branch)
    if (reason) this.#roster.end(branch, reason.kind)
  }

  #held(branch: Branch): HeldBytes {
    const { pageBytes } = this.#store.home
    return {
      bytes: this.#store.heldBytes(branch.sequence!),
      fullBytes: Math.ceil(branch.computed / PAGE_CELLS) * pageBytes,
    }
  }
}

/** Statistics of a step lie where those of the next one will. */
function copied(layer: ObservedLayer): ObservedLayer {
  const entries = Object.entries(layer.statistics).map(([name, values]) => [name, values.slice()])
  return { ...layer, statistics: Object.fromEntries(entries) }
}

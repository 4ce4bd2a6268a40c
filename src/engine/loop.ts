/**
 * The loop: plans a step, makes room for it, runs it, samples, hands out what came of it, and begins again, as long as
 * there is work. Between steps, and only there, requests come, leave, are preempted and are refused, so a step is short.
 *
 * The ladder of memory, from the bottom: stored prefixes that nobody uses are evicted (and, with tiers, kept there); then a
 * running branch is preempted: its full blocks stay as stored prefixes for as long as they can, so that it finds them again,
 * or loads them from a tier, or computes them anew, whichever is quicker; then its request is refused with KV_BUDGET.
 */
import { setImmediate } from 'node:timers/promises'
import { PAGE_CELLS } from '../cache/arena.ts'
import { checkStore } from '../cache/check.ts'
import type { PrefixCache } from '../cache/prefix-cache.ts'
import type { KvStore } from '../cache/store.ts'
import { KvasirError, showBytes } from '../contract/errors.ts'
import type { RequestView, Scheduler, SchedulerOptions, StepPlan } from '../contract/schedule.ts'
import type { RequestId } from '../contract/units.ts'
import type { WorkItem } from '../contract/work-item.ts'
import type { Executor } from '../executor/run.ts'
import type { Model } from '../model/model.ts'
import { checkPlan, join, order, type ServedTokens, serve } from '../scheduler/index.ts'
import { Branch, stoppedByCaller, type Task } from './branch.ts'
import type { EventLog } from './events.ts'
import { Rates } from './rates.ts'

/** Pages that are evicted beyond what is needed now. */
const EVICT_AHEAD = 16
/** Quick steps run on the calling thread; at least this often, in milliseconds, the event loop gets its turn. */
const YIELD_MS = 10
/** Rows that a new sequence is expected to grow by when its request sets no bound. */
const EXPECTED_ANSWER = 1024

export interface LoopOptions extends SchedulerOptions {
  readonly scheduler: Scheduler
  readonly maxWaiting: number
}

export interface LoopTotals {
  requests: number
  refused: number
  promptTokens: number
  cachedTokens: number
  generatedTokens: number
  preemptions: number
  evictedPages: number
  steps: number
}

/** Rows of one branch in one run of the executor. */
interface Piece {
  readonly branch: Branch
  readonly rows: number
  readonly padding: number
}

export class EngineLoop {
  readonly #model: Model
  readonly #store: KvStore
  readonly #executor: Executor
  readonly #prefixes: PrefixCache
  readonly #events: EventLog
  readonly #options: LoopOptions
  readonly #waiting: Branch[] = []
  readonly #running: Branch[] = []
  readonly rates = new Rates()
  readonly totals: LoopTotals = {
    ...{ requests: 0, refused: 0, promptTokens: 0, cachedTokens: 0 },
    ...{ generatedTokens: 0, preemptions: 0, evictedPages: 0, steps: 0 },
  }
  #served: ServedTokens = new Map()
  #nextId = 1
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
  }

  get running(): number {
    return this.#running.length
  }

  get waiting(): number {
    return this.#waiting.length
  }

  /** Resolves when nothing is left to do. */
  async idle(): Promise<void> {
    while (this.#loop) await this.#loop
  }

  /**
   * Takes a request in.
   * @throws KvasirError QUEUE_FULL, KV_BUDGET when it could not even run alone, and what its sampling or stops are refused for
   */
  submit(task: Task): void {
    const refuse = (error: KvasirError) => {
      this.totals.refused++
      this.#events.add({ kind: 'request-refuse', code: error.code, promptTokens: task.prompt.length })
      return error
    }
    const needed = Math.ceil((task.prompt.length + 1) / PAGE_CELLS)
    const { pages, bytes } = this.#store.arenas[0]!
    if (needed > pages)
      throw refuse(
        new KvasirError(
          'KV_BUDGET',
          `this prompt of ${task.prompt.length} tokens needs ${needed} pages of KV memory, and there are ${pages} (${showBytes(bytes)}). ` +
            'Shorten it, or load the model with more kvMemory or a smaller cache type',
          { neededPages: needed, pages },
        ),
      )
    if (this.#waiting.length >= this.#options.maxWaiting) {
      const retryAfterMs = Math.ceil(this.rates.stepMs * this.#waiting.length) || 1000
      throw refuse(
        new KvasirError(
          'QUEUE_FULL',
          `${this.#waiting.length} requests are waiting, and no more may (maxWaiting). Try again in about ${(retryAfterMs / 1000).toFixed(1)} s`,
          { waiting: this.#waiting.length, retryAfterMs },
        ),
      )
    }
    const branch = new Branch(this.#nextId++ as RequestId, task, this.#model.tokenizer, 0)
    this.totals.requests++
    this.#served = join(
      this.#served,
      task.tenant,
      this.#waiting.map((b) => b.task.tenant),
      this.#running.map((b) => b.task.tenant),
    )
    this.#events.add({
      ...{ kind: 'request-arrive', request: branch.id, tenant: task.tenant, promptTokens: task.prompt.length },
    })
    this.#prefixes.nameBlocks(task.root, branch.tokens, branch.hashes)
    this.#waiting.push(branch)
    this.wake()
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
      if (!this.#waiting.length && !this.#running.length) break
      try {
        if (!(await this.#oneStep())) await this.#sleep()
      } catch (error) {
        for (const branch of [...this.#waiting, ...this.#running]) this.#fail(branch, error)
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
    const deadlines = this.#waiting.flatMap((b) => (b.task.deadlineMs === null ? [] : [b.task.deadlineMs]))
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
    for (const branch of [...this.#waiting, ...this.#running]) {
      const { task } = branch
      if (task.cancelled !== undefined) this.#fail(branch, stoppedByCaller(task.cancelled))
      else if (task.deadlineMs !== null && now > task.deadlineMs && branch.generated === 0)
        this.#fail(branch, new KvasirError('DEADLINE', 'the answer had not begun when its deadline passed'))
    }
  }

  // planning -------------------------------------------------------------------------------------------------------------

  /** Whether anything was run or changed. */
  async #oneStep(): Promise<boolean> {
    const plan = this.#plan()
    for (const id of plan.preempt) this.#preempt(this.#find(id))
    let changed = plan.preempt.length > 0
    for (const id of plan.admit) {
      if (!this.#admit(this.#find(id))) break
      changed = true
    }
    const work = plan.work.flatMap((w): Piece[] => {
      const branch = this.#running.find((b) => b.id === w.id)
      return branch ? [{ branch, rows: w.rows, padding: w.padding ?? 0 }] : []
    })
    if (!work.length) return changed || this.#preemptResting()
    for (const pieces of this.#runs(work)) await this.#runPieces(pieces)
    return true
  }

  /** Nothing can run: a branch whose reader is slow gives its pages to those that wait. */
  #preemptResting(): boolean {
    const resting = this.#running.findLast((b) => b.task.parts.isSlow)
    if (!resting || !this.#waiting.some((b) => !b.loading && !b.task.parts.isSlow)) return false
    this.#preempt(resting)
    return true
  }

  #plan(): StepPlan {
    const nowMs = performance.now()
    const views = new Map<Branch, RequestView>()
    const view = (b: Branch) => {
      const v = b.view(this.#cachedRows(b), b.sequence ? this.#store.ownPages(b.sequence) : 0)
      views.set(b, v)
      return v
    }
    const waiting = order(
      this.#waiting.filter((b) => !b.loading && !b.task.parts.isSlow).map(view),
      this.#served,
      nowMs,
    )
    const state = {
      nowMs,
      waiting: this.#withoutFollowers(waiting),
      running: this.#running.filter((b) => !b.task.parts.isSlow).map(view),
      freePages: this.#store.pools[0]!.freePages + this.#prefixes.evictablePages,
      totalPages: this.#store.arenas[0]!.pages,
      pageTokens: PAGE_CELLS,
      needsPage: (id: RequestId) => {
        const b = this.#find(id)
        return b.sequence !== null && this.#store.pagesNeeded(b.sequence, 1) > 0
      },
    }
    const resting = this.#running.length - state.running.length
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
    for (const b of this.#running) {
      const next = b.hashes[Math.floor(b.computed / PAGE_CELLS)]
      if (next !== undefined) coming.add(next)
    }
    return waiting.filter((v) => {
      const next = this.#find(v.id).hashes[v.computed / PAGE_CELLS]
      if (next === undefined) return true
      if (coming.has(next)) return false
      coming.add(next)
      return true
    })
  }

  /** Rows that a waiting branch would find stored: whole blocks, and never all of its rows. */
  #cachedRows(b: Branch): number {
    if (b.sequence) return b.computed
    const blocks = Math.min(this.#prefixes.longest(b.hashes), Math.floor((b.tokens.length - 1) / PAGE_CELLS))
    return blocks * PAGE_CELLS
  }

  #find(id: RequestId): Branch {
    return [...this.#running, ...this.#waiting].find((b) => b.id === id)!
  }

  /** Cuts the work into runs of no more rows than a step should have: fcfs plans prompts as a whole. */
  #runs(work: readonly Piece[]): Piece[][] {
    const most = this.#options.tokenBudget
    const runs: Piece[][] = [[]]
    let rows = 0
    for (const { branch, rows: all, padding } of work) {
      let left = all
      let pad = padding
      while (left + pad > 0) {
        const room = most - rows
        if (room <= 0 || runs.at(-1)!.length >= this.#options.maxSequences) {
          runs.push([])
          rows = 0
          continue
        }
        const take = Math.min(left, room)
        const takePad = Math.min(pad, room - take)
        runs.at(-1)!.push({ branch, rows: take, padding: takePad })
        rows += take + takePad
        left -= take
        pad -= takePad
        if (left + pad > 0) rows = most
      }
    }
    return runs.filter((r) => r.length > 0)
  }

  // life of a branch -----------------------------------------------------------------------------------------------------

  /** Gives a waiting branch its pages: stored ones first. False when there is no room after all. */
  #admit(branch: Branch): boolean {
    const { task } = branch
    if (this.#load(branch)) return true
    const cached = this.#cachedRows(branch)
    const expected = task.prompt.length + Math.min(task.maxTokens, EXPECTED_ANSWER)
    const sequence = this.#store.create(expected)
    this.#prefixes.adopt(sequence, branch.hashes, cached / PAGE_CELLS)
    try {
      this.#reserve(sequence, branch.tokens.length - cached)
    } catch (error) {
      this.#prefixes.release(sequence)
      this.#store.free(sequence)
      if (this.#running.length === 0) this.#fail(branch, error)
      return false
    }
    branch.sequence = sequence
    branch.published = cached / PAGE_CELLS
    this.#waiting.splice(this.#waiting.indexOf(branch), 1)
    this.#running.push(branch)
    if (task.startedMs === 0) {
      task.startedMs = performance.now()
      task.cachedTokens = cached
      this.totals.promptTokens += task.prompt.length
      this.totals.cachedTokens += cached
      this.#served = serve(this.#served, task.tenant, { input: task.prompt.length - cached })
    }
    this.#events.add({ kind: 'request-admit', request: branch.id, cachedTokens: cached })
    return true
  }

  /** Takes pages for `rows` more rows; evicts stored prefixes for them. @throws KvasirError KV_BUDGET */
  #reserve(sequence: NonNullable<Branch['sequence']>, rows: number): void {
    const missing = this.#store.pagesNeeded(sequence, rows) - this.#store.pools[sequence.arena]!.freePages
    // Some more than needed: what grows next to each other is read at once.
    if (missing > 0) this.totals.evictedPages += this.#prefixes.evict(missing + EVICT_AHEAD)
    this.#store.reserve(sequence, rows)
  }

  #preempt(branch: Branch): void {
    const rows = branch.computed
    this.#leave(branch)
    branch.published = 0
    branch.loadedFrom = -1
    this.totals.preemptions++
    this.#running.splice(this.#running.indexOf(branch), 1)
    this.#waiting.unshift(branch)
    this.#prefixes.nameBlocks(branch.task.root, branch.tokens, branch.hashes)
    this.#events.add({ kind: 'request-preempt', request: branch.id, rows })
  }

  /**
   * Loads stored blocks that are not in memory, where that is quicker than to compute them; the branch is not planned until
   * they are there. False: there are none, or those that there are found no room before.
   */
  #load(branch: Branch): boolean {
    const inMemory = this.#cachedRows(branch)
    if (branch.loadedFrom === inMemory) return false
    const loading = this.#prefixes.load(branch.hashes, branch.tokens, (rows) => this.rates.prefillMs(rows))
    if (!loading) return false
    branch.loadedFrom = inMemory
    branch.loading = true
    void loading.finally(() => {
      branch.loading = false
      this.wake()
    })
    return true
  }

  /** Gives up a branch's pages. What the prefix index knows of them stays there. */
  #leave(branch: Branch): void {
    if (!branch.sequence) return
    this.#prefixes.release(branch.sequence)
    this.#store.free(branch.sequence)
    branch.sequence = null
  }

  #end(branch: Branch, reason: string): void {
    const { task } = branch
    this.#leave(branch)
    for (const list of [this.#waiting, this.#running]) {
      const at = list.indexOf(branch)
      if (at >= 0) list.splice(at, 1)
    }
    branch[Symbol.dispose]()
    this.#events.add({
      ...{ kind: 'request-end', request: branch.id, reason },
      ...{ promptTokens: task.prompt.length, generatedTokens: branch.generated },
    })
    if (--task.open === 0) task.parts.end()
  }

  /** Ends a branch, and with it its whole request, with an error. */
  #fail(branch: Branch, error: unknown): void {
    const { task } = branch
    task.parts.end(error)
    const reason = error instanceof KvasirError ? error.code : 'error'
    for (const b of [...this.#waiting, ...this.#running]) if (b.task === task) this.#end(b, reason)
  }

  // running --------------------------------------------------------------------------------------------------------------

  async #runPieces(all: readonly Piece[]): Promise<void> {
    const pieces = this.#append(all)
    if (!pieces.length) return
    const items = pieces.map((p) => this.#item(p))
    const tasks = new Set(pieces.map((p) => p.branch.task))
    const abort = new AbortController()
    this.#step = { abort, tasks }
    try {
      const result = await this.#executor.run({ items }, abort.signal)
      this.#step = null
      for (const { branch, padding } of pieces) if (padding) this.#store.takeBack(branch.sequence!, padding)
      this.#account(pieces, result)
      for (const [i, { branch }] of pieces.entries()) {
        this.#publish(branch)
        const { logits } = result.items[i]!
        if (logits && branch.task.cancelled === undefined) this.#sample(branch, logits)
      }
    } catch (error) {
      this.#step = null
      // What the step wrote is not to be trusted; nothing of it was given out.
      for (const { branch, rows, padding } of pieces)
        if (branch.sequence) this.#store.takeBack(branch.sequence, rows + padding)
      if (error instanceof KvasirError && error.code === 'ABORTED') return
      for (const { branch } of pieces) if (!branch.task.parts.ended) this.#fail(branch, error)
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
          this.#reserve(branch.sequence, rows + padding)
          const at = branch.computed
          this.#store.append(
            branch.sequence,
            Int32Array.from({ length: rows + padding }, (_, i) => at + i),
          )
          done.push(piece)
          break
        } catch (error) {
          const stays = (b: Branch) => b === branch || b.sequence === null || done.some((p) => p.branch === b)
          const victim = this.#running.findLast((b) => !stays(b))
          if (victim) this.#preempt(victim)
          else {
            if (!done.length) this.#fail(branch, error)
            break
          }
        }
      }
    }
    return done
  }

  #item({ branch, rows, padding }: Piece): WorkItem {
    const sequence = branch.sequence!
    const end = branch.computed
    const from = end - rows - padding
    const tokens = Int32Array.from({ length: rows + padding }, (_, i) => (i < rows ? branch.tokens[from + i]! : 0))
    const complete = rows > 0 && from + rows === branch.tokens.length
    return {
      sequence: sequence.id,
      positions: Int32Array.from(tokens, (_, i) => from + i),
      store: { kind: 'tail' },
      layers: { from: 0, to: this.#model.config.layers },
      input: { kind: 'tokens', tokens },
      outputs: { logits: complete ? [rows - 1] : [], hidden: false },
      mask: { kind: 'causal' },
    }
  }

  #account(pieces: readonly Piece[], { computeMs, totalMs }: { computeMs: number; totalMs: number }): void {
    this.totals.steps++
    const decodes = pieces.filter((p) => p.rows === 1 && p.branch.generated > 0)
    const prefillRows = pieces.reduce((sum, p) => sum + p.rows + p.padding, 0) - decodes.length
    this.rates.step(prefillRows, decodes.length, totalMs)
    for (const task of new Set(pieces.map((p) => p.branch.task))) task.computeMs += computeMs
    this.#events.add({
      ...{ kind: 'step-end', prefillRows, decodeRows: decodes.length, sequences: pieces.length },
      ...{ ms: totalMs, computeMs },
    })
  }

  /** Tells the prefix index about blocks that are full now. */
  #publish(branch: Branch): void {
    const full = Math.floor(branch.computed / PAGE_CELLS)
    if (full === branch.published) return
    this.#prefixes.nameBlocks(branch.task.root, branch.tokens, branch.hashes)
    this.#prefixes.publish(branch.sequence!, branch.hashes, branch.tokens, branch.published, full)
    branch.published = full
  }

  #sample(branch: Branch, logits: Float32Array): void {
    const { task } = branch
    const first = branch.generated === 0
    try {
      if (first) {
        task.promptEndMs = performance.now()
        const others = this.#fork(branch)
        branch.sampler.acceptPrompt(task.prompt)
        for (const b of others) b.sampler.acceptPrompt(task.prompt)
        for (const b of [branch, ...others]) this.#next(b, logits)
      } else this.#next(branch, logits)
    } catch (error) {
      this.#fail(branch, error)
    }
  }

  #next(branch: Branch, logits: Float32Array): void {
    const { task } = branch
    const first = task.firstTokenMs === 0
    // Before the token is chosen: an answer of one token ends with it, and tells its timings.
    if (first) task.firstTokenMs = performance.now()
    const reason = branch.next(logits)
    if (first) {
      const ttftMs = task.firstTokenMs - task.arrivedMs
      this.#events.add({ kind: 'request-first-token', request: branch.id, ttftMs })
    }
    this.totals.generatedTokens++
    this.#served = serve(this.#served, task.tenant, { output: 1 })
    if (reason) this.#end(branch, reason.kind)
  }

  /** Further samples of a prompt that is done: they share its pages until they write. */
  #fork(branch: Branch): Branch[] {
    const { task } = branch
    const out: Branch[] = []
    for (let i = 1; i < task.samples; i++) {
      const other = new Branch(this.#nextId++ as RequestId, task, this.#model.tokenizer, i, branch)
      const expected = branch.computed + Math.min(task.maxTokens, EXPECTED_ANSWER)
      other.sequence = this.#store.fork(branch.sequence!, expected)
      this.#prefixes.share(branch.sequence!, other.sequence)
      task.open++
      this.#running.push(other)
      out.push(other)
    }
    return out
  }
}

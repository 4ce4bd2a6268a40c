/**
 * Who waits and who runs, and the life of a branch: taken in, admitted to pages, preempted from them, ended. What it does to
 * memory is the ladder: stored prefixes that nobody uses are evicted (and, with tiers, kept there); then a running branch is
 * preempted: its full blocks stay as stored prefixes for as long as they can, so that it finds them again, or loads them
 * from a tier, or computes them anew, whichever is quicker; then its request is refused with KV_BUDGET.
 */
import { PAGE_CELLS } from '../cache/arena.ts'
import { pagesToKeep } from '../cache/carry-out.ts'
import type { PrefixCache } from '../cache/prefix-cache.ts'
import type { KvSequence } from '../cache/sequence.ts'
import type { KvStore } from '../cache/store.ts'
import { KvasirError, showBytes } from '../contract/errors.ts'
import type { EvictCause } from '../contract/events.ts'
import type { Range, RequestId } from '../contract/units.ts'
import type { Runner } from '../ggml/backend.ts'
import type { Model } from '../model/model.ts'
import { join, type ServedTokens, serve } from '../scheduler/index.ts'
import { Branch } from './branch.ts'
import { Compression } from './compression.ts'
import type { EventLog } from './events.ts'
import { Pooler } from './pooler.ts'
import { Rates } from './rates.ts'
import type { Task } from './task.ts'
import { Writer } from './writer.ts'

/** Pages that are evicted beyond what is needed now. */
const EVICT_AHEAD = 16
/** Rows that a new sequence is expected to grow by when its request sets no bound. */
const EXPECTED_ANSWER = 1024

export interface Totals {
  requests: number
  refused: number
  promptTokens: number
  cachedTokens: number
  generatedTokens: number
  preemptions: number
  evictedPages: number
  steps: number
}

export class Roster {
  readonly #store: KvStore
  readonly #prefixes: PrefixCache
  readonly #events: EventLog
  readonly #model: Model
  readonly #runner: () => Runner
  readonly #onChange: () => void
  readonly waiting: Branch[] = []
  /** Oldest admission first. */
  readonly running: Branch[] = []
  readonly rates = new Rates()
  readonly totals: Totals = {
    ...{ requests: 0, refused: 0, promptTokens: 0, cachedTokens: 0 },
    ...{ generatedTokens: 0, preemptions: 0, evictedPages: 0, steps: 0 },
  }
  /** What each tenant got so far. */
  served: ServedTokens = new Map()
  #nextId = 1

  /**
   * @param runner for policies that move rows
   * @param onChange called when a branch that could not run may be able to
   */
  constructor(
    model: Model,
    store: KvStore,
    prefixes: PrefixCache,
    events: EventLog,
    runner: () => Runner,
    onChange: () => void,
  ) {
    this.#runner = runner
    this.#model = model
    this.#store = store
    this.#prefixes = prefixes
    this.#events = events
    this.#onChange = onChange
  }

  /**
   * Takes a request in.
   * @throws KvasirError QUEUE_FULL, KV_BUDGET when it could not even run alone, and what its sampling or stops are refused for
   */
  submit(task: Task, maxWaiting: number): void {
    const refuse = (error: KvasirError) => {
      this.totals.refused++
      this.#events.add({ kind: 'request-refuse', code: error.code, promptTokens: task.prompt.length })
      return error
    }
    const compression = this.#compression(task)
    const rows = task.prompt.length + Math.min(1, task.maxTokens)
    const ownPages = Math.ceil(Math.min(rows, compression?.mostRows ?? rows) / PAGE_CELLS)
    const needed = this.#store.homePages(task.arena, ownPages)
    const { pages, bytes } = this.#store.home
    if (needed > pages)
      throw refuse(
        new KvasirError(
          'KV_BUDGET',
          `this prompt of ${task.prompt.length} tokens needs ${needed} pages of KV memory, and there are ${pages} (${showBytes(bytes)}). ` +
            'Shorten it, or load the model with more kvMemory or a smaller cache type',
          { neededPages: needed, pages },
        ),
      )
    if (this.waiting.length >= maxWaiting) {
      const retryAfterMs = Math.ceil(this.rates.stepMs * this.waiting.length) || 1000
      throw refuse(
        new KvasirError(
          'QUEUE_FULL',
          `${this.waiting.length} requests are waiting, and no more may (maxWaiting). Try again in about ${(retryAfterMs / 1000).toFixed(1)} s`,
          { waiting: this.waiting.length, retryAfterMs },
        ),
      )
    }
    const { tokenizer, config } = this.#model
    const head = task.kind === 'embed' ? new Pooler(task, config.width) : new Writer(task, tokenizer, 0)
    const branch = new Branch(this.#nextId++ as RequestId, task, head, compression)
    task.id = branch.id
    this.totals.requests++
    this.served = join(
      this.served,
      task.tenant,
      this.waiting.map((b) => b.task.tenant),
      this.running.map((b) => b.task.tenant),
    )
    this.#events.add({
      ...{ kind: 'request-arrive', request: branch.id, tenant: task.tenant, task: task.kind },
      promptTokens: task.prompt.length,
    })
    this.#prefixes.nameBlocks(task.root, branch.tokens, branch.hashes)
    this.waiting.push(branch)
  }

  /** Rows that a waiting branch would find stored: whole blocks, and never all of its rows. */
  cachedRows(b: Branch): number {
    if (b.sequence) return b.computed
    const most = b.reusableBlocks
    return most === 0 ? 0 : PAGE_CELLS * Math.min(this.#prefixes.longest(b.hashes), most)
  }

  find(id: RequestId): Branch {
    return [...this.running, ...this.waiting].find((b) => b.id === id)!
  }

  /** Gives a waiting branch its pages: stored ones first. False when there is no room after all. */
  admit(branch: Branch): boolean {
    const { task } = branch
    if (this.load(branch)) return true
    const cached = this.cachedRows(branch)
    const sequence = this.#store.create(this.#expectedRows(branch, task.prompt.length), task.arena)
    this.#prefixes.adopt(sequence, branch.hashes, cached / PAGE_CELLS)
    try {
      // Layers that are read one after the other need pages one after the other.
      if (branch.compression?.staged) this.#store.makeRagged(sequence)
      else this.reserve(sequence, Math.min(branch.tokens.length, this.#mostRows(branch)) - cached, 'admission')
    } catch (error) {
      this.#prefixes.release(sequence)
      this.#store.free(sequence)
      if (this.running.length === 0) this.fail(branch, error)
      return false
    }
    branch.sequence = sequence
    branch.published = cached / PAGE_CELLS
    this.waiting.splice(this.waiting.indexOf(branch), 1)
    this.running.push(branch)
    if (task.startedMs === 0) {
      task.startedMs = performance.now()
      task.cachedTokens = cached
      this.totals.promptTokens += task.prompt.length
      this.totals.cachedTokens += cached
      this.served = serve(this.served, task.tenant, { input: task.prompt.length - cached })
    }
    this.#events.add({
      ...{ kind: 'request-admit', request: branch.id, cachedTokens: cached },
      loadedTokens: sources(branch, cached),
    })
    return true
  }

  /** Takes pages for `rows` more rows; evicts stored prefixes for them. @throws KvasirError KV_BUDGET */
  reserve(sequence: KvSequence, rows: number, cause: EvictCause, layers?: Range): void {
    const pages = this.#store.pagesNeeded(sequence, rows, layers)
    // Some more than needed: what grows next to each other is read at once.
    this.totals.evictedPages += this.#prefixes.makeRoom(sequence.arena, pages, cause, EVICT_AHEAD)
    this.#store.reserve(sequence, rows, layers)
  }

  preempt(branch: Branch): void {
    const rows = branch.computed
    this.leave(branch)
    branch.compression?.restart()
    branch.published = 0
    branch.loadedFrom = -1
    branch.loaded = { host: 0, disk: 0 }
    this.totals.preemptions++
    this.running.splice(this.running.indexOf(branch), 1)
    this.waiting.unshift(branch)
    this.#prefixes.nameBlocks(branch.task.root, branch.tokens, branch.hashes)
    this.#events.add({ kind: 'request-preempt', request: branch.id, rows })
  }

  /**
   * Loads stored blocks that are not in memory, where that is quicker than to compute them; the branch is not planned until
   * they are there. False: there are none, or those that there are found no room before.
   */
  load(branch: Branch): boolean {
    const inMemory = this.cachedRows(branch)
    if (branch.loadedFrom === inMemory) return false
    const hashes = branch.hashes.slice(0, branch.reusableBlocks)
    const loading = this.#prefixes.load(branch.task.arena, hashes, branch.tokens, (rows) => this.rates.prefillMs(rows))
    if (!loading) return false
    branch.loadedFrom = inMemory
    branch.loading = true
    void loading
      .then((blocks) => {
        for (const from of ['host', 'disk'] as const) branch.loaded[from] += PAGE_CELLS * (blocks.get(from) ?? 0)
      })
      .finally(() => {
        branch.loading = false
        this.#onChange()
      })
    return true
  }

  /** Gives up a branch's pages. What the prefix index knows of them stays there. */
  leave(branch: Branch): void {
    if (!branch.sequence) return
    this.#prefixes.release(branch.sequence)
    this.#store.free(branch.sequence)
    branch.sequence = null
  }

  end(branch: Branch, reason: string): void {
    const { task } = branch
    this.leave(branch)
    for (const list of [this.waiting, this.running]) {
      const at = list.indexOf(branch)
      if (at >= 0) list.splice(at, 1)
    }
    branch[Symbol.dispose]()
    this.#events.add({
      ...{ kind: 'request-end', request: branch.id, reason },
      ...{ promptTokens: task.prompt.length, generatedTokens: branch.generated },
      ms: performance.now() - task.arrivedMs,
    })
    if (--task.open === 0) task.parts.end()
  }

  /** Ends a branch, and with it its whole request, with an error. */
  fail(branch: Branch, error: unknown): void {
    const { task } = branch
    task.parts.end(error)
    const reason = error instanceof KvasirError ? error.code : 'error'
    for (const b of [...this.waiting, ...this.running]) if (b.task === task) this.end(b, reason)
  }

  /** Tells the prefix index about blocks that are full now. */
  publish(branch: Branch): void {
    if (branch.isCompressed) return
    const full = Math.floor(branch.computed / PAGE_CELLS)
    if (full === branch.published) return
    this.#prefixes.nameBlocks(branch.task.root, branch.tokens, branch.hashes)
    this.#prefixes.publish(branch.sequence!, branch.hashes, branch.tokens, branch.published, full)
    branch.published = full
  }

  /** Before rows are dropped: the sequence's pages are those of a stored prefix no longer. */
  detach(branch: Branch, rows: number): void {
    this.#prefixes.release(branch.sequence!)
    // What others share is copied for it.
    this.#makeRoom(this.#store.pagesToBorrow(branch.sequence!.arena, pagesToKeep(rows)))
  }

  /**
   * Prefixes that nobody uses make room for so many pages, as far as they can; then, for a task whose plan cannot do without, whoever
   * was admitted after it, the last one first: not those before, or two could turn each other out for ever.
   */
  #makeRoom(pages: number, task?: Task): void {
    const missing = () => pages - this.#store.pools[0]!.freePages
    if (missing() > 0) this.totals.evictedPages += this.#prefixes.evict(missing(), 'growth')
    while (task && missing() > 0) {
      const own = this.running.findIndex((b) => b.task === task)
      const victim = this.running.findLast((b, i) => i > own && b.task !== task && b.sequence)
      if (!victim) return
      this.preempt(victim)
      this.totals.evictedPages += this.#prefixes.evict(missing(), 'growth')
    }
  }

  #compression(task: Task): Compression | null {
    if (task.kind !== 'generate' || !task.compression) return null
    const makeRoom = (pages: number) => this.#makeRoom(pages, task)
    const tools = { store: this.#store, model: this.#model.config, runner: this.#runner, makeRoom }
    return new Compression(tools, task.prompt, task.compression)
  }

  /** Further samples of a prompt that is done: they share its pages until they write. */
  fork(branch: Branch): Branch[] {
    const { task, head } = branch
    const out: Branch[] = []
    if (task.kind === 'embed' || head.kind === 'pooler') return out
    for (let i = 1; i < task.samples; i++) {
      const writer = new Writer(task, this.#model.tokenizer, i, head)
      const other = new Branch(this.#nextId++ as RequestId, task, writer, branch.compression?.fork() ?? null, branch)
      this.#events.add({ kind: 'request-fork', request: other.id, from: branch.id })
      other.sequence = this.#store.fork(branch.sequence!, this.#expectedRows(branch, branch.computed))
      this.#prefixes.share(branch.sequence!, other.sequence)
      task.open++
      this.running.push(other)
      out.push(other)
    }
    return out
  }

  #mostRows({ compression }: Branch): number {
    return compression?.mostRows ?? Number.POSITIVE_INFINITY
  }

  /** How long a sequence of `rows` rows may become, as far as one can tell. */
  #expectedRows(branch: Branch, rows: number): number {
    return Math.min(rows + Math.min(branch.task.maxTokens, EXPECTED_ANSWER), this.#mostRows(branch))
  }

  /** Counts a token of an answer. */
  countToken(branch: Branch): void {
    this.totals.generatedTokens++
    this.served = serve(this.served, branch.task.tenant, { output: 1 })
  }
}

/** Where a branch's cached rows were found. Rows that were loaded lie behind those that were there, and may be evicted again. */
function sources({ loaded, loadedFrom }: Branch, cached: number): Record<'device' | 'host' | 'disk', number> {
  const there = loadedFrom < 0 ? 0 : Math.max(0, cached - loadedFrom)
  const host = Math.min(loaded.host, there)
  const disk = Math.min(loaded.disk, there - host)
  return { device: cached - host - disk, host, disk }
}

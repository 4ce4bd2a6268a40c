/**
 * A *branch* is one sequence of a request, the unit that is scheduled: first there is one, for the prompt; with `samples`
 * more of them fork off when the prompt is done.
 */
import { PAGE_CELLS } from '../cache/arena.ts'
import type { KvSequence } from '../cache/sequence.ts'
import type { RequestView } from '../contract/schedule.ts'
import type { RequestId } from '../contract/units.ts'
import type { WorkItem, WorkOutputs } from '../contract/work-item.ts'
import type { RequestStatus } from './api.ts'
import type { Compression } from './compression.ts'
import type { Pooler } from './pooler.ts'
import type { StagedPrompt } from './staged.ts'
import type { Task } from './task.ts'
import type { Writer } from './writer.ts'

export class Branch implements Disposable {
  readonly id: RequestId
  readonly task: Task
  /** What is made of the outputs behind its rows. */
  readonly head: Writer | Pooler
  /** What shortens its cache; null: nothing. */
  readonly compression: Compression | null
  /** Prompt, and answer so far. */
  readonly tokens: number[]
  sequence: KvSequence | null = null
  /** Names of its full blocks, as far as they are known. */
  readonly hashes: string[] = []
  /** Blocks of it that the prefix index has. */
  published = 0
  /** It waits for stored blocks to be loaded. */
  loading = false
  /** Rows that were in memory when blocks were loaded last: from there, it is not tried again. */
  loadedFrom = -1
  /** Rows that were loaded for it since it last had pages, by where they were. */
  loaded = { host: 0, disk: 0 }

  constructor(id: RequestId, task: Task, head: Writer | Pooler, compression: Compression | null, from?: Branch) {
    this.id = id
    this.task = task
    this.head = head
    this.compression = compression
    this.tokens = from ? [...from.tokens] : [...task.prompt]
    if (!from) return
    this.hashes.push(...from.hashes)
    this.published = from.published
  }

  /** Rows that were computed: those in the cache, or that were there before they were dropped. */
  get computed(): number {
    return this.sequence ? (this.compression?.seen ?? this.sequence.columns[0]!.end) : 0
  }

  /** Its cache is no longer what others could use. */
  get isCompressed(): boolean {
    return this.compression?.isOwn ?? false
  }

  /** Tokens of the answer so far. */
  get generated(): number {
    return this.head.generated
  }

  /** Blocks, from the first on, that it may take from the cache: the last row is always computed, for its output. */
  get reusableBlocks(): number {
    return Math.floor(
      Math.min(
        this.tokens.length - 1,
        this.head.reusableRows,
        this.compression?.reusableRows ?? Number.POSITIVE_INFINITY,
      ) / PAGE_CELLS,
    )
  }

  /** The work of computing its next rows, which are in the sequence already: `rows`, and `padding` behind them. */
  item(rows: number, padding: number, layers: number): WorkItem {
    const staged = this.compression?.staged
    if (staged) return this.#stagedItem(staged, rows)
    const end = this.computed
    const from = end - rows - padding
    const tokens = Int32Array.from({ length: rows + padding }, (_, i) => (i < rows ? this.tokens[from + i]! : 0))
    return {
      sequence: this.sequence!.id,
      positions: Int32Array.from(tokens, (_, i) => from + i),
      store: { kind: 'tail' },
      layers: { from: 0, to: layers },
      input: { kind: 'tokens', tokens },
      outputs: this.#outputs(from, from + rows),
      mask: { kind: 'causal' },
    }
  }

  #stagedItem(staged: StagedPrompt, rows: number): WorkItem {
    const positions = staged.next(rows)
    const isNewest = positions.at(-1) === this.tokens.length - 1
    return {
      sequence: this.sequence!.id,
      positions,
      store: { kind: 'tail' },
      layers: staged.layers,
      input: staged.nextInput(rows),
      outputs: { logits: staged.isLast && isNewest ? [rows - 1] : [], hidden: !staged.isLast },
      mask: { kind: 'causal' },
    }
  }

  /** What is wanted of its rows [from, to). */
  #outputs(from: number, to: number): WorkOutputs {
    const { head } = this
    if (head.kind === 'pooler') return { logits: [], hidden: false, normed: head.wanted(from, to) }
    const logits = to > from && to === this.tokens.length ? [to - from - 1] : []
    return { logits, hidden: false, ...this.compression?.observe(from, to) }
  }

  /** @param cached of a waiting branch: rows that it would find */
  view(cached: number, ownPages: number): RequestView {
    const { task } = this
    // An answer without end holds fewer rows than it has tokens.
    const excess = Math.max(0, this.tokens.length - (this.compression?.mostRows ?? this.tokens.length))
    const computed = Math.max(0, (this.sequence ? this.computed : cached) - excess)
    const rows = this.tokens.length - excess
    // Rows behind its next plan cannot run yet, and must not take the place of others.
    const due = this.sequence && this.compression && !this.compression.staged
    const next = due ? this.compression!.most(this.computed, rows - computed, rows) : rows - computed
    return {
      id: this.id,
      tenant: task.tenant,
      priority: task.request.priority ?? 0,
      arrivalMs: task.arrivedMs,
      deadlineMs: task.deadlineMs,
      phase: this.#phase,
      rows: computed + next,
      computed,
      generated: this.generated,
      maxTokens: task.maxTokens,
      samples: this.generated > 0 ? 1 : task.samples,
      ownPages,
      pageSize: task.pageSize,
    }
  }

  status(nowMs: number): RequestStatus {
    const { id, task, computed, generated } = this
    return {
      ...{ id, tenant: task.tenant, phase: this.sequence ? this.#phase : 'waiting' },
      ...{ promptTokens: task.prompt.length, computed, generated, ageMs: nowMs - task.arrivedMs },
    }
  }

  /** While a step runs, the rows that it computes count as computed. */
  get #phase(): 'prefill' | 'decode' {
    return this.sequence && this.generated > 0 && this.tokens.length - this.computed <= 1 ? 'decode' : 'prefill'
  }

  [Symbol.dispose](): void {
    this.head[Symbol.dispose]()
  }
}

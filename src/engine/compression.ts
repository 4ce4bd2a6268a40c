/**
 * A policy at work on one sequence. Usually the prompt is computed in full; then the policy sees what it asked for and its plan
 * is carried out; from there the answer is computed over what was kept, and a policy that goes on in the answer plans again
 * after each row. A policy can also plan between chunks of the prompt, or between stages of layers (`staged.ts`).
 *
 * Up to the first plan, blocks are those of any other request: they are found and stored as prefixes. After it the sequence is
 * its own and is never stored. Preempted, it computes its prompt again and repeats the prompt's plans, so that nothing changes.
 */

import { PAGE_CELLS } from '../cache/arena.ts'
import { carryOut } from '../cache/carry-out.ts'
import type { Column } from '../cache/column.ts'
import { formatArena } from '../cache/reformat.ts'
import { rotate, rotationOf } from '../cache/rotation.ts'
import { readRows } from '../cache/rows.ts'
import type { KvSequence } from '../cache/sequence.ts'
import type { KvStore } from '../cache/store.ts'
import { KvasirError } from '../contract/errors.ts'
import type { RowFormat } from '../contract/format.ts'
import type { HeadRows, Observation, ObservationNeeds, ObservedLayer } from '../contract/observation.ts'
import { type CompressionPlan, type PolicyState, SHARED, type StagePlan } from '../contract/policy.ts'
import type { Range } from '../contract/units.ts'
import type { WorkInput, WorkItem, WorkOutputs } from '../contract/work-item.ts'
import type { Runner } from '../ggml/backend.ts'
import { type ModelConfig, ropeOf } from '../model/config.ts'
import { ColumnSums } from './column-sums.ts'
import type { CompressionOptions } from './compression-options.ts'
import { StagedPrompt } from './staged.ts'
import { type SeenWindow, windowItems, windowRows } from './window.ts'

/** What carrying a policy out needs. */
export interface CompressionTools {
  readonly store: KvStore
  readonly model: ModelConfig
  /** For moving and merging rows. */
  readonly runner: () => Runner
  /** Tries to make so many pages free. */
  readonly makeRoom: (pages: number) => void
}

/** A plan of the prompt, and how long the sequence was then: what a preempted sequence repeats. */
type PromptPlan = CompressionPlan | StagePlan

export class Compression {
  readonly #tools: CompressionTools
  readonly #prompt: Int32Array
  readonly #o: CompressionOptions
  readonly #columns: ColumnSums | null
  /** In which its plans store rows. */
  readonly #formats: readonly RowFormat[]
  /** What the policy has to see. */
  readonly needs: ObservationNeeds
  /** What became of the prompt, in order. */
  #plans: PromptPlan[] = []
  /** How many of them were carried out since the sequence began. */
  #carried = 0
  /** Tokens seen by the sequence since its first plan was carried out; null: there was none yet. */
  #seen: number | null = null
  #staged: StagedPrompt | null = null
  #memory: unknown

  /** @param prompt all tokens of the request's prompt */
  constructor(tools: CompressionTools, prompt: Int32Array, o: CompressionOptions) {
    this.#tools = tools
    this.#prompt = prompt
    this.#o = o
    this.needs = o.policy.definition.observes(o.policy.options)
    this.#columns = this.needs.columns ? new ColumnSums() : null
    this.#formats = o.policy.definition.formats?.(tools.model, o.policy.options) ?? []
    this.#startStages()
  }

  #startStages(): void {
    const { stages, promptRows } = this.#o
    const { layers, width } = this.#tools.model
    if (stages) this.#staged = new StagedPrompt(this.#prompt.subarray(0, promptRows), layers, width, stages)
  }

  /** Rows per layer and KV head, on average. */
  get budget(): number {
    return this.#o.budget
  }

  /** Rows of the prompt that may come from stored prefixes. */
  get reusableRows(): number {
    return this.#columns || this.#o.stages || this.#o.chunkRows !== null ? 0 : this.#o.promptRows - 1
  }

  /** The prompt while it goes through the layers in stages; null: it does not, or it has. */
  get staged(): StagedPrompt | null {
    return this.#staged
  }

  /** Rows that were computed, where the cache does not tell it (any more); null: it does. */
  get seen(): number | null {
    return this.#staged ? this.#staged.progress : this.#seen
  }

  /** Whether the cache is no longer what others could use. */
  get isOwn(): boolean {
    return this.#staged !== null || this.#seen !== null
  }

  /** Whether rows behind the prompt, or behind the part of it that is shortened, were computed. */
  get isBehindPrompt(): boolean {
    return this.#staged === null && this.#seen !== null && this.#seen > this.#o.promptRows
  }

  /** The most rows that the sequence ever holds in a layer and head, however long its text; null: as many as the text has. */
  get mostRows(): number | null {
    if (!this.#o.isEndless) return null
    // LaCache swings about its budget by less than one row for each layer.
    const most = this.budget + this.#tools.model.layers + 1
    return this.#o.chunkRows === null ? Math.max(this.#o.promptRows, most) : most + this.#o.chunkRows
  }

  /**
   * Rows that may run in one step: none behind a plan together with rows before it, and one by one where each is planned for.
   * @param most rows of a step
   */
  most(computed: number, rows: number, most: number): number {
    if (this.#staged) return this.#staged.rowsFor(rows, most)
    const { promptRows } = this.#o
    if (computed >= promptRows) return this.#o.policy.definition.afterDecode ? 1 : rows
    const chunk = this.#o.chunkRows
    return Math.min(
      rows,
      (chunk === null ? promptRows : Math.min(promptRows, computed - (computed % chunk) + chunk)) - computed,
    )
  }

  /** What is to be seen of rows [from, to). */
  observe(from: number, to: number): Pick<WorkOutputs, 'observe'> {
    const { definition } = this.#o.policy
    const decodes = from >= this.#o.promptRows && this.needs.decode && definition.afterDecode
    // A piece of a padded batch can be padding alone.
    if (from === to || (!this.#columns && !decodes)) return {}
    return { observe: { rows: { from: 0, to: to - from }, statistics: ['sum'] } }
  }

  /** Rows were computed, and seen as {@link observe} said. */
  add(observed: readonly ObservedLayer[] | null | undefined): void {
    if (observed) this.#columns?.add(observed)
  }

  appended(rows: number): void {
    if (this.#seen !== null) this.#seen += rows
  }

  /** For a further sample of the same prompt, when that is done. */
  fork(): Compression {
    const other = new Compression(this.#tools, this.#prompt, this.#o)
    other.#plans = [...this.#plans]
    other.#carried = this.#carried
    other.#seen = this.#seen
    other.#staged = null
    other.#memory = this.#memory
    if (this.#columns) other.#columns?.copy(this.#columns)
    return other
  }

  /** The sequence is gone; another one begins with the prompt. */
  restart(): void {
    this.#seen = null
    this.#carried = 0
    this.#memory = undefined
    this.#startStages()
    this.#columns?.clear()
  }

  /** Whether the prompt, or a part of it, is to be planned for now. */
  isPromptDue(computed: number): boolean {
    if (this.#staged) return this.#staged.isStageDone
    const { promptRows } = this.#o
    if (this.#o.chunkRows === null) return this.#seen === null && computed === promptRows
    const chunks = Math.ceil(computed / this.#o.chunkRows)
    return (
      computed <= promptRows &&
      this.#carried < chunks &&
      (computed === promptRows || computed % this.#o.chunkRows === 0)
    )
  }

  /**
   * Rows of the prompt, or of the stage, once more, for the policy to see what they look at. None: there is nothing to be seen.
   * @param most rows of an item
   */
  window(sequence: KvSequence, most: number): readonly WorkItem[] {
    const { window } = this.needs
    const staged = this.#staged
    const isRepeated = this.#carried < this.#plans.length
    if (!window || isRepeated || this.#o.chunkRows !== null || (!staged && this.#fits)) return []
    const positions = staged ? staged.rows : Int32Array.from({ length: this.#o.promptRows }, (_, i) => i)
    const rows = windowRows(window, positions.length, this.#o.seed)
    const layers: Range = staged ? staged.layers : { from: 0, to: this.#tools.model.layers }
    const inputOf = (own: Int32Array): WorkInput =>
      staged ? staged.inputOf(own) : { kind: 'tokens', tokens: own.map((row) => this.#prompt[row]!) }
    return windowItems(sequence, window, rows, layers, { positions, inputOf, most })
  }

  /** The prompt, or a part of it, is complete. @param window what was seen of {@link window} */
  planPrompt(sequence: KvSequence, window: SeenWindow | null): void {
    const computed = this.#staged ? this.#staged.progress : (this.#seen ?? sequence.columns[0]!.end)
    const plan = (this.#plans[this.#carried] ??= this.#planOf(sequence, window, computed))
    this.#carried++
    if (this.#staged) this.#passStage(sequence, this.#staged, plan as StagePlan)
    else {
      this.#carryOut(sequence, plan as CompressionPlan)
      this.#seen ??= computed
    }
  }

  #planOf(sequence: KvSequence, window: SeenWindow | null, computed: number): PromptPlan {
    const { definition, options } = this.#o.policy
    // All rows of the prompt are known while it goes through the layers.
    const state = this.#state(sequence, this.#staged ? this.#o.promptRows : computed)
    if (this.#staged) {
      const stage = { ...state, prompt: this.#o.ahead, layers: this.#staged.layers, ran: this.#staged.rows }
      return definition.afterStage!(this.#seenOf(sequence, { window }), stage, options)
    }
    if (this.#o.chunkRows !== null) return definition.afterChunk!(state, options)
    if (this.#fits) return { kind: 'keep-all' }
    return definition.afterPrefill(this.#seenOf(sequence, { window }), state, options)
  }

  get #fits(): boolean {
    return this.#o.isBudgeted && this.#o.promptRows <= this.#o.budget
  }

  #passStage(sequence: KvSequence, staged: StagedPrompt, { rows, next, memory }: StagePlan): void {
    const { layers, kvHeads } = this.#tools.model
    if (rows) {
      // Layers that the prompt has not reached hold nothing.
      const none = Array.from({ length: layers - rows.length }, () => new Array(kvHeads).fill(new Int32Array(0)))
      this.#carryOut(sequence, { kind: 'keep', rows: [...rows, ...none] })
    }
    if (memory !== undefined) this.#memory = memory
    if (staged.isLast) {
      this.#staged = null
      this.#seen = this.#o.promptRows
    } else staged.advance(next && checkNext(next, staged.rows.length))
  }

  /** A row of the answer, or of the prompt behind what is shortened, was computed. */
  afterDecode(sequence: KvSequence, decode: readonly ObservedLayer[] | null): void {
    const { definition, options } = this.#o.policy
    if (!definition.afterDecode) return
    const plan = definition.afterDecode(this.#seenOf(sequence, { decode }), this.#state(sequence, this.#seen!), options)
    this.#carryOut(sequence, plan)
  }

  #carryOut(sequence: KvSequence, plan: CompressionPlan): void {
    if (plan.memory !== undefined) this.#memory = plan.memory
    if (plan.kind === 'keep') for (const { lower, upper } of plan.shared ?? []) this.#checkShared(lower, upper)
    const { store, runner, makeRoom } = this.#tools
    carryOut(store, sequence, plan, { runner, makeRoom, formats: this.#formats, seed: this.#o.seed })
    if (plan.kind === 'keep') this.#columns?.keep(plan.rows)
  }

  #seenOf(
    sequence: KvSequence,
    { window, decode }: { window?: SeenWindow | null; decode?: readonly ObservedLayer[] | null },
  ): Observation {
    return {
      ...(window ? { window: window.layers, windowRows: window.positions } : {}),
      ...(window?.queries ? { queries: window.queries } : {}),
      ...(this.#columns ? { columns: this.#columns.observed } : {}),
      ...(decode ? { decode } : {}),
      ...(this.needs.rows ? { rows: (layer, head) => this.#rowsOf(sequence, layer, head) } : {}),
    }
  }

  /** One direction for the keys of two layers only makes sense where both are rotated alike. @throws KvasirError NOT_SUPPORTED */
  #checkShared(lower: number, upper: number): void {
    const { model } = this.#tools
    const rotation = (layer: number) => JSON.stringify(ropeOf(model, layer))
    if (rotation(lower) !== rotation(upper))
      throw new KvasirError(
        'NOT_SUPPORTED',
        `layers ${lower} and ${upper} of this model cannot share rows: their positions are rotated differently. Choose another policy`,
      )
  }

  /** Of each row, in the order of positions. */
  #formatsOf(sequence: KvSequence, column: Column): Uint8Array {
    const { store } = this.#tools
    const ids = this.#formats.map((f) => formatArena(store, f))
    const byBlock = column.blocks.map(({ arena, layer }) => {
      if (layer !== undefined) return SHARED
      return arena === sequence.arena ? 0 : ids.indexOf(arena) + 1
    })
    // Policies ask row after row of the answer: no iterators.
    const cells = column.byPosition
    const formats = new Uint8Array(cells.length)
    for (let i = 0; i < cells.length; i++) formats[i] = byBlock[Math.floor(cells[i]! / PAGE_CELLS)]!
    return formats
  }

  #rowsOf(sequence: KvSequence, layer: number, head: number): HeadRows {
    const { store, runner, model } = this.#tools
    const cells = sequence.column(layer, head, model.kvHeads).byPosition
    const { keys, values } = readRows(runner(), store, sequence, layer, head, [...cells])
    const rotation = rotationOf(store.rowArena(sequence.arena).shape)
    if (rotation.keys) rotate(keys, rotation.keys)
    if (rotation.values) rotate(values, rotation.values)
    return { keys, values }
  }

  #state(sequence: KvSequence, seen: number): PolicyState {
    const { budget, seed, ahead } = this.#o
    const { kvHeads } = this.#tools.model
    const positions = (layer: number, head: number) => sequence.column(layer, head, kvHeads).orderedPositions
    const formats = (layer: number, head: number) => this.#formatsOf(sequence, sequence.column(layer, head, kvHeads))
    return {
      ...{ model: this.#tools.model, seen, positions, budget, seed },
      ...(this.#formats.length || sequence.layout === 'ragged' ? { formats } : {}),
      ...(ahead.calibration ? { calibration: ahead.calibration } : {}),
      ...(this.#memory === undefined ? {} : { memory: this.#memory }),
    }
  }
}

/** @throws KvasirError INVALID_ARGUMENT for rows that are not there */
function checkNext(next: Int32Array, rows: number): Int32Array {
  let before = -1
  for (const row of next) {
    if (!(row > before && row < rows))
      throw new KvasirError(
        'INVALID_ARGUMENT',
        `stage plan: row ${row} behind ${before} of ${rows} goes on; rows must ascend`,
      )
    before = row
  }
  if (before !== rows - 1)
    throw new KvasirError('INVALID_ARGUMENT', 'stage plan: the newest row does not go on, and the answer is made of it')
  return next
}

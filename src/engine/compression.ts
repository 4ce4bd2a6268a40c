/**
 * A policy at work on one sequence. The prompt is computed in full; then the policy sees what it asked for and its plan is
 * carried out; from there the answer is computed over what was kept, and a policy that goes on in the answer plans again
 * after each row.
 *
 * Up to the plan, blocks are those of any other request: they are found and stored as prefixes. After it the sequence is its
 * own and is never stored. Preempted, it computes its prompt again and repeats the plan, so that nothing changes.
 */

import { PAGE_CELLS } from '../cache/arena.ts'
import { cellsByPosition, keepRows } from '../cache/keep.ts'
import type { KvSequence, KvStore } from '../cache/store.ts'
import { KvasirError } from '../contract/errors.ts'
import type { Observation, ObservedLayer } from '../contract/observation.ts'
import type { CompressionPlan, ModelDims, PolicyState } from '../contract/policy.ts'
import type { WorkOutputs } from '../contract/work-item.ts'
import { budgetRows, type ChosenPolicy, choosePolicy, parseBudget } from '../policies/index.ts'
import { ColumnSums } from './column-sums.ts'
import type { GenerateRequest } from './request.ts'

export interface CompressionOptions {
  readonly policy: ChosenPolicy
  /** Rows per layer and KV head on average. */
  readonly budget: number
  readonly seed: number
}

/**
 * @returns null when nothing is to be shortened
 * @throws KvasirError INVALID_ARGUMENT for an unknown policy, wrong options, or a budget that is missing or wrong
 */
export function chooseCompression(
  { policy, budget, sampling }: GenerateRequest,
  promptRows: number,
  model: ModelDims,
  store: KvStore,
): CompressionOptions | null {
  const bad = (what: string) => new KvasirError('INVALID_ARGUMENT', what, { field: 'budget' })
  if (policy === undefined) {
    if (budget !== undefined) throw bad('a budget needs a policy, e.g. snapkv, to choose what is kept')
    return null
  }
  const chosen = choosePolicy(policy)
  if (chosen.definition.name === 'full') return null
  if (budget === undefined)
    throw bad(`the policy ${chosen.text} needs a budget, e.g. 0.25 of the full cache, or 512 tokens`)
  const rowBytes = store.arenas[0]!.blockBytes / PAGE_CELLS
  const rows = budgetRows(parseBudget(budget), { model, promptRows, rowBytes })
  return { policy: chosen, budget: rows, seed: sampling?.seed ?? 0 }
}

export class Compression {
  readonly #store: KvStore
  readonly #model: ModelDims
  readonly #o: CompressionOptions
  readonly #promptRows: number
  readonly #columns: ColumnSums | null
  /** What became of the prompt; null: not planned yet. */
  #plan: CompressionPlan | null = null
  /** Tokens seen by the sequence since the plan was carried out; null: it was not, or not again yet. */
  #seen: number | null = null

  constructor(store: KvStore, model: ModelDims, promptRows: number, o: CompressionOptions) {
    this.#store = store
    this.#model = model
    this.#promptRows = promptRows
    this.#o = o
    this.#columns = this.needs.columns ? new ColumnSums() : null
  }

  /** Rows per layer and KV head, on average. */
  get budget(): number {
    return this.#o.budget
  }

  get needs() {
    return this.#o.policy.definition.observes(this.#o.policy.options)
  }

  /** Rows of the prompt that may come from stored prefixes. */
  get reusableRows(): number {
    return this.#columns ? 0 : this.#promptRows - 1
  }

  /** Tokens seen, where the cache does not tell it any more; null: it does. */
  get seen(): number | null {
    return this.#seen
  }

  /** Rows that may run in one step: none of the answer together with the prompt, and one by one where each is planned for. */
  most(computed: number, rows: number): number {
    if (this.#seen === null) return Math.min(rows, this.#promptRows - computed)
    return this.#o.policy.definition.afterDecode ? 1 : rows
  }

  /** What is to be seen of rows [from, to). */
  observe(from: number, to: number): Pick<WorkOutputs, 'observe'> {
    const decodes = this.#seen !== null && this.needs.decode && this.#o.policy.definition.afterDecode
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

  /** For a further sample of the same prompt. */
  fork(): Compression {
    const other = new Compression(this.#store, this.#model, this.#promptRows, this.#o)
    other.#plan = this.#plan
    other.#seen = this.#seen
    if (this.#columns) other.#columns?.copy(this.#columns)
    return other
  }

  /** The sequence is gone; another one begins with the prompt. */
  restart(): void {
    this.#seen = null
    this.#columns?.clear()
  }

  /** Rows at the end of the prompt that have to be seen before it can be planned; 0: none. */
  get windowRows(): number {
    if (this.#plan || this.#promptRows <= this.#o.budget) return 0
    return Math.min(this.needs.window?.rows ?? 0, this.#promptRows)
  }

  /** The prompt is complete. @param window what was seen of {@link windowRows} */
  afterPrefill(sequence: KvSequence, window: readonly ObservedLayer[] | null): void {
    const fits = this.#promptRows <= this.#o.budget
    this.#plan ??= fits
      ? { kind: 'keep-all' }
      : this.#o.policy.definition.afterPrefill(this.#seenOf({ window }), this.#state(sequence), this.#o.policy.options)
    this.#carryOut(sequence, this.#plan)
    this.#seen = this.#promptRows
  }

  /** A row of the answer was computed. */
  afterDecode(sequence: KvSequence, decode: readonly ObservedLayer[] | null): void {
    const { definition, options } = this.#o.policy
    if (!definition.afterDecode) return
    const plan = definition.afterDecode(this.#seenOf({ decode }), this.#state(sequence), options)
    this.#carryOut(sequence, plan)
  }

  #carryOut(sequence: KvSequence, plan: CompressionPlan): void {
    keepRows(this.#store, sequence, plan)
    if (plan.kind === 'keep') this.#columns?.keep(plan.rows)
  }

  #seenOf({
    window,
    decode,
  }: {
    window?: readonly ObservedLayer[] | null
    decode?: readonly ObservedLayer[] | null
  }): Observation {
    return {
      ...(window ? { window } : {}),
      ...(this.#columns ? { columns: this.#columns.observed } : {}),
      ...(decode ? { decode } : {}),
    }
  }

  #state(sequence: KvSequence): PolicyState {
    const { budget, seed } = this.#o
    const { kvHeads } = this.#model
    const known = new Map<number, Int32Array>()
    const positions = (layer: number, head: number): Int32Array => {
      const index = sequence.layout === 'uniform' ? 0 : layer * kvHeads + head
      const column = sequence.columns[index]!
      const found = known.get(index) ?? Int32Array.from(cellsByPosition(column), (cell) => column.positions[cell]!)
      known.set(index, found)
      return found
    }
    return { model: this.#model, seen: this.#seen ?? this.#promptRows, positions, budget, seed }
  }
}

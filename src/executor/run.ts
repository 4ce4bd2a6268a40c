/**
 * Runs a step: checks it, places it, finds or builds its graph, feeds it, computes, reads the outputs.
 */
import type { Column } from '../cache/column.ts'
import type { KvSequence } from '../cache/sequence.ts'
import type { KvStore } from '../cache/store.ts'
import { KvasirError } from '../contract/errors.ts'
import type { Step, StepResult, WorkItem, WorkOutputs, WorkResult } from '../contract/work-item.ts'
import { Backend, type Runner, SingleRunner, SplitRunner } from '../ggml/backend.ts'
import { cpuDevice } from '../ggml/device.ts'
import { isQuantized } from '../ggml/types.ts'
import type { ModelConfig } from '../model/config.ts'
import type { Model } from '../model/model.ts'
import { feed } from './feed.ts'
import { buildGraph, graphNodes, type StepGraph } from './graph.ts'
import { TILE_ROWS } from './lower/flash.ts'
import type { LoweringName } from './lower/lowering.ts'
import { checkObserve } from './observe/wanted.ts'
import { type PlacedStep, placeStep, ROW_TILE } from './place.ts'
import { ThreadChooser } from './threads.ts'

export interface ExecutorOptions {
  /** Most compute threads on the CPU; short steps use fewer where that is faster (`threads.ts`). */
  readonly threads: number
  readonly lowering: LoweringName
  /** Most work items of a step. Default 16. */
  readonly mostItems?: number
}

/**
 * A graph that last took less than this runs on the calling thread: handing it to another one costs about 50 us, and the
 * event loop is held for no longer than this, in milliseconds.
 */
const INLINE_MS = 4

/** Bounds what ggml's scheduler sets aside for graphs that are split over devices. */
const MOST_ITEMS = 16

/** A graph kept for the next step of its shape, with memory of its own for intermediate tensors. */
interface Slot {
  readonly runner: Runner
  graph: StepGraph | null
  lastMs: number
  /** Without one it gets all threads. */
  readonly chooser?: ThreadChooser
}

/**
 * About how many bytes intermediate tensors take for chunks of `rows` over a context of `keys`: the widest rows that live at
 * once, the mask, and one layer's values in row order. For the question whether a model fits; 30 to 40 % too much where it
 * was compared with what the allocator took.
 */
export function scratchBytes(c: ModelConfig, rows: number, keys: number): number {
  const widest = 4 * c.width + 3 * c.ffWidth + 2 * c.headDim * (c.heads + 2 * c.kvHeads)
  return 4 * rows * widest + 2 * keys * rows + 2 * keys * c.headDim * c.kvHeads + 4 * c.vocab
}

/** Rows from which on a step is filled up to whole tiles (`ROW_TILE`). */
function fillsFrom(model: Model, lowering: LoweringName): number {
  // With `flash` the bits are libllama's, and other numbers of rows are rounded otherwise.
  if (lowering === 'flash' || model.device.kind !== 'cpu') return Number.POSITIVE_INFINITY
  if (model.weights.report.some((w) => w.where === 'CPU_REPACK')) return 2
  const matrix = Object.values(model.weights.layers[0]!).find((t) => t && t.ne[1] > 1)
  return matrix && isQuantized(matrix.type) ? ROW_TILE + 1 : Number.POSITIVE_INFINITY
}

export class Executor implements Disposable {
  readonly model: Model
  readonly store: KvStore
  readonly options: ExecutorOptions
  readonly #backends: readonly Backend[]
  /** Chunks and decode steps alternate: each kind keeps its own graph and thread count. */
  readonly #slots: { readonly chunk: Slot; readonly short: Slot; readonly decode: Slot }
  /** See {@link fillsFrom}. */
  readonly #fillFrom: number
  #running: Runner | null = null
  #rowRunner: Runner | null = null

  constructor(model: Model, store: KvStore, options: ExecutorOptions) {
    this.model = model
    this.store = store
    this.options = options
    this.#fillFrom = fillsFrom(model, options.lowering)
    const cpu = cpuDevice()
    const devices = model.device.kind === 'cpu' ? [cpu] : [model.device, cpu]
    this.#backends = devices.map((d) => new Backend(d, options.threads))
    const slot = (): Slot => ({
      runner: this.#newRunner(),
      graph: null,
      lastMs: Number.POSITIVE_INFINITY,
    })
    // Chunks compute so much between two barriers that all threads pay.
    const chooses = options.threads > 1 && options.lowering !== 'flash'
    const choosing = (): Slot => ({ ...slot(), ...(chooses ? { chooser: new ThreadChooser(options.threads) } : {}) })
    this.#slots = { chunk: slot(), short: choosing(), decode: choosing() }
  }

  /** Bytes held for intermediate tensors. */
  get scratchBytes(): number {
    const steps = Object.values(this.#slots).reduce((sum, slot) => sum + slot.runner.bytes, 0)
    return steps + (this.#rowRunner?.bytes ?? 0)
  }

  /** For moving and merging rows between steps (`cache/rows.ts`). */
  get rowRunner(): Runner {
    return (this.#rowRunner ??= this.#newRunner())
  }

  #newRunner(): Runner {
    if (this.#backends.length === 1) return new SingleRunner(this.#backends[0]!)
    const items = this.options.mostItems ?? MOST_ITEMS
    return new SplitRunner(this.#backends, 2 * graphNodes(this.model.config.layers, items))
  }

  /**
   * @param signal stops the computation at its next node; the cells of the step then hold nothing of use.
   * @throws KvasirError INVALID_ARGUMENT, ABORTED, OUT_OF_MEMORY
   */
  async run(step: Step, signal?: AbortSignal): Promise<StepResult> {
    const start = performance.now()
    this.#check(step)
    if (signal?.aborted) throw new KvasirError('ABORTED', 'stopped by the caller', {}, signal.reason)

    const { heads, kvHeads } = this.model.config
    const reads = { lowering: this.options.lowering, group: heads / kvHeads }
    const placed = placeStep(step.items, this.store, reads, this.#fillFrom)
    const slot = this.#slotFor(placed.rows)
    const graph = this.#graphFor(slot, placed)
    feed(graph, placed, this.store, this.model.config)

    for (const b of this.#backends) b.useThreads(slot.chooser?.threads ?? this.options.threads)
    const computeStart = performance.now()
    const inline = slot.lastMs < INLINE_MS
    const result = inline ? slot.runner.run(graph.graph) : await this.#runAsync(slot.runner, graph, signal)
    const computeMs = performance.now() - computeStart
    if (result === 'aborted') throw new KvasirError('ABORTED', 'stopped by the caller', {}, signal?.reason)
    slot.lastMs = computeMs
    slot.chooser?.report(computeMs / placed.rows)
    return { items: this.#read(graph, placed), computeMs, totalMs: performance.now() - start }
  }

  #slotFor(rows: number): Slot {
    if (rows === 1) return this.#slots.decode
    return rows < TILE_ROWS ? this.#slots.short : this.#slots.chunk
  }

  async #runAsync(runner: Runner, graph: StepGraph, signal?: AbortSignal) {
    const stop = () => runner.abort()
    signal?.addEventListener('abort', stop, { once: true })
    this.#running = runner
    try {
      return await runner.runAsync(graph.graph)
    } finally {
      this.#running = null
      signal?.removeEventListener('abort', stop)
    }
  }

  #graphFor(slot: Slot, placed: PlacedStep): StepGraph {
    if (slot.graph?.key === placed.key) return slot.graph
    slot.graph?.context.dispose()
    slot.graph = null
    slot.lastMs = Number.POSITIVE_INFINITY
    const graph = buildGraph(this.model, this.store, placed, this.options.lowering)
    try {
      slot.runner.allocate(graph.graph)
    } catch (error) {
      graph.context.dispose()
      throw error
    }
    return (slot.graph = graph)
  }

  /** The outputs, in the order of the step's items. */
  #read(graph: StepGraph, placed: PlacedStep): WorkResult[] {
    const results: WorkResult[] = placed.items.map(() => ({ logits: null, hidden: null, normed: null }))
    const { vocab: V, width: D } = this.model.config
    const wanted = (rows: (o: WorkOutputs) => number) => placed.items.reduce((sum, p) => sum + rows(p.item.outputs), 0)
    const logits = graph.logits?.get(graph.logitsRoom.subarray(0, V * wanted((o) => o.logits.length)))
    const normed = graph.normed?.get(graph.normedRoom.subarray(0, D * wanted((o) => o.normed?.length ?? 0)))
    let logitsAt = 0
    let normedAt = 0
    for (const { index, item, rows, first, loads } of placed.items) {
      const logitsEnd = logitsAt + V * item.outputs.logits.length
      const normedEnd = normedAt + D * (item.outputs.normed?.length ?? 0)
      results[index] = {
        logits: logits && logitsEnd > logitsAt ? logits.subarray(logitsAt, logitsEnd) : null,
        hidden: graph.hidden.get(first)?.get(new Float32Array(rows * D)) ?? null,
        normed: normed && normedEnd > normedAt ? normed.subarray(normedAt, normedEnd) : null,
        queries: graph.queries.get(first)?.map((t) => t.get(new Float32Array(t.elements))) ?? null,
        observed: item.outputs.observe ? graph.observations.read(first, this.model.config.kvHeads, loads) : null,
      }
      logitsAt = logitsEnd
      normedAt = normedEnd
    }
    return results
  }

  #check(step: Step): void {
    const most = this.options.mostItems ?? MOST_ITEMS
    if (step.items.length < 1 || step.items.length > most)
      throw new KvasirError('INVALID_ARGUMENT', `${step.items.length} work items in a step; 1 to ${most} are allowed`)
    for (const item of step.items) this.#checkItem(item)
  }

  /** Everything that C would end the process over. */
  #checkItem(item: WorkItem): void {
    const { config } = this.model
    const rows = item.positions.length
    const bad = (what: string) => new KvasirError('INVALID_ARGUMENT', `work item: ${what}`)
    if (rows < 1) throw bad('no rows')
    const { from, to } = item.layers
    if (!(from >= 0 && from < to && to <= config.layers)) throw bad(`layers [${from}, ${to}) of ${config.layers}`)
    if (item.input.kind === 'tokens') {
      if (item.input.tokens.length !== rows) throw bad(`${item.input.tokens.length} tokens for ${rows} rows`)
      for (const t of item.input.tokens)
        if (!(Number.isInteger(t) && t >= 0 && t < config.vocab)) throw bad(`token ${t} is outside the vocabulary`)
    } else if (item.input.rows.length !== rows * config.width)
      throw bad(`${item.input.rows.length} numbers for ${rows} rows of ${config.width}`)
    if ((item.input.kind === 'hidden') !== from > 0) throw bad(`${item.input.kind} as input of layer ${from}`)
    this.#checkStore(item, bad)
    for (const p of item.positions)
      if (!(Number.isInteger(p) && p >= 0 && p < 2 ** 31)) throw bad(`position ${p} is no whole number from 0 up`)
    const { logits, normed = [] } = item.outputs
    checkRows('logits', logits, rows, bad)
    checkRows('states', normed, rows, bad)
    if (logits.length && to !== config.layers) throw bad('logits need the last layer')
    if (normed.length && to !== config.layers) throw bad('states behind the final norm need the last layer')
    if (item.outputs.observe) checkObserve(item.outputs.observe, rows, bad)
  }

  #checkStore(item: WorkItem, bad: (what: string) => KvasirError): void {
    const sequence = this.store.sequence(item.sequence)
    const rows = item.positions.length
    if (item.store.kind === 'tail') {
      if (columnsOf(item, sequence, this.store.dims.kvHeads).some((c) => c.end < rows))
        throw bad(`${rows} rows, and fewer were appended`)
      return
    }
    if (item.store.kind === 'kept') {
      checkKept(item, columnsOf(item, sequence, this.store.dims.kvHeads), bad)
      return
    }
    if (sequence.layout !== 'uniform') throw bad('cells can only be named in a uniform sequence')
    const { cells } = item.store
    if (cells.length !== rows) throw bad(`${rows} positions and ${cells.length} cells`)
    const { end } = sequence.columns[0]!
    for (const cell of cells)
      if (!(Number.isInteger(cell) && cell >= 0 && cell < end)) throw bad(`cell ${cell} is not in use`)
    if (new Set(cells).size < rows) throw bad('two rows for one cell')
  }

  [Symbol.dispose](): void {
    if (this.#running) throw new KvasirError('NATIVE_FAILED', 'a step is still running: abort it and wait for its end')
    for (const slot of Object.values(this.#slots)) {
      slot.graph?.context.dispose()
      slot.runner[Symbol.dispose]()
    }
    this.#rowRunner?.[Symbol.dispose]()
    for (const b of this.#backends) b.dispose()
  }
}

/** The columns of a sequence that an item's layers read. */
function columnsOf({ layers }: WorkItem, sequence: KvSequence, kvHeads: number): readonly Column[] {
  if (sequence.layout === 'uniform') return sequence.columns
  return sequence.columns.slice(layers.from * kvHeads, layers.to * kvHeads)
}

/** Rows that are not stored attend to their own keys where those are. */
function checkKept(item: WorkItem, columns: readonly Column[], bad: (what: string) => KvasirError): void {
  const { logits, normed = [], hidden, observe, queries } = item.outputs
  if (!logits.length && !normed.length && !hidden && !observe && !queries)
    throw bad('nothing is stored and nothing wanted')
  for (const column of columns) {
    const held = new Set(column.positions.subarray(0, column.end))
    const missing = Array.from(item.positions).find((p) => !held.has(p))
    if (missing !== undefined) throw bad(`the row at position ${missing} is to be in the cache already, and is not`)
  }
}

function checkRows(what: string, wanted: readonly number[], rows: number, bad: (what: string) => KvasirError): void {
  let before = -1
  for (const row of wanted) {
    if (!(Number.isInteger(row) && row > before && row < rows))
      throw bad(`${what} of rows ${wanted.join(', ')}: they must ascend, from 0 to ${rows - 1}`)
    before = row
  }
}

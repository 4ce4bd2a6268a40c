/**
 * Runs a step: checks it, finds or builds its graph, feeds it, computes, reads the outputs. Works on one item a step for
 * now; everything about an item is explicit, so that several can share a graph later.
 */
import { CELL_PADDING, type UniformCache } from '../cache/uniform.ts'
import { KvasirError } from '../contract/errors.ts'
import type { Step, StepResult, WorkItem, WorkResult } from '../contract/work-item.ts'
import { Backend, type Runner, SingleRunner, SplitRunner } from '../ggml/backend.ts'
import { cpuDevice } from '../ggml/device.ts'
import type { ModelConfig } from '../model/config.ts'
import type { Model } from '../model/model.ts'
import { feed } from './feed.ts'
import { BLOCK_STORE_ROWS, buildGraph, type GraphShape, graphNodes, type StepGraph, sameShape } from './graph.ts'
import { TILE_ROWS } from './lower/flash.ts'
import type { LoweringName } from './lower/lowering.ts'
import { ThreadChooser } from './threads.ts'

export interface ExecutorOptions {
  /** Most compute threads on the CPU; short steps use fewer where that is faster (`threads.ts`). */
  readonly threads: number
  readonly lowering: LoweringName
}

/**
 * A graph that last took less than this runs on the calling thread: handing it to another one costs about 50 us, and the
 * event loop is held for no longer than this, in milliseconds.
 */
const INLINE_MS = 4

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

export class Executor implements Disposable {
  readonly model: Model
  readonly cache: UniformCache
  readonly options: ExecutorOptions
  readonly #backends: readonly Backend[]
  /** Chunks and decode steps alternate: each kind keeps its own graph and thread count. */
  readonly #slots: { readonly chunk: Slot; readonly short: Slot; readonly decode: Slot }
  #running: Runner | null = null

  constructor(model: Model, cache: UniformCache, options: ExecutorOptions) {
    this.model = model
    this.cache = cache
    this.options = options
    const cpu = cpuDevice()
    const devices = model.device.kind === 'cpu' ? [cpu] : [model.device, cpu]
    this.#backends = devices.map((d) => new Backend(d, options.threads))
    const slot = (): Slot => ({
      runner:
        devices.length === 1
          ? new SingleRunner(this.#backends[0]!)
          : new SplitRunner(this.#backends, 2 * graphNodes(model.config.layers)),
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
    return Object.values(this.#slots).reduce((sum, slot) => sum + slot.runner.bytes, 0)
  }

  /**
   * @param signal stops the computation at its next node; the cells of the step then hold nothing of use.
   * @throws KvasirError INVALID_ARGUMENT, ABORTED, OUT_OF_MEMORY
   */
  async run(step: Step, signal?: AbortSignal): Promise<StepResult> {
    const start = performance.now()
    const item = step.items[0]
    if (!item || step.items.length > 1)
      throw new KvasirError('NOT_SUPPORTED', `${step.items.length} work items in a step`)
    this.#check(item)
    if (signal?.aborted) throw new KvasirError('ABORTED', 'stopped by the caller', {}, signal.reason)

    const slot = this.#slotFor(item.positions.length)
    const graph = this.#graphFor(slot, this.#shapeOf(item))
    feed(graph, item, this.cache, this.model.config)

    for (const b of this.#backends) b.useThreads(slot.chooser?.threads ?? this.options.threads)
    const computeStart = performance.now()
    const inline = slot.lastMs < INLINE_MS
    const result = inline ? slot.runner.run(graph.graph) : await this.#runAsync(slot.runner, graph, signal)
    const computeMs = performance.now() - computeStart
    if (result === 'aborted') throw new KvasirError('ABORTED', 'stopped by the caller', {}, signal?.reason)
    slot.lastMs = computeMs
    slot.chooser?.report(computeMs / item.positions.length)
    return { items: [this.#read(graph)], computeMs, totalMs: performance.now() - start }
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

  #shapeOf(item: WorkItem): GraphShape {
    const rows = item.positions.length
    const first = item.cells[0]!
    const consecutive = item.cells.every((cell, i) => cell === first + i)
    const asBlock = this.cache.shape.valuesTransposed && consecutive && rows >= BLOCK_STORE_ROWS
    return {
      rows,
      keys: Math.ceil(this.cache.used / CELL_PADDING) * CELL_PADDING,
      from: item.layers.from,
      to: item.layers.to,
      input: item.input.kind,
      logits: item.outputs.logits.length,
      hidden: item.outputs.hidden,
      blockAt: asBlock ? first : -1,
      lowering: this.options.lowering,
    }
  }

  #graphFor(slot: Slot, shape: GraphShape): StepGraph {
    if (slot.graph && sameShape(slot.graph.shape, shape)) return slot.graph
    slot.graph?.context.dispose()
    slot.graph = null
    slot.lastMs = Number.POSITIVE_INFINITY
    const graph = buildGraph(this.model, this.cache, shape)
    try {
      slot.runner.allocate(graph.graph)
    } catch (error) {
      graph.context.dispose()
      throw error
    }
    return (slot.graph = graph)
  }

  #read(graph: StepGraph): WorkResult {
    const { logits, hidden } = graph.results
    return { logits: graph.logits?.get(logits) ?? null, hidden: graph.hidden?.get(hidden) ?? null }
  }

  /** Everything that C would end the process over. */
  #check(item: WorkItem): void {
    const { config } = this.model
    const rows = item.positions.length
    const bad = (what: string) => new KvasirError('INVALID_ARGUMENT', `work item: ${what}`)
    if (rows < 1 || item.cells.length !== rows) throw bad(`${rows} positions and ${item.cells.length} cells`)
    const { from, to } = item.layers
    if (!(from >= 0 && from < to && to <= config.layers)) throw bad(`layers [${from}, ${to}) of ${config.layers}`)
    if (item.input.kind === 'tokens') {
      if (item.input.tokens.length !== rows) throw bad(`${item.input.tokens.length} tokens for ${rows} rows`)
      for (const t of item.input.tokens)
        if (!(Number.isInteger(t) && t >= 0 && t < config.vocab)) throw bad(`token ${t} is outside the vocabulary`)
    } else if (item.input.rows.length !== rows * config.width)
      throw bad(`${item.input.rows.length} numbers for ${rows} rows of ${config.width}`)
    if ((item.input.kind === 'hidden') !== from > 0) throw bad(`${item.input.kind} as input of layer ${from}`)
    for (const cell of item.cells)
      if (!(Number.isInteger(cell) && cell >= 0 && cell < this.cache.used)) throw bad(`cell ${cell} is not in use`)
    if (rows > 1 && new Set(item.cells).size < rows) throw bad('two rows for one cell')
    for (const p of item.positions)
      if (!(Number.isInteger(p) && p >= 0 && p < 2 ** 31)) throw bad(`position ${p} is no whole number from 0 up`)
    let before = -1
    for (const row of item.outputs.logits) {
      if (!(Number.isInteger(row) && row > before && row < rows))
        throw bad(`logits of rows ${item.outputs.logits.join(', ')}: they must ascend, from 0 to ${rows - 1}`)
      before = row
    }
    if (item.outputs.logits.length && to !== config.layers) throw bad('logits need the last layer')
  }

  [Symbol.dispose](): void {
    if (this.#running) throw new KvasirError('NATIVE_FAILED', 'a step is still running: abort it and wait for its end')
    for (const slot of Object.values(this.#slots)) {
      slot.graph?.context.dispose()
      slot.runner[Symbol.dispose]()
    }
    for (const b of this.#backends) b.dispose()
  }
}

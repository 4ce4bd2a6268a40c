/** The model that is measured, alone: no loop around it, no other sequences, nothing stored from before. */
import { readRows } from '../../cache/rows.ts'
import type { KvSequence } from '../../cache/sequence.ts'
import { KvStore } from '../../cache/store.ts'
import type { ObservedLayer } from '../../contract/observation.ts'
import type { Range } from '../../contract/units.ts'
import type { WorkInput, WorkItem, WorkOutputs, WorkResult } from '../../contract/work-item.ts'
import { Executor } from '../../executor/run.ts'
import { storeShape } from '../../executor/store-shape.ts'
import { Backend, type Runner, SingleRunner, SplitRunner } from '../../ggml/backend.ts'
import { cpuDevice, deviceNamed, devices } from '../../ggml/device.ts'
import { loadNative } from '../../ggml/library.ts'
import { Model } from '../../model/model.ts'
import type { LoadProgress } from '../../model/weights/load.ts'

/** Rows that are read in one step where nothing is looked at. */
const CHUNK = 512
/** Nodes of the small graphs beside the executor's: bounds what a scheduler for several devices sets aside. */
const SMALL_GRAPH = 64

export interface SubjectOptions {
  readonly threads: number
  /** By name; absent: the first GPU if there is one. */
  readonly device?: string
  readonly onLoad?: LoadProgress
}

/** What a row looked at, and what the model would say next. Valid until the next row. */
export interface Glance {
  /** f32 [V] */
  readonly logits: Float32Array
  /** By layer, `sum` over the one row: P of the row, f32 [n, H]. */
  readonly layers: readonly ObservedLayer[]
}

export class Subject implements Disposable {
  readonly model: Model
  readonly executor: Executor
  /** For small graphs, see `rows.ts`. */
  readonly runner: Runner
  readonly #store: KvStore
  readonly #backends: readonly Backend[]

  private constructor(model: Model, rows: number, threads: number) {
    const kv = { keyType: 'f16', valueType: 'f16', lowering: 'auto' } as const
    this.model = model
    this.#store = new KvStore(storeShape(model.config, { ...kv, cells: rows }, model.device), model.device)
    this.executor = new Executor(model, this.#store, { threads, lowering: 'auto', mostItems: 1 })
    const used = model.device.kind === 'cpu' ? [cpuDevice()] : [model.device, cpuDevice()]
    // What it is for is small, and threads that wait for each other spin.
    this.#backends = used.map((d) => new Backend(d, 1))
    this.runner =
      this.#backends.length === 1 ? new SingleRunner(this.#backends[0]!) : new SplitRunner(this.#backends, SMALL_GRAPH)
  }

  /** @param rows of the longest text that will be read */
  static async load(path: string, rows: number, { threads, device, onLoad }: SubjectOptions): Promise<Subject> {
    await loadNative()
    const name = device ?? devices().find((d) => d.kind === 'gpu' || d.kind === 'igpu')?.name ?? 'CPU'
    const model = await Model.load(path, () => ({
      device: deviceNamed(name),
      contextLength: rows,
      ...(onLoad ? { onProgress: onLoad } : {}),
    }))
    try {
      return new Subject(model, rows, threads)
    } catch (error) {
      model[Symbol.dispose]()
      throw error
    }
  }

  begin(signal?: AbortSignal): Text {
    return new Text(this, this.#store, signal)
  }

  [Symbol.dispose](): void {
    this.executor[Symbol.dispose]()
    this.runner[Symbol.dispose]()
    for (const b of this.#backends) b.dispose()
    this.#store[Symbol.dispose]()
    this.model[Symbol.dispose]()
  }
}

/** A text that is read by one sequence of its own. */
export class Text implements Disposable {
  readonly #subject: Subject
  readonly #store: KvStore
  readonly #signal: AbortSignal | undefined
  readonly #sequence: KvSequence
  #length = 0

  constructor(subject: Subject, store: KvStore, signal?: AbortSignal) {
    this.#subject = subject
    this.#store = store
    this.#signal = signal
    this.#sequence = store.create(0)
  }

  /** Rows read so far. */
  get length(): number {
    return this.#length
  }

  /** Reads on without looking. */
  async skim(tokens: Int32Array): Promise<void> {
    for (let at = 0; at < tokens.length; at += CHUNK)
      await this.#read(tokens.subarray(at, at + CHUNK), { logits: [], hidden: false })
  }

  /** Reads on; what its rows looked at, summed over them, and the logits behind the last. */
  async look(tokens: Int32Array): Promise<Glance> {
    const { logits, observed } = await this.#read(tokens, {
      logits: [tokens.length - 1],
      hidden: false,
      observe: { rows: { from: 0, to: tokens.length }, statistics: ['sum'] },
    })
    return { logits: logits!, layers: observed! }
  }

  /**
   * Reads a text from its beginning, layer by layer, and gives each layer's rotated queries, f32 [d, H, T], before it goes on:
   * only those of one layer are held, and no more of them than T rows of keys and values.
   */
  async readByLayer(tokens: Int32Array, seen: (layer: number, queries: Float32Array) => void): Promise<void> {
    const { layers, width: D, heads: H, headDim: d } = this.#subject.model.config
    const hidden = new Float32Array(D * tokens.length)
    const queries = new Float32Array(d * H * tokens.length)
    for (let layer = 0; layer < layers; layer++) {
      // What the layer before stored is not read again.
      this.#store.truncate(this.#sequence, 0)
      this.#length = 0
      for (let from = 0; from < tokens.length; from += CHUNK) {
        const to = Math.min(from + CHUNK, tokens.length)
        const result = await this.#step(
          layer === 0
            ? { kind: 'tokens', tokens: tokens.subarray(from, to) }
            : { kind: 'hidden', rows: hidden.subarray(D * from, D * to) },
          to - from,
          { from: layer, to: layer + 1 },
          { logits: [], hidden: true, queries: true },
        )
        hidden.set(result.hidden!, D * from)
        queries.set(result.queries![0]!, d * H * from)
      }
      seen(layer, queries)
    }
  }

  /** Values of rows [from, to) of a layer, f32 [d, to - from, Hkv]. */
  values(layer: number, from: number, to: number): Float32Array {
    const cells = Array.from({ length: to - from }, (_, i) => from + i)
    return readRows(this.#subject.runner, this.#store, this.#sequence, layer, 'all', cells).values
  }

  #read(tokens: Int32Array, outputs: WorkOutputs): Promise<WorkResult> {
    const layers = { from: 0, to: this.#subject.model.config.layers }
    return this.#step({ kind: 'tokens', tokens }, tokens.length, layers, outputs)
  }

  async #step(input: WorkInput, rows: number, layers: Range, outputs: WorkOutputs): Promise<WorkResult> {
    const positions = Int32Array.from({ length: rows }, (_, i) => this.#length + i)
    this.#store.append(this.#sequence, positions)
    this.#length += rows
    const item: WorkItem = {
      sequence: this.#sequence.id,
      positions,
      store: { kind: 'tail' },
      layers,
      input,
      outputs,
      mask: { kind: 'causal' },
    }
    const { items } = await this.#subject.executor.run({ items: [item] }, this.#signal)
    return items[0]!
  }

  [Symbol.dispose](): void {
    this.#store.free(this.#sequence)
  }
}

/**
 * `kvasir bench attention`: what decode attention costs by how it reads the cache. Milliseconds of one layer for one row, on
 * f16 caches, with the executor's own lowerings:
 *
 *   flash        ggml's fused op on a view, values row by row as it wants them; what libllama does, on head-major rows
 *   grouped      matrix products on a view, values transposed; what the engine does
 *   grouped-2/4  the same over 2 or 4 views that do not follow each other: a sequence in pieces
 *   gather       pages fetched by index into f32, in another order for each head, then grouped: a table in many pieces
 *   gather-half  the same with half of the pages: what a policy has to drop before its ragged tables pay
 *
 * A graph has several layers with caches of their own, so that none is still in a core's cache from the run before. Ways take
 * turns, and all of them that read all rows must give the same result.
 */
import { Arena, type ArenaShape, CELL_PADDING, PAGE_CELLS, pagesFor } from '../src/cache/arena.ts'
import { KvasirError } from '../src/contract/errors.ts'
import { flash } from '../src/executor/lower/flash.ts'
import { grouped } from '../src/executor/lower/grouped.ts'
import type { KvPart } from '../src/executor/lower/lowering.ts'
import { Backend, SingleRunner } from '../src/ggml/backend.ts'
import { Context } from '../src/ggml/context.ts'
import { cpuDevice } from '../src/ggml/device.ts'
import { Graph } from '../src/ggml/graph.ts'
import { loadNative } from '../src/ggml/library.ts'
import { fromFloats } from '../src/ggml/numbers.ts'
import * as ops from '../src/ggml/ops/index.ts'
import type { Tensor } from '../src/ggml/tensor.ts'
import { Random } from './random-model.ts'
import { median } from './speed.ts'

export const READINGS = ['flash', 'grouped', 'grouped-2', 'grouped-4', 'gather', 'gather-half'] as const
export type Reading = (typeof READINGS)[number]

export interface HeadShape {
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
}

export interface AttentionRow {
  readonly heads: number
  readonly kv_heads: number
  readonly head_dim: number
  /** Rows in the cache; `gather-half` reads half of them. */
  readonly rows: number
  readonly threads: number
  readonly how: Reading
  /** Of one layer. Median. */
  readonly ms: number
  /** The same in processor time of all threads. With one thread it is what `ms` would be on an idle machine; more wait spinning. */
  readonly cpu_ms: number
  /** Median over rounds of the fused op's time over this one's: above 1, this is faster. */
  readonly ratio_to_flash: number
}

export interface AttentionOptions {
  readonly shapes?: readonly HeadShape[]
  /** Cached rows, multiples of 256. Default 1024, 4096, 16384. */
  readonly rows?: readonly number[]
  /** Default 1 and 2. */
  readonly threads?: readonly number[]
  /** Default 5. */
  readonly rounds?: number
  readonly onRow?: (row: AttentionRow) => void
}

export const ATTENTION_SHAPES: readonly HeadShape[] = [
  { heads: 14, kvHeads: 2, headDim: 64 },
  { heads: 32, kvHeads: 8, headDim: 64 },
  { heads: 32, kvHeads: 8, headDim: 128 },
  { heads: 16, kvHeads: 16, headDim: 64 },
]

/** Layers of a graph: more of them where caches are small, for a working set that no core's own cache holds. */
const LEAST_LAYERS = 8
const MOST_LAYERS = 64
const WORKING_SET = 32 * 2 ** 20
/** A sample is as many runs as take this long together, in milliseconds. */
const SAMPLE_MS = 20
/** Largest error over the root mean square of the result; it was 1e-3. */
const TOLERANCE = 1e-2
/** The fused op sums f16 values in f16: off by 0.12 after 16384 rows. */
const FLASH_TOLERANCE = 0.5
/** Numbers that are random on their own; caches repeat them, to be filled in no time. */
const DISTINCT = 2 ** 20 - 3

export async function attention(options: AttentionOptions = {}): Promise<AttentionRow[]> {
  await loadNative()
  const out: AttentionRow[] = []
  for (const n of options.rows ?? [])
    if (n % CELL_PADDING) throw new KvasirError('INVALID_ARGUMENT', `${n} cached rows; it must be a multiple of 256`)
  const { threads = [1, 2], rounds = 5 } = options
  using backend = new Backend(cpuDevice(), Math.max(...threads))
  const numbers = randomNumbers()
  for (const shape of options.shapes ?? ATTENTION_SHAPES)
    for (const n of options.rows ?? [1024, 4096, 16384])
      for (const row of race(backend, numbers, shape, n, threads, rounds)) {
        out.push(row)
        options.onRow?.(row)
      }
  return out
}

function race(
  backend: Backend,
  numbers: Uint8Array,
  shape: HeadShape,
  n: number,
  threads: readonly number[],
  rounds: number,
): AttentionRow[] {
  const { heads, kvHeads, headDim } = shape
  using caches = new Caches(backend, shape, n, numbers)
  using all = new Disposables(READINGS.map((how) => new Reader(backend, caches, shape, how)))
  const samples = threads.flatMap((t) => all.list.map((reader) => ({ reader, threads: t, taken: [] as Taken[] })))
  // The first round does not count: page faults, and how many runs make a sample.
  const runs = new Map(samples.map((s) => [s, 1]))
  for (let round = 0; round <= rounds; round++)
    for (const s of round % 2 ? samples : samples.toReversed()) {
      backend.useThreads(s.threads)
      const taken = s.reader.time(runs.get(s)!)
      if (round) s.taken.push(taken)
      else runs.set(s, Math.max(1, Math.round(SAMPLE_MS / s.reader.time(1).ms / caches.layers)))
    }
  const reference = all.list.find((r) => r.how === 'grouped')!
  reference.checkAgainst(all.list.filter((r) => r.how !== 'gather-half'))
  return samples.map((s) => {
    const base = samples.find((b) => b.threads === s.threads && b.reader.how === 'flash')!
    return {
      ...{ heads, kv_heads: kvHeads, head_dim: headDim, rows: n, threads: s.threads, how: s.reader.how },
      ms: median(s.taken.map((t) => t.ms)),
      cpu_ms: median(s.taken.map((t) => t.cpuMs)),
      ratio_to_flash: median(s.taken.map((t, i) => base.taken[i]!.ms / t.ms)),
    }
  })
}

/** The same random rows twice: with values row by row, and transposed. */
class Caches implements Disposable {
  readonly rowMajor: Arena
  readonly transposed: Arena
  readonly layers: number
  readonly cells: number

  constructor(backend: Backend, { kvHeads, headDim }: HeadShape, n: number, numbers: Uint8Array) {
    const bytes = 4 * n * kvHeads * headDim
    this.layers = Math.min(MOST_LAYERS, Math.max(LEAST_LAYERS, Math.ceil(WORKING_SET / bytes)))
    const shape: ArenaShape = {
      ...{ layers: this.layers, kvHeads, headDim, keyType: 'f16', valueType: 'f16' },
      ...{ valuesTransposed: false, pages: pagesFor(n) },
    }
    this.rowMajor = new Arena(shape, cpuDevice())
    this.transposed = new Arena({ ...shape, valuesTransposed: true }, cpuDevice())
    this.cells = n
    for (let layer = 0; layer < this.layers; layer++) {
      fill(this.rowMajor.keys(layer), numbers, 2 * layer)
      fill(this.rowMajor.values(layer), numbers, 2 * layer + 1)
      fill(this.transposed.keys(layer), numbers, 2 * layer)
      turn(backend, this.rowMajor.values(layer), this.transposed.values(layer))
    }
  }

  [Symbol.dispose](): void {
    this.rowMajor[Symbol.dispose]()
    this.transposed[Symbol.dispose]()
  }
}

/** f16, mean 0, deviation 1. */
function randomNumbers(): Uint8Array {
  const random = new Random(5)
  return fromFloats(
    'f16',
    Float32Array.from({ length: DISTINCT }, () => random.normal()),
    DISTINCT,
  )
}

function fill(tensor: Tensor, numbers: Uint8Array, turn: number): void {
  let from = (turn * 100_003 * 2) % numbers.length
  for (let at = 0; at < tensor.bytes; ) {
    const part = numbers.subarray(from, from + Math.min(numbers.length - from, tensor.bytes - at))
    tensor.set(part, at)
    at += part.length
    from = 0
  }
}

/** [d, n, Hkv] -> [n, d, Hkv] */
function turn(backend: Backend, from: Tensor, into: Tensor): void {
  using c = new Context({ tensors: 8, graphNodes: 16 })
  using runner = new SingleRunner(backend)
  const graph = new Graph(c)
  graph.expand(ops.copy(c, ops.transpose(c, from), into))
  runner.allocate(graph)
  runner.run(graph)
}

interface Taken {
  readonly ms: number
  readonly cpuMs: number
}

/** The graph of one way to read, over all layers. */
class Reader implements Disposable {
  readonly how: Reading
  readonly layers: number
  readonly #context: Context
  readonly #runner: SingleRunner
  readonly #graph: Graph
  readonly #inputs: (readonly [Tensor, Int32Array | Float32Array | Uint16Array])[] = []
  readonly #last: Tensor

  constructor(backend: Backend, caches: Caches, shape: HeadShape, how: Reading) {
    const { heads, headDim } = shape
    this.how = how
    this.layers = caches.layers
    const nodes = 64 * this.layers
    const c = new Context({ tensors: nodes, graphNodes: 2 * nodes })
    this.#context = c
    this.#graph = new Graph(c)
    this.#runner = new SingleRunner(backend)
    const lowering = how === 'flash' ? flash : grouped
    const cells = how === 'gather-half' ? caches.cells / 2 : caches.cells
    const random = new Random(9)
    const q = this.#input(
      c.tensor('f32', headDim, heads, 1),
      Float32Array.from({ length: headDim * heads }, () => random.normal()),
    )
    const mask = lowering.mask(c, this.#input(c.tensor('f16', cells, 1), new Uint16Array(cells)), heads)
    const partsOf = this.#reading(caches, shape, cells)
    let out: Tensor | null = null
    for (let layer = 0; layer < this.layers; layer++) {
      const parts = partsOf(layer)
      out = lowering.attend(c, { q, parts, mask, scale: 1 / Math.sqrt(headDim), softcap: 0 }).out // f32 [d * H, 1]
      this.#graph.expand(layer === this.layers - 1 ? out.asOutput() : out)
    }
    this.#last = out!
    this.#runner.allocate(this.#graph)
  }

  #input(tensor: Tensor, data: Int32Array | Float32Array | Uint16Array): Tensor {
    this.#inputs.push([tensor.asInput(), data])
    return tensor
  }

  /** As `graph.ts` reads what `place.ts` placed. */
  #reading(caches: Caches, { kvHeads, headDim: d }: HeadShape, cells: number): (layer: number) => KvPart[] {
    const c = this.#context
    const arena = this.how === 'flash' ? caches.rowMajor : caches.transposed
    const { valuesTransposed } = arena.shape
    if (!this.how.startsWith('gather')) {
      const pieces = Number(this.how.split('-')[1] ?? 1)
      const size = cells / pieces
      // Last piece first: no two of them follow each other.
      const starts = Array.from({ length: pieces }, (_, i) => (pieces - 1 - i) * size)
      return (layer) =>
        starts.map((from) => ({
          keys: arena.keyRun(c, layer, from, from + size),
          values: arena.valueRun(c, layer, from, from + size),
          valuesTransposed,
        }))
    }
    const n = cells / PAGE_CELLS
    const rows = new Int32Array(cells * kvHeads)
    const blocks = new Int32Array(n * d * kvHeads)
    for (let h = 0; h < kvHeads; h++)
      shuffled(arena.pages, h)
        .subarray(0, n)
        .forEach((page, s) => {
          for (let k = 0; k < PAGE_CELLS; k++) rows[h * cells + s * PAGE_CELLS + k] = page * PAGE_CELLS + k
          for (let e = 0; e < d; e++) blocks[(h * d + e) * n + s] = (h * d + e) * arena.pages + page
        })
    const rowIds = this.#input(c.tensor('i32', cells, kvHeads), rows)
    const blockIds = this.#input(c.tensor('i32', n * d * kvHeads), blocks)
    return (layer) => {
      const keys = ops.getRows(c, arena.keys(layer), rowIds) //                           f32 [d, n, Hkv]
      const all = arena.values(layer)
      const inBlocks = ops.reshape(c, all, PAGE_CELLS, all.elements / PAGE_CELLS)
      const values = ops.getRows(c, inBlocks, blockIds) //                                f32 [32, n / 32 * d * Hkv]
      return [{ keys, values: ops.reshape(c, values, cells, d, kvHeads), valuesTransposed }]
    }
  }

  /** A layer's, on average of some runs. */
  time(runs: number): Taken {
    let ms = 0
    let cpuMs = 0
    for (let i = 0; i < runs; i++) {
      // Each time: intermediate tensors take the place of inputs that are not needed any more.
      for (const [tensor, data] of this.#inputs) tensor.set(data)
      const cpu = process.cpuUsage()
      const start = performance.now()
      this.#runner.run(this.#graph)
      ms += performance.now() - start
      const { user, system } = process.cpuUsage(cpu)
      cpuMs += (user + system) / 1000
    }
    return { ms: ms / runs / this.layers, cpuMs: cpuMs / runs / this.layers }
  }

  /** @throws KvasirError NATIVE_FAILED when others do not give the same for the last layer */
  checkAgainst(others: readonly Reader[]): void {
    const own = this.#last.floats()
    const norm = Math.sqrt(own.reduce((sum, x) => sum + x * x, 0) / own.length)
    for (const other of others) {
      const worst = other.#last.floats().reduce((most, x, i) => Math.max(most, Math.abs(x - own[i]!)), 0)
      const tolerance = other.how === 'flash' ? FLASH_TOLERANCE : TOLERANCE
      // Written so that NaN fails.
      if (!(worst <= tolerance * norm))
        throw new KvasirError('NATIVE_FAILED', `${other.how} is off from ${this.how} by ${worst / norm}`)
    }
  }

  [Symbol.dispose](): void {
    this.#context.dispose()
    this.#runner[Symbol.dispose]()
  }
}

/** 0 to n - 1 in random order. */
function shuffled(n: number, seed: number): Int32Array {
  const random = new Random(seed)
  const out = Int32Array.from({ length: n }, (_, i) => i)
  for (let i = n - 1; i > 0; i--) {
    const j = Math.floor(random.uniform() * (i + 1))
    const x = out[i]!
    out[i] = out[j]!
    out[j] = x
  }
  return out
}

class Disposables<T extends Disposable> implements Disposable {
  readonly list: readonly T[]

  constructor(list: readonly T[]) {
    this.list = list
  }

  [Symbol.dispose](): void {
    for (const x of this.list) x[Symbol.dispose]()
  }
}

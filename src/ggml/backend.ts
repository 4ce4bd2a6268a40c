/**
 * Backends run graphs. A backend has one work buffer: it runs one graph at a time, which is checked here.
 */
import { KvasirError } from '../contract/errors.ts'
import { Context, type Memory } from './context.ts'
import type { Pointer } from './declare.ts'
import type { Device } from './device.ts'
import { Graph } from './graph.ts'
import { cpu, ffi, native } from './library.ts'
import { scale } from './ops/elementwise.ts'
import { holdAll, Owned } from './owned.ts'
import { ThreadPool } from './threadpool.ts'

/** How a run ended. `aborted` leaves the backend usable and the graph's outputs undefined. */
export type ComputeResult = 'done' | 'aborted'

/** GGML_MAX_N_THREADS */
const MOST_THREADS = 512

export class Backend extends Owned {
  readonly device: Device
  /** Threads that compute, on the CPU; 0 elsewhere. */
  readonly threads: number
  readonly #pool: ThreadPool | null = null
  /** Native flag that the CPU backend polls after every node; see NativeLibraries.readFlag. */
  readonly #stop: Context | null = null

  /**
   * @param threads CPU only. More than one thread comes with a kept pool, since ggml would otherwise create and join
   *   threads for every graph. Its barriers spin: use one thread when something else wants the cores.
   */
  constructor(device: Device, threads = 1) {
    if (!(Number.isSafeInteger(threads) && threads >= 1 && threads <= MOST_THREADS))
      throw new KvasirError('INVALID_ARGUMENT', `${threads} threads: must be a whole number from 1 to ${MOST_THREADS}`)
    super('backend', ffi.ggml_backend_dev_init(device.ptr, null), `could not start device ${device.name}`)
    this.device = device
    this.threads = device.kind === 'cpu' ? threads : 0
    if (device.kind !== 'cpu') return
    cpu.ggml_backend_set_n_threads(this.ptr, threads)
    this.#stop = new Context({ tensors: 0 })
    ffi.ggml_set_no_alloc(this.#stop.ptr, false)
    cpu.ggml_backend_set_abort_callback(this.ptr, native().readFlag, this.#stop.ptr)
    if (threads > 1) {
      this.#pool = new ThreadPool(threads)
      cpu.ggml_backend_cpu_set_threadpool(this.ptr, this.#pool.ptr)
    }
  }

  /** Uses `threads` of its threads from the next run on; CPU only. */
  useThreads(threads: number): void {
    if (this.#stop) cpu.ggml_backend_set_n_threads(this.ptr, Math.max(1, Math.min(threads, this.threads)))
  }

  /** Lets a run in progress end at its next node. It stays set until {@link resume}. */
  abort(): void {
    if (this.#stop) ffi.ggml_set_no_alloc(this.#stop.ptr, true)
  }

  resume(): void {
    if (this.#stop) ffi.ggml_set_no_alloc(this.#stop.ptr, false)
  }

  protected override free(ptr: Pointer): void {
    ffi.ggml_backend_free(ptr)
    this.#pool?.dispose()
    this.#stop?.dispose()
  }
}

/** Memory for the intermediate tensors of graphs, and the way to run them. One graph at a time. */
export interface Runner extends Disposable {
  /**
   * Gives memory to a graph's tensors, once. Graphs of one runner share its memory: all inputs must be set again before
   * each run. A graph that needs more than there is takes new memory, and those before it are gone.
   * @throws KvasirError OUT_OF_MEMORY, NATIVE_FAILED for a graph that has memory
   */
  allocate(graph: Graph): void
  /** Blocks the thread until the graph has run. */
  run(graph: Graph): ComputeResult
  /** The same on another thread. */
  runAsync(graph: Graph): Promise<ComputeResult>
  abort(): void
  /** Bytes held for intermediate tensors. */
  readonly bytes: number
}

/** One backend and a graph allocator: the cheapest way, for work that one device can do alone. */
export class SingleRunner extends Owned implements Runner {
  readonly backend: Backend
  #memory = new GraphMemory()

  constructor(backend: Backend) {
    super('allocator', ffi.ggml_gallocr_new(backend.device.bufferType.ptr))
    this.backend = backend
  }

  allocate(graph: Graph): void {
    checkFresh(graph)
    const release = holdAll([this])
    try {
      const before = this.bytes
      // Without `reserve`, a graph of as many nodes as the last would be laid out by the last one's plan, and where that
      // computed in place, an op that cannot would overwrite what it reads.
      const done = ffi.ggml_gallocr_reserve(this.ptr, graph.ptr) && ffi.ggml_gallocr_alloc_graph(this.ptr, graph.ptr)
      if (!done || this.bytes !== before) this.#memory = this.#memory.replaced()
      if (!done) throw noMemory(graph)
      this.#memory.give(graph)
    } finally {
      release()
    }
  }

  run(graph: Graph): ComputeResult {
    const leave = this.#enter(graph)
    try {
      return result(ffi.ggml_backend_graph_compute(this.backend.ptr, graph.ptr))
    } finally {
      leave()
    }
  }

  async runAsync(graph: Graph): Promise<ComputeResult> {
    const leave = this.#enter(graph)
    try {
      return result(await later((done) => ffi.ggml_backend_graph_compute.async(this.backend.ptr, graph.ptr, done)))
    } finally {
      leave()
    }
  }

  abort(): void {
    this.backend.abort()
  }

  get bytes(): number {
    return ffi.ggml_gallocr_get_buffer_size(this.ptr, 0)
  }

  #enter(graph: Graph): () => void {
    this.#memory.check(graph)
    const leave = holdAll([this, this.backend, graph.ctx])
    this.backend.resume()
    return leave
  }

  protected override free(ptr: Pointer): void {
    this.#memory.disposed = true
    ffi.ggml_gallocr_free(ptr)
  }
}

/** GGML_SCHED_MAX_BACKENDS */
const MOST_BACKENDS = 16

/** Several backends, best first, the CPU last: ggml splits each graph by where its weights lie. */
export class SplitRunner extends Owned implements Runner {
  readonly backends: readonly Backend[]
  /** Bound of {@link Context.graphLoad} that it can take. */
  readonly graphNodes: number
  /** The scheduler runs the graph it allocated last, whichever it is asked to. */
  #last: Graph | null = null
  #memory = new GraphMemory()
  /** See {@link allocate}. */
  readonly #blank: { readonly ctx: Context; readonly graph: Graph }

  /** @throws KvasirError INVALID_ARGUMENT when the last backend is not the CPU, or there are more than {@link MOST_BACKENDS} */
  constructor(backends: readonly Backend[], graphNodes: number) {
    if (backends.at(-1)?.device.kind !== 'cpu' || backends.length > MOST_BACKENDS)
      throw new KvasirError('INVALID_ARGUMENT', `a scheduler takes 1 to ${MOST_BACKENDS} backends, the CPU last`)
    const list = BigUint64Array.from(backends.map((b) => b.ptr))
    super('scheduler', ffi.ggml_backend_sched_new(list, null, backends.length, graphNodes, false, true))
    this.backends = backends
    this.graphNodes = graphNodes
    const ctx = new Context({ tensors: 2, graphNodes: 2 })
    const graph = new Graph(ctx)
    graph.expand(scale(ctx, ctx.tensor('f32', 1).asInput(), 1))
    this.#blank = { ctx, graph }
  }

  allocate(graph: Graph): void {
    if (graph.ctx.graphLoad > this.graphNodes)
      throw new KvasirError('CAPACITY', `a scheduler for ${this.graphNodes} nodes got ${graph.ctx.graphLoad} tensors`)
    checkFresh(graph)
    const release = holdAll([this])
    try {
      const before = this.bytes
      this.#last = null
      // As in SingleRunner: the plan of an earlier graph must not serve this one. Reserving for the graph itself is no
      // way: splitting it points its sources at copies that do not outlive the call. Memory never shrinks.
      ffi.ggml_backend_sched_reset(this.ptr)
      const done =
        ffi.ggml_backend_sched_reserve(this.ptr, this.#blank.graph.ptr) &&
        ffi.ggml_backend_sched_alloc_graph(this.ptr, graph.ptr)
      if (!done || this.bytes !== before) this.#memory = this.#memory.replaced()
      if (!done) throw noMemory(graph)
      this.#memory.give(graph)
      this.#last = graph
    } finally {
      release()
    }
  }

  run(graph: Graph): ComputeResult {
    const leave = this.#enter(graph)
    try {
      return result(ffi.ggml_backend_sched_graph_compute(this.ptr, graph.ptr))
    } finally {
      leave()
    }
  }

  async runAsync(graph: Graph): Promise<ComputeResult> {
    const leave = this.#enter(graph)
    try {
      return result(await later((done) => ffi.ggml_backend_sched_graph_compute.async(this.ptr, graph.ptr, done)))
    } finally {
      leave()
    }
  }

  abort(): void {
    for (const b of this.backends) b.abort()
  }

  get bytes(): number {
    return this.backends.reduce((sum, b) => sum + ffi.ggml_backend_sched_get_buffer_size(this.ptr, b.ptr), 0)
  }

  #enter(graph: Graph): () => void {
    this.#memory.check(graph)
    if (graph !== this.#last)
      throw new KvasirError('NATIVE_FAILED', 'another graph was allocated since: build this one anew')
    const leave = holdAll([this, ...this.backends, graph.ctx])
    for (const b of this.backends) b.resume()
    return leave
  }

  protected override free(ptr: Pointer): void {
    this.#memory.disposed = true
    ffi.ggml_backend_sched_free(ptr)
    this.#blank.ctx.dispose()
  }
}

/** What one runner gave to graphs. Running a graph whose tensors have no memory, or no longer, would end the process. */
class GraphMemory implements Memory {
  disposed = false
  readonly #nodes = new WeakMap<Graph, number>()

  /** The next, after the allocator took other memory. */
  replaced(): GraphMemory {
    this.disposed = true
    return new GraphMemory()
  }

  give(graph: Graph): void {
    this.#nodes.set(graph, graph.nodes)
    graph.ctx.graphMemory = this
  }

  check(graph: Graph): void {
    const nodes = this.#nodes.get(graph)
    if (nodes === graph.nodes) return
    const why = nodes === undefined ? 'this runner did not allocate the graph' : 'the graph grew since it was allocated'
    throw new KvasirError('NATIVE_FAILED', why)
  }
}

/** ggml takes a tensor that has an address for someone else's: allocating a graph again would leave it where it was. */
function checkFresh(graph: Graph): void {
  graph.ctx.checkAlive()
  if (graph.ctx.graphMemory) throw new KvasirError('NATIVE_FAILED', 'this graph has memory already: build it anew')
}

function noMemory(graph: Graph): KvasirError {
  const message = `no memory for the intermediate tensors of a graph of ${graph.nodes} nodes`
  // Some of its tensors may point into what was freed.
  graph.ctx.graphMemory = { disposed: true }
  return new KvasirError('OUT_OF_MEMORY', message)
}

function later(start: (done: (error: Error | null, status: number) => void) => void): Promise<number> {
  return new Promise((resolve, reject) => start((error, status) => (error ? reject(error) : resolve(status))))
}

/** GGML_STATUS: -2 allocation failed, -1 failed, 0 success, 1 aborted. */
function result(status: number): ComputeResult {
  if (status === 0) return 'done'
  if (status === 1) return 'aborted'
  if (status === -2) throw new KvasirError('OUT_OF_MEMORY', 'a backend ran out of memory while computing')
  throw new KvasirError('NATIVE_FAILED', `a graph failed with status ${status}`)
}

/**
 * Backends run graphs. A backend has one work buffer: it runs one graph at a time, which is checked here.
 */
import { KvasirError } from '../contract/errors.ts'
import { Context } from './context.ts'
import type { Pointer } from './declare.ts'
import type { Device } from './device.ts'
import type { Graph } from './graph.ts'
import { cpu, ffi, native } from './library.ts'
import { Owned } from './owned.ts'
import { ThreadPool } from './threadpool.ts'

/** How a run ended. `aborted` leaves the backend usable and the graph's outputs undefined. */
export type ComputeResult = 'done' | 'aborted'

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
  /** Gives memory to a graph's tensors. All inputs must be set again afterwards. @throws OUT_OF_MEMORY */
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
  #busy = false

  constructor(backend: Backend) {
    super('allocator', ffi.ggml_gallocr_new(backend.device.bufferType.ptr))
    this.backend = backend
  }

  allocate(graph: Graph): void {
    if (!ffi.ggml_gallocr_alloc_graph(this.ptr, graph.ptr))
      throw new KvasirError(
        'OUT_OF_MEMORY',
        `no memory for the intermediate tensors of a graph of ${graph.nodes} nodes`,
      )
  }

  run(graph: Graph): ComputeResult {
    this.#enter()
    try {
      return result(ffi.ggml_backend_graph_compute(this.backend.ptr, graph.ptr))
    } finally {
      this.#busy = false
    }
  }

  async runAsync(graph: Graph): Promise<ComputeResult> {
    this.#enter()
    try {
      return result(await later((done) => ffi.ggml_backend_graph_compute.async(this.backend.ptr, graph.ptr, done)))
    } finally {
      this.#busy = false
    }
  }

  abort(): void {
    this.backend.abort()
  }

  get bytes(): number {
    return ffi.ggml_gallocr_get_buffer_size(this.ptr, 0)
  }

  #enter(): void {
    if (this.#busy) throw new KvasirError('NATIVE_FAILED', 'this backend is already running a graph')
    this.#busy = true
    this.backend.resume()
  }

  protected override free(ptr: Pointer): void {
    ffi.ggml_gallocr_free(ptr)
  }
}

/** Several backends, best first, the CPU last: ggml splits each graph by where its weights lie. */
export class SplitRunner extends Owned implements Runner {
  readonly backends: readonly Backend[]
  #busy = false

  constructor(backends: readonly Backend[], graphNodes: number) {
    const list = BigUint64Array.from(backends.map((b) => b.ptr))
    super('scheduler', ffi.ggml_backend_sched_new(list, null, backends.length, graphNodes, false, true))
    this.backends = backends
  }

  allocate(graph: Graph): void {
    ffi.ggml_backend_sched_reset(this.ptr)
    if (!ffi.ggml_backend_sched_alloc_graph(this.ptr, graph.ptr))
      throw new KvasirError(
        'OUT_OF_MEMORY',
        `no memory for the intermediate tensors of a graph of ${graph.nodes} nodes`,
      )
  }

  run(graph: Graph): ComputeResult {
    this.#enter()
    try {
      return result(ffi.ggml_backend_sched_graph_compute(this.ptr, graph.ptr))
    } finally {
      this.#busy = false
    }
  }

  async runAsync(graph: Graph): Promise<ComputeResult> {
    this.#enter()
    try {
      return result(await later((done) => ffi.ggml_backend_sched_graph_compute.async(this.ptr, graph.ptr, done)))
    } finally {
      this.#busy = false
    }
  }

  abort(): void {
    for (const b of this.backends) b.abort()
  }

  get bytes(): number {
    return this.backends.reduce((sum, b) => sum + ffi.ggml_backend_sched_get_buffer_size(this.ptr, b.ptr), 0)
  }

  #enter(): void {
    if (this.#busy) throw new KvasirError('NATIVE_FAILED', 'these backends are already running a graph')
    this.#busy = true
    for (const b of this.backends) b.resume()
  }

  protected override free(ptr: Pointer): void {
    ffi.ggml_backend_sched_free(ptr)
  }
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

/**
 * A ggml context: the memory of tensor headers and graphs (never of tensor data: every context here is `no_alloc`).
 * Its capacity is fixed when it is made; C ends the process when it overflows, so it is counted here.
 */
import { KvasirError, ShapeError } from '../contract/errors.ts'
import type { Pointer } from './declare.ts'
import { ffi } from './library.ts'
import { Owned } from './owned.ts'
import { contiguous, type Four, four, Tensor } from './tensor.ts'
import { GGML_TYPES, type GgmlType } from './types.ts'

export interface ContextSize {
  /** Tensors, views included. */
  readonly tensors: number
  /** Capacity of the one graph that may live in this context: nodes and, separately, leafs. Default 0: no graph. */
  readonly graphNodes?: number
}

/** Where tensor data lies; once it is gone, the pointers in the headers are worthless. */
export interface Memory {
  readonly disposed: boolean
}

/** Objects in a context are padded to this; one header for the graph, and slack for alignment. */
const SLACK_BYTES = 1024

export class Context extends Owned {
  readonly size: Required<ContextSize>
  /** True when its tensors lie in a repacking buffer: then only `mulMat` may read them. */
  packed = false
  /** The buffer that all its tensors lie in, when there is one. */
  buffer: Memory | null = null
  /** What a runner gave the tensors of its graph. */
  graphMemory: Memory | null = null
  /** How often it was reset: tensors remember theirs. */
  generation = 0
  #tensors = 0
  #foreign = 0
  #hasGraph = false

  constructor(size: ContextSize) {
    const graphNodes = size.graphNodes ?? 0
    const bytes =
      size.tensors * ffi.ggml_tensor_overhead() +
      (graphNodes ? ffi.ggml_graph_overhead_custom(graphNodes, false) : 0) +
      SLACK_BYTES
    super('context', ffi.ggml_init({ mem_size: bytes, mem_buffer: null, no_alloc: true }))
    this.size = { tensors: size.tensors, graphNodes }
  }

  /** Upper bound of the nodes and leafs that a graph over this context's tensors can have. */
  get graphLoad(): number {
    return this.#tensors + this.#foreign
  }

  get tensorCount(): number {
    return this.#tensors
  }

  /** @throws KvasirError DISPOSED */
  checkAlive(): void {
    void this.ptr
    if (this.buffer?.disposed) throw new KvasirError('DISPOSED', 'the buffer of this context was disposed of')
    if (this.graphMemory?.disposed)
      throw new KvasirError(
        'DISPOSED',
        "the runner that held this graph's memory was disposed of, or took more: build it anew",
      )
  }

  /**
   * A new tensor without data.
   * @throws ShapeError for sizes that are not whole and positive, or a row that is no multiple of the type's block.
   */
  tensor(type: GgmlType, ...sizes: number[]): Tensor {
    const ne = four(sizes)
    const { id, block } = GGML_TYPES[type]
    if (sizes.length < 1 || sizes.length > 4 || ne.some((n) => !Number.isSafeInteger(n) || n < 1))
      throw new ShapeError(`tensor: sizes [${sizes.join(', ')}] must be one to four whole numbers from 1 up`)
    if (ne[0] % block) throw new ShapeError(`tensor: a row of ${ne[0]} ${type} elements is no multiple of ${block}`)
    if (!Number.isSafeInteger(contiguous(type, ne)[3] * ne[3]))
      throw new ShapeError(`tensor: [${ne.join(', ')}] ${type} has more bytes than a safe integer holds`)
    return this.adopt(ffi.ggml_new_tensor_4d(this.reserve(), id, ...ne), type, ne)
  }

  /** Takes the room of the one graph. @throws KvasirError CAPACITY */
  reserveGraph(): Pointer {
    const ptr = this.ptr
    if (!this.size.graphNodes || this.#hasGraph)
      throw new KvasirError(
        'CAPACITY',
        `this context was made ${this.#hasGraph ? 'for one graph' : 'without room for a graph'}`,
      )
    this.#hasGraph = true
    return ptr
  }

  /** Counts one more tensor and gives the context's address to make it with; `sources` may lie in other contexts. */
  reserve(...sources: readonly (Tensor | null)[]): Pointer {
    if (this.#tensors + 1 > this.size.tensors)
      throw new KvasirError('CAPACITY', `a context for ${this.size.tensors} tensors is full`)
    this.#tensors++
    for (const s of sources) if (s && s.ctx !== this) this.#foreign++
    return this.ptr
  }

  /** Wraps what a C constructor returned. */
  adopt(ptr: Pointer | null, type: GgmlType, ne: Four, nb: Four = contiguous(type, ne)): Tensor {
    if (ptr === null)
      throw new KvasirError('NATIVE_FAILED', `no tensor [${ne.join(', ')}] ${type}: context memory ran out`)
    return new Tensor(this, ptr, type, ne, nb)
  }

  /** Drops all tensors and graphs, for reuse. Tensors made before must not be used any more. */
  reset(): void {
    ffi.ggml_reset(this.ptr)
    this.generation++
    this.#tensors = 0
    this.#foreign = 0
    this.#hasGraph = false
    this.graphMemory = null
  }

  protected override free(ptr: Pointer): void {
    ffi.ggml_free(ptr)
  }
}

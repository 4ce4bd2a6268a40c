/**
 * A tensor that knows its type and shape on the TypeScript side, so that every check happens before C sees it.
 * One dimension order everywhere: ggml's, fastest first.
 */
import koffi from 'koffi'
import { KvasirError, ShapeError } from '../contract/errors.ts'
import type { Context } from './context.ts'
import type { Pointer } from './declare.ts'
import { ffi } from './library.ts'
import { GGML_TYPES, type GgmlType, rowBytes } from './types.ts'

/** Sizes or byte strides, fastest dimension first; unused dimensions are 1. */
export type Four = readonly [number, number, number, number]

/** `struct ggml_tensor` (64 bit): offset of `data`; checked against the library by a test. */
export const TENSOR_DATA_OFFSET = 248
export const TENSOR_BUFFER_OFFSET = 8
export const TENSOR_EXTRA_OFFSET = 320

export class Tensor {
  /** The context that holds this tensor's header. */
  readonly ctx: Context
  readonly ptr: Pointer
  readonly type: GgmlType
  /** Elements per dimension. */
  readonly ne: Four
  /** Bytes from one element to the next per dimension (for dimension 0: from one block to the next). */
  readonly nb: Four
  readonly #generation: number
  #hasMemory = false

  constructor(ctx: Context, ptr: Pointer, type: GgmlType, ne: Four, nb: Four) {
    this.ctx = ctx
    this.ptr = ptr
    this.type = type
    this.ne = ne
    this.nb = nb
    this.#generation = ctx.generation
  }

  /** @throws KvasirError DISPOSED when its context or its buffer is gone, or the context was reset. */
  checkAlive(): void {
    this.ctx.checkAlive()
    if (this.#generation !== this.ctx.generation)
      throw new KvasirError('DISPOSED', `${show(this)} is from before its context was reset`)
  }

  get elements(): number {
    return this.ne[0] * this.ne[1] * this.ne[2] * this.ne[3]
  }

  /** Bytes from the first to behind the last element, as ggml_nbytes counts them. */
  get bytes(): number {
    const { block, bytes } = GGML_TYPES[this.type]
    const [n0, n1, n2, n3] = this.ne
    const [b0, b1, b2, b3] = this.nb
    const row = block === 1 ? bytes + (n0 - 1) * b0 : (n0 * b0) / block
    return row + (n1 - 1) * b1 + (n2 - 1) * b2 + (n3 - 1) * b3
  }

  get isContiguous(): boolean {
    const { ne, nb } = this
    let packed = rowBytes(this.type, ne[0])
    if (ne[0] !== 1 && nb[0] !== GGML_TYPES[this.type].bytes) return false
    if (ne[1] !== 1 && nb[1] !== packed) return false
    packed *= ne[1]
    if (ne[2] !== 1 && nb[2] !== packed) return false
    return ne[3] === 1 || nb[3] === packed * ne[2]
  }

  /** Whether the elements of a row lie next to each other. */
  get hasDenseRows(): boolean {
    return this.nb[0] === GGML_TYPES[this.type].bytes
  }

  /** A name for messages and graph dumps. */
  named(name: string): this {
    this.checkAlive()
    ffi.ggml_set_name(this.ptr, name)
    return this
  }

  /** Marks it as set from outside before each run. Its memory may be reused after its last reader. */
  asInput(): this {
    this.checkAlive()
    ffi.ggml_set_input(this.ptr)
    return this
  }

  /** Keeps its memory from being reused within the graph, so that it can be read afterwards. */
  asOutput(): this {
    this.checkAlive()
    ffi.ggml_set_output(this.ptr)
    return this
  }

  /**
   * Copies `data` into the tensor, from byte `offset` on.
   * @throws ShapeError when the range is outside the tensor, KvasirError NOT_SUPPORTED for a part of a packed weight.
   */
  set(data: ArrayBufferView, offset = 0): void {
    this.#checkRange(data.byteLength, offset)
    if (this.ctx.packed && (offset !== 0 || data.byteLength !== this.bytes))
      throw new KvasirError('NOT_SUPPORTED', `${show(this)} is a packed weight: it must be set whole`)
    // Without traits CPU_REPACK cannot pack the type or shape, and would follow a null pointer.
    if (this.ctx.packed && koffi.decode(this.ptr, TENSOR_EXTRA_OFFSET, 'void*') === null)
      throw new KvasirError('NOT_SUPPORTED', `${show(this)} cannot be packed: ask supportsWeight first`)
    ffi.ggml_backend_tensor_set(this.ptr, data, offset, data.byteLength)
  }

  /** Copies from the tensor, from byte `offset` on, until `into` is full; returns `into`. */
  get<A extends ArrayBufferView>(into: A, offset = 0): A {
    this.#checkRange(into.byteLength, offset)
    if (this.ctx.packed) throw new KvasirError('NOT_SUPPORTED', `${show(this)} is a packed weight: it cannot be read`)
    ffi.ggml_backend_tensor_get(this.ptr, into, offset, into.byteLength)
    return into
  }

  /** Whether its context or graph was allocated; an input that no node of the graph reads gets no memory. */
  get hasMemory(): boolean {
    // Once given, it stays until the context, the graph or the buffer goes, which checkAlive sees.
    return (this.#hasMemory ||= koffi.decode(this.ptr, TENSOR_DATA_OFFSET, 'void*') !== null)
  }

  /**
   * Its memory as 32-bit words, without a copy, when that is the host's (`BufferType.isHost`). Must not be touched once the
   * buffer is gone: nothing would notice.
   */
  hostWords(): Uint32Array {
    if (this.ctx.packed) throw new KvasirError('NOT_SUPPORTED', `${show(this)} is a packed weight: it cannot be read`)
    const bytes = this.bytes - (this.bytes % 4)
    return new Uint32Array(koffi.view(this.address(0, bytes), bytes))
  }

  /** Where bytes [offset, offset + bytes) of its memory begin. */
  address(offset: number, bytes: number): Pointer {
    this.#checkRange(bytes, offset)
    return koffi.decode(this.ptr, TENSOR_DATA_OFFSET, 'void*') + BigInt(offset)
  }

  /** All elements of a contiguous f32 tensor. */
  floats(): Float32Array {
    if (this.type !== 'f32') throw new ShapeError(`floats: ${show(this)} is not f32`)
    return this.get(new Float32Array(this.elements))
  }

  #checkRange(bytes: number, offset: number): void {
    if (!this.isContiguous) throw new ShapeError(`read or write: ${show(this)} is not contiguous`)
    if (!(Number.isSafeInteger(offset) && offset >= 0 && offset + bytes <= this.bytes))
      throw new ShapeError(
        `read or write: bytes [${offset}, ${offset + bytes}) of ${show(this)}, which has ${this.bytes}`,
      )
    this.checkAlive()
    if (!this.hasMemory)
      throw new KvasirError('NATIVE_FAILED', `${show(this)} has no memory yet: allocate its context or graph first`)
  }
}

/** Byte strides of a contiguous tensor. */
export function contiguous(type: GgmlType, ne: Four): Four {
  const nb1 = rowBytes(type, ne[0])
  return [GGML_TYPES[type].bytes, nb1, nb1 * ne[1], nb1 * ne[1] * ne[2]]
}

/** `f16 [64, 512, 2]`, for messages. */
export function show(t: Tensor): string {
  let n = 4
  while (n > 1 && t.ne[n - 1] === 1) n--
  return `${t.type} [${t.ne.slice(0, n).join(', ')}]`
}

/** Fills a shape up to four dimensions. */
export function four(ne: readonly number[]): Four {
  if (ne.length > 4) throw new ShapeError(`[${ne.join(', ')}] has more than four dimensions`)
  return [ne[0] ?? 1, ne[1] ?? 1, ne[2] ?? 1, ne[3] ?? 1]
}
